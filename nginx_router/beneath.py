"""Files below a directory that somebody else may write: each step is taken from a descriptor, and no link is followed.

A path is looked up anew whenever it is used, and whoever may write a directory on it may put a link there in between:

    router, as root                          the owner of apps/blog
    lstat nginx.conf.d: a directory
                                             mv nginx.conf.d x; ln -s /etc/cron.d nginx.conf.d
    write nginx.conf.d/own.conf

A descriptor stays what it was opened as, wherever its name leads by now.  Reading has a second trap: the owner of a
directory may give what is not theirs a name in it (a hard link, `mv`).  So where others may write, nothing is read for them
that they could not read themselves.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path
from types import TracebackType
from typing import Self

from .errors import NotPermitted, UsageProblem
from .files import content
from .names import shown
from .owners import Hosts

#: How many names a directory of snippets may hold; whoever makes more of them wants to keep others waiting.
MOST_NAMES = 1000


class Directory:
    """An open directory."""

    def __init__(self, fd: int, path: Path, hosts: Hosts) -> None:
        self.path, self._fd, self._hosts = path, fd, hosts

    @classmethod
    def open(cls, path: Path, hosts: Hosts) -> Directory:
        """The directory at `path`, whose parents nobody but the host's own people may write: links are followed.

        Raises:
            FileNotFoundError: there is none.
        """
        return cls(os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC), path, hosts)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, why: BaseException | None, trace: TracebackType | None) -> None:
        os.close(self._fd)

    def inside(self, name: str, *, make: bool = False) -> Directory:
        """The directory `name` in this one; `make` it where there is none.

        Raises:
            FileNotFoundError: there is none.
            UsageProblem: it is a link or no directory.
        """
        _refuse_path(name)
        if make:
            with contextlib.suppress(FileExistsError):
                os.mkdir(name, 0o755, dir_fd=self._fd)
                made = self.inside(name)
                with made:
                    made._settle_in(os.fstat(self._fd))
                os.fsync(self._fd)
        return Directory(self._open(name, os.O_RDONLY | os.O_DIRECTORY, "a directory"), self.path / name, self._hosts)

    def names(self) -> list[str]:
        """What lies in it, sorted.

        Raises:
            UsageProblem: it is too much.
        """
        found: list[str] = []
        with os.scandir(self._fd) as entries:
            for entry in entries:
                if len(found) >= MOST_NAMES:
                    raise UsageProblem(f"{self.path}: holds more than {MOST_NAMES} files")
                found.append(entry.name)
        return sorted(found)

    def read(self, name: str) -> str | None:
        """The text of a regular file; None where there is none.

        Raises:
            UsageProblem: it is no regular file, too large, holds a NUL byte, or is not for whoever may write this directory.
            NotPermitted: this user may not read it.
        """
        try:
            fd = self._open(name, os.O_RDONLY | os.O_NONBLOCK, "a regular file")
        except FileNotFoundError:
            return None
        try:
            self._refuse_unreadable(name, os.fstat(fd))
        except BaseException:
            os.close(fd)
            raise
        return content(fd, self.path / name)

    def write(self, name: str, data: bytes) -> None:
        """Make the file `name` hold `data`: a crash at any point leaves the old bytes or the new ones.

        An existing file keeps its mode and owner; what root makes belongs to the owner of this directory.
        """
        _refuse_path(name)
        mode, directory = 0o644, os.fstat(self._fd)
        owner = (directory.st_uid, directory.st_gid)
        with contextlib.suppress(FileNotFoundError):
            was = os.stat(name, dir_fd=self._fd, follow_symlinks=False)
            if stat.S_ISREG(was.st_mode):
                # no more than the nine bits: this may be a name that somebody gave to a program which runs as its owner
                mode, owner = was.st_mode & 0o777, (was.st_uid, was.st_gid)
        fresh = f".{name}.{os.urandom(6).hex()}.tmp"
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        try:
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                os.fchmod(fd, mode)
                if os.geteuid() == 0 and owner != (0, 0):
                    os.fchown(fd, *owner)
                file.flush()
                os.fsync(fd)
            os.rename(fresh, name, src_dir_fd=self._fd, dst_dir_fd=self._fd)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(fresh, dir_fd=self._fd)
            raise
        os.fsync(self._fd)

    def try_writing(self, data: bytes) -> None:
        """Find out whether a file that holds `data` can be made here; nobody sees it, and no crash leaves it behind.

        Raises:
            OSError: it cannot.
        """
        try:
            fd = os.open(".", os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600, dir_fd=self._fd)
        except OSError as why:
            if why.errno in (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOENT, errno.EINVAL):
                return  # a file system without files that have no name
            raise OSError(why.errno, os.strerror(why.errno or 0), str(self.path)) from None
        try:
            os.write(fd, data)
        finally:
            os.close(fd)

    def remove(self, name: str) -> None:
        """Remove the file `name`, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(name, dir_fd=self._fd)
            os.fsync(self._fd)

    def remove_empty(self, name: str) -> None:
        """Remove the directory `name`, if it is there and empty."""
        with contextlib.suppress(OSError):
            os.rmdir(name, dir_fd=self._fd)
            os.fsync(self._fd)

    def restrict(self, name: str, most: int) -> None:
        """Take from the file or directory `name` what its mode says beyond `most`.

        A file with a second name is left alone unless the owner of this directory owns it: the other name may be anybody's.

        Raises:
            UsageProblem: it is a link or a device, or has another name elsewhere.
        """
        fd = self._open(name, os.O_RDONLY | os.O_NONBLOCK, "a regular file or a directory")
        try:
            found = os.fstat(fd)
            is_file = stat.S_ISREG(found.st_mode)
            if not is_file and not stat.S_ISDIR(found.st_mode):
                raise UsageProblem(f"{self.path / name}: not a regular file or a directory")
            if is_file and found.st_nlink > 1 and found.st_uid != os.fstat(self._fd).st_uid:
                raise UsageProblem(f"{self.path / name}: has another name elsewhere, and belongs to somebody else")
            os.fchmod(fd, stat.S_IMODE(found.st_mode) & most)
        finally:
            os.close(fd)

    def alone_written(self, name: str = "") -> bool:
        """Whether nobody but the host's own people may write the file or directory `name`, or this directory."""
        place = f"/proc/self/fd/{self._fd}/{name or '.'}"
        found = os.stat(name, dir_fd=self._fd, follow_symlinks=False) if name else os.fstat(self._fd)
        return self._hosts.alone_write(found, place)

    def _settle_in(self, parent: os.stat_result) -> None:
        # an empty one of ours: another that was put in its place meanwhile is nothing to give away
        found = os.fstat(self._fd)
        if found.st_uid != os.geteuid() or os.listdir(self._fd):  # noqa: PTH208 - a descriptor has no Path
            return
        os.fchmod(self._fd, 0o755)
        if os.geteuid() == 0 and (parent.st_uid, parent.st_gid) != (0, 0):
            os.fchown(self._fd, parent.st_uid, parent.st_gid)

    def _refuse_unreadable(self, name: str, found: os.stat_result) -> None:
        if found.st_mode & stat.S_IROTH or self.alone_written():
            return
        directory = os.fstat(self._fd)
        is_theirs = found.st_uid == directory.st_uid and directory.st_uid not in self._hosts.uids
        if not is_theirs and not (found.st_mode & stat.S_IRGRP and found.st_gid == directory.st_gid):
            raise UsageProblem(
                f"{self.path / name}: whoever may write this directory may not read this file, so it is not read for them",
                hint=f"chown --reference={self.path} {self.path / name}",
            )

    def _open(self, name: str, flags: int, wanted: str) -> int:
        _refuse_path(name)
        path = self.path / name
        try:
            return os.open(name, flags | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._fd)
        except PermissionError:
            raise NotPermitted(f"{path} may not be read by this user") from None
        except OSError as why:
            if why.errno in (errno.ELOOP, errno.ENXIO, errno.ENOTDIR):
                raise UsageProblem(f"{path}: a link or a device, not {wanted}") from None
            if why.errno == errno.EAGAIN:
                raise UsageProblem(f"{path}: held by a program of its owner (a lease), so it cannot be read now") from None
            raise


def _refuse_path(name: str) -> None:
    # a step is one name: `..` and what holds a / would lead out
    if name in ("", ".", "..") or "/" in name or "\0" in name:
        raise UsageProblem(f"{shown(name)} is not the name of a file")
