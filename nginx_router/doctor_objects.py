"""Checks of what generations are made of: whole, as they were made, and no more than is named."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .errors import RouterError, StateCorrupt
from .findings import Finding, Look, ok, problem, some, warning
from .generations import Generations, objects_in, objects_of
from .model import Entry, Facts

#: How old an object is before it counts as left: a change under way writes some before a generation names them.
_OLD = 60.0


def generations(look: Look) -> Iterator[Finding]:
    """Whether each generation is what it was when it was made, and follows from one that is there."""
    kept = look.router.generations
    numbers = kept.numbers()
    bad = [n for n in numbers if not _is_whole(kept, n)]
    if bad:
        mine = look.index is not None and look.index.number in bad
        among = " (the current one is among them)" if mine else ""
        yield problem(
            f"generations were changed or cannot be read: {some([str(n) for n in bad])}{among}",
            "restore them from a backup" if mine else f"rm -r {kept.directory(bad[0])}: it cannot be rolled back to",
        )
    ahead = [n for n in numbers if look.index is not None and n > look.index.number]
    if ahead:
        yield warning(
            f"generations newer than the current one are there: {some([str(n) for n in ahead])} (`current` was changed by hand)",
            f"router generations:show {ahead[-1]}",
        )
    for older, newer in itertools.pairwise(numbers):
        with contextlib.suppress(RouterError):
            parent = kept.manifest(newer).parent
            if parent not in (None, older) and parent not in numbers:
                yield warning(f"generation {newer} follows from {parent}, which is gone", f"router generations:diff {older} {newer}")
    if not bad:
        yield ok(f"{len(numbers)} kept")


def objects(look: Look) -> Iterator[Finding]:
    """Whether every object that nginx reads is what its name says: one that is not keeps it from starting, or serves what nobody wrote."""
    if look.index is None:
        return
    wrong = {name: bad for name, entry in look.index.apps.items() if (bad := _wrong(look, entry))}
    for name, bad in wrong.items():
        what = "; ".join(f"objects/{sha[:12]}… {why}" for sha, why in bad.items())
        yield problem(
            f"app {name}: {what}",
            "router doctor --fix, which makes it again; else restore it from a backup",
            lambda name=name, bad=bad: _remake(look, name, bad),  # type: ignore[misc]  # bound now
        )
    if not wrong:
        yield ok(f"{len(objects_in(look.index))} of the current generation are whole")


def unnamed(look: Look) -> Iterator[Finding]:
    """Objects that no generation names: they cost nothing but room."""
    found = _unnamed(look)
    if found:
        size = sum(_size(look.router.generations.object_path(sha)) for sha in found)
        yield warning(f"{len(found)} objects ({size >> 10} KiB) belong to no generation", mend=lambda: _sweep(look))


def newest_good(kept: Generations) -> int | None:
    """The newest generation of which nothing is missing or changed."""
    for number in reversed(kept.numbers()):
        with contextlib.suppress(RouterError):
            if _is_whole(kept, number) and all(kept.object(sha) is not None for sha in objects_in(kept.index(number))):
                return number
    return None


def _remake(look: Look, name: str, bad: Iterable[str]) -> str:
    """Make objects again: from the app's state, else from its directory; what has another hash then is not it."""
    kept = look.router.generations
    with look.router.locked():
        index = look.router.index()
        entry = index.apps.get(name) if index else None
        if entry is None:
            return "the app is gone"
        try:
            texts, facts = kept.app_state(entry)
        except StateCorrupt:
            texts, facts = look.router.store.texts(name) or {}, Facts()
        rendered = look.router.rehearsal().render(name, texts, facts)
        made = {
            hashlib.sha256(data).hexdigest(): data
            for data in (rendered.state, rendered.vhost, *(data for _, data in rendered.includes.values()))
        }
        for sha in bad:
            if sha not in made:
                raise StateCorrupt(
                    f"object {sha[:12]}… of app {name} cannot be made again: its files or the settings changed since",
                    hint=f"restore {kept.object_path(sha)} from a backup, or change the app and: router reconcile {name}",
                )
        for sha in bad:
            kept.object_path(sha).unlink(missing_ok=True)
            kept.put(made[sha])
    return f"made again from the files of {name}"


def _sweep(look: Look) -> str:
    with look.router.locked():
        found = _unnamed(look)
        for sha in found:
            look.router.generations.object_path(sha).unlink(missing_ok=True)
    return f"removed {len(found)}"


def _is_whole(kept: Generations, number: int) -> bool:
    try:
        manifest = kept.manifest(number)
        kept.index(number)
        directory = kept.directory(number)
        both = (directory / "router.conf").read_bytes() + (directory / "state.json").read_bytes()
        return manifest.generation == number and hashlib.sha256(both).hexdigest() == manifest.digest
    except (RouterError, OSError):
        return False


def _wrong(look: Look, entry: Entry) -> dict[str, str]:
    found = {}
    for sha in objects_of(entry):
        try:
            look.router.generations.object(sha)
        except StateCorrupt as why:
            found[sha] = "is missing" if why.message.endswith("missing") else "was changed"
    return found


def _unnamed(look: Look) -> list[str]:
    kept = look.router.generations
    if look.paths.intent.exists() or not look.paths.objects.is_dir():
        return []  # a change that a crash left has objects that no generation names yet
    named: set[str] = set()
    for number in kept.numbers():
        try:
            named |= objects_in(kept.index(number))
        except RouterError:
            return []  # what it names is not known
    with os.scandir(look.paths.objects) as there:
        old = time.time() - _OLD
        return sorted(e.name for e in there if _is_hash(e.name) and e.name not in named and e.stat().st_mtime < old)


def _is_hash(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
