"""What a power cut leaves of a root: run as a program, it is `router` on a disk that keeps only what was told to be kept.

    python durable.py ROOT STEP ALL|NAMES TARGET WORDS...

At the step STEP of `nginx_router.faults` (or `sent`: nginx is about to be told of routes) the process ends as if the power
went, and TARGET holds what a disk may have kept by then: of each file the bytes of its last fsync(2) (none: an empty file), and of each
directory the names of its last fsync(2).  That is the worst that POSIX allows.  `NAMES` keeps each name, synced or not, with
the bytes of the last fsync: the empty
files that a journalling file system without data journalling leaves behind a rename.  What was there when the process began
is taken for kept.
"""

from __future__ import annotations

import os
import shutil
import signal
import stat
import sys
from pathlib import Path
from typing import Any

#: A directory's names and what each is: its kind, its mode, and its inode or (a link) its target.
Names = dict[str, tuple[str, int, int | str]]


class Disk:
    """Which bytes and which names would be there after a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._names: dict[int, Names] = {}
        self._bytes: dict[int, bytes] = {}
        self._fsync = os.fsync
        for top, _, files in os.walk(root):
            self._names[Path(top).stat().st_ino] = _names_in(top)
            for name in files:
                path = Path(top, name)
                if path.is_file() and not path.is_symlink():
                    self._bytes[path.stat().st_ino] = path.read_bytes()

    def fsync(self, fd: int | object) -> None:
        """What takes the place of os.fsync."""
        number = fd if isinstance(fd, int) else fd.fileno()  # type: ignore[attr-defined]
        found = os.fstat(number)
        path = f"/proc/self/fd/{number}"
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = _names_in(path)
        else:
            self._bytes[found.st_ino] = Path(path).read_bytes()
        self._fsync(number)

    def left(self, target: Path, *, with_all_names: bool) -> None:
        """Make in `target` what a power cut at this moment leaves."""
        self._make(self._root.stat().st_ino, self._root, target, with_all_names)

    def _make(self, inode: int, now: Path | None, target: Path, with_all_names: bool) -> None:
        target.mkdir()
        names = self._names.get(inode, {})
        if with_all_names and now is not None:
            names = _names_in(str(now))
        for name, (kind, mode, what) in names.items():
            if kind == "link":
                (target / name).symlink_to(str(what))
            elif kind == "directory":
                below = now / name if now is not None and (now / name).is_dir() else None
                self._make(int(what), below, target / name, with_all_names)
                (target / name).chmod(mode)
            elif kind == "file":
                (target / name).write_bytes(self._bytes.get(int(what), b""))
                (target / name).chmod(mode)


def _names_in(directory: str) -> Names:
    found: Names = {}
    with os.scandir(directory) as entries:
        for entry in entries:
            mode = stat.S_IMODE(entry.stat(follow_symlinks=False).st_mode)
            if entry.is_symlink():
                found[entry.name] = ("link", mode, str(Path(entry.path).readlink()))
            elif entry.is_dir():
                found[entry.name] = ("directory", mode, entry.inode())
            elif entry.is_file():
                found[entry.name] = ("file", mode, entry.inode())
    return found


def main(root: str, step: str, kept: str, target: str, *words: str) -> None:
    """Run `router WORDS` and lose the power at `step`; without that step the process exits with the code of the command."""
    disk = Disk(Path(root))
    os.fsync = disk.fsync  # type: ignore[assignment]
    from nginx_router import cli, faults, live

    def passed(name: str) -> None:
        if name == step:
            shutil.rmtree(target, ignore_errors=True)
            disk.left(Path(target), with_all_names=kept == "NAMES")
            os.kill(os.getpid(), signal.SIGKILL)

    faults.step = passed
    take = live.Live.take

    def sent(*told: Any) -> None:
        passed("sent")
        take(*told)

    live.Live.take = sent  # type: ignore[assignment, method-assign]  # between the log and nginx
    code = cli.main(list(words))
    passed("told")
    sys.exit(code)


if __name__ == "__main__":
    main(*sys.argv[1:])
