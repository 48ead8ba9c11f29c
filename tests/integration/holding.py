"""Instances that hold requests until they may answer, and clients that hold connections."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


class Instance:
    """A small HTTP server that answers with its name, holds a request until told, and accepts websockets."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = where, name
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Semaphore(0)
        if where.startswith("unix:"):
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(where.removeprefix("unix:"))
            Path(where.removeprefix("unix:")).chmod(0o666)
        else:
            self.listener = socket.create_server(("127.0.0.1", int(where.rpartition(":")[2])))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def close(self) -> None:
        self.may_answer.set()
        for one in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for one in (self.listener, *self.connections):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while head := b"".join(iter(lines.readline, b"\r\n")).lower() if lines.peek(1) else b"":
                length = next((int(h.split(b":")[1]) for h in head.splitlines() if h.startswith(b"content-length")), 0)
                lines.read(length)
                self.asked.release()
                self.may_answer.wait(30)
                if b"upgrade: websocket" in head:
                    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                    while data := lines.read1(100):
                        connection.sendall(data)
                    return
                body = self.name.encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


@pytest.fixture
def instance(free_port: Callable[[], int]) -> Iterator[Callable[..., Instance]]:
    with contextlib.ExitStack() as opened:

        def make(name: str, where: str | None = None) -> Instance:
            made = Instance(where or f"127.0.0.1:{free_port()}", name)
            opened.callback(made.close)
            return made

        yield make


class Client:
    """One connection to nginx."""

    def __init__(self, port: int, app: str) -> None:
        self.app = app
        self.connection = socket.create_connection(("127.0.0.1", port), 10)

    def send(self, text: str) -> None:
        self.connection.sendall(text.encode())

    def get(self, *headers: str) -> str:
        self.send("\r\n".join([f"GET / HTTP/1.1\r\nHost: {self.app}", *headers, "\r\n"]))
        return self.answer()

    def post_half(self) -> None:
        self.send(f"POST / HTTP/1.1\r\nHost: {self.app}\r\nContent-Length: 10\r\n\r\nfirst")

    def answer(self) -> str:
        return self.connection.recv(4096).decode()

    def websocket(self) -> None:
        assert " 101 " in self.get("Upgrade: websocket", "Connection: Upgrade")
