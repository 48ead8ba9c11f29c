"""How an instance is chosen, and what a deploy may lose: one contract, whether endpoint changes reload nginx or not."""

from __future__ import annotations

import contextlib
import http.client
import os
import shutil
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.controller import Request, Router
from nginx_router.errors import ReloadFailed
from nginx_router.events import Event
from nginx_router.live import InFlight
from nginx_router.live import Live as Admin
from nginx_router.processes import is_alive
from nginx_router.routes import lines

from .conftest import Backend, until
from .test_deploy_live import Clients

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)

HOST = "blog.test"
EQUAL = {"one": 1, "two": 1, "three": 1}
#: More routes than nginx has memory for.
FILLER = {f"filler{n}": "round_robin 1 10 " + "x" * 100_000 for n in range(400)}


def switch(live: Live) -> None:
    """Endpoint changes reach nginx without a reload from now on."""
    result = live("proxy:set", "--global", "updates", "live")
    assert result.code == 0, f"these tests need nginx's Lua module (script/bootstrap --dev installs it): {result}"


def started(root: Live, updates: str) -> Live:
    """Start nginx, in that way of updating."""
    root.write("router.toml", f'{root.paths.config.read_text()}updates = "{updates}"\n')
    result = root("proxy:start")
    assert result.code == 0, f"these tests need nginx's Lua module (script/bootstrap --dev installs it): {result}"
    return root


@pytest.fixture(params=["reload", "live"])
def both(unstarted: Live, request: pytest.FixtureRequest) -> Live:
    """A root whose nginx runs, in the one way of updating and in the other."""
    return started(unstarted, request.param)


@pytest.fixture
def lively(unstarted: Live) -> Live:
    """A root whose nginx takes endpoint changes up without a reload."""
    return started(unstarted, "live")


@pytest.fixture
def three(backend: Callable[..., Backend]) -> list[Backend]:
    """Three instances, with names of their own."""
    return [backend(name) for name in ("one", "two", "three")]


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


class Half:
    """An instance that takes a request and hangs up without an answer."""

    def __init__(self, waits: bool = False) -> None:
        self.asked, self.may_go = 0, threading.Event()
        if not waits:
            self.may_go.set()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self.may_go.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection:
                    connection.recv(65536)
                    self.asked += 1
                    self.may_go.wait(30)


@pytest.fixture
def half() -> Iterator[Half]:
    """An instance that takes a request and hangs up without an answer."""
    one = Half()
    yield one
    one.close()


@pytest.fixture
def slow_half() -> Iterator[Half]:
    """The same, which hangs up when it may."""
    one = Half(waits=True)
    yield one
    one.close()


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


class Slow:
    """An instance whose answers to /slow wait until they may go."""

    def __init__(self) -> None:
        self.may_go, self.held = threading.Event(), threading.Event()
        self.asked: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._websockets: list[socket.socket] = []
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self.may_go.set()
        for one in (self._listener, *self._websockets):  # those are open for as long as their clients like
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                self._threads.append(threading.Thread(target=self._serve, args=(connection,), daemon=True))
                self._threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            request = connection.recv(65536)
            self.asked.append(request)
            if b"Upgrade: websocket" in request:
                self._websockets.append(connection)
                connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                while data := connection.recv(65536):
                    connection.sendall(data)
                return
            if b" /page " in request:
                page = b'<!--#include virtual="/slow" --><!--#include virtual="/part" -->'
                connection.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n" + page)
                return
            if b" /slow " in request:
                self.held.set()
                self.may_go.wait(30)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nslow")


@pytest.fixture
def slow() -> Iterator[Slow]:
    """An instance whose answers to /slow wait."""
    one = Slow()
    yield one
    one.close()


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


def out_by_its_checks(live: Live, *instances: object) -> None:
    """What `router watch` does where these do not answer."""
    found = {str(instance): "refused" for instance in instances}
    Router(live.paths, Request("watch")).change([Event("health", "blog", {"endpoints": found})])


