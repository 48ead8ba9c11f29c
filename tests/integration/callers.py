"""Many commands at once, each in a process of its own."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Command, Forked, Live, Result


class Callers:
    """Several who give several commands each, `at_once` or one after the other."""

    def __init__(self, live: Live, commands: list[list[list[str]]], *, at_once: bool = True) -> None:
        self._live = live
        self._started: list[Command | Forked] = []
        self._threads = ThreadPoolExecutor(len(commands)) if not at_once else None
        if self._threads:
            self._own: list[Future[list[Result]]] = [self._threads.submit(self._in_turn, own) for own in commands]
        else:
            for own in commands:
                self._started += [self._start(words) for words in own]

    def results(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each command."""
        found = [each for own in self._own for each in own.result()] if self._threads else [each.wait(600) for each in self._started]
        return [(each.code, each.out, each.err) for each in found]

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every command."""
        for command in self._started:
            command.send_signal(number)

    def end(self) -> None:
        for command in self._started:
            command.end()
        if self._threads:
            self._threads.shutdown()

    def _start(self, words: list[str]) -> Command | Forked:
        return self._live.start(*words, "--lock-timeout", "600")

    def _in_turn(self, own: list[list[str]]) -> list[Result]:
        return [self._start(words).wait(600) for words in own]


@contextmanager
def callers(live: Live, commands: list[list[list[str]]], *, at_once: bool = True) -> Iterator[Callers]:
    running = Callers(live, commands, at_once=at_once)
    try:
        yield running
    finally:
        running.end()


def together(live: Live, commands: list[list[list[str]]], first: Sequence[list[str]] = ()) -> list[tuple[int, str, str]]:
    """The results of commands that were all in the queue before one of them was taken: `first` in their order, then the others."""
    missing = ""
    number = 0
    with live.locked(), ExitStack() as cleanup:
        running = []
        try:
            for each in [*([[words]] for words in first), commands]:
                running.append(cleanup.enter_context(callers(live, each)))
                number += sum(map(len, each))
                until(lambda: live.queued() == number, 400, f"a queue of {number}")  # noqa: B023 - called at once
        except AssertionError as why:
            missing = f"{why}; there were {live.queued()}"
        outlasting = cleanup.pop_all()
    with outlasting:
        results = [result for each in running for result in each.results()]
    assert not missing, f"{missing}: {[r for r in results if r[0] != 0]}"
    return results
