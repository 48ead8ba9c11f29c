"""Which plugins there are, in which order their hooks are called, and what they answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.arguments import existing, last_good
from nginx_router.errors import NotFound, UsageProblem, nearest
from nginx_router.hookspecs import HOOKS, lookup
from nginx_router.names import app_name

from .origins import origins

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.failures import Failed
    from nginx_router.plugins import Listed

SHORT = ("name", "version", "description", "state", "enabled", "built_in", "problem", "hooks", "commands")
KEYS = (*SHORT, "failed", "where", "source", "ref", "revision", "priority", "timeout", "config", "apps")
#: The hooks that are called for an app that is not there yet, or not any more.
_WITHOUT_APP = ("app-hostname", "pre-create", "post-destroy")


def list_plugins(router: Router) -> None:
    """Every plugin, one a line: on a terminal with version and state, else its name alone.

    The states are built-in, enabled, disabled, broken (it cannot be used) and failing (a hook failed when it was called last).
    Those that are not well are named on stderr, and why.

    Example: router plugins:list --format json
    """
    roster = router.plugins.roster()
    if router.out.is_json or router.out.key is not None:
        router.out.report(SHORT, (_in_short(router, each) for each in roster.values()), single=False)
        return
    if router.out.is_terminal:
        rows = [(name, each.plugin.version if each.plugin else "", _state(router, each)) for name, each in roster.items()]
        router.out.table(("name", "version", "state"), rows)
    else:
        router.out.listing(roster)
    for each in roster.values():
        if each.problem:
            router.out.say(f"plugin {each.name} is broken: {each.problem}")
        elif not each.is_enabled:
            router.out.say(f"plugin {each.name} is disabled")
        for failed in _failed(router, each)[:1]:
            router.out.say(f"plugin {each.name} is failing: {failed.what}")


def report(
    router: Router, name: Annotated[str | None, typer.Argument(metavar="NAME", help="The plugin; all that are installed without.")] = None
) -> None:
    """What is known of a plugin: where it came from, what it brings, what its keys are set to (`apps`: by apps of their own).

    `failed` are the calls of its hooks that failed and did not go well since, with its last words.
    Without NAME all that are not built in.

    Example: router plugins:report deploy-window --config
    """
    roster = router.plugins.roster()
    if name is not None and name not in roster:
        raise NotFound(f"there is no plugin '{name}'{nearest(name, roster)}", hint="router plugins:list")
    found = [roster[name]] if name else [each for each in roster.values() if not (each.plugin and each.plugin.is_built_in)]
    router.out.report(KEYS, (_about(router, each) for each in found), single=name is not None)


def hooks(
    router: Router,
    hook: Annotated[str | None, typer.Argument(metavar="HOOK", help="This hook; without it, every hook that a plugin has.")] = None,
) -> None:
    """Who is called for a hook, in the order of the calls: priority, plugin and where it is; without HOOK, the hook before them.

    Example: router plugins:hooks pre-deploy
    """
    found = {name: router.plugins.calls(name) for name in ([lookup(hook).name] if hook else HOOKS)}
    if router.out.is_json:
        calls = {
            name: [{"plugin": c.plugin.name, "priority": c.plugin.priority, "where": c.where} for c in each] for name, each in found.items()
        }
        router.out.json(
            [
                {"hook": name, "kind": HOOKS[name].kind, "plugins": [c["plugin"] for c in each], "calls": each}
                for name, each in calls.items()
            ]
        )
        return
    for name, calls in found.items():
        for call in calls:
            router.out.data(f"{'' if hook else f'{name} '}{call.plugin.priority} {call.plugin.name} {call.where}")


def trigger(
    router: Router,
    hook: Annotated[str, typer.Argument(metavar="HOOK", help="The hook.")],
    words: Annotated[
        list[str] | None, typer.Argument(metavar="ARGUMENT", help="What its executables get, as docs/hooks.md says: the app first, mostly.")
    ] = None,
    event: Annotated[str, typer.Option("--event", metavar="JSON", help="Further keys of the event, as one JSON object.")] = "{}",
) -> None:
    """Call a hook by hand, as a change would, and show what the plugins answer; nothing is done with the answers.

    A run hook is run: `scale` starts instances.

    Example: router plugins:trigger nginx-server-snippet blog
    """
    spec = lookup(hook)
    told = {"action": "trigger", "command": router.request.command, **spec.event(words or []), **_object(event)}
    if told.get("app") is not None:
        told["app"] = app_name(str(told["app"])) if hook in _WITHOUT_APP else existing(router, str(told["app"]))
    answers: list[tuple[str, str]] = []
    plugins = router.plugins
    if spec.kind in ("gate", "notify"):
        getattr(plugins, spec.kind)(hook, told)  # it says itself what they say
    elif spec.kind == "collect":
        answers = plugins.collect(hook, told)
    else:
        answer = plugins.first(hook, told) if spec.kind == "first" else plugins.run(hook, told)
        answers = [answer] if answer else []
    if router.out.is_json:
        router.out.json({"hook": hook, "called": plugins.order(hook), "answers": [{"plugin": p, "answer": text} for p, text in answers]})
        return
    if not plugins.order(hook):
        router.out.say(f"no plugin has the hook {hook}")
    for plugin, text in answers:
        router.out.say(f"{plugin}:")
        router.out.text(text)


def _object(text: str) -> dict[str, Any]:
    import json

    try:
        found = json.loads(text)
    except ValueError as why:
        raise UsageProblem(f"--event is not JSON: {why}") from None
    if not isinstance(found, dict):
        raise UsageProblem('--event is one JSON object, such as \'{"host": "db.internal"}\'')
    return found


def _failed(router: Router, listed: Listed) -> list[Failed]:
    return router.plugins.failed(listed.name, router.store.exists) if listed.is_enabled else []


def _state(router: Router, listed: Listed) -> str:
    if listed.problem:
        return "broken"
    if not listed.is_enabled:
        return "disabled"
    if _failed(router, listed):
        return "failing"
    return "built-in" if listed.plugin and listed.plugin.is_built_in else "enabled"


def _in_short(router: Router, listed: Listed) -> dict[str, Any]:
    plugin, name = listed.plugin, listed.name
    return {
        "name": name,
        "version": plugin.version if plugin else "",
        "description": plugin.description if plugin else "",
        "state": _state(router, listed),
        "enabled": listed.is_enabled,
        "built_in": bool(plugin and plugin.is_built_in),
        "problem": listed.problem,
        "hooks": router.plugins.hooks_of(name),
        "commands": sorted(plugin.commands) if plugin else [],
    }


def _about(router: Router, listed: Listed) -> dict[str, Any]:
    plugin, name = listed.plugin, listed.name
    origin = origins(router.paths.plugins).get(name)
    own = {app: last_good(router, app)[0].plugins.get(name) for app in router.store.names()}
    where = (plugin.package or plugin.directory) if plugin else router.paths.plugins / name
    return _in_short(router, listed) | {
        "failed": [vars(failed) for failed in _failed(router, listed)],
        "where": str(where),
        "source": origin.source if origin else None,
        "ref": origin.ref if origin else None,
        "revision": origin.commit if origin else None,
        "priority": plugin.priority if plugin else None,
        "timeout": plugin.timeout if plugin else None,
        "config": router.plugins.config(name),
        "apps": {app: dict(keys) for app, keys in own.items() if keys},
    }
