"""Asking endpoints whether they are well: many at a time, in one thread and without waiting for any of them.

An `Asker` has some exchanges under way; `ask_once` asks each endpoint a single time, `prober` again and again.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import selectors
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from .health import Settings
from .model import Facts
from .names import Address, Endpoint, shown

#: Connections that are open at the same time: what is due waits its turn then, whoever's it is.
MOST_OPEN = 400

#: How much of an answer is looked at, and how much of its body is kept.
_MOST_HEAD, _MOST_BODY = 16384, 500
_END = re.compile(rb"\r?\n\r?\n")
_STATUS = re.compile(rb"HTTP/1\.[01] ([1-5][0-9]{2})(?: |$)")
_LENGTH = re.compile(rb"^content-length: *([0-9]{1,9})\s*$", re.I | re.M)
_CHUNKED = re.compile(rb"^transfer-encoding: *chunked\s*$", re.I | re.M)

#: What no endpoint is to blame for.
_OURS = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL)

#: An app and one of its endpoints, as UPSTREAMS spells it without flags.
Key = tuple[str, str]


@dataclass(frozen=True)
class Target:
    """One endpoint, and how it is asked."""

    key: Key
    address: Address
    places: tuple[Address, ...]  # where its address leads to; the first that is well is enough
    settings: Settings

    @property
    def request(self) -> bytes:
        """What it is sent; empty: a connection is enough."""
        if self.settings.path is None:
            return b""
        host = self.settings.host or ("localhost" if self.address.is_unix else self.address.text)
        return (
            f"GET {self.settings.path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: router-check\r\nAccept: */*\r\nConnection: close\r\n\r\n"
        ).encode()


def places(endpoint: Endpoint, facts: Facts) -> tuple[Address, ...]:
    """Where nginx connects to for an endpoint."""
    if endpoint.address.is_literal:
        return (endpoint.address,)
    return tuple(Address(endpoint.address.at(ip)) for ip in facts.resolved.get(endpoint.address.host, ()))


@dataclass(frozen=True)
class Found:
    """What an endpoint answered."""

    passed: bool
    text: str
    seconds: float
    is_ours: bool = False  # it could not even be asked: this host lacks files, ports or memory


class Answer:
    """An HTTP answer as it comes in; nothing is read or waited for here."""

    def __init__(self, statuses: Iterable[tuple[int, int]]) -> None:
        self._statuses = tuple(statuses)
        self._data = b""
        self._head: bytes | None = None
        self.status: int | None = None

    def feed(self, data: bytes) -> bool:
        """Take in what came (nothing: the end); whether enough is known."""
        self._data += data
        while self._head is None:
            end = _END.search(self._data)
            if end is None:
                return not data or len(self._data) > _MOST_HEAD or not b"HTTP/1.".startswith(self._data[:7])
            head = self._data[: end.start()]
            found = _STATUS.match(head.splitlines()[0]) if head else None
            if found is None:
                return True
            self._data = self._data[end.end() :]
            if found[1][:1] != b"1":  # 100 and 103 announce the answer
                self._head, self.status = head, int(found[1])
        return not data or self.is_good or self._is_whole()

    @property
    def is_good(self) -> bool:
        """Whether the status is one that was asked for."""
        return self.status is not None and any(low <= self.status <= high for low, high in self._statuses)

    @property
    def text(self) -> str:
        """In words: the status and, of a bad one, how the body begins."""
        if self.status is None:
            line = self._data.partition(b"\n")[0].decode(errors="replace").strip()
            return f"no HTTP answer ({shown(line)})" if line else "the connection was closed without an answer"
        if self.is_good:
            return f"answers {self.status}"
        words = " ".join(self._body()[:_MOST_BODY].decode(errors="replace").split())
        return f"HTTP {self.status}" + (f": {shown(words)}" if words else "")

    def _is_whole(self) -> bool:
        assert self._head is not None
        length = _LENGTH.search(self._head)
        if length is not None and len(self._data) >= int(length[1]):
            return True
        return len(self._data) >= 2 * _MOST_BODY or (_CHUNKED.search(self._head) is not None and self._data.endswith(b"0\r\n\r\n"))

    def _body(self) -> bytes:
        if self._head is None or not _CHUNKED.search(self._head):
            return self._data
        body, rest = b"", self._data
        while len(body) < _MOST_BODY:
            size, end, rest = rest.partition(b"\r\n")
            number = size.partition(b";")[0].strip()
            if not end or not re.fullmatch(rb"[0-9A-Fa-f]{1,8}", number) or int(number, 16) == 0:
                break
            body, rest = body + rest[: int(number, 16)], rest[int(number, 16) + 2 :]
        return body


class _Exchange:
    """One endpoint that is being asked, at one of its places after the other."""

    def __init__(self, target: Target, now: float) -> None:
        self.target, self.began = target, now
        self.deadline = now + target.settings.timeout
        self.answer = Answer(target.settings.statuses)
        self.socket: socket.socket | None = None
        self.left = list(target.places)
        self.unsent = b""
        self.is_connected = False

    def close(self) -> None:
        if self.socket is not None:
            self.socket.close()
            self.socket = None


class Asker:
    """The exchanges that are under way."""

    def __init__(self, found: Callable[[Target, Found], None]) -> None:
        self._found = found
        self._selector = selectors.DefaultSelector()
        self._under_way: dict[Key, _Exchange] = {}
        self._waker, self._woken = socket.socketpair()
        for each in (self._waker, self._woken):
            each.setblocking(False)
        self._selector.register(self._woken, selectors.EVENT_READ)

    def __len__(self) -> int:
        return len(self._under_way)

    def __contains__(self, key: Key) -> bool:
        return key in self._under_way

    def wake(self) -> None:
        """End the wait of `step`, from another thread."""
        with contextlib.suppress(OSError):
            self._waker.send(b".")

    def close(self) -> None:
        """Let go of everything."""
        for exchange in self._under_way.values():
            exchange.close()
        self._under_way.clear()
        self._selector.close()
        self._waker.close()
        self._woken.close()

    def begin(self, target: Target) -> None:
        """Ask an endpoint."""
        exchange = self._under_way[target.key] = _Exchange(target, time.monotonic())
        self._connect(exchange, "the host name does not resolve")

    def drop(self, key: Key) -> None:
        """Ask an endpoint no more, and tell nobody."""
        exchange = self._under_way.pop(key)
        if exchange.socket is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(exchange.socket)
        exchange.close()

    def step(self, seconds: float | None) -> None:
        """Go on with what can, and wait for that at most `seconds` (None: however long)."""
        now = time.monotonic()
        deadline = min((e.deadline for e in self._under_way.values()), default=None)
        if deadline is not None:
            seconds = max(0.0, deadline - now) if seconds is None else max(0.0, min(seconds, deadline - now))
        for ready, _ in self._selector.select(seconds):
            if isinstance(ready.data, _Exchange):
                self._go_on(ready.data)
            else:
                with contextlib.suppress(BlockingIOError):
                    self._woken.recv(4096)
        now = time.monotonic()
        for exchange in [e for e in self._under_way.values() if e.deadline <= now]:
            if exchange.answer.status is not None:
                self._end(exchange, exchange.answer.text)
            else:
                what = "no answer" if exchange.is_connected else "no connection"
                self._end(exchange, f"{os.strerror(errno.ETIMEDOUT)}: {what} within {exchange.target.settings.timeout:g} s")

    def _connect(self, exchange: _Exchange, problem: str) -> None:
        """Try the next place; `problem` is what the one before it came to."""
        while exchange.left:
            place = exchange.left.pop(0)
            family = socket.AF_UNIX if place.is_unix else socket.AF_INET6 if ":" in place.host else socket.AF_INET
            exchange.close()
            try:
                exchange.socket = socket.socket(family, socket.SOCK_STREAM)
                exchange.socket.setblocking(False)
                code = exchange.socket.connect_ex(place.text.removeprefix("unix:") if place.is_unix else (place.host, place.port))
            except OSError as why:
                code = why.errno or errno.EIO
            if code in (0, errno.EINPROGRESS):
                assert exchange.socket is not None
                exchange.unsent, exchange.is_connected = exchange.target.request, False
                exchange.answer = Answer(exchange.target.settings.statuses)
                self._selector.register(exchange.socket, selectors.EVENT_WRITE, exchange)
                return
            problem = os.strerror(code)
            if code in _OURS:
                return self._end(exchange, problem, is_ours=True)
        self._end(exchange, problem)

    def _go_on(self, exchange: _Exchange) -> None:
        assert exchange.socket is not None
        try:
            if not exchange.is_connected:
                if code := exchange.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code))
                exchange.is_connected = True
                if not exchange.unsent:
                    return self._end(exchange, "accepts connections", passed=True)
            if exchange.unsent:
                exchange.unsent = exchange.unsent[exchange.socket.send(exchange.unsent) :]
                if not exchange.unsent:
                    self._selector.modify(exchange.socket, selectors.EVENT_READ, exchange)
                return None
            is_enough = exchange.answer.feed(exchange.socket.recv(65536))
        except BlockingIOError:
            return None
        except OSError as why:
            return self._fail(exchange, exchange.answer.text if exchange.answer.status else why.strerror or str(why))
        if exchange.answer.is_good:
            return self._end(exchange, exchange.answer.text, passed=True)
        return self._fail(exchange, exchange.answer.text) if is_enough else None

    def _fail(self, exchange: _Exchange, problem: str) -> None:
        self._selector.unregister(exchange.socket)  # type: ignore[arg-type]  # whoever fails has one
        self._connect(exchange, problem)

    def _end(self, exchange: _Exchange, text: str, *, passed: bool = False, is_ours: bool = False) -> None:
        if exchange.socket is not None:
            with contextlib.suppress(KeyError):
                self._selector.unregister(exchange.socket)
        exchange.close()
        del self._under_way[exchange.target.key]
        self._found(exchange.target, Found(passed, text, time.monotonic() - exchange.began, is_ours))


def ask_once(targets: Iterable[Target]) -> dict[Key, Found]:
    """What each of them answers now."""
    answers: dict[Key, Found] = {}

    def keep(target: Target, found: Found) -> None:
        answers[target.key] = found

    asker = Asker(keep)
    waiting = deque(targets)
    try:
        while waiting or len(asker):
            while waiting and len(asker) < MOST_OPEN:
                asker.begin(waiting.popleft())
            asker.step(0 if not len(asker) else None)
    finally:
        asker.close()
    return answers
