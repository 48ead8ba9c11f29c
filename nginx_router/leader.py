"""What the holder of the host lock does: take all that waits, find out what fits together, and tell everybody.

One generation is tried with all of it.  If nginx does not take that, the unit that it names is tried for itself, or the
units are halved, until each is served or known to be what nginx refuses: the others never pay for it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import faults
from .candidate import Applied
from .errors import Busy, HostProblem, NginxRejected, NotPermitted, ProxyDown, ReloadFailed, RouterError, StateCorrupt, of_system
from .events import Event
from .fitting import Batch, Unit, explain, is_of_the_settings, suspects
from .model import Tables
from .queue import Queue, Submission
from .settings import Paths
from .spacing import Spacing
from .store import Store
from .transaction import Done, Transaction

Answer = dict[str, Any]


@dataclass(frozen=True)
class _Try:
    """Units that one generation is tried with."""

    units: Sequence[Unit]
    blamed: Exception | None = None  # what nginx said, with these units and `beside` in one generation, of these
    beside: Sequence[Unit] = ()


class Leader:
    """One turn of the host lock."""

    def __init__(self, paths: Paths, tables: Tables, told: dict[str, list[Answer]] | None = None) -> None:
        self.transaction = Transaction(paths, tables)
        self._store, self._queue = Store(paths), Queue(paths.queue)
        self._spacing = Spacing(paths, tables)
        self._log_file = paths.log / "router.log"
        self._answers: dict[str, dict[int, Answer]] = {}
        self._told = {} if told is None else told  # what this process asked and no disk had room to answer
        self._waiting: dict[str, Submission] = {}
        self._keep: int | None = None  # how many generations are kept, by the last change
        self._refused: tuple[tuple[str, str], RouterError] | None = None  # host-wide texts that nginx does not take, and why

    def run(self) -> None:
        """Mend what a crash left, then answer everything that waits and need not wait for a later reload."""
        for ident, answers in self.transaction.recover().items():
            self._answers[ident] = {int(place): answer for place, answer in answers.items()}
            with contextlib.suppress(OSError):  # whoever made it was killed before it could say that these are served
                self._store.mark_stale({answer["app"]: None for answer in answers.values() if answer.get("app")})
        while submissions := self._queue.take(lambda: self._spacing.left() > 0):
            faults.step("taken")
            for submission in submissions:
                self._waiting[submission.id] = submission
                self._answers.setdefault(submission.id, {})
            self._settle([unit for s in submissions for unit in self._units(s)])
            for submission in submissions:
                self._hand_out(submission.id)
            self.transaction.began = time.monotonic()
        if self._keep is not None:
            with contextlib.suppress(RouterError, OSError):
                self.transaction.fold(self._keep)

    def _units(self, submission: Submission) -> list[Unit]:
        events = [(n, e) for n, e in enumerate(submission.events) if n not in self._answers[submission.id]]
        if not events:
            return []
        groups = [[pair] for pair in events] if submission.independent else [events]
        return [Unit(submission.id, submission.command, tuple(group)) for group in groups]

    def _settle(self, units: Sequence[Unit]) -> None:
        """Answer all `units`: those that fit together by one generation, the others by what is wrong with them."""
        # a list, no recursion: of a thousand apps each may be broken
        tries = [_Try(units)]
        while tries:
            tries[:0] = self._try(tries.pop(0))

    def _try(self, a: _Try) -> list[_Try]:
        """Make a generation of units and answer those that it settles; what is to be tried next, for the others."""
        if not a.units:
            return []
        if a.blamed is not None and all(map(self._is_served, a.beside)):
            # all others are served, so it is these: what they would come to is what was tried already
            return self._fail(a.units, a.blamed)
        try:
            batch = Batch(self.transaction.candidate())
        except RouterError as why:
            why.is_of_the_host = True
            return self._fail(a.units, why)
        failed = batch.fill(a.units)
        if self._refused is not None and batch.candidate.globals == self._refused[0]:
            return self._fail(a.units, self._refused[1])
        if batch.units:
            try:
                notes = self.transaction.serving.bring_up(batch.candidate, _command(batch))
                done = self.transaction.apply(batch.candidate, _command(batch), lambda done: _answers(batch, done))
                done = replace(done, notes=notes)
            except Exception as why:
                # what did not fit beside the others may fit when some of them are not there
                return [*self._divide(batch, why), _Try([unit for unit, _ in failed])]
        for unit, problem in failed:
            self._fail([unit], problem)
        if batch.units:
            self._succeed(batch, done)
        return []

    def _divide(self, batch: Batch, why: Exception) -> list[_Try]:
        """Find out which unit a failure belongs to: what is to be tried in place of `batch`."""
        units = batch.units
        apps = suspects(batch.candidate, why)
        explain(batch.candidate, why)
        is_edited = batch.candidate.is_edited and not _is_of_the_host(why)
        if is_edited and isinstance(why, RouterError) and (tries := self._divide_settings(batch, why)) is not None:
            return tries
        if len(units) == 1 or _is_of_the_host(why):
            return self._fail(units, why)
        named = batch.touching(apps)
        others = [unit for unit in units if unit not in named]
        if named and others:
            # a port that another program has is nobody else's doing, and each try of it takes nginx 2.5 s
            beside = [] if " bind() to " in str(why) else others
            return [_Try(others), _Try(named, why if len(named) == 1 else None, beside)]
        half = len(units) // 2
        return [_Try(units[:half]), _Try(units[half:])]

    def _divide_settings(self, batch: Batch, why: RouterError) -> list[_Try] | None:
        """Find out whether a failure is of router.toml as somebody edited it, which every change takes along; None: it is not.

        Each try of what nginx does not take up may hold the host for seconds: it is not to be one an app.
        """
        settings = [unit for unit in batch.units if any(event.action == "take-up-globals" for _, event in unit.events)]
        others = [unit for unit in batch.units if unit not in settings]
        if settings and others:
            return [_Try(settings), _Try(others)]
        if settings or is_of_the_settings(batch.candidate, why):
            why.message = f"{self.transaction.paths.config} was edited: {why.message}"
            why.app, why.is_of_the_host = None, True
            self._refused = batch.candidate.globals, why
            return self._fail(batch.units, why)
        return None

    def _is_served(self, unit: Unit) -> bool:
        answers = self._answers[unit.submission]
        return all(place in answers and "error" not in answers[place] for place, _ in unit.events)

    def _fail(self, units: Sequence[Unit], why: Exception) -> list[_Try]:
        if not isinstance(why, RouterError | OSError):
            self._log(why)
        for unit in units:
            for place, event in unit.events:
                error = _error(why, event, self._log_file)
                self._answers[unit.submission][place] = {"error": error, "app": event.app}
                if event.action == "take-up" and event.app and _is_of_the_app(why):
                    with contextlib.suppress(OSError):
                        self._store.mark_stale({event.app: {"problem": error["message"], "exit": error["exit"]}})
            self._hand_out(unit.submission)
        return []

    def _succeed(self, batch: Batch, done: Done) -> None:
        for ident, answers in _answers(batch, done).items():
            self._answers[ident] |= {int(place): answer for place, answer in answers.items()}
        with contextlib.suppress(OSError):  # before anybody is told: a leader that is killed then would leave an app stale that is served
            if served := {name: None for applied in batch.applied for a in applied for name in a.edit.apps}:
                self._store.mark_stale(served)
        self._hand_out_all(batch.units)
        faults.step("answered")
        # this one is served: what cannot be tidied now is tidied after a later change
        with contextlib.suppress(RouterError, OSError):
            self._keep = int(batch.candidate.settings.get("generations-keep"))
            self.transaction.settled(self._keep)

    def _hand_out_all(self, units: Sequence[Unit]) -> None:
        failed: OSError | None = None
        for ident in dict.fromkeys(u.submission for u in units):
            try:
                self._hand_out(ident)
            except OSError as why:
                failed = failed or why
        if failed is not None:
            raise failed  # the intent stays: the next holder of the lock finds the answers in the manifest

    def _hand_out(self, ident: str) -> None:
        submission = self._waiting[ident]
        answers = self._answers[ident]
        if len(answers) != len(submission.events):
            return
        whole = [answers[n] for n in range(len(submission.events))]
        try:
            self._queue.answer(ident, whole)
        except OSError:
            self._store.free_reserve()
            try:
                self._queue.answer(ident, whole)
            except OSError:
                if submission.pid != os.getpid():
                    raise
                self._queue.drop(ident)
                self._told[ident] = whole

    def _log(self, why: Exception) -> None:
        with contextlib.suppress(OSError), self._log_file.open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} under the host lock\n")
            file.write("".join(traceback.format_exception(why)))


def _command(batch: Batch) -> str:
    return "; ".join(dict.fromkeys(unit.command for unit in batch.units))


def _answers(batch: Batch, done: Done) -> dict[str, dict[str, Answer]]:
    """What each asker of the batch is told; those who share the reload count it once, where the first of them asked."""
    told: dict[str, dict[str, Answer]] = {}
    for unit, applied in zip(batch.units, batch.applied, strict=True):
        for (place, _), one in zip(unit.events, applied, strict=True):
            # its words, for the journal line of one that is killed before it wrote its own
            told.setdefault(unit.submission, {})[str(place)] = {**_answer(one, done), "command": unit.command}
            done = done.shared() if one.kind != "nothing" else replace(done, notes=())
    return told


def _answer(applied: Applied, done: Done) -> Answer:
    return {
        "app": applied.event.app,
        "generation": done.number,
        "serving": done.serving,
        "kind": applied.kind,
        "notes": [*done.notes, *applied.edit.notes],
        "answer": dict(applied.edit.answer),
        "reloads": done.reloads if applied.kind != "nothing" else 0,
        "closed_connections": done.closed if applied.kind != "nothing" else 0,
        "kept_connections": done.kept if applied.kind != "nothing" else 0,
        "websockets": done.websockets if applied.kind != "nothing" else 0,
        "old_workers": [list(pair) for pair in done.old_workers],
        "seconds": round(done.seconds, 6),
    }


def _is_of_the_host(why: Exception) -> bool:
    """Whether none of the units is to blame: fewer of them would fail alike, or cost nginx another reload that kills it."""
    if isinstance(why, OSError):
        return why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
    if isinstance(why, RouterError) and why.is_of_the_host:
        return True
    if isinstance(why, ReloadFailed):
        return not why.is_of_the_configuration
    return isinstance(why, HostProblem | ProxyDown | StateCorrupt)


def _is_of_the_app(why: Exception) -> bool:
    """Whether a failure is the app's own doing, so that its directory is stale; a full disk or a dead nginx is not."""
    return isinstance(why, RouterError) and not isinstance(why, Busy | NotPermitted) and not _is_of_the_host(why)


def _error(why: Exception, event: Event, log: Path) -> dict[str, Any]:
    if not isinstance(why, RouterError | OSError):
        return {"exit": 1, "message": f"unexpected {type(why).__name__}: {why}", "hint": f"the traceback is in {log}", "app": event.app}
    if isinstance(why, OSError):
        error = of_system(why, str(log.parent.parent))
        return {"exit": error.exit_code, "message": error.message, "hint": error.hint, "app": event.app}
    message = why.message
    if event.app and not why.is_of_the_host and isinstance(why, ReloadFailed | NginxRejected) and f"app {event.app}" not in message:
        message = f"app {event.app}: {message}"
    return {"exit": why.exit_code, "message": message, "hint": why.hint, "app": why.app or (None if why.is_of_the_host else event.app)}
