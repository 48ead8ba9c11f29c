"""The registry of plugins: which there are, which can be used, and what each has for a hook.

pluggy holds Python plugins and generated adapters of executables alike, and checks their names and arguments.  Nothing of a
plugin is imported before one of its hooks or commands is needed.  One that cannot be used is named and left out.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import discovery
from .discovery import Plugin, Unusable
from .errors import Terminated, nearest
from .hookspecs import HOOKS, Hook, lookup, specifications
from .printed import beside_the_talk
from .resources import shipped

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import pluggy

#: The entry-point group of plugins that are installed as Python packages.
GROUP = "nginx_router"

#: Where the files of plugin directories are imported: `nginx_router_plugins.NAME.plugin`.
SPACE = "nginx_router_plugins"


class HookEvent(dict[str, Any]):
    """The event that a hook gets: a plain dict, and beside it what a Python plugin needs to know of itself."""

    plugin: str
    data: Path
    config: Mapping[str, str]


#: Runs one executable of a plugin for an event, and gives what it printed.
Execute = Callable[[Plugin, Hook, Path, HookEvent], str]


@dataclass(frozen=True)
class Implementation:
    """What one plugin has for one hook."""

    plugin: Plugin
    call: Callable[[HookEvent], object]
    where: str = ""  # the file, or the package, that is called


class Registry:
    """The plugins of one root, looked at only as far as somebody asks."""

    def __init__(
        self,
        installed: Path,
        built_in: Path | None,
        execute: Execute,
        *,
        instead: Mapping[str, Path | None] | None = None,
        disabled: frozenset[str] | None = None,
    ) -> None:
        self.broken: dict[str, str] = {}  # plugin -> why it cannot be used
        self.switched_off: dict[str, Plugin] = {}  # those of the disabled plugins that can be read
        self.missed: dict[str, frozenset[str]] = {}  # such a plugin -> the hooks that it is known to have
        self._installed = installed
        self._built_in = built_in
        self._execute = execute
        self._instead = instead or {}  # directory name -> what is to stand there, None: nothing
        self._supposed_disabled = disabled
        self._plugins: dict[str, Plugin] | None = None
        self._disabled: frozenset[str] = frozenset()
        self._entry_points: dict[str, EntryPoint] | None = None
        self._programs: dict[str, Mapping[str, Path]] = {}
        self._registered: set[str] = set()
        self._manager: pluggy.PluginManager | None = None

    def plugins(self) -> dict[str, Plugin]:
        """The plugins that can be used, as far as is known, from their `plugin.toml` files alone."""
        if self._plugins is None:
            self._plugins = {}
            self._disabled = discovery.disabled(self._installed) if self._supposed_disabled is None else self._supposed_disabled
            built_in = discovery.directories(self._built_in or shipped("plugins"))
            installed: dict[str, Path | None] = {directory.name: directory for directory in discovery.directories(self._installed)}
            installed.update(self._instead)
            for is_built_in, directories in ((True, built_in), (False, filter(None, (installed[name] for name in sorted(installed))))):
                for directory in directories:
                    try:
                        self._admit(discovery.read(directory, is_built_in=is_built_in))
                    except Unusable as why:
                        if directory.name not in self._disabled:
                            self._leave_out(directory.name, str(why), discovery.known_hooks(directory))
        return self._plugins

    @property
    def disabled(self) -> frozenset[str]:
        """The plugins that are switched off."""
        self.plugins()
        return self._disabled

    def scan_entry_points(self) -> None:
        """Take in the plugins that are installed as Python packages; costs 10 ms where there is one."""
        if self._entry_points is not None:
            return
        self._entry_points = {}
        self.plugins()
        if not may_have_entry_points(GROUP):
            return
        from importlib.metadata import entry_points

        for point in sorted(entry_points(group=GROUP), key=lambda point: point.name):
            if point.name in self._disabled:
                self.switched_off.setdefault(point.name, Plugin(name=point.name, package=point.module))
                continue
            try:
                self._admit(discovery.packaged(point.name, point.module))
                self._entry_points[point.name] = point
            except Unusable as why:
                self._leave_out(point.name, str(why), frozenset())

    def implementations(self, hook: Hook) -> list[Implementation]:
        """What plugins have for `hook`, in the order in which they are called: by priority, then by name."""
        self.scan_entry_points()
        for plugin in list(self.plugins().values()):
            # executables are looked at in any case: a misspelt one must be named, whatever hook is called first
            programs = self._programs_of(plugin)
            if programs is not None and (hook.name in programs or plugin.may_have(hook.name)):
                self.register(plugin)
        if self._manager is None:
            return []
        found = []
        for each in getattr(self._manager.hook, hook.python).get_hookimpls():
            name, _, form = each.plugin_name.partition(" ")
            if name in self.plugins():  # else it was left out after half of it was registered
                plugin = self.plugins()[name]
                found.append((plugin.priority, name, form, Implementation(plugin, _caller(each), _where(plugin, hook, form))))
        return [implementation for *_, implementation in sorted(found, key=lambda item: item[:3])]

    def register(self, plugin: Plugin) -> None:
        """Put a plugin's executables and its Python code into the registry, once; a broken one is left out whole."""
        programs = self._programs_of(plugin)
        if programs is None or plugin.name in self._registered:
            return
        self._registered.add(plugin.name)
        try:
            if programs:
                self._add(f"{plugin.name} executables", _Adapters(plugin, programs, self._execute))
            if plugin.has_code:
                self._add(f"{plugin.name} {discovery.MODULE}", self._code(plugin))
        except Unusable as why:
            self._drop(plugin, str(why))
        except Terminated:
            raise
        except (Exception, SystemExit) as why:  # a plugin boundary: whatever a stranger's code raises while it is imported
            self._drop(plugin, words(why, plugin))

    def module(self, plugin: Plugin, file: str) -> types.ModuleType:
        """The module of one file of a plugin; it may import its neighbours by relative imports.

        Raises:
            Unusable: it cannot be imported; why, and where.
        """
        discovery.refuse_foreign(plugin)
        package = plugin.package or f"{SPACE}.{plugin.name}"
        if not plugin.package:
            _make_package(package, plugin.directory)
        try:
            with beside_the_talk():
                return importlib.import_module(f"{package}.{file.removesuffix('.py')}")
        except Terminated:
            raise
        except (Exception, SystemExit) as why:  # as above
            raise Unusable(words(why, plugin)) from why

    def _admit(self, plugin: Plugin) -> None:
        plugins = self.plugins()
        if plugin.name in self._disabled:
            self.switched_off[plugin.name] = plugin
            return
        if plugin.name in plugins:
            raise Unusable(f"the name '{plugin.name}' is taken by {plugins[plugin.name].directory or 'a Python package'}")
        taken = {name: other.name for other in plugins.values() for name in other.commands}
        for name in plugin.commands:
            if name in taken:
                raise Unusable(f"the command {name} belongs to plugin {taken[name]}")
        plugins[plugin.name] = plugin

    def _leave_out(self, name: str, why: str, known: frozenset[str]) -> None:
        name = f"{name} (second)" if name in self.plugins() else name
        self.broken[name] = why
        self.missed[name] = known

    def _drop(self, plugin: Plugin, why: str) -> None:
        del self.plugins()[plugin.name]
        self._leave_out(plugin.name, why, discovery.known_hooks(plugin.directory, plugin))

    def _programs_of(self, plugin: Plugin) -> Mapping[str, Path] | None:
        """The executables of a plugin; None: it turned out to be broken, and is left out."""
        if plugin.name not in self._programs:
            try:
                programs = {} if plugin.package else discovery.executables(plugin)
                if programs:
                    discovery.refuse_foreign(plugin)
            except (Unusable, OSError) as why:
                self._drop(plugin, str(why))
                return None
            self._programs[plugin.name] = programs
        return self._programs[plugin.name]

    def _add(self, name: str, code: object) -> None:
        if self._manager is None:
            import pluggy  # 10 ms, and many commands call no hook

            self._manager = pluggy.PluginManager("router")
            self._manager.add_hookspecs(specifications())
        self._manager.register(code, name)
        for caller in self._manager.get_hookcallers(code) or ():
            if not caller.has_spec():
                dashed = caller.name.replace("_", "-")
                raise Unusable(f"there is no hook '{dashed}'{nearest(dashed, HOOKS)}")
            for each in caller.get_hookimpls():
                if each.plugin_name == name and (each.hookwrapper or each.wrapper or each.tryfirst or each.trylast):
                    raise Unusable(f"{caller.name}: each plugin is called alone, by its priority: no wrapper, tryfirst or trylast")

    def _code(self, plugin: Plugin) -> object:
        if plugin.package:
            assert self._entry_points is not None  # a packaged plugin came from there
            with beside_the_talk():
                return self._entry_points[plugin.name].load()
        return self.module(plugin, discovery.MODULE)


