"""`router watch` starts a nginx that ended, less and less often where that does not help, and none that was stopped."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from nginx_router.processes import is_alive

from .conftest import until
from .watching import SERVED, Watch, served, start, watch

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["start", "watch"]  # fixtures

pytestmark = pytest.mark.timeout(120)


def test_a_stopped_nginx_is_no_trouble(two_apps: Live, watch: Watch) -> None:
    two_apps.done("proxy:stop")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nsaved.test\n")
    watch.says("saved, proxy is stopped")
    watch.says("blog: structure")
    two_apps.done("proxy:start")
    assert two_apps.get("saved.test").body == "blog"
    # one that should run and does not is started by the next change
    assert two_apps.master
    os.kill(two_apps.master, signal.SIGKILL)
    two_apps.write("apps/blog/DOMAINS", "blog.test\nback.test\n")
    until(lambda: two_apps.master is not None and "back.test" in two_apps.generations.current().owners, 5)  # type: ignore[union-attr]
    served(two_apps, "back.test", "blog", 5)
    # it is started with what was served before, and then it is reloaded
    watch.says(f"generation {two_apps.generations.current_number()}")
    two_apps.serves_current(SERVED)


def killed(live: Live, *, as_a_whole: bool) -> int:
    """kill -9 of the master, or of everything; the old master's pid."""
    master, workers = live.master, live.workers()
    assert master
    pids = [master, *(workers if as_a_whole else ())]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(map(is_alive, pids)))
    return master


@contextlib.contextmanager
def killed_and_robbed(live: Live) -> Iterator[None]:
    """Everything is killed, and a stranger has its port."""
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with live.locked():  # else the watch is faster
            killed(live, as_a_whole=True)
            thief.bind(("127.0.0.1", live.port))
            thief.listen()
        yield


@pytest.mark.parametrize("as_a_whole", [False, True], ids=["master", "everything"])
def test_an_nginx_that_was_killed_is_started_once(two_apps: Live, watch: Watch, as_a_whole: bool) -> None:
    before, lines = len(two_apps.journal()), len(watch.lines)
    old = killed(two_apps, as_a_whole=as_a_whole)
    watch.says("nginx had ended: ", 5)
    assert two_apps.master not in (None, old)
    assert sorted(two_apps.processes()) == sorted([two_apps.master or 0, *two_apps.workers()]), "no orphan is left"
    (line,) = watch.lines[lines:]
    assert f"proxy started: master {two_apps.master}, " in line
    assert ("ended " in line) is (not as_a_whole)
    until(lambda: len(two_apps.journal()) > before, 5)
    (entry,) = two_apps.journal()[before:]
    assert (entry["command"], entry["result"], entry["generation"]) == (
        "proxy:start (by watch)",
        "done",
        two_apps.generations.current_number(),
    )
    assert (two_apps.get("blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")
    watch.is_quiet(2)
    two_apps.serves_current(SERVED)


def test_an_nginx_that_cannot_start_is_said_once_and_tried_again_later(two_apps: Live, watch: Watch) -> None:
    before = len(two_apps.journal())
    with killed_and_robbed(two_apps):
        watch.says("nginx ended, and is tried again less and less often: nginx does not start: ", 10)
        assert f"pid {os.getpid()} (" in watch.said
        watch.is_quiet(4)  # longer than a look, shorter than the pause
        # a second try is made, fails and is not said again
        time.sleep(5)
        assert watch.said.count("nginx ended") == 1
    (entry,) = two_apps.journal()[before:]
    assert (entry["command"], entry["result"], entry["exit"]) == ("proxy:start (by watch)", "failed", 13)
    # the port is free again
    watch.says("nginx had ended: proxy started", 20)
    until(lambda: two_apps.get("blog.test").body == "blog")
    two_apps.serves_current(SERVED)


def test_an_nginx_that_keeps_ending_is_started_less_and_less_often(two_apps: Live, watch: Watch) -> None:
    killed(two_apps, as_a_whole=True)
    watch.says("nginx had ended: ", 5)
    killed(two_apps, as_a_whole=True)
    time.sleep(2.5)
    assert two_apps.master is None and watch.said.count("nginx had ended: ") == 1
    until(lambda: watch.said.count("nginx had ended: ") == 2, 10)
    two_apps.serves_current(SERVED)


def test_a_master_whose_pid_file_is_lost_is_not_replaced(two_apps: Live, start: Callable[..., Watch]) -> None:
    master = two_apps.master
    (two_apps.paths.run / "nginx.pid").unlink()
    watch = start().begun()
    until(lambda: two_apps.master == master, 5, "its pid file")
    # one that cannot be asked what it serves either is left to a person
    watch.end()
    (two_apps.paths.run / "nginx.pid").unlink()
    (two_apps.paths.run / "probe.sock").unlink()
    lost = start()
    lost.says("nginx runs, and its pid file is lost: router proxy:start starts another in its place")
    assert is_alive(master or 0) and two_apps.get("blog.test").body == "blog"


def test_a_stopped_proxy_is_not_started(two_apps: Live, watch: Watch) -> None:
    two_apps.done("proxy:stop")
    watch.is_quiet(1.5)  # longer than from look to look
    assert two_apps.master is None


def test_what_could_not_be_taken_up_without_nginx_is_taken_up_with_it(two_apps: Live, watch: Watch) -> None:
    with killed_and_robbed(two_apps):
        two_apps.write("apps/blog/DOMAINS", "blog.test\nlate.test\n")
        watch.says("(exit 13)", 15)
    watch.says("blog: structure", 30)
    served(two_apps, "late.test", "blog")
    two_apps.serves_current(SERVED)
