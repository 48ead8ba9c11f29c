"""Files of one entry a line (DOMAINS, UPSTREAMS): edited so that comments, order and blank lines survive."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping


def entries(text: str) -> list[tuple[int, str]]:
    """The entries with their line numbers (from 1): comments and blank lines left out."""
    found = []
    for number, line in enumerate(text.splitlines(), 1):
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
    return "".join(line for line in text.splitlines(keepends=True) if not _entry(line) or wanted(_entry(line)))


def replace(text: str, instead: Mapping[str, str]) -> str:
    """`text` with entries exchanged, each at its place and with its trailing comment."""
    out = []
    for line in text.splitlines(keepends=True):
        entry = _entry(line)
        out.append(line.replace(entry, instead[entry], 1) if entry in instead else line)
    return "".join(out)


def _entry(line: str) -> str:
    # a '#' begins a comment at the start of a line or behind white space, as in a shell
    stripped = line.strip()
    if stripped.startswith("#"):
        return ""
    for mark in (" #", "\t#"):
        stripped = stripped.partition(mark)[0]
    return stripped.strip()
