"""Hand events to whoever holds the host lock, or become that one; either way they are answered.

Who gets the lock leads: it takes what everybody asked for, so that waiting changes share one reload.  The others look for
their answer.  A leader that was killed is followed by the next who asks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

from . import faults, interrupts
from .errors import Busy
from .events import Event
from .files import FileLock
from .model import Tables
from .queue import Queue
from .settings import Paths
from .spacing import LONGEST, Spacing

Answers = list[dict[str, Any]]

#: How often an answer is looked for, at least and at most (seconds).
_OFTEN, _SELDOM = 0.005, 0.05
#: How often it is looked whether reloads are still spaced; each look goes through all processes.
_LOOK = 0.5


class Submitting:
    """The asking side of the queue of one root."""

    def __init__(self, paths: Paths, tables: Callable[[], Tables]) -> None:
        self._paths, self._tables = paths, cache(tables)  # whoever waits looks for the lock twenty times a second and more
        self._queue = Queue(paths.queue)
        self._lock = FileLock(paths.lock)
        self._told: dict[str, Answers] = {}  # what this process led and no disk had room to answer

    def submit(
        self,
        events: Sequence[Event],
        *,
        independent: bool,
        command: str,
        patience: float,
        reloads: Callable[[], bool] = lambda: False,
        say: Callable[[str], None] = lambda line: None,
    ) -> Answers:
        """An answer for each event; a signal ends the wait for a leader, and not for the answer of one that has taken them.

        From then on signals end nothing (`interrupts`).  `reloads` tells whether they need one, which may have to wait (`spacing`);
        `say` is told that it does.

        Raises:
            Busy: the lock was somebody else's for `patience` seconds; the events were withdrawn.
        """
        began = time.monotonic()
        spacing = Spacing(self._paths, self._tables())
        # half of it: what waited for a reload still has time to wait for the lock
        patient_until = began + min(LONGEST, patience / 2) if spacing.draining() and reloads() else 0.0
        ident = self._queue.put(events, independent=independent, command=command, patient_until=patient_until)
        wait = _Wait(spacing, patient_until, say)
        faults.step("queued")
        withdrawn = False
        # a signal is looked for where it may end this, and comes nowhere in between: an answer is not read and lost
        with interrupts.waiting() as came:
            try:
                while (found := self._answer(ident)) is None:
                    if came and not interrupts.is_held() and self._queue.withdraw(ident):
                        withdrawn = True
                        raise interrupts.ended(came[0])
                    if not wait.goes_on() and self.lead():
                        if (found := self._answer(ident)) is not None:
                            break
                        if not self._queue.holds(ident):
                            raise Busy("the change was taken and not answered", hint="router status")
                        if not patient_until:
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
            except BaseException:
                if ident in self._told:
                    found = self._told[ident]
                else:
                    # this process led and could not go on: nobody will answer it
                    if not withdrawn and not self._queue.withdraw(ident):
                        self._queue.drop(ident)
                    raise
            finally:
                self._lock.release()
            interrupts.hold()  # what it says is so, whatever comes now
        return found

    def _answer(self, ident: str) -> Answers | None:
        return self._told.get(ident) or self._queue.answered(ident)

    def lead(self) -> bool:
        """Lead, if the lock is free: everybody who waits is answered then, and what a killed leader left is mended; whether it was free."""
        from .leader import Leader  # before the lock is had: others wait for it, and for no import

        tables, collects = self._tables(), gc.isenabled()
        if not self._lock.try_acquire():
            return False
        gc.disable()  # a look through all objects of thousands of apps takes 10 ms, and finds nothing that a change makes
        try:
            with interrupts.waiting():
                Leader(self._paths, tables, self._told).run()
        finally:
            self._lock.release()
            if collects:
                gc.enable()
        return True


class _Wait:
    """The wait of one who needs a reload while these are spaced."""

    def __init__(self, spacing: Spacing, until: float, say: Callable[[str], None]) -> None:
        self._spacing, self._until, self._say = spacing, until, say
        self._looks_at = 0.0

    def goes_on(self) -> bool:
        """Whether nobody is to lead for this one yet; whoever leads for others takes it along as soon as it may be."""
        now = time.monotonic()
        if now >= self._until:
            return False
        if now >= self._looks_at:
            left = self._spacing.left()
            if left <= 0:
                return False
            if not self._looks_at:
                old = self._spacing.draining()
                self._say(f"{old} old workers of nginx still finish what they have: the next reload waits, {LONGEST:g} s at most")
            self._looks_at = now + min(left, _LOOK)
        return True
