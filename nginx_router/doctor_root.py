"""Checks of the root: what `current` points to, what crashed commands left, modes, edits that nobody took up."""

from __future__ import annotations

import contextlib
import pwd
import shutil
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .doctor_objects import newest_good
from .errors import NotFound, RouterError, StateCorrupt
from .files import FileLock
from .findings import Finding, Look, ok, problem, some, warning
from .processes import is_alive
from .store import TRASH

#: How old a temporary file is before it counts as left.
_OLD = 60.0


def current(look: Look) -> Iterator[Finding]:
    """Whether `current` names a generation that can be read."""
    generations = look.router.generations
    try:
        index = generations.current()
    except (StateCorrupt, NotFound) as why:
        good = newest_good(generations)
        if good is None:
            yield problem(
                why.message, "restore generations/, objects/ and current from a backup, or remove them, then: router reconcile --all"
            )
            return
        yield problem(
            f"{why.message}; the newest good one is {good}",
            f"ln -sfn generations/{good:06d} {look.paths.current}, then: router reconcile --all",
            lambda: _point(look, good),
            asks=f"Make generation {good} the current one?",
        )
        return
    yield ok(f"generation {index.number}" if index else "there is no generation yet: the first change, or proxy:start, makes one")


def leftovers(look: Look) -> Iterator[Finding]:
    """What commands left that were killed in the middle."""
    if not look.paths.run.is_dir():
        return
    lock = FileLock(look.paths.lock)
    try:
        if not lock.try_acquire():
            yield ok(f"a change is under way: {lock.holder()}")
            return
        left = _left(look)
    finally:
        lock.release()
    if left:
        yield problem(
            f"a command was killed in the middle and left {some([str(p.relative_to(look.paths.root)) for p in left])}",
            mend=lambda: _clear(look),
        )


def settings(look: Look) -> Iterator[Finding]:
    """Whether the host-wide settings can be read."""
    try:
        look.router.settings()
    except RouterError as why:
        yield problem(why.message, f"edit {look.paths.config}, then: router reconcile --all")


def stale(look: Look) -> Iterator[Finding]:
    """Apps whose directory cannot be served: what was served last still is."""
    there = {*look.router.store.names(), *(look.index.apps if look.index else ())}
    for app, found in sorted(look.router.stale().items()):
        if app in there:
            yield problem(f"app {app} is stale: {found['problem']}", f"mend its files, then: router reconcile {app}")
        else:
            yield warning(
                f"app {app} is called stale and exists no more",
                mend=lambda app=app: _forget_stale(look, app),  # type: ignore[misc]  # bound now
            )


def hand_edits(look: Look) -> Iterator[Finding]:
    """Directories that say something else than what is served, because nobody took the edit up."""
    if look.index is None:
        return
    edited, known = [], look.router.stale()
    for name in sorted({*look.router.store.names(), *look.index.apps}):
        if name in known:
            continue  # said already
        with contextlib.suppress(StateCorrupt):
            entry = look.index.apps.get(name)
            texts = look.router.generations.app_state(entry)[0] if entry else None
            if _texts(look, name) != texts:
                edited.append(name)
    if edited:
        names = " ".join(edited) if len(edited) <= 5 else "--all"
        yield warning(f"edits were not taken up: {some(edited)}", f"router reconcile {names}")
    if look.router.store.globals() != (look.index.config, look.index.global_domains):
        yield warning("edits of router.toml or the global DOMAINS were not taken up", "router reconcile --all")


def modes(look: Look) -> Iterator[Finding]:
    """Who may read keys and write what nginx is made from."""
    root = look.paths.root
    for path, mode, most in _keys(root):
        if mode & ~most:
            what = f"{path.relative_to(root)} is {mode:04o}: others may read keys"
            yield problem(what, f"chmod {most:04o} {path}", lambda path=path, most=most: _chmod(path, most))  # type: ignore[misc]  # bound now
    open_to_all = [(path, mode) for path, mode, _ in _walk(root) if mode & 0o002]
    if open_to_all:
        names = some([str(path.relative_to(root)) for path, _ in open_to_all])
        yield problem(f"anybody may write {names}", f"chmod -R o-w {root}", lambda: _close(open_to_all))


def owners(look: Look) -> Iterator[Finding]:
    """Files of apps that belong to somebody else than the root does: whoever that is changes what is served."""
    root = look.paths.root
    if not root.is_dir():
        return
    own = root.stat().st_uid
    strange: dict[int, list[str]] = {}
    for path, _, uid in _walk(root, only=("apps", "router.toml", "DOMAINS", "plugins")):
        if uid not in (own, 0):
            strange.setdefault(uid, []).append(str(path.relative_to(root)))
    for uid, names in sorted(strange.items()):
        yield warning(f"{some(names, 3)} belong to {_user(uid)}, and the root to {_user(own)}", f"chown -R {_user(own)} {root / 'apps'}")


