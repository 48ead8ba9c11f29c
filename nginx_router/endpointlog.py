"""endpoints.log of a generation: the changes of endpoints that nginx took up without a reload, and that made no generation.

    of VERSION                     the snapshot (live.tsv) that it goes on from
    by JSON                        one change: when, by which words, what its askers are told, and the files of apps that are to follow
    app NAME JSON                  the entry of an app from now on, its texts with it
    route NAME<TAB>LINE            what nginx was sent of it (`routes`)
    gone NAME
    end VERSION CRC32              the change is whole: what all before this number comes to (RFC 1952)
    done VERSION                   its files are written and its askers were told

A change counts from its `end` on.  Its files are written behind that: without the line `done`, whoever has the host lock next
writes them.  nginx reads the same file as it starts (`templates/live/taking.lua`), and makes nothing of lines that it does not know.
The next generation has all of it in its own files, and begins with an empty log.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from .files import inherit_owner
from .recent import Recent

NAME = "endpoints.log"

_END = re.compile(rb"\nend \S+ [0-9]+\n")

#: From what length on a generation is made of a log when nobody waits, and how long it becomes at most: each command reads it
#: whole, in some milliseconds.
LONG, LONGEST = 128 << 10, 256 << 10


@dataclass(frozen=True)
class Log:
    """What a log holds; `size` is how far it is whole."""

    size: int
    version: str  # of the routes, with all its changes
    apps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> entry
    last: Mapping[str, Any] = field(default_factory=dict)  # who made the last change
    begins: int = 0  # where that begins
    ends: int = 0  # and where it ends: in front of its `done`
    is_whole: bool = True  # False: it is lost, or of something else, or a line in its middle is not what was written

    @property
    def is_done(self) -> bool:
        """Whether the last change needs nothing more."""
        return self.size > self.ends or not self.last


#: Logs that this process has read, by place: a command looks at its log half a dozen times, and finds what it knows in front.
_read: Recent[Path, tuple[bytes, Log]] = Recent(4)


def begun(version: str) -> str:
    """The text of a log without a change, of the snapshot `version`."""
    return f"of {version}\n"


def change(version: str, by: Mapping[str, Any], apps: Mapping[str, Mapping[str, Any]], routes: str, *, behind: str = "") -> bytes:
    """One change; `routes` are the lines that nginx is sent, `behind` is the version of the one before, if that is `done`."""
    lines = [f"by {json.dumps(by)}\n", *(f"app {name} {json.dumps(entry)}\n" for name, entry in apps.items()), routes, f"end {version} "]
    text = "".join(lines).encode()
    # nginx counts a change from the end of the one before
    return text + f"{zlib.crc32(text, zlib.crc32(done(behind) if behind else b''))}\n".encode()


def done(version: str) -> bytes:
    """The line that says that the change to `version` needs nothing more."""
    return f"done {version}\n".encode()


def read(path: Path, version: str) -> Log:
    """The log of the snapshot `version`; what a crash cut off at its end is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Log(0, version, is_whole=False)
    head = begun(version).encode()
    if not data.startswith(head):
        return Log(0, version, is_whole=False)
    front, log = _read.get(path) or (b"", None)
    if log is None or not front.startswith(head) or not data.startswith(front):
        log = Log(len(head), version)
    log = _go_on(log, data)
    _read.put(path, (data[: log.size], log))
    # what lies behind the last whole change is one that a crash cut; with an end of its own, one that the disk garbled
    return log if not _END.search(data[log.size :]) else replace(log, is_whole=False)


def _go_on(log: Log, data: bytes) -> Log:
    """What `data` holds, of which `log` is known."""
    apps = dict(log.apps)
    at = begins = log.size
    by: dict[str, Any] = {}
    among: dict[str, Mapping[str, Any]] = {}
    while (end := data.find(b"\n", at)) >= 0:
        line = data[at:end]
        try:
            word, rest = line.split(b" ", 1)
            if word == b"by":
                by = json.loads(rest)
            elif word == b"app":
                name, entry = rest.split(b" ", 1)
                among[name.decode()] = json.loads(entry)
            elif word == b"end":
                was, crc = rest.decode().split(" ")
                if int(crc) != zlib.crc32(data[log.ends or log.size : end - len(crc)]):
                    break
                apps |= among
                at = end + 1
                log = Log(at, was, apps, by, begins, at)
                begins, by, among = at, {}, {}
                continue
            elif at == log.ends and data[at : end + 1] == done(log.version):
                begins = end + 1
                log = replace(log, size=begins)
        except ValueError:
            break
        at = end + 1
    return log


def append(path: Path, size: int, data: bytes, meanwhile: Callable[[], None] = lambda: None) -> None:
    """Write a change, or that it is done, behind the first `size` bytes, which are whole, and see it on the disk.

    What stands there goes: a copy of a root that was at work has half of a change, and nothing behind that would count.
    `meanwhile` runs when it is written, before it is known to outlive the machine: what that tells an nginx of this machine
    is lost with it.
    """
    fd = _opened(path, size)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        meanwhile()
        os.fsync(fd)
    finally:
        os.close(fd)
    inherit_owner(path)


def sync(path: Path) -> None:
    """See what stands in a log on the disk: who wrote it may have been killed before that."""
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def cut(path: Path, size: int) -> None:
    """Take back what stands behind `size`.

    Raises:
        FileNotFoundError: there is no log.
    """
    os.close(_opened(path, size))


def _opened(path: Path, size: int) -> int:
    """The log, open at its end; what stood behind `size` is gone for good."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
            os.fsync(fd)
    except BaseException:
        os.close(fd)
        raise
    return fd
