"""Which instance a request goes to: one contract, whether endpoint changes reload nginx or not."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from .conftest import until
from .instances import Backend, Half, Slow
from .spreading import EQUAL, HOST, is_spread, post, spread, spread_of, spread_widely

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)


def test_requests_are_spread_evenly(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three)
    both.done("reconcile")
    found = spread(both, 300)
    assert is_spread(found, EQUAL), found


@pytest.mark.parametrize("method", ["round_robin", "least_conn", "random two"])
def test_weights_count(both: Live, three: list[Backend], method: str) -> None:
    both.app("blog", [HOST], [f"{three[0]} weight=4", three[1], three[2]])
    both.done("reconcile")
    both.done("nginx:set", "blog", "load-balancing", method)
    # where the load counts, no request is to begin at one worker while another has yet to put the last one away
    found = spread(both, 600) if method == "round_robin" else spread_widely(both, 600)
    assert is_spread(found, {"one": 4, "two": 1, "three": 1}), found


def test_a_backup_and_one_that_is_down(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], [three[0], f"{three[1]} backup", f"{three[2]} down"])
    both.done("reconcile")
    assert spread(both, 20) == {"one": 20}
    three[0].close()
    assert spread(both, 20) == {"two": 20}
    both.done("apps:upstreams:set", "blog", three[2])
    assert spread(both, 20) == {"three": 20}


def test_a_client_stays_where_it_is(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three)
    both.done("reconcile")
    both.done("nginx:set", "blog", "load-balancing", "ip_hash")
    (name,) = spread(both, 60)
    next(one for one in three if one.name == name).close()
    assert len(spread(both, 60)) == 1, "the same other one each time"


def test_each_client_stays_and_the_weights_part_them(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], [f"{three[0]} weight=2", three[1], three[2]])
    both.done("reconcile")
    both.done("nginx:set", "blog", "load-balancing", "ip_hash")
    # what tells clients from each other is their network, three octets
    clients = [f"127.{upper}.{lower}.1" for upper in range(1, 7) for lower in range(100)]
    first = {client: spread_of(both, client, 1) for client in clients}
    assert {client: spread_of(both, client, 1) for client in clients} == first
    found = sum(first.values(), Counter())
    assert is_spread(found, {"one": 2, "two": 1, "three": 1}), found
    assert spread_of(both, "127.1.0.77", 3).keys() == first["127.1.0.1"].keys(), "a neighbour"
    three[2].close()
    moved = {client: spread_of(both, client, 1) for client in clients}
    assert {client: moved[client] for client, who in first.items() if "three" not in who} == {
        client: who for client, who in first.items() if "three" not in who
    }, "whose instance is there stays"
    assert set(sum(moved.values(), Counter())) == {"one", "two"}


@pytest.mark.parametrize("method", ["least_conn", "random two"])
def test_requests_are_spread_evenly_by_load_too(both: Live, three: list[Backend], method: str) -> None:
    both.app("blog", [HOST], three)
    both.done("reconcile")
    both.done("nginx:set", "blog", "load-balancing", method)
    found = spread_widely(both, 6000 if method == "random two" else 600)
    assert is_spread(found, EQUAL), found


@pytest.mark.parametrize("weight", [1, 2])
@pytest.mark.parametrize("method", ["least_conn", "random two"])
def test_who_is_busy_is_left_alone(both: Live, slow: Slow, method: str, weight: int) -> None:
    with contextlib.closing(Slow()) as other:
        both.app("blog", [HOST], [f"{slow} weight={weight}", other])
        both.done("reconcile")
        both.done("nginx:set", "blog", "load-balancing", method)
        asking = [threading.Thread(target=both.get, args=(HOST, "/slow")) for _ in range(9)]
        for thread in asking:
            thread.start()
        until(lambda: len(slow.asked) + len(other.asked) == 9, what="all under way")
        assert len(slow.asked) in ((4, 5) if weight == 1 else (6,)), "each has as many as its weight says"
        held = len(slow.asked)
        other.may_go.set()
        until(lambda: sum(thread.is_alive() for thread in asking) == held, what="the end of those at one of them")
        assert spread(both, 40) == {"slow": 40}
        assert len(slow.asked) == held, "all went to the one that has nothing to do"
        slow.may_go.set()
        for thread in asking:
            thread.join(10)
        until(lambda: spread(both, 6) and len(slow.asked) > held, what="its return when it is done")


def test_one_that_fails_is_left_out_and_comes_back(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three)
    both.done("reconcile")
    both.done("nginx:set", "blog", "fail-timeout", "2s")
    port = three[0].port
    three[0].close()
    assert "one" not in spread(both, 60), "no request fails"
    again = Backend("one", port)
    try:
        until(lambda: "one" in spread(both, 6), 20, "its return")
    finally:
        again.close()


def test_a_request_that_an_instance_began_is_repeated_only_if_that_is_safe(both: Live, half: Half, backend: Callable[..., Backend]) -> None:
    both.app("blog", [HOST], [half, backend("good")])
    both.done("reconcile")
    both.done("nginx:set", "blog", "max-fails", "0")
    assert spread(both, 20) == {"good": 20}
    assert half.asked >= 5, "each was given to the one first in its turn"

    assert {post(both) for _ in range(6)} == {200, 502}


@pytest.mark.parametrize("page", ["nginx's", "router's", "own"])
def test_a_request_that_may_not_be_repeated_counts_as_a_failure_too(
    both: Live, half: Half, backend: Callable[..., Backend], page: str
) -> None:
    if page == "own":
        both.snippet("blog", "error_page 502 504 =502 /sorry;\nlocation = /sorry { return 502 sorry; }\n")
    both.app("blog", [HOST], [half, backend("good")])
    both.done("reconcile")
    both.done("nginx:set", "blog", "fail-timeout", "60s")
    if page == "router's":
        both.done("nginx:set", "blog", "error-pages", "default")

    answers = [post(both) for _ in range(40)]
    assert 1 <= answers.count(502) <= 2 * len(both.workers()), "it is left out from its first failure on"
    assert set(answers[-20:]) == {200}


def test_an_app_without_instances_says_so(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], [])
    both.done("reconcile")
    answer = both.get(HOST)
    assert answer.status == 502 and "no instance is running" in answer.body
    both.done("apps:deploy", "blog", three[0])
    assert both.get(HOST).body == "one"
    both.done("apps:upstreams:clear", "blog")
    assert both.get(HOST).status == 502


def test_a_failure_counts_though_routes_changed_since_it_was_asked(lively: Live, slow_half: Half, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [slow_half, three[0]])
    lively.app("shop", ["shop.test"], [three[1]])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "fail-timeout", "60s")
    answers: list[str] = []
    asking = []
    while not slow_half.asked:
        asking.append(threading.Thread(target=lambda: answers.append(lively.get(HOST).body)))
        asking[-1].start()
        time.sleep(0.1)
    lively.done("apps:upstreams:add", "shop", three[2])
    for _ in range(12):
        assert lively.get("shop.test").status == 200, "and so each worker has looked"
    slow_half.may_go.set()
    for thread in asking:
        thread.join(10)
    assert set(answers) == {"one"}
    asked = slow_half.asked
    assert spread(lively, 20) == {"one": 20}
    assert slow_half.asked == asked, "it is left out"


def test_new_workers_begin_at_different_instances(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], three)
    lively.done("reconcile")
    first = set()
    for _ in range(12):
        before = lively.workers()
        for pid in before:
            os.kill(pid, signal.SIGKILL)
        until(lambda before=before: len(lively.workers()) == len(before) and not set(lively.workers()) & set(before))  # type: ignore[misc]
        first.add(lively.get(HOST).body)
    assert len(first) > 1, "of the first that each one asks"


def test_one_that_is_left_out_for_long_stays_out_whoever_comes_back_sooner(lively: Live, half: Half, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [half, three[0]])
    lively.app("shop", ["shop.test"], ["127.0.0.1:1", three[1]])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "fail-timeout", "60s")
    lively.done("nginx:set", "shop", "fail-timeout", "1s")
    until(lambda: spread(lively, 4) and half.asked)
    until(lambda: lively.get("shop.test").status == 200)
    for _ in range(4):
        assert lively.get("shop.test").status == 200
    asked = half.asked
    time.sleep(1.5)  # until shop's is back; blog's is not
    spread(lively, 20)
    assert half.asked == asked
