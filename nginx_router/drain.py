"""Waiting until old workers have let go of retired endpoints, and counting what is left at the deadline.

After a reload the old workers accept nothing new, but finish what they hold.  An old worker has let go when it is gone,
or has no connection to a retired address and no client connection without an upstream partner: such a client may be in
the middle of a request that will go to the old endpoint.  A websocket of another app has its partner and is not waited
for; idle keepalive clients are closed by nginx itself as it begins to shut down.

Kernel sockets alone do not prove it (an HTTP/2 client has several partners, a subrequest one too many); so all workers
are counted in one look, every worker in each, and two looks in a row must find nothing.

With `updates live` each worker counts its own requests and websockets too.  An old one has what it counts and what the kernel
shows: the larger of the two, for most of it is both.  A websocket is known by the count alone; what is not counted as one is
taken for a request.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import PurePosixPath

from . import sockets
from .live import InFlight
from .names import Address
from .processes import is_alive
from .sockets import Socket

#: A worker: its pid and its start time, which no later process of the same pid has.
Worker = tuple[int, int]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.005, 0.05


@dataclass(frozen=True)
class Drained:
    """How a wait ended: drained (nothing left), at its deadline, or given up before either.

    With nothing left but websockets that are not waited for, it is drained too.
    """

    left: int
    given_up: bool = False
    websockets: int = 0  # of `left`, as far as they are known

    @property
    def requests(self) -> int:
        """Of `left` the others."""
        return self.left - self.websockets


def places(addresses: Iterable[Address], resolved: Mapping[str, Sequence[str]]) -> list[str]:
    """Where nginx connects to for these addresses, spelled as they are in its routes."""
    return [
        place
        for address in addresses
        for place in ([address.text] if address.is_literal else [address.at(ip) for ip in resolved.get(address.host, ())])
    ]


def targets(addresses: Iterable[Address], resolved: Mapping[str, Sequence[str]]) -> frozenset[str]:
    """Where nginx connected to for these addresses, spelled as the kernel's tables are here."""
    found: set[str] = set()
    for address in addresses:
        if address.is_unix:
            found.add(address.text)
            continue
        for ip in [address.host] if address.is_literal else resolved.get(address.host, ()):
            parsed = ip_address(ip.partition("%")[0])
            if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
                parsed = parsed.ipv4_mapped
            found.add(address.at(str(parsed)))
    return frozenset(found)


def still_held(workers: Iterable[Worker], retired: frozenset[str], ports: frozenset[int]) -> int:
    """How many connections the old workers still hold that may need a retired endpoint."""
    return sum(held(workers, retired, ports).values())


def held(workers: Iterable[Worker], retired: frozenset[str], ports: frozenset[int]) -> dict[int, int]:
    """The same of each worker that lives."""
    alive = [pid for pid, started in workers if is_alive(pid, started)]
    if not alive:
        return {}
    # one that may not be looked at has let go only when it is gone
    return {pid: 1 if found is None else in_need(found, retired, ports) for pid, found in sockets.held_by(alive).items()}


def left_of(held: Mapping[int, int], counted: Mapping[int, InFlight]) -> InFlight:
    """What is left, of what workers hold and of what they count, which for the most part is the same."""
    left = InFlight()
    for pid in {*held, *counted}:
        known = counted.get(pid, InFlight())
        left += InFlight(max(known.requests, held.get(pid, 0) - known.websockets), known.websockets)
    return left


def in_need(found: Iterable[Socket], retired: frozenset[str], ports: frozenset[int]) -> int:
    """How many of a worker's connections go to a retired address, or come from a client and go nowhere yet."""
    clients = upstreams = leading_there = 0
    for one in found:
        if one.listens:
            continue
        if one.is_from_client(ports):
            clients += 1
        else:
            upstreams += 1
            leading_there += _is_among(one.remote, retired)
    return leading_there + max(0, clients - upstreams)


def wait(
    workers: Iterable[Worker],
    retired: frozenset[str],
    ports: frozenset[int],
    seconds: float,
    *,
    in_flight: Callable[[], Mapping[int, InFlight]] = dict,
    waits_for_websockets: bool = True,
    given_up: Callable[[], bool] = lambda: False,
    waiting: Callable[[int], None] = lambda _: None,
) -> Drained:
    """Wait until the workers have let go and nothing is `in_flight`, `seconds` at most or until `given_up`.

    `waiting` is told once, after a second, how many connections are waited for.
    """
    workers = list(workers)
    begun = time.monotonic()
    pause, looks, told = _FIRST_PAUSE, 0, False
    while True:
        left = left_of(held(workers, retired, ports), in_flight())
        waited_for = left.total if waits_for_websockets else left.requests
        passed = time.monotonic() - begun
        looks = 0 if waited_for else looks + 1
        if looks == 2 or (not workers and not waited_for) or passed >= seconds:
            return Drained(left.total, websockets=left.websockets)
        if waited_for and given_up():
            return Drained(left.total, given_up=True, websockets=left.websockets)
        if waited_for and passed >= 1 and not told:
            told = True
            waiting(waited_for)
        time.sleep(min(pause, max(0.0, seconds - passed)))
        if waited_for:
            pause = min(pause * 1.5, _LONGEST_PAUSE)


def _is_among(remote: str, retired: frozenset[str]) -> bool:
    if remote in retired:
        return True
    path = remote.removeprefix("unix:")
    if path == remote or not path or path[0] in "/@":
        return False
    # bound by a relative name (`gunicorn -b unix:app.sock`): which directory that was is not known, so the last part decides
    return any(PurePosixPath(path).name == PurePosixPath(one).name for one in retired if one.startswith("unix:"))
