"""An archive as one change of the directories: all of it or nothing.

The whole archive is read and checked before anything is written; then the settings and the apps are one change, which nginx
judges and proves like any other.  What makes no configuration (keys in tls/, other files of an app) waits in run/import-PID
meanwhile and takes its place when the change is served.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import shutil
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from .archive import File, Manifest, Reading
from .controller import Outcome, Router
from .errors import NotFound, PluginBroken, RouterError, UsageProblem, nearest
from .events import Event
from .files import LARGEST, inherit_owner, make_directory
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, parse_app, parse_globals
from .processes import is_alive
from .setup import refuse_switch

_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DIRECTORY = os.O_RDONLY | os.O_NOFOLLOW | os.O_DIRECTORY | os.O_CLOEXEC
_STAGING = "import-"


@dataclass(frozen=True)
class Wanted:
    """What of an archive is to be imported, and how."""

    apps: tuple[str, ...] = ()  # these alone; none: all, and the host's settings
    endpoints: bool = True
    settings: bool = True
    plugins: bool = False
    prune: bool = False  # apps of this host that the archive does not hold go


@dataclass(frozen=True)
class Imported:
    """What an import came to."""

    manifest: Manifest
    outcomes: list[Outcome]
    stay: tuple[str, ...]  # apps of this host that the archive does not hold
    plugins: tuple[str, ...]  # that were installed


def bring_in(router: Router, stream: BinaryIO, name: str, wanted: Wanted) -> Imported:
    """Make the apps of an archive, and the host's settings, what this host serves: all of it or nothing.

    Raises:
        UsageProblem: the archive is not what an export wrote, or holds what breaks a rule.
        NotFound: an app that is wanted is not in it.
        Conflict: a domain belongs to an app of this host that is not replaced; its owner is named.
        PluginBroken: a plugin of the archive cannot be used here.
        RouterError: nginx does not take it.
    """
    reading = Reading(stream, name)
    manifest = reading.manifest
    for app in wanted.apps:
        if app not in manifest.apps:
            raise NotFound(f"app {app} is not in {name}{nearest(app, manifest.apps)}", hint=f"it holds {len(manifest.apps)} apps")
    chosen = wanted.apps or manifest.apps
    router.store.prepare()
    with _staging(router) as staging:
        content = _Content(staging, chosen, is_whole=manifest.is_whole and not wanted.apps)
        for path, found, pieces in reading.files():
            content.take(path, found, pieces)
        others = [app for app in router.store.names() if app not in manifest.apps] if not wanted.apps else []
        with _plugins_placed(router, content) if wanted.plugins else contextlib.nullcontext(()) as plugins:
            events = [Event("destroy", app) for app in others] if wanted.prune else []
            if content.is_whole and wanted.settings:
                events.append(_globals(router, content))
            events += [_import(router, app, content, wanted) for app in chosen]
            if not events:
                raise UsageProblem(f"{name} holds no app")
            outcomes = router.change(events)
        if not router.request.dry_run:
            _finish(router, content, manifest, chosen)
        return Imported(manifest, outcomes, () if wanted.prune else tuple(others), plugins)


@dataclass
class _Content:
    """What of an archive counts: texts in memory, everything else in `staging` (None: a dry run, which keeps nothing)."""

    staging: Path | None
    chosen: Sequence[str]
    is_whole: bool
    texts: dict[str, dict[str, str]] = field(default_factory=dict)  # by app
    globals: dict[str, str] = field(default_factory=dict)
    extra: dict[str, File] = field(default_factory=dict)  # of apps, and makes no configuration
    plugins: dict[str, File] = field(default_factory=dict)  # and their data

    def take(self, path: str, found: File, pieces: Iterator[bytes]) -> None:
        """Take one file of the archive, or leave it."""
        top, _, rest = path.partition("/")
        app, _, inner = rest.partition("/")
        if top == "apps" and app in self.chosen:
            if _makes_configuration(inner):
                self.texts.setdefault(app, {})[inner] = _text(path, found, pieces)
            elif found.size > LARGEST:
                raise UsageProblem(f"{path}: larger than {LARGEST} bytes", app=app)
            else:
                self._stage(self.extra, path, found, pieces)
        elif self.is_whole and top in ("plugins", "data"):
            self._stage(self.plugins, path, found, pieces)
        elif self.is_whole and not rest:
            self.globals[path] = _text(path, found, pieces)

    def _stage(self, into: dict[str, File], path: str, found: File, pieces: Iterator[bytes]) -> None:
        into[path] = found
        if self.staging is None:
            return
        target = self.staging / path
        target.parent.mkdir(parents=True, exist_ok=True)
        with target.open("xb") as file:
            for piece in pieces:
                file.write(piece)
            os.fchmod(file.fileno(), _mode(path, found))
            file.flush()
            os.fsync(file.fileno())


def _makes_configuration(path: str) -> bool:
    if path in (DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE):
        return True
    name = path.removeprefix(SNIPPETS)
    return name != path and "/" not in name and name.endswith(".conf") and not name.startswith(".")


def _text(path: str, found: File, pieces: Iterator[bytes]) -> str:
    if found.size > LARGEST:
        raise UsageProblem(f"{path}: larger than {LARGEST} bytes")
    data = b"".join(pieces)
    if b"\0" in data:
        raise UsageProblem(f"{path}: holds a NUL byte")
    return data.decode(errors="surrogateescape")


def _globals(router: Router, content: _Content) -> Event:
    config, domains = content.globals.get("router.toml", ""), content.globals.get(DOMAINS, "")
    try:
        settings = parse_globals(config, domains, router.tables())
    except UsageProblem as why:
        raise _with_plugins(why, content, router) from None
    if settings.is_host_mode != router.plane().is_host_mode:
        refuse_switch(router, settings.get("mode"))
    return Event("import-globals", None, {"config": config, "global_domains": domains})


def _import(router: Router, app: str, content: _Content, wanted: Wanted) -> Event:
    texts = content.texts.get(app, {})
    try:
        parse_app(app, texts, router.tables())
    except UsageProblem as why:
        raise _with_plugins(why, content, router) from None
    return Event("import", app, {"texts": texts, "endpoints": wanted.endpoints})


def _with_plugins(why: UsageProblem, content: _Content, router: Router) -> UsageProblem:
    """A key that nobody knows may be that of a plugin which is in the archive and not here."""
    names = {path.split("/")[1] for path in content.plugins if path.startswith("plugins/")}
    missing = sorted(names - set(router.plugins.names()))
    if not missing or "unknown" not in why.message:
        return why
    if router.request.dry_run:
        hint = f"a dry run installs none of its plugins ({' '.join(missing)}), and one of them may know it"
        return UsageProblem(f"{why.message}; nothing was changed", hint=hint, app=why.app)
    hint = f"the archive has plugins that are not here ({' '.join(missing)}): --plugins installs them"
    return UsageProblem(f"{why.message}; nothing was changed", hint=hint, app=why.app)


@contextlib.contextmanager
def _staging(router: Router) -> Iterator[Path | None]:
    """A directory for what waits, on the file system of the root; those of killed imports go."""
    if router.request.dry_run:
        yield None
        return
    for left in router.paths.run.glob(f"{_STAGING}*"):
        pid = left.name.removeprefix(_STAGING)
        if not pid.isdigit() or int(pid) == os.getpid() or not is_alive(int(pid)):
            shutil.rmtree(left, ignore_errors=True)
    path = router.paths.run / f"{_STAGING}{os.getpid()}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def _plugins_placed(router: Router, content: _Content) -> Iterator[tuple[str, ...]]:
    """Within it the plugins of the archive that are not here are; they stay if nothing fails."""
    trees = sorted({"/".join(path.split("/")[:2]) for path in content.plugins})
    new = [tree for tree in trees if not os.path.lexists(router.paths.root / tree)]
    names = tuple(tree.partition("/")[2] for tree in new if tree.startswith("plugins/"))
    if content.staging is None or not new:
        yield names
        return
    placed: list[str] = []
    try:
        with router.locked():
            for tree in new:
                target = router.paths.root / tree
                make_directory(target.parent)
                for path in (content.staging / tree, *(content.staging / tree).rglob("*")):
                    if path.is_dir():
                        path.chmod(0o755)
                (content.staging / tree).rename(target)
                placed.append(tree)
                for path in (target, *target.rglob("*")):
                    inherit_owner(path)
        router.rediscover()
        broken = router.plugins.broken(all=True)
        if bad := next((name for name in names if name in broken), None):
            raise PluginBroken(f"plugin {bad} of the archive cannot be used here: {broken[bad]}; nothing was changed")
        yield names
    except BaseException:
        for tree in placed:
            shutil.rmtree(router.paths.root / tree, ignore_errors=True)
        router.rediscover()
        raise


def _finish(router: Router, content: _Content, manifest: Manifest, chosen: Sequence[str]) -> None:
    """Put the files that waited in place, and give everything the mode and the owner that it had.

    Raises:
        RouterError: some could not be; the change is served all the same.
    """
    assert content.staging is not None
    failed: list[str] = []
    tops = tuple(f"apps/{app}" for app in chosen)
    directories = {
        path: f for path, f in manifest.directories.items() if path.startswith("apps/") and "/".join(path.split("/")[:2]) in tops
    }
    files = {f"apps/{app}/{inner}": manifest.files[f"apps/{app}/{inner}"] for app in chosen for inner in content.texts.get(app, {})}
    for path, found in {**directories, **content.extra, **files}.items():
        is_directory = path in directories
        try:
            with _opened(router.paths.root, path.rpartition("/")[0]) as parent:
                name = path.rpartition("/")[2]
                if is_directory:
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=parent)
                elif path in content.extra:
                    (content.staging / path).rename(f"/proc/self/fd/{parent}/{name}")
                _settle(parent, name, path, found, is_directory=is_directory)
        except OSError as why:
            failed.append(f"{path}: {why.strerror}")
    if failed:
        more = f", and {len(failed) - 1} others" if failed[1:] else ""
        raise RouterError(f"everything was imported and is served, but a file is not as it was: {failed[0]}{more}")


@contextlib.contextmanager
def _opened(root: Path, path: str) -> Iterator[int]:
    """A directory of the root, reached through no link; it is made where it is not there."""
    fd = os.open(root, _DIRECTORY)
    try:
        for part in path.split("/"):
            with contextlib.suppress(FileExistsError):
                os.mkdir(part, 0o755, dir_fd=fd)
            inner = os.open(part, _DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = inner
        yield fd
    finally:
        os.close(fd)


def _settle(parent: int, name: str, path: str, found: File, *, is_directory: bool) -> None:
    """Mode and owner; an owner that this host does not know: that of the directory it lies in."""
    fd = os.open(name, _DIRECTORY if is_directory else _FILE, dir_fd=parent)
    try:
        now = os.fstat(fd)
        if not is_directory and (not stat.S_ISREG(now.st_mode) or now.st_nlink != 1):
            return  # somebody put another file there: it is theirs
        if os.geteuid() == 0:
            above = os.fstat(parent)
            try:
                owner = pwd.getpwnam(found.owner).pw_uid, grp.getgrnam(found.group).gr_gid
            except KeyError:
                owner = above.st_uid, above.st_gid
            os.fchown(fd, *owner)
        os.fchmod(fd, _mode(path, found))
    finally:
        os.close(fd)


def _mode(path: str, found: File) -> int:
    """Nothing is writable for everybody, nothing runs as its owner, and keys are read by their owner alone."""
    is_key = path.startswith("apps/") and "tls" in path.split("/")[2:3]
    return found.mode & (0o700 if is_key else 0o775)
