"""The proxy itself: whether it runs, its settings, and whether it serves what the directories say."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import canaries, proxy
from nginx_router.arguments import apps_or_all, change, property_event
from nginx_router.errors import NginxRejected, ProxyDown, ReloadFailed, UsageProblem
from nginx_router.properties import PROPERTIES, lookup

if TYPE_CHECKING:
    from nginx_router.controller import Router

TABLE = "proxy"
#: How many stale apps the screen of `status` has room for.
STALE_SHOWN = 5
#: And how many canaries.
CANARIES_SHOWN = 5
PROXY_KEYS = ("type", "mode", "running", "pid", "workers", "draining_workers")
STATUS_KEYS = ("generation", "serving", "updates", "proxy", "apps", "stale", "problems", "canaries", "draining", "changes")


def start(router: Router) -> None:
    """Start nginx, and keep it wanted: from now on a change that does not find it running starts it.

    Example: router proxy:start
    """
    if not _rehearsed(router, "start nginx"):
        started = proxy.start(router)
        _done(router, started.lines() if started else ["the proxy runs already"])


def stop(router: Router) -> None:
    """Stop nginx, and keep it stopped; changes are saved meanwhile.

    Example: router proxy:stop
    """
    if not _rehearsed(router, "stop nginx"):
        _done(router, proxy.stop(router).lines())


def reload(router: Router) -> None:
    """Reload nginx, and prove that it serves the current generation.

    Example: router proxy:reload
    """
    if not _rehearsed(router, "reload nginx"):
        _done(router, [f"nginx serves generation {proxy.reload(router)}"])


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
    if key == "worker-shutdown-timeout" and value is not None and router.settings().is_host_mode:
        line, conf = f"worker_shutdown_timeout {lookup(TABLE, key).parse(value)};", router.settings().get("nginx-conf")
        raise UsageProblem(f"{key} is for router's own nginx (mode managed)", hint=f"put `{line}` at the top of {conf}")
    before = router.settings().get("updates")
    change(router, [property_event(TABLE, None, key, value)])
    if key == "updates" and lookup(TABLE, key).parse(value or lookup(TABLE, key).default) != before:
        _say_who_moves(router)


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


def status(
    router: Router,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but, where something is wrong, one line on stderr.")] = False,
) -> None:
    """What is served, what is wrong, and the last changes: exit 13 if nginx should run and does not, 9 if it serves another
    generation than the current, 8 if an app is stale; one line on stderr says why.

    Example: router status --problems
    """
    found = proxy.status(router)
    if router.out.is_json or router.out.key is not None:
        router.out.report(STATUS_KEYS, iter([{key: found.get(key) for key in STATUS_KEYS}]), single=True)
    elif not quiet:
        _show(router, found)
    code, why = _verdict(found)
    if code:
        router.out.say(f"router: {why}")
        raise SystemExit(code)


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
        _done(router, [setup.remove(router) if remove else setup.install(router, Path(conf))])


def _verdict(found: Mapping[str, Any]) -> tuple[int, str]:
    """The exit code of `status`, and why."""
    if _is_down(found):
        return ProxyDown.exit_code, "nginx should run and does not: router proxy:start, or router doctor"
    if found["proxy"]["running"] and found["serving"] != found["generation"]:
        served = "nothing of ours" if found["serving"] is None else f"generation {found['serving']}"
        return ReloadFailed.exit_code, f"nginx serves {served} and not generation {found['generation']}: router proxy:reload"
    if found["stale"]:
        first, *others = found["stale"]
        more = f" (and {len(others)} more)" if others else ""
        return NginxRejected.exit_code, f"app {first['app']} is stale{more}: {_why(first)}"
    return 0, ""


def _why(stale: Mapping[str, Any]) -> str:
    return " ".join(str(stale.get("problem")).split()).removeprefix(f"app {stale['app']}: ")


def _show(router: Router, found: Mapping[str, Any]) -> None:
    """The state of things on one screen."""
    own, serving, current = found["proxy"], found["serving"], found["generation"]
    if own["running"]:
        runs = f"runs, master {own['pid']}, {_count(own['workers'], 'worker')}"
    else:
        runs = "does not run, and should" if found["wanted"] else "is stopped"
    rows = [("nginx", f"{runs} (mode {own['mode']}, updates {found['updates']})")]
    what = f"generation {serving}" if serving is not None else "nothing"
    rows.append(("serving", what if serving == current else f"{what}; current is {current if current is not None else 'none'}"))
    rows.append(("apps", f"{found['apps']}, {len(found['stale'])} of them stale" if found["stale"] else str(found["apps"])))
    under_way = found.get("canaries", ())
    rows += [("canary", _canary(each)) for each in under_way[:CANARIES_SHOWN]]
    if len(under_way) > CANARIES_SHOWN:
        rows.append(("canary", f"and {len(under_way) - CANARIES_SHOWN} more: router status --canaries"))
    for leaving in found.get("draining", ()):
        held = "connections unknown" if leaving["connections"] is None else _count(leaving["connections"], "connection")
        rows.append(("draining", f"worker {leaving['pid']} for {leaving['seconds']:.0f} s, {held}"))
    # a broken snippet on each of a thousand apps is still one screen
    rows += [("stale", f"{each['app']}: {_why(each)}") for each in found["stale"][:STALE_SHOWN]]
    if len(found["stale"]) > STALE_SHOWN:
        rows.append(("stale", f"and {len(found['stale']) - STALE_SHOWN} more: router status --stale"))
    rows += [("problem", each) for each in found["problems"]]
    router.out.facts(rows)
    if found.get("changes"):
        router.out.data()
        columns = ("time (UTC)", "user", "result", "seconds", "command")
        router.out.table(columns, [_change_row(line) for line in found["changes"]])


def _say_who_moves(router: Router) -> None:
    """Canaries that are under way get other clients from now on: the two ways part them by different sums.

    It is said and not refused: who leaves a mode may have to at once, and one app's canary is no reason that a host cannot.
    """
    index = router.index()
    moved = [
        f"{each['app']} ({each['canary']})" for each in (proxy.canaries_under_way(router, index) if index else []) if each["canary"] != "0%"
    ]
    if moved:
        verb = "would move" if router.request.dry_run else "moved"
        router.out.say(f"note: clients {verb} between old instances and the canary, as many as before and others: {', '.join(moved)}")


def _canary(each: Mapping[str, Any]) -> str:
    return f"{each['app']}: {canaries.who_gets(each['canary'], each, _lasting(each['since']) if each['since'] else '')}"


def _lasting(since: str) -> str:
    """How long ago a moment was, in the largest unit of which there are two."""
    from datetime import UTC, datetime

    seconds = max(0, int((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()))
    number, unit = next(
        (seconds // size, unit) for size, unit in ((86400, "d"), (3600, "h"), (60, "min"), (1, "s")) if seconds >= 2 * size or size == 1
    )
    return f"{number} {unit}"


def _change_row(line: Mapping[str, Any]) -> tuple[object, ...]:
    # commands may hold anything that was typed, newlines and escape sequences too
    command = "".join(c if c.isprintable() else "?" for c in str(line.get("command", "")))
    result = line.get("result", "")
    code = line.get("exit")
    return (
        str(line.get("time", ""))[:19].replace("T", " "),
        line.get("user", ""),
        f"{result} ({code})" if code else result,
        f"{float(line.get('seconds') or 0):.3f}",
        command or "-",
    )


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _is_down(found: Mapping[str, Any]) -> bool:
    return bool(found["wanted"]) and not found["proxy"]["running"]


def _rehearsed(router: Router, what: str) -> bool:
    if router.request.dry_run:
        router.out.say(f"would {what}")
    return router.request.dry_run


def _done(router: Router, lines: Iterable[str]) -> None:
    for line in lines:
        router.out.say(line)
    if router.out.is_json:
        found = proxy.status(router)
        router.out.json({key: found[key] for key in ("generation", "serving", "proxy")})


def _settings_row(router: Router) -> Iterator[dict[str, Any]]:
    settings = router.settings()
    row: dict[str, Any] = {}
    for key in PROPERTIES[TABLE]:
        row |= {key: settings.proxy.get(key), f"computed-{key}": settings.get(key)}
    yield row
