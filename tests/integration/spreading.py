"""Who answers requests, and how evenly."""

from __future__ import annotations

import contextlib
import http.client
import socket
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conftest import Live


HOST = "blog.test"


EQUAL = {"one": 1, "two": 1, "three": 1}


def spread(live: Live, count: int) -> Counter[str]:
    """Who answered `count` requests."""
    found: Counter[str] = Counter()
    for _ in range(count):
        answer = live.get(HOST)
        assert answer.status == 200, answer
        found[answer.body] += 1
    return found


def spread_of(live: Live, client: str, count: int) -> Counter[str]:
    """Who answered so many requests of one connection, one after another, from this address of the loopback."""
    found: Counter[str] = Counter()
    connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10, source_address=(client, 0))
    with contextlib.closing(connection):
        for _ in range(count):
            connection.request("GET", "/", headers={"Host": HOST})
            answer = connection.getresponse()
            found[answer.read().decode()] += 1
            assert answer.status == 200
    return found


def spread_widely(live: Live, count: int) -> Counter[str]:
    """Who answered `count` requests over connections of fifty, one after another: as many as chance needs to be even within 10 %."""
    return sum((spread_of(live, "127.0.0.1", 50) for _ in range(count // 50)), Counter())


def is_spread(found: Counter[str], weights: Mapping[str, int]) -> bool:
    """Whether each has its share, within 10 % of it."""
    unit = found.total() / sum(weights.values())
    return found.keys() == weights.keys() and all(
        abs(found[name] - unit * weight) <= 0.1 * unit * weight for name, weight in weights.items()
    )


def post(live: Live) -> int:
    """The status of a request that may not be repeated."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
        client.sendall(f"POST / HTTP/1.0\r\nHost: {HOST}\r\nContent-Length: 2\r\n\r\nab".encode())
        return int(client.recv(65536).split()[1])
