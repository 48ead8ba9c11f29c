"""What counts as a connection that still needs a retired endpoint: the arithmetic, without a kernel."""

from __future__ import annotations

import pytest

from nginx_router import drain
from nginx_router.live import InFlight
from nginx_router.names import address
from nginx_router.sockets import Socket

PORTS = frozenset({80})
RETIRED = frozenset({"10.0.0.1:5000", "unix:/run/blog/a.sock"})
CLIENT = Socket("192.0.2.1:80", "198.51.100.7:40000")
TO_RETIRED = Socket("10.0.0.100:41000", "10.0.0.1:5000")
ELSEWHERE = Socket("10.0.0.100:41001", "10.0.0.2:5000")


@pytest.mark.parametrize(
    ("held", "expected"),
    [
        ([], 0),
        ([Socket("0.0.0.0:80", "", listens=True)], 0),
        ([CLIENT], 1),
        ([CLIENT, ELSEWHERE], 0),
        ([CLIENT, TO_RETIRED], 1),
        ([TO_RETIRED], 1),
        ([CLIENT, CLIENT, ELSEWHERE], 1),
        ([CLIENT, CLIENT, TO_RETIRED], 2),
        ([ELSEWHERE, ELSEWHERE, CLIENT], 0),
        ([CLIENT, Socket("", "unix:/run/blog/a.sock")], 1),
        ([CLIENT, Socket("", "unix:a.sock")], 1),
        ([CLIENT, Socket("", "unix:/run/chat/a.sock")], 0),
        ([CLIENT, Socket("", "unix:@a.sock")], 0),
        ([Socket("unix:/run/router/probe.sock", "")], 1),
    ],
)
def test_a_worker_is_in_need_for_each_connection_there_and_each_client_without_a_partner(held: list[Socket], expected: int) -> None:
    assert drain.in_need(held, RETIRED, PORTS) == expected


def test_targets_are_spelled_as_the_kernels_tables_are() -> None:
    words = ["10.0.0.1:80", "[::1]:81", "[::ffff:10.0.0.2]:82", "blog.lan:83", "unknown.lan:84", "unix:/a.sock"]
    resolved = {"blog.lan": ["10.0.0.3", "fe80::1%eth0", "::ffff:10.0.0.4"]}
    assert drain.targets(map(address, words), resolved) == {
        "10.0.0.1:80", "[::1]:81", "10.0.0.2:82", "10.0.0.3:83", "[fe80::1]:83", "10.0.0.4:83", "unix:/a.sock",
    }  # fmt: skip


def test_one_look_that_finds_nothing_is_not_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([2, 0, 1, 0, 0, 7])
    monkeypatch.setattr(drain, "held", lambda *_: {1: next(looks)})
    assert drain.wait([(1, 1)], frozenset(), PORTS, 5) == drain.Drained(0)
    assert next(looks) == 7


def test_giving_up_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "held", lambda *_: {1: 3})
    assert drain.wait([(1, 1)], frozenset(), PORTS, 5, given_up=lambda: True) == drain.Drained(3, given_up=True)


@pytest.mark.parametrize(
    ("held", "counted", "expected"),
    [
        ({}, {}, InFlight()),
        ({1: 2}, {}, InFlight(2)),
        ({1: 1}, {1: InFlight(websockets=1)}, InFlight(0, 1)),  # the same one, seen twice
        ({1: 3}, {1: InFlight(1, 1)}, InFlight(2, 1)),  # one that is not counted
        ({1: 1}, {1: InFlight(2, 1)}, InFlight(2, 1)),
        ({1: 1}, {2: InFlight(websockets=1)}, InFlight(1, 1)),  # one worker's websocket is not another's request
        ({}, {0: InFlight(1)}, InFlight(1)),
    ],
)
def test_what_a_worker_holds_and_what_it_counts_is_the_same_for_the_most_part(
    held: dict[int, int], counted: dict[int, InFlight], expected: InFlight
) -> None:
    assert drain.left_of(held, counted) == expected


def test_websockets_that_are_not_waited_for_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([InFlight(1, 2), InFlight(0, 2), InFlight(0, 2)])
    monkeypatch.setattr(drain, "held", lambda *_: {})
    found = drain.wait([], frozenset(), PORTS, 5, in_flight=lambda: {1: next(looks)}, waits_for_websockets=False)
    assert found == drain.Drained(2, websockets=2) and found.requests == 0


def test_websockets_are_waited_for_like_requests_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(drain, "held", lambda *_: {})
    assert drain.wait([], frozenset(), PORTS, 0.1, in_flight=lambda: {1: InFlight(0, 2)}) == drain.Drained(2, websockets=2)
