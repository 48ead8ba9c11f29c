"""Checks of what generations are made of: whole, as they were made, and no more than is named."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from . import proxy, routes
from .draft import Draft
from .errors import RouterError, StateCorrupt
from .files import write_atomic
from .findings import Finding, Look, ok, problem, some, warning
from .generations import Generations
from .index import objects_in
from .remaking import remake

#: How old an object is before it counts as left: a change under way writes some before a generation names them.
_OLD = 60.0

#: What is wrong with a generation whose files can be read.
_PROGRAM, _SNAPSHOT = "live.lua", "live.tsv"
_CHANGED = "it is not what its digest says"


def generations(look: Look) -> Iterator[Finding]:
    """Whether each generation is what it was when it was made, and follows from one that is there."""
    kept = look.router.generations
    numbers = kept.numbers()
    bad = {n: why for n in kept.directories() if (why := _wrong_with(kept, n))}
    for number, why in bad.items():
        yield _of_bad(look, number, why)
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
    is_lost = look.index is not None and look.index.is_lost
    if look.index is not None and is_lost:
        yield problem(
            f"{kept.log_path(look.index.number)} is lost or was changed: where requests go, the app directories alone say",
            "router reconcile --all",
            lambda: _take_up_all(look),
        )
    before = [n for n in numbers if n not in bad and n != kept.current_number() and kept.index(n).is_lost]
    if before:
        which = f"generation {before[0]}" if len(before) == 1 else f"generations {some([str(n) for n in before])}"
        yield warning(
            f"endpoints.log of {which} is lost or was changed: a rollback with --endpoints brings those that it began with, not its last",
            f"roll back without --endpoints: router generations:rollback {before[-1]}",
        )
    is_short = look.index is not None and look.index.number not in bad and not _has_snapshot(kept, look.index.number)
    if look.index is not None and is_short:
        number = look.index.number
        yield problem(
            f"{kept.directory(number) / _SNAPSHOT} is gone or was changed: an nginx that starts knows no instance until it is sent them, "
            "and answers 502",
            mend=lambda: _write_snapshot(look, number),
        )
    if not bad and not is_lost and not before and not is_short:
        yield ok(f"{len(numbers)} kept")


def objects(look: Look) -> Iterator[Finding]:
    """Whether every object that nginx reads is what its name says: one that is not keeps it from starting, or serves what nobody wrote."""
    if look.index is None:
        return
    wrong = look.router.generations.damaged(look.index)
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


def rewrite(look: Look) -> str:
    """Write what nginx reads of the current generation again: its digest proves that it is what it was.

    Raises:
        StateCorrupt: they would be others.
    """
    kept = look.router.generations
    with look.router.locked():
        index = look.router.index()
        assert index is not None
        made = Draft(look.router.rehearsal()).stage_files(index)
        files = {name: text for name, text in made.items() if name in ("router.conf", "nginx.conf", _PROGRAM)}
        state = (kept.directory(index.number) / "state.json").read_bytes()
        if hashlib.sha256(files["router.conf"].encode(errors="surrogateescape") + state).hexdigest() != kept.manifest(index.number).digest:
            raise StateCorrupt(
                f"generation {index.number} cannot be made again: its state, or what renders it, is another",
                hint="the next change makes a new one, for instance: router domains:add APP NAME",
            )
        for name, text in files.items():
            write_atomic(kept.directory(index.number) / name, text.encode(errors="surrogateescape"))
    return f"{' and '.join(files)} of generation {index.number} were written again, as they were"


def _take_up_all(look: Look) -> str:
    left = [f"{each.app}: {each.error.message}" for each in look.router.reconcile() if each.error]
    return f"all app directories were taken up{'; left out: ' if left else ''}{'; '.join(left)}"


def _snapshot(kept: Generations, number: int) -> str | None:
    """The routes that nginx reads of a generation as it starts; what came to them later is in its log.  None: it has none."""
    made = json.loads((kept.directory(number) / "state.json").read_text())
    if not made.get("live"):
        return None
    return routes.snapshot(made["live"], {name: line for each in made["apps"].values() for name, line in each.get("routes", ())})


def _has_snapshot(kept: Generations, number: int) -> bool:
    wanted = _snapshot(kept, number)
    if wanted is None:
        return True
    try:
        return (kept.directory(number) / _SNAPSHOT).read_bytes() == wanted.encode()
    except FileNotFoundError:
        return False


def _write_snapshot(look: Look, number: int) -> str:
    kept = look.router.generations
    with look.router.locked():
        wanted = _snapshot(kept, number) if kept.current_number() == number else None
        if wanted is None:
            return f"generation {number} is not current any more"
        write_atomic(kept.directory(number) / _SNAPSHOT, wanted.encode())
    return f"{_SNAPSHOT} of generation {number} was written again, as it was"


def newest_good(kept: Generations) -> int | None:
    """The newest generation of which nothing is missing or changed."""
    for number in reversed(kept.numbers()):
        with contextlib.suppress(RouterError):
            if _is_whole(kept, number) and all(kept.object(sha) is not None for sha in kept.named(number)):
                return number
    return None


def _of_bad(look: Look, number: int, why: str) -> Finding:
    """A generation that is not what it was, and what is left of it to go by."""
    kept = look.router.generations
    what = f"generation {number} was changed or cannot be read: {why}"
    if look.index is not None and look.index.number == number:
        if why.startswith("manifest.json"):
            return problem(what, mend=lambda: _remake_manifest(look, number))
        return problem(f"{what} (it is the current one)", "router doctor --fix, else restore it from a backup", lambda: rewrite(look))
    fix = f"rm -r {kept.directory(number)}: it cannot be rolled back to"
    if why.startswith("manifest.json"):
        return problem(what, fix, lambda: _remake_manifest(look, number))
    # what is another than it was may be what a person wants to look at; what cannot be read is of use to nobody
    return problem(what, fix, None if why == _CHANGED else lambda: _remove(look, number))


def _remake_manifest(look: Look, number: int) -> str:
    with look.router.locked():
        kept = look.router.generations
        kept.remake_manifest(number)
    return f"manifest.json of generation {number} was made again; the command that made it is not known any more"


def _remove(look: Look, number: int) -> str:
    with look.router.locked():
        shutil.rmtree(look.router.generations.directory(number))
    return f"generation {number} was removed: nothing could be rolled back to it"


def _remake(look: Look, name: str, bad: Iterable[str]) -> str:
    """Make objects again: from the app's state, else from its directory; what has another hash then is not it."""
    kept = look.router.generations
    with look.router.locked():
        index = look.router.index()
        if index is None or name not in index.apps:
            return "the app is gone"
        for sha in remake(look.router.rehearsal(), {name: bad}).get(name, ()):
            raise StateCorrupt(
                f"object {sha[:12]}… of app {name} cannot be made again: its files or the settings changed since",
                hint=f"restore {kept.object_path(sha)} from a backup, or change the app and: router reconcile {name}",
            )
        if look.router.plane().master() is None or index.apps[name].state in bad:
            return f"made again from the files of {name}"
    proxy.reload(look.router)  # it may have read the other bytes
    return f"made again from the files of {name}, and nginx was reloaded"


