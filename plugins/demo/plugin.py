"""`router demo`: two apps, domains, a deploy under load, scaling, a broken snippet and a rollback, typed as a person would type it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nginx_router.controller import Router


def demo(
    router: Router,
    keep: Annotated[bool, typer.Option("--keep", help="Stay up afterwards, with the URLs and what to try next, until Ctrl-C.")] = False,
    svg: Annotated[str | None, typer.Option("--svg", metavar="FILE", help="Save the closing table as a picture.")] = None,
) -> None:
    """Deploy, scale, break and roll back two apps while clients ask for them; then say what these saw. It has a root, a port and a
    nginx of its own, touches nothing else and leaves nothing behind. Exit 1 where a promise was broken.

    Example: router demo --keep
    """
    from .show import show

    raise SystemExit(show(keep=keep, svg=None if svg is None else Path(svg)))
