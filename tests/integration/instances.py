"""Small servers that stand for the instances of apps."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Backend:
    """A small HTTP server: it answers with its name, keeps connections, and remembers when it was asked."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name = name
        self.asked: list[float] = []
        self._answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(name), name.encode())
        self._listener = socket.create_server(("127.0.0.1", port), backlog=256)
        self._connections: set[socket.socket] = set()
        self._closed = False
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    @property
    def port(self) -> int:
        return int(self._listener.getsockname()[1])

    def __str__(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        """As by `docker kill`: it is gone with every connection."""
        with self._lock:
            self._closed = True
            connections = list(self._connections)
        for one in (self._listener, *connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                if self._closed:
                    connection.close()
                    continue
                self._connections.add(connection)
            thread = threading.Thread(target=self._serve, args=(connection,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, connection: socket.socket) -> None:
        rest = b""
        with contextlib.suppress(OSError):
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            while data := connection.recv(65536):
                rest += data
                while b"\r\n\r\n" in rest:
                    rest = rest.partition(b"\r\n\r\n")[2]
                    self.asked.append(time.monotonic())
                    connection.sendall(self._answer)
        with self._lock:
            self._connections.discard(connection)
        connection.close()


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
