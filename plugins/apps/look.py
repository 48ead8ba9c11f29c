"""Which apps there are: for scripts that ask often, so nothing is imported that they do not need (typer takes 60 ms)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nginx_router.arguments import existing

if TYPE_CHECKING:
    from nginx_router.controller import Router


def list_apps(router: Router) -> None:
    """Every app, one a line.

    Example: router apps:list
    """
    router.out.listing(router.store.names())


def exists(router: Router, app: str) -> None:
    """Exit 0 if the app exists, else 3.

    Example: router apps:exists blog || router apps:create blog
    """
    existing(router, app)
