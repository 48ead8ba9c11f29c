"""Where the instances of an app listen, by process."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import health
from nginx_router.arguments import change, chosen, existing, last_good
from nginx_router.events import Event
from nginx_router.model import Facts
from nginx_router.names import Endpoint, endpoint_argument, process_name, weight

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = ("app", "upstreams")

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
Addresses = Annotated[
    list[str],
    typer.Argument(metavar="[PROCESS=]ADDRESS", help="10.0.0.3:5000, [::1]:5000, host:5000 or unix:/path; - reads them from stdin."),
]
Weight = Annotated[str, typer.Option("--weight", metavar="N", help="Its share of the requests, from 1 to 1000.")]
Backup = Annotated[bool, typer.Option("--backup", help="Asked only when all others fail.")]
Down = Annotated[bool, typer.Option("--down", help="Known, but not asked.")]


def add(router: Router, app: AppArgument, addresses: Addresses, weight: Weight = "1", backup: Backup = False, down: Down = False) -> None:
    """Add endpoints to an app; one that is there with other flags gets these, and a canary stays one.

    Example: router upstreams:add blog 10.0.0.3:5000 api=10.0.0.3:5001 --weight 2
    """
    _change(router, existing(router, app), "add", _flagged(addresses, weight, backup=backup, down=down))


def remove(router: Router, app: AppArgument, addresses: Addresses) -> None:
    """Remove endpoints from an app at once; apps:retire waits for their requests first.

    Example: router upstreams:remove blog 10.0.0.3:5000
    """
    name = existing(router, app)
    named = {text.partition("=")[0] for text in addresses if "=" in text}
    endpoints = [endpoint_argument(text) for text in addresses]
    _change(router, name, "remove", endpoints, named_processes=sorted(named & {str(e.process) for e in endpoints}))


def set_endpoints(
    router: Router, app: AppArgument, addresses: Addresses, weight: Weight = "1", backup: Backup = False, down: Down = False
) -> None:
    """Make these the endpoints of the processes they name; other processes keep theirs. Nothing is checked: see apps:deploy.

    Example: router upstreams:set blog 10.0.0.3:5000 10.0.0.4:5000
    """
    _change(router, existing(router, app), "set", _flagged(addresses, weight, backup=backup, down=down))


def clear(
    router: Router,
    app: AppArgument,
    process: Annotated[str | None, typer.Argument(metavar="PROCESS", help="This process alone.")] = None,
) -> None:
    """Remove all endpoints of an app, or of one process.

    Example: router upstreams:clear blog api
    """
    _change(router, existing(router, app), "clear", (), process=None if process is None else process_name(process))


def report(router: Router, app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; all of them without.")] = None) -> None:
    """The endpoints of an app, or of all, by process.

    Example: router upstreams:report blog --format json
    """
    router.out.report(KEYS, _rows(router, app), single=app is not None)


def _change(router: Router, app: str, verb: str, endpoints: Sequence[Endpoint], **more: Any) -> None:
    change(router, [Event("upstreams", app, {"verb": verb, "endpoints": [e.line() for e in endpoints], **more})])


def _flagged(addresses: Sequence[str], share: str, *, backup: bool, down: bool) -> list[Endpoint]:
    number = weight(share)
    return [replace(endpoint_argument(text), weight=number, backup=backup, down=down) for text in addresses]


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    index = router.index()
    entries = index.apps if index else {}
    for name in chosen(router, app):
        found, _ = last_good(router, name)
        entry = entries.get(name)
        facts = router.generations.app_state(entry)[1] if entry and entry.unhealthy else Facts()
        yield {
            "app": name,
            "upstreams": {
                process: [
                    {"address": e.address.text, "weight": e.weight, "backup": e.backup, "state": state, "problem": why, "canary": e.canary}
                    for e in found.of_process(process)
                    for state, why in [health.seen(found, e, facts)]
                ]
                for process in found.processes
            },
        }
