"""The directories of a root as one archive.

An export reads under the host lock, so that it is a picture between two changes, and writes when the lock is free again:
whoever takes the archive may take it slowly.
"""

from __future__ import annotations

import contextlib
import grp
import hashlib
import os
import pwd
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from . import __version__, archive
from .archive import File, Manifest
from .controller import Router
from .discovery import disabled
from .errors import UsageProblem
from .files import LARGEST
from .names import shown
from .times import stamp

#: Above this an export waits in a file (without a name, and readable by nobody else) and not in memory.
_IN_MEMORY = 64 << 20
_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@dataclass(frozen=True)
class Export:
    """What an archive is going to hold; it was read already."""

    manifest: Manifest
    locked: float  # seconds for which it held all changes back
    _spool: IO[bytes]
    _places: Mapping[str, int]

    def write(self, out: Callable[[bytes], None]) -> int:
        """Write the archive; its size."""
        return archive.write(self.manifest, self._bytes, out)

    def _bytes(self, path: str) -> Iterator[bytes]:
        self._spool.seek(self._places[path])
        left = self.manifest.files[path].size
        while left:
            piece = self._spool.read(min(left, 1 << 20))
            left -= len(piece)
            yield piece


@contextlib.contextmanager
def exported(router: Router, apps: Sequence[str] = ()) -> Iterator[Export]:
    """Read what the directories hold; `apps`: of these alone, without what belongs to the host.

    Raises:
        Busy: somebody kept the host lock.
        UsageProblem: there is more than an archive may hold.
    """
    with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as spool:
        gathering = _Gathering(router.paths.root, spool)
        with router.locked():
            began = time.monotonic()
            names = list(apps) or router.store.names()
            for name in names:
                gathering.tree(f"apps/{name}")
            if not apps:
                for path in (router.paths.config, router.paths.global_domains):
                    gathering.file(path.name)
                off = disabled(router.paths.plugins)
                gathering.trees("plugins", {name: "a disabled plugin" for name in off})
            generation = router.generations.current_number()
            locked = time.monotonic() - began
        if not apps:
            gathering.trees("data")  # which plugins write whenever they like
        yield Export(
            Manifest(
                router=__version__,
                time=stamp(),
                root=str(router.paths.root),
                generation=generation,
                is_whole=not apps,
                apps=tuple(names),
                left_out=tuple(gathering.left_out),
                directories=gathering.directories,
                files=gathering.files,
            ),
            locked,
            spool,
            gathering.places,
        )


class _Gathering:
    """Reads trees of a root into one file; links are not followed, whoever puts one there meanwhile."""

    def __init__(self, root: Path, spool: IO[bytes]) -> None:
        self.directories: dict[str, File] = {}
        self.files: dict[str, File] = {}
        self.places: dict[str, int] = {}
        self.left_out: list[str] = []
        self._root, self._spool, self._size = root, spool, 0

    def trees(self, top: str, but: Mapping[str, str] = {}) -> None:
        """Each directory of its own below `top`, and why some are left out."""
        with contextlib.suppress(FileNotFoundError):
            for name in sorted(os.listdir(self._root / top)):  # noqa: PTH208 - names only
                if name in but:
                    self.left_out.append(f"{top}/{name}: {but[name]}")
                elif not name.startswith("."):
                    self.tree(f"{top}/{name}")

    def tree(self, top: str) -> None:
        """A directory with all that is in it."""
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR((self._root / top).lstat().st_mode):
                # what is a FIFO would be waited for, under the host lock
                self.left_out.append(f"{top}: no directory of its own")
                return
        for where, directories, files, fd in os.fwalk(self._root / top, follow_symlinks=False, onerror=_raise):
            here = str(Path(where).relative_to(self._root))
            for name in [name for name in directories if name == "__pycache__" or not self._may_be_in(f"{here}/{name}", name, fd)]:
                directories.remove(name)
            directories.sort()
            self.directories[here] = _described(os.fstat(fd))
            for name in sorted(files):
                self.file(f"{here}/{name}", name, fd)
        if top not in self.directories:
            self.left_out.append(f"{top}: no directory of its own")

    def file(self, path: str, name: str | None = None, directory: int | None = None) -> None:
        """One file."""
        try:
            fd = os.open(self._root / path if name is None else name, _FLAGS, dir_fd=directory)
        except FileNotFoundError:
            return
        except OSError as why:
            if isinstance(why, PermissionError):
                raise PermissionError(why.errno, why.strerror, str(self._root / path)) from None
            self.left_out.append(f"{path}: a link or a device")
            return
        found = os.fstat(fd)
        if not stat.S_ISREG(found.st_mode):
            os.close(fd)  # a directory cannot even be opened as a file
            self.left_out.append(f"{path}: no regular file")
            return
        with os.fdopen(fd, "rb") as file:
            most = LARGEST if path.startswith("apps/") or "/" not in path else archive.LARGEST
            if not archive.is_name(path):
                self.left_out.append(f"{shown(path)}: its name")
            elif len(data := file.read(most + 1)) > most:
                self.left_out.append(f"{path}: larger than {most} bytes")
            else:
                self._keep(path, _described(found, data), data)

    def _keep(self, path: str, found: File, data: bytes) -> None:
        self._size += len(data)
        if self._size > archive.LARGEST_TOTAL or len(self.files) + len(self.directories) >= archive.MOST:
            limit = f"{archive.LARGEST_TOTAL >> 30} GiB or {archive.MOST} files"
            raise UsageProblem(f"there is more than an archive may hold ({limit})", hint="docs/backup.md has the way with tar and restic")
        self.places[path] = self._spool.tell()
        self._spool.write(data)
        self.files[path] = found

    def _may_be_in(self, path: str, name: str, fd: int) -> bool:
        with contextlib.suppress(FileNotFoundError):
            if not stat.S_ISDIR(os.stat(name, dir_fd=fd, follow_symlinks=False).st_mode):
                self.left_out.append(f"{path}: a link")
                return False
        if not archive.is_name(path):
            self.left_out.append(f"{shown(path)}: its name")
            return False
        return True


def _raise(why: OSError) -> None:
    if not isinstance(why, FileNotFoundError):  # it went meanwhile
        raise why


def _described(found: os.stat_result, data: bytes | None = None) -> File:
    owner, group = _user(found.st_uid), _group(found.st_gid)
    mode = stat.S_IMODE(found.st_mode)
    return File(mode, owner, group) if data is None else File(mode, owner, group, len(data), hashlib.sha256(data).hexdigest())


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""
