"""What keeps a hook from waiting for itself: a process knows within which hooks it was started.

The environment says so, because a Python plugin may start processes too: hooks are called from one thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from .errors import Busy
from .hookspecs import Kind

#: The hooks within which this process runs, as `kind:app` words.
_INSIDE = "ROUTER_INSIDE"


def inside() -> tuple[str, str] | None:
    """The kind and the app ("": the host) of the hook that called this process; None outside of hooks and in notify hooks.

    A change of that app could only wait for itself.
    """
    calls = os.environ.get(_INSIDE, "").split()
    if not calls:
        return None
    kind, _, app = calls[-1].partition(":")
    return kind, app


def refuse_inside(app: str | None) -> None:
    """Make sure that no hook of a change of `app`, at any depth, is waiting for this process.

    Raises:
        Busy: one is.
    """
    for call in os.environ.get(_INSIDE, "").split():
        kind, _, other = call.partition(":")
        if other == (app or ""):
            what = f"app '{app}'" if app else "the host"
            raise Busy(
                f"{what} is being changed, and this was called from a {kind} hook of that change",
                hint="reading works here; change it from a post-* hook",
                app=app,
            )


@contextlib.contextmanager
def marked(kind: Kind, app: str | None) -> Iterator[None]:
    """Within it, and in every process started there, a change of `app` is refused; a notify hook is free."""
    before = os.environ.get(_INSIDE)
    if kind != "notify":
        os.environ[_INSIDE] = f"{before or ''} {kind}:{app or ''}".strip()
    try:
        yield
    finally:
        os.environ.pop(_INSIDE, None)
        if before is not None:
            os.environ[_INSIDE] = before
