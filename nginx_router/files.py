"""Files written whole or not at all, read without surprises, and the host lock."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import time
from pathlib import Path

from .errors import Busy, NotPermitted, UsageProblem

#: The largest file an app may bring; larger ones are mistakes.
LARGEST = 1 << 20


def write_atomic(path: Path, data: bytes, *, mode: int = 0o644) -> None:
    """Make `path` hold `data`: a crash at any point leaves the old bytes or the new ones.

    An existing file keeps its mode and owner; what root makes belongs to the owner of its directory.
    """
    with contextlib.suppress(FileNotFoundError):
        was = path.lstat()
        mode = was.st_mode & 0o777 if stat.S_ISREG(was.st_mode) else mode
        owner = (was.st_uid, was.st_gid)
        _write(path, data, mode, owner)
        return
    _write(path, data, mode, _owner_of(path.parent))


def make_directory(path: Path, *, mode: int = 0o755) -> None:
    """Make `path` and what it lies in (readable whatever the umask), the owner of the directory above as its owner."""
    if path.is_dir():
        return
    make_directory(path.parent)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
        path.chmod(mode)
        owner = _owner_of(path.parent)
        if owner and owner != (os.geteuid(), os.getegid()):
            os.chown(path, *owner)
        sync_directory(path.parent)


def inherit_owner(path: Path) -> None:
    """Give what root made to the owner of the directory it lies in, whom it would lock out; links are not followed."""
    owner = _owner_of(path.parent)
    if owner is None or owner == (os.geteuid(), os.getegid()):
        return
    with contextlib.suppress(OSError):
        # by descriptor: the owner of the directory may exchange the name between the look and the gift
        fd = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            found = os.fstat(fd)
            # a second name of a file may be one that the owner of the directory gave to what is not theirs
            if found.st_uid == os.geteuid() and (stat.S_ISDIR(found.st_mode) or found.st_nlink == 1):
                if stat.S_ISLNK(found.st_mode):
                    os.chown(path, *owner, follow_symlinks=False)
                else:
                    os.chown(f"/proc/self/fd/{fd}", *owner)
        finally:
            os.close(fd)


def sync_directory(path: Path) -> None:
    """Make the names in `path` survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove_tree(path: Path, seconds: float) -> bool:
    """Remove what lies at `path`; False: not all of it, or not in time: it may be as deep and as full as its owner liked.

    By rm(1): Python's own goes as deep as the tree does, and knows no deadline.
    """
    import subprocess

    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["rm", "-rf", "--", str(path)], stdin=subprocess.DEVNULL, capture_output=True, timeout=seconds, check=False)
    return not os.path.lexists(path)


def replace_link(link: Path, target: str) -> None:
    """Point the symbolic link `link` to `target` by one rename."""
    fresh = link.with_name(f".{link.name}.{os.getpid()}")
    with contextlib.suppress(FileNotFoundError):
        fresh.unlink()
    fresh.symlink_to(target)
    inherit_owner(fresh)
    fresh.rename(link)
    sync_directory(link.parent)


def read_text(path: Path) -> str | None:
    """The text of a regular file; None where there is none.

    Links, FIFOs and devices are refused: an app's owner could point them at what is not theirs.

    Raises:
        UsageProblem: it is no regular file, too large, or holds a NUL byte.
        NotPermitted: this user may not read it.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError:
        raise NotPermitted(f"{path} may not be read by this user") from None
    except OSError as why:
        if why.errno in (errno.ELOOP, errno.ENXIO):
            raise UsageProblem(f"{path}: a link or a device, not a regular file") from None
        raise
    return content(fd, path)


def content(fd: int, path: Path) -> str:
    """The text of the regular file that is open as `fd`, which is closed.

    Raises:
        UsageProblem: it is no regular file, too large, or holds a NUL byte.
    """
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise UsageProblem(f"{path}: not a regular file")
    with os.fdopen(fd, "rb") as file:
        data = file.read(LARGEST + 1)
    if len(data) > LARGEST:
        raise UsageProblem(f"{path}: larger than {LARGEST} bytes")
    if b"\0" in data:
        raise UsageProblem(f"{path}: holds a NUL byte")
    return data.decode(errors="surrogateescape")


def encoded(text: str) -> bytes:
    """The bytes of a text that `read_text` gave."""
    return text.encode(errors="surrogateescape")


class FileLock:
    """flock(2) on a file that is never removed, so that flock(1) in a shell excludes us and we it.

    Whoever may open a file may lock it, for reading too, so it is for nobody but its owner.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fd = -1

    def try_acquire(self) -> bool:
        """Take the lock if it is free."""
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            found = os.fstat(self._fd)
            if found.st_mode & 0o077 and found.st_uid == os.geteuid():
                os.fchmod(self._fd, 0o600)  # made by flock(1)
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout: float, what: str) -> None:
        """Take the lock within `timeout` seconds.

        Raises:
            Busy: somebody kept it; the holder is named.
        """
        deadline = time.monotonic() + timeout
        while not self.try_acquire():
            if time.monotonic() >= deadline:
                raise Busy(f"{what} is locked by {self.holder()}", hint="wait for it, or give --lock-timeout more seconds")
            time.sleep(0.01)

    def release(self) -> None:
        """Let go; does nothing where it is not held."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def is_held(self) -> bool:
        """Whether somebody holds it; to find out by taking it would be in the way of who wants it in earnest."""
        return self._holder() is not None

    def holder(self) -> str:
        """Who holds it, as the kernel says: pid and command line."""
        with contextlib.suppress(OSError):
            if (pid := self._holder()) is not None:
                command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
                return f"pid {pid} ({command[:120]})"
        return "another process"

    def _holder(self) -> str | None:
        try:
            inode = self.path.stat().st_ino
            lines = Path("/proc/locks").read_text().splitlines()
        except OSError:
            return None
        for fields in map(str.split, lines):
            if "FLOCK" in fields and "->" not in fields and fields[-3].endswith(f":{inode}"):
                return fields[-4]
        return None


def _owner_of(directory: Path) -> tuple[int, int] | None:
    # a change that root makes in somebody's root must not lock its owner out
    if os.geteuid() != 0:
        return None
    found = directory.stat()
    return found.st_uid, found.st_gid


def _write(path: Path, data: bytes, mode: int, owner: tuple[int, int] | None) -> None:
    import tempfile  # 5 ms that a command which only reads need not wait for

    fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            os.fchmod(fd, mode)
            if owner and owner != (os.geteuid(), os.getegid()):
                with contextlib.suppress(PermissionError):
                    os.fchown(fd, *owner)
            file.flush()
            os.fsync(fd)
        Path(name).rename(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    sync_directory(path.parent)
