"""Deploy, scale, retire and drain: how instances take over from each other while requests are served.

Each is one paragraph: the app's own lock, the gates, the checks, the change, the wait for what old workers still hold, the
hook, the answer.  Nothing changes before every new instance has answered; nothing is told as retired before nothing goes to
it any more, or the deadline has come and the connections that were left are counted.

The app's lock (ROOT/run/deploy/APP.lock) is held until the answer is given, so that two deploys of one app cannot interleave;
the host lock is held for the change alone.  Once the change is served, TERM and INT end only the wait.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import signal
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from types import FrameType
from typing import TYPE_CHECKING, Any

from . import canaries, checks, drain, health, runners, sockets
from .arguments import default_domains
from .checks import Check
from .drain import Drained
from .errors import Busy, Conflict, NotDrained, Terminated, UsageProblem
from .events import Event
from .files import FileLock
from .model import UPSTREAMS, App
from .names import WEB, Address, AppName, Domain, Endpoint, address, app_name, endpoint_argument, process_name, shown
from .upstreams import endpoint_lines

if TYPE_CHECKING:
    from .controller import Outcome, Router

#: Process -> the addresses it is to have, in the order in which they were given.
Wanted = Mapping[str, Sequence[str]]


@dataclass(frozen=True)
class Options:
    """How instances take over: how new ones are checked, and how long old ones are waited for."""

    check: str | None = None
    check_timeout: float = 30.0
    drain: float = 30.0
    strict: bool = False  # not drained at the deadline is a failure
    create: bool = False  # deploy: make the app if there is none
    websockets: str = "keep"  # or "close": those to old instances are not waited for

    def __post_init__(self) -> None:
        Check(self.check, timeout=self.check_timeout)
        if not math.isfinite(self.drain) or self.drain < 0:
            raise UsageProblem(f"--drain {self.drain:g} is not a number of seconds")
        if self.websockets not in ("keep", "close"):
            raise UsageProblem(f"--websockets {shown(self.websockets)} is neither keep nor close")

    def words(self) -> str:
        """What a command says for them, a space before each; nothing for what is so without a word."""
        usual = Options()
        given = {
            "check": self.check and shlex.quote(self.check),
            "check-timeout": f"{self.check_timeout:g}" if self.check_timeout != usual.check_timeout else None,
            "drain": f"{self.drain:g}" if self.drain != usual.drain else None,
            "websockets": self.websockets if self.websockets != usual.websockets else None,
        }
        return "".join(f" --{word} {value}" for word, value in given.items() if value is not None) + " --drain-strict" * self.strict


@dataclass(frozen=True)
class Handover:
    """What became of a deploy, scale, retire or drain."""

    app: str
    generation: int | None
    kind: str
    retired: tuple[str, ...]
    still_running: tuple[str, ...]  # the retired that the caller may stop now: nobody else did
    forced: int  # connections that were left at the deadline
    closed_connections: int
    seconds: float
    canary: str | None = None  # the share of the clients that canaries get now
    websockets: int = 0  # that were left, as far as they are known: whoever stops the retired cuts them

    def as_json(self) -> dict[str, Any]:
        """The keys that are promised to scripts, `still_running` and `canary`."""
        return {
            "app": self.app,
            "generation": self.generation,
            "kind": self.kind,
            "retired": list(self.retired),
            "forced": self.forced,
            "closed_connections": self.closed_connections,
            "websockets": self.websockets,
            "seconds": round(self.seconds, 3),
            "still_running": list(self.still_running),
            "canary": self.canary,
        }


#: Gives the answer to the person; called while the app's lock is still held.
Show = Callable[[Handover], None]


def wanted_of(words: Sequence[str]) -> Wanted:
    """`[PROCESS=]ADDRESS...` as given to deploy, by process.

    Raises:
        UsageProblem: one is neither.
    """
    found: dict[str, list[str]] = {}
    for endpoint in map(endpoint_argument, words):
        of_process = found.setdefault(endpoint.process, [])
        if endpoint.address.text not in of_process:
            of_process.append(endpoint.address.text)
    return found


def counts_of(words: Sequence[str]) -> dict[str, int]:
    """`PROCESS=COUNT...` as given to scale.

    Raises:
        UsageProblem: one is something else.
    """
    found = {}
    for word in words:
        process, equals, count = word.partition("=")
        if not equals or not count.isascii() or not count.isdigit() or len(count) > 4:
            raise UsageProblem(f"{shown(word)} is not PROCESS=COUNT", hint="such as web=3; 0 is allowed")
        found[process_name(process)] = int(count)
    return {str(process): count for process, count in found.items()}


def deploy(router: Router, app: str, wanted: Wanted, options: Options, show: Show) -> None:
    """Let the addresses `wanted` take over from those that their processes have now.

    An endpoint that stays keeps its flags, and the other processes keep theirs; but `drain` and `down` are taken off, and that is said:
    whoever names an endpoint here asks for requests to be sent to it, and has seen it answer.

    Raises:
        NotFound: there is no such app, and it is not to be created.
        Conflict: the app is locked, or its endpoints were changed during the checks.
        Busy: another deploy of this app is under way; its process is named.
        Refused: a plugin said no.
        ChecksFailed: a new instance does not answer; nothing was changed.
        NotDrained: deployed, but the wait was ended by a signal, or at the deadline with `strict`.
    """
    began = time.monotonic()
    with turn(router, app), Signals() as signals:
        event = takeover(router, app, wanted, options, named=wanted)
        with router.journalled(event):
            router.gate(event)
            check_new(router, event, options)
        swap = swap_and_wait(router, event, "deployed", options, signals)
        tell_retired(router, app, swap.retired)
        show(swap.handover(app, began, retired=swap.retired, still_running=swap.retired))


def scale(router: Router, app: str, counts: Mapping[str, int], options: Options, show: Show) -> None:
    """Let the runner have so many instances of each process, and route to what it answers with.

    What the runner started is stopped again where its instances do not answer or the change fails.

    Raises:
        NotFound: there is no such app, or no plugin that starts instances.
        PluginBroken: the runner's answer cannot be used.
        NotDrained: scaled, but not drained: nothing was stopped; and all that `deploy` raises.
    """
    began = time.monotonic()
    runners.require(router, app)
    with turn(router, app), Signals() as signals:
        now = {process: [e.address.text for e in router.app(app).of_process(process)] for process in counts}
        for process, count in counts.items():
            event = takeover(router, app, {process: now[process]}, options, {process: count})
            with router.journalled(event):
                router.gate(event)
        if router.request.dry_run:
            router.request.say(f"would ask the runner for {' '.join(f'{p}={n}' for p, n in counts.items())}")
            return
        with runners.stopping_unused(router, app) as started:
            wanted = {process: runners.start(router, app, process, count, now[process], started) for process, count in counts.items()}
            event = takeover(router, app, wanted, options, counts)
            with router.journalled(event):
                check_new(router, event, options)
            swap = swap_and_wait(router, event, "scaled", options, signals)
        tell_retired(router, app, swap.retired)
        show(swap.handover(app, began, retired=swap.retired, still_running=runners.stop(router, app, swap.retired)))


def drain_endpoints(router: Router, app: str, addresses: Sequence[str], options: Options, show: Show) -> None:
    """Send nothing more to these endpoints, and wait until nothing is left on them; their lines stay.

    Raises:
        NotFound: there is no such app, or one is no endpoint of it.
        NotDrained: the wait was ended by a signal, or at the deadline with `strict`.
    """
    began = time.monotonic()
    with Signals() as signals:
        swap = _set_drain(router, app, _addresses(addresses), options, signals)
        show(swap.handover(app, began, retired=(), still_running=()))


def retire(router: Router, app: str, addresses: Sequence[str], options: Options, show: Show) -> None:
    """Drain these endpoints, then remove their lines.

    Raises:
        NotFound: there is no such app.
        NotDrained: as for `drain_endpoints`; the lines are still there, and a second call goes on.
    """
    began = time.monotonic()
    require_counts(router, app, options)
    there = {e.address.text for e in router.app(app).endpoints}
    given = _addresses(addresses)
    for absent in (a for a in given if a.text not in there):
        router.request.say(f"{absent} is not on {app}")
    given = [a for a in given if a.text in there]
    if not given:
        return show(Swap(router.generations.current_number(), "nothing", ()).handover(app, began, retired=(), still_running=()))
    with Signals() as signals:
        swap = _set_drain(router, app, given, options, signals)
        if not router.request.dry_run:
            swap = swap.followed_by(router.change([_upstreams(app, "remove", given)])[0])
            tell_retired(router, app, swap.retired)
        return show(swap.handover(app, began, retired=swap.retired, still_running=swap.retired))


@dataclass(frozen=True)
class Swap:
    """A change that is served, and how the wait behind it ended."""

    generation: int | None
    kind: str
    retired: tuple[str, ...]
    closed_connections: int = 0
    left: int = 0
    websockets: int = 0

    def followed_by(self, outcome: Outcome) -> Swap:
        """This and a change behind it as one."""
        kind = self.kind if self.kind != "nothing" else outcome.kind
        closed = self.closed_connections + outcome.closed_connections
        return replace(self, generation=outcome.generation, kind=kind, closed_connections=closed)

    def and_then(self, other: Swap) -> Swap:
        """This and another one behind it as one."""
        return Swap(
            generation=other.generation,
            kind=other.kind if other.kind != "nothing" else self.kind,
            retired=(*self.retired, *other.retired),
            closed_connections=self.closed_connections + other.closed_connections,
            left=self.left + other.left,
            websockets=self.websockets + other.websockets,
        )

    def handover(self, app: str, began: float, *, retired: tuple[str, ...], still_running: tuple[str, ...]) -> Handover:
        """What is told of it."""
        return Handover(
            app=app,
            generation=self.generation,
            kind=self.kind,
            retired=retired,
            still_running=still_running,
            forced=self.left,
            closed_connections=self.closed_connections,
            websockets=self.websockets,
            seconds=time.monotonic() - began,
        )


@contextlib.contextmanager
def turn(router: Router, app: str) -> Iterator[None]:
    """The app's own lock."""
    directory = router.paths.run / "deploy"
    if router.request.dry_run:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f"{app_name(app)}.lock")
    try:
        if not lock.try_acquire():
            raise Busy(f"app {app} is being deployed by {lock.holder()}", hint="its lock is free when that has ended", app=app)
        yield
    finally:
        lock.release()


