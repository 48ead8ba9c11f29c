"""Random hand edits under `router watch`, hostile ones too: whatever is put there, the watch goes on and nobody else is touched.

Most of them go through what a watch does with an edit; the rest through a watch that runs, beside an nginx that serves.
"""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Slow
from .hosts import NGINX, Host, Watched, sequences
from .strategies import Command, Step, edits


def test_whatever_is_edited_the_watch_takes_it_up_or_says_why(home: Path, alive: int, ports: list[int]) -> None:
    sequences(Watched(home, ports, alive), edits(), count=5, length=30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_six_thousand_edits(home: Path, alive: int, ports: list[int], slow: Slow) -> None:
    host = Watched(home, ports, alive)
    sequences(host, edits(), count=50, length=40, slow=slow, least=6_000)


class Live:
    """A root whose nginx runs and is watched, and `good`, an app that nobody edits."""

    def __init__(self, host: Host, said: Path) -> None:
        self.host, self.said = host, said
        self._file = said.open("w")
        host.begin()
        for argv in (("apps:create", "good"), ("domains:add", "good", "good.test"), ("proxy:start",)):
            code, _, err = host.command(Command(argv))
            assert code == 0, err
        self.watch = subprocess.Popen(
            [sys.executable, "-m", "nginx_router", "watch"], stdin=subprocess.DEVNULL, stdout=self._file, stderr=self._file, cwd="/"
        )

    def end(self) -> None:
        self.watch.terminate()
        self.watch.wait(60)
        self._file.close()
        code, _, err = self.host.command(Command(("proxy:stop",)))
        assert code == 0, err

    def is_taken_up(self, number: int) -> None:
        """An edit of `good` that comes behind all others is served: the watch lives, and has done with those before it."""
        Path(self.host.paths.app("good") / "DOMAINS").write_text(f"good.test\nn{number}.good.test\n")
        router, deadline = self.host.router(), time.monotonic() + 60
        while True:
            index = router.index()
            if index and f"n{number}.good.test" in index.apps["good"].domains and router.serving() == index.number:
                return
            assert self.watch.poll() is None, self.said.read_text()
            assert time.monotonic() < deadline, f"the watch does not take edits up any more\n{self.said.read_text()[-3000:]}"
            time.sleep(0.02)


@pytest.fixture
def live(live_home: Path, alive: int, ports: list[int]) -> Iterator[Live]:
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    found = Live(Host(live_home, ports, alive), live_home / "watch.log")
    yield found
    found.end()


def _edit(live: Live, rounds: int, number: int) -> int:
    # no plugins: one that is broken keeps every app from changing, until it is mended or switched off, and says so
    rng, drawn, steps = random.Random(number), edits(host=False, plugins=False), 0
    for n in range(rounds):
        taken: list[Step] = [drawn.draw(rng) for _ in range(rng.randint(1, 6))]
        for step in taken:
            assert not isinstance(step, Command)
            live.host.edit(step)
        try:
            live.is_taken_up(n)
            said = live.said.read_text()
            assert "Traceback" not in said and "(exit 1)" not in said, said[-3000:]
            live.host.judge()
        except AssertionError as why:
            raise AssertionError(f"seed {number}, round {n}: {taken!r}\n{why}") from None
        steps += len(taken)
    return steps


@pytest.mark.timeout(300)
def test_a_watch_that_runs_goes_on_whatever_is_edited(live: Live) -> None:
    _edit(live, 4, 1)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_watch_that_runs_for_long(live: Live, slow: Slow) -> None:
    steps = _edit(live, 100, slow.number)
    slow.came(steps, live.host.judged)
