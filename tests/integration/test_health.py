"""Active checks on real nginx: an instance that fails gets no requests until it is well, however endpoint changes reach nginx."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import until
from .watching import Watch, watching

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["watching"]  # a fixture

pytestmark = pytest.mark.timeout(180)

#: How often an instance is asked, and how many bad answers take it out.
EVERY, FALL = 0.1, 2


class Moody:
    """An instance that says on /health how it is, and answers everything else with its name, or fails that too."""

    def __init__(self, name: str, port: int = 0) -> None:
        self.name, self.status, self.is_silent = name, 200, False
        self.asked = self.served = 0
        self.hosts: set[str] = set()
        self._listener = socket.create_server(("127.0.0.1", port), backlog=128)
        self.port = int(self._listener.getsockname()[1])
        self._held: list[socket.socket] = []
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def __str__(self) -> str:
        return f"127.0.0.1:{self.port}"

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)
        for one in (self._listener, *self._held):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._held = [one for one in self._held if one.fileno() >= 0]
            self._held.append(connection)
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError):
            connection.settimeout(10)
            head = b""
            while b"\r\n\r\n" not in head:
                data = connection.recv(65536)
                if not data:
                    break
                head += data
            is_check = head.startswith(b"GET /health ")
            if is_check:
                self.asked += 1
                self.hosts |= {line[6:].decode() for line in head.split(b"\r\n") if line.startswith(b"Host: ")}
            elif head:
                self.served += 1
            if self.is_silent and is_check:
                return
            body = self.name if self.status == 200 else "database is gone"
            connection.sendall(f"HTTP/1.1 {self.status} Word\r\nConnection: close\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode())
            connection.close()


@pytest.fixture
def moody() -> Iterator[Callable[..., Moody]]:
    """Start instances whose health can be set."""
    started: list[Moody] = []

    def start(name: str, port: int = 0) -> Moody:
        started.append(Moody(name, port))
        return started[-1]

    yield start
    for each in started:
        each.close()


def checked(live: Live, app: str, *instances: Moody, **more: object) -> None:
    """An app whose instances are asked for /health all the time."""
    settings = {"path": "/health", "interval": EVERY, "fall": FALL, "rise": 2, "timeout": 1} | more
    toml = "[checks]\n" + "".join(f'{key} = "{value}"\n' for key, value in settings.items())
    live.app(app, [f"{app}.test"], instances, **{"app.toml": toml})
    live.done("reconcile", app)


def report(live: Live, app: str) -> list[dict[str, Any]]:
    return list(live.done("apps:report", app, "--format", "json").json["endpoints"])


def states(live: Live, app: str) -> list[str]:
    """Of the endpoints of an app, as nginx serves them: of a change that is under way the end is waited for."""
    found = [each["state"] for each in report(live, app)]
    with live.paths.lock.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
    return found


def answers(live: Live, app: str, count: int = 20) -> set[tuple[int, str]]:
    found = [live.get(f"{app}.test") for _ in range(count)]
    return {(answer.status, answer.body) for answer in found}


def by_watch(live: Live, count: int = 1) -> list[dict[str, Any]]:
    """The journal lines of what the checks changed, at least `count`."""
    until(lambda: len(_by_watch(live)) >= count, 5, "the line in the journal")
    return _by_watch(live)


def _by_watch(live: Live) -> list[dict[str, Any]]:
    return [line for line in live.journal() if line["command"] == "checks (by watch)"]


def is_live(live: Live) -> bool:
    return bool(live.done("status", "--updates").out.strip() == "live")


def test_an_instance_that_fails_gets_no_request_until_it_is_well(
    both: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]
) -> None:
    one, two = moody("one"), moody("two")
    checked(both, "blog", one, two)
    watch = watching(both)
    until(lambda: one.asked > 2 and two.asked > 2, 15, "their checks")
    assert one.hosts == {"blog.test"}
    assert answers(both, "blog") == {(200, "one"), (200, "two")}
    files = both.files()

    one.status = 503
    until(lambda: states(both, "blog") == ["down", "active"], 15, "its leave")
    served = one.served
    assert answers(both, "blog", 40) == {(200, "two")} and one.served == served
    problem = report(both, "blog")[0]["problem"]
    assert problem.startswith("HTTP 503: 'database is gone', since 20") and problem.endswith("Z")
    assert report(both, "blog")[1]["problem"] is None
    (line,) = both.done("status", "--problems").out.splitlines()
    assert line == f"app blog: 1 of 2 endpoints of web out: {one} ({problem})"
    watch.says(f"blog: {one} is out: HTTP 503: 'database is gone', since 20")

    both.done("domains:add", "blog", "www.blog.test")
    assert states(both, "blog") == ["down", "active"], "whoever changes something else does not take it in"
    both.done("proxy:stop")
    both.done("proxy:start")
    assert answers(both, "blog") == {(200, "two")}, "nor does a restart of nginx"
    processes = both.master, sorted(both.workers())
    number = both.generations.current_number()

    one.status = 200
    until(lambda: states(both, "blog") == ["active", "active"], 15, "its return")
    # the report has it with the commit, nginx with the reload behind it
    until(lambda: answers(both, "blog") == {(200, "one"), (200, "two")}, 15, "requests")
    assert both.done("status", "--problems").out == ""
    watch.says(f"blog: {one} is in again")
    assert {k: v for k, v in both.files().items() if "DOMAINS" not in k} == {k: v for k, v in files.items() if "DOMAINS" not in k}
    reloads = [line["reloads"] for line in by_watch(both, 2)]
    assert [line["kind"] for line in by_watch(both)] == ["endpoints", "endpoints"] and by_watch(both)[0]["apps"] == ["blog"]
    if is_live(both):
        assert reloads == [0, 0] and (both.master, sorted(both.workers())) == processes
        assert both.generations.current_number() == number, "it made no generation"
    else:
        assert reloads == [1, 1]


def test_when_all_fail_all_are_asked_all_the_same(both: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]) -> None:
    one, two = moody("one"), moody("two")
    checked(both, "blog", one, two)
    watch = watching(both)
    one.status = two.status = 503
    watch.says("blog: all of web fail, and get requests all the same", 30)
    assert any(f"{each} fails: " in words for each in (one, two) for words in watch.lines), "the one that nobody took out"
    assert answers(both, "blog") == {(503, "database is gone")}
    for each in report(both, "blog"):
        assert each["state"] == "active" and each["problem"].endswith("; it gets requests all the same: no other endpoint of web is up")
    (line,) = both.done("status", "--problems").out.splitlines()
    assert line.startswith("app blog: 2 of 2 endpoints of web fail, all that are up, and get requests all the same: ")
    two.status = 200
    until(lambda: states(both, "blog") == ["down", "active"], 15, "the return of one")
    # the report has it with the commit, nginx with the reload behind it
    until(lambda: answers(both, "blog") == {(200, "two")}, 15, "nginx to ask that one alone")


def test_one_that_is_out_and_deployed_again_is_in_when_it_answered(
    both: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]
) -> None:
    one, two = moody("one"), moody("two")
    checked(both, "blog", one, two, rise=100, interval=0.5)
    watch = watching(both)
    one.status = 503
    until(lambda: states(both, "blog") == ["down", "active"], 20, "its leave")
    result = both("apps:deploy", "blog", one, two, "--check-timeout", "0.5")
    assert result.code == 12 and states(both, "blog") == ["down", "active"], "it does not answer yet"
    one.status = 200
    result = both.done("apps:deploy", "blog", one, two)
    assert f"{one} failed its checks before, and is in again: it answered" in result.err and result.out == ""
    assert states(both, "blog") == ["active", "active"]
    until(lambda: (200, "one") in answers(both, "blog"), 10, "requests")
    asked, changes = one.asked, len(_by_watch(both))
    until(lambda: one.asked > asked + 2, 15, "the watch to ask on")
    assert states(both, "blog") == ["active", "active"] and len(_by_watch(both)) == changes, "the watch has seen that it was taken in"
    assert both.journal()[-1]["reloads"] == (0 if is_live(both) else 1)
    one.status = 503
    until(lambda: states(both, "blog") == ["down", "active"], 20, "its next leave")
    assert watch.end() == 0


def test_a_connection_that_is_refused_and_an_answer_that_does_not_come_are_named(
    lively: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]
) -> None:
    good, dead, silent = moody("good"), moody("dead"), moody("silent")
    checked(lively, "blog", good, dead, silent, timeout=0.3)
    watching(lively)
    dead.close()
    silent.is_silent = True
    until(lambda: states(lively, "blog") == ["active", "down", "down"], 20, "their leave")
    problems = [each["problem"] for each in report(lively, "blog")[1:]]
    assert problems[0].startswith("Connection refused, since ")
    assert problems[1].startswith("Connection timed out: no answer within 0.3 s, since ")
    result = lively("checks:run", "blog")
    assert result.code == 12, result
    assert result.out.splitlines()[0].startswith(f"{good}: answers 200 (")
    assert result.out.splitlines()[1:] == [f"{dead}: Connection refused", f"{silent}: Connection timed out: no answer within 0.3 s"]
    assert f"endpoint {dead} failed its check (GET /health): Connection refused; failed too: {silent} (" in result.err


def test_two_apps_that_fail_at_once_share_a_reload(live: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]) -> None:
    instances = {app: [moody(f"{app}1"), moody(f"{app}2")] for app in ("blog", "shop")}
    for app, both_of in instances.items():
        checked(live, app, *both_of)
    watching(live)
    until(lambda: all(one.asked for pair in instances.values() for one in pair), 15, "their checks")
    for pair in instances.values():
        pair[0].status = 503
    until(lambda: all(states(live, app) == ["down", "active"] for app in instances), 20, "their leave")
    (line,) = by_watch(live)
    assert line["apps"] == ["blog", "shop"] and line["reloads"] == 1, line


def test_one_that_comes_and_goes_stays_out_for_longer_each_time(
    lively: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]
) -> None:
    good, flapping = moody("good"), moody("flapping")
    checked(lively, "blog", good, flapping, interval=0.1)
    watching(lively)
    done = threading.Event()

    def flap() -> None:
        while not done.wait(0.02):
            # three bad ones, then three good ones: enough to be taken out, and in again the first time
            flapping.status = 503 if flapping.asked % 6 < 3 else 200

    thread = threading.Thread(target=flap)
    thread.start()
    try:
        until(lambda: flapping.asked > 60, 60, "sixty checks")
    finally:
        done.set()
        thread.join()
    # each of ten turns would be two changes; as it has to be well four times in a row after its first relapse, it stays out
    assert 1 <= len(by_watch(lively)) <= 5, by_watch(lively)


def test_what_is_checked_no_more_gets_requests_again(both: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]) -> None:
    one, two = moody("one"), moody("two")
    checked(both, "blog", one, two)
    watch = watching(both)
    one.status = 503
    until(lambda: states(both, "blog") == ["down", "active"], 15, "its leave")
    both.done("checks:set", "blog", "interval", "off")
    assert states(both, "blog") == ["active", "active"]
    until(lambda: (200, "two") in answers(both, "blog") and (503, "database is gone") in answers(both, "blog"), 5, "both")
    asked = one.asked + 1
    watch.is_quiet()
    assert one.asked <= asked, "nobody asks"


def test_a_watch_that_begins_asks_those_anew_that_are_out(both: Live, moody: Callable[..., Moody], watching: Callable[..., Watch]) -> None:
    one, two = moody("one"), moody("two")
    checked(both, "blog", one, two)
    doctor = both("doctor", "--quiet")
    assert "the endpoints of blog are to be checked, and no watch runs that would do it" in doctor.out
    watch = watching(both)
    assert "to be checked" not in both("doctor", "--quiet").out
    one.status = 503
    until(lambda: states(both, "blog") == ["down", "active"], 15, "its leave")
    assert watch.end() == 0
    doctor = both("doctor", "--quiet")
    assert f"{one} (HTTP 503" in doctor.out and "no watch runs, so that nobody takes it in again" in doctor.out, doctor
    one.status = 200
    assert states(both, "blog") == ["down", "active"]
    watching(both)
    until(lambda: states(both, "blog") == ["active", "active"], 15, "its return")


def test_a_deploy_waits_for_what_the_files_say(live: Live, moody: Callable[..., Moody]) -> None:
    old, new, api = moody("old"), moody("new"), moody("api")
    live.done("apps:create", "blog.test")
    live.done("apps:deploy", "blog.test", old)
    live.done("checks:set", "blog.test", "path", "/health")
    live.done("checks:set", "blog.test", "--process", "api", "status", "503")
    new.status = 503
    with live.unchanged():
        result = live("apps:deploy", "blog.test", new, "--check-timeout", "1")
    assert result.code == 12 and result.out == ""
    # the last time it is asked at the deadline, when it has 50 ms left to answer
    assert f"{new}: not yet: HTTP 503: 'database is gone'" in result.err
    assert f"endpoint {new} failed its check (GET /health): " in result.err
    assert new.hosts == {"blog.test"}
    result = live("apps:deploy", "blog.test", f"api={api}", "--check-timeout", "1")
    assert result.code == 12 and "HTTP 200" in result.err, "a process's own settings count first"
    api.status = 503
    live.done("apps:deploy", "blog.test", f"api={api}")
    live.done("apps:deploy", "blog.test", old, "--check", "/other")
    assert live.get("blog.test").body == "old"


def test_a_setting_by_hand_that_is_none_makes_the_app_stale(live: Live, moody: Callable[..., Moody]) -> None:
    checked(live, "blog", moody("one"))
    for toml, place in (
        ("[checks]\ninterval = 0\n", "app.toml:2: interval: '0' is not seconds from 0.1 to 3600"),
        ('[checks]\npath = "/a"\n\n[checks.api]\npath = "a"\n', "app.toml:5: path: 'a' is not a path such as /health, or off"),
        ("[checks]\npth = 1\n", "app.toml:2: plugin checks has no key 'pth'; did you mean path?"),
        ("[checks.80]\nrise = 1\n", "app.toml:1: '80' is not a process name"),
    ):
        live.write("apps/blog/app.toml", toml)
        result = live("reconcile", "blog")
        assert result.code == 2 and place in result.err, (toml, result)
    assert live.get("blog.test").body == "one"
