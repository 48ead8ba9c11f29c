"""The proxy itself: whether it runs, its settings, and whether it serves what the directories say."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import proxy
from nginx_router.arguments import apps_or_all, change, property_event
from nginx_router.errors import NginxRejected, ProxyDown, ReloadFailed, UsageProblem
from nginx_router.properties import PROPERTIES, lookup

if TYPE_CHECKING:
    from nginx_router.controller import Router

TABLE = "proxy"
PROXY_KEYS = ("type", "mode", "running", "pid", "workers", "draining_workers")
STATUS_KEYS = ("generation", "serving", "updates", "proxy", "apps", "stale", "problems")


def start(router: Router) -> None:
    """Start nginx, and keep it wanted: from now on a change that does not find it running starts it.

    Example: router proxy:start
    """
    if not _rehearsed(router, "start nginx"):
        _done(router, "proxy started" if proxy.start(router) else "the proxy runs already")


def stop(router: Router) -> None:
    """Stop nginx, and keep it stopped; changes are saved meanwhile.

    Example: router proxy:stop
    """
    if not _rehearsed(router, "stop nginx"):
        _done(router, "proxy stopped" if proxy.stop(router) else "the proxy is stopped already")


def reload(router: Router) -> None:
    """Reload nginx, and prove that it serves the current generation.

    Example: router proxy:reload
    """
    if not _rehearsed(router, "reload nginx"):
        _done(router, f"nginx serves generation {proxy.reload(router)}")


def proxy_status(router: Router) -> None:
    """Whether nginx runs; exit 13 if it should and does not.

    Example: router proxy:status --running
    """
    found = proxy.status(router)
    router.out.report(PROXY_KEYS, iter([found["proxy"]]), single=True)
    if _is_down(found):
        raise SystemExit(ProxyDown.exit_code)


def report(router: Router, is_global: Annotated[bool, typer.Option("--global", help="Said or not: they are the host's.")] = False) -> None:
    """The host-wide settings: as set, and as they count (computed).

    Example: router proxy:report --computed-http-port
    """
    keys = [form + name for name in PROPERTIES[TABLE] for form in ("", "computed-")]
    router.out.report(keys, _settings_row(router), single=True)


def set_property(
    router: Router,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The setting.")],
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Without it the setting is unset.")] = None,
    is_global: Annotated[bool, typer.Option("--global", help="Needed: the settings are the host's.")] = False,
) -> None:
    """Set a host-wide setting; without VALUE unset it.

    Example: router proxy:set --global http-port 8080
    """
    from nginx_router import setup

    if not is_global:
        raise UsageProblem("the settings of the proxy are the host's", hint="usage: router proxy:set --global KEY [VALUE]")
    if key == "mode":
        setup.refuse_switch(router, value or "managed")
    change(router, [property_event(TABLE, None, key, value)])


def reconcile(
    router: Router,
    apps: Annotated[list[str] | None, typer.Argument(metavar="APP", help="These apps; all of them without.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All apps, and what is not an app.")] = False,
) -> None:
    """Make nginx serve what the directories say: take up edits made by hand, ask plugins and DNS anew.

    Apps that cannot be served are named and left out; the exit code is that of the first, by name.

    Example: router reconcile blog
    """
    router.out.changed(router.reconcile(apps_or_all(router, apps or (), is_all=is_all)), single=False)


def status(router: Router) -> None:
    """What is served, and what is wrong: exit 13 if nginx should run and does not, 9 if it serves another generation
    than the current, 8 if an app is stale.

    Example: router status --problems
    """
    found = proxy.status(router)
    router.out.report(STATUS_KEYS, iter([{key: found[key] for key in STATUS_KEYS}]), single=True)
    if _is_down(found):
        raise SystemExit(ProxyDown.exit_code)
    if found["proxy"]["running"] and found["serving"] != found["generation"]:
        raise SystemExit(ReloadFailed.exit_code)
    if found["stale"]:
        raise SystemExit(NginxRejected.exit_code)


def set_up(
    router: Router,
    nginx_conf: Annotated[str | None, typer.Option("--nginx-conf", metavar="PATH", help="Its configuration; else the property.")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="Take the include out again.")] = False,
) -> None:
    """Put one include into the configuration of the distribution's nginx, so that it serves the apps (host mode).

    Example: sudo router setup --nginx-conf /etc/nginx/nginx.conf
    """
    from pathlib import Path

    from nginx_router import setup

    if remove and nginx_conf is not None:
        raise UsageProblem("--remove knows the configuration", hint="usage: router setup --remove")
    conf = lookup(TABLE, "nginx-conf").parse(router.settings().get("nginx-conf") if nginx_conf is None else nginx_conf)
    if not _rehearsed(router, "take the include out again" if remove else f"put one include into {conf}"):
        _done(router, setup.remove(router) if remove else setup.install(router, Path(conf)))


def _is_down(found: Mapping[str, Any]) -> bool:
    return bool(found["wanted"]) and not found["proxy"]["running"]


def _rehearsed(router: Router, what: str) -> bool:
    if router.request.dry_run:
        router.out.say(f"would {what}")
    return router.request.dry_run


def _done(router: Router, what: str) -> None:
    if router.out.is_json:
        found = proxy.status(router)
        router.out.json({key: found[key] for key in ("generation", "serving", "proxy")})
    else:
        router.out.say(what)


def _settings_row(router: Router) -> Iterator[dict[str, Any]]:
    settings = router.settings()
    row: dict[str, Any] = {}
    for key in PROPERTIES[TABLE]:
        row |= {key: settings.proxy.get(key), f"computed-{key}": settings.get(key)}
    yield row
