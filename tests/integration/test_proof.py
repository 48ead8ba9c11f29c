"""Exit 0 means that the new configuration answers and the old one no longer does."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend


@dataclass(frozen=True)
class Seen:
    """One request over a connection of its own."""

    began: float
    ended: float
    host: str
    body: str  # empty: closed without an answer, as for a host name that nobody owns


class Hammer:
    """Clients that ask all the time; the pause leaves the command some of the two cores."""

    def __init__(self, live: Live, hosts: tuple[str, ...]) -> None:
        self.seen: list[Seen] = []
        self.problems: list[BaseException] = []
        self._live = live
        self._over = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(host,)) for host in hosts]
        for thread in self._threads:
            thread.start()

    def _ask(self, host: str) -> None:
        while not self._over.wait(0.004):
            began = time.monotonic()
            try:
                answer = self._live.get(host)
            except BaseException as why:
                self.problems.append(why)
                return
            self.seen.append(Seen(began, time.monotonic(), host, answer.body if answer.status == 200 else ""))

    def between(self, began: float, ended: float, host: str) -> list[str]:
        """What requests that began and ended in this time were answered."""
        return [s.body for s in list(self.seen) if s.host == host and began <= s.began and s.ended <= ended]

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(15)


@contextmanager
def hammer(live: Live, *hosts: str) -> Iterator[Hammer]:
    clients = Hammer(live, hosts)
    try:
        yield clients
    finally:
        clients.stop()
    assert not clients.problems


@pytest.mark.timeout(150)
@pytest.mark.parametrize("changes", [16, pytest.param(50, marks=pytest.mark.slow)])
def test_after_exit_0_no_request_is_answered_by_the_old_configuration(live: Live, backend: Callable[[str], Backend], changes: int) -> None:
    instances = itertools.cycle([backend("a"), backend("b")])
    current = next(instances)
    live.app("blog", ["blog.test"], [current])
    live.done("reconcile")
    has_name = False
    old_answers, checked = 0, 0
    with hammer(live, "blog.test", "blog.test", "second.blog.test", "second.blog.test") as clients:
        for change in range(changes):
            if change % 2:
                current = next(instances)
                live.done("upstreams:set", "blog", current)
            else:
                has_name = not has_name
                live.done("domains:add" if has_name else "domains:remove", "blog", "second.blog.test")
            returned = time.monotonic()
            expected = {"blog.test": current.name, "second.blog.test": current.name if has_name else ""}

            def answers(host: str, since: float = returned) -> list[str]:
                return clients.between(since, time.monotonic(), host)

            # old workers accepted for 80 to 105 ms after a reload (measured): look for longer than that
            until(lambda: time.monotonic() > returned + 0.15 and all(len(answers(h)) >= 10 for h in expected), 20)  # noqa: B023 - called at once
            for host, name in expected.items():
                found = answers(host)
                checked += len(found)
                old_answers += sum(body != name for body in found)
    assert old_answers == 0, f"{old_answers} of {checked} answers came from the old configuration"
    assert checked >= 20 * changes
    assert sum(line["reloads"] for line in live.journal()) == changes + 1
    live.is_consistent()


@pytest.mark.timeout(60)
def test_doing_it_again_is_quiet_and_does_not_reload(two_apps: Live) -> None:
    before, workers = two_apps.generations.current_number(), two_apps.workers()
    for command in (
        ("domains:add", "blog", "blog.test"),
        ("domains:remove", "blog", "not-there.test"),
        ("upstreams:add", "blog", (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip()),
        ("apps:create", "blog"),
        ("reconcile",),
    ):
        result = two_apps.done(*command)
        assert result.out == "" and len(result.err.splitlines()) == 1, result
    assert two_apps.generations.current_number() == before
    assert two_apps.workers() == workers, "a reload would have brought new workers"
