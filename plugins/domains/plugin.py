"""Which names an app answers to, and the global domains that new apps get names below."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.arguments import change, chosen, default_domains, domains, existing, last_good
from nginx_router.errors import UsageProblem
from nginx_router.events import Event

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = ("app", "domains", "enabled", "global_domains")

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
Names = Annotated[list[str], typer.Argument(metavar="DOMAIN", help="a.example.com or *.example.com; - reads them from stdin.")]
GlobalNames = Annotated[list[str], typer.Argument(metavar="DOMAIN", help="example.com; - reads them from stdin.")]


def add(router: Router, app: AppArgument, names: Names) -> None:
    """Add domains to an app; each may belong to one app of the host.

    Example: router domains:add blog blog.example.com '*.blog.example.com'
    """
    _change(router, app, "add", names)


def remove(router: Router, app: AppArgument, names: Names) -> None:
    """Remove domains from an app.

    Example: router domains:remove blog old.example.com
    """
    _change(router, app, "remove", names)


def set_domains(router: Router, app: AppArgument, names: Names) -> None:
    """Make these the domains of an app, and no others.

    Example: router domains:set blog blog.example.com
    """
    _change(router, app, "set", names)


def clear(router: Router, app: AppArgument) -> None:
    """Remove all domains of an app; it has no server block then.

    Example: router domains:clear blog
    """
    _change(router, app, "clear", ())


def reset(router: Router, app: AppArgument) -> None:
    """Give an app the domains it would be created with: APP.GLOBAL for each global domain.

    Example: router domains:reset blog
    """
    name = existing(router, app)
    change(router, [Event("domains", name, {"verb": "clear", "names": [], "reset": default_domains(router, name)})])


def enable(router: Router, app: AppArgument) -> None:
    """Serve the domains of an app again.

    Example: router domains:enable blog
    """
    change(router, [Event("domains-switch", existing(router, app), {"enabled": True})])


def disable(router: Router, app: AppArgument) -> None:
    """Serve none of the domains of an app; it still owns them, and no other app can have them.

    Example: router domains:disable blog
    """
    change(router, [Event("domains-switch", existing(router, app), {"enabled": False})])


def report(
    router: Router,
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; all of them without.")] = None,
    is_global: Annotated[bool, typer.Option("--global", help="The global domains alone.")] = False,
) -> None:
    """The domains of an app, of all apps, or the global ones.

    Example: router domains:report blog --domains
    """
    if is_global and app is not None:
        raise UsageProblem("APP or --global, one of them", hint="usage: router apps:domains:report [APP | --global]")
    rows = _global_row(router) if is_global else _rows(router, app)
    router.out.report(("global_domains",) if is_global else KEYS, rows, single=is_global or app is not None)


def add_global(router: Router, names: GlobalNames) -> None:
    """Add global domains: an app created from now on gets APP.DOMAIN; those that exist keep theirs.

    Example: router domains:add-global example.com
    """
    _change_global(router, "add", names)


def remove_global(router: Router, names: GlobalNames) -> None:
    """Remove global domains; the domains of apps stay.

    Example: router domains:remove-global example.com
    """
    _change_global(router, "remove", names)


def set_global(router: Router, names: GlobalNames) -> None:
    """Make these the global domains, and no others; the domains of apps stay.

    Example: router domains:set-global example.com example.org
    """
    _change_global(router, "set", names)


def clear_global(router: Router) -> None:
    """Remove all global domains; the domains of apps stay.

    Example: router domains:clear-global
    """
    _change_global(router, "clear", ())


def _change(router: Router, app: str, verb: str, names: Sequence[str]) -> None:
    change(router, [Event("domains", existing(router, app), {"verb": verb, "names": domains(names)})])


def _change_global(router: Router, verb: str, names: Sequence[str]) -> None:
    wanted = domains(names)
    for name in wanted:
        if name.startswith("*."):
            raise UsageProblem(f"{name} cannot be a global domain: apps get APP.DOMAIN of it", hint=f"{name.removeprefix('*.')}")
    change(router, [Event("global-domains", None, {"verb": verb, "names": wanted})])


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    everywhere = list(router.settings().domains)
    for name in chosen(router, app):
        found, _ = last_good(router, name)
        yield {"app": name, "domains": list(found.domains), "enabled": found.domains_enabled, "global_domains": everywhere}


def _global_row(router: Router) -> Iterator[dict[str, Any]]:
    yield {"global_domains": list(router.settings().domains)}
