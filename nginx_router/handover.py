"""Take requests from instances and give them to others: the change, the wait behind it, and what is told of both.

Everything that ends with "these may be killed" (deploy, scale, retire, drain, a batch, a canary) goes through `swap_and_wait`.
"""

from __future__ import annotations

import contextlib
import math
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from . import drain, interrupts, runners, sockets
from .checks import Check
from .drain import Drained
from .errors import Busy, NotDrained, UsageProblem
from .events import Event
from .files import FileLock
from .names import Address, Endpoint, address, app_name, shown

if TYPE_CHECKING:
    from .controller import Outcome, Router


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
class Swap:
    """A change that is served, and how the wait behind it ended."""

    generation: int | None
    kind: str
    retired: tuple[str, ...]
    left: int = 0  # connections that were left at the deadline
    websockets: int = 0  # that were left, as far as they are known: whoever stops the retired cuts them
    outcomes: tuple[Outcome, ...] = ()  # of the changes that it took
    staying: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # of what was to leave: address, the apps that it serves
    resolved: Mapping[str, Sequence[str]] = field(default_factory=dict)  # where nginx connected to for host names, before the change
    serving: int | None = None  # the generation that nginx answers with; None: the proxy is stopped

    def followed_by(self, outcome: Outcome) -> Swap:
        """This and a change behind it as one."""
        kind = self.kind if self.kind != "nothing" else outcome.kind
        return replace(self, generation=outcome.generation, serving=outcome.serving, kind=kind, outcomes=(*self.outcomes, outcome))

    def and_then(self, other: Swap) -> Swap:
        """This and another one behind it as one, for what is told of both."""
        return Swap(
            generation=other.generation,
            kind=other.kind if other.kind != "nothing" else self.kind,
            retired=(*self.retired, *other.retired),
            left=self.left + other.left,
            websockets=self.websockets + other.websockets,
            outcomes=(*self.outcomes, *other.outcomes),
            serving=other.serving,
        )


@dataclass(frozen=True)
class Handover:
    """What became of a deploy, scale, retire or drain."""

    app: str
    swap: Swap
    still_running: tuple[str, ...]  # the retired that the caller may stop now: nobody else did
    seconds: float
    canary: str | None = None  # the share of the clients that canaries get now

    @classmethod
    def since(cls, began: float, app: str, swap: Swap, still_running: Sequence[str] | None = None) -> Handover:
        """What is told of a swap that `began` (a monotonic time) with its checks; where nobody stopped any, all the retired still run."""
        running = swap.retired if still_running is None else tuple(still_running)
        return cls(app, swap, running, time.monotonic() - began)

    def as_json(self) -> dict[str, Any]:
        """What scripts get.

        Promised from the first: `app generation kind retired forced closed_connections seconds`.  Added since, and always there too:
        `serving reloads kept_connections websockets still_running canary`.
        """
        swap = self.swap
        return {
            "app": self.app,
            "generation": swap.generation,
            "serving": swap.serving,
            "kind": swap.kind,
            "retired": list(swap.retired),
            "forced": swap.left,
            **{key: sum(getattr(o, key) for o in swap.outcomes) for key in ("reloads", "closed_connections", "kept_connections")},
            "websockets": swap.websockets,
            "seconds": round(self.seconds, 3),
            "still_running": list(self.still_running),
            "canary": self.canary,
        }


#: Gives the answer to the person; called while the app's lock is still held.
Show = Callable[[Handover], None]


@contextlib.contextmanager
def turn(router: Router, app: str) -> Iterator[None]:
    """The app's own lock, and what a killed command left mended: the endpoints that are read now are expected behind the checks.

    Raises:
        Busy: it is being deployed; its process is named.
    """
    directory = router.paths.run / "deploy"
    if router.request.dry_run:
        yield
        return
    directory.mkdir(parents=True, exist_ok=True)
    lock = FileLock(directory / f"{app_name(app)}.lock")
    try:
        if not lock.try_acquire():
            raise Busy(f"app {app} is being deployed by {lock.holder()}", hint="its lock is free when that has ended", app=app)
        router.mend(app)
        yield
    finally:
        lock.release()


