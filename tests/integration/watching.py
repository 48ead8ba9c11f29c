"""A `router watch` that runs, and what it says."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import ROUTER, until

if TYPE_CHECKING:
    from .conftest import Live

#: A machine that builds something else at the same time is slow; what a watch promises is 2 s.
SERVED = 2.0


class Watch:
    """A `router watch` that runs."""

    def __init__(self, live: Live, argv: list[str], environment: dict[str, str]) -> None:
        self.live = live
        self._log = live.paths.root.parent / f"watch-{time.monotonic_ns()}"
        with self._log.open("w") as file:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "ROUTER_ROOT": str(live.paths.root), **environment},
                cwd="/",
            )
        self.journal_began = 0

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def lines(self) -> list[str]:
        """What it said, without the times."""
        return [line.partition(" ")[2] for line in self.said.splitlines()]

    def says(self, words: str, seconds: float = 15.0) -> None:
        try:
            until(lambda: words in self.said or self.process.poll() is not None, seconds)
        finally:
            assert words in self.said, f"{words!r} is not in:\n{self.said}"

    def begun(self) -> Watch:
        self.says(": ", 20)
        self.says("watching ", 20)
        self.journal_began = len(self.live.journal())
        return self

    def taken_up(self) -> list[dict[str, object]]:
        """The journal lines of what it changed since it began."""
        return [line for line in self.live.journal()[self.journal_began :] if line["command"] == "watch"]

    @property
    def reloads(self) -> int:
        return sum(int(str(line["reloads"])) for line in self.taken_up())

    def is_quiet(self, seconds: float = 0.7) -> None:
        """Nothing is said and nothing is changed for a while; of what was changed before, the line may still be on its way.

        An edit is taken up when files were still for 0.1 s, and a change takes 0.2 s.
        """
        until(lambda: all(f"generation {line['generation']}" in self.said for line in self.taken_up() if line["reloads"]), 5, "a line")
        before = (self.said, len(self.taken_up()))
        time.sleep(seconds)  # that nothing comes can only be waited for
        assert (self.said, len(self.taken_up())) == before, self.said

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)

    @property
    def rss(self) -> int:
        """Resident memory in KiB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.fixture
def start(two_apps: Live) -> Iterator[Callable[..., Watch]]:
    """Start a watch; what it is started with comes before its options."""
    started: list[Watch] = []

    def begin(*options: str, before: tuple[str, ...] = (), argv: tuple[str, ...] = (str(ROUTER),), **environment: str) -> Watch:
        started.append(Watch(two_apps, [*before, *argv, "watch", *options], environment))
        return started[-1]

    yield begin
    for watch in started:
        if watch.process.poll() is None:
            watch.process.kill()
            watch.process.wait(10)


@pytest.fixture
def watch(start: Callable[..., Watch]) -> Watch:
    """A watch of `blog` and `shop` that is ready."""
    return start().begun()


@pytest.fixture
def watching() -> Iterator[Callable[..., Watch]]:
    """Start a watch of a root."""
    started: list[Watch] = []

    def begin(live: Live) -> Watch:
        started.append(Watch(live, [str(ROUTER), "watch"], {}))
        return started[-1].begun()

    yield begin
    for watch in started:
        if watch.process.poll() is None:
            watch.end()


def served(live: Live, host: str, body: str, seconds: float = SERVED) -> None:
    until(lambda: live.get(host).body == body, seconds, f"{host} with {body!r}")
