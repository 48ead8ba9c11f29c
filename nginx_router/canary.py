"""Begin, promote and abort a canary: deploys that stop half-way, and go on or back.

    begin     the new instances answer -> they are added with the flag `canary`, and a share of the clients goes to them
    promote   they become their processes' whole sets; the old ones are drained and retired, as by a deploy
    abort     they are drained and retired themselves; everybody goes to the old ones again

Between these nothing runs: what is under way stands in UPSTREAMS and app.toml.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from . import balancing, canaries
from .canaries import ABORT, BEGIN, PROMOTE
from .deploy import Wanted, check_new, expecting, takeover
from .events import Event, refuse_locked
from .files import FileLock
from .handover import Handover, Options, Show, hand_out, swap_and_wait, turn
from .model import parse_app
from .times import stamp

if TYPE_CHECKING:
    from .controller import Router


def begin(router: Router, app: str, wanted: Wanted, share: str, options: Options, show: Show) -> None:
    """Let a share of an app's clients go to new instances, once these have answered; the others stay where they are.

    Raises:
        UsageProblem: the share is none, or one of the instances is there already or stands beside none.
        Conflict: a canary is under way already; and all that a deploy raises.
    """
    began = time.monotonic()
    share = canaries.percent(share)
    with turn(router, app):
        found = router.app(app)
        canaries.refuse_under_way(found)
        event = _with_step(takeover(router, app, canaries.begun(found, wanted), options), {"verb": BEGIN, "share": share, "since": stamp()})
        with router.journalled(event):
            router.gate(event)
            check_new(router, _only(event, wanted), options)
        swap = swap_and_wait(router, event, "deployed", options)
        if not router.request.dry_run and not FileLock(router.paths.run / "watch.lock").is_held():
            router.request.say("note: no `router watch` runs, so that nobody aborts the canary by itself")
        if not router.request.dry_run and (why := _why_nobody_comes(router, app)):
            router.request.say(f"note: no client gets the canary: {why}")
        show(replace(Handover.since(began, app, swap), canary=share))


def promote(router: Router, app: str, options: Options, show: Show) -> None:
    """Let the canaries of an app take over from the old instances of their processes.

    Raises:
        NotFound: it has none; and all that a deploy raises.
    """
    _end(router, app, PROMOTE, options, show, "")


def abort(router: Router, app: str, options: Options, show: Show, reason: str = "") -> None:
    """Send all clients to the old instances again, and retire the canaries; `reason` is kept until the next deploy.

    No plugin is asked: what harms the clients is ended on whichever day, and whoever holds a lock.

    Raises:
        NotFound: it has none.
        NotDrained: aborted, but the wait was ended by a signal, or at the deadline with `strict`.
    """
    _end(router, app, ABORT, options, show, reason)


def _end(router: Router, app: str, verb: str, options: Options, show: Show, reason: str) -> None:
    began = time.monotonic()
    with turn(router, app):
        event = _ending(router, app, verb, reason)
        if verb == PROMOTE:
            with router.journalled(event):
                router.gate(event)
                check_new(router, event, options)
        swap = swap_and_wait(router, event, "promoted" if verb == PROMOTE else "aborted", options)
        show(Handover.since(began, app, hand_out(router, app, swap)))


def _why_nobody_comes(router: Router, name: str) -> str | None:
    """Why what is served sends no client to the canaries of an app, whatever their share; None: it does."""
    index = router.index()
    entry = index.apps.get(name) if index else None
    if entry is None or not entry.canary:
        return None  # it is not served: who stopped nginx knows
    texts, facts = router.generations.app_state(entry)
    app = parse_app(name, texts, router.tables())
    if why := canaries.unreached(app):
        return why
    splits = [each for p in app.processes if (each := balancing.split(app, p, facts))]
    vhost = router.generations.object(entry.vhost).decode(errors="replace") if entry.vhost else ""
    # where there are routes the vhost says nothing of it; else it names what parts the clients where that is made, and where it is used
    if entry.routes or not splits or any(vhost.count(each["variable"]) > 1 for each in splits):
        return None
    return f"no server block of app {name} parts its clients"


def _ending(router: Router, app: str, verb: str, reason: str) -> Event:
    found = router.app(app)
    processes = canaries.ended(found, verb)
    if verb == PROMOTE:
        refuse_locked(found)
    named = processes if verb == PROMOTE else None  # those that everybody goes back to keep their flags
    event = Event("deploy", app, expecting(router, app, processes, named))
    return _with_step(event, {"verb": verb, **({"reason": reason} if reason else {})})


def _with_step(event: Event, step: Mapping[str, Any]) -> Event:
    return replace(event, args={**event.args, "canary": dict(step)})


def _only(event: Event, wanted: Mapping[str, Sequence[str]]) -> Event:
    # those that serve were checked when they came
    return replace(event, args={**event.args, "processes": {p: list(a) for p, a in wanted.items()}})
