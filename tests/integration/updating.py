"""The two ways of updating, and what a live nginx says of itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nginx_router.controller import Request, Router
from nginx_router.events import Event
from nginx_router.live import InFlight
from nginx_router.live import Live as Admin

if TYPE_CHECKING:
    from .conftest import Live


def switch(live: Live) -> None:
    """Endpoint changes reach nginx without a reload from now on."""
    result = live("proxy:set", "--global", "updates", "live")
    assert result.code == 0, f"these tests need nginx's Lua module (script/bootstrap --dev installs it): {result}"


def started(root: Live, updates: str) -> Live:
    """Start nginx, in that way of updating."""
    root.write("router.toml", f'{root.paths.config.read_text()}updates = "{updates}"\n')
    result = root("proxy:start")
    assert result.code == 0, f"these tests need nginx's Lua module (script/bootstrap --dev installs it): {result}"
    return root


def out_by_its_checks(live: Live, *instances: object) -> None:
    """What `router watch` does where these do not answer."""
    found = {str(instance): "refused" for instance in instances}
    Router(live.paths, Request("watch")).change([Event("health", "blog", {"endpoints": found})])


def pids(live: Live) -> list[int | None]:
    """The master and its workers: the same as long as nothing was reloaded or restarted."""
    return [live.master, *sorted(live.workers())]


def socket_of(live: Live) -> Admin:
    return Admin(live.paths.run / "live/admin.sock")


def under_way(live: Live, *addresses: object) -> InFlight:
    return socket_of(live).in_flight(live.workers(), map(str, addresses))


def started_with(live: Live, file: str, old: str, new: str) -> None:
    """Start nginx anew with a file of the current generation that says `new` where it said `old`."""
    live.done("proxy:stop")
    path = live.paths.current / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    live.done("proxy:start")