class _Adapters:
    """A directory of executables as pluggy sees it: one function of `event` for each."""

    def __init__(self, plugin: Plugin, programs: Mapping[str, Path], execute: Execute) -> None:
        import pluggy

        marker = pluggy.HookimplMarker("router")
        for name, path in programs.items():
            setattr(self, lookup(name).python, marker(self._adapter(plugin, lookup(name), path, execute)))

    @staticmethod
    def _adapter(plugin: Plugin, hook: Hook, path: Path, execute: Execute) -> Callable[[HookEvent], str]:
        # pluggy reads the names of arguments from __code__: it must be `event`, and nothing else
        def adapter(event: HookEvent) -> str:
            return execute(plugin, hook, path, event)

        return adapter


def may_have_entry_points(group: str) -> bool:
    """Whether an installed package may have entry points of `group`, by the names of files and one word in them.

    importlib.metadata finds out which, and where; it is 10 ms to import, and most hosts have no such package.
    """
    if any(hasattr(finder, "find_distributions") for finder in sys.meta_path if finder is not PathFinder):
        return True
    heading = f"[{group}]".encode()
    for place in sys.path:
        try:
            names = os.listdir(place or ".")  # noqa: PTH208 - names only
        except FileNotFoundError:
            continue
        except OSError:
            return True  # an archive holds packages too
        for name in names:
            if name.lower().endswith((".dist-info", "egg-info")):
                with contextlib.suppress(OSError), open(f"{place or '.'}/{name}/entry_points.txt", "rb") as file:  # noqa: PTH123 - no Path a package
                    if heading in file.read():
                        return True
    return False


