"""Deploys under load: no request fails, and nothing goes to an instance after it was printed."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .instances import Backend

if TYPE_CHECKING:
    from .conftest import Live

HOST = "blog.test"
REQUEST = f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode()


class Closed(Exception):
    """The connection was closed before the first byte of an answer."""


class Connection:
    """One client connection."""

    def __init__(self, port: int) -> None:
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=15)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def ask(self) -> tuple[int, str]:
        """Status and body of one answer.

        Raises:
            Closed: it was closed before the first byte; the request may be repeated (RFC 9112, 9.3.1).
        """
        data = b""
        try:
            self._socket.sendall(REQUEST)
            data = self._socket.recv(65536)
        except (ConnectionResetError, BrokenPipeError):
            pass
        if not data:
            raise Closed
        while b"\r\n\r\n" not in data:
            data += self._more()
        head, _, body = data.partition(b"\r\n\r\n")
        length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
        while len(body) < length:
            body += self._more()
        return int(head.split()[1]), body.decode()

    def close(self) -> None:
        self._socket.close()

    def _more(self) -> bytes:
        data = self._socket.recv(65536)
        assert data, "closed in the middle of an answer"
        return data


class Clients:
    """Clients of three kinds that ask all the time, and what came of it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.answers: Counter[str] = Counter()  # kind of client -> good answers
        self.failures: list[str] = []
        self.repeated = 0
        self.unrepeated = 0  # requests of clients that never repeat, closed before the first byte
        self._over = threading.Event()
        kinds = (self._fresh, self._fresh, self._fresh, self._kept, self._kept, self._kept, self._never, self._never)
        self._threads = [threading.Thread(target=self._run, args=(kind,)) for kind in kinds]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(20)

    def _run(self, kind: Callable[[], None]) -> None:
        try:
            kind()
        except Exception as why:
            self.failures.append(f"{kind.__name__}: {why!r}")

    def _note(self, kind: str, answer: tuple[int, str]) -> None:
        status, body = answer
        if status == 200:
            self.answers[kind] += 1
        else:
            self.failures.append(f"{kind}: {status} {body[:80]}")

    def _fresh(self) -> None:
        while not self._over.wait(0.002):
            connection = Connection(self.port)
            try:
                self._note("fresh", connection.ask())
            except Closed:
                self.failures.append("fresh: closed without an answer")
            finally:
                connection.close()

    def _kept(self) -> None:
        connection, is_used = Connection(self.port), False
        while not self._over.wait(0.002):
            try:
                self._note("kept", connection.ask())
                is_used = True
            except Closed:
                connection.close()
                connection = Connection(self.port)
                if not is_used:
                    self.failures.append("kept: a fresh connection was closed without an answer")
                    continue
                self.repeated += 1
                try:
                    self._note("kept", connection.ask())
                except Closed:
                    self.failures.append("kept: closed again on the repeat")
                    connection.close()
                    connection, is_used = Connection(self.port), False
        connection.close()

    def _never(self) -> None:
        connection = Connection(self.port)
        while not self._over.wait(0.002):
            try:
                self._note("never repeats", connection.ask())
            except Closed:
                self.unrepeated += 1
                connection.close()
                connection = Connection(self.port)
        connection.close()


@contextmanager
def clients(port: int) -> Iterator[Clients]:
    running = Clients(port)
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("deploys", [12, pytest.param(50, marks=pytest.mark.slow)])
def test_deploys_under_load_lose_no_request(live: Live, record_property: pytest.RecordProperty, deploys: int) -> None:
    started = [Backend("i0"), Backend("i0b")]
    live.app("blog", [HOST], started)
    live.done("reconcile")
    serving, resting = [*started], list[tuple[Backend, float]]()
    late = 0
    try:
        with clients(live.port) as load:
            for number in range(1, deploys + 1):
                new = [Backend(f"i{number}") for _ in range(1 + number % 2)]
                started += new
                result = live("apps:deploy", "blog", *new, "--check", "/")
                printed = time.monotonic()
                assert result.code == 0, result
                assert sorted(result.out.split()) == sorted(map(str, serving)), "the old instances are printed, and nothing else"
                # those of the deploy before were left running: what they were asked after they were printed is too late
                late += sum(asked > since for each, since in resting for asked in each.asked)
                for each, _ in resting:
                    each.close()
                # half of the retired end at once, as by `| xargs docker stop`; the others stay and listen
                for each in serving[number % 2 :]:
                    each.close()
                resting = [(each, printed) for each in serving[: number % 2]]
                serving = new
        late += sum(asked > since for each, since in resting for asked in each.asked)
    finally:
        for each in started:
            each.close()
    total = sum(load.answers.values())
    words = (
        f"{deploys} deploys, {total} requests answered ({dict(load.answers)}), {len(load.failures)} failed; "
        f"{load.repeated} repeated once after a closed keepalive connection; "
        f"{load.unrepeated} lost by clients that never repeat (nginx's own limit with reloads)"
    )
    record_property("load", words)
    print(words)
    assert load.failures == []
    assert late == 0, "requests that reached an instance after it was printed"
    assert min(load.answers[kind] for kind in ("fresh", "kept", "never repeats")) > deploys
    live.is_consistent()
    live.serves_current()


def test_the_answer_says_what_nginx_serves(two_apps: Live, backend: Callable[..., Backend]) -> None:
    live, (one, two) = two_apps, (backend("one"), backend("two"))

    def said(*words: object) -> tuple[int, int | None]:
        found = live.done(*words, "--format", "json").json
        return found["generation"], found["serving"]

    for words in (("apps:deploy", "blog", one, two), ("upstreams:drain", "blog", one), ("apps:retire", "blog", one)):
        before = live.generations.current_number()
        assert said(*words, "--dry-run") == (before, before)
        assert said(*words) == (live.generations.current_number(),) * 2
    live.done("proxy:stop")
    for words in (("apps:deploy", "blog", one, two), ("upstreams:drain", "blog", one), ("apps:retire", "blog", one)):
        assert said(*words) == (live.generations.current_number(), None)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root's workers are somebody else")
def test_a_socket_that_is_closed_to_the_workers_is_no_instance(two_apps: Live, isolated: Path) -> None:
    live, where = two_apps, isolated / "i.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(where))
        where.chmod(0o755)
        listener.listen()
        with live.unchanged():
            result = live("apps:deploy", "blog", f"unix:{where}", "--check-timeout", "1")
        assert result.code == 12 and f"{where} cannot be written to by www-data" in result.err, result
        assert live.get("blog.test").body == "blog"
        where.chmod(0o666)
        live.done("apps:deploy", "blog", f"unix:{where}")
