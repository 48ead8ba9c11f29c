"""Which plugins there are, and in which order their hooks are called."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router.hookspecs import HOOKS, lookup

if TYPE_CHECKING:
    from nginx_router.controller import Router


def list_plugins(router: Router) -> None:
    """Every plugin, one a line; a broken one is named on stderr, and why.

    Example: router plugins:list --format json
    """
    broken = router.plugins.broken(all=True)
    commands = router.plugins.commands(all=True).values()
    names = router.plugins.names()
    if router.out.is_json:
        router.out.json(
            [
                {
                    "name": name,
                    "problem": broken.get(name),
                    "commands": sorted(c.name for c in commands if c.plugin == name),
                    "hooks": [hook for hook in HOOKS if name in router.plugins.order(hook)],
                }
                for name in names
            ]
        )
        return
    for name in names:
        router.out.data(name)
    for name, why in sorted(broken.items()):
        router.out.say(f"plugin {name} is broken: {why}")


def hooks(
    router: Router,
    hook: Annotated[str | None, typer.Argument(metavar="HOOK", help="This hook; without it, every hook that a plugin has.")] = None,
) -> None:
    """Which plugins are called for a hook, in the order of the calls, one a line; without HOOK: hook and plugin.

    Example: router plugins:hooks pre-deploy
    """
    found = {name: router.plugins.order(name) for name in ([lookup(hook).name] if hook else HOOKS)}
    if router.out.is_json:
        router.out.json([{"hook": name, "plugins": plugins} for name, plugins in found.items()])
        return
    for name, plugins in found.items():
        for plugin in plugins:
            router.out.data(plugin if hook else f"{name} {plugin}")
