"""Who may change what: the host's own people, and whoever else may write the directory of an app.

What others may write is *confined*: their files are data of their app, and never the word of the host.
"""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
import stat
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from .model import SNIPPETS


@dataclass(frozen=True)
class Hosts:
    """The host's own people: root, and the owner of the root with a group that is theirs alone."""

    uids: frozenset[int]
    gids: frozenset[int]

    @classmethod
    def of(cls, root: Path) -> Hosts:
        """Those of a root."""
        try:
            uid = root.stat().st_uid
        except OSError:
            uid = os.geteuid()
        return cls(frozenset({0, uid}), frozenset({0, *_private_group(uid)}))

    def alone_write(self, found: os.stat_result, path: str | Path) -> bool:
        """Whether nobody else may write a file or directory; `path` leads to it."""
        if found.st_uid not in self.uids or found.st_mode & stat.S_IWOTH:
            return False
        # where there is an access list, the bits of the group are the most that anybody on it may
        return not found.st_mode & stat.S_IWGRP or (found.st_gid in self.gids and not _has_access_list(path))


@dataclass(frozen=True)
class Confined:
    """What of an app's directory others than the host's own people may write."""

    everything: bool = False
    snippets: bool = False
    files: frozenset[str] = frozenset()

    def __contains__(self, path: str) -> bool:
        return self.everything or path in self.files or (self.snippets and path.startswith(SNIPPETS))

    def __bool__(self) -> bool:
        return self.everything or self.snippets or bool(self.files)


@cache
def _private_group(uid: int) -> tuple[int, ...]:
    # Debian gives each user a group of their own; one with members is somebody else's too
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(uid)
        group = grp.getgrgid(user.pw_gid)
        if group.gr_name == user.pw_name and not {*group.gr_mem} - {user.pw_name}:
            return (user.pw_gid,)
    return ()


def _has_access_list(path: str | Path) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path, follow_symlinks=False)
    except OSError:
        return False
