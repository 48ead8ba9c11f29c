"""Health checks of instances: how they are asked, who fails, and a look at once."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import health
from nginx_router.arguments import app_or_global, change, chosen, existing, last_good
from nginx_router.checks import verdict
from nginx_router.errors import ChecksFailed, NotFound, PluginBroken, UsageProblem, nearest
from nginx_router.events import Event
from nginx_router.keys import Keys, lookup, require_process
from nginx_router.model import App, Facts

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.names import Endpoint
    from nginx_router.probing import Found, Target

USAGE = "router apps:checks:set APP|--global [--process PROCESS] KEY [VALUE]"

Global = Annotated[bool, typer.Option("--global", help="The host: what holds for apps that do not set it.")]


def set_key(
    router: Router,
    words: Annotated[list[str], typer.Argument(metavar="[APP] KEY [VALUE]", help="The key; without VALUE it is unset.")],
    process: Annotated[str | None, typer.Option("--process", metavar="PROCESS", help="For this process of the app alone.")] = None,
    is_global: Global = False,
) -> None:
    """Set how the instances of an app are checked, or with --global of all apps; without VALUE unset it.

    The keys are path, interval, timeout, rise, fall, status and host. A deploy waits until each new instance has answered so; once
    path or interval is set, `router watch` goes on asking, takes instances out that fail and in again.

    Example: router checks:set blog path /health
    """
    app = None if is_global else words[0]
    key, *values = words if is_global else words[1:] or [""]
    if not key:
        raise UsageProblem("a check's setting is KEY [VALUE]", hint=f"usage: {USAGE}")
    name = app_or_global(router, app, is_global=is_global, usage=USAGE)
    keys = _keys(router)
    known = lookup(health.TABLE, keys, key)
    if process is not None:
        if is_global:
            raise UsageProblem("--process is of an app, and not of the host", hint=f"usage: {USAGE}")
        require_process(keys, process)
        if values and (there := router.app(name).processes) and process not in there:
            router.request.say(f"{name} has no process {process}, only {' '.join(there)}: this counts when it has")
    value = known.parse(" ".join(values)) if values else None
    change(router, [Event("plugin-key", name, {"table": health.TABLE, "key": key, "value": value, "process": process or ""})])


def report(
    router: Router,
    app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; without it all of them.")] = None,
    is_global: Global = False,
) -> None:
    """How the instances of an app, or of all, are checked: as set, as the host has it (global), and as it counts (computed); the
    processes with settings of their own, which processes `router watch` asks (checked), and what is wrong with an endpoint.

    Example: router checks:report blog --endpoints
    """
    if is_global and app is not None:
        raise UsageProblem("APP or --global, one of them", hint="usage: router apps:checks:report [APP | --global]")
    keys = _keys(router)
    forms = ("global-", "computed-") if is_global else ("", "global-", "computed-")
    names = [form + key for key in keys for form in forms]
    if is_global:
        router.out.report(names, iter([_of(keys, {}, "", _everywhere(router))]), single=True)
        return
    rows = (_row(router, keys, name) for name in chosen(router, app))
    router.out.report(["app", "checked", *names, "processes", "endpoints"], rows, single=app is not None)


def run(
    router: Router,
    app: Annotated[str, typer.Argument(metavar="APP", help="The app.")],
    process: Annotated[str | None, typer.Option("--process", metavar="PROCESS", help="This process alone.")] = None,
) -> None:
    """Ask each endpoint of an app once, now, as its checks say (a TCP connection, where they say nothing), and print what it answers.
    Exit 12 if one fails; nothing is changed.

    Example: router checks:run blog
    """
    name = existing(router, app)
    found = router.app(name)
    told: list[tuple[Endpoint, Target, Found]] = []

    def rows() -> Iterator[dict[str, Any]]:
        told.extend(_asked(router, found, process))
        yield from ({"process": e.process, "address": e.address.text, **_answer(answer)} for e, _, answer in told)

    if router.out.is_json or router.out.key is not None:
        router.out.report(("process", "address", "ok", "answer", "seconds"), rows(), single=False)
    else:
        told.extend(_asked(router, found, process))
        for endpoint, _, answer in told:
            router.out.data(f"{endpoint.bare}: {answer.text}" + (f" ({answer.seconds * 1000:.0f} ms)" if answer.passed else ""))
    failed = [each for each in told if not each[2].passed]
    if failed:
        (first, target, answer), *others = failed
        reasons = [(first.address.text, answer.text), *((e.bare, a.text) for e, _, a in others)]
        what = verdict(name, str(target.settings), reasons)
        raise ChecksFailed(what, hint=f"how it is asked: router checks:report {name}", app=name)


def _keys(router: Router) -> Keys:
    tables = router.tables()
    keys = tables.get(health.TABLE) if isinstance(tables, Mapping) else None
    if not keys:
        raise PluginBroken(f"plugin {health.TABLE} cannot be used", hint=f"router plugins:list; router plugins:enable {health.TABLE}")
    return keys


def _everywhere(router: Router) -> Mapping[str, Any]:
    return router.settings().plugins.get(health.TABLE, {})


def _of(keys: Keys, table: Mapping[str, Any], process: str, everywhere: Mapping[str, Any]) -> dict[str, Any]:
    """Of each key: as set, as the host has it, and as it counts."""
    own = table.get(process) if process else table
    own = own if isinstance(own, Mapping) else {}
    counts = health.words_of(keys, table, process, everywhere)
    counts["interval"] = health.interval_of(counts)
    row: dict[str, Any] = {}
    for name, key in keys.items():
        row |= {name: own.get(name), f"global-{name}": everywhere.get(name), f"computed-{name}": counts.get(name, key.default)}
    return row


def _row(router: Router, keys: Keys, name: str) -> dict[str, Any]:
    app, _ = last_good(router, name)
    facts = _served(router, name)
    table = app.plugins.get(health.TABLE, {})
    settings = {p: health.settings_of(router.tables(), app, p, router.settings().plugins) for p in app.processes}
    own = [p for p, values in table.items() if p not in keys and isinstance(values, Mapping)]
    row = {"app": name, "checked": [p for p, found in settings.items() if found is not None and found.interval is not None]}
    row |= _of(keys, table, "", _everywhere(router))
    row["processes"] = {p: {key: _of(keys, table, p, _everywhere(router))[f"computed-{key}"] for key in keys} for p in own}
    row["endpoints"] = [_endpoint(app, e, facts) for e in app.endpoints]
    return row


def _endpoint(app: App, endpoint: Endpoint, facts: Facts) -> dict[str, Any]:
    state, problem = health.seen(app, endpoint, facts)
    return {"process": endpoint.process, "address": endpoint.address.text, "state": state, "problem": problem}


def _served(router: Router, name: str) -> Facts:
    index = router.index()
    entry = index.apps.get(name) if index else None
    return router.generations.app_state(entry)[1] if entry else Facts()


def _asked(router: Router, app: App, process: str | None) -> list[tuple[Endpoint, Target, Found]]:
    from nginx_router.probing import ask_once

    targets = list(_targets(router, app, process))
    answers = ask_once(target for _, target in targets)
    return [(endpoint, target, answers[target.key]) for endpoint, target in targets]


def _targets(router: Router, app: App, process: str | None) -> Iterator[tuple[Endpoint, Target]]:
    """The endpoints that get requests, and how each is asked.

    Raises:
        NotFound: there is no such process.
    """
    from nginx_router.probing import Target, places
    from nginx_router.resolving import look_up

    if process is not None and process not in app.processes:
        raise NotFound(f"app {app.name} has no process '{process}'{nearest(process, app.processes)}", app=app.name)
    chosen_ones = [e for e in app.endpoints if process in (None, e.process) and e.state == "active"]
    served = _served(router, app.name).resolved
    hosts = {e.address.host for e in chosen_ones if not e.address.is_literal}
    facts = Facts(resolved={**look_up(sorted(hosts - {*served})), **served})
    for endpoint in chosen_ones:
        settings = health.settings_of(router.tables(), app, endpoint.process, router.settings().plugins) or health.Settings()
        yield endpoint, Target((app.name, endpoint.bare), endpoint.address, places(endpoint, facts), settings)


def _answer(found: Found) -> dict[str, Any]:
    return {"ok": found.passed, "answer": found.text, "seconds": round(found.seconds, 3)}
