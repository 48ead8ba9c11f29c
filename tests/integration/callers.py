"""Many commands at once, each in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

from .conftest import ROUTER, until

if TYPE_CHECKING:
    from .conftest import Live

#: Starts the commands of its arguments at once, waits for all, and says how each ended.
MANY = """
import json, subprocess, sys
router, *commands = sys.argv[1:]
pipes = dict(stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
running = [subprocess.Popen([router, *json.loads(c), "--lock-timeout", "600"], **pipes) for c in commands]
print(json.dumps([[*p.communicate(), p.returncode] for p in running]))
"""
#: The same, one after the other.
IN_TURN = MANY.replace("running = [", "running = (").replace("for c in commands]", "for c in commands)")


class Callers:
    """Processes that give several commands each, every one with its commands a process group of its own."""

    def __init__(self, live: Live, script: str, commands: list[list[list[str]]]) -> None:
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", script, str(ROUTER), *map(json.dumps, own)],
                stdout=subprocess.PIPE,
                text=True,
                env={**os.environ, "ROUTER_ROOT": str(live.paths.root)},
                process_group=0,
            )
            for own in commands
        ]

    def results(self) -> list[tuple[int, str, str]]:
        """(exit code, stdout, stderr) of each command."""
        found = []
        for process in self.processes:
            out, _ = process.communicate(timeout=600)
            assert process.returncode == 0
            found += [(code, said, err) for said, err, code in json.loads(out)]
        return found

    def send(self, number: signal.Signals) -> None:
        """Send a signal to every command."""
        for process in self.processes:
            os.killpg(process.pid, number)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
            assert process.stdout
            process.stdout.close()
            process.wait(10)


@contextmanager
def callers(live: Live, script: str, commands: list[list[list[str]]]) -> Iterator[Callers]:
    running = Callers(live, script, commands)
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
                running.append(cleanup.enter_context(callers(live, MANY, each)))
                number += sum(map(len, each))
                until(lambda: live.queued() == number, 400, f"a queue of {number}")  # noqa: B023 - called at once
        except AssertionError as why:
            missing = f"{why}; there were {live.queued()}"
        outlasting = cleanup.pop_all()
    with outlasting:
        results = [result for each in running for result in each.results()]
    assert not missing, f"{missing}: {[r for r in results if r[0] != 0]}"
    return results