def test_a_canary_that_nobody_gets_any_more_is_a_change_of_endpoints_all_the_same(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three[:2])
    both.done("reconcile")
    both.done("checks:set", "blog", "interval", "5")
    both.done("apps:deploy", "blog", three[2], "--canary", "10%")
    out_by_its_checks(both, three[2])
    before = pids(both)
    both.done("traffic:set", "blog", "50%")
    abort = ("apps:deploy", "blog", "--abort", "--reason", "it fails its checks")
    with both.unchanged():
        result = both.done(*abort, "--dry-run")
    assert "endpoints: no reload" in result.err, result
    assert both.done(*abort, "--format", "json").json["kind"] == "endpoints"
    last = [(line["command"].split()[0], line["kind"], line["reloads"]) for line in both.journal()[-2:]]
    assert last == [("traffic:set", "endpoints", 0), ("apps:deploy", "endpoints", 0)]
    assert pids(both) == before and len(spread(both, 6)) == 2
    both.is_consistent()
    both.write("apps/blog/UPSTREAMS", f"# the first\n{three[0]}\n{three[1]}\n")
    both.done("reconcile", "blog")
    assert both.journal()[-1]["kind"] == "nothing", "a comment is none of them"


# without a reload


def pids(live: Live) -> list[int | None]:
    """The master and its workers: the same as long as nothing was reloaded or restarted."""
    return [live.master, *sorted(live.workers())]


def socket_of(live: Live) -> Admin:
    return Admin(live.paths.run / "live/admin.sock")


def under_way(live: Live, *addresses: object) -> InFlight:
    return socket_of(live).in_flight(live.workers(), map(str, addresses))


def test_deploys_need_no_reload_and_lose_nothing(lively: Live, backend: Callable[..., Backend]) -> None:
    lively.app("blog", [HOST], [backend("v0")])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "keepalive-requests", "1000000")  # nginx closes a connection after so many, whoever changes what
    before = pids(lively)
    clients = Clients(lively.port)
    try:
        for number in range(1, 11):
            old = lively.store.texts("blog")["UPSTREAMS"].split()[0]  # type: ignore[index]  # it is there
            result = lively.done("apps:deploy", "blog", backend(f"v{number}"))
            assert result.out == f"{old}\n"
            assert lively.get(HOST).body == f"v{number}"
    finally:
        clients.stop()
    assert clients.failures == [] and clients.repeated == 0 and clients.unrepeated == 0, "not even an idle connection was closed"
    assert pids(lively) == before, "the same nginx"
    assert sum(line["reloads"] for line in lively.journal()[-10:]) == 0
    assert {line["kind"] for line in lively.journal()[-10:]} == {"endpoints"}
    lively.serves_current()
    lively.is_consistent()


def test_the_socket_that_changes_routes_is_nobody_elses(lively: Live) -> None:
    directory = lively.paths.run / "live"
    assert (directory / "admin.sock").is_socket() and directory.stat().st_mode & 0o777 == 0o700


