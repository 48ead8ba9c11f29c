"""The command table: names, aliases and nouns, made of `plugin.toml` files alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from .errors import UsageProblem
from .names import shown

if TYPE_CHECKING:
    from .discovery import Command

#: Every `apps:X:VERB` answers to `X:VERB` too.
_PREFIX = "apps:"


def alias(name: str) -> str | None:
    """The short name of a command: `domains:add` for `apps:domains:add`."""
    short = name.removeprefix(_PREFIX)
    return short if short != name and ":" in short else None


def find(word: str, commands: Mapping[str, Command]) -> Command:
    """The command that `word` names, by its own name or by its alias.

    Raises:
        UsageProblem: there is none; the nearest is named, if any is near.
    """
    for name in (word, _PREFIX + word):
        if name in commands and word in (name, alias(name)):
            return commands[name]
    verbs = [command.name.rpartition(":")[2] for command in of_noun(word, commands)]
    if verbs:
        raise UsageProblem(f"{word} needs a verb: {' '.join(verbs)}", hint=f"router help {word}")
    near = nearest_of(word, commands)
    raise UsageProblem(f"there is no command {shown(word)}{f'; the nearest is {near}' if near else ''}", hint="router help")


def of_noun(noun: str, commands: Mapping[str, Command]) -> list[Command]:
    """The commands of a noun (`apps`, `apps:domains` or `domains` for short), in the order of the table."""
    return [command for name, command in commands.items() if name.rpartition(":")[0] in (noun, _PREFIX + noun)]


def visible(commands: Mapping[str, Command]) -> dict[str, Command]:
    """Those that people type: not the ones that only scripts call."""
    return {name: command for name, command in commands.items() if not command.is_hidden}


def nouns(commands: Iterable[str]) -> list[str]:
    """Every noun; commands without one (`status`) are nouns of their own."""
    return sorted({name.rpartition(":")[0] or name for name in commands})


def usage(command: Command, name: str | None = None) -> str:
    """`router noun:verb ARGS`."""
    return f"router {name or command.name} {command.usage}".rstrip()


def nearest_of(word: str, commands: Mapping[str, Command]) -> str | None:
    """The command, as people type it, that is nearest to `word`; None: none is near."""
    import difflib  # only on the way out of a failed command

    commands = visible(commands)
    known = {spelling: spelling for name in commands for spelling in (name, alias(name)) if spelling}
    for name in commands:
        # `create` is meant for `apps:create`: the verb alone counts too
        known.setdefault(name.rpartition(":")[2], name)
    close = difflib.get_close_matches(word, known, n=1)
    return known[close[0]] if close else None
