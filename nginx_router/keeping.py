"""Keeps a managed nginx running that should: one that ended is started again, and one that ends again or cannot start less and less often.

A look reads one line of /proc; more is read only where the master is not the one of the last look.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from . import proxy
from .controller import Request, Router
from .errors import Busy, RouterError, as_ours
from .processes import is_alive, started_at

#: Seconds until the second start, and until the last of many; the first is made at once.
FIRST, LAST = 5.0, 300.0
#: Seconds after which a master that was started is one that stays.
STEADY = 60.0


class Keeping:
    """The nginx of one root; `tell` is called with what was done, `say` with what is wrong."""

    def __init__(self, router: Router, *, tell: Callable[[str], None], say: Callable[[str], None]) -> None:
        # who holds the host lock for long may be about to start it: the next look sees
        self._router = Router(router.paths, Request(command="proxy:start (by watch)", lock_timeout=1.0, say=say))
        self._tell, self._say = tell, say
        self._master: tuple[int, int] | None = None  # pid and start time, at the last look
        self._said = ""
        self._started = self._due = 0.0
        self._pause = FIRST

    def look(self) -> bool:
        """Start nginx if it should run and does not; whether it was started."""
        now = time.monotonic()
        if self._master is not None and is_alive(*self._master):
            self._said = ""
            if now - self._started > STEADY:
                self._pause = FIRST
            return False
        if now < self._due or not self._router.paths.wanted.exists():
            return False
        try:
            plane = self._router.plane()
            if (master := plane.master()) is not None:
                self._master = master, started_at(master)
                return False
            if plane.is_host_mode:
                self._put_off(f"nginx should run and does not: {plane.start_line()}")
                return False
            if any(not each.is_worker for each in plane.orphans()):
                with self._router.locked():
                    pass  # whoever has the lock gives it its pid file back, if that can be
                if plane.master() is None:
                    # to end what may serve well is for a person to decide
                    self._put_off(f"nginx runs, and its pid file is lost: {plane.start_line()} starts another in its place")
                return False
            started = proxy.bring_up(self._router)
        except Busy:
            return False
        except (RouterError, OSError) as why:
            self._fail(why, now)
            return False
        if started is None:
            return False
        self._router.record(now, generation=self._router.generations.current_number())
        self._put_off("")
        self._started = time.monotonic()
        self._tell(f"nginx had ended: {'; '.join(started.lines())}")
        return True

    def _fail(self, why: RouterError | OSError, began: float) -> None:
        error = as_ours(why)
        problem = f"nginx ended, and is tried again less and less often: {error.message}"
        if problem != self._said:
            self._router.record(began, error)
        self._put_off(problem)

    def _put_off(self, problem: str) -> None:
        if problem and problem != self._said:
            self._say(problem)
        self._said = problem
        self._due, self._pause = time.monotonic() + self._pause, min(2 * self._pause, LAST)
