"""The one way to read and to change anything: what commands, plugins, the watcher and scripts are given.

A change runs here up to the queue (local reduce, gates, name resolution, collect hooks, `pre-apply`) and again behind the
answer (drain, notify hooks, journal); the part in between, under the host lock, is `leader`.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

# what only a change needs is imported there: 10 ms of each command that asks for a name
from . import interrupts
from .errors import RouterError, as_error
from .files import FileLock
from .hookspecs import who
from .model import APP_TOML, App, Globals, Tables, parse_app, parse_globals
from .plugins import Plugins, refuse_inside
from .settings import Paths, paths
from .store import Store
from .times import stamp

if TYPE_CHECKING:
    from .candidate import Candidate
    from .dataplane import DataPlane, Reloaded
    from .events import Event
    from .generations import Generations
    from .index import Index
    from .output import Output


@dataclass
class Request:
    """Who asks, and how."""

    command: str = ""  # the words as typed
    dry_run: bool = False
    lock_timeout: float = 60.0  # seconds
    say: Callable[[str], None] = lambda line: None  # one line for the person (stderr)
    show: Callable[[str], None] = lambda line: None  # one line of data (stdout)


@dataclass(frozen=True)
class Outcome:
    """What became of one event."""

    event: Event
    app: str | None
    generation: int | None = None  # number of `current` after it
    serving: int | None = None  # what nginx answers with; None: the proxy is stopped
    kind: str = "nothing"  # nothing, endpoints or structure
    notes: tuple[str, ...] = ()  # said already
    answer: Mapping[str, Any] = field(default_factory=dict)
    reloads: int = 0  # counted once where several changes share one
    closed_connections: int = 0  # client connections that the reload closed: idle ones
    kept_connections: int = 0  # those that old workers go on to serve
    websockets: int | None = 0  # of these; None: not known
    old_workers: tuple[tuple[int, int], ...] = ()  # pid and start time of the workers from before
    seconds: float = 0.0
    error: RouterError | None = None


class Router:
    """One root."""

    out: Output

    def __init__(self, paths: Paths, request: Request | None = None) -> None:
        self.paths = paths
        self.request = request or Request()
        self.store = Store(paths)

    @classmethod
    def open(cls, request: Request | None = None) -> Router:
        """The router of the root that the environment names."""
        return cls(paths(), request)

    @cached_property
    def plugins(self) -> Plugins:
        """The plugins of this root."""
        return Plugins(self.paths, self.request.say, self._plugin_settings, app_settings=self._app_plugin_settings)

    @cached_property
    def generations(self) -> Generations:
        """The generations of this root."""
        from .generations import Generations

        return Generations(self.paths)

    def rediscover(self) -> None:
        """Look at the plugins anew: their directories were changed."""
        self.__dict__.pop("plugins", None)

    # reads

    def settings(self) -> Globals:
        """The host-wide settings.

        Raises:
            UsageProblem: router.toml or the global DOMAINS breaks a rule; file and line are named.
        """
        return parse_globals(*self.store.globals(), self.tables())

    def app(self, name: str) -> App:
        """An app as its directory says it.

        Raises:
            NotFound: there is no such app; the nearest is named.
            UsageProblem: one of its files breaks a rule; file and line are named.
        """
        self.store.require(name)
        return parse_app(name, self.store.texts(name) or {}, self.tables())

    def index(self) -> Index | None:
        """The current generation; None before the first."""
        return self.generations.current()

    def stale(self) -> dict[str, dict[str, Any]]:
        """The apps whose directory cannot be served: app -> problem, exit."""
        return self.store.stale()

    def plane(self) -> DataPlane:
        """What serves this root."""
        from .dataplane import data_plane

        index = self.index()
        settings = index.settings(self.tables()) if index else self.settings()
        return data_plane(self.paths, settings)

    def serving(self) -> int | None:
        """The number of the generation that nginx answers with; None: nobody answers."""
        index = self.index()
        if index is None:
            return None
        plane = self.plane()
        probe = plane.probe(index.facts) if plane.wanted() else None
        if probe is None:
            return None
        number = probe.partition("-")[0]
        if probe == index.probe and index.live:
            with contextlib.suppress(PermissionError):  # the probe answers everybody, the routes their owner alone
                number, probe = (found := plane.routes.version()).partition("-")[0], index.probe if found == index.live else ""
        return index.number if probe == index.probe else int(number) if number.isdigit() else None

    def tables(self) -> Tables:
        """The plugins that may have keys in app.toml and router.toml, and which."""
        return self.plugins.tables()

    # changes

    def gate(self, event: Event) -> None:
        """Ask the gate hooks of `event` now.

        Raises:
            Refused: one said no.
        """
        from .told import gates

        for hook, told in gates(event, self.app_or_none(event.app)):
            if self.plugins.has(hook):
                self.plugins.gate(hook, self.signed(told))

    @contextlib.contextmanager
    def journalled(self, event: Event) -> Iterator[None]:
        """What fails inside, before `change` is asked, leaves its journal line too (gates and checks of a deploy)."""
        began = time.monotonic()
        try:
            yield
        except RouterError as why:
            if not self.request.dry_run:
                self.store.prepare()
                self._journal([event], [], why, time.monotonic() - began)
            raise

    def app_or_none(self, name: str | None) -> App | None:
        """An app as its directory says it; None where there is none or it cannot be read."""
        try:
            return self.app(name) if name else None
        except RouterError:
            return None

    def mend(self, app: str) -> None:
        """Finish or undo what a killed command left of an app, if it left something, so that its files say what a change will find.

        Raises:
            RouterError: it cannot be; the next change would meet the same.
        """
        from .submitting import Submitting

        deadline = time.monotonic() + self.request.lock_timeout
        # another command may be mending it just then, or be at a change of this app: its files are not what they will be
        while self.store.is_changing_app(app) and not Submitting(self.paths, self.tables).lead() and time.monotonic() < deadline:
            time.sleep(0.005)

    def change(
        self,
        events: Sequence[Event],
        *,
        independent: bool = False,
        gated: bool = False,
        then: Callable[[list[Outcome]], None] | None = None,
    ) -> list[Outcome]:
        """Change something: all `events` or none of them, or (`independent`) each for itself.

        When this returns, nginx answers with the new configuration and no worker accepts with the old one, or the
        proxy is stopped and a line said so.  `then` runs before the notify hooks and the journal (a deploy drains there);
        `gated`: the gates were asked already.  Signals end nothing from the moment on when it is answered (`interrupts`).

        Raises:
            RouterError: nothing was changed; without `independent`, else outcomes carry their errors.
        """
        from .asking import Asking
        from .submitting import Submitting

        for event in events:
            refuse_inside(event.app)
        began = time.monotonic()
        self.store.prepare()
        self._take_up_all_first(events)
        asking = Asking(self, gated=gated)
        try:
            prepared = asking.prepare(events, independent=independent)
            if self.request.dry_run:
                return asking.rehearse(prepared)
            answers = Submitting(self.paths, self.tables).submit(
                prepared,
                independent=independent,
                command=self.request.command,
                patience=self.request.lock_timeout,
                reloads=asking.needs_reload,
                say=self.request.say,
            )
            outcomes = [_outcome(event, raw) for event, raw in zip(events, answers, strict=True)]
            if not independent and (failed := next((o.error for o in outcomes if o.error), None)):
                raise failed
        except RouterError as why:
            if not self.request.dry_run:
                self._journal(events, [], why, time.monotonic() - began)
                asking.failed(events, why)
            raise
        self._say_notes(outcomes)
        problem: BaseException | None = None
        try:
            if then is not None:
                then(outcomes)
        except BaseException as why:
            problem = why
            raise
        finally:
            asking.notify(outcomes)
            first = next((o.error for o in outcomes if o.error), None)
            self._journal(events, outcomes, problem if isinstance(problem, RouterError) else first, time.monotonic() - began)
        return outcomes

    def record(
        self, began: float, why: RouterError | None = None, *, generation: int | None = None, reloaded: Reloaded | None = None
    ) -> None:
        """Leave a journal line of what was done, or failed, since (a monotonic time) without `change`."""
        from .events import Event

        done = Outcome(Event("record", None), None, generation)
        if reloaded is not None:
            cost = {key: getattr(reloaded, key) for key in ("closed_connections", "kept_connections", "websockets")}
            done = replace(done, reloads=1, **cost)
        self._journal([], [] if why else [done], why, time.monotonic() - began)

    def judge(self, names: Sequence[str]) -> dict[str, RouterError | None]:
        """What is wrong with what the directories of `names` hold now, as nginx sees it; nothing is changed.

        Raises:
            UsageProblem: router.toml breaks a rule.
            ProxyDown: there is no nginx on this host.
        """
        from .asking import Asking
        from .validate import sweep

        self.store.prepare()
        try:
            return Asking(self, gated=True).judge(names)
        finally:
            sweep(self.paths.run)

    def reconcile(self, names: Sequence[str] | None = None) -> list[Outcome]:
        """Make serving equal to the directories of `names` (None: of all apps); outcomes are sorted by app.

        Raises:
            NotFound: a named app exists neither as a directory nor in the current generation.
        """
        from .events import Event

        index = self.index()
        served = set(index.apps) if index else set()
        for name in names or ():
            if name not in served:
                self.store.require(name)
        wanted = sorted({*self.store.names(), *served} if names is None else {*names})
        events = [Event("take-up", name, {"may_be_gone": True}) for name in wanted]
        if names is None:
            events.insert(0, Event("take-up-globals", None))
        return self.change(events, independent=True) if events else []

    @contextlib.contextmanager
    def locked(self) -> Iterator[Any]:
        """Hold the host lock; what waits in the queue is answered first.

        Raises:
            Busy: somebody kept it for `lock_timeout` seconds.
        """
        from .leader import Leader

        self.store.prepare()
        lock = FileLock(self.paths.lock)
        lock.acquire(self.request.lock_timeout, "the host")
        try:
            with interrupts.waiting():
                leader = Leader(self.paths, self.tables())
                leader.run()
                yield leader.transaction
        finally:
            with contextlib.suppress(OSError):
                self.store.give_back()
            lock.release()

    def rehearsal(self) -> Candidate:
        """The next generation in the making, for a look at what an event would do."""
        from .candidate import Candidate
        from .dataplane import host_facts

        def facts(settings: Globals, previous: Any) -> Any:
            return host_facts(self.paths, settings, previous)

        return Candidate(self.store, self.generations, self.index(), self.tables(), facts)

    # private

    def _take_up_all_first(self, events: Sequence[Event]) -> None:
        """The first generation of a root holds what the directories hold, not only what this change names."""
        index = self.index()
        if (
            (index and index.is_of(self.paths.root) and not index.is_lost)
            or self.request.dry_run
            or any(e.action.startswith("take-up") for e in events)
        ):
            return
        if names := self.store.names():
            why = f"this root is a copy of {index.root}" if index else "the first generation"
            if index and index.is_lost:
                why = f"the last changes of endpoints are lost ({self.generations.log_path(index.number)})"
            self.request.say(f"{why}: taking up {len(names)} app directories")
            for outcome in self.reconcile():
                if outcome.error:
                    self.request.say(f"{outcome.app}: left out: {outcome.error.message}")

    def _say_notes(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            for note in outcome.notes:
                self.request.say(note)
        done = [o for o in outcomes if o.error is None and (o.kind != "nothing" or not o.notes)]
        if done and all(o.serving is None for o in done) and any(o.generation is not None for o in done):
            self.request.say("saved, proxy is stopped")

    def _journal(self, events: Sequence[Event], outcomes: Sequence[Outcome], why: RouterError | None, seconds: float) -> None:
        user, uid = who()
        kinds = {o.kind for o in outcomes}
        code = why.exit_code if why else 0
        self._append(
            {
                "time": stamp(),
                "user": user,
                "uid": uid,
                "command": self.request.command,
                "apps": sorted({e.app for e in events if e.app} | {e.args["new"] for e in events if e.args.get("new")}),
                "kind": next((k for k in ("structure", "endpoints") if k in kinds), "nothing"),
                "generation": max((o.generation for o in outcomes if o.generation is not None), default=None),
                "result": "done"
                if code in (0, 15) or any(o.error is None for o in outcomes)
                else "failed"
                if code in _FAILED
                else "refused",
                "exit": code,
                "seconds": round(seconds, 3),
                "reloads": sum(o.reloads for o in outcomes),
                "closed_connections": sum(o.closed_connections for o in outcomes),
                "kept_connections": sum(o.kept_connections for o in outcomes),
                "websockets": None if any(o.websockets is None for o in outcomes) else sum(o.websockets or 0 for o in outcomes),
                # of `seconds` those from the turn of the host lock until nginx was seen to serve it
                "served_seconds": max((o.seconds for o in outcomes if o.kind != "nothing" and o.serving is not None), default=None),
            }
        )

    def _append(self, line: Mapping[str, Any]) -> None:
        from . import journal

        try:
            journal.append(self.paths.journal, line)
        except OSError as why:
            # what was done is done, whether it is written down or not
            self.request.say(f"warning: {self.paths.journal}: {why.strerror}: this change has no line there")
        with contextlib.suppress(OSError):
            self.store.give_back()

    def signed(self, event: dict[str, Any]) -> dict[str, Any]:
        """An event for hooks, with who asks and by which words."""
        user, uid = who()
        return {**event, "command": self.request.command, "user": user, "uid": uid}

    def _plugin_settings(self) -> Mapping[str, Mapping[str, Any]]:
        raw = _tables_of(self.store.globals()[0])
        return {name: table for name, table in raw.items() if name not in ("proxy", "nginx")}

    def _app_plugin_settings(self, app: str) -> Mapping[str, Mapping[str, Any]]:
        try:
            return _tables_of((self.store.texts(app) or {}).get(APP_TOML, ""))
        except RouterError:
            return {}


def _tables_of(text: str) -> dict[str, Mapping[str, Any]]:
    # what is wrong with the file, whoever parses it for a change says
    import tomllib

    try:
        return {name: table for name, table in tomllib.loads(text).items() if isinstance(table, dict)}
    except tomllib.TOMLDecodeError:
        return {}


_FAILED = (1, 7, 8, 9, 10, 11, 12, 13)


def _outcome(event: Event, raw: Mapping[str, Any]) -> Outcome:
    if raw.get("error"):
        return Outcome(event, event.app, error=as_error(raw["error"]))
    return Outcome(
        event,
        raw["app"],
        raw["generation"],
        raw["serving"],
        raw["kind"],
        tuple(raw["notes"]),
        raw["answer"],
        raw["reloads"],
        raw["closed_connections"],
        raw.get("kept_connections", 0),  # a leader of an earlier version
        raw.get("websockets", 0),
        tuple((pid, started) for pid, started in raw["old_workers"]),
        raw["seconds"],
    )
