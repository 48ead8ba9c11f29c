"""What sockets a process holds, as the kernel says: descriptors from /proc, their ends from NETLINK_SOCK_DIAG.

nginx does not tell which connections an old worker still serves; the kernel does.  Closing connections (FIN_WAIT,
LAST_ACK) are left out: nginx has sent all it will send on them, and keeps them only to discard what a client still sends.

/proc/net/tcp says the same of TCP, but prints every TIME_WAIT of the host: a look took 8 ms on an idle host and more
under load, where the kernel filters a dump in 2.6 ms.  It is read where the kernel has no sock_diag.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from pathlib import Path

# include/net/tcp_states.h
_ESTABLISHED, _SYN_SENT, _CLOSE_WAIT, _LISTEN = 1, 2, 8, 10
_OPEN = (_ESTABLISHED, _SYN_SENT, _CLOSE_WAIT, _LISTEN)
_STATES = sum(1 << state for state in _OPEN)

# linux/netlink.h, linux/sock_diag.h, linux/unix_diag.h
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_REQUEST_DUMP = 0x301
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_SHOW_NAME, _SHOW_PEER, _SHOW_PENDING = 1, 4, 8
_NAME, _PEER, _PENDING = 0, 2, 3


@dataclass(frozen=True)
class Socket:
    """One open stream socket: `10.0.0.3:80`, `[::1]:80`, `unix:/path`; empty where an end has no name."""

    local: str
    remote: str
    listens: bool = False

    @property
    def port(self) -> int:
        """The local port; 0 of a unix socket."""
        return 0 if self.is_unix else int(self.local.rpartition(":")[2])

    @property
    def is_unix(self) -> bool:
        """Whether this is a unix socket."""
        return not self.local or self.local.startswith("unix:")

    def is_from_client(self, ports: frozenset[int]) -> bool:
        """Whether this is a connection that a server listening on `ports` accepted: it has its listener's end."""
        return not self.listens and (bool(self.local) if self.is_unix else self.port in ports)


def held_by(pids: Iterable[int]) -> dict[int, list[Socket] | None]:
    """The open sockets of each process; None of one that this user may not look at, nothing of one that is gone.

    The descriptors are read first and the tables behind them, so a socket opened in between is missed and one closed in
    between is gone: whoever concludes something from a small number looks twice.
    """
    inodes: dict[int, list[int] | None] = {}
    for pid in pids:
        try:
            inodes[pid] = _inodes(pid)
        except PermissionError:
            inodes[pid] = None
        except (FileNotFoundError, ProcessLookupError):
            continue
    known = _tcp({inode for found in inodes.values() for inode in found or ()})
    if any(inode not in known for found in inodes.values() for inode in found or ()):
        known = {**known, **_unix()}
    return {pid: None if found is None else [known[i] for i in found if i in known] for pid, found in inodes.items()}


def listening_ports(master: int | None) -> frozenset[int]:
    """The TCP ports on which nginx listens, from its master: a worker that shuts down has closed its own listeners."""
    if master is None:
        return frozenset()
    return ports_of(held_by([master]))


def ports_of(held: Mapping[int, list[Socket] | None]) -> frozenset[int]:
    """The TCP ports on which these processes listen."""
    return frozenset(s.port for found in held.values() for s in found or () if s.listens and not s.is_unix)


def _inodes(pid: int) -> list[int]:
    found = []
    # two logs an app are among them: from the directory each takes 3 us, by its whole path 5
    directory = os.open(f"/proc/{pid}/fd", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in os.listdir(directory):  # noqa: PTH208 - names only, no Path a descriptor
            try:
                target = os.readlink(name, dir_fd=directory)
            except FileNotFoundError:
                continue  # closed in between
            if target.startswith("socket:["):
                found.append(int(target[8:-1]))
    finally:
        os.close(directory)
    return found


def _tcp(wanted: set[int]) -> dict[int, Socket]:
    found: dict[int, Socket] = {}
    if wanted:
        try:
            for family in (socket.AF_INET, socket.AF_INET6):
                found |= _tcp_of_family(family, wanted)
        except OSError:
            return _tcp_from_proc(wanted)
    return found


def _tcp_of_family(family: int, wanted: set[int]) -> dict[int, Socket]:
    found = {}
    size = 4 if family == socket.AF_INET else 16
    # struct inet_diag_req_v2: no extensions, these states, any socket
    for message in _dump(struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 0, 0, _STATES)):
        inode = struct.unpack_from("=I", message, 68)[0]
        if inode in wanted:
            port, peer = struct.unpack_from("!HH", message, 4)
            local = _spelled(message[8 : 8 + size], port)
            listens = message[1] == _LISTEN
            found[inode] = Socket(local, "" if listens else _spelled(message[24 : 24 + size], peer), listens)
    return found


