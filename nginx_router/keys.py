"""The keys that a plugin may have in router.toml and app.toml, in the table of its name.

A key of `[plugin.config]` in its plugin.toml has the type of its default; `[plugin.properties.KEY]` says type, rule and help
as the properties of nginx do (`properties`), and may name a directive.  With `processes = true` in [plugin] each process of an app
may have the keys too, in a table of its own ([PLUGIN.PROCESS] of app.toml): what stands there counts before what stands above it.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from .errors import UsageProblem, nearest
from .names import process_name, shown
from .properties import declared

#: The keys of a plugin by name; none: whatever stands in its table is its own affair.
Keys = Mapping[str, "Key"]


@dataclass(frozen=True)
class Key:
    """One key of a plugin's table."""

    name: str
    default: Any
    rule: str
    check: Callable[[Any], Any]  # the value of a TOML file in its one spelling; ValueError where it breaks the rule
    read: Callable[[str], Any]  # the same of a word of a command line
    help: str = ""
    directive: str = ""

    def accept(self, value: Any) -> Any:
        """The value of a TOML file.

        Raises:
            UsageProblem: it breaks the rule.
        """
        try:
            return self.check(value)
        except ValueError:
            raise UsageProblem(f"{self.name}: {shown(as_text(value))} is not {self.rule}") from None

    def parse(self, word: str) -> Any:
        """The value that a word of a command line means.

        Raises:
            UsageProblem: it breaks the rule.
        """
        try:
            return self.check(self.read(word))
        except ValueError:
            raise UsageProblem(f"{self.name}: {shown(word)} is not {self.rule}") from None


class OfProcesses(dict[str, Key]):
    """Keys that each process of an app may have too, in a table of its own."""


class At(Protocol):
    """Says where in a TOML file a key stands that is wrong: `within` which table."""

    def __call__(self, key: str, what: str, *, within: str = "") -> UsageProblem:
        """The problem with file and line."""


def check_table(table: str, keys: Keys, values: Mapping[str, Any], at: At) -> None:
    """Make sure that `values` may stand in the table of a plugin; `at` says where a key stands.

    Raises:
        UsageProblem: one is of another type, or the plugin has no such key.
    """
    for name, value in values.items():
        if not keys:
            return
        try:
            if isinstance(keys, OfProcesses) and isinstance(value, dict):
                require_process(keys, name)
            else:
                lookup(table.partition(".")[0], keys, name).accept(value)
                continue
        except UsageProblem as why:
            raise at(name, why.message, within=table) from None
        check_table(f"{table}.{name}", dict(keys), value, at)


def require_process(keys: Keys, name: str) -> str:
    """The name of a process that may have a table of its own.

    Raises:
        UsageProblem: it is no such name, or that of a key: the two could not be told from each other.
    """
    if name in keys:
        raise UsageProblem(f"{name} is a key: a process of this name cannot have keys of its own")
    return process_name(name)


def lookup(table: str, keys: Keys, name: str) -> Key:
    """The key `name` of a plugin; a plugin that declares none takes any text.

    Raises:
        UsageProblem: there is no such key; the nearest is named.
    """
    if not keys:
        return of_default(name, "")
    if name not in keys:
        raise UsageProblem(f"plugin {table} has no key {shown(name)}{nearest(name, keys)}", hint=f"there are: {' '.join(keys)}")
    return keys[name]


def of_default(name: str, default: Any) -> Key:
    """The key that a line of `[plugin.config]` describes."""
    for kind, rule, read in _KINDS:
        if isinstance(default, kind):
            return Key(name, default, rule, _checked(kind), read)
    return Key(name, str(default), "a text", _checked(str), str)  # dates and times: what a plugin gets is text


def of_property(name: str, row: Mapping[str, Any]) -> Key:
    """The key that `[plugin.properties.NAME]` describes.

    Raises:
        UsageProblem: the row lacks what its type needs, or its default breaks its own rule.
    """
    try:
        known = declared(name, row)
    except (KeyError, TypeError, AttributeError) as why:
        raise UsageProblem(f"[plugin.properties.{name}] lacks or mistakes {why}") from None

    def check(value: Any) -> str:
        try:
            return known.parse(value)
        except UsageProblem:
            raise ValueError(value) from None

    key = Key(name, row["default"], known.rule, check, str, known.help, known.directive)
    key.accept(row["default"])
    return key


def as_text(value: Any) -> str:
    """A value as CONFIG_* and Python hooks get it: text as it is, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _checked(kind: type) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        is_of_kind = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or not isinstance(value, bool))
        if not is_of_kind or "\0" in str(value):
            raise ValueError(value)
        return value

    return check


def _switch(word: str) -> bool:
    if word not in ("true", "false", "on", "off"):
        raise ValueError(word)
    return word in ("true", "on")


def _toml(word: str) -> Any:
    return tomllib.loads(f"value = {word}")["value"]


_KINDS: tuple[tuple[type, str, Callable[[str], Any]], ...] = (
    (bool, "true or false", _switch),
    (int, "a whole number", int),
    (float, "a number", float),
    (str, "a text", str),
    (list, 'a list such as ["a", "b"]', _toml),
    (dict, "a table such as { a = 1 }", _toml),
)
