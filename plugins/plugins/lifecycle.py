"""The life of a plugin: install, update, switch on and off, configure, remove.

What is put in its place was looked at before: one that cannot be used, or that an app could not be served with, never gets in
(`switching`).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import canaries, interrupts
from nginx_router.arguments import existing
from nginx_router.discovery import Plugin, Unusable, disabled, read
from nginx_router.errors import Conflict, NotFound, PluginBroken, RouterError, UsageProblem, nearest
from nginx_router.events import Event
from nginx_router.keys import check_table, lookup
from nginx_router.model import APP_TOML
from nginx_router.names import shown

from .fetching import Staged, digest, exchange, staged
from .origins import Origin, origins, remember
from .switching import Step, Switched, alone, enabled, moved, name_left_out, remembered, shapes, switch, tell, together

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.plugins import Listed, Plugins

Name = Annotated[str, typer.Argument(metavar="NAME", help="The plugin.")]
Ref = Annotated[str | None, typer.Option("--ref", metavar="REF", help="A branch, tag or commit of the repository.")]
Force = Annotated[bool, typer.Option("--force", help="Even if an app cannot go along: that one stays as it was, and is named.")]


def install(
    router: Router,
    source: Annotated[str, typer.Argument(metavar="PATH|GIT-URL", help="A directory, or what git clones.")],
    ref: Ref = None,
    force: Force = False,
) -> None:
    """Install a plugin from a directory or by git (https, ssh, a path), switched on; its name stands in its plugin.toml.

    Installing runs its code. Every app's snippets and templates are asked anew; if one app cannot be served with them, nothing
    is installed.

    Example: router plugins:install ./deploy-window
    """
    with alone(router), staged(router.paths.plugins, source, ref) as new:
        plugin = _read(new)
        name, place = plugin.name, router.paths.plugins / plugin.name
        taken = router.plugins.roster().get(name)
        if taken is not None or os.path.lexists(place):
            is_built_in = bool(taken and taken.plugin and taken.plugin.is_built_in)
            what = "is built in" if is_built_in else "is installed already"
            raise Conflict(f"plugin {name} {what}", hint="give yours another name" if is_built_in else f"router plugins:update {name}")
        new = _named(new, name)
        off = disabled(router.paths.plugins) - {name}
        _require_usable(router, router.plugins.supposing({name: new.directory}, off), name, new)
        steps = [remembered(router, name, new.origin), moved(new.directory, place), enabled(router, name, True)]
        result = switch(router, "installed", name, steps, {name: new.directory}, off, force=force)
    tell(router, [result], "installed")


def update(
    router: Router,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The plugin; all that were installed by a command without.")] = None,
    ref: Ref = None,
    force: Force = False,
) -> None:
    """Fetch plugins anew from where they were installed from.

    One whose new version cannot be used, or that an app could not be served with, stays as it is; of several the others are
    updated all the same.

    Example: router plugins:update deploy-window --ref v2
    """
    if name is None and ref is not None:
        raise UsageProblem("--ref is of one plugin", hint="usage: router plugins:update NAME --ref REF")
    with alone(router):
        known = {each: origin for each, origin in origins(router.paths.plugins).items() if (router.paths.plugins / each).is_dir()}
        if name is not None and name not in known:
            _listed(router, name)
            raise UsageProblem(f"plugin {name} was not installed by a command", hint="router plugins:install PATH|GIT-URL")
        failed: RouterError | None = None
        results: list[Switched] = []
        for each in [name] if name else sorted(known):
            if interrupts.came():  # behind the first that was updated none ends this
                router.out.say(f"interrupted: {each} and those behind it were not looked at")
                break
            try:
                result = _update(router, each, known[each], ref, force)
            except RouterError as why:
                if name is not None:
                    raise
                failed = failed or why
                router.out.error(why)
            else:
                results += [result] if result else []
    if results or router.out.is_json:
        tell(router, results, "updated")
    if failed is not None:
        raise SystemExit(failed.exit_code)  # it was said


def enable(router: Router, name: Name, force: Force = False) -> None:
    """Switch a plugin on again; it must be usable, and every app, whose snippets and templates are asked anew, able to have it.

    Example: router plugins:enable deploy-window
    """
    with alone(router):
        if _listed(router, name).is_enabled:
            return router.out.say(f"plugin {name} is enabled already")
        off = disabled(router.paths.plugins) - {name}
        _require_usable(router, router.plugins.supposing({}, off), name)
        result = switch(router, "enabled", name, [enabled(router, name, True)], {}, off, force=force)
    return tell(router, [result], "enabled")


def disable(router: Router, name: Name, force: Force = False) -> None:
    """Switch a plugin off: none of its hooks and commands is called. Its files, data and settings stay.

    If an app cannot be served without it (a template that it brings), it stays on.

    Example: router plugins:disable deploy-window
    """
    with alone(router):
        listed = _listed(router, name)
        _refuse_built_in(listed, "disabled")
        if not listed.is_enabled:
            return router.out.say(f"plugin {name} is disabled already")
        off = disabled(router.paths.plugins) | {name}
        result = switch(router, "disabled", name, [enabled(router, name, False)], {}, off, force=force)
    return tell(router, [result], "disabled")


def uninstall(
    router: Router,
    name: Name,
    purge: Annotated[bool, typer.Option("--purge", help="Its data and its settings too, of the host and of every app.")] = False,
    force: Force = False,
) -> None:
    """Remove a plugin; what it keeps in data/NAME and its keys in router.toml and app.toml stay, for the next time.

    If an app cannot be served without it (a template that it brings), it stays.

    Example: router plugins:uninstall deploy-window --purge
    """
    with alone(router):
        listed = _listed(router, name)
        _refuse_built_in(listed, "uninstalled")
        if listed.plugin and listed.plugin.package:
            raise UsageProblem(
                f"plugin {name} is a Python package: {listed.plugin.package}", hint=f"uninstall that, or: router plugins:disable {name}"
            )
        directory = (listed.plugin and listed.plugin.directory) or router.paths.plugins / name
        data = router.paths.root / "data" / name
        gone = directory.with_name(f".new-0-{directory.name}")  # swept by the next who installs, if we are killed
        tables = _tables(router, name)
        if tables:
            data.mkdir(parents=True, exist_ok=True)  # by it the name stays known: its keys are no slip of somebody's

        def clean() -> None:
            for path in (gone, data) if purge else (gone,):
                if path.is_symlink():
                    path.unlink()
                else:
                    shutil.rmtree(path, ignore_errors=True)

        cleared = [Event("plugin-key", app, {"table": name, "key": None, "value": None}) for app in tables] if purge else []
        steps = [moved(directory, gone), enabled(router, name, True), remembered(router, name, None)]
        off = disabled(router.paths.plugins) - {name}
        result = switch(router, "uninstalled", name, steps, {directory.name: None}, off, before=cleared, finish=clean, force=force)
    tell(router, [result], "uninstalled")


def set_key(
    router: Router,
    name: Name,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key: one of its plugin.toml, if that has any.")],
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Of the type that the key has; without it the key is unset.")] = None,
    app: Annotated[str | None, typer.Option("--app", metavar="APP", help="For this app alone.")] = None,
) -> None:
    """Set a key of a plugin in router.toml, or in the app.toml of an app; without VALUE unset it. The app's value counts first.

    Of the host it is set when every app goes along, or not at all.

    Example: router plugins:set deploy-window until 17 --app blog
    """
    listed = _listed(router, name)
    if listed.plugin is None or listed.problem:
        raise PluginBroken(f"plugin {name} is broken: {listed.problem or 'its plugin.toml cannot be read'}")
    if listed.plugin.is_built_in and not listed.plugin.keys:
        raise UsageProblem(f"plugin {name} is built in and has no keys", hint=f"router help {name}")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", key):
        raise UsageProblem(f"{shown(key)} is no key: letters, digits, _ and -")
    found = lookup(name, listed.plugin.keys, key) if value is not None or key in listed.plugin.keys or app is None else None
    parsed = found.parse(value) if found and value is not None else None
    target = None if app is None else existing(router, app)
    if target is None and name == canaries.TABLE and key in canaries.KEYS and value is not None:
        raise UsageProblem(f"{key} says something of one app's endpoints: the host has none", hint="router apps:traffic:set APP SHARE")
    event = Event("plugin-key", target, {"table": name, "key": key, "value": parsed})
    if target is None and _now(router, name).get(key) != parsed and shapes(router.plugins.hooks_of(name)):
        result = together(router, event)
        name_left_out(router, result.left_out)
        return router.out.changed(result.outcomes, single=False)
    return router.out.changed(router.change([event]))


def _listed(router: Router, name: str) -> Listed:
    roster = router.plugins.roster()
    if name not in roster:
        raise NotFound(f"there is no plugin {shown(name)}{nearest(name, roster)}", hint="router plugins:list")
    return roster[name]


def _refuse_built_in(listed: Listed, what: str) -> None:
    if listed.plugin and listed.plugin.is_built_in:
        raise UsageProblem(f"plugin {listed.name} is built in and cannot be {what}")


def _read(new: Staged) -> Plugin:
    try:
        return read(new.directory)
    except Unusable as why:
        raise PluginBroken(new.named(str(why))) from None


def _named(new: Staged, name: str) -> Staged:
    directory = new.directory.with_name(name)
    return Staged(new.directory.rename(directory), new.origin) if directory != new.directory else new


def _require_usable(router: Router, supposed: Plugins, name: str, new: Staged | None = None) -> None:
    """Make sure that a plugin would work where it is supposed to be: its hooks, its commands, and the settings that it has already.

    Raises:
        PluginBroken: it would not; why.
        UsageProblem: a setting is not what it takes.
    """
    try:
        listed = supposed.roster().get(name)
        if listed is None or listed.problem or listed.plugin is None:
            raise PluginBroken(f"plugin {name} cannot be used: {listed.problem if listed else 'it is not there'}")
        for command in listed.plugin.commands.values():
            if command.is_python:
                supposed.function(command)
            elif listed.plugin.directory is not None:
                supposed.executable(command)
    except PluginBroken as why:
        why.message = new.named(why.message) if new else why.message
        raise
    for app, table in _tables(router, name).items():
        file = f"apps/{app}/{APP_TOML}" if app else "router.toml"

        def at(key: str, what: str, *, within: str = "", file: str = file, option: str = f" --app {app}" if app else "") -> UsageProblem:
            if within not in ("", name):  # of a process: no command unsets it
                return UsageProblem(f"{file}: [{within}]: {what}")
            return UsageProblem(f"{file}: {what}", hint=f"router plugins:set {name} {key}{option}")

        check_table(name, listed.plugin.keys, table, at)


def _tables(router: Router, name: str) -> dict[str | None, Mapping[str, Any]]:
    """What stands in the table of a plugin: of the host (None) and of apps."""
    found: dict[str | None, Mapping[str, Any]] = {None: _now(router, name)}
    found.update({app: router.plugins.app_settings(app).get(name, {}) for app in router.store.names()})
    return {app: table for app, table in found.items() if table}


def _now(router: Router, name: str) -> Mapping[str, Any]:
    return router.plugins.host_settings().get(name, {})


def _update(router: Router, name: str, origin: Origin, ref: str | None, force: bool) -> Switched | None:
    """Put the newest version of a plugin in its place; None: it is there."""
    place, off = router.paths.plugins / name, disabled(router.paths.plugins)
    with staged(router.paths.plugins, origin.source, ref or origin.ref) as new:
        plugin = _read(new)
        if plugin.name != name:
            raise PluginBroken(f"plugin {name}: its new version is called {plugin.name}", hint="uninstall it, then install that")
        new = _named(new, name)
        if digest(new.directory) == digest(place):
            if not router.request.dry_run:
                remember(router.paths.plugins, {name: new.origin})
            router.out.say(f"plugin {name} is as it was")
            return None
        _require_usable(router, router.plugins.supposing({name: new.directory}, off - {name}), name, new)

        def swap() -> None:
            exchange(new.directory, place)

        return switch(
            router, "updated", name, [remembered(router, name, new.origin), Step(swap, swap)], {name: new.directory}, off, force=force
        )
