"""The nginx properties of apps, and the configuration that was made of everything."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.accesslog import Log
from nginx_router.arguments import app_or_global, change, chosen, existing, last_good, property_event
from nginx_router.directives import computed, logs
from nginx_router.errors import NotFound, UsageProblem
from nginx_router.properties import PROPERTIES
from nginx_router.resources import shipped

if TYPE_CHECKING:
    from nginx_router.controller import Router

TABLE = "nginx"
USAGE = "router apps:nginx:set APP|--global KEY [VALUE]"

Global = Annotated[bool, typer.Option("--global", help="The host: what holds for apps that do not set it.")]

LogOf = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
Follow = Annotated[bool, typer.Option("--follow", "-f", help="Go on with what is written, until Ctrl-C.")]
Lines = Annotated[int, typer.Option("--lines", "-n", min=0, metavar="N", help="How many lines (20).")]


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
    if not key:
        raise UsageProblem("a property is KEY [VALUE]", hint=f"usage: {USAGE}")
    name = app_or_global(router, app, is_global=is_global, usage=USAGE)
    change(router, [property_event(TABLE, name, key, " ".join(values) or None)])


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


def show_config(
    router: Router,
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app.")] = None,
    is_template: Annotated[bool, typer.Option("--template", help="The shipped template instead: what an own one starts from.")] = False,
) -> None:
    """The server blocks of an app as the current generation has them.

    Example: router nginx:show-config blog
    """
    if is_template == (app is not None):
        raise UsageProblem("APP or --template, one of them", hint="usage: router apps:nginx:show-config APP | --template")
    if app is None:
        router.out.text((shipped("templates") / "vhost.conf.j2").read_text())
        return
    name = existing(router, app)
    index = router.index()
    entry = index.apps.get(name) if index else None
    if entry is None or entry.vhost is None:
        raise NotFound(f"app {name} has no server block: it has neither domains nor endpoints", hint=f"router apps:report {name}", app=name)
    router.out.text(router.generations.object(entry.vhost).decode(errors="surrogateescape"))


def validate(
    router: Router,
    apps: Annotated[list[str] | None, typer.Argument(metavar="APP", help="These apps; all of them without.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All apps.")] = False,
) -> None:
    """Let nginx judge what the directories of apps hold now, hand edits too; nothing is changed.

    What is wrong is said with app, file and line; the exit code is that of the first, by name (8: nginx rejects it).
    A template is tried on states that its app may come to, too.

    Example: router nginx:validate blog
    """
    if apps and is_all:
        raise UsageProblem("APP... or --all, one of them")
    names = sorted({existing(router, app) for app in apps}) if apps else router.store.names()
    found = router.judge(names)
    failed = {name: why for name, why in found.items() if why is not None}
    if router.out.is_json or router.out.key:
        rows = (
            {"app": name, "valid": why is None, "problem": why.message if why else None, "exit": why.exit_code if why else 0}
            for name, why in found.items()
        )
        router.out.report(("app", "valid", "problem", "exit"), rows, single=len(apps or ()) == 1)
    else:
        for why in failed.values():
            router.out.error(why)
        router.out.say(f"{len(found) - len(failed)} of {len(found)} valid")
    for _, why in sorted(failed.items()):
        raise SystemExit(why.exit_code)


def access_logs(router: Router, app: LogOf, follow: Follow = False, lines: Lines = 20) -> None:
    """The last lines of an app's access log; with -f also what comes, through rotations.

    Example: router nginx:access-logs blog -f
    """
    _show_log(router, app, "access", follow=follow, count=lines)


def error_logs(router: Router, app: LogOf, follow: Follow = False, lines: Lines = 20) -> None:
    """The last lines of an app's error log; with -f also what comes, through rotations.

    Example: router nginx:error-logs blog --lines 100
    """
    _show_log(router, app, "error", follow=follow, count=lines)


def _show_log(router: Router, app: str, kind: str, *, follow: bool, count: int) -> None:
    name = existing(router, app)
    values = computed(last_good(router, name)[0].nginx, router.settings().nginx)
    path = logs(name, str(router.paths.log), values)[f"{kind}_log"]
    if values[f"{kind}-log-path"] == "off":
        raise NotFound(f"the {kind} log of {name} is off", hint=f"router nginx:set {name} {kind}-log-path default", app=name)
    log = Log(Path(path))
    for line in _last(Path(path), log.offset, count):
        router.out.data(line)
    router.out.flush()
    while follow:
        fresh = list(log.lines())
        for line in fresh:
            router.out.data(line)
        if fresh:
            router.out.flush()
        time.sleep(0.2)


def _last(path: Path, end: int, count: int) -> list[str]:
    """The last lines of a file, of what stands before `end`."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        return []  # nobody has asked for the app yet
    with file:
        data, begin = b"", end
        while begin > 0 and data.count(b"\n") <= count:
            step = min(begin, 65536)
            begin -= step
            file.seek(begin)
            data = file.read(step) + data
    found = [line for line in data.decode(errors="replace").split("\n") if line]
    return found[-count:] if count else []


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    everywhere = router.settings().nginx
    for name in chosen(router, app):
        own = last_good(router, name)[0].nginx
        counts = computed(own, everywhere)
        row: dict[str, Any] = {"app": name}
        for key in PROPERTIES[TABLE]:
            row |= {key: own.get(key), f"global-{key}": everywhere.get(key), f"computed-{key}": counts[key]}
        yield row


def _global_row(router: Router) -> Iterator[dict[str, Any]]:
    everywhere = router.settings().nginx
    counts = computed({}, everywhere)
    row: dict[str, Any] = {}
    for key in PROPERTIES[TABLE]:
        row |= {f"global-{key}": everywhere.get(key), f"computed-{key}": counts[key]}
    yield row
