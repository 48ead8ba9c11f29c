"""How a command is explained: by `--help`, by `router help`, in docs/commands.md and in the man page, all from one description."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from .commands import alias, nouns, of_noun, visible

if TYPE_CHECKING:
    from .discovery import Command

#: Columns of help; also on wider terminals, for long lines are hard to read.
WIDTH = 80

#: What `router help` puts the commands under that have no noun.
OTHER = "other"

_EXAMPLE = re.compile(r"^Example: (.+)$", re.M)


@dataclass(frozen=True)
class Explained:
    """What there is to say of one command."""

    command: Command
    text: str  # paragraphs, an empty line between them
    examples: tuple[str, ...]
    rows: tuple[tuple[str, str], ...]  # its own arguments and options: what is typed, what it means
    common: tuple[tuple[str, str], ...]  # the options that every command of its kind has


def explained(command: Command, doc: str, rows: Iterable[tuple[str, str]], common: Iterable[tuple[str, str]]) -> Explained:
    """A command, explained by the docstring of its function."""
    text = _EXAMPLE.sub("", doc or command.help).strip()
    # a word without a declaration says what it is in the usage alone
    own = tuple((left, right) for left, right in rows if right or left.startswith("-"))
    return Explained(command, text, tuple(_EXAMPLE.findall(doc)), own, tuple(common))


def page(this: Explained) -> str:
    """The answer to `COMMAND --help`: usage, text, example, options; no line is wider than WIDTH."""
    short = alias(this.command.name)
    lines = usage_lines(this.command, "usage: ")
    lines += usage_lines(this.command, "       ", short) if short else []
    lines += ["", *paragraphs(this.text), ""]
    for example in this.examples:
        line = f"Example: {example}"
        lines += [line] if len(line) <= WIDTH else ["Example:", f"  {example}"]
    rows = [*this.rows, *this.common]
    return "\n".join([*lines, *([""] if this.examples else []), *table(rows)])


def usage_lines(command: Command, label: str = "", name: str | None = None) -> list[str]:
    """`router noun:verb ARGS` behind a label, on as many lines as it takes; what belongs together stays together."""
    first = f"{label}router {name or command.name}"
    indent = " " * (len(first) + 1 if len(first) < WIDTH // 2 else len(label) + 4)
    lines = [first]
    for word in words_of(command.usage):
        if len(lines[-1]) + 1 + len(word) > WIDTH:
            lines.append(indent + word)
        else:
            lines[-1] += f" {word}"
    return lines


def words_of(text: str) -> list[str]:
    """The words of a usage; what stands in brackets is one word: `[--check /PATH]`."""
    return re.findall(r"(?:\[[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]|[^\s\[\]])+", text)


def overview(commands: Mapping[str, Command]) -> list[str]:
    """The answer to `router help`: one line for each command, under its noun."""
    shown = visible(commands)
    groups: dict[str, list[Command]] = {}
    for noun in nouns(shown):
        groups.setdefault(OTHER if noun in shown else noun, []).extend([shown[noun]] if noun in shown else of_noun(noun, shown))
    if OTHER in groups:
        groups[OTHER] = groups.pop(OTHER)  # last
    width = max((len(alias(name) or name) for name in shown), default=0)
    lines = []
    for noun, found in groups.items():
        lines += ["", noun]
        for each in found:
            lines.append(_cut(f"  {alias(each.name) or each.name:<{width}}  {each.help}"))
    return lines


def of_one_noun(found: Sequence[Command], more: Iterable[str] = ()) -> list[str]:
    """The answer to `router help NOUN`: usage and help line of each of its commands; `more`: the nouns below it."""
    lines: list[str] = []
    for command in found:
        lines += [*usage_lines(command), *textwrap.wrap(command.help, WIDTH, initial_indent="    ", subsequent_indent="    ")]
    below = " ".join(more)
    return [*lines, *(["", *textwrap.wrap(f"more: {below}", WIDTH, subsequent_indent="      ", break_on_hyphens=False)] if below else [])]


def paragraphs(text: str) -> list[str]:
    """Text in lines of WIDTH at most; an indented block stays as it is."""
    lines: list[str] = []
    for block in text.split("\n\n"):
        is_layout = block.startswith(" ")
        filled = block.splitlines() if is_layout else textwrap.wrap(block, WIDTH, break_long_words=False, break_on_hyphens=False)
        lines += [*([""] if lines else []), *filled]
    return lines


def table(rows: Sequence[tuple[str, str]]) -> list[str]:
    """What is typed and what it means, in two columns; the second one wraps in itself."""
    width = min(max((len(left) for left, _ in rows), default=0), WIDTH // 3)
    lines: list[str] = []
    for left, right in rows:
        indent = " " * (width + 4)
        wrapped = textwrap.wrap(right, WIDTH, initial_indent=indent, subsequent_indent=indent, break_on_hyphens=False) or [indent]
        if len(left) > width:
            lines += [f"  {left}", *wrapped]
        else:
            lines += [f"  {left:<{width}}  {wrapped[0].strip()}".rstrip(), *wrapped[1:]]
    return lines


def _cut(line: str) -> str:
    return line.rstrip() if len(line) <= WIDTH else line[: WIDTH - 1].rstrip() + "…"
