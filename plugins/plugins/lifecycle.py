"""The life of a plugin: install, update, switch on and off, configure, remove.

A plugin takes or leaves its place by one rename, under the host lock and after it was looked at there (`supposing`): one
that cannot be used never gets in.  What the apps' configuration keeps of it is asked anew afterwards, app by app; an app
that cannot have it stays served as it was and is named.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.arguments import existing
from nginx_router.asking import FACTS
from nginx_router.discovery import DISABLED, Plugin, Unusable, disabled, read
from nginx_router.errors import Conflict, NotFound, PluginBroken, RouterError, UsageProblem, nearest
from nginx_router.events import Event
from nginx_router.files import write_atomic
from nginx_router.keys import check_table, lookup
from nginx_router.model import APP_TOML
from nginx_router.names import shown

from .fetching import Staged, digest, exchange, staged
from .origins import Origin, origins, remember

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.plugins import Listed, Plugins

Name = Annotated[str, typer.Argument(metavar="NAME", help="The plugin.")]
Ref = Annotated[str | None, typer.Option("--ref", metavar="REF", help="A branch, tag or commit of the repository.")]


def install(
    router: Router, source: Annotated[str, typer.Argument(metavar="PATH|GIT-URL", help="A directory, or what git clones.")], ref: Ref = None
) -> None:
    """Install a plugin from a directory or by git (https, ssh, a path), switched on; its name stands in its plugin.toml.

    Installing runs its code. Every app's snippets and templates are asked anew; an app that cannot have them is named and
    stays as it was.

    Example: router plugins:install ./deploy-window
    """
    with staged(router.paths.plugins, source, ref) as new:
        plugin = _read(new, source)
        name = plugin.name
        taken = router.plugins.roster().get(name)
        if taken is not None or (router.paths.plugins / name).exists():
            is_built_in = bool(taken and taken.plugin and taken.plugin.is_built_in)
            what = "is built in" if is_built_in else "is installed already"
            raise Conflict(f"plugin {name} {what}", hint="give yours another name" if is_built_in else f"router plugins:update {name}")
        directory = _named(new, name)
        off = disabled(router.paths.plugins) - {name}
        supposed = router.plugins.supposing({name: directory}, off)
        _require_usable(router, supposed, name)

        def place() -> None:
            directory.rename(router.paths.plugins / name)
            _write_disabled(router, off)
            remember(router.paths.plugins, {name: new.origin})

        _switch(router, "installed", [name], supposed, place, supposed)


def update(
    router: Router,
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="The plugin; all that were installed by a command without.")] = None,
    ref: Ref = None,
) -> None:
    """Fetch plugins anew from where they were installed from; one whose new version cannot be used stays as it is.

    Example: router plugins:update deploy-window --ref v2
    """
    known = {each: origin for each, origin in origins(router.paths.plugins).items() if (router.paths.plugins / each).is_dir()}
    if name is None and ref is not None:
        raise UsageProblem("--ref is of one plugin", hint="usage: router plugins:update NAME --ref REF")
    if name is not None and name not in known:
        _listed(router, name)
        raise UsageProblem(f"plugin {name} was not installed by a command", hint="router plugins:install PATH|GIT-URL")
    failed: RouterError | None = None
    with contextlib.ExitStack() as stack:
        new: dict[str, tuple[Path, Origin]] = {}
        for each in [name] if name else sorted(known):
            try:
                found = stack.enter_context(_newer(router, each, known[each], ref))
            except RouterError as why:
                if name is not None:
                    raise
                failed = failed or why
                router.out.error(why)
                continue
            if found is None:
                router.out.say(f"plugin {each} is as it was")
            else:
                new[each] = found
        off = disabled(router.paths.plugins)
        supposed = router.plugins.supposing({each: directory for each, (directory, _) in new.items()}, off)

        def place() -> None:
            for each, (directory, _) in new.items():
                exchange(directory, router.paths.plugins / each)
            remember(router.paths.plugins, {each: origin for each, (_, origin) in new.items()})

        if new or router.out.is_json:
            _switch(router, "updated", sorted(new), supposed, place, supposed, router.plugins)
    if failed is not None:
        raise SystemExit(failed.exit_code)  # it was said


def enable(router: Router, name: Name) -> None:
    """Switch a plugin on again; it must be usable. Every app's snippets and templates are asked anew.

    Example: router plugins:enable deploy-window
    """
    if _listed(router, name).is_enabled:
        return router.out.say(f"plugin {name} is enabled already")
    off = disabled(router.paths.plugins) - {name}
    supposed = router.plugins.supposing({}, off)
    _require_usable(router, supposed, name)
    return _switch(router, "enabled", [name], supposed, lambda: _write_disabled(router, off), supposed)


def disable(router: Router, name: Name) -> None:
    """Switch a plugin off: none of its hooks and commands is called. Its files, data and settings stay.

    Example: router plugins:disable deploy-window
    """
    listed = _listed(router, name)
    _refuse_built_in(listed, "disabled")
    if not listed.is_enabled:
        return router.out.say(f"plugin {name} is disabled already")
    off = disabled(router.paths.plugins) | {name}
    supposed = router.plugins.supposing({}, off)
    return _switch(router, "disabled", [name], supposed, lambda: _write_disabled(router, off), router.plugins)


def uninstall(
    router: Router,
    name: Name,
    purge: Annotated[bool, typer.Option("--purge", help="Its data and its settings too, of the host and of every app.")] = False,
) -> None:
    """Remove a plugin; what it keeps in data/NAME and its keys in router.toml and app.toml stay, for the next time.

    Example: router plugins:uninstall deploy-window --purge
    """
    listed = _listed(router, name)
    _refuse_built_in(listed, "uninstalled")
    if listed.plugin and listed.plugin.package:
        raise UsageProblem(
            f"plugin {name} is a Python package: {listed.plugin.package}", hint=f"uninstall that, or: router plugins:disable {name}"
        )
    directory = (listed.plugin and listed.plugin.directory) or router.paths.plugins / name
    off = disabled(router.paths.plugins) - {name}
    supposed = router.plugins.supposing({directory.name: None}, off)
    data = router.paths.root / "data" / name
    gone = directory.with_name(f".new-0-{directory.name}")  # swept by the next who installs, if we are killed

    def place() -> None:
        if _tables(router, name):
            data.mkdir(parents=True, exist_ok=True)  # by it the name stays known: its keys are no slip of somebody's
        directory.rename(gone)
        _write_disabled(router, off)
        remember(router.paths.plugins, {name: None})

    def clean() -> None:
        for path in (gone, data) if purge else (gone,):
            if path.is_symlink():
                path.unlink()
            else:
                shutil.rmtree(path, ignore_errors=True)

    cleared = [Event("plugin-key", app, {"table": name, "key": None, "value": None}) for app in _tables(router, name)] if purge else []
    _switch(router, "uninstalled", [name], supposed, place, router.plugins, before=cleared, finish=clean)


def set_key(
    router: Router,
    name: Name,
    key: Annotated[str, typer.Argument(metavar="KEY", help="The key: one of its plugin.toml, if that has any.")],
    value: Annotated[str | None, typer.Argument(metavar="VALUE", help="Of the type that the key has; without it the key is unset.")] = None,
    app: Annotated[str | None, typer.Option("--app", metavar="APP", help="For this app alone.")] = None,
) -> None:
    """Set a key of a plugin in router.toml, or in the app.toml of an app; without VALUE unset it. The app's value counts first.

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
    events = [Event("plugin-key", target, {"table": name, "key": key, "value": parsed})]
    if target is None and _now(router, name).get(key) != parsed and _shapes(router.plugins.hooks_of(name), listed.plugin):
        return router.out.changed(router.change([*events, *_asked_anew(router)], independent=True), single=False)
    return router.out.changed(router.change(events))


