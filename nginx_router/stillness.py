"""When what was touched may be taken up: it has been still for a moment, and what changes together is one burst.

A file that somebody writes is left alone until it has been still for `STILL`.  A burst of changes waits for its last one,
but no longer than `LONGEST` from its first: then all is taken up of which no file is open in somebody's hands.
"""

from __future__ import annotations

from dataclasses import dataclass, field

#: Seconds for which a file must have been left alone.
STILL = 0.1

#: Seconds that a burst of changes may wait for its end.
LONGEST = 1.0


@dataclass
class _Touched:
    """One thing that changed: an app, the host's own files, a plugin."""

    first: float
    last: float
    held: dict[str, float] = field(default_factory=dict)  # files that were written and not yet closed -> the last write

    def due(self) -> float:
        """From when on it may be taken up."""
        held = max(self.held.values(), default=0.0)
        return min(self.last + STILL, max(self.first + LONGEST, held + STILL))


class Burst:
    """What was touched and not yet taken up; all times are those of one clock."""

    def __init__(self) -> None:
        self._touched: dict[str, _Touched] = {}

    def __len__(self) -> int:
        return len(self._touched)

    def touch(self, what: str, now: float, *, file: str = "", is_held: bool = False) -> None:
        """`what` changed by `file`, which (`is_held`) its writer has not closed yet."""
        found = self._touched.setdefault(what, _Touched(now, now))
        found.last = now
        if is_held:
            found.held[file] = now
        else:
            found.held.pop(file, None)

    def due(self) -> float | None:
        """When something is to be taken up; None: nothing was touched."""
        if not self._touched:
            return None
        times = [each.due() for each in self._touched.values()]
        first = min(each.first for each in self._touched.values())
        return min(max(times), max(min(times), first + LONGEST))

    def take(self, now: float) -> list[str]:
        """What may be taken up at `now`; it is forgotten here.  The rest belongs to a later burst."""
        due = self.due()
        if due is None or due > now:
            return []
        found = sorted(what for what, each in self._touched.items() if each.due() <= now)
        for what in found:
            del self._touched[what]
        return found
