"""The nginx properties of apps, and the configuration that was made of everything."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.arguments import app_or_global, change, chosen, existing, last_good, property_event
from nginx_router.errors import NotFound, UsageProblem
from nginx_router.properties import PROPERTIES

if TYPE_CHECKING:
    from nginx_router.controller import Router

TABLE = "nginx"
USAGE = "router apps:nginx:set APP|--global KEY [VALUE]"

Global = Annotated[bool, typer.Option("--global", help="The host: what holds for apps that do not set it.")]


def set_property(
    router: Router,
    words: Annotated[list[str], typer.Argument(metavar="[APP] KEY [VALUE]", help="The property; without VALUE it is unset.")],
    is_global: Global = False,
) -> None:
    """Set an nginx property of an app, or with --global of the host; without VALUE unset it.

    Example: router nginx:set blog client-max-body-size 20m
    """
    app = None if is_global else words[0]
    key, *values = words if is_global else words[1:] or [""]
    if not key or len(values) > 1:
        raise UsageProblem("a property is KEY [VALUE]", hint=f"usage: {USAGE}")
    name = app_or_global(router, app, is_global=is_global, usage=USAGE)
    change(router, [property_event(TABLE, name, key, values[0] if values else None)])


def report(
    router: Router,
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; all of them without.")] = None,
    is_global: Global = False,
) -> None:
    """The nginx properties of an app, of all, or of the host: as set, as the host has them, and as they count (computed).

    Example: router nginx:report blog --computed-client-max-body-size
    """
    if is_global and app is not None:
        raise UsageProblem("APP or --global, one of them", hint="usage: router apps:nginx:report [APP | --global]")
    forms = ("global-", "computed-") if is_global else ("", "global-", "computed-")
    keys = [form + name for name in PROPERTIES[TABLE] for form in forms]
    router.out.report(
        keys if is_global else ["app", *keys],
        _global_row(router) if is_global else _rows(router, app),
        single=is_global or app is not None,
    )


def show_config(router: Router, app: Annotated[str, typer.Argument(metavar="APP", help="The app.")]) -> None:
    """The server blocks of an app as the current generation has them.

    Example: router nginx:show-config blog
    """
    name = existing(router, app)
    index = router.index()
    entry = index.apps.get(name) if index else None
    if entry is None or entry.vhost is None:
        raise NotFound(f"app {name} has no server block: it has neither domains nor endpoints", hint=f"router apps:report {name}", app=name)
    router.out.text(router.generations.object(entry.vhost).decode(errors="surrogateescape"))


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    everywhere = router.settings().nginx
    for name in chosen(router, app):
        own = last_good(router, name)[0].nginx
        row: dict[str, Any] = {"app": name}
        for key, known in PROPERTIES[TABLE].items():
            row |= {
                key: own.get(key),
                f"global-{key}": everywhere.get(key),
                f"computed-{key}": own.get(key) or everywhere.get(key) or known.default,
            }
        yield row


def _global_row(router: Router) -> Iterator[dict[str, Any]]:
    everywhere = router.settings().nginx
    row: dict[str, Any] = {}
    for key, known in PROPERTIES[TABLE].items():
        row |= {f"global-{key}": everywhere.get(key), f"computed-{key}": everywhere.get(key) or known.default}
    yield row
