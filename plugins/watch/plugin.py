"""`router watch`, for a terminal and for systemd."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nginx_router.controller import Router


def watch(
    router: Router,
    resolve: Annotated[
        float, typer.Option("--resolve", metavar="S", min=0, help="Resolve the host names of endpoints every S seconds; 0: never.")
    ] = 30.0,
) -> None:
    """Serve what the directories say whenever somebody edits them, until Ctrl-C or SIGTERM; SIGHUP looks at everything again.

    Example: router watch
    """
    from nginx_router.watcher import Watcher

    Watcher(router, resolve=resolve).run()
