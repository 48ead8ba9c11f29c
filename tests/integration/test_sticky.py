"""Clients that stay with their instance (`load-balancing cookie`): one contract, with reloads and without."""

from __future__ import annotations

import contextlib
import http.client
import re
import uuid
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from .instances import Backend
from .spreading import HOST

if TYPE_CHECKING:
    from .conftest import Answer, Live

pytestmark = pytest.mark.timeout(180)


def marks(count: int) -> list[str]:
    """The marks of so many clients; the same in each run."""
    return [uuid.UUID(int=(n + 1) * 0x9E3779B97F4A7C15F39CC0605CEDC835 % (1 << 128)).hex for n in range(count)]


def ask(live: Live, mark: str = "", path: str = "/") -> Answer:
    """The answer to a client with this mark."""
    answer = live.get(HOST, path, **({"Cookie": f"a=b; router_client={mark}; c=d"} if mark else {}))
    assert answer.status == 200, answer
    return answer


def places(live: Live, clients: list[str]) -> dict[str, str]:
    """Who answers each client; over one connection, which is no client's own."""
    found = {}
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)) as connection:
        for mark in clients:
            connection.request("GET", "/", headers={"Host": HOST, "Cookie": f"router_client={mark}"})
            answer = connection.getresponse()
            body = answer.read().decode()
            assert answer.status == 200, body
            found[mark] = body
    return found


@pytest.fixture
def sticky(both: Live, three: list[Backend]) -> Live:
    """An app of three instances whose clients stay where they are."""
    both.app("blog", [HOST], three)
    both.done("reconcile")
    both.done("nginx:set", "blog", "load-balancing", "cookie")
    return both


def test_a_client_gets_a_mark_and_stays(sticky: Live, three: list[Backend]) -> None:
    found = []
    for _ in range(12):
        first = ask(sticky)
        cookie = first.headers["set-cookie"]
        assert re.fullmatch(r"router_client=[0-9a-f]{32}; Path=/; HttpOnly; SameSite=Lax", cookie), cookie
        mark = cookie.partition("=")[2].partition(";")[0]
        again = [ask(sticky, mark) for _ in range(6)]
        assert {answer.body for answer in again} == {first.body}, "from the first request on"
        assert not any("set-cookie" in answer.headers for answer in again), "it has one"
        found.append(first.body)
    assert len(set(found)) > 1
    for mark in ("x", "0" * 31, "0" * 33, "0" * 31 + "G", "0" * 31 + "A", "../../etc/passwd"):
        assert re.match(r"router_client=[0-9a-f]{32};", ask(sticky, mark).headers["set-cookie"]), "one that is none of ours is replaced"
    sticky.snippet("blog", "add_header X-Own yes;\n")
    sticky.done("reconcile", "blog")
    assert ask(sticky).headers["x-own"] == "yes" and "set-cookie" in ask(sticky).headers, "headers of a snippet stand beside it"
    for each in three:
        each.close()
    answer = sticky.get(HOST)
    assert answer.status == 502 and "set-cookie" in answer.headers, "an error carries it too"


def test_clients_are_spread_and_weights_count(sticky: Live, three: list[Backend]) -> None:
    found = Counter(places(sticky, marks(1500)).values())
    assert len(found) == 3 and all(425 <= count <= 575 for count in found.values()), found
    sticky.done("apps:upstreams:add", "blog", three[0], "--weight", "4")
    found = Counter(places(sticky, marks(900)).values())
    assert 520 <= found["one"] <= 680, found


def test_an_instance_that_comes_takes_its_share_and_moves_nobody_else(sticky: Live, backend: Callable[..., Backend]) -> None:
    clients = marks(800)
    before = places(sticky, clients)
    sticky.done("apps:upstreams:add", "blog", backend("four"))
    after = places(sticky, clients)
    moved = {mark for mark in clients if before[mark] != after[mark]}
    assert {after[mark] for mark in moved} == {"four"}, "nobody changed between the others"
    assert 150 <= len(moved) <= 250, "a quarter"


def test_one_that_fails_is_passed_by_and_the_others_keep_theirs(sticky: Live, three: list[Backend]) -> None:
    sticky.done("nginx:set", "blog", "fail-timeout", "60s")
    clients = marks(90)
    before = places(sticky, clients)
    three[0].close()
    after = places(sticky, clients)
    assert "one" not in after.values()
    assert all(after[mark] == before[mark] for mark in clients if before[mark] != "one")
    assert {after[mark] for mark in clients if before[mark] == "one"} == {"two", "three"}, "not all to one"
    assert places(sticky, clients) == after, "and they stay there"


def test_an_app_that_does_not_ask_for_it_gives_no_marks(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three)
    both.done("reconcile")
    assert "set-cookie" not in ask(both).headers