def _tcp_from_proc(wanted: set[int]) -> dict[int, Socket]:
    found = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        try:
            rows = table.read_text().splitlines()[1:]
        except FileNotFoundError:  # a kernel without IPv6
            continue
        for row in rows:
            # sl local remote st tx:rx tr:when retrnsmt uid timeout inode; most rows may be TIME_WAIT, so parse late
            _, local, remote, state, *_, inode, _ = row.split(None, 10)
            if int(inode) in wanted and int(state, 16) in _OPEN:
                listens = int(state, 16) == _LISTEN
                found[int(inode)] = Socket(_spelled_hex(local), "" if listens else _spelled_hex(remote), listens)
    return found


def _spelled_hex(raw: str) -> str:
    digits, _, port = raw.partition(":")
    # each 32-bit word of an address is printed as the number that this host reads it as
    words = [int(digits[i : i + 8], 16) for i in range(0, len(digits), 8)]
    return _spelled(struct.pack(f"={len(words)}I", *words), int(port, 16))


def _spelled(ip: bytes, port: int) -> str:
    if len(ip) == 4:
        return f"{IPv4Address(ip)}:{port}"
    parsed = IPv6Address(ip)
    return f"{parsed.ipv4_mapped}:{port}" if parsed.ipv4_mapped else f"[{parsed}]:{port}"


def _unix() -> Mapping[int, Socket]:
    """Every unix stream connection that has a name at one end.

    An accepted socket has its listener's name, so the name of a connecting socket's peer is where it connected to.  A
    connection that the listener has not accepted yet has no peer to ask; the listener lists it as pending.
    """
    names: dict[int, str] = {}
    peers: dict[int, int] = {}
    pending: dict[int, str] = {}
    listeners: set[int] = set()
    try:
        for state, inode, attributes in _unix_diag():
            if name := attributes.get(_NAME, b"").rstrip(b"\0"):
                names[inode] = "unix:" + name.replace(b"\0", b"@").decode(errors="surrogateescape")
            if _PEER in attributes:
                peers[inode] = struct.unpack("=I", attributes[_PEER])[0]
            if state == _LISTEN:
                listeners.add(inode)
                waiting = attributes.get(_PENDING, b"")
                pending.update(dict.fromkeys(struct.unpack(f"={len(waiting) // 4}I", waiting), names.get(inode, "")))
    except OSError:
        return {}  # no unix_diag in this kernel: who connects to a unix socket is not known
    found = {inode: Socket(names[inode], "", listens=True) for inode in listeners if inode in names}
    for inode in {*peers, *pending}:
        local, remote = names.get(inode, ""), names.get(peers.get(inode, 0), "") or pending.get(inode, "")
        if local or remote:
            found[inode] = Socket(local, remote)
    return found


def _unix_diag() -> Iterator[tuple[int, int, dict[int, bytes]]]:
    # struct unix_diag_req: these states, any socket
    show = _SHOW_NAME | _SHOW_PEER | _SHOW_PENDING
    for message in _dump(struct.pack("=BBHIIIII", socket.AF_UNIX, 0, 0, _STATES, 0, show, 0xFFFFFFFF, 0xFFFFFFFF)):
        if message[1] == socket.SOCK_STREAM:
            yield message[2], struct.unpack_from("=I", message, 4)[0], dict(_attributes(message[16:]))


def _dump(request: bytes) -> Iterator[bytes]:
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETLINK_SOCK_DIAG) as netlink:
        netlink.settimeout(2)
        netlink.send(struct.pack("=IHHII", 16 + len(request), _SOCK_DIAG_BY_FAMILY, _REQUEST_DUMP, 1, 0) + request)
        while True:
            data = netlink.recv(1 << 17)
            offset = 0
            while offset < len(data):
                length, kind = struct.unpack_from("=IH", data, offset)
                if kind == _NLMSG_DONE:
                    return
                if kind == _NLMSG_ERROR:
                    code = -struct.unpack_from("=i", data, offset + 16)[0]
                    raise OSError(code, os.strerror(code))
                yield data[offset + 16 : offset + length]
                offset += (length + 3) & ~3


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        yield kind, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3
