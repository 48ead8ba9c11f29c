"""`router watch` aborts a canary that fails; one contract, with reloads and without."""

from __future__ import annotations

import http.client
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

import pytest

from .conftest import Command, until
from .instances import Backend
from .spreading import HOST
from .test_canary import upstreams
from .test_sticky import marks
from .watching import watching

if TYPE_CHECKING:
    from .conftest import Live
    from .watching import Watch

__all__ = ["watching"]  # a fixture

pytestmark = pytest.mark.timeout(240)


class Broken:
    """An instance that passes a check by TCP and answers every request with 500."""

    def __init__(self) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self._listener.getsockname()[1]}"

    def close(self) -> None:
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        self._listener.close()

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                with connection, suppress(OSError):
                    if connection.recv(65536):
                        connection.sendall(b"HTTP/1.1 500 Broken\r\nContent-Length: 3\r\nConnection: close\r\n\r\nnew")


@pytest.fixture
def broken() -> Iterator[Broken]:
    """An instance that answers every request with 500."""
    one = Broken()
    yield one
    one.close()


@pytest.fixture
def blog(both: Live, backend: Callable[..., Backend]) -> Live:
    """An app of two instances."""
    both.app("blog", [HOST], [backend("old"), backend("old")])
    both.done("reconcile")
    return both


def watch(live: Live) -> Command:
    """A watch that has begun."""
    command = live.begin("watch")
    assert command.process.stdout and "watching" in command.process.stdout.readline()
    return command


def says(command: Command, words: str, meanwhile: Callable[[], object]) -> str:
    """The line of its stderr with these words, with `meanwhile` done again and again until it comes; what it said before is gone."""
    stream, found = command.process.stderr, []
    assert stream
    reader = threading.Thread(target=lambda: found.append(next((line for line in stream if words in line), "")), daemon=True)
    reader.start()  # a line that does not come would else be waited for by nobody's clock
    until(lambda: meanwhile() and found, 60, words)
    return found[0]


def ended(command: Command) -> str:
    """What a watch said, on both streams."""
    command.process.send_signal(signal.SIGTERM)
    result = command.wait()
    assert result.code == 0, result
    return result.out + result.err


def statuses(live: Live, clients: list[str]) -> set[int]:
    """What these clients are answered, each over a connection of its own."""
    found = set()
    for mark in clients:
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        try:
            connection.request("GET", "/", headers={"Host": HOST, "Cookie": f"router_client={mark}"})
            found.add(connection.getresponse().status)
        finally:
            connection.close()
    return found


def test_more_errors_than_the_others_have_abort_it(blog: Live, broken: Broken, watching: Callable[[Live], Watch]) -> None:
    begun = watching(blog)
    result = blog.done("apps:deploy", "blog", broken, "--canary", "50%")
    assert "nobody aborts" not in result.err, result
    clients = marks(60)
    assert statuses(blog, clients) == {200, 500}

    def aborted() -> bool:
        statuses(blog, clients[:10])
        return len(upstreams(blog)) == 2

    until(aborted, 60, "the abort")
    until(lambda: "of the canary were errors" in blog.done("apps:report", "blog", "--aborted").out, 30)
    # the files are written before nginx is reloaded
    until(lambda: statuses(blog, clients) == {200}, 15, "everybody to get the others")
    status = blog.done("status", "--format", "json").json
    assert any("its canary was aborted" in problem for problem in status["problems"]), status
    # a program that is edited meanwhile makes the watch start anew, which does not wait for the end
    until(lambda: f"blog: its canary was aborted, retired {broken}" in begun.said or "starting anew" in begun.said, 15, "the last word")
    assert "blog: its canary is aborted: " in begun.said, begun.said
    assert begun.end() == 0
    (line,) = [line for line in blog.journal() if "--abort" in line["command"]]
    assert "of the canary were errors" in line["command"] and line["result"] == "done"
    blog.is_consistent()


def test_the_hosts_word_on_errors_counts_where_the_app_says_nothing(blog: Live, broken: Broken) -> None:
    blog.done("plugins:set", "traffic", "max-errors", "100%")
    assert blog.done("traffic:report", "blog", "--max-errors").out == "100%\n"
    with blog.unchanged():
        for key in ("canary", "since", "aborted"):
            assert blog("plugins:set", "traffic", key, "10%").code == 2
    command = watch(blog)
    blog.done("apps:deploy", "blog", broken, "--canary", "50%")
    clients = marks(60)
    for _ in range(3):
        assert statuses(blog, clients) == {200, 500}
        time.sleep(1.2)
    assert len(upstreams(blog)) == 3
    blog.done("plugins:set", "traffic", "max-errors", "10%")

    def aborted() -> bool:
        statuses(blog, clients[:2])
        return len(upstreams(blog)) == 2

    until(aborted, 30, "the abort")
    ended(command)


