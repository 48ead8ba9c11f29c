"""The nginx properties of apps, and the configuration that was made of everything."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; without it all of them.")] = None,
    is_global: Global = False,
) -> None:
    """The nginx properties of an app, of all, or of the host: as set, as the host has them (global), and as they count (computed).

    On a terminal a property is one line: what counts, and where that comes from if it is not the default.

    Example: router nginx:report blog --computed-client-max-body-size
    """
    if is_global and app is not None:
        raise UsageProblem("APP or --global, one of them", hint="usage: router apps:nginx:report [APP | --global]")
    rows = _global_row(router) if is_global else _rows(router, app)
    if router.out.is_terminal and not router.out.is_json and router.out.key is None:
        router.out.facts(fact for row in rows for fact in _in_short(row))
        return
    forms = ("global-", "computed-") if is_global else ("", "global-", "computed-")
    keys = [form + name for name in PROPERTIES[TABLE] for form in forms]
    router.out.report(keys if is_global else ["app", *keys], rows, single=is_global or app is not None)


def show_config(
    router: Router,
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app.")] = None,
    includes: Annotated[bool, typer.Option("--includes", help="With the text of each snippet, where it is included.")] = False,
    is_template: Annotated[bool, typer.Option("--template", help="The shipped template instead: what an own one starts from.")] = False,
) -> None:
    """The server blocks of an app as the current generation has them.

    Example: router nginx:show-config blog --includes
    """
    if is_template == (app is not None) or (is_template and includes):
        raise UsageProblem("APP or --template, one of them", hint="usage: router apps:nginx:show-config APP [--includes] | --template")
    if app is None:
        router.out.text((shipped("templates") / "vhost.conf.j2").read_text())
        return
    name = existing(router, app)
    index = router.index()
    entry = index.apps.get(name) if index else None
    if entry is None or entry.vhost is None:
        raise NotFound(f"app {name} has no server block: it has neither domains nor endpoints", hint=f"router apps:report {name}", app=name)
    lines = _object(router, entry.vhost)
    router.out.text("\n".join(_with_includes(router, lines, entry.objects) if includes else lines))


def validate(
    router: Router,
    apps: Annotated[list[str] | None, typer.Argument(metavar="APP", help="These apps; if none is named, all of them.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All apps.")] = False,
) -> None:
    """Let nginx check what the directories of apps hold now, hand edits too; nothing is changed.

    What is wrong is said with app, file and line; the exit code is that of the first, by name (8: nginx rejects it).
    An own template is also tried without endpoints, with one and with several processes.

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


def _object(router: Router, sha: str) -> list[str]:
    return router.generations.object(sha).decode(errors="surrogateescape").removesuffix("\n").split("\n")


def _with_includes(router: Router, lines: Iterable[str], objects: Sequence[str]) -> Iterator[str]:
    """What nginx reads, in one piece: an include is a comment, and what it includes follows."""
    for line in lines:
        words = line.strip()
        sha = next((sha for sha in objects if words.startswith("include ") and f"/{sha}" in words.partition(";")[0]), None)
        if sha is None:
            yield line
            continue
        indent = line[: len(line) - len(line.lstrip())]
        yield f"{indent}# {words}"
        # not indented: a text in quotes may go over several lines
        yield from _object(router, sha)
        yield f"{indent}# end of {words.partition('# ')[2] or sha}"


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


def _in_short(row: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """For a person: what counts, and where it comes from."""
    if "app" in row:
        yield "app", row["app"]
    for key in PROPERTIES[TABLE]:
        own, everywhere, counts = row.get(key), row[f"global-{key}"], row[f"computed-{key}"]
        if own is not None:
            origin = "(set)" if everywhere is None else f"(set; global: {everywhere})"
        else:
            origin = "" if everywhere is None else "(global)"
        yield key, f"{'' if counts is None else counts} {origin}".strip()


def _global_row(router: Router) -> Iterator[dict[str, Any]]:
    everywhere = router.settings().nginx
    counts = computed({}, everywhere)
    row: dict[str, Any] = {}
    for key in PROPERTIES[TABLE]:
        row |= {f"global-{key}": everywhere.get(key), f"computed-{key}": counts[key]}
    yield row