def plugins(look: Look) -> Iterator[Finding]:
    """Whether each plugin can be used."""
    broken = look.router.plugins.broken(all=True)
    for name, why in sorted(broken.items()):
        yield problem(f"plugin {name} is broken and left out: {why}", f"repair it, or: router plugins:disable {name}")
    if not broken:
        yield ok(f"{len(look.router.plugins.names())} can be used")


# what is mended


def _point(look: Look, number: int) -> str:
    lock = FileLock(look.paths.lock)
    look.paths.run.mkdir(parents=True, exist_ok=True)
    lock.acquire(look.router.request.lock_timeout, "the host")
    try:
        if look.paths.current.is_dir() and not look.paths.current.is_symlink():
            raise StateCorrupt(f"{look.paths.current} is a directory, not a link", hint="move it away, then: router doctor --fix")
        look.router.generations.commit(number)
    finally:
        lock.release()
    with look.router.locked():  # whoever takes the lock makes nginx serve what is current, and proves it
        return f"current is generation {number}"


def _left(look: Look) -> list[Path]:
    """Asked under the host lock: nobody is at work."""
    paths = look.paths
    now = time.time()
    found = [path for path in (paths.intent, paths.root / TRASH) if path.exists()]
    found += [path for path in paths.run.glob("validate-*") if not _lives(path.name.rpartition("-")[2])]
    for directory in (paths.root, paths.run, paths.objects, paths.generations, paths.apps, *_app_directories(paths.apps)):
        found += [path for path in directory.glob(".*.tmp") if now - path.lstat().st_mtime > _OLD]
    for path in paths.queue.glob("*") if paths.queue.is_dir() else ():
        if path.suffix in (".json", ".taken", ".answer") and path.name.count("-") >= 2 and not _lives(path.name.split("-")[1]):
            found.append(path)
    return found


def _clear(look: Look) -> str:
    with look.router.locked():  # which finishes or undoes a change, and drops what dead commands asked for
        left = _left(look)
        for path in left:
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    return "finished or undone, and cleared away"


def _forget_stale(look: Look, app: str) -> str:
    with look.router.locked():
        look.router.store.mark_stale({app: None})
    return "forgotten"


def _chmod(path: Path, mode: int) -> str:
    path.chmod(mode)
    return f"{path.name} is {mode:04o}"


def _close(open_to_all: Iterable[tuple[Path, int]]) -> str:
    for path, mode in open_to_all:
        with contextlib.suppress(FileNotFoundError):
            path.chmod(mode & ~0o002)
    return "others may not write any more"


# what is looked at


def _texts(look: Look, name: str) -> object:
    try:
        return look.router.store.texts(name)
    except (RouterError, OSError):
        return "cannot be read"


def _keys(root: Path) -> Iterator[tuple[Path, int, int]]:
    """Directories and files of keys, their modes, and the most that may be."""
    for top, directory_mode, file_mode in (
        (root / "objects/private", 0o700, 0o400),
        *((path / "tls", 0o700, 0o600) for path in _app_directories(root / "apps")),
    ):
        if not top.is_dir() or top.is_symlink():
            continue
        yield top, stat.S_IMODE(top.stat().st_mode), directory_mode
        for path in sorted(top.iterdir()):
            if path.is_file() and not path.is_symlink():
                yield path, stat.S_IMODE(path.stat().st_mode), file_mode


def _walk(root: Path, only: tuple[str, ...] = ()) -> Iterator[tuple[Path, int, int]]:
    """Files and directories of the root that make configuration, their modes and owners.

    nginx makes its sockets for everybody, and links have no mode.
    """
    todo = [root / name for name in only] if only else [root]
    while todo:
        path = todo.pop()
        try:
            found = path.lstat()
        except FileNotFoundError:
            continue
        if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
            yield path, stat.S_IMODE(found.st_mode), found.st_uid
        if stat.S_ISDIR(found.st_mode) and path != root / "run" / "tmp":
            with contextlib.suppress(PermissionError):
                todo += sorted(path.iterdir(), reverse=True)


def _app_directories(apps: Path) -> list[Path]:
    with contextlib.suppress(FileNotFoundError):
        return sorted(path for path in apps.iterdir() if path.is_dir() and not path.is_symlink())
    return []


def _lives(pid: str) -> bool:
    return pid.isdigit() and is_alive(int(pid))


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
