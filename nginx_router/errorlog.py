"""What nginx says: on stderr, and in the error log of a running master."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

_MESSAGE = re.compile(r"\[(?P<level>emerg|crit|alert|error|warn)\] (?:(?P<pid>\d+)#\d+: )?(?P<text>.*)")


def messages(said: str) -> list[str]:
    """`[level] text` of each message, without time and pid."""
    return [f"[{m['level']}] {m['text']}" for line in said.splitlines() if (m := _MESSAGE.search(line))]


def words(said: Sequence[str]) -> str:
    """The last messages in one line."""
    return " / ".join(line.removeprefix("nginx: ") for line in said[-3:]) or "it said nothing"


class Tail:
    """What an error log gained since now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb") if path.exists() else None
        if self._file:
            self._file.seek(0, os.SEEK_END)
        self._seen: list[tuple[int, str]] = []
        self._rest = b""

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def messages(self, pid: int) -> list[str]:
        """`[level] text` of every line that process `pid` wrote."""
        if self._file is None and self.path.exists():
            self._file = self.path.open("rb")
        if self._file is not None:
            *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
            for line in whole:
                match = _MESSAGE.search(line.decode(errors="replace"))
                if match and match["pid"]:
                    self._seen.append((int(match["pid"]), f"[{match['level']}] {match['text']}"))
        return [text for writer, text in self._seen if writer == pid]