def test_one_that_nginx_leaves_out_after_each_failure_is_aborted(blog: Live, backend: Callable[..., Backend]) -> None:
    blog.done("nginx:set", "blog", "fail-timeout", "4s")  # fifteen a minute, fewer than say something by their share
    new = backend("new")
    command = watch(blog)
    blog.done("apps:deploy", "blog", new, "--canary", "50%")
    assert statuses(blog, marks(20)) == {200}
    new.close()

    def aborted() -> bool:
        assert statuses(blog, marks(4)) == {200}, "who has no answer of it gets one of the others"
        return len(upstreams(blog)) == 2

    until(aborted, 50, "the abort")
    assert "answers of the canary were errors" in blog.done("apps:report", "blog", "--aborted").out
    ended(command)


def test_one_that_fails_its_checks_is_aborted(blog: Live, backend: Callable[..., Backend]) -> None:
    for key, value in (("interval", "0.2"), ("fall", "2")):
        blog.done("checks:set", "blog", key, value)
    new = backend("new")
    address = str(new)
    command = watch(blog)
    blog.done("apps:deploy", "blog", new, "--canary", "10%")
    new.close()
    until(lambda: len(upstreams(blog)) == 2, 60, "the abort")
    assert f"{address} fails its check: " in blog.done("apps:report", "blog", "--aborted").out
    ended(command)


def test_the_last_that_answers_is_left_and_that_is_said_once(blog: Live, broken: Broken, backend: Callable[..., Backend]) -> None:
    command = watch(blog)
    blog.done("apps:deploy", "blog", broken, "--canary", "50%")
    for one in upstreams(blog)[:2]:
        blog.done("upstreams:remove", "blog", one)
    # it counts what comes behind its own look at the change
    said = says(command, "not aborted", lambda: statuses(blog, marks(10)) == {500})
    assert "blog: its canary is not aborted, without it no web instance would get requests (router apps:deploy blog --promote): " in said
    assert re.search(r"100\.0% of \d+ answers", said), said
    statuses(blog, marks(10))
    blog.done("upstreams:add", "blog", backend("other"))  # whom nobody can compare with yet, but soon

    def aborted() -> bool:
        statuses(blog, marks(10))
        return len(upstreams(blog)) == 1

    until(aborted, 60, "the abort")
    until(lambda: [line["exit"] for line in blog.journal() if "--abort" in line["command"]] == [0], 30, "its end")
    assert "not aborted" not in ended(command)


def test_those_that_are_out_by_their_checks_are_no_others(blog: Live, backend: Callable[..., Backend], broken: Broken) -> None:
    for key, value in (("interval", "0.2"), ("fall", "2")):
        blog.done("checks:set", "blog", key, value)
    gone = backend("gone")
    blog.done("apps:deploy", "blog", gone)
    blog.done("apps:deploy", "blog", broken, "--canary", "10%")
    command = watch(blog)
    where = str(gone)
    gone.close()
    until(lambda: f"{where} (" in blog("status").out, 60, "the check")
    ended(command)  # what it found out stays
    with blog.unchanged():
        result = blog("apps:deploy", "blog", "--abort")
        assert result.code == 4 and "no web instance would get requests" in result.err, result


def test_one_that_is_well_stays(blog: Live, backend: Callable[..., Backend]) -> None:
    command = watch(blog)
    blog.done("apps:deploy", "blog", backend("new"), "--canary", "50%")
    for _ in range(3):
        assert statuses(blog, marks(60)) == {200}
    assert "aborted" not in ended(command) and len(upstreams(blog)) == 3


def test_only_an_app_that_clients_reach_is_said_to_have_no_log(blog: Live, backend: Callable[..., Backend]) -> None:
    blog.app("api", [], [backend("api")])
    blog.done("reconcile")
    blog.done("nginx:set", "blog", "access-log", "off")
    for app in ("api", "blog"):
        blog.done("apps:deploy", app, backend("new"), "--canary", "50%")
    command = watch(blog)
    assert command.process.stderr
    assert "blog: its access log does not say" in command.process.stderr.readline()
    assert "api: its access log" not in ended(command)
