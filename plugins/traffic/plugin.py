"""Which share of an app's clients goes to its canary (apps:deploy --canary begins one)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import canaries
from nginx_router.arguments import chosen, existing, last_good
from nginx_router.errors import RouterError, UsageProblem
from nginx_router.events import Event
from nginx_router.model import Entry, parse_app
from nginx_router.times import stamp

if TYPE_CHECKING:
    from nginx_router.controller import Outcome, Router

KEYS = ("app", "canary", "served", "since", "endpoints", "max_errors", "aborted")


def set_share(
    router: Router,
    app: Annotated[str, typer.Argument(metavar="APP", help="The app.")],
    share: Annotated[
        str | None, typer.Argument(metavar="SHARE", help="Of its clients, such as 25%; whoever got the canary keeps it when it grows.")
    ] = None,
    max_errors: Annotated[
        str | None,
        typer.Option(
            "--max-errors",
            metavar="SHARE",
            help="Of the canary's answers: more, and `router watch` aborts it ('': as the host says, else 5%).",
        ),
    ] = None,
) -> None:
    """Send another share of an app's clients to the canary that is under way; 0%: nobody.

    Example: router traffic:set blog 25%
    """
    if share is None and max_errors is None:
        raise UsageProblem("SHARE or --max-errors", hint="usage: router apps:traffic:set APP [SHARE] [--max-errors SHARE]")
    name = existing(router, app)
    given = {"canary": share, "max-errors": max_errors}
    values = {k: canaries.percent(v) if v or k == "canary" else None for k, v in given.items() if v is not None}
    if share is not None:
        canaries.require(router.app(name))
    events = [Event("plugin-key", name, {"table": canaries.TABLE, "key": key, "value": value}) for key, value in values.items()]
    router.out.changed([_as_one(router.change(events))])


def _as_one(outcomes: Sequence[Outcome]) -> Outcome:
    """What became of an app by one command, of both its keys."""
    first = next((o for o in outcomes if o.kind != "nothing"), outcomes[0])
    sums = {key: sum(getattr(o, key) for o in outcomes) for key in ("reloads", "closed_connections", "kept_connections")}
    return replace(first, notes=tuple(note for o in outcomes for note in o.notes), **sums)


def report(router: Router, app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; all of them without.")] = None) -> None:
    """The canary of an app, or of all: its share of the clients, since when, its instances, and why the last one was aborted.

    Example: router traffic:report blog --canary
    """
    router.out.report(KEYS, _rows(router, app), single=app is not None)


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    index = router.index()
    entries = index.apps if index else {}
    try:
        settings = router.settings()
    except RouterError:
        if index is None:
            raise
        settings = index.settings(router.tables())  # what is served goes on as it was set
    for name in chosen(router, app):
        found, _ = last_good(router, name)
        few = canaries.of_app(found)
        since = canaries.since(found) if few else None
        yield {
            "app": name,
            "canary": canaries.share_of(found) if few else None,
            "served": _served(router, name, entries[name]) if name in entries else None,
            "since": stamp(since) if since else None,
            "endpoints": canaries.shown(few),
            "max_errors": canaries.max_errors_of(found, settings),
            "aborted": canaries.aborted(found),
        }


def _served(router: Router, name: str, entry: Entry) -> str | None:
    """Who gets the canaries of an app, as it is served, whatever its files say by now."""
    texts, facts = router.generations.app_state(entry)
    app = parse_app(name, texts, router.tables())
    return canaries.who_gets(canaries.share_of(app), canaries.seen(app, facts)) if canaries.of_app(app) else None
