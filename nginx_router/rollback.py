"""An earlier generation's configuration, made current again as a new generation and written into the directories too."""

from __future__ import annotations

from collections.abc import Sequence

from . import lines
from .checks import Check
from .checks import run as check_endpoints
from .controller import Outcome, Router
from .errors import NotFound, UsageProblem, nearest
from .events import Event
from .model import UPSTREAMS, Texts
from .names import endpoint_line


def rollback(
    router: Router, number: int, names: Sequence[str] | None, *, endpoints: bool = False, check: Check | None = None
) -> list[Outcome]:
    """Give `names` (None: every app of generation `number` that still exists) the configuration they had then.

    Endpoints, locks and counts stay as they are, unless `endpoints`: then those of that time are checked first and come
    back too.  An app that was destroyed since comes back only when it is named, and without endpoints.  Of several apps
    each stands for itself: outcomes carry the errors of those left out.

    Raises:
        NotFound: there is no such generation, or a named app is not in it.
        ChecksFailed: an endpoint of that time does not answer.
        RouterError: the one app that was named cannot have it; nothing was changed.
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
            have = set(_lines(now))
            fresh = [endpoint_line(line) for line in _lines(texts) if line not in have]
            check_endpoints(name, [e.address for e in fresh if e.state == "active"], check or Check(), router.request.say)
        args = {"texts": dict(texts), "endpoints": with_endpoints, "expected": _lines(now)}
        events.append(Event("restore", name, args))
    return router.change(events, independent=len(events) > 1)


def _lines(texts: Texts) -> list[str]:
    return [entry for _, entry in lines.entries(texts.get(UPSTREAMS, ""))]
