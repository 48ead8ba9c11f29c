"""`router watch` as a process: it mends what a killed command left, nothing ends it but a signal, and it costs next to nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS

from .conftest import until
from .watching import SERVED, Watch, served, start, watch

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["start", "watch"]  # fixtures

pytestmark = pytest.mark.timeout(120)


@pytest.mark.parametrize("step", STEPS)
def test_what_a_killed_command_left_is_mended(two_apps: Live, watch: Watch, step: str) -> None:
    result = two_apps("domains:add", "blog", "new.blog.test", ROUTER_KILL_AT=step)
    assert result.code == -signal.SIGKILL
    is_committed = STEPS.index(step) >= STEPS.index("committed")
    until(lambda: not two_apps.paths.intent.exists(), 4, "the end of the intent")
    served(two_apps, "new.blog.test", "blog" if is_committed else "", 4)
    assert ("new.blog.test" in (two_apps.paths.app("blog") / "DOMAINS").read_text()) == is_committed
    if STEPS.index("intent") <= STEPS.index(step):
        watch.says("whose command was killed")
    watch.is_quiet()
    two_apps.serves_current(SERVED)
    assert two_apps.done("domains:add", "blog", "new.blog.test")
    two_apps.is_consistent()


def test_it_mends_first_and_takes_up_all_at_its_start(two_apps: Live, start: Callable[..., Watch]) -> None:
    assert two_apps("domains:add", "blog", "half.test", ROUTER_KILL_AT="staged").code == -signal.SIGKILL
    two_apps.write("apps/shop/DOMAINS", "shop.test\nwhile-away.test\n")
    watch = start().begun()
    watch.says("took back generation")
    assert two_apps.get("while-away.test").body == "shop"
    assert "half.test" not in (two_apps.paths.app("blog") / "DOMAINS").read_text()
    two_apps.is_consistent()
    two_apps.serves_current(SERVED)


def test_a_command_that_is_at_work_was_not_killed(two_apps: Live, start: Callable[..., Watch]) -> None:
    command = two_apps.begin("domains:add", "blog", "slow.test", ROUTER_KILL_AT="staged:STOP")
    until(two_apps.paths.intent.exists, 20)
    watch = start()
    time.sleep(1.5)  # until it has looked: nothing tells
    command.send_signal(signal.SIGCONT)
    assert command.wait().code == 0
    watch.begun()
    assert "killed" not in watch.said and two_apps.get("slow.test").body == "blog"


def test_a_second_watch_names_the_first(two_apps: Live, watch: Watch) -> None:
    result = two_apps("watch")
    assert result.code == 5 and f"pid {watch.process.pid}" in result.err, result
    assert watch.process.poll() is None
    assert watch.end() == 0
    assert two_apps.paths.run.joinpath("watch.lock").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_in_order(two_apps: Live, watch: Watch, number: int) -> None:
    two_apps.write("apps/blog/DOMAINS", "blog.test\nlast.test\n")
    served(two_apps, "last.test", "blog")
    assert watch.end(number) == 0
    assert "Traceback" not in watch.said
    two_apps.is_consistent()
    two_apps.serves_current(SERVED)


def test_a_signal_ends_it_while_the_host_is_locked(two_apps: Live, watch: Watch) -> None:
    with two_apps.locked():
        two_apps.write("apps/blog/DOMAINS", "blog.test\nwaits.test\n")
        until(lambda: two_apps.queued() == 1, 5)
        assert watch.end() == 0
        assert two_apps.queued() == 0, "what waited is withdrawn"
    assert two_apps.get("waits.test").status == 0


def test_sighup_takes_everything_up_and_systemd_hears_of_it(two_apps: Live, start: Callable[..., Watch], isolated: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(isolated / "notify"))
        manager.settimeout(20)

        def heard(words: str) -> str:
            while words not in (said := manager.recv(1000).decode()):
                pass
            return said

        watch = start(NOTIFY_SOCKET=str(isolated / "notify"), WATCHDOG_USEC="400000")
        assert "STATUS=2 apps, generation" in heard("READY=1")
        heard("WATCHDOG=1")
        watch.process.send_signal(signal.SIGHUP)
        assert "MONOTONIC_USEC=" in heard("RELOADING=1")
        heard("READY=1")
        watch.says("SIGHUP")
        two_apps.write("apps/blog/DOMAINS", "blog.test\nafter.test\n")
        heard("STATUS=2 apps, generation")
        served(two_apps, "after.test", "blog")
        watch.process.terminate()
        heard("STOPPING=1")
        assert watch.process.wait(10) == 0


def test_a_vanished_root_is_waited_for(two_apps: Live, watch: Watch) -> None:
    root = two_apps.paths.root
    away = root.with_name("away")
    root.rename(away)
    watch.says("is gone", 10)
    assert watch.process.poll() is None
    assert not root.exists(), "nothing is made in its place"
    away.rename(root)
    watch.says("was replaced", 5)
    until(lambda: watch.said.count("watching ") == 2, 10)
    assert (two_apps.get("blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nagain.test\n")
    served(two_apps, "again.test", "blog")
    two_apps.serves_current(SERVED)


def test_all_apps_gone_at_once_is_nobodys_wish(two_apps: Live, watch: Watch) -> None:
    apps = two_apps.paths.apps
    apps.rename(apps.with_name("apps.away"))
    watch.says(f"{apps} is gone", 5)
    time.sleep(0.5)
    assert (two_apps.get("blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")
    apps.with_name("apps.away").rename(apps)
    until(lambda: watch.said.count("watching ") == 2, 10)
    two_apps.is_consistent()
    two_apps.serves_current(SERVED)


#: A container (systemd-nspawn, Docker) has /proc/sys read-only.
may_limit = pytest.mark.skipif(
    os.geteuid() != 0 or shutil.which("unshare") is None or bool(os.statvfs("/proc/sys/user").f_flag & os.ST_RDONLY),
    reason="only root may map users into a namespace, and only where /proc/sys may be written",
)


def limited(live: Live, start: Callable[..., Watch], limit: str, number: int) -> Watch:
    """A watch in a user namespace of its own, in which `limit` is `number`: the machine's own limits are everybody's."""
    inner = f'echo {number} >/proc/sys/user/{limit} && exec "$@"'
    waits = 'until [ "$(id -u)" = 0 ]; do sleep 0.02; done; exec "$@"'
    watch = start(before=("unshare", "-U", "sh", "-c", waits, "sh", "sh", "-c", inner, "sh"))
    process = Path("/proc") / str(watch.process.pid)
    until(lambda: (process / "ns/user").stat().st_ino != Path("/proc/self/ns/user").stat().st_ino, 10)
    for kind in ("uid_map", "gid_map"):
        (process / kind).write_text("0 0 65536")  # one to one, so that nginx may give files to its workers
    return watch.begun()


@may_limit
@pytest.mark.parametrize(
    ("limit", "number", "sysctl"),
    [
        ("max_inotify_watches", 4, "fs.inotify.max_user_watches"),
        ("max_inotify_watches", 12, "fs.inotify.max_user_watches"),  # full in the middle of a tree, which watchdog does not say
        ("max_inotify_instances", 0, "fs.inotify.max_user_instances"),
    ],
)
def test_a_full_inotify_table_is_named_and_files_are_looked_at_instead(
    two_apps: Live, start: Callable[..., Watch], limit: str, number: int, sysctl: str
) -> None:
    watch = limited(two_apps, start, limit, number)
    watch.says(sysctl)
    watch.says("by looking")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nlooked.test\n")
    served(two_apps, "looked.test", "blog", 6)
    shutil.rmtree(two_apps.paths.app("shop"))
    until(lambda: two_apps.get("shop.test").status == 0, 6)
    assert watch.end() == 0
    two_apps.serves_current(SERVED)


@may_limit
def test_an_inotify_table_that_fills_up_later_is_named(two_apps: Live, start: Callable[..., Watch]) -> None:
    watch = limited(two_apps, start, "max_inotify_watches", 100)
    assert "by looking" not in watch.said
    for n in range(110):
        two_apps.paths.app(f"new{n}").mkdir()
    watch.says("fs.inotify.max_user_watches")
    until(lambda: len(two_apps.generations.current().apps) == 112, 10)  # type: ignore[union-attr]  # there is one
    two_apps.write("apps/new109/DOMAINS", "last.test\n")
    until(lambda: two_apps.get("last.test").status == 502, 6)
    two_apps.serves_current(SERVED)


def test_its_memory_does_not_grow(two_apps: Live, watch: Watch) -> None:
    def edit(first: int, last: int) -> None:
        for n in range(first, last):
            two_apps.write("apps/blog/DOMAINS", f"blog.test\nedit{n}.test\n")
            served(two_apps, f"edit{n}.test", "blog", 10)

    edit(0, 15)
    before = watch.rss
    edit(15, 45)
    assert watch.rss - before < 2048, f"{watch.rss - before} KiB in 30 changes"


def test_an_idle_watch_takes_no_time(two_apps: Live, watch: Watch) -> None:
    def ticks() -> int:
        fields = Path(f"/proc/{watch.process.pid}/stat").read_text().rpartition(")")[2].split()
        return int(fields[11]) + int(fields[12])

    time.sleep(1)
    before = ticks()
    time.sleep(6)
    assert ticks() - before <= 2, "20 ms in 6 s, a look at the root every 5 s included"
