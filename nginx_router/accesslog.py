"""The access logs of apps: which there are, what a line says, and what one gains, through rotations."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

#: How much of a log is read at a time, and at most in one look: a log that grows faster is skipped ahead.
_CHUNK, _MOST = 1 << 20, 1 << 26

#: How long workers may take to reopen a log after its rotation (seconds): each does when it comes to it.
_REOPENED = 5.0

_DIRECTIVE = re.compile(r'^\s*access_log\s+(?:"(/[^"]+)"|(/[^"\s;]+))(?:\s+[^;]*)?;', re.M)


@dataclass(frozen=True)
class Line:
    """One request, as the format `router_main` has it, or a JSON line with nginx's own names of these variables."""

    host: str
    request: str
    status: int
    seconds: float  # $request_time
    tried: tuple[tuple[str, float | None], ...]  # the addresses that were asked, in order, and how long each took
    agent: str = ""
    request_id: str = ""


def paths_in(vhost: str) -> tuple[str, ...]:
    """The access logs that a vhost writes."""
    return tuple(dict.fromkeys(match[1] or match[2] for match in _DIRECTIVE.finditer(vhost)))


def parse(text: str) -> Line | None:
    """The request that a line tells of; None: it is in another format."""
    try:
        return _parse_json(json.loads(text)) if text.startswith("{") else _parse_main(text)
    except (ValueError, KeyError, IndexError, TypeError, AttributeError):
        return None


class Log:
    """What one access log gains from now on; lines are whole, and those written around a rotation are not lost.

    While a log is quiet no file is held open: a host may have ten thousand.
    """

    def __init__(self, path: Path, *, whole: bool = False) -> None:
        self.path = path
        self.skipped = 0  # bytes that came faster than they could be read
        found = _stat(path)
        self._now = _File(path, found.st_ino if found else 0, 0 if whole or not found else found.st_size)
        self._before: _File | None = None  # the file before a rotation: workers write to it until they reopen
        self._until = 0.0  # when they have (monotonic)
        self._quiet = 0

    @property
    def offset(self) -> int:
        """Up to where it was read, or where it began."""
        return self._now.offset

    def lines(self) -> Iterator[str]:
        """The lines that were written since the last call."""
        if self._before is not None:
            yield from self._before.read()
            if time.monotonic() >= self._until:
                self._before.close()
                self._before = None
        found = _stat(self.path)
        if found is None or found.st_ino != self._now.inode:
            # moved away: what it gained before comes first, be there a new one already or not
            moved = self._now if self._now.is_open or self._now.find_moved() else None
            if moved is not None:
                yield from moved.read()
            if found is None:
                return
            if self._before is not None:
                self._before.close()
            self._before, self._now = moved, _File(self.path, found.st_ino, 0)
            self._until = time.monotonic() + _REOPENED
        yield from self._grown(found.st_size)

    def close(self) -> None:
        """Let go of the files."""
        self._now.close()
        if self._before is not None:
            self._before.close()

    def _grown(self, size: int) -> Iterator[str]:
        if size < self._now.offset:  # cut short, as logrotate's copytruncate does
            self._now.skip_to(0)
        if size == self._now.offset:
            self._quiet += 1
            if self._quiet > 10:
                self._now.close()
            return
        self._quiet = 0
        if size - self._now.offset > _MOST:
            self.skipped += size - self._now.offset - _MOST
            self._now.skip_to(size - _MOST)
        yield from self._now.read()


class _File:
    """One file of a log, whatever its name is by now, and how far it was read."""

    def __init__(self, path: Path, inode: int, offset: int) -> None:
        self.path, self.inode, self.offset = path, inode, offset
        self._file: BinaryIO | None = None
        self._rest = b""

    @property
    def is_open(self) -> bool:
        return self._file is not None

    def skip_to(self, offset: int) -> None:
        self.offset, self._rest = offset, b""

    def read(self) -> Iterator[str]:
        if self._file is None:
            try:
                self._file = self.path.open("rb")
            except OSError:
                return
        self._file.seek(self.offset)
        while data := self._file.read(_CHUNK):
            self.offset += len(data)
            *whole, self._rest = (self._rest + data).split(b"\n")
            for line in whole:
                yield line.decode(errors="replace")
            if len(self._rest) > _CHUNK:  # no log line is that long
                self._rest = b""

    def find_moved(self) -> bool:
        """Whether it is where log rotation puts it."""
        moved = Path(f"{self.path}.1")
        found = _stat(moved)
        if not self.inode or found is None or found.st_ino != self.inode:
            return False
        self.path = moved
        return True

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


def _stat(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None


def _parse_main(text: str) -> Line | None:
    # nginx writes a quote inside a value as \x22, so that the quotes of the format part the line
    _, request, sizes, _, _, agent, tail = text.split('"')
    status = int(sizes.split()[0])
    host, *asked, seconds, request_id = tail.split()
    if len(asked) % 2:
        return None
    half = len(asked) // 2
    return Line(host, request, status, float(seconds), _tried(asked[:half], asked[half:]), agent, request_id)


def _parse_json(raw: Mapping[str, Any]) -> Line:
    def words(key: str) -> list[str]:
        return str(raw.get(key) or "-").split()

    return Line(
        str(raw.get("host", "")),
        str(raw.get("request", "")),
        int(raw["status"]),
        float(raw["request_time"]),
        _tried(words("upstream_addr"), words("upstream_response_time")),
        str(raw.get("http_user_agent", raw.get("user_agent", ""))),
        str(raw.get("request_id", "")),
    )


def _tried(addresses: list[str], times: list[str]) -> tuple[tuple[str, float | None], ...]:
    # several are parted by ", ", and by " : " after an internal redirect
    found = []
    for address, seconds in zip(_values(addresses), _values(times), strict=False):
        if address != "-":
            found.append((address, None if seconds == "-" else float(seconds)))
    return tuple(found)


def _values(words: list[str]) -> list[str]:
    return [word.rstrip(",") for word in words if word != ":"]