def takeover(
    router: Router, app: str, wanted: Wanted, options: Options, counts: Mapping[str, int] | None = None, *, named: Wanted | None = None
) -> Event:
    """The event of a deploy or scale, with the lines that it expects to replace.

    `named` are those that the command names: they get requests, whatever flag said that they do not.

    Raises:
        NotFound: there is no such app, and it is not to be created.
        Conflict: the app is locked.
    """
    if router.store.exists(app) or not options.create:
        found = router.app(app)
        refuse_locked(found)
        canaries.refuse_under_way(found)
    args = expecting(router, app, wanted, named)
    if options.create:
        args |= {"create": True, "domains": default_domains(router, app)}
    if counts is not None:
        args["counts"] = dict(counts)
    return Event("deploy" if counts is None else "scale", app, args)


def expecting(router: Router, app: str, wanted: Wanted, named: Wanted | None = None) -> dict[str, Any]:
    """What an event says that replaces the lines of these processes: what is to come, and the lines that it expects to replace.

    `named` as for `takeover`; without it flags stay.
    """
    text = (router.store.texts(app) or {}).get(UPSTREAMS, "")
    return {
        "processes": {p: list(a) for p, a in wanted.items()},
        "existed": router.store.exists(app),
        "expected": {process: endpoint_lines(text, process) for process in wanted},
        **({"named": {p: list(a) for p, a in named.items()}} if named else {}),
    }


