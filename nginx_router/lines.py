"""Files of one entry a line (DOMAINS, UPSTREAMS): edited so that comments, order and blank lines survive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from io import StringIO


def entries(text: str) -> list[tuple[int, str]]:
    """The entries with their line numbers (from 1): comments and blank lines left out."""
    found = []
    for number, line in enumerate(_lines(text), 1):
        entry = _entry(line)
        if entry:
            found.append((number, entry))
    return found


def add(text: str, new: Iterable[str]) -> str:
    """`text` with the lines `new` at its end."""
    lines = list(new)
    if not lines:
        return text
    start = text if not text or text.endswith("\n") else text + "\n"
    return start + "".join(f"{line}\n" for line in lines)


def keep(text: str, wanted: Callable[[str], bool]) -> str:
    """`text` without the entries that are not `wanted`."""
    return edit(text, lambda entry: entry if wanted(entry) else None)


def replace(text: str, instead: Mapping[str, str]) -> str:
    """`text` with entries exchanged, each at its place and with its trailing comment."""
    return edit(text, lambda entry: instead.get(entry, entry))


def edit(text: str, change: Callable[[str], str | None]) -> str:
    """`text` with each entry as `change` wants it: at its place and with its trailing comment, or (None) gone with its line."""
    out = []
    for line in _lines(text):
        entry = _entry(line)
        new = change(entry) if entry else entry
        if new is not None:
            out.append(line if new == entry else line.replace(entry, new, 1))
    return "".join(out)


def _lines(text: str) -> list[str]:
    # not str.splitlines: a form feed or U+2028 in a comment would begin a line that no editor shows
    return list(StringIO(text, newline="\n"))


def _entry(line: str) -> str:
    # a '#' begins a comment at the start of a line or behind white space, as in a shell
    stripped = line.strip()
    if stripped.startswith("#"):
        return ""
    for mark in (" #", "\t#"):
        stripped = stripped.partition(mark)[0]
    return stripped.strip()
