"""Asking endpoints: an answer is understood however it comes, a silent one holds up nobody, and only what changes is told."""

from __future__ import annotations

import contextlib
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nginx_router.health import Settings
from nginx_router.names import Address
from nginx_router.prober import MOST_OF_AN_APP, Prober, Verdict
from nginx_router.probing import MOST_OPEN, Answer, Asker, Found, Target, ask_once


class Server:
    """Answers each connection with `answer`; None: never."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer = answer
        self.asked: list[bytes] = []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.held: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve, daemon=True)
        self.thread.start()

    @property
    def address(self) -> Address:
        return Address(f"127.0.0.1:{self.listener.getsockname()[1]}")

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                self.held.append(connection)
                if self.answer is not None:
                    connection.settimeout(5)
                    self.asked.append(connection.recv(4096))
                    with contextlib.suppress(OSError):
                        connection.sendall(self.answer)
                    connection.close()

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(10)
        for one in (self.listener, *self.held):
            one.close()


@pytest.fixture
def serve() -> Iterator[Callable[[bytes | None], Server]]:
    with contextlib.ExitStack() as opened:

        def make(answer: bytes | None) -> Server:
            server = Server(answer)
            opened.callback(server.close)
            return server

        yield make


def target(address: Address, name: str = "one", *, app: str = "blog", **more: Any) -> Target:
    settings = replace(Settings(path="/health", interval=0.1, timeout=0.5, fall=2, host="blog.io"), **more)
    return Target((app, name), address, (address,), settings)


def ask(address: Address, **more: Any) -> Found:
    return ask_once([target(address, **more)])["blog", "one"]


@pytest.mark.parametrize(
    ("answer", "passed", "text"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", True, "answers 200"),
        (b"HTTP/1.0 302 Found\r\nLocation: /\r\n\r\n", True, "answers 302"),
        (b"HTTP/1.1 204\n\n", True, "answers 204"),
        (b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\nHTTP/1.1 200 OK\r\n\r\n", True, "answers 200"),
        (b"HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nno\ndb", False, "HTTP 503: 'no db'"),
        (b"HTTP/1.1 503 No\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nno \r\n2\r\ndb\r\n0\r\n\r\n", False, "HTTP 503: 'no db'"),
        (b"HTTP/1.1 404 \r\n\r\n", False, "HTTP 404"),
        (b"HTTP/1.1 500 X\r\n\r\n" + b"\x1b[31m" * 9, False, "HTTP 500: " + repr("\x1b[31m" * 9)),
        (b"SSH-2.0-OpenSSH\r\n", False, "no HTTP answer ('SSH-2.0-OpenSSH')"),
        (b"HTTP/1.1 20 OK\r\n\r\n", False, "no HTTP answer ('HTTP/1.1 20 OK')"),
        (b"", False, "the connection was closed without an answer"),
    ],
)
def test_an_answer_is_understood_however_it_comes(serve: Callable[..., Server], answer: bytes, passed: bool, text: str) -> None:
    server = serve(answer)
    found = ask(server.address)
    assert (found.passed, found.text) == (passed, text)
    assert server.asked[0].startswith(b"GET /health HTTP/1.1\r\nHost: blog.io\r\n") and server.asked[0].endswith(b"\r\n\r\n")
    for size in (1, 7):
        piecewise = Answer(((200, 399),))
        for at in range(0, len(answer), size):
            if piecewise.feed(answer[at : at + size]):
                break
        else:
            piecewise.feed(b"")
        assert piecewise.is_good == passed and (piecewise.is_good or piecewise.text.startswith(text[:8]))


def test_statuses_are_those_that_were_set(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n")
    assert ask(server.address, statuses=((200, 200), (401, 403))).text == "answers 401"
    assert not ask(server.address, statuses=((200, 200),)).passed


def test_without_a_path_a_connection_is_enough(serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    assert ask(serve(None).address, path=None).text == "accepts connections"
    assert ask(Address(f"127.0.0.1:{free_port()}"), path=None).text == "Connection refused"


def test_what_an_endpoint_does_not_answer_in_time_it_does_not_answer(serve: Callable[..., Server]) -> None:
    began = time.monotonic()
    assert ask(serve(None).address, timeout=0.2).text == "Connection timed out: no answer within 0.2 s"
    assert time.monotonic() - began < 5


def test_one_of_the_addresses_of_a_name_is_enough(serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    server, dead = serve(b"HTTP/1.1 200 OK\r\n\r\n"), Address(f"127.0.0.9:{free_port()}")
    named = replace(target(Address("blog.internal:80")), places=(dead, server.address))
    assert ask_once([named])["blog", "one"].passed
    assert ask_once([replace(named, places=())])["blog", "one"].text == "the host name does not resolve"


def test_a_unix_socket_is_asked_too(isolated: Path) -> None:
    found = ask(Address(f"unix:{isolated}/nobody.sock"))
    assert found.text == "No such file or directory"


def test_a_thousand_silent_ones_hold_up_nobody(serve: Callable[..., Server]) -> None:
    good, silent = serve(b"HTTP/1.1 200 OK\r\n\r\n"), serve(None)
    targets = [target(silent.address, f"silent{n}", timeout=0.3) for n in range(300)] + [target(good.address, "good")]
    found = ask_once(targets)
    assert len(found) == 301 and found["blog", "good"].passed and not found["blog", "silent299"].passed


def test_what_this_host_lacks_is_held_against_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> socket.socket:
        raise OSError(24, "Too many open files")

    told: list[Found] = []
    asker = Asker(lambda target, found: told.append(found))
    monkeypatch.setattr("nginx_router.probing.socket.socket", none)
    asker.begin(target(Address("127.0.0.1:9")))
    monkeypatch.undo()
    asker.close()
    assert told[0].is_ours and told[0].text == "Too many open files"


# again and again


def until(said: Callable[[], object], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def prober() -> Iterator[tuple[Prober, list[Verdict]]]:
    told: list[Verdict] = []
    one = Prober(told.append, chance=lambda: 0.1)
    yield one, told
    one.stop()


def test_only_what_changes_is_told(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    one.watch("blog", {"one": target(server.address)}, ())
    until(lambda: len(server.asked) > 3)
    assert told == []
    server.answer = b"HTTP/1.1 503 No\r\n\r\nno"
    until(lambda: told)
    server.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    until(lambda: len(told) > 1)
    assert told == [Verdict(("blog", "one"), "HTTP 503: 'no'"), Verdict(("blog", "one"), None)]
    one.watch("blog", {}, ())
    asked = len(server.asked)
    time.sleep(0.4)  # that nobody asks can only be waited for
    assert len(server.asked) <= asked + 1
    assert one.is_up(("blog", "one"))


def test_one_that_was_out_has_to_rise_first(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    one.watch("blog", {"one": target(server.address)}, ["one"])
    assert not one.is_up(("blog", "one"))
    until(lambda: told)
    assert told == [Verdict(("blog", "one"), None)] and len(server.asked) >= 2


def test_the_silent_instances_of_one_app_hold_up_no_other(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, _ = prober
    good, silent = serve(b"HTTP/1.1 200 OK\r\n\r\n"), serve(None)
    one.watch("shop", {str(n): target(silent.address, str(n), app="shop", timeout=60.0) for n in range(MOST_OPEN + 50)}, ())
    until(lambda: len(silent.held) >= MOST_OF_AN_APP)
    one.watch("blog", {"one": target(good.address)}, ())
    until(lambda: len(good.asked) >= 3)
    assert len(silent.held) <= MOST_OF_AN_APP + 1
    asked = len(good.asked)
    one.watch("shop", {"one": target(good.address, app="shop")}, ())
    until(lambda: len(good.asked) >= asked + 10)
    assert one.is_up(("shop", "one")), "those that are gone hold up nobody either"


def test_all_of_an_app_have_their_turn(serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]) -> None:
    one, told = prober
    good = serve(b"HTTP/1.1 503 No\r\n\r\n")
    names = [str(n) for n in range(3 * MOST_OF_AN_APP)]
    one.watch("blog", {name: target(good.address, name) for name in names}, ())
    until(lambda: len(told) >= len(names), 30)
    assert {verdict.key[1] for verdict in told} == {*names}


def test_without_anything_to_ask_there_is_no_thread(prober: tuple[Prober, list[Verdict]]) -> None:
    before = threading.active_count()
    prober[0].watch("blog", {}, ())
    assert threading.active_count() == before


def test_one_that_somebody_else_took_in_is_asked_at_once_and_has_to_fall(
    serve: Callable[..., Server], prober: tuple[Prober, list[Verdict]]
) -> None:
    one, told = prober
    server = serve(b"HTTP/1.1 503 No\r\n\r\nno")
    one.watch("blog", {"one": target(server.address, interval=30.0)}, ["one"])
    one.take_in("blog", ["one", "another"])
    assert one.is_up(("blog", "one"))
    until(lambda: server.asked, 2)
    assert one.is_up(("blog", "one")) and told == [], "once is not often enough"
    one.watch("blog", {"one": target(server.address, interval=0.1)}, ())
    until(lambda: told)
    assert told == [Verdict(("blog", "one"), "HTTP 503: 'no'")]


def test_checks_of_many_are_spread_over_the_interval(serve: Callable[..., Server]) -> None:
    server = serve(b"HTTP/1.1 200 OK\r\n\r\n")
    chance = random.Random(1)
    one = Prober(lambda verdict: None, chance=chance.random)
    began = time.monotonic()
    one.watch("blog", {str(n): target(server.address, str(n), interval=1.0) for n in range(20)}, ())
    try:
        until(lambda: len(server.asked) >= 3)
        assert len(server.asked) < 20 or time.monotonic() - began > 0.5, "they do not begin all at once"
        until(lambda: len(server.asked) >= 20)
    finally:
        one.stop()


# at once


def test_a_look_at_once_names_who_fails(run: Callable[..., Any], serve: Callable[..., Server], free_port: Callable[[], int]) -> None:
    good, dead = serve(b"HTTP/1.1 200 OK\r\n\r\n").address, f"127.0.0.1:{free_port()}"
    run("apps:create", "blog")
    run("upstreams:add", "blog", str(good), f"api={dead}")
    run("checks:set", "blog", "path", "/health")
    assert run("checks:run", "blog", "--process", "web").code == 0
    got = run("checks:run", "blog")
    assert got.code == 12 and got.lines[1] == f"api {dead}: Connection refused"
    assert got.talk[0] == f"router: app blog: endpoint {dead} failed its check (GET /health): Connection refused"
    assert [(each["address"], each["ok"]) for each in run("checks:run", "blog", "--format", "json").json()] == [
        (str(good), True),
        (dead, False),
    ]
    assert run("checks:run", "blog", "--process", "ap").code == 3
