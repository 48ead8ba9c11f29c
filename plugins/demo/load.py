"""The demo's clients: they ask by Host all the time, and remember who answered."""

from __future__ import annotations

import http.client
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Answer:
    """What one request came to; `problem` is empty if the right app answered it with 200."""

    sent: float
    done: float
    host: str
    version: str = ""
    instance: str = ""
    problem: str = ""


class Load:
    """Clients of two kinds: with a fresh connection for each request, and with one that they keep.

    A kept connection that the server closes before the first byte of an answer is opened again and the request repeated
    once, as browsers and every HTTP library do (RFC 9112, 9.3.1); such repeats are counted.
    """

    def __init__(self, port: int, apps: dict[str, str]) -> None:
        self.answers: list[Answer] = []
        self.repeated = 0
        self._port = port
        self._apps = apps  # host name -> the app that must answer
        self._over = threading.Event()
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Begin, with two clients of each kind for each host name."""
        for host in self._apps:
            for client in (self._fresh, self._fresh, self._kept, self._kept):
                thread = threading.Thread(target=client, args=(host,), daemon=True)
                thread.start()
                self._threads.append(thread)

    def stop(self) -> None:
        """End, with every answer in."""
        self._over.set()
        for thread in self._threads:
            thread.join(15)

    def between(self, start: float, end: float) -> list[Answer]:
        """The answers to requests sent in this time."""
        return [answer for answer in list(self.answers) if start <= answer.sent < end]

    def wait(self, what: str, enough: Callable[[list[Answer]], bool], since: float, seconds: float = 10) -> float:
        """Seconds from `since` until the answers were `enough`; with the last of them."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answers = sorted(self.between(since, float("inf")), key=lambda answer: answer.done)
            if enough(answers):
                # the first moment at which it was true, not the moment at which we looked
                count = next(count for count in range(1, len(answers) + 1) if enough(answers[:count]))
                return answers[count - 1].done - since
            time.sleep(0.02)
        raise TimeoutError(f"not within {seconds:g} s: {what}")

    def ask(self, host: str, connection: http.client.HTTPConnection | None = None) -> Answer:
        """One request, on `connection` or on a fresh one."""
        sent = time.monotonic()
        fresh = connection is None
        if connection is None:
            connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": host, **({"Connection": "close"} if fresh else {})})
            response = connection.getresponse()
            response.read()
        finally:
            if fresh:
                connection.close()
        app, version, instance = (response.headers.get(f"X-{name}", "") for name in ("App", "Version", "Instance"))
        problem = ""
        if response.status != 200:
            problem = f"status {response.status}"
        elif app != self._apps.get(host, app):
            problem = f"answered by {app}"
        return Answer(sent, time.monotonic(), host, version, instance, problem)

    def _fresh(self, host: str) -> None:
        while not self._over.wait(0.01):
            sent = time.monotonic()
            try:
                self.answers.append(self.ask(host))
            except (OSError, http.client.HTTPException) as error:
                self.answers.append(Answer(sent, time.monotonic(), host, problem=repr(error)))

    def _kept(self, host: str) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=10)
        while not self._over.wait(0.01):
            sent = time.monotonic()
            try:
                was_open = connection.sock is not None
                try:
                    answer = self.ask(host, connection)
                except (http.client.RemoteDisconnected, ConnectionError):
                    if not was_open:
                        raise
                    self.repeated += 1
                    connection.close()
                    answer = self.ask(host, connection)
                self.answers.append(answer)
            except (OSError, http.client.HTTPException) as error:
                self.answers.append(Answer(sent, time.monotonic(), host, problem=repr(error)))
                connection.close()
        connection.close()