def swap_and_wait(router: Router, event: Event, done: str, options: Options, retired: Sequence[str] | None = None) -> Swap:
    """Change, then wait until nothing goes to what was retired; `retired` where the event's answer does not name them.

    Whoever is told of an instance stops it, so that one is retired only if no app sends requests to it: another may have had it all
    the time (its requests are not waited for), and somebody may have added it again during the wait, to this app or to one that took
    its name.

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
        leaving, staying = _parted(router, outcome.answer.get("retired", ()) if retired is None else retired, resolved)

        def count(seconds: float) -> Drained:
            # whatever goes to those that stay goes on
            return _wait(router, outcome, leaving, resolved, ports, options, seconds, interrupts.came) if leaving else Drained(0)

        drained = count(options.drain)
        leaving, came = _parted(router, leaving, resolved)
        if came:
            staying |= came
            drained = replace(count(0), given_up=drained.given_up)
        left = drained.requests if options.websockets == "close" else drained.left
        given_up = drained.given_up and left > 0
        if left and not given_up:
            router.request.say(f"{_connections(left)} left after {options.drain:g} s on {' '.join(leaving)}")
        if drained.websockets and options.websockets == "close" and not given_up:
            many = "1 websocket is" if drained.websockets == 1 else f"{drained.websockets} websockets are"
            router.request.say(f"{many} still open on {' '.join(leaving)}: whoever stops these cuts them")
        if given_up or (left and options.strict):
            again = "the same command again" if retired is not None else f"router apps:retire {event.app} {' '.join(leaving)}"
            what = f"{done} as generation {outcome.generation}, not drained: {' '.join(leaving)}"
            raise NotDrained(what, hint=f"stop none of them yet; what waits until they may be: {again}", app=event.app)
        swap = Swap(outcome.generation, outcome.kind, leaving, left, drained.websockets, (outcome,), staying, resolved, outcome.serving)

    taken_in, lines = _taken_in(router, event)
    outcome = router.change([event, *taken_in], gated=True, then=then)[0]
    for line in lines if not router.request.dry_run else ():
        router.request.say(f"{line} failed its checks before, and is in again: it answered")
    return swap or Swap(outcome.generation, outcome.kind, (), serving=outcome.serving)  # a dry run retires nothing


def _wait(
    router: Router,
    outcome: Outcome,
    leaving: Sequence[str],
    resolved: Mapping[str, Sequence[str]],
    ports: frozenset[int],
    options: Options,
    seconds: float,
    given_up: Callable[[], bool],
) -> Drained:
    plane, say = router.plane(), router.request.say
    addresses = list(map(Address, leaving))
    places = drain.places(addresses, resolved)
    # an earlier reload's workers too: what they still hold may go to the same endpoint
    workers = {*outcome.old_workers, *((w.pid, w.started) for w in plane.workers() if w.shutting_down)}
    return drain.wait(
        sorted(workers),
        drain.targets(addresses, resolved),
        # a port that went with this very reload is one, too; without old workers nobody asks, and a master has a descriptor a log
        ports | sockets.listening_ports(plane.master()) if workers else ports,
        seconds,
        in_flight=lambda: plane.in_flight(places),
        waits_for_websockets=options.websockets == "keep",
        given_up=given_up,
        waiting=lambda left: say(f"waiting for {_connections(left)} to old instances, {seconds:g} s at most"),
    )


def _parted(
    router: Router, leaving: Sequence[str], resolved: Mapping[str, Sequence[str]]
) -> tuple[tuple[str, ...], dict[str, tuple[str, ...]]]:
    """Those of `leaving` that no app sends requests to, and the others, which are said: address, the apps that it serves."""
    places = {one: {one, *drain.places([Address(one)], resolved)} for one in leaving}
    # for nearly every deploy there are no others: one look for all of them, 1 to 5 ms among 5,000 apps
    if not places or not router.generations.served_at(set().union(*places.values())):
        return tuple(leaving), {}
    found = {one: tuple(router.generations.served_at(each)) for one, each in places.items()}
    staying = {one: apps for one, apps in found.items() if apps}
    for one, apps in staying.items():
        router.request.say(f"{one} still serves {' and '.join(apps)}: left running")
    return tuple(one for one in leaving if one not in staying), staying


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


def hand_out(router: Router, app: str, swap: Swap) -> Swap:
    """The swap with those as retired that may be stopped at this moment; plugins are told of the same.

    Since the wait was over hooks ran, and what removes the lines may have waited for the host lock: another app may have got one.
    """
    retired, _ = _parted(router, swap.retired, swap.resolved)
    if retired and not router.request.dry_run:
        router.plugins.notify("endpoints-retired", runners.told(router, app, "retire", endpoints=list(retired)))
    return replace(swap, retired=retired)


def _connections(number: int) -> str:
    return f"{number} connection{'' if number == 1 else 's'}"