def _switch(
    router: Router,
    done: str,
    names: Sequence[str],
    supposed: Plugins,
    place: Callable[[], None],
    *having: Plugins,
    before: Sequence[Event] = (),
    finish: Callable[[], None] = lambda: None,
) -> None:
    """Put the plugins in, or out of, their place, and ask every app anew; `having` are those in which the plugins' hooks are seen."""
    began = time.monotonic()
    about: list[dict[str, Any]] = [_brings(having[0], name) for name in names]
    asks = any(each.roster()[name].problem or _shapes(each.hooks_of(name), each.roster()[name].plugin) for each in having for name in names)
    if router.request.dry_run:
        router.plugins = supposed
    else:
        with router.locked():
            place()
        router.rediscover()
    for each in about:
        brought = [f"{kind} {' '.join(each[kind])}" for kind in ("hooks", "commands") if each[kind]]
        dry = "would be " if router.request.dry_run else ""
        router.out.say(
            f"plugin {each['name']}{each['version'] and ' '}{each['version']} {dry}{done}: {', '.join(brought) or 'no hooks, no commands'}"
        )
    cleared = {event.app for event in before}
    events = [*before, *(e for e in _asked_anew(router) if asks and e.app not in cleared)]
    try:
        outcomes = router.change(events, independent=True) if events else []
    except RouterError as why:
        if not router.request.dry_run:
            why.message, why.hint = f"{' '.join(names)}: {done}, but apps were not asked anew: {why.message}", "router reconcile --all"
        raise
    finally:
        if not router.request.dry_run:
            finish()
    if not events:
        router.out.say("dry run, nothing was changed" if router.request.dry_run else "no app's configuration depends on it")
        if not router.request.dry_run:
            router.record(began)
    if outcomes or router.out.is_json:
        router.out.changed(outcomes, about={"plugins": about, "done": done})


