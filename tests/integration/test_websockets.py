"""`--websockets close`: who drains need not wait for websockets, and is told how many there are; requests are waited for all the same."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from nginx_router.live import InFlight

from .conftest import until
from .instances import Backend, Slow
from .spreading import HOST
from .updating import switch, under_way

if TYPE_CHECKING:
    from .conftest import Live, Result

pytestmark = pytest.mark.timeout(180)
HANDSHAKE = f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode()


class Chat:
    """An app `blog` with one instance, and the websockets that are open to it."""

    def __init__(self, live: Live, old: Slow, new: Backend) -> None:
        self.live, self.old, self.new = live, old, new
        self.open: list[socket.socket] = []
        self.asking: list[socket.socket] = []
        live.app("blog", [HOST], [old], **{"app.toml": '[nginx]\nproxy-read-timeout = "1h"\n'})
        live.done("reconcile")

    def connect(self, count: int = 1) -> None:
        for _ in range(count):
            self.open.append(socket.create_connection(("127.0.0.1", self.live.port), timeout=30))
            self.open[-1].sendall(HANDSHAKE)
            assert b" 101 " in self.open[-1].recv(65536)

    def ask(self) -> None:
        """A request that waits until it may go."""
        self.asking.append(socket.create_connection(("127.0.0.1", self.live.port), timeout=60))
        self.asking[-1].sendall(f"GET /slow HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())

    def answer(self) -> int:
        """How many websockets are still there."""
        for one in self.open:
            one.sendall(b"still there")
        return sum(one.recv(65536) == b"still there" for one in self.open)

    def end(self) -> None:
        self.old.may_go.set()
        for one in self.asking:
            assert b" 200 " in one.recv(65536), "no request was lost"
        for one in (*self.open, *self.asking):
            one.close()


@pytest.fixture
def chat(live: Live, backend: Callable[..., Backend]) -> Iterator[Chat]:
    """With updates reload, as it is."""
    old = Slow()
    found = Chat(live, old, backend("new"))
    yield found
    found.end()
    old.close()


@pytest.fixture
def lively(chat: Chat) -> Chat:
    """The same with updates live."""
    switch(chat.live)
    return chat


def deployed_when_the_request_ends(lively: Chat) -> Result:
    """A deploy that does not wait for websockets, and is seen to wait for the request that is under way."""
    deploy = lively.live.begin("apps:deploy", "blog", lively.new, "--websockets", "close", "--drain", "60", "--format", "json")
    until(lambda: lively.live.get(HOST).body == "new", 30, "the new instance")
    with pytest.raises(AssertionError):
        until(lambda: deploy.process.poll() is not None, 0.5)
    lively.old.may_go.set()
    return deploy.wait(20)


def test_a_deploy_waits_for_requests_and_tells_how_many_websockets_are_left(lively: Chat) -> None:
    lively.connect(2)
    lively.ask()
    until(lambda: under_way(lively.live, lively.old) == InFlight(requests=1, websockets=2))
    result = deployed_when_the_request_ends(lively)
    assert result.code == 0 and result.json["retired"] == [str(lively.old)], result
    assert (result.json["websockets"], result.json["forced"]) == (2, 0)
    assert f"2 websockets are still open on {lively.old}: whoever stops these cuts them" in result.err
    assert lively.answer() == 2, "the router itself cuts none"


def test_without_a_request_it_ends_at_once(lively: Chat) -> None:
    lively.connect()
    result = lively.live.done("apps:deploy", "blog", lively.new, "--websockets", "close", "--drain-strict", "--drain", "60")
    assert result.out == f"{lively.old}\n" and "1 websocket is still open" in result.err and result.seconds < 10


def test_kept_ones_are_waited_for_and_each_is_counted_once(lively: Chat) -> None:
    lively.connect(2)
    lively.live.done("domains:add", "blog", "www.blog.test")  # a reload: the websockets are an old worker's now
    assert lively.live("status", "--format", "json").json["draining"]
    result = lively.live.done("apps:deploy", "blog", lively.new, "--drain", "1", "--format", "json")
    assert (result.json["websockets"], result.json["forced"]) == (2, 2)
    assert "2 connections left after 1 s" in result.err and lively.answer() == 2


def test_those_of_old_workers_are_known_too(lively: Chat) -> None:
    lively.connect(2)
    lively.ask()
    until(lambda: under_way(lively.live, lively.old).requests == 1)
    lively.live.done("domains:add", "blog", "www.blog.test")
    result = deployed_when_the_request_ends(lively)
    assert (result.code, result.json["websockets"], result.json["forced"]) == (0, 2, 0), result


def test_one_from_before_updates_live_is_no_known_websocket(chat: Chat) -> None:
    chat.connect()
    switch(chat.live)
    result = chat.live.done("apps:deploy", "blog", chat.new, "--websockets", "close", "--drain", "1", "--format", "json")
    assert (result.json["websockets"], result.json["forced"]) == (0, 1), "it may be a slow request: the deadline decides"


@pytest.mark.parametrize("command", ["apps:retire", "apps:upstreams:drain"])
def test_retire_and_drain_take_it_too(lively: Chat, command: str) -> None:
    lively.connect()
    result = lively.live.done(command, "blog", lively.old, "--websockets", "close", "--drain", "60", "--format", "json")
    assert (result.json["websockets"], result.json["forced"]) == (1, 0) and result.seconds < 10
    assert lively.answer() == 1


def test_a_batch_waits_for_its_requests_and_not_for_them(lively: Chat, backend: Callable[..., Backend]) -> None:
    other, third = backend("other"), backend("new")
    lively.connect(2)
    lively.ask()
    until(lambda: under_way(lively.live, lively.old) == InFlight(requests=1, websockets=2))
    lively.live.done("upstreams:add", "blog", other)
    deploy = lively.live.begin("apps:deploy", "blog", lively.new, third, "--batch", "1", "--websockets", "close", "--drain", "60")
    until(lambda: "new" in {lively.live.get(HOST).body for _ in range(4)}, 30, "the first batch")
    with pytest.raises(AssertionError):
        until(lambda: str(third) in (lively.live.store.texts("blog") or {})["UPSTREAMS"], 0.5)
    lively.old.may_go.set()
    result = deploy.wait(30)
    assert result.code == 0 and result.out == f"{lively.old}\n{other}\n", result
    assert result.err.count("still open on") == 1 and f"2 websockets are still open on {lively.old}: whoever stops these" in result.err
    assert lively.answer() == 2


@pytest.mark.parametrize("end", ["--promote", "--abort"])
def test_a_canary_comes_and_ends_without_a_wait_for_them(lively: Chat, end: str) -> None:
    canary = Slow()
    try:
        begun = lively.live.done("apps:deploy", "blog", canary, "--canary", "100%", "--websockets", "close", "--drain", "60")
        assert begun.out == "" and begun.seconds < 20
        if end == "--promote":
            lively.live.done("traffic:set", "blog", "0%")
        leaving = lively.old if end == "--promote" else canary
        lively.connect(2)
        until(lambda: under_way(lively.live, leaving) == InFlight(requests=0, websockets=2))
        result = lively.live.done("apps:deploy", "blog", end, "--websockets", "close", "--drain", "60", "--format", "json")
        assert result.seconds < 20 and result.json["retired"] == [str(leaving)], result
        assert (result.json["websockets"], result.json["forced"]) == (2, 0)
        assert f"2 websockets are still open on {leaving}: whoever stops these cuts them" in result.err
        assert lively.answer() == 2
    finally:
        canary.close()


@pytest.mark.parametrize(
    "words",
    [
        ("apps:deploy", "blog", "127.0.0.1:9"),
        ("apps:scale", "blog", "web=2"),
        ("apps:retire", "blog", "127.0.0.1:9"),
        ("apps:upstreams:drain", "blog", "127.0.0.1:9"),
    ],
)
def test_with_updates_reload_it_is_refused(chat: Chat, words: tuple[str, ...]) -> None:
    with chat.live.unchanged():
        result = chat.live(*words, "--websockets", "close")
        assert result.code == 2 and "router proxy:set --global updates live" in result.err, result
        assert chat.live(*words, "--websockets", "perhaps").code == 2


def test_where_nobody_counts_it_is_refused(lively: Chat) -> None:
    lively.live.snippet("blog", "location /old/ {\n    proxy_pass http://router_blog.web/;\n}\n")
    lively.live.done("reconcile")
    result = lively.live("apps:deploy", "blog", lively.new, "--websockets", "close")
    assert result.code == 2 and "nobody counts them" in result.err, result


def test_a_reload_says_how_many_connections_and_websockets_it_touches(lively: Chat) -> None:
    lively.connect(3)
    with socket.create_connection(("127.0.0.1", lively.live.port)) as idle:
        idle.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
        assert b"slow" in idle.recv(65536)
        rehearsed = lively.live.done("domains:add", "blog", "www.blog.test", "--dry-run").err
        assert "structure: one reload, which touches 4 client connections (at least 1 idle, 3 websockets)" in rehearsed
        said = lively.live.done("domains:add", "blog", "www.blog.test").err
    assert "a reload touched 4 connections (1 idle ones closed, 3 go on, 3 of them websockets)" in said
    line = lively.live.journal()[-1]
    assert (line["kind"], line["reloads"]) == ("structure", 1)
    assert (line["closed_connections"], line["kept_connections"], line["websockets"]) == (1, 3, 3)


def test_with_updates_reload_websockets_are_not_known(chat: Chat) -> None:
    chat.connect(3)
    assert "which touches 3 client connections (at least 0 idle)" in chat.live.done("domains:add", "blog", "www.blog.test", "--dry-run").err
    assert "a reload touched 3 connections (0 idle ones closed, 3 go on)" in chat.live.done("domains:add", "blog", "www.blog.test").err
    line = chat.live.journal()[-1]
    assert (line["closed_connections"], line["kept_connections"], line["websockets"]) == (0, 3, None)
    chat.connect(2)
    chat.live.done("proxy:reload")
    line = chat.live.journal()[-1]
    assert (line["reloads"], line["kept_connections"]) == (1, 2), "those of older workers are not touched again"


@pytest.mark.parametrize("updates", ["reload", "live"])
def test_a_deploy_says_what_it_cost(chat: Chat, backend: Callable[..., Backend], updates: str) -> None:
    if updates == "live":
        chat.live.done("proxy:set", "--global", "updates", "live")
    chat.connect(3)
    result = chat.live.done("apps:deploy", "blog", backend("new"), "--drain", "0.1")
    cost = "no reload" if updates == "live" else r"a reload touched 3 connections \(0 idle ones closed, 3 go on\)"
    assert re.search(rf"^blog: deployed as generation \d+, endpoints, {cost}, \d+\.\d\d s, retired 1$", result.err, re.MULTILINE), result
    done = chat.live.done("apps:deploy", "blog", backend("newer"), "--format", "json").json
    assert (done["kind"], done["reloads"], done["kept_connections"]) == ("endpoints", 0 if updates == "live" else 1, 0)
