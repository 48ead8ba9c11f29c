"""Plugins on disk: what `plugin.toml` and the names of the files say, without running a line of theirs."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import Terminated, UsageProblem, nearest
from .files import read_text
from .hookspecs import API, HOOKS
from .keys import Key, Keys, OfProcesses, as_text, of_default, of_property

MANIFEST, MODULE, DISABLED = "plugin.toml", "plugin.py", ".disabled"

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_COMMAND = re.compile(r"[a-z0-9-]+(:[a-z0-9-]+)*")
_FUNCTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\.py:[A-Za-z_][A-Za-z0-9_]*")
_KEY = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*")
_AT = re.compile(r" \(at line (\d+), column \d+\)$")
#: What stands at the top of app.toml and router.toml besides the tables of plugins; built-in plugins own some of them.
_RESERVED = ("ports", "locked", "domains", "count", "nginx", "proxy")
_KEYS = ("name", "description", "version", "api", "priority", "timeout", "hooks", "config", "commands", "properties", "processes")


class Unusable(Exception):
    """Why a plugin cannot be used."""


@dataclass(frozen=True)
class Command:
    """One command of a plugin: `noun:verb`, and what it runs."""

    name: str
    plugin: str
    help: str
    run: str
    kind: str = ""
    usage: str = ""
    keys: tuple[str, ...] = ()  # of a report: what `--KEY` may be, for completion and help; PROPERTY is each of the noun's properties
    is_hidden: bool = False  # called by scripts; help and completion do not name it

    @property
    def is_python(self) -> bool:
        """Whether it is a Python function (`plugin.py:create`) rather than an executable."""
        return bool(_FUNCTION.fullmatch(self.run))


@dataclass(frozen=True)
class Plugin:
    """One plugin as its `plugin.toml` describes it."""

    name: str
    directory: Path | None = None
    description: str = ""
    version: str = ""
    priority: int = 50
    timeout: float = 30.0
    config: Mapping[str, str] = field(default_factory=dict)  # the defaults of its keys, as text
    keys: Keys = field(default_factory=dict)  # what may stand in its table of router.toml and app.toml
    hooks: frozenset[str] | None = None  # those of plugin.py; None: only an import can tell
    commands: Mapping[str, Command] = field(default_factory=dict)
    is_built_in: bool = False
    package: str = ""  # the importable package it comes from; empty: a directory

    @property
    def has_code(self) -> bool:
        """Whether there is Python code to ask for hooks."""
        if self.hooks == frozenset():
            return False
        return bool(self.package) or (self.directory is not None and (self.directory / MODULE).is_file())

    def may_have(self, hook: str) -> bool:
        """Whether its Python code has, or may have, this hook."""
        return (self.hooks is None or hook in self.hooks) and self.has_code


def directories(parent: Path) -> Iterator[Path]:
    """The directories below `parent` that are meant as plugins, by name."""
    try:
        found = sorted(os.listdir(parent))  # noqa: PTH208 - names only
    except (FileNotFoundError, NotADirectoryError):
        return
    for name in found:
        if name[0] not in "._" and (parent / name).is_dir():
            yield parent / name


def disabled(parent: Path) -> frozenset[str]:
    """The names of the plugins that are switched off."""
    try:
        text = read_text(parent / DISABLED) or ""
    except NotADirectoryError:
        return frozenset()
    return frozenset(line.strip() for line in text.splitlines() if line.strip())


def read(directory: Path, *, is_built_in: bool = False, package: str = "") -> Plugin:
    """The plugin in `directory`.

    Raises:
        Unusable: its plugin.toml is missing or breaks a rule, or, for root, others may write its files.
    """
    manifest = directory / MANIFEST
    try:
        if not manifest.is_file():
            raise Unusable("there is no such file")
        if not is_built_in and not package:
            _refuse((directory.parent, directory, manifest))
        text = manifest.read_text()
        try:
            raw = tomllib.loads(text)
        except (tomllib.TOMLDecodeError, RecursionError) as why:
            raise Unusable(_line_of(text, str(why))) from None
        return _plugin(raw, directory, is_built_in, package)
    except (OSError, ValueError, Unusable) as why:  # ValueError: not UTF-8, a number of 5,000 digits
        told = str(why)
        raise Unusable(f"{manifest}:{told}" if told[:1].isdigit() else f"{manifest}: {told}") from None


def executables(plugin: Plugin) -> dict[str, Path]:
    """Hook -> executable, of the files at the top of a plugin's directory.

    Raises:
        Unusable: a hook is not executable, or a file is named almost like a hook and would never be called.
    """
    found = {}
    for path in _files(plugin.directory):
        name, is_executable = path.name, os.access(path, os.X_OK)
        if name in HOOKS:
            if not is_executable:
                raise Unusable(f"{path} is not executable; chmod +x {path}")
            found[name] = path
        elif is_executable and _looks_like_hook(name):
            raise Unusable(f"{path}: there is no hook '{name}'{nearest(name.replace('_', '-'), HOOKS)}")
    return found


def known_hooks(directory: Path | None, plugin: Plugin | None = None) -> frozenset[str]:
    """The hooks that a plugin is known to have even if it cannot be used: its answers are missing, not just unknown."""
    declared = (plugin.hooks if plugin else None) or frozenset()
    with contextlib.suppress(OSError):
        return declared | {path.name for path in _files(directory) if path.name in HOOKS}
    return declared


def packaged(name: str, module: str) -> Plugin:
    """The plugin of an entry point: described by a plugin.toml of its name beside its module, where there is one.

    Raises:
        Unusable: there is no such module, or the plugin.toml breaks a rule.
    """
    from importlib.util import find_spec  # only where a package brings a plugin

    if not _NAME.fullmatch(name):
        raise Unusable(f"the entry point's name is not of a-z 0-9 _ -: '{name}'")
    try:
        spec = find_spec(module)  # imports the packages above it
    except Terminated:
        raise
    except (Exception, SystemExit) as why:  # whatever a stranger's code raises while it is imported
        raise Unusable(f"{module}: {type(why).__name__}: {why}") from why
    if spec is None:
        raise Unusable(f"there is no module {module}")
    package = module if spec.submodule_search_locations else module.rpartition(".")[0] or module
    if spec.origin and (Path(spec.origin).parent / MANIFEST).is_file():
        described = read(Path(spec.origin).parent, package=package)
        if described.name == name:
            return described
    return Plugin(name=name, package=package)


def refuse_foreign(plugin: Plugin, *, euid: int | None = None) -> None:
    """As root, make sure that nobody else may write any file of an installed plugin, before the first of them is run.

    Raises:
        Unusable: somebody may, and so could make root run what they like.
    """
    if plugin.directory is None or plugin.is_built_in or plugin.package:
        return  # who could write those could write this program too
    _refuse((Path(parent) / name for parent, below, files in os.walk(plugin.directory) for name in (*below, *files)), euid)


def as_config(values: Mapping[str, Any]) -> dict[str, str]:
    """The values of a plugin's configuration as text: what CONFIG_* and Python hooks get."""
    return {key: as_text(value) for key, value in values.items() if value is not None}


