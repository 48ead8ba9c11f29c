"""Many changes that reload, beside websockets that outlive them: none is cut, and old workers do not pile up."""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest

from nginx_router.controller import Outcome, Request, Router
from nginx_router.events import Event
from nginx_router.processes import children, command_line
from nginx_router.settings import Paths
from nginx_router.spacing import LONGEST

from .conftest import until
from .instances import Backend

if TYPE_CHECKING:
    from .conftest import Live

HOST = "chat.test"
HANDSHAKE = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()


class Echo:
    """An instance that takes every connection for a websocket and sends back what comes."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=512)
        self._over = False
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        self._over = True
        self._thread.join(10)

    def _serve(self) -> None:
        greeted: set[socket.socket] = set()
        with self._listener, selectors.DefaultSelector() as ready:
            ready.register(self._listener, selectors.EVENT_READ)
            while not self._over:
                for key, _ in ready.select(0.1):
                    one = key.fileobj
                    assert isinstance(one, socket.socket)
                    if one is self._listener:
                        ready.register(one.accept()[0], selectors.EVENT_READ)
                        continue
                    with contextlib.suppress(OSError):
                        if data := one.recv(65536):
                            one.sendall(
                                data
                                if one in greeted
                                else b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n"
                            )
                            greeted.add(one)
                            continue
                    ready.unregister(one)
                    greeted.discard(one)
                    one.close()
            for key in list(ready.get_map().values()):
                if key.fileobj is not self._listener:
                    key.fileobj.close()  # type: ignore[union-attr]  # these are sockets


class Websockets:
    """Websockets that are open, and are asked at the end whether they still are."""

    def __init__(self, port: int) -> None:
        self._port, self.open = port, list[socket.socket]()

    def add(self, count: int = 1) -> None:
        for _ in range(count):
            one = socket.create_connection(("127.0.0.1", self._port), timeout=30)
            self.open.append(one)
            one.sendall(HANDSHAKE)
            assert b" 101 " in one.recv(65536)

    def answer(self) -> int:
        """How many are still there."""
        found = 0
        for number, one in enumerate(self.open):
            with contextlib.suppress(OSError):
                one.sendall(f"still {number}".encode())
                found += one.recv(65536) == f"still {number}".encode()
        return found

    def close(self) -> None:
        for one in self.open:
            one.close()


class Draining:
    """Looks all the time how many old workers there are."""

    def __init__(self, live: Live) -> None:
        self._live, self._over = live, threading.Event()
        self.most, self.seen = 0, list[tuple[float, int]]()
        self._thread = threading.Thread(target=self._look)
        self._thread.start()

    def now(self) -> int:
        master = self._live.master
        return sum("shutting down" in command_line(pid) for pid in (children(master) if master else ()))

    def stop(self) -> None:
        self._over.set()
        self._thread.join(10)

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.seen.append((time.monotonic(), self.now()))
            self.most = max(self.most, self.seen[-1][1])

    def since(self, count: int) -> float:
        """How many seconds ago there were so many for the first time."""
        first = next((at for at, found in self.seen if found >= count), None)
        return 0.0 if first is None else time.monotonic() - first


@pytest.fixture
def chat(live: Live) -> Iterator[Live]:
    """chat, an app whose instance speaks websockets, and twenty apps that get domains."""
    echo = Echo()
    live.app("chat", [HOST], [echo], **{"app.toml": '[nginx]\nproxy-read-timeout = "1h"\n'})
    for number in range(20):
        live.app(f"app{number:02}", [f"app{number:02}.test"])
    live.done("reconcile")
    yield live
    echo.close()


@pytest.fixture
def websockets(chat: Live) -> Iterator[Websockets]:
    found = Websockets(chat.port)
    yield found
    found.close()


def add_domain(live: Live, number: int, patience: float = 300.0) -> Outcome:
    """`domains:add`, as one command of many that run at once."""
    router = Router(Paths(live.paths.root), Request(command=f"domains:add {number}", lock_timeout=patience))
    event = Event("domains", f"app{number % 20:02}", {"verb": "add", "names": [f"n{number}.test"]})
    return router.change([event])[0]


def together(live: Live, count: int, at_once: int, between: Websockets | None = None) -> list[Outcome]:
    """So many domains by so many askers, a new websocket between them."""

    def one(number: int) -> Outcome:
        if between is not None:
            between.add()
        return add_domain(live, number)

    with ThreadPoolExecutor(at_once) as askers:
        return list(askers.map(one, range(count)))


@pytest.mark.parametrize(
    "changes",
    [pytest.param(60, id="60 changes"), pytest.param(500, id="500 changes", marks=[pytest.mark.slow, pytest.mark.timeout(900)])],
)
def test_many_changes_beside_open_websockets_cut_none_and_leave_few_old_workers(chat: Live, websockets: Websockets, changes: int) -> None:
    chat.done("proxy:set", "--global", "draining-workers", 16)
    websockets.add(200)
    batch = len(chat.workers())
    looks = Draining(chat)
    try:
        outcomes = together(chat, changes, 8)
    finally:
        looks.stop()
    assert websockets.answer() == 200
    assert looks.most <= 16
    assert chat.get(f"n{changes - 1}.test").status == 502, "the last one is served"
    print(f"{changes} changes, {sum(o.reloads for o in outcomes)} reloads, {looks.most} old workers at most")
    until(lambda: looks.now() <= batch, 10, "the end of old workers without websockets")
    chat.is_consistent()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_where_each_reload_leaves_websockets_behind_the_changes_that_wait_share_the_next(chat: Live, websockets: Websockets) -> None:
    chat.done("proxy:set", "--global", "draining-workers", 16)
    websockets.add(200)
    batch = len(chat.workers())
    looks = Draining(chat)
    try:
        outcomes = together(chat, 500, 100, websockets)
    finally:
        looks.stop()
    reloads = sum(o.reloads for o in outcomes)
    print(f"500 changes, {reloads} reloads, {looks.most} old workers at most, {looks.since(16):.0f} s behind the limit")
    over = looks.since(16)
    assert websockets.answer() == 700
    assert looks.most <= 16 + batch + batch * int(over / LONGEST), "behind the limit no more than one reload's workers in 5 s"
    assert all(chat.get(f"n{number}.test").status == 502 for number in range(0, 500, 50))


def crowd(live: Live, websockets: Websockets) -> None:
    """As many old workers as are the limit."""
    live.done("proxy:set", "--global", "draining-workers", 2)
    websockets.add(20)
    looks = Draining(live)
    live.done("proxy:reload")
    looks.stop()
    assert looks.now() >= 2


def test_a_reload_waits_and_those_that_wait_share_it(chat: Live, websockets: Websockets) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one worker a reload: the limit of two is not reached")
    crowd(chat, websockets)
    before = len(chat.journal())
    commands = [chat.begin("domains:add", f"app{n:02}", f"late{n}.test") for n in range(4)]
    results = [command.wait() for command in commands]
    assert [r.code for r in results] == [0] * 4, results
    assert any("the next reload waits, 5 s at most" in r.err for r in results)
    assert sum(line["reloads"] for line in chat.journal()[before:]) == 1
    assert max(r.seconds for r in results) < LONGEST + 5
    assert websockets.answer() == 20


def test_whoever_has_less_patience_is_neither_refused_nor_kept(chat: Live, websockets: Websockets) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one worker a reload: the limit of two is not reached")
    crowd(chat, websockets)
    began = time.monotonic()
    outcome = add_domain(chat, 1, patience=2.0)
    assert outcome.reloads == 1 and 0.5 < time.monotonic() - began < 2
    assert add_domain(chat, 2, patience=0.0).reloads == 1


def test_the_end_of_the_websockets_ends_the_wait(chat: Live, websockets: Websockets) -> None:
    if os.cpu_count() == 1:
        pytest.skip("one worker a reload: the limit of two is not reached")
    crowd(chat, websockets)
    with ThreadPoolExecutor(1) as asker:
        waiting = asker.submit(add_domain, chat, 1)
        until(lambda: chat.queued() == 1, 5, "a change that waits")
        began = time.monotonic()
        websockets.close()
        waiting.result(20)
    assert time.monotonic() - began < 3


def test_a_shutdown_timeout_ends_old_workers_and_cuts_what_they_hold(chat: Live, websockets: Websockets) -> None:
    said = chat.done("proxy:set", "--global", "worker-shutdown-timeout", "1s").err
    assert "a reload touched" in said, "it is taken up at once"
    websockets.add(5)
    looks = Draining(chat)
    chat.done("proxy:reload")
    until(lambda: looks.now() == 0, 10, "the end of old workers")
    looks.stop()
    assert websockets.answer() == 0
    assert "1s" in chat.done("proxy:report", "--worker-shutdown-timeout").out
    chat.done("proxy:set", "--global", "worker-shutdown-timeout")
    assert "worker_shutdown_timeout" not in (chat.paths.current / "nginx.conf").read_text()


def test_in_live_mode_a_deploy_does_not_wait_behind_a_change_that_does(chat: Live, websockets: Websockets, backend: type[Backend]) -> None:
    chat.done("proxy:set", "--global", "updates", "live")
    crowd(chat, websockets)
    with ThreadPoolExecutor(1) as asker:
        waiting = asker.submit(add_domain, chat, 1)
        until(lambda: chat.queued() == 1, 5, "a change that waits")
        began = time.monotonic()
        router = Router(Paths(chat.paths.root), Request(command="deploy", lock_timeout=60))
        outcome = router.change([Event("upstreams", "app00", {"verb": "add", "endpoints": [f"web {backend('one')}"]})])[0]
        assert (outcome.kind, outcome.reloads) == ("endpoints", 0)
        assert time.monotonic() - began < 2 and chat.queued() == 1 and not waiting.done(), "the other one still waits"
        assert chat.get("app00.test").body == "one"
        assert waiting.result(20).reloads == 1
    assert websockets.answer() == 20
