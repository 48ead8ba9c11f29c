"""What the kernel says of processes: /proc, read without surprises when one ends meanwhile."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path


def started_at(pid: int) -> int:
    """When a process began, in clock ticks since boot (field 22 of proc(5) stat): with the pid, its identity; 0: gone."""
    fields = _stat(pid)
    return int(fields[19]) if fields else 0


def is_alive(pid: int, started: int | None = None) -> bool:
    """Whether a process runs (a zombie does not) and, with `started`, is still the same one."""
    fields = _stat(pid)
    return bool(fields) and fields[0] not in "ZX" and (started is None or int(fields[19]) == started)


def has_pending(pid: int, number: int) -> bool:
    """Whether a signal was sent to a process that has not taken it yet (SigPnd and ShdPnd of proc(5) status)."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return False
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd:", "ShdPnd:"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def ticks(pid: int) -> int:
    """The CPU time that a process used, in clock ticks (fields 14 and 15 of proc(5) stat)."""
    fields = _stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def command_line(pid: int) -> str:
    """The command line, words parted by blanks; empty when the process is gone."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def has_our_root(pid: int) -> bool:
    """Whether a process sees the same file system as this one: another machine's nginx may have our very paths."""
    try:
        theirs, ours = os.stat(f"/proc/{pid}/root/."), os.stat("/")  # noqa: PTH116 - a link that is not to be resolved by name
    except OSError:
        return False
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)


def children(pid: int) -> list[int]:
    """The processes that `pid` started and that have not ended."""
    return [child for child in all_pids() if (fields := _stat(child)) and int(fields[1]) == pid and fields[0] not in "ZX"]


def parent_of(pid: int) -> int | None:
    """Who started a process, or took it over when that one ended; None: it is gone."""
    fields = _stat(pid)
    return int(fields[1]) if fields else None


def all_pids() -> Iterator[int]:
    """Every process there is."""
    for name in os.listdir("/proc"):  # noqa: PTH208 - names only
        if name.isdigit():
            yield int(name)


def open_files(pid: int) -> list[str]:
    """What the descriptors of a process point to; empty where it is gone or not ours to see."""
    found = []
    try:
        for name in os.listdir(f"/proc/{pid}/fd"):  # noqa: PTH208 - names only
            try:
                found.append(os.readlink(f"/proc/{pid}/fd/{name}"))  # noqa: PTH115 - socket:[N] is no path
            except OSError:
                continue
    except OSError:
        return []
    return found


def _stat(pid: int) -> list[str]:
    # the second field is the command in brackets and may hold blanks; what follows the last bracket begins with field 3
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []


def is_listened_on(path: Path) -> bool:
    """Whether some process has a unix socket of this name open, be the name still there or not."""
    try:
        return any(line.endswith(f" {path}") for line in Path("/proc/net/unix").read_text(errors="replace").splitlines())
    except OSError:
        return False