def _refuse(files: Iterable[Path], euid: int | None = None) -> None:
    if (os.geteuid() if euid is None else euid) != 0:
        return
    for path in files:
        try:
            about = path.stat()
        except FileNotFoundError:  # a link that leads nowhere cannot be run
            continue
        if about.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise Unusable(f"{path} can be written by others; chmod go-w {path}")
        if about.st_uid != 0:
            raise Unusable(f"{path} belongs to uid {about.st_uid}, and root would run it; chown root {path}")


def _files(directory: Path | None) -> Iterator[Path]:
    if directory is None:
        return
    for name in sorted(os.listdir(directory)):  # noqa: PTH208 - names only
        if name[0] != "." and name[-1] != "~" and (directory / name).is_file():
            yield directory / name


def _looks_like_hook(name: str) -> bool:
    import difflib

    if re.match(r"(pre|post)[-_]", name):
        return True
    # a missing snippet must not go unnoticed either: nginx-server-snippets
    return "-" in name and bool(difflib.get_close_matches(name, HOOKS, n=1, cutoff=0.85))


def _plugin(raw: Mapping[str, Any], directory: Path, is_built_in: bool, package: str) -> Plugin:
    table = _typed(raw, "plugin", dict, {})
    for key in table:
        # other keys may be the author's own; one that is nearly ours is a slip
        if key not in _KEYS and nearest(key, _KEYS):
            raise Unusable(f"[plugin] has no key '{key}'{nearest(key, _KEYS)}")
    name = _typed(table, "name", str, "")
    if not _NAME.fullmatch(name):
        raise Unusable(f"[plugin] needs a name of a-z 0-9 _ -, not '{name}'" if name else "[plugin] name is missing")
    if name in _RESERVED and not is_built_in:
        raise Unusable(f"the name '{name}' stands for something else in app.toml and router.toml")
    api = _typed(table, "api", int, 1)
    if not 1 <= api <= API:
        raise Unusable(f"needs version {api} of the hooks, this router has {API}")
    priority = _typed(table, "priority", int, 50)
    if not 0 <= priority <= 99:
        raise Unusable(f"priority {priority} is not from 0 to 99")
    timeout = float(_typed(table, "timeout", (int, float), 30))
    if not 0 < timeout <= 86400:
        raise Unusable(f"timeout {timeout:g} is not a number of seconds above 0")
    keys: Keys = _keys(_typed(table, "config", dict, {}), _typed(table, "properties", dict, {}))
    if table.get("processes") is True:
        keys = OfProcesses(keys)
    return Plugin(
        name=name,
        directory=directory,
        description=_typed(table, "description", str, ""),
        version=_typed(table, "version", str, ""),
        priority=priority,
        timeout=timeout,
        config=as_config({key.name: key.default for key in keys.values()}),
        keys=keys,
        hooks=_hooks(table["hooks"]) if "hooks" in table else None,
        commands={command: _command(command, name, raw) for command, raw in _typed(table, "commands", dict, {}).items()},
        is_built_in=is_built_in,
        package=package,
    )


