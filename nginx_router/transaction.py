"""One generation's way from the candidate to what nginx serves, or back.

Its commit is one rename of `current`.  What a crash leaves behind, by the last step passed (`faults.STEPS`), and who
mends it:

    step       on disk                                   the next holder of the lock
    ---------  ----------------------------------------  ------------------------------------------------------------
    queued     a file in the queue                       drops it: its asker is gone
    taken      the same, renamed                         applies it if its asker still waits (the leader was another)
    validated  run/validate-PID, until it is proven      removes that
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

With `updates live` a change of endpoints alone makes no generation and needs no intent: its commit is the line `end` of one
more change in the current one's endpoints.log, and the files of apps, which that change names, are written when nginx serves
it.  nginx is told between the write of that line and its fsync, so that it waits for no disk: kill -9 leaves the line, and the
power cut that takes it ends nginx, before anybody was answered.  What is committed here is on the disk:

    step       on disk                                   the next holder of the lock
    ---------  ----------------------------------------  ------------------------------------------------------------
    intent     run/changing                              removes that: nothing was written yet
    files      the same; it is known that they can be    the same
    staged     the same                                  the same; a change without its end counts for nobody
    committed  the same, the change in endpoints.log     sends nginx the routes, writes the new texts into files that hold
                                                         the old ones, and answers (or puts everything back)
    reloaded   the same, nginx has the routes            the same
    proven     the same, perhaps files                   the same
    answered   the same, all files                       says in the log that the change is done
    (putting   the same, perhaps old files again         the same, as long as the change stands in the log; it is cut off
    back)                                                when all files are old, and then nginx is sent what was before
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from . import endpointlog, faults, journal, listening, routes, starting
from .candidate import Candidate
from .dataplane import Reloaded
from .draft import Draft
from .entries import plain
from .errors import NginxRejected, ProxyDown, RouterError, UsageProblem
from .generations import Generations, Manifest
from .index import Index, objects_in
from .live import ways_out
from .model import Tables
from .queue import Queue
from .serving import Serving
from .settings import Paths
from .store import Step, Store, plain_steps, steps_of
from .times import stamp
from .validate import sweep, validate

#: What the askers are told, by submission and by the place of the event in it, as JSON has it.
Answers = Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class Done:
    """What a generation came to."""

    number: int | None
    serving: int | None
    seconds: float  # from the turn of the host lock until it was proven
    reloads: int = 0
    closed: int = 0
    kept: int = 0
    websockets: int | None = 0
    old_workers: tuple[tuple[int, int], ...] = ()
    notes: tuple[str, ...] = ()  # for the first who asked

    def shared(self) -> Done:
        """The same for those who share the reload: it is counted once."""
        return Done(self.number, self.serving, self.seconds, old_workers=self.old_workers)


class Transaction:
    """The generations that one holder of the host lock makes, one after the other."""

    def __init__(self, paths: Paths, tables: Tables) -> None:
        self.paths = paths
        self.store = Store(paths)
        self.generations = Generations(paths)
        self.serving = Serving(paths, tables)
        self.began = time.monotonic()  # when the askers of what comes next got their turn
        self._unserved: RouterError | None = None  # why nginx does not serve `current`, although it runs
        self._open: tuple[int, int, str] | None = None  # the change in a log that is to be settled: generation, its end, its version

    def recover(self) -> Answers:
        """Finish or undo what a crash left; what those are to be told whose leader was killed behind its commit.

        Raises:
            StateCorrupt: the root holds what this program did not write.
        """
        sweep(self.paths.run)
        answers: Answers = {}
        found = self.store.intent()
        current = self.generations.current()
        if current is not None:
            self.serving.plane(current).adopt()
        if found is not None:
            intent, steps = found
            if current is None or current.number != intent["number"]:
                self.generations.discard(intent["number"], intent["objects"])
                if (current.number if current else None) == intent["parent"]:
                    self.store.undo(steps)
                # else the root was restored from another day, and its files are not what the killed command wrote
            else:
                try:
                    self.serving.serve(current)
                except RouterError:
                    self._put_back(intent, steps)
                else:
                    answers = self._answers_of_the_killed(current, intent["parent"])
            self.store.clear_intent()
            current = self.generations.current()
        if current is not None and current.is_unfinished:
            answers = {**answers, **self._finish(current)}
            current = self.generations.current()
        self.store.end()
        self.store.empty_trash()  # nothing is in it that an intent would bring back
        if current is not None and not current.is_of(self.paths.root):
            with contextlib.suppress(UsageProblem):  # the settings do not fit this place: the command says so, or changes them
                current = self._move_in(current)
        if current is not None and not current.is_lost:
            try:
                self.serving.serve(current)  # somebody changed `current`, or reloaded nginx, by hand
            except RouterError as why:
                # not the end of it: the next change may be what mends it, and is reloaded and proven whatever it changes
                self._unserved = why
        return answers

    def first_generation(self) -> Index:
        """The current generation; where there is none, one of what the directories hold is made."""
        current = self.generations.current()
        if current is None:
            self.apply(self.candidate())
            self._settle()
            current = self.generations.current()
        assert current is not None
        return current

    def candidate(self) -> Candidate:
        """The next generation in the making.

        Raises:
            RouterError: the current one, or the host's own files, cannot be read.
        """
        return self.serving.candidate(self.generations.current())

    def start(self, index: Index) -> tuple[str, ...]:
        """Start a managed nginx with `index`, which is current; what is to be said of it.

        An app with a port of its own that another program took meanwhile is left out and stale: nginx starts with all
        or with nothing, and nobody else is to wait for that port.

        Raises:
            ProxyDown: it does not come up; its own words are in the message.
        """
        said: list[str] = []
        plane = self.serving.plane(index)
        try:
            version = plane.facts(index.facts).version
        except UsageProblem as why:  # nginx's Lua module is gone, for one
            raise ProxyDown(f"nginx would not start: {why.message}", hint=f"{why.hint}; then: {plane.start_line()}") from None
        if version < index.facts.version:
            # an older nginx than it was made for does not know all its words
            self.apply(self.candidate())
            self._settle()
            index = self.generations.current() or index
        while True:
            plane = self.serving.plane(index)
            try:
                plane.start(index.facts, index.probe)
                self.serving.send_routes(index)
            except ProxyDown as why:
                ports = listening.taken(why.message) - {plane.settings.http_port}
                app = next((name for name, entry in sorted(index.apps.items()) if ports.intersection(entry.ports)), None)
                if app is None:
                    if ways := ways_out(index.facts.modules, why.message):
                        why.hint = f"{ways}; then: {plane.start_line()}"
                    raise
                own = [each for each in why.message.split(" / ") if listening.taken(each).intersection(index.apps[app].ports)]
                why = ProxyDown(f"nginx does not start: {' / '.join(own).removeprefix('nginx does not start: ')}")
                said.append(f"app {app} is left out: {why.message}; when its port is free: router reconcile {app}")
                base = self._without(index, app, why)
                self.apply(self.serving.candidate(base))
                self._settle()
                index = self.generations.current() or base
            else:
                return tuple(said)

    def apply(
        self, candidate: Candidate, command: str = "", answers: Callable[[Done], Answers] = lambda done: {}, *, is_folding: bool = False
    ) -> Done:
        """Make the candidate what nginx serves, and prove it; `answers` go into the generation, so that a crash loses none.

        `settled` ends it, when everybody was told.  `is_folding`: it is what nginx serves, and makes a generation all the same.

        Raises:
            RouterError: it cannot be; everything is as before.
            OSError: the disk is full, or so; everything is as before.
        """
        try:
            return self._apply(candidate, command, answers, is_folding=is_folding)
        finally:
            # behind the reload: to remove half a dozen directories takes 20 ms where the disk discards what is free
            with contextlib.suppress(OSError):
                sweep(self.paths.run)

    def settled(self, keep: int) -> None:
        """Everybody was told: forget the intent, and keep the last `keep` generations."""
        if self._settle():
            return  # it made no generation, and destroyed no app
        self.store.empty_trash()
        self.generations.prune(keep)

    def fold(self, keep: int) -> None:
        """Nobody waits: make a generation of a log that became long, so that no change has to do that on its way to nginx.

        Raises:
            RouterError: it cannot be; the log stays.
            OSError: the disk is full, or so; the log stays.
        """
        current = self.generations.current()
        if current is not None and current.live and not current.is_lost and current.log >= endpointlog.LONG:
            self.apply(self.candidate(), "(its endpoints.log was long)", is_folding=True)
            self.settled(keep)

    # private

    def _apply(self, candidate: Candidate, command: str, answers: Callable[[Done], Answers], *, is_folding: bool) -> Done:
        is_start = self.serving.takes_start()  # by this change or by none: not by a later one, where this is refused
        if candidate.problem is not None:
            raise candidate.problem
        base = candidate.base
        plane = self.serving.plane_under(candidate.settings)
        running = plane.wanted() and (is_start or plane.master() is not None)
        draft = Draft(candidate)
        for data in draft.lost_objects().values():
            self.generations.put(data)
        is_logged = draft.is_logged
        is_read_anew = not is_logged and draft.needs_reload()
        if is_read_anew if is_folding else not (is_read_anew or candidate.is_change or (base and base.is_lost)):
            if self._unserved is not None:
                raise self._unserved
            return Done(base.number if base else None, base.number if base and running else None, time.monotonic() - self.began)
        validate(candidate, plane, candidate.changes_vhosts)
        faults.step("validated")
        reloads = is_read_anew or self._unserved is not None or draft.reloads_otherwise
        if is_logged and not reloads:
            return self._log(candidate, command, answers, is_running=running)
        number = max([base.number if base else 0, *self.generations.numbers()]) + 1
        # the random part: a number is used again after a generation was put back, and an old worker must not prove it
        fresh = f"{number}-{secrets.token_hex(4)}"
        moves = candidate.settings.is_live and (reloads or base is None or draft.changes_routes)
        live = fresh if moves else base.live if base and candidate.settings.is_live else ""
        index = draft.index(number, fresh if reloads or base is None else base.probe, live)
        objects = draft.inlined() | {sha: data for r in candidate.changed.values() if r is not None for sha, data in r.objects()}
        brought = [sha for sha in objects if not self.generations.object_path(sha).exists()]
        intent = {"number": number, "parent": base.number if base else None, "objects": brought}
        steps = candidate.steps()
        self.store.write_intent(intent, steps)
        faults.step("intent")
        try:
            self.store.apply(steps)
            faults.step("files")
            for data in objects.values():
                self.generations.put(data)
            self.generations.stage(number, _files(candidate, index, command, answers(Done(number, None, 0.0))))
            faults.step("staged")
            self.generations.commit(number)
            faults.step("committed")
            if is_start and running:
                self.serving.start_on(index, base, command)
                reloaded = Reloaded()
            else:
                reloaded = self.serving.serve_on(index, base) if (reloads or moves) and running else Reloaded()
            if reloads and not running:
                self._check_start(candidate, number)
            faults.step("proven")
        except BaseException as why:
            if isinstance(why, OSError):
                self.store.free_reserve()
            self._put_back(intent, steps)
            raise
        self._unserved = None
        return Done(
            number,
            number if running else None,
            time.monotonic() - self.began,
            reloads=int(reloads and running and not is_start),
            closed=reloaded.closed_connections,
            kept=reloaded.kept_connections,
            websockets=reloaded.websockets,
            old_workers=reloaded.old_workers,
        )

    def _log(self, candidate: Candidate, command: str, answers: Callable[[Done], Answers], *, is_running: bool) -> Done:
        """The same of a change that is one of endpoints alone, and that nginx takes up as it runs."""
        base = candidate.base
        assert base is not None
        live = f"{base.number}-{secrets.token_hex(4)}"
        index, entries = Draft(candidate).logged(live)
        steps = candidate.steps()
        told = answers(Done(base.number, None, 0.0))
        by = {"time": stamp(), "command": command, "submissions": told, "steps": plain_steps(steps)}
        sent = routes.lines(*(dict(route for name in entries for route in side[name].routes) for side in (base.apps, entries)))
        change = endpointlog.change(live, by, {name: plain(entry) for name, entry in entries.items()}, sent, behind=base.behind)
        self.store.begin()
        faults.step("intent")
        try:
            self.store.check(steps)
        except BaseException:
            self.store.end()
            raise
        faults.step("files")
        faults.step("staged")
        seconds, written = 0.0, list[Step]()

        def send() -> None:
            nonlocal seconds
            if is_running:
                self.serving.send(index, base, sent)
            seconds = time.monotonic() - self.began

        try:
            # nginx first, the disk second: a power cut between them is the end of both
            endpointlog.append(self.generations.log_path(base.number), base.log, change, send)
            self._open = base.number, base.log + len(change), live
            for step in ("committed", *(["reloaded"] if is_running else []), "proven"):
                faults.step(step)
            written = steps
            self.store.apply(steps)
        except BaseException as why:
            if isinstance(why, OSError):
                self.store.free_reserve()
            self._take_back(base.number, base.log, written)
            raise
        return Done(base.number, base.number if is_running else None, seconds)

    def _finish(self, current: Index) -> Answers:
        """Bring a change of endpoints to its end whose command was killed behind its commit, or put it back."""
        steps = steps_of(current.last["steps"])
        try:
            self.serving.serve(current)
            endpointlog.sync(self.generations.log_path(current.number))  # files that outlive it would be nobody's
            self.store.finish(steps)
        except (RouterError, OSError):
            self._take_back(current.number, current.since, steps)
            return {}
        answers = self._answers_of_the_killed(current, current.number)
        self._open = current.number, current.log, current.live
        self._settle()
        return answers

    def _take_back(self, number: int, log: int, steps: Sequence[Step]) -> None:
        """The log of generation `number` ends where it ended before, that is served again, the files are as before."""
        self._open = None
        self.store.undo(steps)
        endpointlog.cut(self.generations.log_path(number), log)
        try:
            self.serving.serve(self.generations.index(number))
        finally:
            self.store.end()

    def _settle(self) -> bool:
        """Nothing is to be finished or undone any more; whether it was a change in a log."""
        self.store.clear_intent()
        if self._open is None:
            return False
        (number, size, version), self._open = self._open, None
        endpointlog.append(self.generations.log_path(number), size, endpointlog.done(version))
        self.store.end()
        return True

    def _move_in(self, current: Index) -> Index | None:
        """Make a generation that names files of this root: it was copied or moved, and the current one names another's.

        An app whose vhost cannot be made here is left out and stale.  The proxy of a copy is stopped: that of the original
        has its ports.
        """
        if self.serving.plane(current).master() is None:
            self.paths.wanted.unlink(missing_ok=True)
        base = current
        while True:
            try:
                self.apply(self.serving.candidate(base))
            except RouterError as why:
                if why.app is None or why.app not in base.apps:
                    raise
                base = self._without(base, why.app, why)
            else:
                self._settle()
                return self.generations.current()

    def _without(self, base: Index, app: str, why: RouterError) -> Index:
        """A base that lacks an app, which is stale for that reason."""
        self.store.mark_stale({app: {"problem": f"app {app}: {why.message}", "exit": why.exit_code}})
        return replace(base, apps={name: entry for name, entry in base.apps.items() if name != app})

    def _answers_of_the_killed(self, current: Index, parent: int | None) -> Answers:
        last = current.last
        if parent != current.number:
            manifest = self.generations.manifest(current.number)
            last = {"time": manifest.time, "command": manifest.command, "submissions": manifest.submissions}
        plane = self.serving.plane(current)
        running = plane.wanted() and plane.master() is not None
        reloads = running and (parent is None or self.generations.index(parent).probe != current.probe)
        if reloads:
            reloads = not journal.has_start(
                self.paths.journal, current.number, last["time"]
            )  # with which it was started, and no reload was needed
        with contextlib.suppress(OSError):
            directory, queue = self.generations.directory(current.number), Queue(self.paths.queue)
            for line in [*journal.of_killed(self.paths.journal, last, directory, queue, reloads=int(reloads))]:
                journal.append(self.paths.journal, line)
        serving = current.number if running else None
        told: Answers = last.get("submissions", {})
        return {ident: {place: {**answer, "serving": serving} for place, answer in answers.items()} for ident, answers in told.items()}

    def _check_start(self, candidate: Candidate, number: int) -> None:
        """Nobody proves what is committed while the proxy is stopped: it must at least be what nginx would start with."""
        base = candidate.base
        try:
            starting.check(candidate, self.serving.plane_under(candidate.settings))
        except NginxRejected:
            if base is None:
                raise
            self.generations.commit(base.number)
            plane = self.serving.plane(base)
            if plane.test(plane.conf).ok:
                raise
            # it would not have started before either: whose doing that is, the start says
            self.generations.commit(number)

    def _put_back(self, intent: Mapping[str, Any], steps: Sequence[Step]) -> None:
        """The parent is current and served again, the files are as before."""
        parent = intent["parent"]
        self.generations.uncommit(parent)
        try:
            if parent is not None:
                self.serving.serve(self.generations.index(parent))
        finally:
            self.generations.discard(intent["number"], intent["objects"])
            self.store.undo(steps)
            self.store.clear_intent()


def _files(candidate: Candidate, index: Index, command: str, answers: Answers) -> dict[str, str]:
    base = candidate.base
    files = Draft(candidate).stage_files(index) | {"state.json": json.dumps(index.as_json())}
    # the base's own, which its changes of endpoints no longer name: what is not removed here is never pruned
    before, after = candidate.generations.named(base.number) if base else set(), objects_in(index)
    manifest = Manifest(
        generation=index.number,
        parent=base.number if base else None,
        time=stamp(),
        command=command,
        apps=tuple(candidate.changed),
        added=tuple(sorted(after - before)),
        removed=tuple(sorted(before - after)),
        digest=hashlib.sha256((files["router.conf"] + files["state.json"]).encode(errors="surrogateescape")).hexdigest(),
        submissions=answers,
    )
    return files | {"manifest.json": json.dumps(asdict(manifest))}
