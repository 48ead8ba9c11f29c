"""endpoints.log of a generation: the changes of endpoints that nginx took up without a reload, and that made no generation.

    of VERSION                     the snapshot (live.tsv) that it goes on from
    by JSON                        one change: when, by which words, and what its askers are told
    app NAME JSON                  the entry of an app from now on, its texts with it
    route NAME<TAB>LINE            what nginx was sent of it (`routes`)
    gone NAME
    end VERSION CRC32              the change is whole: what all before this number comes to (RFC 1952)

A change counts from its last line on.  nginx reads the same file as it starts (`templates/live.lua`), and makes nothing of
lines that it does not know.  The next generation has all of it in its own files, and begins with an empty log.
"""

from __future__ import annotations

import json
import os
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .files import inherit_owner

NAME = "endpoints.log"

_END = re.compile(rb"\nend \S+ [0-9]+\n")

#: How long a log becomes before a generation is made of it: each command reads it whole, in some milliseconds.
LONGEST = 256 << 10


@dataclass(frozen=True)
class Log:
    """What a log holds; `size` is how far it is whole."""

    size: int
    version: str  # of the routes, with all its changes
    apps: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # name -> entry
    last: Mapping[str, Any] = field(default_factory=dict)  # who made the last change
    is_whole: bool = True  # False: it is lost, or of something else, or a line in its middle is not what was written


def begun(version: str) -> str:
    """The text of a log without a change, of the snapshot `version`."""
    return f"of {version}\n"


def change(version: str, by: Mapping[str, Any], apps: Mapping[str, Mapping[str, Any]], routes: str) -> bytes:
    """One change; `routes` are the lines that nginx is sent."""
    lines = [f"by {json.dumps(by)}\n", *(f"app {name} {json.dumps(entry)}\n" for name, entry in apps.items()), routes, f"end {version} "]
    text = "".join(lines).encode()
    return text + f"{zlib.crc32(text)}\n".encode()


def read(path: Path, version: str) -> Log:
    """The log of the snapshot `version`; what a crash cut off at its end is left out."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return Log(0, version, is_whole=False)
    head = begun(version).encode()
    if not data.startswith(head):
        return Log(0, version, is_whole=False)
    log = Log(len(head), version)
    apps: dict[str, Mapping[str, Any]] = {}
    at = begin = len(head)
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
                if int(crc) != zlib.crc32(data[begin : end - len(crc)]):
                    break
                apps |= among
                log = Log(end + 1, was, apps, by)
                begin, by, among = end + 1, {}, {}
        except ValueError:
            break
        at = end + 1
    # what lies behind the last whole change is one that a crash cut; with an end of its own, one that the disk garbled
    cut = data[log.size :]
    return log if not _END.search(cut) else Log(log.size, log.version, log.apps, log.last, is_whole=False)


def append(path: Path, size: int, data: bytes) -> None:
    """Write a change behind the first `size` bytes, which are whole, and see it on the disk.

    What stands there goes: a copy of a root that was at work has half of a change, and nothing behind that would count.
    """
    cut(path, size)
    fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    inherit_owner(path)


def cut(path: Path, size: int) -> None:
    """Take back what stands behind `size`.

    Raises:
        FileNotFoundError: there is no log.
    """
    fd = os.open(path, os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        if os.fstat(fd).st_size > size:
            os.ftruncate(fd, size)
            os.fsync(fd)
    finally:
        os.close(fd)
