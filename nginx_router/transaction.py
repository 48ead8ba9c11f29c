"""One generation's way from the candidate to what nginx serves, or back.

Its commit is one rename of `current`.  What a crash leaves behind, by the last step passed (`faults.STEPS`), and who
mends it:

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

With `updates live` a change of endpoints alone makes no generation: its commit is the last line of one more change in the
current one's endpoints.log, `staged` is passed just before it, and what is undone is cut off that file.
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
from .dataplane import DataPlane, Reloaded, data_plane
from .entries import plain
from .errors import NginxRejected, ProxyDown, ReloadFailed, RouterError, UsageProblem
from .generations import Generations, Index, Manifest, objects_in
from .hookspecs import who
from .model import Globals, Tables, parse_globals
from .queue import Queue
from .remaking import remake
from .settings import Paths
from .store import Step, Store
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
        self._tables = tables
        self.began = time.monotonic()  # when the askers of what comes next got their turn
        self._unserved: RouterError | None = None  # why nginx does not serve `current`, although it runs

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
            self._plane(current).adopt()
        if found is not None:
            intent, steps = found
            log = intent.get("log")
            if current is None or current.number != intent["number"] or (log is not None and current.log <= log):
                self._forget(intent)
                if (current.number if current else None) == intent["parent"]:
                    self.store.undo(steps)
                # else the root was restored from another day, and its files are not what the killed command wrote
            else:
                try:
                    self._serve(current)
                except RouterError:
                    self._put_back(intent, steps)
                else:
                    answers = self._answers_of_the_killed(current, intent)
            self.store.clear_intent()
            current = self.generations.current()
        self.store.empty_trash()  # nothing is in it that an intent would bring back
        if current is not None and not current.is_of(self.paths.root):
            with contextlib.suppress(UsageProblem):  # the settings do not fit this place: the command says so, or changes them
                current = self._move_in(current)
        if current is not None and not current.is_lost:
            try:
                self._serve(current)  # somebody changed `current`, or reloaded nginx, by hand
            except RouterError as why:
                # not the end of it: the next change may be what mends it, and is reloaded and proven whatever it changes
                self._unserved = why
        return answers

    def first_generation(self) -> Index:
        """The current generation; where there is none, one of what the directories hold is made."""
        current = self.generations.current()
        if current is None:
            self.apply(self.candidate())
            self.store.clear_intent()
            current = self.generations.current()
        assert current is not None
        return current

    def candidate(self) -> Candidate:
        """The next generation in the making.

        Raises:
            RouterError: the current one, or the host's own files, cannot be read.
        """
        return Candidate(self.store, self.generations, self.generations.current(), self._tables, self._host_facts)

    def remake(self, index: Index) -> None:
        """Make what nginx is about to read again where the disk lost it, or somebody changed it."""
        if damaged := self.generations.damaged(index, is_read_by_nginx=True):
            with contextlib.suppress(RouterError):  # what is left is named by nginx itself, and by `doctor`
                remake(Candidate(self.store, self.generations, index, self._tables, self._host_facts), damaged)

    def send_routes(self, index: Index, base: Index | None = None) -> None:
        """See nginx, which serves `index`, send requests where that says, of what changes without a reload.

        As it starts it reads them itself; where it could not, or has those of another generation, it is sent what is
        not as in `base`, or all of them.

        Raises:
            ReloadFailed: it did not take them.
        """
        if not index.live or index.is_lost:
            return  # lost: it has newer ones than the disk
        plane = self._plane(index)
        have = plane.routes.version()
        if have != index.live:
            difference = routes.lines(*index.moved(base)) if base and base.live == have else None
            plane.routes.take(index.live, difference, lambda: index.routes)
            faults.step("reloaded")

    def start(self, index: Index) -> tuple[str, ...]:
        """Start a managed nginx with `index`, which is current; what is to be said of it.

        An app with a port of its own that another program took meanwhile is left out and stale: nginx starts with all
        or with nothing, and nobody else is to wait for that port.

        Raises:
            ProxyDown: it does not come up; its own words are in the message.
        """
        said: list[str] = []
        if self._plane(index).facts(index.facts).version < index.facts.version:
            # an older nginx than it was made for does not know all its words
            self.apply(self.candidate())
            self.store.clear_intent()
            index = self.generations.current() or index
        while True:
            plane = self._plane(index)
            try:
                plane.start(index.facts, index.probe)
                self.send_routes(index)
            except ProxyDown as why:
                ports = listening.taken(why.message) - {plane.settings.http_port}
                app = next((name for name, entry in sorted(index.apps.items()) if ports.intersection(entry.ports)), None)
                if app is None:
                    raise
                own = [each for each in why.message.split(" / ") if listening.taken(each).intersection(index.apps[app].ports)]
                why = ProxyDown(f"nginx does not start: {' / '.join(own).removeprefix('nginx does not start: ')}")
                said.append(f"app {app} is left out: {why.message}; when its port is free: router reconcile {app}")
                base = self._without(index, app, why)
                self.apply(Candidate(self.store, self.generations, base, self._tables, self._host_facts))
                self.store.clear_intent()
                index = self.generations.current() or base
            else:
                return tuple(said)

    def bring_up(self, candidate: Candidate, command: str) -> tuple[str, ...]:
        """Start a managed nginx that should run and does not, once, for `command`; what is to be said of it.

        Raises:
            ProxyDown: it should run and cannot be started.
        """
        base = candidate.base
        plane = self._plane(base)
        if base is None or not plane.wanted() or plane.master() is not None:
            return ()
        if plane.is_host_mode:
            raise ProxyDown("nginx should run and does not", hint=plane.start_line())
        self.paths.wanted.touch()
        began = time.monotonic()
        try:
            plane.start(base.facts, base.probe)
            self.send_routes(base)
        except ProxyDown as why:
            raise ProxyDown(why.message, hint=f"mend that, then: {plane.start_line()}") from None
        with contextlib.suppress(OSError):
            journal.append(self.paths.journal, journal.of_start(command, *who(), base.number, time.monotonic() - began))
        return (f"nginx should have run and did not: started, master {plane.master()}",)

    def apply(self, candidate: Candidate, command: str = "", answers: Callable[[Done], Answers] = lambda done: {}) -> Done:
        """Make the candidate what nginx serves, and prove it; `answers` go into the generation, so that a crash loses none.

        `settled` ends it, when everybody was told.

        Raises:
            RouterError: it cannot be; everything is as before.
            OSError: the disk is full, or so; everything is as before.
        """
        if candidate.problem is not None:
            raise candidate.problem
        base = candidate.base
        plane = data_plane(self.paths, candidate.settings)
        running = plane.wanted() and plane.master() is not None
        for data in candidate.lost_objects().values():
            self.generations.put(data)
        is_read_anew = candidate.needs_reload()
        if not is_read_anew and not candidate.is_change and not (base and base.is_lost):
            if self._unserved is not None:
                raise self._unserved
            return Done(base.number if base else None, base.number if base and running else None, time.monotonic() - self.began)
        validate(candidate, plane, candidate.changes_vhosts)
        faults.step("validated")
        reloads = is_read_anew or self._unserved is not None or candidate.reloads_otherwise
        is_logged = candidate.is_logged and not reloads
        number = base.number if base and is_logged else max([base.number if base else 0, *self.generations.numbers()]) + 1
        # the random part: a number is used again after a generation was put back, and an old worker must not prove it
        fresh = f"{number}-{secrets.token_hex(4)}"
        moves = candidate.settings.is_live and (reloads or base is None or candidate.changes_routes)
        live = fresh if moves else base.live if base and candidate.settings.is_live else ""
        objects: dict[str, bytes] = {}
        intent: dict[str, Any] = {"number": number, "parent": base.number if base else None, "objects": []}
        if base and is_logged:
            index, entries = candidate.logged(live)
            intent["log"] = base.log
        else:
            index = candidate.index(number, fresh if reloads or base is None else base.probe, live)
            objects = candidate.inlined() | {sha: data for r in candidate.changed.values() if r is not None for sha, data in r.objects()}
            intent["objects"] = [sha for sha in objects if not self.generations.object_path(sha).exists()]
        steps = candidate.steps()
        self.store.write_intent(intent, steps)
        faults.step("intent")
        try:
            self.store.apply(steps)
            faults.step("files")
            told = answers(Done(number, None, 0.0))
            if base and is_logged:
                by = {"time": stamp(), "command": command, "submissions": told}
                sent = routes.lines(*index.moved(base))
                change = endpointlog.change(live, by, {name: plain(entry) for name, entry in entries.items()}, sent)
                faults.step("staged")
                endpointlog.append(self.generations.log_path(number), base.log, change)
            else:
                for data in objects.values():
                    self.generations.put(data)
                self.generations.stage(number, _files(candidate, index, command, told))
                faults.step("staged")
                self.generations.commit(number)
            faults.step("committed")
            reloaded = self._serve_on(index, base) if (reloads or moves) and running else Reloaded()
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
            reloads=int(reloads and running),
            closed=reloaded.closed_connections,
            kept=reloaded.kept_connections,
            websockets=reloaded.websockets,
            old_workers=reloaded.old_workers,
        )

    def settled(self, keep: int) -> None:
        """Everybody was told: forget the intent, and keep the last `keep` generations."""
        self.store.clear_intent()
        self.store.empty_trash()
        self.generations.prune(keep)

    # private

    def _move_in(self, current: Index) -> Index | None:
        """Make a generation that names files of this root: it was copied or moved, and the current one names another's.

        An app whose vhost cannot be made here is left out and stale.  The proxy of a copy is stopped: that of the original
        has its ports.
        """
        if self._plane(current).master() is None:
            self.paths.wanted.unlink(missing_ok=True)
        base = current
        while True:
            try:
                self.apply(Candidate(self.store, self.generations, base, self._tables, self._host_facts))
            except RouterError as why:
                if why.app is None or why.app not in base.apps:
                    raise
                base = self._without(base, why.app, why)
            else:
                self.store.clear_intent()
                return self.generations.current()

    def _without(self, base: Index, app: str, why: RouterError) -> Index:
        """A base that lacks an app, which is stale for that reason."""
        self.store.mark_stale({app: {"problem": f"app {app}: {why.message}", "exit": why.exit_code}})
        return replace(base, apps={name: entry for name, entry in base.apps.items() if name != app})

    def _answers_of_the_killed(self, current: Index, intent: Mapping[str, Any]) -> Answers:
        parent, last = intent["parent"], current.last
        if "log" not in intent:
            manifest = self.generations.manifest(current.number)
            last = {"time": manifest.time, "command": manifest.command, "submissions": manifest.submissions}
        plane = self._plane(current)
        running = plane.wanted() and plane.master() is not None
        reloads = running and (parent is None or self.generations.index(parent).probe != current.probe)
        with contextlib.suppress(OSError):
            for line in journal.of_killed(last, self.generations.directory(current.number), Queue(self.paths.queue), reloads=int(reloads)):
                journal.append(self.paths.journal, line)
        serving = current.number if running else None
        told: Answers = last.get("submissions", {})
        return {ident: {place: {**answer, "serving": serving} for place, answer in answers.items()} for ident, answers in told.items()}

    def _check_start(self, candidate: Candidate, number: int) -> None:
        """Nobody proves what is committed while the proxy is stopped: it must at least be what nginx would start with."""
        base = candidate.base
        try:
            starting.check(candidate, data_plane(self.paths, candidate.settings))
        except NginxRejected:
            if base is None:
                raise
            self.generations.commit(base.number)
            plane = self._plane(base)
            if plane.test(plane.conf).ok:
                raise
            # it would not have started before either: whose doing that is, the start says
            self.generations.commit(number)

    def _serve(self, index: Index, base: Index | None = None) -> Reloaded:
        """Make nginx serve `current`, if it is to run, and prove it; `base` is what it served before."""
        plane = self._plane(index)
        if not plane.wanted():
            return Reloaded()
        if plane.serves(index.facts, index.probe):
            self.send_routes(index, base)
            return Reloaded()
        self.remake(index)
        if plane.master() is None:
            return Reloaded()
        reloaded = plane.reload(index.facts, index.probe)
        if index.live:
            # it read them as it was reloaded; what an old worker may still ask for, of a slow upload, stays until the next time
            plane.routes.take(index.live, None, lambda: {**(base.routes if base else {}), **index.routes})
        faults.step("reloaded")
        return reloaded

    def _serve_on(self, index: Index, base: Index | None) -> Reloaded:
        """The same of an nginx that ran when the change began: one that was killed since is started, and proven as well.

        Raises:
            ProxyDown: it was killed, and cannot be started.
        """
        plane = self._plane(index)
        try:
            reloaded = self._serve(index, base)
        except ReloadFailed:
            if plane.is_host_mode or plane.master() is not None:
                raise
        else:
            if plane.master() is not None:
                return reloaded
        if plane.is_host_mode:
            raise ProxyDown("nginx ended during the change", hint=plane.start_line())
        plane.start(index.facts, index.probe)
        self.send_routes(index)
        return Reloaded()

    def _put_back(self, intent: Mapping[str, Any], steps: Sequence[Step]) -> None:
        """The parent is current and served again, the files are as before."""
        parent = intent["parent"]
        if "log" in intent:
            self._forget(intent)
        else:
            self.generations.uncommit(parent)
        try:
            if parent is not None:
                self._serve(self.generations.index(parent))
        finally:
            if "log" not in intent:
                self._forget(intent)
            self.store.undo(steps)
            self.store.clear_intent()

    def _forget(self, intent: Mapping[str, Any]) -> None:
        """Remove what a change brought that does not come to serve."""
        if "log" not in intent:
            self.generations.discard(intent["number"], intent["objects"])
            return
        with contextlib.suppress(FileNotFoundError):  # pruned since, or of a root that was restored
            endpointlog.cut(self.generations.log_path(intent["number"]), intent["log"])

    def _plane(self, index: Index | None) -> DataPlane:
        config, domains = (index.config, index.global_domains) if index else self.store.globals()
        return data_plane(self.paths, parse_globals(config, domains, self._tables))

    def _host_facts(self, settings: Globals, previous: Any) -> Any:
        return data_plane(self.paths, settings).facts(previous)


def _files(candidate: Candidate, index: Index, command: str, answers: Answers) -> dict[str, str]:
    base = candidate.base
    files = candidate.stage_files(index) | {"state.json": json.dumps(index.as_json())}
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
