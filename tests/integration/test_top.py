"""`router top`: what nginx logs is what is shown, through rotations."""

from __future__ import annotations

import os
import pty
import re
import select
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from fcntl import ioctl
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.controller import Router
from nginx_router.top import Sample, Top

from .conftest import ROUTER, until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def top(two_apps: Live) -> Iterator[Top]:
    # the requests of the fixtures are none of the tests': nginx writes a line after its answer
    for name in ("blog", "shop"):
        two_apps.get(f"{name}.test", "/before")
        until(lambda: " /before " in (two_apps.paths.log / f"{name}-access.log").read_text(), what="its line")  # noqa: B023 - called at once
    time.sleep(0.1)  # those that another worker answered before have theirs by now: nothing tells
    watched = Top(Router(two_apps.paths))
    yield watched
    watched.close()


def seen(top: Top, requests: int, app: str = "") -> Sample:
    """Look until so many requests were seen: nginx writes a line after its answer."""
    sample = Sample()

    def enough() -> bool:
        sample.merge(top.look())
        return sum(tally.requests for name, tally in sample.apps.items() if app in ("", name)) >= requests

    until(enough, what=f"{requests} requests in the logs")
    sample.merge(top.look())
    return sample


def test_once_counts_each_app_and_endpoint(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    second = backend("blog2")
    two_apps.done("upstreams:add", "blog", second)
    command = two_apps.begin("top", "--once", "--interval", "3", "--format", "json")
    began = time.monotonic()
    asked = 0
    while time.monotonic() - began < 2.5:  # it needs a moment before it looks
        two_apps.get("blog.test")
        asked += 1
        time.sleep(0.02)
    result = command.wait()
    assert result.code == 0, result
    (blog,) = result.json["apps"]
    assert blog["app"] == "blog" and 2.9 < result.json["seconds"] < 4
    assert 10 < blog["requests"] <= asked and blog["status"]["2xx"] == blog["requests"]
    assert blog["per_second"] == pytest.approx(blog["requests"] / result.json["seconds"], rel=0.02)
    assert 0 <= blog["p50"] <= blog["p99"] < 1
    assert sum(each["requests"] for each in blog["endpoints"]) == blog["requests"]
    assert str(second) in [each["address"] for each in blog["endpoints"]]


def test_status_classes_and_tries_that_were_passed_on(two_apps: Live, top: Top, backend: Callable[[str], Backend]) -> None:
    two_apps.snippet("shop", "location /no { return 404; }\nlocation /away { return 301 /; }\n")
    dead = backend("dead")
    address = str(dead)
    dead.close()
    two_apps.done("reconcile", "shop")
    two_apps.done("upstreams:add", "shop", address)
    top.look()
    for path in ("/", "/", "/no", "/away", "/", "/"):
        two_apps.get("shop.test", path)
    found = seen(top, 6).as_json()["apps"][0]
    assert found["status"] == {"1xx": 0, "2xx": 4, "3xx": 1, "4xx": 1, "5xx": 0}
    by_address = {each["address"]: each for each in found["endpoints"]}
    assert by_address[address]["passed_on"] >= 1 and by_address[address]["status"]["2xx"] == 0
    assert sum(each["status"]["2xx"] for each in found["endpoints"]) == 4


def test_no_request_is_lost_or_counted_twice_when_logs_are_rotated(two_apps: Live, top: Top) -> None:
    log = two_apps.paths.log / "blog-access.log"
    asked = 0
    for turn in range(3):
        for _ in range(5):
            two_apps.get("blog.test")
            asked += 1
        early = seen(top, 5, "blog") if turn == 1 else Sample()  # once it is looked at in between, and its file is open
        log.rename(f"{log}.1")
        for _ in range(5):  # to the file that was moved away
            two_apps.get("blog.test")
            asked += 1
        assert two_apps.master is not None
        os.kill(two_apps.master, signal.SIGUSR1)
        until(log.exists, what="the new log")
        for _ in range(5):
            two_apps.get("blog.test")
            asked += 1
        early.merge(seen(top, 10 if turn == 1 else 15, "blog"))
        assert early.apps["blog"].requests == 15, f"turn {turn}"
    assert asked == 45


def test_an_app_that_comes_meanwhile_is_counted(two_apps: Live, top: Top, backend: Callable[[str], Backend]) -> None:
    two_apps.app("new", ["new.test"], [backend("new")])
    two_apps.done("reconcile", "new")
    two_apps.get("new.test")
    sample = Sample()
    # nginx writes a line after its answer, and one of the fixture's own requests may still be on its way
    until(lambda: sample.merge(top.look()) or "new" in sample.apps, what="a request of the new app")
    assert sample.apps["new"].requests == 1


def test_off_a_terminal_it_prints_a_table_once(two_apps: Live) -> None:
    result = two_apps.done("top", "--interval", "0.2")
    assert result.out.split() == ["app", "req/s", "2xx", "3xx", "4xx", "5xx", "p50", "p99"]


@pytest.mark.parametrize("key", [b"q", b"\x03"], ids=["q", "ctrl-c"])
def test_on_a_terminal_of_80_columns_it_is_live_until_q_or_ctrl_c(two_apps: Live, key: bytes) -> None:
    ours, theirs = pty.openpty()
    ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    before = termios.tcgetattr(theirs)
    environment = {**os.environ, "TERM": "xterm", "ROUTER_ROOT": str(two_apps.paths.root)}
    environment.pop("NO_COLOR", None)
    process = subprocess.Popen(
        [str(ROUTER), "top", "--interval", "0.2"],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=environment,
        start_new_session=True,
        preexec_fn=lambda: ioctl(0, termios.TIOCSCTTY, 0),  # Ctrl-C reaches the one whose terminal it is
    )
    screen = b""

    def shows(pattern: str) -> bool:
        nonlocal screen
        if select.select([ours], [], [], 0.02)[0]:
            screen += os.read(ours, 65536)
        return re.search(pattern, plain(screen)) is not None

    try:
        until(lambda: shows(r"requests/s over"), what="the first screen")
        for _ in range(5):
            two_apps.get("blog.test")
        until(lambda: shows(r"blog +\d+\.\d +5 "), what="blog on the screen")
        os.write(ours, key)
        # what it still writes is read, or it would wait for that
        until(lambda: shows("") and process.poll() is not None, what="the end of top")
        assert process.returncode == 0, screen
        assert termios.tcgetattr(theirs) == before, "the terminal is as it was"
        assert all(len(line) <= 80 for line in plain(screen).splitlines())
    finally:
        if process.poll() is None:
            process.kill()
        process.wait(10)
        os.close(ours)
        os.close(theirs)


def plain(screen: bytes) -> str:
    text = screen.decode(errors="replace").replace("\x1b[H", "\n")  # each picture begins at the top
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def test_json_logs_are_read_and_no_logs_are_named(two_apps: Live, top: Top) -> None:
    two_apps.done("nginx:set", "blog", "log-format", "json")
    two_apps.done("nginx:set", "shop", "access-log", "off")
    two_apps.get("blog.test")
    assert seen(top, 1).apps["blog"].requests == 1
    assert top.unlogged == ["shop"]


def test_a_log_in_another_format_is_named_and_passed_over(two_apps: Live, top: Top) -> None:
    with (two_apps.paths.log / "blog-access.log").open("a") as log:
        log.write("something else\n")
    two_apps.get("shop.test")
    found: dict[str, Any] = seen(top, 1).as_json()
    assert [app["app"] for app in found["apps"]] == ["shop"]
    assert found["notes"] == ["blog: 1 lines of its access log are in a format of its own"]