def words(why: BaseException, plugin: Plugin) -> str:
    """An exception in one line, with the last place in the plugin's own files that it went through."""
    place, at = "", why.__traceback__
    while at is not None:
        file = at.tb_frame.f_code.co_filename
        if plugin.directory and file.startswith(f"{plugin.directory}{os.sep}"):
            place = f" ({file}:{at.tb_lineno})"
        at = at.tb_next
    return f"{type(why).__name__}: {' '.join(str(why).split())}{place}"


def _caller(each: pluggy.HookImpl) -> Callable[[HookEvent], object]:
    # pluggy lets an implementation leave out the argument that it does not use
    return lambda event: each.function(*(event for _ in each.argnames))


def _where(plugin: Plugin, hook: Hook, form: str) -> str:
    if plugin.directory is None or plugin.package:
        return plugin.package
    return str(plugin.directory / (discovery.MODULE if form == discovery.MODULE else hook.name))


def _make_package(name: str, directory: Path | None) -> None:
    """An empty package whose modules are the files of `directory`."""
    path = [str(directory)]
    if getattr(sys.modules.get(name), "__path__", None) == path:
        return
    for loaded in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
        del sys.modules[loaded]  # the plugin of that name in another root
    for package, places in ((SPACE, []), (name, path)):
        module = sys.modules.setdefault(package, types.ModuleType(package))
        module.__path__ = places
