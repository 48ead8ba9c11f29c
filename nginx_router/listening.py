"""Who listens where on this host, by /proc: the words for a port that is taken."""

from __future__ import annotations

import contextlib
import pwd
import re
import socket
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import NamedTuple

from .processes import all_pids, command_line, open_files

_LISTEN = "0A"  # include/net/tcp_states.h, as /proc/net/tcp prints it
_LONGEST = 60  # of a command line
_TAKEN = re.compile(r"bind\(\) to \S+:(\d+) failed \(98: ")
_GIVEN_UP = "still could not bind()"


class Listener(NamedTuple):
    """One TCP listener."""

    address: str  # 127.0.0.1:80, [::]:80
    inode: int
    uid: int


def listeners() -> dict[int, list[Listener]]:
    """Every TCP listener of the host, by port."""
    found: dict[int, list[Listener]] = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for row in table.read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = row.split()
                if state == _LISTEN:
                    digits, _, port = local.partition(":")
                    found.setdefault(int(port, 16), []).append(Listener(_address(digits, int(port, 16)), int(inode), int(uid)))
    return found


def inodes(pids: Iterable[int]) -> set[int]:
    """The inodes of all sockets that these processes have open."""
    return {int(target[8:-1]) for pid in pids for target in open_files(pid) if target.startswith("socket:[")}


def clashes(address: str, bound: Collection[str]) -> bool:
    """Whether who listens there has what nginx wants: an address of its own (`bound`), or all of them (empty)."""
    ip = address.rpartition(":")[0].strip("[]")
    return not bound or ip in bound or ip == "::" or (ip == "0.0.0.0" and any("." in each for each in bound))  # noqa: S104 - compared, not bound


def holders(found: Iterable[Listener]) -> list[str]:
    """Whose they are: pid and command line, or the user where this one may not look."""
    return sorted({_holder(each) for each in found})


def is_taken(said: Iterable[str]) -> bool:
    """Whether nginx did not start because a port is taken."""
    return any(_TAKEN.search(line) for line in said)


def taken(said: str) -> set[int]:
    """The ports that nginx found taken."""
    return {int(port) for port in _TAKEN.findall(said)}


def named(said: Iterable[str]) -> list[str]:
    """nginx's words, each line once; of a port that is taken with who has it.

    A bind that fails is tried five times, and then there is one more line that says so.
    """
    lines = [line for line in dict.fromkeys(said) if _GIVEN_UP not in line]
    there = listeners() if is_taken(lines) else {}
    return [f"{line}: {_whose(there, int(match[1]))}" if (match := _TAKEN.search(line)) else line for line in lines]


def _whose(there: dict[int, list[Listener]], port: int) -> str:
    found = holders(there.get(port, ()))
    return f"{' and '.join(found)} has it" if found else "it is free by now"


def _address(digits: str, port: int) -> str:
    words = b"".join(int(digits[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(digits), 8))
    if len(words) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, words)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, words)}]:{port}"


def _holder(listener: Listener) -> str:
    # the workers of an nginx have it from their master, whose pid is the lowest
    for pid in sorted(all_pids()):
        if f"socket:[{listener.inode}]" in open_files(pid):
            return f"pid {pid} ({command_line(pid)[:_LONGEST].strip()})"
    try:
        return f"a process of {pwd.getpwuid(listener.uid).pw_name}"
    except KeyError:
        return f"a process of user {listener.uid}"
