"""Startup checks: what passes, what fails, and what the person is told."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nginx_router import checks
from nginx_router.checks import Check
from nginx_router.errors import ChecksFailed, UsageProblem
from nginx_router.names import Address
from nginx_router.reach import closed_to


class Server:
    """Answers each connection with the next of `answers` (the last one again and again), and keeps what it was asked."""

    def __init__(self, listener: socket.socket, *answers: bytes | None) -> None:
        self.listener, self.answers = listener, list(answers)
        self.asked: list[bytes] = []
        self.silent: list[socket.socket] = []
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
            if answer is None:
                self.silent.append(connection)
                continue
            with connection, contextlib.suppress(OSError):
                connection.settimeout(2)
                self.asked.append(connection.recv(4096))
                connection.sendall(answer)

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join(5)
        for one in (self.listener, *self.silent):
            one.close()


Serve = Callable[..., tuple[Server, Address]]


@pytest.fixture
def serve() -> Iterator[Serve]:
    with contextlib.ExitStack() as opened:

        def make(*answers: bytes | None, where: str = "127.0.0.1") -> tuple[Server, Address]:
            if where.startswith("unix:"):
                listener = socket.socket(socket.AF_UNIX)
                listener.bind(where.removeprefix("unix:"))
                listener.listen()
                address = where
            elif ":" in where:
                listener = socket.create_server((where, 0), family=socket.AF_INET6)
                address = f"[{where}]:{listener.getsockname()[1]}"
            else:
                listener = socket.create_server(("127.0.0.1", 0))
                address = f"{where}:{listener.getsockname()[1]}"
            server = Server(listener, *answers)
            opened.callback(server.close)
            return server, Address(address)

        yield make


def http(status: int, body: str = "", *headers: str) -> bytes:
    return "\r\n".join([f"HTTP/1.1 {status} Word", f"Content-Length: {len(body)}", *headers, "", body]).encode()


OK = http(200, "fine")


def failure(*addresses: Address, check: Check) -> str:
    with pytest.raises(ChecksFailed) as caught:
        checks.run("blog", [(address, check) for address in addresses], lambda line: None)
    assert caught.value.app == "blog"
    return caught.value.message


@pytest.mark.parametrize("where", ["127.0.0.1", "::1", "localhost", "unix"])
@pytest.mark.parametrize("path", [None, "/health"])
def test_an_endpoint_of_any_kind_that_answers_passes(serve: Serve, isolated: Path, where: str, path: str | None) -> None:
    server, address = serve(OK, where=f"unix:{isolated}/a.sock" if where == "unix" else where)
    said: list[str] = []
    checks.run("blog", [(address, Check(path, "blog.example.com"))], said.append)
    assert len(said) == 1 and said[0].startswith(f"{address}: {'answers 200' if path else 'accepts connections'} after 0.")
    if path:
        assert server.asked[0].startswith(b"GET /health HTTP/1.1\r\n")
        assert b"\r\nHost: blog.example.com\r\n" in server.asked[0]


@pytest.mark.parametrize("status", [204, 301, 399])
def test_2xx_and_3xx_pass_and_redirects_are_not_followed(serve: Serve, status: int) -> None:
    server, address = serve(http(status, "", "Location: http://127.0.0.1:1/"))
    checks.run("blog", [(address, Check("/"))], lambda line: None)
    assert len(server.asked) == 1


def test_without_a_domain_the_host_is_the_address(serve: Serve) -> None:
    server, address = serve(OK)
    checks.run("blog", [(address, Check("/"))], lambda line: None)
    assert f"\r\nHost: {address}\r\n".encode() in server.asked[0]


def test_a_refused_connection_is_named_with_the_kernels_words(free_port: Callable[[], int]) -> None:
    address = Address(f"127.0.0.1:{free_port()}")
    began = f"since {time.strftime('%Y-%m-%dT', time.gmtime())}"
    assert failure(address, check=Check(timeout=0.2)).startswith(
        f"app blog: endpoint {address} failed its check (a TCP connection): Connection refused, {began}"
    )


def test_the_last_status_and_the_start_of_the_body_are_told(serve: Serve) -> None:
    _, address = serve(http(503, "migrations   are\nrunning " + "x" * 9000))
    message = failure(address, check=Check("/health", timeout=0.3))
    assert message.startswith(f"app blog: endpoint {address} failed its check (GET /health): HTTP 503: 'migrations are running xxx")
    assert len(message) < 250


def test_an_instance_that_becomes_ready_in_time_passes_and_its_progress_is_told_once(serve: Serve) -> None:
    _, address = serve(http(503, "starting"), http(503, "starting"), OK)
    said: list[str] = []
    checks.run("blog", [(address, Check("/"))], said.append)
    assert said[0] == f"{address}: not yet: HTTP 503: 'starting'"
    assert said[1].startswith(f"{address}: answers 200 after ")
    assert len(said) == 2


def test_an_instance_that_accepts_and_is_silent_fails_at_the_deadline_and_holds_no_other_up(serve: Serve) -> None:
    _, silent = serve(None)
    _, good = serve(OK)
    began = time.monotonic()
    message = failure(silent, good, check=Check("/", timeout=0.6))
    assert 0.5 < time.monotonic() - began < 2
    assert message.startswith(f"app blog: endpoint {silent} failed its check (GET /): no answer, since ")


def test_the_last_question_that_has_no_time_left_says_less_than_the_answer_before_it(serve: Serve) -> None:
    _, address = serve(http(503, "starting"), None, None, None)
    # of a second: a third of it for each question, so that the last one is cut short
    assert "HTTP 503: 'starting'" not in failure(address, check=Check("/", timeout=1.2)), "a whole question came to nothing since"
    _, address = serve(*[http(503, "starting")] * 5, None)
    assert "HTTP 503: 'starting'" in failure(address, check=Check("/", timeout=0.9))


def test_a_first_connection_that_is_never_answered_does_not_fail_the_instance(serve: Serve) -> None:
    _, address = serve(None, OK)
    checks.run("blog", [(address, Check("/", timeout=1.5))], lambda line: None)


def test_garbage_is_no_answer(serve: Serve) -> None:
    _, address = serve(b"SSH-2.0-OpenSSH\r\n")
    assert "no HTTP answer (BadStatusLine: " in failure(address, check=Check("/", timeout=0.2))


def test_several_failures_are_all_named_with_their_reasons(free_port: Callable[[], int]) -> None:
    one, two = Address(f"127.0.0.1:{free_port()}"), Address(f"127.0.0.1:{free_port()}")
    message = failure(one, two, check=Check(timeout=0.2))
    assert f"endpoint {one} failed its check (a TCP connection): Connection refused, since " in message
    assert f"; failed too: {two} (Connection refused, since " in message


def test_a_name_that_does_not_exist_fails_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    began = time.monotonic()
    assert "does not resolve (Name or service not known), since" in failure(Address("nosuch.invalid:80"), check=Check(timeout=20))
    assert time.monotonic() - began < 2


def test_a_name_that_a_plugin_resolves_is_asked_there(serve: Serve) -> None:
    server, address = serve(OK)
    named = Address(f"blog.internal:{address.port}")
    checks.run("blog", [(named, Check("/"))], lambda line: None, {"blog.internal": ["127.0.0.9", "127.0.0.1"]})
    assert f"\r\nHost: {named}\r\n".encode() in server.asked[0]


def test_nothing_to_check_passes() -> None:
    checks.run("blog", [], lambda line: None)


@pytest.mark.parametrize("path", ["health", "", "/a b", "/a\r\nX: y", "/ä"])
def test_a_path_that_is_none_is_refused(path: str) -> None:
    with pytest.raises(UsageProblem, match="is not a path"):
        Check(path)


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_a_timeout_that_is_none_is_refused(seconds: float) -> None:
    with pytest.raises(UsageProblem, match="--check-timeout"):
        Check(timeout=seconds)


def test_an_address_of_two_processes_is_asked_in_both_ways_and_once_in_each(serve: Serve) -> None:
    server, address = serve(b"HTTP/1.1 503 Busy\r\n\r\n")
    said: list[str] = []
    tcp, http = Check(timeout=0.3), Check("/up", timeout=0.3)
    with pytest.raises(ChecksFailed, match=r"failed its check \(GET /up\): HTTP 503, since [^;]*$"):
        checks.run("blog", [(address, http), (address, tcp), (address, tcp)], said.append)
    assert len([line for line in said if line.startswith(f"{address} (a TCP connection): accepts connections")]) == 1, said
    assert f"{address} (GET /up): failed: HTTP 503" in said
    assert any(b"GET /up" in asked for asked in server.asked)


def test_a_unix_socket_must_be_open_to_whom_the_workers_run_as(serve: Serve, isolated: Path) -> None:
    where = isolated / "a.sock"
    _, address = serve(OK, OK, OK, where=f"unix:{where}")
    where.chmod(0o755)
    message = failure(address, check=Check("/", user="nobody", timeout=0.2))
    assert f"{where} cannot be written to by nobody, whom nginx's workers run as (mode 0755, " in message
    where.chmod(0o666)
    checks.run("blog", [(address, Check("/", user="nobody"))], lambda line: None)
    isolated.chmod(0o700)
    assert f"{isolated} cannot be entered by nobody" in failure(address, check=Check("/", user="nobody", timeout=0.2))
    checks.run("blog", [(address, Check("/"))], lambda line: None)
    assert closed_to(where, "root") is None and closed_to(where, "no such user") is None
