"""Which of the changes that wait fit together, and which of those that do not is to blame.

What only the whole configuration shows (a zone of two sizes, a name at http level that two apps chose, a port that another
program has) is known when nginx refuses it.  nginx names the file where it stopped, which is that of the one or the other
of two that collide: only what is new there can be to blame, for what is served was there first.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

from . import listening
from .errors import Conflict, NginxRejected, ReloadFailed
from .events import Event
from .index import objects_of

if TYPE_CHECKING:
    from .candidate import Applied, Candidate

Change = TypeVar("Change")

_QUOTED = re.compile(r'"([^"]+)"')
_PLACE = re.compile(r"/\S*/(?P<sha>[0-9a-f]{64})(?::(?P<line>\d+))?")


@dataclass(frozen=True)
class Unit:
    """Events that are applied together or not at all."""

    submission: str
    command: str
    events: tuple[tuple[int, Event], ...]  # with their places in the submission


@dataclass
class Batch:
    """Units that one generation is to hold."""

    candidate: Candidate
    units: list[Unit] = field(default_factory=list)
    applied: list[list[Applied]] = field(default_factory=list)  # of each of `units`

    def fill(self, units: Sequence[Unit]) -> list[tuple[Unit, Exception]]:
        """Apply `units` to the candidate; those that cannot be, and why."""
        return fit(units, self._apply)

    def touching(self, apps: Collection[str]) -> list[Unit]:
        """The units that changed one of `apps`."""
        both = zip(self.units, self.applied, strict=True)
        return [unit for unit, applied in both if any(name in apps for a in applied for name in a.edit.apps)]

    def _apply(self, units: Sequence[Unit]) -> None:
        applied = self.candidate.apply_all([event for unit in units for _, event in unit.events])
        for unit in units:
            own, applied = applied[: len(unit.events)], applied[len(unit.events) :]
            self.units.append(unit)
            self.applied.append(own)


def fit(changes: Sequence[Change], apply: Callable[[Sequence[Change]], None]) -> list[tuple[Change, Exception]]:
    """Apply `changes` one by one; those that cannot be, and why.

    A domain that went from one app to another in the files is free only when the one that had it was taken up: who
    met a conflict is tried again behind the others, and those who exchange domains at last together.
    """
    failed: list[tuple[Change, Exception]] = []
    waiting = list(changes)
    while True:
        conflicts: list[tuple[Change, Exception]] = []
        for change in waiting:
            try:
                apply([change])
            except Conflict as why:
                conflicts.append((change, why))
            except Exception as why:  # whatever one of them is, the others are applied
                failed.append((change, why))
        if len(conflicts) in (0, len(waiting)):
            break
        waiting = [change for change, _ in conflicts]
    if len(conflicts) > 1:
        try:
            apply([change for change, _ in conflicts])
        except Exception:
            return failed + conflicts
        return failed
    return failed + conflicts


def suspects(candidate: Candidate, why: Exception) -> set[str]:
    """The apps that may be to blame: the one that nginx names, if it named what is new there, else those that may collide.

    Those may collide that chose names at http level themselves: the shipped template gives its own to each app.
    """
    app: str | None = getattr(why, "app", None)
    if app is not None:
        return {app}
    text = str(why)
    base = candidate.base.apps if candidate.base else {}
    free: dict[str, bytes] = {}
    for name, rendered in candidate.changed.items():
        if rendered is None:
            continue
        known = base.get(name)
        served, ports = (objects_of(known), known.ports) if known else ((), ())
        new = [sha for sha in objects_of(rendered.entry) if sha not in served]
        if any(sha in text for sha in new):
            return {name}
        if any(f":{port} failed" in text for port in rendered.entry.ports if port not in ports):
            return {name}
        if new and (rendered.template or rendered.http_includes):
            free[name] = rendered.vhost + b"".join(data for sha, (_, data) in rendered.includes.items() if sha in rendered.http_includes)
    words = [word.encode() for word in _QUOTED.findall(text)]
    return {name for name, said in free.items() if any(word in said for word in words)} or {*free}


def is_of_the_settings(candidate: Candidate, why: Exception) -> bool:
    """Whether nginx named a port that it is to listen on for all, and that no app brings."""
    ports = listening.taken(str(why))
    brought = {port for rendered in candidate.changed.values() if rendered is not None for port in rendered.entry.ports}
    return bool(ports) and not ports & (brought - {candidate.settings.http_port})


def explain(candidate: Candidate, why: Exception) -> None:
    """Say which file of which app it was where nginx stopped, in place of the object."""
    if not isinstance(why, ReloadFailed | NginxRejected) or not (place := _PLACE.search(why.message)):
        return
    source, text = _file(candidate, place["sha"])
    if not source:
        return
    line, rows = int(place["line"] or 0), text.splitlines()
    why.message = f"{why.message[: place.start()]}{source}{f':{line}' if line else ''}{why.message[place.end() :]}"
    if 0 < line <= len(rows):
        why.hint = f"{line}: {rows[line - 1].strip()[:120]}"


def _file(candidate: Candidate, sha: str) -> tuple[str, str]:
    """What an object is, in words, and what is in it; nothing, if no app has it."""
    for name, rendered in candidate.changed.items():
        if rendered is not None and sha in objects_of(rendered.entry):
            source, data = rendered.includes.get(sha, (rendered.template_source or f"the vhost of app {name}", rendered.vhost))
            return source, data.decode(errors="replace")
    for name, entry in (candidate.base.apps if candidate.base else {}).items():
        if sha in objects_of(entry):
            return f"the vhost of app {name}", candidate.generations.object(sha).decode(errors="replace")
    return "", ""
