"""Which unix sockets may be instances: none of the router's own, and those that nginx's workers may connect to, who are not root."""

from __future__ import annotations

import contextlib
import grp
import os
import pwd
from pathlib import Path

from .errors import UsageProblem
from .names import Address


def closed_to(path: Path, user: str) -> str | None:
    """What keeps `user` from connecting to a unix socket, in words; None: nothing that modes say.

    connect(2) wants to write to the socket and to pass through each directory above it.  An access list may say otherwise, so
    that a file which has one is taken for open.
    """
    try:
        entry = pwd.getpwnam(user)
    except KeyError:
        return None
    groups = {*os.getgrouplist(user, entry.pw_gid)}
    for each, bit, what in [*((parent, 0o1, "entered") for parent in reversed(path.parents)), (path, 0o2, "written to")]:
        try:
            found = each.stat()
            if "system.posix_acl_access" in os.listxattr(each):
                continue
        except OSError:
            return None  # the connect says more
        shift = 6 if found.st_uid == entry.pw_uid else 3 if found.st_gid in groups else 0
        if entry.pw_uid != 0 and not found.st_mode >> shift & bit:
            return f"{each} cannot be {what} by {user}, whom nginx's workers run as (mode {found.st_mode & 0o7777:04o}, {_owner(found)})"
    return None


def refuse_own_socket(root: Path, app: str, address: Address) -> None:
    """Whoever could ask for the one that changes routes would send everybody's requests where he likes.

    Raises:
        UsageProblem: the endpoint is a socket of the router.
    """
    if address.text.startswith(f"unix:{root}/run/"):
        raise UsageProblem(f"app {app}: {address} is no endpoint: the sockets there are the router's own", app=app)


def _owner(found: os.stat_result) -> str:
    user, group = str(found.st_uid), str(found.st_gid)
    with contextlib.suppress(KeyError):
        user = pwd.getpwuid(found.st_uid).pw_name
    with contextlib.suppress(KeyError):
        group = grp.getgrgid(found.st_gid).gr_name
    return f"{user}:{group}"
