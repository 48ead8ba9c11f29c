"""The rules by which hooks are called: who is asked, in which order, and what a failure means.

Implementations are called one at a time and not by pluggy, because each kind of hook has its own rule for a failure and the
person must hear which plugin it was.  A plugin that cannot be used is named once and left out; but a vhost without what such
a plugin is known to bring (an access rule, say) would be wrong, so that a collect hook that it has fails.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from . import discovery, interrupts
from .calls import Calls, Tables
from .discovery import Command, Plugin, Unusable
from .errors import PluginBroken, Refused, Terminated, UsageProblem
from .failures import Failed, Failure, Failures
from .hookspecs import HOOKS, Kind, lookup
from .inside import inside as inside
from .inside import refuse_inside as refuse_inside
from .registry import Implementation, Registry
from .settings import Paths
from .tables import KnownTables, directives, has_directives


@dataclass(frozen=True)
class Listed:
    """One plugin, be it usable, switched off or broken."""

    name: str
    plugin: Plugin | None  # None: its plugin.toml cannot be read
    is_enabled: bool
    problem: str | None


class Plugins:
    """All plugins of one root."""

    def __init__(
        self,
        paths: Paths,
        say: Callable[[str], None],
        settings: Callable[[], Tables],
        *,
        app_settings: Callable[[str], Tables] = lambda app: {},
        built_in: Path | None = None,
        instead: Mapping[str, Path | None] | None = None,
        disabled: frozenset[str] | None = None,
        keeps_failures: bool = True,
    ) -> None:
        self._paths = paths
        self._say = say
        self._settings = settings
        self._app_settings = app_settings
        self._built_in = built_in
        self._failures = Failures(paths.run / "failed")
        self._calls = Calls(paths, say, settings, app_settings, self._failures if keeps_failures else None)
        self._registry = Registry(paths.plugins, built_in, self._calls.execute, instead=instead, disabled=disabled)
        self._tables = KnownTables(self._registry, paths.root / "data")  # one: what was parsed with it is known by it
        self._named: set[str] = set()

    def supposing(self, instead: Mapping[str, Path | None], disabled: frozenset[str], *, quietly: bool = False) -> Plugins:
        """These plugins as they would be with other directories (None: without that one) and other ones switched off."""
        return Plugins(
            self._paths,
            (lambda line: None) if quietly else self._say,
            self._settings,
            app_settings=self._app_settings,
            built_in=self._built_in,
            instead=instead,
            disabled=disabled,
            keeps_failures=False,  # of a version that may never be installed
        )

    def foreseeing(self, host: Tables, apps: Mapping[str, Tables]) -> AbstractContextManager[None]:
        """Within it plugins have these settings, which a change is about to write, and not those in the files."""
        return self._calls.foreseeing(host, apps)

    def commands(self, *, all: bool = False) -> dict[str, Command]:
        """Every command by its name, from `plugin.toml` files alone; `all`: those of installed Python packages too."""
        if all:
            self._registry.scan_entry_points()
        return {name: command for plugin in self._registry.plugins().values() for name, command in plugin.commands.items()}

    def names(self) -> list[str]:
        """Every plugin there is, those that are disabled or broken too."""
        return sorted({*self._registry.plugins(), *self._registry.broken, *self._registry.disabled})

    def roster(self) -> dict[str, Listed]:
        """Every plugin there is with all that is known of it; imports each."""
        broken = self.broken(all=True)
        usable, off = self._registry.plugins(), dict[str, Plugin | None](self._registry.switched_off)
        for name in self._registry.disabled:
            if (self._paths.plugins / name).is_dir():
                off.setdefault(name, None)
        return {
            name: Listed(name, usable.get(name) or off.get(name), name not in self._registry.disabled, broken.get(name))
            for name in sorted({*usable, *off, *broken})
        }

    def host_settings(self) -> Tables:
        """What router.toml says to plugins."""
        return self._settings()

    def app_settings(self, app: str) -> Tables:
        """What the app.toml of an app says to plugins."""
        return self._app_settings(app)

    def tables(self) -> KnownTables:
        """The plugins that may have keys in router.toml and app.toml, and which: those that are uninstalled too, if their data was kept."""
        return self._tables

    def function(self, command: Command) -> Callable[..., Any]:
        """The Python function of a command; imports its file and no other of the plugin.

        Raises:
            PluginBroken: it cannot be imported, or has no such function.
        """
        plugin = self._plugin_of(command)
        file, _, name = command.run.partition(":")
        try:
            found: Callable[..., Any] | None = getattr(self._registry.module(plugin, file), name, None)
        except Unusable as why:
            raise PluginBroken(f"plugin {plugin.name}: {why}") from why
        if not callable(found):
            raise PluginBroken(f"plugin {plugin.name}: {file} has no function '{name}'")
        return found

    def executable(self, command: Command) -> tuple[Path, dict[str, str]]:
        """The executable of a command, and the environment that the contract promises it.

        Raises:
            PluginBroken: there is no such executable, or root must not run it.
        """
        plugin = self._plugin_of(command)
        assert plugin.directory is not None  # only a plugin.toml brings commands
        path = plugin.directory / command.run
        if not path.is_file() or not os.access(path, os.X_OK):
            raise PluginBroken(f"plugin {plugin.name}: {path} is not an executable file")
        try:
            discovery.refuse_foreign(plugin)
        except Unusable as why:
            raise PluginBroken(f"plugin {plugin.name}: {why}") from None
        try:
            config = self._calls.config(plugin, None)
        except UsageProblem as why:
            raise PluginBroken(f"plugin {plugin.name}: router.toml: {why.message}", hint=why.hint) from None
        return path, self._calls.environment(plugin, config, self._calls.data(plugin))

    def has(self, hook: str) -> bool:
        """Whether calling this hook does anything.

        A collect or run hook that only a broken plugin is known to have counts: the call says what is missing.
        """
        if self._implementations(hook):
            return True
        return hook != "stop" and lookup(hook).kind in ("collect", "run") and any(hook in known for known in self._registry.missed.values())

    def order(self, hook: str) -> list[str]:
        """The plugins that have this hook, in the order in which they are called."""
        return [each.plugin.name for each in self._implementations(hook)]

    def calls(self, hook: str) -> list[Implementation]:
        """What is called for a hook, in order."""
        return self._implementations(hook)

    def hooks_of(self, name: str) -> list[str]:
        """The hooks that a plugin has."""
        return [hook for hook in HOOKS if name in self.order(hook)]

    def config(self, name: str) -> dict[str, str]:
        """The keys of a plugin as it gets them for the host; nothing of one that cannot be used."""
        plugin = self._registry.plugins().get(name)
        try:
            return self._calls.config(plugin, None) if plugin else {}
        except UsageProblem:
            return dict(plugin.config) if plugin else {}

    def directory(self, name: str) -> Path | None:
        """The directory of a plugin that can be used; None for one that is a Python package."""
        plugin = self._registry.plugins().get(name)
        return plugin.directory if plugin else None

    def broken(self, *, all: bool = False) -> dict[str, str]:
        """Plugin -> why it cannot be used, as far as they were looked at; `all`: look at each one, and import it."""
        plugins = self._registry.plugins()
        if all:
            self._registry.scan_entry_points()
            for plugin in list(plugins.values()):
                self._registry.register(plugin)
        return dict(self._registry.broken)

    def failed(self, name: str, exists: Callable[[str], bool]) -> list[Failed]:
        """The calls of a plugin that failed and did not go well since, for the host or an app that `exists`; the newest first."""
        return self._failures.of(name, exists)

    def forget_failures(self, name: str) -> None:
        """What failed is another version's affair from now on."""
        self._failures.forget(name)

    def gate(self, hook: str, event: Mapping[str, Any]) -> None:
        """Ask every plugin whether this may be.

        Raises:
            Refused: one said no, or could not be asked; which and why.
        """
        full = _complete(hook, "gate", event)
        for each in self._implementations(hook):
            try:
                self._say_lines(self._calls.call(each, full))
            except Failure as why:
                raise Refused(f"plugin {each.plugin.name} refused {_what(full)}: {why.reason}", hint=why.hint, app=full["app"]) from why

    def collect(self, hook: str, event: Mapping[str, Any]) -> list[tuple[str, str]]:
        """The answers of all plugins: (plugin, text).

        Raises:
            PluginBroken: one failed, or cannot be used and is known to have this hook: nothing may be silently missing.
        """
        full = _complete(hook, "collect", event)
        implementations = self._implementations(hook)
        self._refuse_missed(full)
        answers = []
        for each in implementations:
            try:
                text = self._calls.call(each, full)
            except Failure as why:
                raise _broken(each, full, why) from why
            if text.strip():
                answers.append((each.plugin.name, text))
        return answers

    def survey(self, hook: str, event: Mapping[str, Any], only: Collection[str] | None = None) -> list[tuple[str, str | Failure]]:
        """The answers of all plugins (or of `only` these) to a collect hook, or how each failed: for what shows and changes nothing."""
        full = _complete(hook, "collect", event)
        answers: list[tuple[str, str | Failure]] = []
        for each in self._implementations(hook):
            if only is not None and each.plugin.name not in only:
                continue
            try:
                answers.append((each.plugin.name, self._calls.look(each, full)))
            except Failure as why:
                answers.append((each.plugin.name, why))
        return answers

    def first(self, hook: str, event: Mapping[str, Any]) -> tuple[str, str] | None:
        """The first answer: (plugin, text).

        A plain non-zero exit is no answer, as `[ "$1" = blog ] && cat template` leaves it.

        Raises:
            PluginBroken: one crashed, took too long or printed garbage; the next one's answer might be the wrong one.
        """
        full = _complete(hook, "first", event)
        for each in self._implementations(hook):
            try:
                text = self._calls.call(each, full)
            except Failure as why:
                if why.crashed:
                    raise _broken(each, full, why) from why
                if why.spoke:
                    self._say(f"warning: plugin {each.plugin.name} has no answer to {_what(full)}: {why.reason}")
                continue
            if text.strip():
                return each.plugin.name, text
        return None

    def run(self, hook: str, event: Mapping[str, Any]) -> tuple[str, str] | None:
        """Let the first plugin that has this hook do it: (plugin, text); None: no plugin has it.

        A failed `stop` is a warning, and its text is what still runs, one address a line; it is empty where all went well.

        Raises:
            Refused: it ended with a non-zero exit; its last line says why.
            PluginBroken: it crashed, took too long or printed garbage; or the only plugin that has it cannot be used.
        """
        full = _complete(hook, "run", event)
        implementations = self._implementations(hook)
        if not implementations:
            if hook != "stop":
                self._refuse_missed(full)
            return None
        each = implementations[0]
        try:
            text = self._calls.call(each, full)
        except Failure as why:
            if hook == "stop":
                return each.plugin.name, self._still_running(each, full, why)
            if why.crashed:
                raise _broken(each, full, why) from why
            raise Refused(f"plugin {each.plugin.name} failed {_what(full)}: {why.reason}", hint=why.hint, app=full["app"]) from why
        return each.plugin.name, "" if hook == "stop" else text

    def notify(self, hook: str, event: Mapping[str, Any]) -> list[str]:
        """Tell every plugin; a failure is said and given back as a warning, and the others are told all the same."""
        full = _complete(hook, "notify", event)
        warnings = []
        for each in self._implementations(hook):
            try:
                with interrupts.released():
                    text = self._calls.call(each, full)
                self._say_lines(text)
            except (Failure, Terminated, KeyboardInterrupt) as why:
                # a signal ends the hook alone: the exit code of a signal says that nothing was changed
                reason = why.reason if isinstance(why, Failure) else "interrupted"
                warnings.append(f"warning: plugin {each.plugin.name} failed {_what(full)}: {reason}")
                self._say(warnings[-1])
        return warnings

    def _plugin_of(self, command: Command) -> Plugin:
        plugin = self._registry.plugins().get(command.plugin)
        if plugin is None:
            raise PluginBroken(f"plugin {command.plugin}: {self._registry.broken.get(command.plugin, 'it is gone')}")
        return plugin

    def _implementations(self, hook: str) -> list[Implementation]:
        found = self._registry.implementations(lookup(hook))
        for name, why in self._registry.broken.items():
            if name not in self._named:
                self._named.add(name)
                self._say(f"warning: plugin {name} is broken and left out: {why}")
        if hook == "nginx-server-snippet":
            found += [Implementation(p, directives(p), str(p.directory)) for p in self._registry.plugins().values() if has_directives(p)]
            found.sort(key=lambda each: (each.plugin.priority, each.plugin.name))
        return found

    def _say_lines(self, text: str) -> None:
        for line in text.splitlines():
            self._say(line)

    def _refuse_missed(self, event: Mapping[str, Any]) -> None:
        for name, known in self._registry.missed.items():
            if event["hook"] in known:
                raise PluginBroken(
                    f"plugin {name} is broken, and {_what(event)} needs it: {self._registry.broken[name]}",
                    hint=f"repair it, or: router plugins:disable {name}",
                    app=event["app"],
                )

    def _still_running(self, each: Implementation, event: Mapping[str, Any], why: Failure) -> str:
        printed = set() if why.crashed else {line.strip() for line in why.out.splitlines()}  # a list cut short says nothing
        left = [address for address in event["endpoints"] if address in printed] or event["endpoints"]
        self._say(f"warning: plugin {each.plugin.name} failed {_what(event)}: {why.reason}; still running: {' '.join(left)}")
        return "".join(f"{address}\n" for address in left)


def _complete(hook: str, kind: Kind, event: Mapping[str, Any]) -> dict[str, Any]:
    spec = lookup(hook)
    assert spec.kind == kind, f"{hook} is a {spec.kind} hook"
    return spec.complete(event)


def _what(event: Mapping[str, Any]) -> str:
    return f"{event['hook']} of '{event['app']}'" if event["app"] else str(event["hook"])


def _broken(each: Implementation, event: Mapping[str, Any], why: Failure) -> PluginBroken:
    return PluginBroken(f"plugin {each.plugin.name} failed {_what(event)}: {why.reason}", hint=why.hint, app=event["app"])
