"""What the holder of the host lock does: take what waits, apply it, prove it, or put everything back.

A change is one transaction whose commit is one rename of `current`.  What a crash leaves behind, by the last step passed
(`faults.STEPS`), and who mends it:

    step       on disk                                   the next holder of the lock
    ---------  ----------------------------------------  ------------------------------------------------------------
    queued     a file in the queue                       drops it: its asker is gone
    taken      the same, renamed                         applies it if its asker still waits (the leader was another)
    validated  run/validate-PID                          removes that
    intent     intent.json                               undoes it: nothing was written yet
    files      intent.json, app files                    writes the old texts back into files that hold what we wrote
    staged     the same, objects and a generation        the same; removes both
    committed  the same, `current` points to it          reloads, proves and answers (or puts everything back)
    reloaded   the same, nginx may serve it              the same
    proven     the same, nginx serves it                 the same; the proof is immediate
    answered   intent.json                               forgets the intent; the answers are there
    (putting   `current` points to the parent again,     undoes the files, and has nginx serve the parent if it came to
    back)      intent.json                               serve the generation

kill -9 therefore leaves old or new, never half; the boundary is the commit.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import secrets
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from . import faults
from .candidate import Applied, Candidate
from .errors import Busy, Conflict, NginxRejected, NotPermitted, ProxyDown, ReloadFailed, RouterError, StateCorrupt
from .events import Event
from .generations import Generations, Index, Manifest, objects_in
from .journal import of_killed
from .model import Globals, Tables, parse_globals
from .nginx import Nginx, Reloaded
from .queue import Queue, Submission
from .settings import Paths
from .store import Step, Store
from .validate import sweep, validate

Answer = dict[str, Any]


@dataclass(frozen=True)
class Unit:
    """Events that are applied together or not at all."""

    submission: str
    command: str
    events: tuple[tuple[int, Event], ...]  # with their places in the submission


@dataclass
class _Batch:
    """Units that one generation holds."""

    candidate: Candidate
    applied: dict[int, list[Applied]] = field(default_factory=dict)  # by place in `units`
    units: list[Unit] = field(default_factory=list)

    def touching(self, app: str | None) -> list[Unit]:
        """The units that changed `app`."""
        return [u for n, u in enumerate(self.units) if any(app in a.edit.apps for a in self.applied[n])]


class Transaction:
    """One turn of the host lock."""

    def __init__(self, paths: Paths, tables: Tables, told: dict[str, list[Answer]] | None = None) -> None:
        self.paths = paths
        self.store = Store(paths)
        self.generations = Generations(paths)
        self.queue = Queue(paths.queue)
        self._tables = tables
        self._answers: dict[str, dict[int, Answer]] = {}
        self._told = {} if told is None else told  # what this process asked and no disk had room to answer
        self._waiting: dict[str, Submission] = {}
        self._unserved: RouterError | None = None  # why nginx does not serve `current`, although it runs

    def run(self) -> None:
        """Mend what a crash left, then answer everything that waits."""
        self.recover()
        while submissions := self.queue.take():
            faults.step("taken")
            for submission in submissions:
                self._waiting[submission.id] = submission
                self._answers.setdefault(submission.id, {})
            self._settle([unit for s in submissions for unit in self._units(s)])
            for submission in submissions:
                self._hand_out(submission.id)

    def recover(self) -> None:
        """Finish or undo what a crash left.

        Raises:
            StateCorrupt: the root holds what this program did not write.
        """
        sweep(self.paths.run)
        found = self.store.intent()
        current = self.generations.current()
        if found is not None:
            intent, steps = found
            if current is None or current.number != intent["number"]:
                self.generations.discard(intent["number"], intent["objects"])
                self.store.undo(steps)
            else:
                try:
                    self._serve(current)
                except RouterError:
                    self._put_back(intent, steps)
                else:
                    self._answer_for_the_killed(current, intent["parent"])
            self.store.clear_intent()
            current = self.generations.current()
        if current is not None:
            try:
                self._serve(current)  # somebody changed `current`, or reloaded nginx, by hand
            except RouterError as why:
                # not the end of it: the next change may be what mends it, and is reloaded and proven whatever it changes
                self._unserved = why

    def _answer_for_the_killed(self, current: Index, parent: int | None) -> None:
        plane = self._plane(current)
        running = plane.wanted() and plane.master() is not None
        for ident, answers in self.generations.manifest(current.number).submissions.items():
            self._answers[ident] = {int(n): {**a, "serving": current.number if running else None} for n, a in answers.items()}
        reloads = running and (parent is None or self.generations.index(parent).probe != current.probe)
        with contextlib.suppress(OSError):
            for line in of_killed(self.generations, current.number, self.queue, reloads=int(reloads)):
                self.store.append_journal(line)

    def first_generation(self) -> Index:
        """The current generation; where there is none, one of what the directories hold is made."""
        current = self.generations.current()
        if current is None:
            base = _Batch(Candidate(self.store, self.generations, None, self._tables, self._host_facts))
            self._apply(None, base)
            self.store.clear_intent()
            current = self.generations.current()
        assert current is not None
        return current

    def _units(self, submission: Submission) -> list[Unit]:
        events = [(n, e) for n, e in enumerate(submission.events) if n not in self._answers[submission.id]]
        if not events:
            return []
        groups = [[pair] for pair in events] if submission.independent else [events]
        return [Unit(submission.id, submission.command, tuple(group)) for group in groups]

    def _settle(self, units: Sequence[Unit]) -> None:
        """Answer all `units`: those that fit together by one generation, the others by what is wrong with them."""
        if not units:
            return
        try:
            base = self.generations.current()
            batch = _Batch(Candidate(self.store, self.generations, base, self._tables, self._host_facts))
        except RouterError as why:
            for unit in units:
                self._fail(unit, why)
            return
        failed = self._fill(batch, units)
        if batch.units:
            try:
                self._bring_up(base, batch.candidate.settings)
                done = self._apply(base, batch)
            except Exception as why:
                self._divide(batch, why)
                # what did not fit beside the others may fit now that some of them are not there
                self._settle([unit for unit, _ in failed])
                return
        for unit, problem in failed:
            self._fail(unit, problem)
        if not batch.units:
            return
        # those who share a reload count it once, where the first of them asked
        first = next((n for n in sorted(batch.applied) if any(a.kind != "nothing" for a in batch.applied[n])), 0)
        for n, unit in enumerate(batch.units):
            self._succeed(unit, batch.applied[n], done if n == first else done.shared())
        self._hand_out_whole(units)
        faults.step("answered")
        # this one is served: what cannot be tidied now is tidied after a later change
        with contextlib.suppress(RouterError, OSError):
            self.store.clear_intent()
            self.store.empty_trash()
            self._mark(batch)
            self.generations.prune(int(batch.candidate.settings.get("generations-keep")))

    def _fill(self, batch: _Batch, units: Sequence[Unit]) -> list[tuple[Unit, Exception]]:
        """Apply the units to the candidate; those that cannot be, and why.

        A domain that went from one app to another in the files is free only when the one that had it was taken up: who
        met a conflict is tried again behind the others, and those who exchange domains at last together.
        """
        waiting = list(units)
        while True:
            failed: list[tuple[Unit, Exception]] = []
            for unit in waiting:
                try:
                    applied = batch.candidate.apply_all([event for _, event in unit.events])
                except Exception as why:
                    failed.append((unit, why))
                else:
                    batch.applied[len(batch.units)] = applied
                    batch.units.append(unit)
            retried = [unit for unit, why in failed if isinstance(why, Conflict)]
            if not retried or len(failed) == len(waiting):
                break
            waiting = [unit for unit, _ in failed]
        if len(retried) > 1:
            try:
                applied = batch.candidate.apply_all([event for unit in retried for _, event in unit.events])
            except Exception:
                return failed
            for unit in retried:
                batch.applied[len(batch.units)], applied = applied[: len(unit.events)], applied[len(unit.events) :]
                batch.units.append(unit)
            failed = [(unit, why) for unit, why in failed if unit not in retried]
        return failed

    def _apply(self, base: Index | None, batch: _Batch) -> _Done:
        candidate = batch.candidate
        plane = Nginx(self.paths, candidate.settings)
        began = time.monotonic()
        running = plane.wanted() and plane.master() is not None
        for data in candidate.lost_objects().values():
            self.generations.put(data)
        if not candidate.is_change:
            if self._unserved is not None:
                raise self._unserved
            return _Done(base.number if base else None, base.number if base and running else None, time.monotonic() - began)
        validate(candidate, plane, candidate.changes_vhosts)
        faults.step("validated")
        number = max([base.number if base else 0, *self.generations.numbers()]) + 1
        index, reloads = self._next(candidate, base, number)
        objects = {sha: data for r in candidate.changed.values() if r is not None for sha, data in r.objects()}
        steps = candidate.steps()
        answers = {
            unit.submission: {
                str(place): _answer(applied, _Done(number, None, 0.0))
                for (place, _), applied in zip(unit.events, batch.applied[n], strict=True)
            }
            for n, unit in enumerate(batch.units)
        }
        parent = base.number if base else None
        new = [sha for sha in objects if not self.generations.object_path(sha).exists()]
        intent = {"number": number, "parent": parent, "objects": new}
        self.store.write_intent(intent, steps)
        faults.step("intent")
        try:
            self.store.apply(steps)
            faults.step("files")
            for data in objects.values():
                self.generations.put(data)
            self.generations.stage(number, self._files(index, base, batch, answers))
            faults.step("staged")
            self.generations.commit(number)
            faults.step("committed")
            reloaded = self._serve(index) if reloads and running else Reloaded()
            faults.step("proven")
        except BaseException as why:
            if isinstance(why, OSError):
                self.store.free_reserve()
            self._put_back(intent, steps)
            raise
        self._unserved = None
        return _Done(
            number,
            number if running else None,
            time.monotonic() - began,
            reloads=int(reloads and running),
            closed=reloaded.closed_connections,
            old_workers=reloaded.old_workers,
        )

    def _next(self, candidate: Candidate, base: Index | None, number: int) -> tuple[Index, bool]:
        """The next index, and whether nginx has to read it: unchanged bytes keep the probe of those it serves."""
        if base is not None and self._unserved is None and not candidate.reloads_otherwise:
            index = candidate.index(number, base.probe)
            if not candidate.needs_reload(candidate.router_conf(index)):
                return index, False
        # the random part: a number is used again after a generation was put back, and an old worker must not prove it
        return candidate.index(number, f"{number}-{secrets.token_hex(4)}"), True

    def _serve(self, index: Index) -> Reloaded:
        """Make nginx serve `current`, if it is to run, and prove it."""
        plane = self._plane(index)
        if not plane.wanted() or plane.master() is None or plane.serves(index.facts, index.probe):
            return Reloaded()
        reloaded = plane.reload(index.facts, index.probe)
        faults.step("reloaded")
        return reloaded

    def _put_back(self, intent: Mapping[str, Any], steps: Sequence[Step]) -> None:
        """The parent is current and served again, the files are as before."""
        parent = intent["parent"]
        self.generations.uncommit(parent)
        try:
            if parent is not None:
                self._serve(self.generations.index(parent))
        finally:
            self.generations.discard(intent["number"], intent["objects"])
            self.store.undo(steps)
            self.store.clear_intent()

    def _bring_up(self, base: Index | None, settings: Globals) -> None:
        """Start a managed nginx that should run and does not, once.

        Raises:
            ProxyDown: it should run and cannot be started.
        """
        plane = self._plane(base)
        if base is None or not plane.wanted() or plane.master() is not None:
            return
        if plane.is_host_mode:
            raise ProxyDown("nginx should run and does not", hint=plane.start_line())
        try:
            plane.start(base.facts, base.probe)
        except ProxyDown as why:
            raise ProxyDown(why.message, hint=f"mend that, then: {plane.start_line()}") from None

    def _divide(self, batch: _Batch, why: Exception) -> None:
        """Find out which unit the failure belongs to; the others are applied without it."""
        units = batch.units
        is_full = isinstance(why, OSError) and why.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
        if len(units) == 1 or is_full or isinstance(why, ProxyDown | StateCorrupt) or not isinstance(why, RouterError | OSError):
            for unit in units:
                self._fail(unit, why)
            return
        culprits = batch.touching(self._culprit(batch, why))
        if len(culprits) == 1:
            self._settle([u for u in units if u is not culprits[0]])
            self._fail(culprits[0], why)
            return
        if culprits and len(culprits) < len(units):
            self._settle([u for u in units if u not in culprits])
            self._settle(culprits)
            return
        half = len(units) // 2
        self._settle(units[:half])
        self._settle(units[half:])

    def _culprit(self, batch: _Batch, why: Exception) -> str | None:
        app: str | None = getattr(why, "app", None)
        if app is not None:
            return app
        text = str(why)
        base = batch.candidate.base
        for name, rendered in batch.candidate.changed.items():
            if rendered is None:
                continue
            entry = rendered.entry
            known = base.apps[name].ports if base and name in base.apps else ()
            if any(sha in text for sha in (entry.vhost, *entry.objects) if sha):
                return name
            if any(f":{port} failed" in text for port in entry.ports if port not in known):
                return name
        return None

    def _fail(self, unit: Unit, why: Exception) -> None:
        if not isinstance(why, RouterError | OSError):
            self._log(why)
        for place, event in unit.events:
            error = _error(why, event, self.paths.log / "router.log")
            self._answers[unit.submission][place] = {"error": error, "app": event.app}
            if event.action == "take-up" and event.app and _is_of_the_app(why):
                with contextlib.suppress(OSError):
                    self.store.mark_stale({event.app: {"problem": error["message"], "exit": error["exit"]}})
        self._hand_out(unit.submission)

    def _log(self, why: Exception) -> None:
        with contextlib.suppress(OSError), (self.paths.log / "router.log").open("a", encoding="utf-8") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} under the host lock\n")
            file.write("".join(traceback.format_exception(why)))

    def _succeed(self, unit: Unit, applied: Sequence[Applied], done: _Done) -> None:
        for (place, _), one in zip(unit.events, applied, strict=True):
            self._answers[unit.submission][place] = _answer(one, done)
            done = done.shared() if one.kind != "nothing" else done

    def _hand_out_whole(self, units: Sequence[Unit]) -> None:
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
            self.queue.answer(ident, whole)
        except OSError:
            self.store.free_reserve()
            try:
                self.queue.answer(ident, whole)
            except OSError:
                if submission.pid != os.getpid():
                    raise
                self.queue.drop(ident)
                self._told[ident] = whole

    def _mark(self, batch: _Batch) -> None:
        served = {name: None for n in batch.applied for a in batch.applied[n] for name in a.edit.apps}
        if served:
            self.store.mark_stale(served)

    def _files(self, index: Index, base: Index | None, batch: _Batch, answers: Mapping[str, Any]) -> dict[str, str]:
        files = batch.candidate.stage_files(index) | {"state.json": json.dumps(index.as_json())}
        before, after = objects_in(base) if base else set(), objects_in(index)
        manifest = Manifest(
            generation=index.number,
            parent=base.number if base else None,
            time=datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            command="; ".join(dict.fromkeys(u.command for u in batch.units)),
            apps=tuple(batch.candidate.changed),
            added=tuple(sorted(after - before)),
            removed=tuple(sorted(before - after)),
            digest=hashlib.sha256((files["router.conf"] + files["state.json"]).encode(errors="surrogateescape")).hexdigest(),
            submissions=answers,
        )
        return files | {"manifest.json": json.dumps(asdict(manifest))}

    def _plane(self, index: Index | None) -> Nginx:
        config, domains = (index.config, index.global_domains) if index else self.store.globals()
        return Nginx(self.paths, parse_globals(config, domains, self._tables))

    def _host_facts(self, settings: Globals, previous: Any) -> Any:
        return Nginx(self.paths, settings).facts(previous)


@dataclass(frozen=True)
class _Done:
    """What a batch came to."""

    number: int | None
    serving: int | None
    seconds: float
    reloads: int = 0
    closed: int = 0
    old_workers: tuple[tuple[int, int], ...] = ()

    def shared(self) -> _Done:
        """The same for those who share the reload: it is counted once."""
        return _Done(self.number, self.serving, self.seconds, 0, 0, self.old_workers)


def _answer(applied: Applied, done: _Done) -> Answer:
    return {
        "app": applied.event.app,
        "generation": done.number,
        "serving": done.serving,
        "kind": applied.kind,
        "notes": list(applied.edit.notes),
        "answer": dict(applied.edit.answer),
        "reloads": done.reloads if applied.kind != "nothing" else 0,
        "closed_connections": done.closed,
        "old_workers": [list(pair) for pair in done.old_workers],
        "seconds": round(done.seconds, 6),
    }


def _is_of_the_app(why: Exception) -> bool:
    """Whether a failure is the app's own doing, so that its directory is stale; a full disk or a dead nginx is not."""
    if isinstance(why, ReloadFailed):
        return why.is_of_the_configuration
    return isinstance(why, RouterError) and not isinstance(why, ProxyDown | StateCorrupt | Busy | NotPermitted)


def _error(why: Exception, event: Event, log: Path) -> dict[str, Any]:
    if not isinstance(why, RouterError | OSError):
        return {"exit": 1, "message": f"unexpected {type(why).__name__}: {why}", "hint": f"the traceback is in {log}", "app": event.app}
    if isinstance(why, OSError):
        path = f" ({why.filename})" if why.filename else ""
        return {"exit": 14 if isinstance(why, PermissionError) else 1, "message": f"{why.strerror}{path}", "hint": "", "app": event.app}
    message = why.message
    if event.app and isinstance(why, ReloadFailed | NginxRejected) and f"app {event.app}" not in message:
        message = f"app {event.app}: {message}"
    return {"exit": why.exit_code, "message": message, "hint": why.hint, "app": why.app or event.app}
