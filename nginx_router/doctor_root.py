"""Checks of the root: what `current` points to, what crashed commands left, modes, edits that nobody took up."""

from __future__ import annotations

import contextlib
import pwd
import stat
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from .beneath import Directory
from .doctor_objects import newest_good
from .errors import NotFound, RouterError, StateCorrupt
from .files import FileLock, remove_tree
from .findings import Finding, Look, ok, problem, some, warning
from .hookspecs import HOOKS
from .owners import Hosts
from .processes import is_alive
from .store import TRASH

#: How old a temporary file is before it counts as left; or how far in the future, where the clock went back.
_OLD = 60.0

#: How long the host waits for the removal of one thing that was left, in seconds.
_TIDYING = 30.0


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
            asks=f"Make generation {good} the current one, and take up what the directories say since?",
        )
        return
    if index and not index.is_of(look.paths.root):
        yield problem(
            f"this root is a copy of {index.root}: generation {index.number} names files there",
            mend=lambda: _move_in(look),
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
    root, hosts = look.paths.root, Hosts.of(look.paths.root)
    private = [*((path, most, "read what is nobody else's affair") for path, most in _private(look)), *_locks(look)]
    for path, most, what in [*((path, most, "read keys") for path, _, most in _keys(root)), *private]:
        with contextlib.suppress(FileNotFoundError):
            mode = stat.S_IMODE(path.lstat().st_mode)
            if mode & 0o777 & ~most:
                said = f"{path.relative_to(root)} is {mode:04o}: others may {what}"
                yield problem(
                    said,
                    f"chmod {most:04o} {path}",
                    lambda path=path, most=most: _chmod(look, path, most),  # type: ignore[misc]  # bound now
                )
    open_to_all = [path for path, mode, _ in _walk(root) if mode & 0o002]
    if open_to_all:
        names = some([str(path.relative_to(root)) for path in open_to_all])
        yield problem(f"anybody may write {names}", f"chmod -R o-w {root}", lambda: _close(look, open_to_all, 0o7775))
    shared = [p for p, mode, _ in _hosts_own(look) if mode & 0o020 and not mode & 0o002 and not hosts.alone_write(p.lstat(), p)]
    if shared:
        names = some([str(path.relative_to(root)) for path in shared])
        yield problem(
            f"a group may write {names}, and so everything that root does here",
            f"chmod -R g-w {root}",
            lambda: _close(look, shared, 0o7755),
        )


def owners(look: Look) -> Iterator[Finding]:
    """Files that belong to somebody else than the root does: whoever that is changes what is served, of an app or of all."""
    root = look.paths.root
    if not root.is_dir():
        return
    own = root.stat().st_uid
    strange: dict[int, list[str]] = {}
    for path, _, uid in _hosts_own(look):
        if uid not in (own, 0):
            strange.setdefault(uid, []).append(str(path.relative_to(root)))
    for uid, names in sorted(strange.items()):
        yield problem(
            f"{some(names, 3)} belong to {_user(uid)}, who so may do what {_user(own)} may", f"chown -R {_user(own)} {root / names[0]}"
        )
    of_others = [name for name in look.router.store.names() if look.router.store.confined(name)]
    if of_others:
        said = f"others than {_user(own)} may write files of {some(of_others)}, which are held to what cannot leave their app"
        if look.settings.get("allowed-ports"):
            yield ok(said)
        else:
            yield warning(f"{said}; but they may listen on any port that is free", "router proxy:set --global allowed-ports 8000-8999")


def plugins(look: Look) -> Iterator[Finding]:
    """Whether each plugin can be used, and what it did when it was called last."""
    plugins, exists = look.router.plugins, look.router.store.exists
    roster = plugins.roster()
    broken = plugins.broken(all=True)
    for name, why in sorted(broken.items()):
        yield problem(f"plugin {name} is broken and left out: {why}", f"repair it, or: router plugins:disable {name}")
    for name, listed in roster.items():
        for failed in plugins.failed(name, exists) if listed.is_enabled else ():
            # what is told afterwards holds nothing up
            found = warning if HOOKS[failed.hook].kind == "notify" else problem
            again = f"router plugins:trigger {failed.hook}{f' {failed.app}' if failed.app else ''}"
            yield found(f"plugin {name}: {failed.what}", f"mend it, then: {again}; or: router plugins:disable {name}")
    if not broken:
        yield ok(f"{len(plugins.names())} can be used")


# what is mended


def _point(look: Look, number: int) -> str:
    lock = FileLock(look.paths.lock)
    look.paths.run.mkdir(parents=True, exist_ok=True)
    aside = ""
    lock.acquire(look.router.request.lock_timeout, "the host")
    try:
        if look.paths.current.is_dir() and not look.paths.current.is_symlink():
            free = next(n for n in range(1, 10_000) if not (look.paths.root / f"current.{n}").exists())
            aside = f"the directory is current.{free} now; "
            look.paths.current.rename(look.paths.root / f"current.{free}")
        look.router.generations.commit(number)
        is_newest = number == max(look.router.generations.directories())
    finally:
        lock.release()
    if is_newest:
        with look.router.locked():  # whoever takes the lock makes nginx serve what is current, and proves it
            return f"{aside}current is generation {number}"
    # newer ones were lost: what they were made of stands in the directories
    left = [str(outcome.app) for outcome in look.router.reconcile() if outcome.error]
    what = f", but not {some(left)}" if left else ""
    return f"{aside}current was generation {number}; what the directories say was taken up{what}: generation {_number(look)}"


def _number(look: Look) -> int | None:
    return look.router.generations.current_number()


def _move_in(look: Look) -> str:
    failed = [str(outcome.app) for outcome in look.router.reconcile() if outcome.error]
    return f"made anew from the directories{f', left out: {some(failed)}' if failed else ''}"


def _left(look: Look) -> list[Path]:
    """Asked under the host lock: nobody is at work."""
    paths = look.paths
    now = time.time()
    found = [path for path in (paths.intent, paths.changing, paths.root / TRASH) if path.exists()]
    found += [path for path in paths.run.glob("validate-*") if not _lives(path.name.rpartition("-")[2])]
    for directory in (paths.root, paths.run, paths.objects, paths.generations, paths.apps, *_app_directories(paths.apps)):
        found += [path for path in directory.glob(".*.tmp") if abs(now - path.lstat().st_mtime) > _OLD]
    for path in paths.queue.glob("*") if paths.queue.is_dir() else ():
        if path.suffix in (".json", ".taken", ".answer") and path.name.count("-") >= 2 and not _lives(path.name.split("-")[1]):
            found.append(path)
    return found


def _clear(look: Look) -> str:
    aside = _put_aside(look)
    with look.router.locked():  # which finishes or undoes a change, and drops what dead commands asked for
        left = _left(look)
        for path in left:
            if path.is_dir() and not path.is_symlink():
                if not remove_tree(path, _TIDYING):
                    raise RouterError(f"{path} could not be removed within {_TIDYING:.0f} s", hint=f"rm -rf {path}")
            else:
                path.unlink(missing_ok=True)
    if aside:
        return f"what it was to write cannot be read: it is in {aside} now, and `hand-edits` names what it may have left half done"
    return "finished or undone, and cleared away"


def _put_aside(look: Look) -> str:
    """Where an intent is now that cannot be read; nothing where there is none, or it can be."""
    try:
        look.router.store.intent()
    except StateCorrupt:
        aside = look.paths.intent.with_name("intent.damaged")
        look.paths.intent.rename(aside)
        return str(aside)
    return ""


def _forget_stale(look: Look, app: str) -> str:
    with look.router.locked():
        look.router.store.mark_stale({app: None})
    return "forgotten"


def _chmod(look: Look, path: Path, most: int) -> str:
    _restrict(look, path, most)
    return f"{path.name} is no more than {most:04o}"


def _close(look: Look, paths: Iterable[Path], most: int) -> str:
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            _restrict(look, path, most)
    return "others may not write any more"


def _restrict(look: Look, path: Path, most: int) -> None:
    """By descriptors: the owner of an app's directory may exchange what lies in it for a link at any moment."""
    apps = look.paths.apps
    top = apps if path.is_relative_to(apps) and path != apps else path.parent
    *steps, name = path.relative_to(top).parts
    with contextlib.ExitStack() as opened:
        directory = opened.enter_context(Directory.open(top, Hosts.of(look.paths.root)))
        for step in steps:
            directory = opened.enter_context(directory.inside(step))
        directory.restrict(name, most)


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


def _private(look: Look) -> Iterator[tuple[Path, int]]:
    """What holds texts of apps, and the most that its mode may be."""
    yield from ((path, 0o700) for path in (look.paths.objects, look.paths.queue))
    yield look.paths.intent, 0o600


def _locks(look: Look) -> Iterator[tuple[Path, int, str]]:
    """Whoever may open a lock may hold it."""
    run = look.paths.run
    yield from (
        (path, 0o600, "hold up changes") for path in (look.paths.lock, run / "watch.lock", *sorted((run / "deploy").glob("*.lock")))
    )


def _hosts_own(look: Look) -> Iterator[tuple[Path, int, int]]:
    """Files and directories that are no app's; logs and nginx's temporary files may be its workers'."""
    paths = look.paths
    for path in (paths.root, paths.apps, paths.run, paths.log):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            yield path, stat.S_IMODE(found.st_mode), found.st_uid
    yield from _walk(
        paths.root, only=("router.toml", "DOMAINS", "plugins", "objects", "generations", "run/queue", "run/lock", "run/deploy")
    )


def _walk(root: Path, only: tuple[str, ...] = ()) -> Iterator[tuple[Path, int, int]]:
    """Files and directories of the root that make configuration, their modes and owners.

    nginx makes its sockets for everybody, and links have no mode.
    """
    todo = [root / name for name in only] if only else [root]
    while todo:
        path = todo.pop()
        try:
            found = path.lstat()
        except OSError:  # gone, or too deep
            continue
        if stat.S_ISDIR(found.st_mode) or stat.S_ISREG(found.st_mode):
            yield path, stat.S_IMODE(found.st_mode), found.st_uid
        if stat.S_ISDIR(found.st_mode) and path != root / "run" / "tmp":
            with contextlib.suppress(OSError):
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