def refuse_locked(app: App) -> None:
    """Make sure that an app may be deployed.

    Raises:
        Conflict: it is locked; the reason is said.
    """
    if app.locked is not None:
        raise Conflict(f"app {app.name} is locked: {app.locked}", hint=f"router apps:unlock {app.name}", app=app.name)


def check_new(router: Router, event: Event, options: Options) -> None:
    """See every instance answer that the event names.

    Raises:
        ChecksFailed: one does not; nothing was changed.
    """
    if router.request.dry_run:
        return
    assert event.app is not None
    existed = event.args["existed"]
    app = router.app(event.app) if existed else App(AppName(event.app), tuple(map(Domain, event.args["domains"])))
    asked: dict[Address, Check] = {}
    for process, addresses in event.args["processes"].items():
        check = _check_of(router, app, process, options)
        asked |= {address(text): check for text in addresses}
    checks.run_each(event.app, asked, router.request.say, _resolved_by_plugins(router, event.app, list(asked)))


def _check_of(router: Router, app: App, process: str, options: Options) -> Check:
    """How the instances of a process are asked: as the command says, else as the app's files do.

    Raises:
        UsageProblem: what router.toml says of checks breaks a rule.
    """
    found = health.settings_of(router.tables(), app, process, router.settings().plugins)
    host = found.host if found else health.first_domain(app)
    if options.check is not None or found is None:
        return Check(options.check, host, options.check_timeout)
    each = found.timeout if found.is_timeout_set else None
    return Check(found.path, host, options.check_timeout, each, found.statuses)