def _asked_anew(router: Router) -> list[Event]:
    return [Event("take-up", app, {"may_be_gone": True}) for app in router.store.names()]


def _shapes(hooks: Iterable[str], plugin: Plugin | None) -> bool:
    """Whether apps' configuration keeps anything of it."""
    return any(hook in FACTS for hook in hooks)


def _brings(plugins: Plugins, name: str) -> dict[str, Any]:
    plugin = plugins.roster()[name].plugin
    return {
        "name": name,
        "version": plugin.version if plugin else "",
        "hooks": plugins.hooks_of(name),
        "commands": sorted(plugin.commands) if plugin else [],
    }


def _listed(router: Router, name: str) -> Listed:
    roster = router.plugins.roster()
    if name not in roster:
        raise NotFound(f"there is no plugin {shown(name)}{nearest(name, roster)}", hint="router plugins:list")
    return roster[name]


def _refuse_built_in(listed: Listed, what: str) -> None:
    if listed.plugin and listed.plugin.is_built_in:
        raise UsageProblem(f"plugin {listed.name} is built in and cannot be {what}")


def _read(new: Staged, source: str) -> Plugin:
    try:
        return read(new.directory)
    except Unusable as why:
        raise PluginBroken(str(why).replace(str(new.directory), source)) from None


def _named(new: Staged, name: str) -> Path:
    directory = new.directory.with_name(name)
    return new.directory.rename(directory) if directory != new.directory else directory


def _require_usable(router: Router, supposed: Plugins, name: str) -> None:
    """Make sure that a plugin would work where it is supposed to be: its hooks, its commands, and the settings that it has already.

    Raises:
        PluginBroken: it would not; why.
        UsageProblem: a setting is not what it takes.
    """
    listed = supposed.roster().get(name)
    if listed is None or listed.problem or listed.plugin is None:
        raise PluginBroken(f"plugin {name} cannot be used: {listed.problem if listed else 'it is not there'}")
    for command in listed.plugin.commands.values():
        if command.is_python:
            supposed.function(command)
        elif listed.plugin.directory is not None:
            supposed.executable(command)
    for app, table in _tables(router, name).items():
        file = f"apps/{app}/{APP_TOML}" if app else "router.toml"

        def at(key: str, what: str, file: str = file, option: str = f" --app {app}" if app else "") -> UsageProblem:
            return UsageProblem(f"{file}: {what}", hint=f"router plugins:set {name} {key}{option}")

        check_table(name, listed.plugin.keys, table, at)


def _tables(router: Router, name: str) -> dict[str | None, Mapping[str, Any]]:
    """What stands in the table of a plugin: of the host (None) and of apps."""
    found: dict[str | None, Mapping[str, Any]] = {None: _now(router, name)}
    found.update({app: router.plugins.app_settings(app).get(name, {}) for app in router.store.names()})
    return {app: table for app, table in found.items() if table}


def _now(router: Router, name: str) -> Mapping[str, Any]:
    return router.plugins.host_settings().get(name, {})


def _newer(router: Router, name: str, origin: Origin, ref: str | None) -> contextlib.AbstractContextManager[tuple[Path, Origin] | None]:
    @contextlib.contextmanager
    def fetch() -> Any:
        with staged(router.paths.plugins, origin.source, ref or origin.ref) as new:
            plugin = _read(new, origin.source)
            if plugin.name != name:
                raise PluginBroken(f"plugin {name}: its new version is called {plugin.name}", hint="uninstall it, then install that")
            directory = _named(new, name)
            if digest(directory) == digest(router.paths.plugins / name):
                remember(router.paths.plugins, {name: new.origin})
                yield None
                return
            _require_usable(router, router.plugins.supposing({name: directory}, disabled(router.paths.plugins) - {name}), name)
            yield directory, new.origin

    return fetch()


def _write_disabled(router: Router, names: frozenset[str]) -> None:
    if names != disabled(router.paths.plugins):
        write_atomic(router.paths.plugins / DISABLED, "".join(f"{name}\n" for name in sorted(names)).encode())
