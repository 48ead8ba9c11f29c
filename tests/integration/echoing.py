"""Instances that say what they were asked, and apps with one each."""

from __future__ import annotations

import contextlib
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Live


class App(BaseHTTPRequestHandler):
    """An instance: it says what it was asked, or what its path tells it to do."""

    protocol_version = "HTTP/1.1"
    server: Instance

    def do_GET(self) -> None:
        self.server.asked += 1
        _, _, number = self.path.partition("/status/")
        if self.path == "/slow":
            self.server.awaited.wait(10)
        if self.headers.get("Transfer-Encoding") or self.headers.get("Content-Length"):
            self._read_body()
        body = json.dumps({k.lower(): v for k, v in self.headers.items()} | {"port": self.server.server_port}).encode()
        if self.path == "/css":
            body = b"a { color: red }\n" * 100
        self.send_response(int(number) if number else self.server.answer)
        self.send_header("Content-Type", "text/css" if self.path == "/css" else "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET

    def _read_body(self) -> None:
        left = int(self.headers["Content-Length"])
        while left > 0 and (data := self.rfile.read1(min(left, 65536))):  # type: ignore[attr-defined]  # a BufferedReader
            left -= len(data)
            self.server.body += len(data)

    def log_message(self, format: str, *args: object) -> None:
        pass


class Instance(ThreadingHTTPServer):
    """One instance of an app."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), App)
        self.asked, self.body, self.answer = 0, 0, 200
        self.awaited = threading.Event()
        self.thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def end(self) -> None:
        self.awaited.set()
        self.shutdown()
        self.server_close()


@pytest.fixture
def instance() -> Iterator[Callable[[], Instance]]:
    started: list[Instance] = []

    def start() -> Instance:
        started.append(Instance())
        return started[-1]

    yield start
    for each in started:
        each.end()


@pytest.fixture
def blog(live: Live, instance: Callable[[], Instance]) -> Live:
    """blog with one instance, and shop with another, which no property of blog touches."""
    live.app("blog", ["blog.test"], [instance()])
    live.app("shop", ["shop.test"], [instance()])
    live.done("reconcile")
    return live


def setting(live: Live, key: str, value: str, app: str = "blog") -> None:
    """Set a property; the command has proved that nginx serves it."""
    live.done("nginx:set", app, key, value)
    assert live.done("nginx:report", app, f"--computed-{key}").out == f"{value}\n"


def seen(live: Live, host: str = "blog.test", path: str = "/", **headers: str) -> dict[str, Any]:
    """What the instance says that it was asked."""
    answer = live.get(host, path, **headers)
    assert answer.status == 200, answer
    found: dict[str, Any] = json.loads(answer.body)
    return found


def logged(live: Live, name: str, word: str) -> list[str]:
    """The lines of a log, once one holds `word`: nginx writes it when the client has its answer already."""
    log = live.paths.log / name
    deadline = time.monotonic() + 10
    while not (log.exists() and word in log.read_text(errors="replace")):
        assert time.monotonic() < deadline, f"{word} is not in {log}"
        time.sleep(0.005)
    return log.read_text(errors="replace").splitlines()


def status(live: Live, request: bytes) -> int:
    """The status of a raw request; 0: the connection was closed without one."""
    with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client, contextlib.suppress(ConnectionResetError):
        client.sendall(request)
        answer = client.recv(65536)
        return int(answer.split()[1]) if answer else 0
    return 0