def _hooks(names: object) -> frozenset[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise Unusable("hooks is not a list of names")
    for name in names:
        if name not in HOOKS:
            raise Unusable(f"there is no hook '{name}'{nearest(name, HOOKS)}")
    return frozenset(names)


def _keys(config: Mapping[str, Any], properties: Mapping[str, Any]) -> dict[str, Key]:
    for name in (*config, *properties):
        if not _KEY.fullmatch(name):
            raise Unusable(f"a key is of letters, digits, _ and -, not '{name}'")
    found = {name: of_default(name, default) for name, default in config.items()}
    for name, row in properties.items():
        if name in found:
            raise Unusable(f"{name} stands in [plugin.config] and in [plugin.properties]")
        if not isinstance(row, dict):
            raise Unusable(f"[plugin.properties.{name}] is not a table")
        try:
            found[name] = of_property(name, row)
        except UsageProblem as why:
            raise Unusable(why.message) from None
    return found


def _command(name: str, plugin: str, raw: object) -> Command:
    if not _COMMAND.fullmatch(name):
        raise Unusable(f"'{name}' is not a command such as noun:verb")
    if not isinstance(raw, dict):
        raise Unusable(f"command {name} needs {{help = ..., run = ...}}")
    words, run, kind, usage, keys = (_typed(raw, key, str, "") for key in ("help", "run", "kind", "usage", "keys"))
    command = Command(name, plugin, words, run, kind, usage, tuple(keys.split()), is_hidden=raw.get("hidden") is True)
    path = Path(command.run)
    if not command.run or path.is_absolute() or ".." in path.parts:
        raise Unusable(f"command {name}: run = '{command.run}' is neither FILE.py:FUNCTION nor a file of the plugin")
    if command.kind not in ("", "change", "report"):
        raise Unusable(f"command {name}: kind is change or report, not '{command.kind}'")
    return command


def _line_of(text: str, why: str) -> str:
    """What is wrong with a TOML file: `LINE: why`, and of what stands there twice also what that is."""
    rows = text.splitlines() or [""]
    found = _AT.search(why)
    number = min(int(found[1]), len(rows)) if found else len(rows)  # else at its end
    words = why[: found.start()] if found else why.removesuffix(" (at end of document)")
    row = rows[number - 1].strip()[:80]
    if words.startswith(("Cannot overwrite", "Cannot declare", "Duplicate")):
        # tomllib names the key in one of its three ways of saying so
        return f"{number}: {row} says again what is said above"
    return f"{number}: {words}: {row}"


def _typed(table: Mapping[str, Any], key: str, wanted: type | tuple[type, ...], default: Any) -> Any:
    value = table.get(key, default)
    if not isinstance(value, wanted) or isinstance(value, bool):
        kinds: Iterable[type] = wanted if isinstance(wanted, tuple) else (wanted,)
        words = " or ".join({"str": "text", "int": "a whole number", "float": "a number", "dict": "a table"}[k.__name__] for k in kinds)
        raise Unusable(f"{key} is not {words}")
    return value
