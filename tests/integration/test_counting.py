"""What is under way on an instance: counted request by request, and when its deploy may print it."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from nginx_router.errors import ReloadFailed
from nginx_router.live import InFlight

from .conftest import until
from .instances import Backend, Half, Slow
from .spreading import HOST, spread
from .updating import pids, socket_of, started_with, under_way

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)


def test_an_old_instance_is_printed_when_its_last_request_is_answered(both: Live, slow: Slow, three: list[Backend]) -> None:
    both.app("blog", [HOST], [slow])
    both.done("reconcile")
    answers: list[int] = []
    asking = threading.Thread(target=lambda: answers.append(both.get(HOST, "/slow").status))
    asking.start()
    time.sleep(0.3)  # until it is under way; nothing tells
    deploy = both.begin("apps:deploy", "blog", three[0])
    until(lambda: both.get(HOST).body == "one", 30, "the new instance")
    time.sleep(0.5)
    assert deploy.process.poll() is None, "the request is still under way"
    slow.may_go.set()
    result = deploy.wait()
    assert result.code == 0 and result.out == f"{slow}\n", result
    asking.join(10)
    assert answers == [200]


def test_what_a_strict_deploy_did_not_drain_may_be_stopped_when_retire_says_so(both: Live, slow: Slow, three: list[Backend]) -> None:
    both.app("blog", [HOST], [slow])
    both.done("reconcile")
    asking = threading.Thread(target=both.get, args=(HOST, "/slow"))
    asking.start()
    assert slow.held.wait(10)
    result = both("apps:deploy", "blog", three[0], "--drain", "0", "--drain-strict")
    assert result.code == 15 and result.out == "" and f"router apps:retire blog {slow}" in result.err, result
    result = both("apps:retire", "blog", slow, "--drain", "0", "--drain-strict")
    assert result.code == 15 and f"not drained: {slow}" in result.err, result
    retire = both.begin("apps:retire", "blog", slow)
    time.sleep(0.5)
    assert retire.process.poll() is None, "the request is still under way"
    slow.may_go.set()
    result = retire.wait()
    assert result.code == 0 and result.out == "", result
    asking.join(10)
    both.is_consistent()


def test_at_the_deadline_it_is_printed_and_said(both: Live, slow: Slow, three: list[Backend]) -> None:
    both.app("blog", [HOST], [slow])
    both.done("reconcile")
    asking = threading.Thread(target=both.get, args=(HOST, "/slow"))
    asking.start()
    time.sleep(0.3)  # until it is under way; nothing tells
    result = both("apps:deploy", "blog", three[0], "--drain", "1", "--format", "json")
    assert result.code == 0 and result.json["forced"] == 1 and result.json["retired"] == [str(slow)], result
    assert result.json["kind"] == "endpoints"
    slow.may_go.set()
    asking.join(10)


def test_websockets_are_counted_apart(lively: Live, slow: Slow) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    asking = threading.Thread(target=lively.get, args=(HOST, "/slow"))
    asking.start()
    with socket.create_connection(("127.0.0.1", lively.port), timeout=10) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
        assert b" 101 " in client.recv(65536)
        until(lambda: under_way(lively, slow) == InFlight(requests=1, websockets=1))
        slow.may_go.set()
        asking.join(10)
        until(lambda: under_way(lively, slow) == InFlight(websockets=1))
    until(lambda: under_way(lively, slow) == InFlight())


def test_what_is_asked_in_parts_is_counted_in_parts(lively: Live, slow: Slow) -> None:
    lively.app("blog", [HOST], [slow])
    lively.snippet("blog", "ssi on;\n")
    lively.done("reconcile")
    answers: list[str] = []
    asking = threading.Thread(target=lambda: answers.append(lively.get(HOST, "/page").body))
    asking.start()
    until(lambda: under_way(lively, slow) == InFlight(requests=3), what="a page and two parts of it")
    slow.may_go.set()
    asking.join(10)
    assert answers == ["slowslow"]
    until(lambda: under_way(lively, slow) == InFlight(), what="nothing under way")


def test_an_old_worker_is_counted_in_whatever_came_after_it(lively: Live, slow: Slow) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    asking = threading.Thread(target=lively.get, args=(HOST, "/slow"))
    asking.start()
    assert slow.held.wait(10)
    old = lively.workers()
    for number in range(3):
        lively.done("domains:add", "blog", f"more{number}.test")
    assert under_way(lively, slow) == InFlight(), "the new workers have nothing"
    assert socket_of(lively).in_flight(old, [str(slow)]) == InFlight(requests=1)
    slow.may_go.set()
    asking.join(10)
    until(lambda: socket_of(lively).in_flight(old, [str(slow)]) == InFlight())


def test_a_request_is_counted_where_it_is_and_not_where_it_failed(lively: Live, half: Half, slow: Slow) -> None:
    lively.app("blog", [HOST], [half, slow])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "load-balancing", "least_conn")
    asking = [threading.Thread(target=lively.get, args=(HOST, "/slow")) for _ in range(4)]
    for thread in asking:
        thread.start()
    until(lambda: under_way(lively, slow) == InFlight(requests=4))
    assert half.asked
    assert under_way(lively, half) == InFlight()
    slow.may_go.set()
    for thread in asking:
        thread.join(10)
    until(lambda: under_way(lively, slow, half) == InFlight())


def test_a_program_that_wants_more_counters_takes_over_by_a_reload(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], three)
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "load-balancing", "least_conn")
    assert len(spread(lively, 20)) == 3
    program, before = lively.paths.current / "live.lua", lively.workers()
    text = program.read_text()
    assert "local OWN, TOGETHER = 1048576, 262144\n" in text
    program.write_text(text.replace("OWN, TOGETHER = 1048576", "OWN, TOGETHER = 4194304"))
    lively.done("proxy:reload")
    until(lambda: lively.workers() and not set(lively.workers()) & set(before))
    after = pids(lively)
    assert len(spread(lively, 60)) == 3 and pids(lively) == after, "no worker died"


def with_counters(live: Live, own: int) -> None:
    """Start nginx anew with a program that has room for so few counters."""
    started_with(live, "live.lua", "local OWN, TOGETHER = 1048576, 262144\n", f"local OWN, TOGETHER = {own}, 262144\n")


def test_one_counter_serves_many_instances_one_after_the_other(lively: Live, backend: Callable[..., Backend]) -> None:
    lively.app("blog", [HOST], [backend("v0")])
    lively.done("reconcile")
    with_counters(lively, 4 * len(lively.workers()))
    for number in range(20):
        instance = backend(f"v{number}")
        line = f"round_robin 1 10 127.0.0.1|{instance.port}|1|active"
        socket_of(lively).take(f"test-{number}", None, lambda line=line: {"router_blog.web": line})  # type: ignore[misc]
        assert spread(lively, 8) == {f"v{number}": 8}
    assert socket_of(lively).in_flight(lively.workers(), None) == InFlight()


def test_where_no_counter_is_left_nobody_believes_the_counts(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with_counters(lively, 0)
    assert spread(lively, 10) == {"one": 10}, "it is served all the same"
    with pytest.raises(ReloadFailed, match="no room to count"):
        under_way(lively, three[0])


def test_a_worker_that_was_killed_weighs_nothing(lively: Live, slow: Slow, backend: Callable[..., Backend]) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "load-balancing", "least_conn")
    asking = [threading.Thread(target=lively.get, args=(HOST, "/slow"), daemon=True) for _ in range(6)]
    for thread in asking:
        thread.start()
    until(lambda: under_way(lively, slow) == InFlight(requests=6))
    before = lively.workers()
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    until(lambda: len(lively.workers()) == len(before) and not set(lively.workers()) & set(before))
    for thread in asking:
        thread.join(10)
    slow.may_go.set()
    lively.done("apps:upstreams:add", "blog", backend("good"))
    assert len(spread(lively, 30)) == 2, "the one that six requests were under way at"


def test_many_addresses_are_asked_for(lively: Live) -> None:
    assert socket_of(lively).in_flight(lively.workers(), [f"unix:/{'x' * 90}/{n}" for n in range(500)]) == InFlight()


def test_nobody_answers_is_not_nothing_under_way(lively: Live, slow: Slow, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    aside = lively.paths.run / "aside"
    asking = threading.Thread(target=lively.get, args=(HOST, "/slow"))
    asking.start()
    time.sleep(0.3)  # until it is under way; nothing tells
    deploy = lively.begin("apps:deploy", "blog", three[0], "--drain", "3", "--format", "json")
    until(lambda: lively.get(HOST).body == "one", 30, "the new instance")
    (lively.paths.run / "live").rename(aside)
    try:
        result = deploy.wait()
    finally:
        aside.rename(lively.paths.run / "live")
    assert result.code == 0 and result.json["forced"] == 1, result
    slow.may_go.set()
    asking.join(10)
