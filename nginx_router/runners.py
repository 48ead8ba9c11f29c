"""Runners: the plugins that start and stop instances, asked and never trusted.

What a runner started is stopped again when it does not come to serve, whatever the reason; an instance that is routed to
is never stopped.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from . import lines
from .errors import NotDrained, NotFound, PluginBroken, RouterError, UsageProblem
from .model import UPSTREAMS
from .names import address, endpoint_line, shown

if TYPE_CHECKING:
    from .controller import Router


def require(router: Router, app: str) -> None:
    """Make sure that there is such an app, and a plugin that starts instances.

    Raises:
        NotFound: there is not.
    """
    router.store.require(app)
    if not router.plugins.has("scale"):
        raise NotFound(
            "no plugin starts instances (hook scale)",
            hint=f"start them yourself, then: router apps:upstreams:add {app} ADDRESS...",
            app=app,
        )


def start(router: Router, app: str, process: str, count: int, now: Sequence[str], started: list[str]) -> list[str]:
    """Ask the runner for `count` instances of a process that has `now`; all that are wanted, and the new ones in `started`.

    Raises:
        PluginBroken: its answer cannot be used.
        Refused: it failed, in its own words.
    """
    try:
        answer = router.plugins.run("scale", told(router, app, "scale", process=process, count=count, endpoints=list(now)))
    except RouterError as why:
        # a runner that failed half way has printed what it had started by then
        started += [a for a in _addresses(str(getattr(why.__cause__, "out", ""))) if a not in now]
        raise
    plugin, text = answer or ("", "")
    found = list(dict.fromkeys(_addresses(text)))
    started += [a for a in found if a not in now]
    strange = next((line.strip() for line in text.splitlines() if line.strip() and not _addresses(line)), None)
    if strange is not None or bool(found) != bool(count):
        what = f"{len(found)} endpoints" if strange is None else f"{shown(strange)}, which is no endpoint,"
        raise PluginBroken(
            f"plugin {plugin} answered {what} for {process}={count} of app {app}", hint="one endpoint a line, all that are wanted", app=app
        )
    if len(found) != count:  # all that are wanted is what the runner says; whoever asked for others is told
        endpoints = f"{len(found)} endpoint{'' if len(found) == 1 else 's'}"
        router.request.say(f"warning: the runner gave {endpoints} of {process}, asked for {count}")
    return found


def stop(router: Router, app: str, addresses: Sequence[str]) -> tuple[str, ...]:
    """Let the runner stop these instances; those that still run, which a warning has named."""
    if not addresses:
        return ()
    try:
        answer = router.plugins.run("stop", told(router, app, "stop", endpoints=list(addresses)))
        problem = "no plugin stops instances (hook stop)"
    except RouterError as why:
        answer, problem = None, why.message
    if answer is None:
        router.request.say(f"warning: {problem}; still running: {' '.join(addresses)}")
        return tuple(addresses)
    left = answer[1].split()  # the call has said the warning
    return tuple(a for a in addresses if a in left)


@contextlib.contextmanager
def stopping_unused(router: Router, app: str) -> Iterator[list[str]]:
    """Stop what was started (the list it gives) where that does not come to serve, also when a signal ends the attempt."""
    started: list[str] = []
    try:
        yield started
    except NotDrained:
        raise  # they serve; what is left is the old ones
    except BaseException:
        # the files say what serves: whatever failed, an instance that is routed to is not stopped
        text = (router.store.texts(app) or {}).get(UPSTREAMS, "")
        serving = {endpoint_line(entry).address.text for _, entry in lines.entries(text)}
        stop(router, app, [a for a in dict.fromkeys(started) if a not in serving])
        raise


def told(router: Router, app: str, action: str, **keys: Any) -> dict[str, Any]:
    """The event that a hook is given."""
    return {"app": app, "action": action, "command": router.request.command, **keys}


def _addresses(text: str) -> list[str]:
    found = []
    for line in text.splitlines():
        with contextlib.suppress(UsageProblem):
            found.append(address(line.strip()).text)
    return found
