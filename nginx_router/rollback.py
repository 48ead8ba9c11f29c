"""An earlier generation's configuration, made current again as a new generation and written into the directories too."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from . import lines
from .controller import Outcome, Router
from .deploy import check_instances
from .errors import NotFound, UsageProblem, nearest
from .events import Event
from .handover import Options
from .model import UPSTREAMS, Texts, parse_app
from .names import endpoint_line


def rollback(
    router: Router, number: int, names: Sequence[str] | None, *, endpoints: bool = False, options: Options | None = None
) -> list[Outcome]:
    """Give `names` (None: every app of generation `number` that still exists) the configuration they had then.

    Endpoints, locks and counts stay as they are, unless `endpoints`: then those of that time are checked first, as a deploy
    with these `options` and the checks of that time would, and come back too; those of a locked app stay, and it is refused.
    An app that was destroyed since comes back only when it is named, and without endpoints.  Of several apps each stands
    for itself: outcomes carry the errors of those left out.

    Raises:
        NotFound: there is no such generation, or a named app is not in it.
        ChecksFailed: an endpoint of that time does not answer.
        Conflict: the one app that was named is locked, and its endpoints would be others.
        RouterError: it cannot have it; nothing was changed.
    """
    if endpoints and not router.request.dry_run:
        for name in names or router.store.names():
            router.mend(name)  # the endpoints that are there now are expected to be there behind the checks
    then = router.generations.index(number)
    if endpoints and then.is_lost:
        router.request.say(f"warning: endpoints.log of generation {number} is lost: endpoints are those that it began with, not its last")
    for name in names or ():
        if name not in then.apps:
            raise NotFound(f"app {name} is not in generation {number}{nearest(name, then.apps)}", app=name)
    exist = set(router.store.names())
    chosen = sorted(set(then.apps) & exist) if names is None else list(dict.fromkeys(names))
    if not chosen:
        raise UsageProblem(f"generation {number} has no app that still exists")
    events = []
    for name in chosen:
        texts, _ = router.generations.app_state(then.apps[name])
        now = (router.store.texts(name) or {}) if name in exist else {}
        with_endpoints = endpoints and name in exist
        if with_endpoints:
            _check_new(router, name, texts, now, options or Options())
        args = {"texts": dict(texts), "endpoints": with_endpoints, "expected": _lines(now)}
        events.append(Event("restore", name, args))
    return router.change(events, independent=len(events) > 1)


def _check_new(router: Router, name: str, then: Texts, now: Texts, options: Options) -> None:
    """See those endpoints of that time answer that the app does not have now.

    Raises:
        ChecksFailed: one does not.
    """
    if router.request.dry_run:
        return
    try:
        app, is_locked = parse_app(name, then, router.tables()), parse_app(name, now, router.tables()).locked is not None
    except UsageProblem:
        return  # the change says so, of this app alone
    if is_locked:
        return  # so does it of this
    have, fresh = set(_lines(now)), defaultdict[str, list[str]](list)
    for endpoint in [endpoint_line(line) for line in _lines(then) if line not in have]:
        if endpoint.state == "active":
            fresh[endpoint.process].append(endpoint.address.text)
    check_instances(router, app, fresh, options)


def _lines(texts: Texts) -> list[str]:
    return [entry for _, entry in lines.entries(texts.get(UPSTREAMS, ""))]
