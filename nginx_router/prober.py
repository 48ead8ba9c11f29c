"""Asking endpoints again and again, in a thread of its own, for as long as there are some (`router watch`)."""

from __future__ import annotations

import heapq
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from .health import Health
from .probing import MOST_OPEN, Asker, Found, Key, Target

#: Connections that are begun in a second; and those of one app that are open: its silent instances hold up no other's.
MOST_A_SECOND, MOST_OF_AN_APP = 500, 40


@dataclass(frozen=True)
class Verdict:
    """An endpoint is taken out, or in (`problem` is None)."""

    key: Key
    problem: str | None


@dataclass
class _Watched:
    """An endpoint that is asked again and again."""

    target: Target
    health: Health
    turn: int  # of two entries in the heap only that of the last turn counts


class Prober:
    """Asks endpoints again and again in a thread of its own; `report` is called from there with what changes.

    The thread begins with the first endpoint, and waits for nothing but its next due answer.
    """

    def __init__(self, report: Callable[[Verdict], None], *, chance: Callable[[], float] = random.random) -> None:
        self._report, self._chance = report, chance
        # one that is refused at once is found out within `begin`, which holds it already
        self._lock = threading.RLock()
        self._watched: dict[Key, _Watched] = {}
        self._due: list[tuple[float, int, Key]] = []
        self._open: Counter[str] = Counter()  # app -> how many of it are being asked
        self._gone: set[Key] = set()
        self._held: dict[str, deque[tuple[int, Key]]] = {}  # app -> what is due and waits for one of these to end
        self._turns = 0
        self._asker: Asker | None = None
        self._thread: threading.Thread | None = None
        self._is_ending = False

    def watch(self, app: str, targets: Mapping[str, Target], out: Iterable[str]) -> None:
        """Ask these endpoints of an app from now on, and no others of it; those that are new and `out` have to rise first."""
        out = set(out)
        with self._lock:
            for key in [key for key in self._watched if key[0] == app and key[1] not in targets]:
                del self._watched[key]
                self._gone.add(key)
            now = time.monotonic()
            for line, target in targets.items():
                known = self._watched.get((app, line))
                if known is not None and known.target.settings.interval == target.settings.interval:
                    known.target = target
                    continue
                health = known.health if known else Health(is_up=line not in out, since=now if line in out else None)
                assert target.settings.interval is not None
                # spread over the interval, so that a start with a thousand of them is no burst
                self._plan(_Watched(target, health, 0), now + self._chance() * target.settings.interval)
            is_needed = bool(self._watched)
        if is_needed and (self._thread is None or not self._thread.is_alive()):
            self._start()
        elif self._asker is not None:
            self._asker.wake()

    def take_in(self, app: str, lines: Iterable[str]) -> None:
        """These are in again because somebody else saw them answer: they are asked at once, and out when they fail `fall` times."""
        with self._lock:
            now = time.monotonic()
            for line in lines:
                watched = self._watched.get((app, line))
                if watched is not None and not watched.health.is_up:
                    self._plan(_Watched(watched.target, replace(watched.health, is_up=True, streak=0, since=now), 0), now)
        if self._asker is not None:
            self._asker.wake()

    def is_up(self, key: Key) -> bool:
        """Whether an endpoint is in; one that nobody asks is."""
        with self._lock:
            return key not in self._watched or self._watched[key].health.is_up

    def stop(self) -> None:
        """Ask no more."""
        self._is_ending = True
        if self._asker is not None:
            self._asker.wake()
        if self._thread is not None:
            self._thread.join(5)
        self._thread = None

    def _start(self) -> None:
        self._is_ending = False
        self._asker = Asker(self._found)
        with self._lock:
            self._open.clear()
            self._held.clear()
            for watched in self._watched.values():  # of a thread that died some were under way
                self._plan(watched, time.monotonic() + self._chance() * (watched.target.settings.interval or 0))
        self._thread = threading.Thread(target=self._run, args=(self._asker,), daemon=True, name="checks")
        self._thread.start()

    def _run(self, asker: Asker) -> None:
        try:
            second, begun = 0.0, 0
            while not self._is_ending:
                now = time.monotonic()
                if now - second >= 1:
                    second, begun = now, 0
                with self._lock:
                    for key in self._gone:
                        if key in asker:
                            asker.drop(key)
                            self._let_on(key[0])
                    self._gone.clear()
                    while self._due and self._due[0][0] <= now and len(asker) < MOST_OPEN and begun < MOST_A_SECOND:
                        _, turn, key = heapq.heappop(self._due)
                        watched = self._watched.get(key)
                        if watched is None or watched.turn != turn or key in asker:
                            continue
                        if self._open[key[0]] >= MOST_OF_AN_APP:
                            self._held.setdefault(key[0], deque()).append((turn, key))
                            continue
                        begun += 1
                        self._open[key[0]] += 1
                        asker.begin(watched.target)
                    wait = self._due[0][0] - time.monotonic() if self._due else None
                if wait is not None and wait <= 0:
                    # whoever is due now waits for the next second, or for a connection that ends
                    wait = None if len(asker) >= MOST_OPEN else max(0.0, second + 1 - time.monotonic()) if begun >= MOST_A_SECOND else 0.0
                asker.step(wait)
        finally:
            asker.close()

    def _plan(self, watched: _Watched, when: float) -> None:
        self._turns += 1
        watched.turn = self._turns
        self._watched[watched.target.key] = watched
        heapq.heappush(self._due, (when, self._turns, watched.target.key))

    def _let_on(self, app: str) -> None:
        """One of an app's connections ended: the next of it may begin."""
        self._open[app] -= 1
        if not self._open[app]:
            del self._open[app]
        if held := self._held.get(app):
            turn, key = held.popleft()
            heapq.heappush(self._due, (time.monotonic(), turn, key))
        else:
            self._held.pop(app, None)

    def _found(self, target: Target, found: Found) -> None:
        with self._lock:
            self._let_on(target.key[0])
            watched = self._watched.get(target.key)
            if watched is None:
                return  # it was removed while it was asked
            settings, was = watched.target.settings, watched.health
            if not found.is_ours:
                watched.health = was.after(found.passed, time.monotonic(), settings)
            assert settings.interval is not None
            self._plan(watched, time.monotonic() + settings.interval)
            if watched.health.is_up != was.is_up:
                self._report(Verdict(target.key, None if found.passed else found.text))
