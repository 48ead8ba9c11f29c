"""Hand events to whoever holds the host lock, or become that one; either way they are answered.

Who gets the lock leads: it takes what everybody asked for, so that waiting changes share one reload.  The others look for
their answer.  A leader that was killed is followed by the next who asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from . import faults
from .errors import Busy
from .events import Event
from .files import FileLock
from .model import Tables
from .queue import Queue
from .settings import Paths

Answers = list[dict[str, Any]]

#: How often an answer is looked for, at least and at most (seconds).
_OFTEN, _SELDOM = 0.005, 0.05


class Submitting:
    """The asking side of the queue of one root."""

    def __init__(self, paths: Paths, tables: Callable[[], Tables]) -> None:
        self._paths, self._tables = paths, tables
        self._queue = Queue(paths.queue)
        self._lock = FileLock(paths.lock)
        self._told: dict[str, Answers] = {}  # what this process led and no disk had room to answer

    def submit(self, events: Sequence[Event], *, independent: bool, command: str, patience: float) -> Answers:
        """An answer for each event; a signal that comes when a leader has taken them waits until they are answered.

        Raises:
            Busy: the lock was somebody else's for `patience` seconds; the events were withdrawn.
        """
        began = time.monotonic()
        ident = self._queue.put(events, independent=independent, command=command)
        faults.step("queued")
        withdrawn = False
        try:
            while (found := self._answer(ident)) is None:
                if self._led():
                    continue
                waited = time.monotonic() - began
                if waited >= patience and self._queue.withdraw(ident):
                    withdrawn = True
                    raise Busy(
                        f"the host is locked by {self._lock.holder()}; nothing was changed",
                        hint="wait for it, or give --lock-timeout more seconds",
                    )
                # a twentieth of the time waited so far: a hundred who look every 5 ms keep two cores busy
                time.sleep(min(_SELDOM, max(_OFTEN, waited / 20)))
            return found
        except Exception:
            if ident in self._told:
                return self._told[ident]
            # this process led and could not go on: nobody will answer it
            if not withdrawn and not self._queue.withdraw(ident):
                self._queue.drop(ident)
            raise
        except BaseException:
            if self._queue.withdraw(ident):
                raise
            # a signal, but a leader has it: it will be done, so say what came of it
            return self._await(ident)
        finally:
            self._lock.release()

    def _answer(self, ident: str) -> Answers | None:
        return self._told.get(ident) or self._queue.answered(ident)

    def _await(self, ident: str) -> Answers:
        while (found := self._answer(ident)) is None:
            # where the leader was killed, this one mends what it left
            if self._led() and self._answer(ident) is None:
                raise Busy("the change was taken and not answered", hint="router status")
            time.sleep(_OFTEN)
        return found

    def _led(self) -> bool:
        """Lead, if the lock is free: everybody who waits is answered then."""
        if not self._lock.try_acquire():
            return False
        from .leader import Leader

        try:
            with signals_wait():
                Leader(self._paths, self._tables(), self._told).run()
        finally:
            self._lock.release()
        return True


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """INT and TERM that come meanwhile take effect afterwards: a change is not left half done."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    before = {each: signal.signal(each, lambda got, _: came.append(got)) for each in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for got in came[:1]:
            os.kill(os.getpid(), got)