def _sweep(look: Look) -> str:
    with look.router.locked():
        found = _unnamed(look)
        for sha in found:
            look.router.generations.object_path(sha).unlink(missing_ok=True)
    return f"removed {len(found)}"


def _is_whole(kept: Generations, number: int) -> bool:
    return not _wrong_with(kept, number)


def _wrong_with(kept: Generations, number: int) -> str:
    """What is wrong with a generation; nothing where it is what it was."""
    directory = kept.directory(number)
    try:
        index = kept.index(number)
    except RouterError as why:
        return f"state.json: {why.message.rpartition('state.json: ')[2]}"
    try:
        manifest = kept.manifest(number)
    except RouterError as why:
        return f"manifest.json: {why.message.rpartition('manifest.json: ')[2]}"
    try:
        both = (directory / "router.conf").read_bytes() + (directory / "state.json").read_bytes()
    except OSError as why:
        return f"router.conf: {why.strerror}"
    is_it = manifest.generation == index.number == number and hashlib.sha256(both).hexdigest() == manifest.digest
    if is_it and index.live and not (directory / _PROGRAM).is_file() and kept.paths.current.resolve() == directory.resolve():
        return f"{_PROGRAM} is gone"  # nginx starts without it, and answers 500; router.conf names its digest
    return "" if is_it else _CHANGED


def _unnamed(look: Look) -> list[str]:
    kept = look.router.generations
    if look.paths.intent.exists() or not look.paths.objects.is_dir():
        return []  # a change that a crash left has objects that no generation names yet
    named: set[str] = set()
    for number in kept.numbers():
        try:
            named |= kept.named(number)
        except RouterError:
            return []  # what it names is not known
    with os.scandir(look.paths.objects) as there:
        now = time.time()  # one of the future is old too: the clock went back
        return sorted(e.name for e in there if _is_hash(e.name) and e.name not in named and abs(now - e.stat().st_mtime) > _OLD)


def _is_hash(name: str) -> bool:
    return len(name) == 64 and not set(name) - set("0123456789abcdef")


def _size(path: Path) -> int:
    with contextlib.suppress(OSError):
        return path.stat().st_size
    return 0
