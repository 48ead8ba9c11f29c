"""What an nginx of this root leaves behind when its master is killed: found by /proc, and ended.

The workers go on: they accept, they answer with the configuration that they know, and they hold the ports.  But no reload
reaches them, and nobody replaces one that ends.  So they are better than nothing until there is a new master, and in its
way from then on.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .processes import all_pids, command_line, has_our_root, is_alive, open_files, parent_of, started_at

#: How long each signal may take.
_END_SECONDS = 2.0


@dataclass(frozen=True)
class Orphan:
    """One process that the running master, if there is one, did not start."""

    pid: int
    started: int  # with the pid, its identity
    is_worker: bool


def find(log: Path, conf: Path, master: int | None) -> list[Orphan]:
    """The orphans of the nginx that logs to `log` and reads `conf`; `master` and what it started are none."""
    found = []
    log = Path(os.path.realpath(log))  # as the kernel names it
    for pid in list(all_pids()):
        title = command_line(pid)
        # the parent is asked of each: a list of the master's children is old when it forks meanwhile, and a fork has its title first
        if pid == master or not title.startswith("nginx: ") or (master is not None and parent_of(pid) == master):
            continue
        is_worker = not title.startswith("nginx: master")
        is_ours = str(log) in open_files(pid) if is_worker else is_title_of(title, conf)
        if is_ours and has_our_root(pid) and (started := started_at(pid)):
            found.append(Orphan(pid, started, is_worker))
    return found


def end(orphans: Sequence[Orphan]) -> None:
    """End them; what they were in the middle of is cut."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        for each in orphans:
            if is_alive(each.pid, each.started):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(each.pid, number)
        deadline = time.monotonic() + _END_SECONDS
        while any(is_alive(each.pid, each.started) for each in orphans) and time.monotonic() < deadline:
            time.sleep(0.005)


def is_title_of(title: str, conf: Path) -> bool:
    """Whether a master with this title reads `conf`."""
    # as a word: another root may lie in a directory whose path ends like ours
    return f" -c {conf} " in f"{title} "


def counted(orphans: Sequence[Orphan]) -> str:
    """How many, in words."""
    noun = "worker" if all(each.is_worker for each in orphans) else "nginx process"
    plural = {"worker": "workers", "nginx process": "nginx processes"}[noun]
    return f"{len(orphans)} orphan {noun if len(orphans) == 1 else plural}"
