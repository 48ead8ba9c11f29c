"""On which ports an app is served, and which of its processes on which."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.arguments import change, chosen, existing, last_good
from nginx_router.events import Event
from nginx_router.names import WEB, port_entry, port_number

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = ("app", "ports", "computed_ports")

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
Ports = Annotated[
    list[str],
    typer.Argument(metavar="PORT", help="http (the global port), http:9000, or http:9001:PROCESS; - reads them from stdin."),
]


def add(router: Router, app: AppArgument, ports: Ports) -> None:
    """Serve an app on more ports; the first entry replaces the global port, unless `http` stands among them.

    Example: router ports:add blog http http:9000 http:9001:api
    """
    _change(router, existing(router, app), "add", _entries(ports))


def remove(router: Router, app: AppArgument, ports: Ports) -> None:
    """Serve an app no more on these ports; a number alone means that port with any process.

    Example: router ports:remove blog 9000
    """
    _change(
        router, existing(router, app), "remove", [str(port_number(text)) if text.isdecimal() else str(port_entry(text)) for text in ports]
    )


def set_ports(router: Router, app: AppArgument, ports: Ports) -> None:
    """Make these the ports of an app, and no others.

    Example: router ports:set blog http http:9000
    """
    _change(router, existing(router, app), "set", _entries(ports))


def clear(router: Router, app: AppArgument) -> None:
    """Serve an app on the global port again.

    Example: router ports:clear blog
    """
    _change(router, existing(router, app), "clear", ())


def list_ports(router: Router, app: AppArgument) -> None:
    """The ports of an app as they were set, one a line; nothing where it is served on the global port.

    Example: router ports:list blog
    """
    found, _ = last_good(router, existing(router, app))
    router.out.listing(str(port) for port in found.ports)


def report(router: Router, app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; all of them without.")] = None) -> None:
    """The ports of an app, or of all: as they were set, and as they are served.

    Example: router ports:report blog --format json
    """
    router.out.report(KEYS, _rows(router, app), single=app is not None)


def _change(router: Router, app: str, verb: str, ports: Sequence[str]) -> None:
    change(router, [Event("ports", app, {"verb": verb, "ports": ports})])


def _entries(texts: Sequence[str]) -> list[str]:
    return [str(port_entry(text)) for text in texts]


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    settings = router.settings()
    for name in chosen(router, app):
        found, _ = last_good(router, name)
        served = [(p.number or settings.http_port, p.process) for p in found.ports] or [(settings.http_port, WEB)]
        yield {
            "app": name,
            "ports": [str(port) for port in found.ports],
            "computed_ports": [f"http:{number}:{process}" for number, process in sorted(set(served))],
        }