def test_the_routers_own_sockets_are_nobodys_instance(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with lively.unchanged():
        result = lively("apps:deploy", "blog", f"unix:{lively.paths.run}/live/admin.sock")
    assert result.code == 2 and "the router's own" in result.err, result
    assert spread(lively, 2) == {"one": 2}


def test_a_websocket_lives_on(lively: Live, slow: Slow, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    with socket.create_connection(("127.0.0.1", lively.port), timeout=10) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
        assert b" 101 " in client.recv(65536)
        result = lively.done("apps:deploy", "blog", three[0], "--drain", "1", "--format", "json")
        assert result.json["forced"] == 1, "it is counted as what is under way"
        assert under_way(lively, slow) == InFlight(websockets=1)
        client.sendall(b"still there")
        assert client.recv(65536) == b"still there"


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


def test_an_instance_that_is_late_is_said_so_whatever_a_snippet_does_with_pages(both: Live, slow: Slow) -> None:
    both.app("blog", [HOST], [slow])
    both.snippet("blog", "recursive_error_pages on;\n")
    both.done("reconcile")
    both.done("nginx:set", "blog", "proxy-read-timeout", "500ms")
    assert both.get(HOST, "/slow").status == 504


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


def started_with(live: Live, file: str, old: str, new: str) -> None:
    """Start nginx anew with a file of the current generation that says `new` where it said `old`."""
    live.done("proxy:stop")
    path = live.paths.current / file
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    live.done("proxy:start")


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


def test_an_upload_goes_where_the_newest_version_says(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with socket.create_connection(("127.0.0.1", lively.port), timeout=30) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nab".encode())
        lively.done("apps:deploy", "blog", three[1])
        three[0].close()
        client.sendall(b"cd")
        assert client.recv(65536).endswith(b"two")


def test_what_else_reloads_keeps_the_routes(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    before = pids(lively)
    lively.done("apps:domains:add", "blog", "www.blog.test")
    assert pids(lively) != before, "a domain is structure"
    assert lively.get("www.blog.test").body == lively.get(HOST).body == "two"
    lively.done("proxy:reload")
    assert lively.get(HOST).body == "two"
    lively.done("apps:destroy", "blog", "--force")
    assert lively.get(HOST).status == 0


@pytest.mark.parametrize("who", ["worker", "master", "all"])
def test_what_is_killed_comes_back_with_the_newest_routes(lively: Live, three: list[Backend], who: str) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    master, workers = lively.master, lively.workers()
    assert master
    for pid in {"worker": workers[:1], "master": [master], "all": [master, *workers]}[who]:
        os.kill(pid, signal.SIGKILL)
    if who != "worker":
        until(lambda: not is_alive(master))
        lively.done("proxy:start")
    until(lambda: lively.get(HOST).status == 200)
    assert spread(lively, 10) == {"two": 10}
    assert lively.done("apps:deploy", "blog", three[2]).out == f"{three[1]}\n", "the dead worker's requests are over"
    assert spread(lively, 10) == {"three": 10}


def test_what_vhosts_of_an_earlier_version_name_is_there(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.snippet("blog", 'set $router_of_blog "router_blog.web$router_kind";\n')
    lively.done("reconcile")
    assert spread(lively, 3) == {"one": 3}


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_broken_snapshot_keeps_nobody_from_being_served(lively: Live, three: list[Backend], damage: str) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("proxy:stop")
    snapshot = lively.paths.current / "live.tsv"
    text = snapshot.read_text()
    if damage == "gone":
        snapshot.unlink()
    else:
        snapshot.write_text(text[: len(text) // 2] if damage == "cut" else "\0\xff no snapshot\n")
    lively.done("proxy:start")
    assert spread(lively, 5) == {"one": 5}


def test_an_answer_that_is_lost_ends_with_the_right_routes(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    admin = lively.paths.run / "live"
    aside = lively.paths.run / "aside"
    admin.rename(aside)
    try:
        result = lively("apps:deploy", "blog", three[1])
        assert result.code == 9 and "did not take the endpoints up" in result.err, result
        assert spread(lively, 5) == {"one": 5}
        assert str(three[0]) in lively.store.texts("blog")["UPSTREAMS"]  # type: ignore[index]  # it is there
    finally:
        with contextlib.suppress(OSError):
            admin.rmdir()
        aside.rename(admin)
    # taken up, but its word was lost: the next command sends all
    routes = {"router_blog.web": f"round_robin 1 10 {str(three[2]).replace(':', '|')}|1|active"}
    socket_of(lively).take("99-lost", None, lambda: routes)
    assert spread(lively, 5) == {"three": 5}
    assert lively("status").code == 9
    lively.done("apps:lock", "blog")
    assert spread(lively, 5) == {"one": 5}
    lively.serves_current()


def test_what_was_sent_and_given_up_does_not_put_nginx_back(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.connect(str(lively.paths.run / "live/admin.sock"))
        late.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        version, writes = late.recv(65536).partition(b"\r\n\r\n")[2].decode().split()
    assert version == index.live
    body = f"route router_blog.web\tround_robin 1 10 127.0.0.1|{three[2].port}|1|active\n".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.settimeout(10)
        late.connect(str(lively.paths.run / "live/admin.sock"))
        head = f"POST /routes?version=99-late&only=0&from={writes} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        late.sendall(head.encode() + body[:10])
        lively.done("apps:deploy", "blog", three[1])
        lively.done("apps:deploy", "blog", three[0])
        late.sendall(body[10:])
        assert late.recv(65536).startswith(b"HTTP/1.1 409 ")
    assert spread(lively, 5) == {"one": 5}
    lively.serves_current()


def test_whoever_knows_another_version_sends_all(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    one, other = socket_of(lively), socket_of(lively)
    assert one.version() == other.version() == index.live
    moved = dict.fromkeys(index.routes, f"round_robin 1 10 127.0.0.1|{three[1].port}|1|active")
    more = moved | {"router_more.web": "round_robin 1 10"}
    one.take("98-one", lines(index.routes, more), lambda: more)
    other.take("99-other", lines(moved, moved), lambda: moved)
    assert other.version() == "99-other" and spread(lively, 5) == {"two": 5}
    assert one.version() == "99-other"


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


def test_a_full_memory_refuses_and_loses_nothing(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    admin = socket_of(lively)
    with pytest.raises(ReloadFailed, match="no memory"):
        admin.take(index.live, lines(index.routes, index.routes | FILLER), lambda: index.routes | FILLER)
    assert spread(lively, 5) == {"one": 5}
    lively.done("apps:deploy", "blog", three[1])
    assert spread(lively, 5) == {"two": 5}


def test_a_command_that_needs_more_memory_than_there_is_is_put_back(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.app("shop", ["shop.test"], [three[1]])
    lively.done("reconcile")
    # what 200,000 endpoints do to the memory there is, 900 do to less
    with_memory(lively, "32k")
    many = [f"127.0.0.1:{port}" for port in range(20000, 20900)]
    for _ in range(2):
        with lively.unchanged():
            result = lively("apps:upstreams:add", "blog", *many)
        assert result.code == 9 and "no memory: it has room for some 200,000 endpoints" in result.err, result
        assert (spread(lively, 5), lively.get("shop.test").body) == ({"one": 5}, "two")
        lively.serves_current()
    assert lively.journal()[-1]["exit"] == 9
    lively.done("apps:deploy", "blog", three[2])
    assert spread(lively, 5) == {"three": 5}
    lively.is_consistent()


def with_memory(live: Live, size: str) -> None:
    """Start nginx anew with so little memory for routes."""
    started_with(live, "router.conf", "lua_shared_dict router_routes 32m;\n", f"lua_shared_dict router_routes {size};\n")


def test_a_socket_that_somebody_removed_is_said_and_doctor_starts_nginx_anew(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    (lively.paths.run / "live/admin.sock").unlink()
    result = lively("apps:deploy", "blog", three[1])
    assert result.code == 9 and "doctor --fix" in result.err, result
    assert spread(lively, 5) == {"one": 5}
    lively("doctor", "--fix")
    lively.done("apps:deploy", "blog", three[1])
    assert spread(lively, 5) == {"two": 5}


def test_after_a_refusal_nobody_goes_by_half_of_it(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    admin = socket_of(lively)
    with pytest.raises(ReloadFailed):
        too_many = {"router_blog.web": f"round_robin 1 10 127.0.0.1|{three[1].port}|1|active"} | FILLER
        admin.take("99-x", lines(index.routes, too_many), lambda: too_many)
    assert admin.version() == "", "what it has now is no version"
    lively.done("apps:lock", "blog")
    assert spread(lively, 20) == {"one": 20}
    lively.serves_current()


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


def test_settings_that_do_not_fit_the_place_can_be_changed(lively: Live, three: list[Backend], tmp_path: Path) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    far = tmp_path / ("x" * 100) / "r"
    far.parent.mkdir()
    shutil.copytree(lively.paths.root, far, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    result = lively("apps:lock", "blog", ROUTER_ROOT=str(far))
    assert result.code == 2 and "shorter root" in result.err, result
    lively.done("proxy:set", "--global", "updates", "reload", ROUTER_ROOT=str(far))
    lively.done("apps:lock", "blog", ROUTER_ROOT=str(far))


def test_without_the_module_it_is_refused_with_the_command_that_installs_it(live: Live) -> None:
    fake = live.write(
        "bin/nginx", '#!/bin/sh\n[ "$1" = -V ] && { echo "configure arguments: --modules-path=/nowhere" >&2; exit 0; }\nexec nginx "$@"\n'
    )
    fake.chmod(0o755)
    live.done("proxy:set", "--global", "nginx-binary", fake)
    with live.unchanged():
        result = live("proxy:set", "--global", "updates", "live")
    assert result.code == 2 and "libnginx-mod-http-lua" in result.err, result


def test_an_own_template_says_itself_where_requests_go(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    shipped = lively.done("apps:nginx:show-config", "--template").out
    lively.write("apps/blog/nginx.conf.j2", shipped)
    lively.done("reconcile", "blog")
    before = pids(lively)
    assert lively.done("apps:deploy", "blog", three[1]).out == f"{three[0]}\n"
    assert pids(lively) != before and lively.get(HOST).body == "two"


def test_a_snippet_may_name_the_upstreams(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.snippet("blog", "location /old/ {\n    proxy_pass http://router_blog.web/;\n}\n")
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    assert lively.get(HOST, "/old/x").body == lively.get(HOST).body == "two"


def test_back_to_reloads_under_load(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    clients = Clients(lively.port)
    try:
        lively.done("proxy:set", "--global", "updates", "reload")
        lively.done("apps:deploy", "blog", three[1])
        switch(lively)
        lively.done("apps:deploy", "blog", three[2])
    finally:
        clients.stop()
    assert clients.failures == []
    assert spread(lively, 5) == {"three": 5}


def test_a_dry_run_says_that_nothing_is_reloaded(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with lively.unchanged():
        result = lively.done("apps:deploy", "blog", three[1], "--dry-run")
    assert "endpoints: no reload" in result.err, result
