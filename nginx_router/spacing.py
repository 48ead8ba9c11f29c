"""How far reloads are apart while old workers pile up, so that a burst of changes does not fill the host with them.

Each reload leaves the workers from before behind for as long as they have something under way: a websocket, days.  From half
of `draining-workers` on, reloads keep a distance that grows to `LONGEST` at the limit; the changes that wait meanwhile share
the next one.  No change is refused for it, none waits longer than `LONGEST` or half of its --lock-timeout, and what
nginx takes up without a reload does not wait at all.  Nobody holds the host lock while it waits: what waits lies in the queue.
"""

from __future__ import annotations

import os
import time
from functools import cached_property
from typing import TYPE_CHECKING

from .errors import RouterError
from .model import Tables, parse_globals
from .settings import Paths
from .store import Store

if TYPE_CHECKING:
    from .dataplane import DataPlane

#: The longest that one reload is put off (seconds).
LONGEST = 5.0
_TICKS = os.sysconf("SC_CLK_TCK")


def distance(draining: int, limit: int) -> float:
    """How many seconds behind the last reload the next one comes, with so many old workers; a limit of 0 is none."""
    if not limit or 2 * draining <= limit:
        return 0.0
    return min(LONGEST, LONGEST * (2 * draining - limit) / limit)


class Spacing:
    """The distance that the reloads of one root keep, as its host-wide settings and nginx's workers are now."""

    def __init__(self, paths: Paths, tables: Tables) -> None:
        self._paths, self._tables = paths, tables

    def draining(self) -> int:
        """How many old workers finish what they have; 0 where that does not matter."""
        return self._look()[0] if self._limit else 0

    def left(self) -> float:
        """How many seconds the next reload is to wait at most; the end of old workers makes it less."""
        if not self._limit:
            return 0.0
        draining, ago = self._look()
        return max(0.0, distance(draining, self._limit) - ago)

    @cached_property
    def _plane(self) -> DataPlane | None:
        from .dataplane import data_plane  # what only reads does without it

        try:
            return data_plane(self._paths, parse_globals(*Store(self._paths).globals(), self._tables))
        except RouterError:
            return None  # settings that cannot be read are named by the change itself

    @cached_property
    def _limit(self) -> int:
        return int(self._plane.settings.get("draining-workers")) if self._plane else 0

    def _look(self) -> tuple[int, float]:
        """The old workers, and how many seconds ago the newest worker was started, which is when nginx was last reloaded."""
        try:
            workers = self._plane.workers() if self._plane else []
        except RouterError:
            return 0, 0.0
        newest = max((w.started for w in workers if not w.shutting_down), default=0)
        return sum(w.shutting_down for w in workers), max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - newest / _TICKS)