def _resolved_by_plugins(router: Router, app: str, addresses: Sequence[Address]) -> dict[str, list[str]]:
    """Host name -> IP addresses, of the names that a plugin knows: they are checked where nginx will look for them."""
    found = {}
    if router.plugins.has("endpoint-resolve"):
        for host in sorted({a.host for a in addresses if not a.is_literal}):
            answer = router.plugins.first("endpoint-resolve", runners.told(router, app, "deploy", host=host, endpoints=[host]))
            if answer:
                found[host] = answer[1].split()
    return found


def swap_and_wait(
    router: Router, event: Event, done: str, options: Options, signals: Signals, retired: Sequence[str] | None = None
) -> Swap:
    """Change, then wait until nothing goes to what was retired; `retired` where the event's answer does not name them.

    Raises:
        NotDrained: `done`, but something still may go there.
    """
    assert event.app is not None
    require_counts(router, event.app, options)
    resolved = _resolved(router, event.app)
    ports = sockets.listening_ports(router.plane().master())
    swap: Swap | None = None

    def then(outcomes: Sequence[Outcome]) -> None:
        nonlocal swap
        outcome = outcomes[0]
        leaving = tuple(outcome.answer.get("retired", ()) if retired is None else retired)
        drained = Drained(0)
        if leaving:
            drained = _wait(router, outcome, list(map(Address, leaving)), resolved, ports, options, lambda: signals.came)
        left = drained.requests if options.websockets == "close" else drained.left
        if left and not drained.given_up:
            router.request.say(f"{_connections(left)} left after {options.drain:g} s on {' '.join(leaving)}")
        if drained.websockets and options.websockets == "close" and not drained.given_up:
            many = "1 websocket is" if drained.websockets == 1 else f"{drained.websockets} websockets are"
            router.request.say(f"{many} still open on {' '.join(leaving)}: whoever stops these cuts them")
        if drained.given_up or (left and options.strict):
            raise NotDrained(f"{done} as generation {outcome.generation}, not drained: {' '.join(leaving)}", app=event.app)
        swap = Swap(outcome.generation, outcome.kind, leaving, outcome.closed_connections, left, drained.websockets)

    taken_in, lines = _taken_in(router, event)
    outcome = router.change([event, *taken_in], gated=True, served=signals.served, then=then)[0]
    for line in lines if not router.request.dry_run else ():
        router.request.say(f"{line} failed its checks before, and is in again: it answered")
    return swap or Swap(outcome.generation, outcome.kind, ())  # a dry run retires nothing


def _wait(
    router: Router,
    outcome: Outcome,
    leaving: Sequence[Address],
    resolved: Mapping[str, Sequence[str]],
    ports: frozenset[int],
    options: Options,
    given_up: Callable[[], bool],
) -> Drained:
    plane, say = router.plane(), router.request.say
    places = drain.places(leaving, resolved)
    # an earlier reload's workers too: what they still hold may go to the same endpoint
    workers = {*outcome.old_workers, *((w.pid, w.started) for w in plane.workers() if w.shutting_down)}
    return drain.wait(
        sorted(workers),
        drain.targets(leaving, resolved),
        # a port that went with this very reload is one, too; without old workers nobody asks, and a master has a descriptor a log
        ports | sockets.listening_ports(plane.master()) if workers else ports,
        options.drain,
        in_flight=lambda: plane.in_flight(places),
        waits_for_websockets=options.websockets == "keep",
        given_up=given_up,
        waiting=lambda left: say(f"waiting for {_connections(left)} to old instances, {options.drain:g} s at most"),
    )


def _taken_in(router: Router, event: Event) -> tuple[list[Event], list[str]]:
    """What takes those in again that are out by their checks and that the event names, which have just answered; and which these are.

    The watch, which took them out, sees that somebody did, and asks them at once.
    """
    assert event.app is not None
    named = {Endpoint(process, address(a)).bare for process, given in event.args.get("named", {}).items() for a in given}
    index = router.index() if named else None
    entry = index.apps.get(event.app) if index else None
    if entry is None or not entry.unhealthy:
        return [], []
    out = router.generations.app_state(entry)[1].unhealthy
    lines = sorted(named & out.keys())
    return (
        [Event("health", event.app, {"endpoints": {line: why for line, why in out.items() if line not in lines}})] if lines else []
    ), lines


def require_counts(router: Router, app: str, options: Options) -> None:
    """Make sure that websockets are known from requests where they are not to be waited for.

    Raises:
        UsageProblem: nginx does not count those of this app.
    """
    if options.websockets == "keep":
        return
    if not router.plane().settings.is_live:
        why = "there a websocket and a slow request look alike"
        raise UsageProblem(f"--websockets close is not for updates reload: {why}", hint="router proxy:set --global updates live")
    index = router.index()
    entry = index.apps.get(app) if index else None
    if entry is not None and entry.vhost and not entry.pool:
        why = "a template or a snippet of its own says where its requests go, and nobody counts them"
        raise UsageProblem(f"--websockets close is not for {app}: {why}", hint="leave it out", app=app)


def _resolved(router: Router, app: str) -> Mapping[str, Sequence[str]]:
    """Where nginx connects to for the host names of an app's endpoints, before the change."""
    index = router.index()
    entry = index.apps.get(app) if index else None
    return router.generations.app_state(entry)[1].resolved if entry else {}


def _addresses(words: Sequence[str]) -> list[Address]:
    return list(dict.fromkeys(map(address, words)))


def _set_drain(router: Router, app: str, addresses: Sequence[Address], options: Options, signals: Signals) -> Swap:
    return swap_and_wait(router, _upstreams(app, "drain", addresses), "draining", options, signals, [a.text for a in addresses])


def _upstreams(app: str, verb: str, addresses: Sequence[Address]) -> Event:
    return Event("upstreams", app, {"verb": verb, "endpoints": [Endpoint(WEB, a).line() for a in addresses]})


def tell_retired(router: Router, app: str, retired: Sequence[str]) -> None:
    """Let plugins know that nothing goes to these any more."""
    if retired and not router.request.dry_run:
        router.plugins.notify("endpoints-retired", runners.told(router, app, "retire", endpoints=list(retired)))


class Signals:
    """TERM and INT during a change and the wait behind it.

    Before the change is served they end the command, by an exception, so that what is under way is cleaned up.  From then
    on they end the wait alone, and the answer is still given.  The controller swallows one that comes while the change is
    made (what is taken is done): it is remembered here.
    """

    def __init__(self) -> None:
        self.came = False
        self.is_served = False

    def served(self) -> None:
        """From now on they end the wait alone."""
        self.is_served = True

    def __enter__(self) -> Signals:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():  # no other may handle signals
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, _: FrameType | None) -> None:
        self.came = True
        if not self.is_served:
            raise KeyboardInterrupt if number == signal.SIGINT else Terminated


def _connections(number: int) -> str:
    return f"{number} connection{'' if number == 1 else 's'}"
