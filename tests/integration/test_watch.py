"""`router watch` on real nginx: whatever is edited is served in a moment, with few reloads, and nothing ends the watch but a signal."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS
from nginx_router.processes import is_alive

from .conftest import ROUTER, until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(120)

#: A machine that builds something else at the same time is slow; what a watch promises is 2 s.
SERVED = 2.0
REPO = Path(__file__).parents[2]


class Watch:
    """A `router watch` that runs."""

    def __init__(self, live: Live, argv: list[str], environment: dict[str, str]) -> None:
        self.live = live
        self._log = live.paths.root.parent / f"watch-{time.monotonic_ns()}"
        with self._log.open("w") as file:
            self.process = subprocess.Popen(
                argv,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
                env={**os.environ, "ROUTER_ROOT": str(live.paths.root), **environment},
                cwd="/",
            )
        self.journal_began = 0

    @property
    def said(self) -> str:
        return self._log.read_text()

    @property
    def lines(self) -> list[str]:
        """What it said, without the times."""
        return [line.partition(" ")[2] for line in self.said.splitlines()]

    def says(self, words: str, seconds: float = 15.0) -> None:
        try:
            until(lambda: words in self.said or self.process.poll() is not None, seconds)
        finally:
            assert words in self.said, f"{words!r} is not in:\n{self.said}"

    def begun(self) -> Watch:
        self.says(": ", 20)
        self.says("watching ", 20)
        self.journal_began = len(self.live.journal())
        return self

    def taken_up(self) -> list[dict[str, object]]:
        """The journal lines of what it changed since it began."""
        return [line for line in self.live.journal()[self.journal_began :] if line["command"] == "watch"]

    @property
    def reloads(self) -> int:
        return sum(int(str(line["reloads"])) for line in self.taken_up())

    def is_quiet(self, seconds: float = 0.7) -> None:
        """Nothing is said and nothing is changed for a while; of what was changed before, the line may still be on its way.

        An edit is taken up when files were still for 0.1 s, and a change takes 0.2 s.
        """
        until(lambda: all(f"generation {line['generation']}" in self.said for line in self.taken_up() if line["reloads"]), 5, "a line")
        before = (self.said, len(self.taken_up()))
        time.sleep(seconds)  # that nothing comes can only be waited for
        assert (self.said, len(self.taken_up())) == before, self.said

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(15)

    @property
    def rss(self) -> int:
        """Resident memory in KiB."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") // 1024


@pytest.fixture
def start(two_apps: Live) -> Iterator[Callable[..., Watch]]:
    """Start a watch; what it is started with comes before its options."""
    started: list[Watch] = []

    def begin(*options: str, before: tuple[str, ...] = (), argv: tuple[str, ...] = (str(ROUTER),), **environment: str) -> Watch:
        started.append(Watch(two_apps, [*before, *argv, "watch", *options], environment))
        return started[-1]

    yield begin
    for watch in started:
        if watch.process.poll() is None:
            watch.process.kill()
            watch.process.wait(10)


@pytest.fixture
def watch(start: Callable[..., Watch]) -> Watch:
    """A watch of `blog` and `shop` that is ready."""
    return start().begun()


def served(live: Live, host: str, body: str, seconds: float = SERVED) -> None:
    until(lambda: live.get(host).body == body, seconds, f"{host} with {body!r}")


def test_a_line_echoed_into_a_file_is_served_at_once(two_apps: Live, watch: Watch) -> None:
    with (two_apps.paths.app("blog") / "DOMAINS").open("a") as file:
        file.write("hand.blog.test\n")
    served(two_apps, "hand.blog.test", "blog")
    watch.says("blog: structure, generation ")
    assert [line for line in watch.lines if line.startswith("blog: ")] == [watch.lines[-1]], "one line a change"
    assert watch.said.splitlines()[-1][:4].isdigit() and watch.said.splitlines()[-1].split()[0].endswith("Z")
    until(lambda: watch.reloads == 1, 5)
    watch.is_quiet()
    two_apps.serves_current(SERVED)
    two_apps.is_consistent()


def test_fifty_edits_in_twenty_apps_share_a_reload(two_apps: Live, backend: Callable[[str], Backend], start: Callable[..., Watch]) -> None:
    instance = backend("app")
    for n in range(20):
        two_apps.app(f"app{n}", [f"app{n}.test"], [instance])
    two_apps.done("reconcile")
    watch = start().begun()
    for n in range(50):
        with (two_apps.paths.app(f"app{n % 20}") / "DOMAINS").open("a") as file:
            file.write(f"edit{n}.test\n")
    until(lambda: all(two_apps.get(f"edit{n}.test").body == "app" for n in (0, 19, 49)), 5, "the burst")
    until(lambda: watch.reloads, 5)
    assert watch.reloads <= 2, watch.said
    for n in range(50):
        assert two_apps.get(f"edit{n}.test").body == "app"
    watch.is_quiet()
    two_apps.serves_current(SERVED)


def test_an_editor_that_renames_over_the_file_is_seen(two_apps: Live, watch: Watch) -> None:
    app = two_apps.paths.app("blog")
    # as vim does: a swap file, a backup, a new file in the place of the old
    (app / ".DOMAINS.swp").write_text("x")
    (app / "4913").write_text("")
    (app / "4913").unlink()
    (app / "DOMAINS").rename(app / "DOMAINS~")
    (app / "DOMAINS").write_text("blog.test\nvim.test\n")
    (app / "DOMAINS~").unlink()
    served(two_apps, "vim.test", "blog")
    # as sed -i and rsync do: written beside, renamed over
    (app / ".DOMAINS.Xa7d").write_text("blog.test\nsed.test\n")
    (app / ".DOMAINS.Xa7d").rename(app / "DOMAINS")
    served(two_apps, "sed.test", "blog")
    until(lambda: two_apps.get("vim.test").status == 0, SERVED)
    until(lambda: watch.reloads == 2, 5)
    (app / ".DOMAINS.swp").unlink()
    watch.is_quiet()
    two_apps.serves_current(SERVED)


def test_a_removed_and_a_renamed_directory_are_taken_up(two_apps: Live, watch: Watch) -> None:
    shutil.rmtree(two_apps.paths.app("shop"))
    until(lambda: two_apps.get("shop.test").status == 0, SERVED, "the end of shop")
    # the new name comes before the old one, in every order but the right one
    two_apps.paths.app("blog").rename(two_apps.paths.app("a-blog"))
    watch.says("a-blog: structure")
    watch.says(" blog: structure")
    assert "exit" not in watch.said, watch.said
    assert two_apps.get("blog.test").body == "blog"
    assert watch.reloads == 2, "one each"
    watch.is_quiet()
    two_apps.is_consistent()
    two_apps.serves_current(SERVED)


def test_a_domain_moved_by_hand_is_never_missing(two_apps: Live, watch: Watch) -> None:
    # blog is asked before shop, and shop has what blog is given
    two_apps.write("apps/shop/DOMAINS", "other.shop.test\n")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nshop.test\n")
    bodies = {"shop"}
    deadline = time.monotonic() + SERVED
    while "blog" not in bodies and time.monotonic() < deadline:
        bodies.add(two_apps.get("shop.test").body)
    assert bodies == {"shop", "blog"}
    until(lambda: watch.reloads == 1, 5)
    two_apps.serves_current(SERVED)


def test_an_app_directory_whose_files_come_slowly_is_served_when_they_are_there(
    two_apps: Live, backend: Callable[[str], Backend], watch: Watch
) -> None:
    app = two_apps.paths.app("slow")
    app.mkdir()
    time.sleep(0.3)
    instance = str(backend("slow"))
    with (app / "UPSTREAMS").open("w") as file:
        for letter in f"web {instance}\n":
            file.write(letter)
            file.flush()
            time.sleep(0.02)
    (app / "nginx.conf.d").mkdir()
    time.sleep(0.3)
    (app / "nginx.conf.d" / "own.conf").write_text("add_header X-Slow yes;\n")
    time.sleep(0.3)
    (app / "DOMAINS").write_text("slow.test\n")
    served(two_apps, "slow.test", "slow")
    until(lambda: dict(two_apps.get("slow.test").headers).get("x-slow") == "yes", SERVED)
    assert "exit" not in watch.said, watch.said
    two_apps.serves_current(SERVED)


def test_a_file_that_is_being_written_is_not_taken_up_in_the_middle(two_apps: Live, watch: Watch) -> None:
    with (two_apps.paths.app("blog") / "DOMAINS").open("a") as file:
        for letter in "very-long-name.blog.test.and-still-not-whole." + "x" * 30:
            file.write(letter)
            file.flush()
            time.sleep(0.05)
        assert watch.taken_up() == [], watch.said
        file.write(".test\n")
    served(two_apps, f"very-long-name.blog.test.and-still-not-whole.{'x' * 30}.test", "blog")
    until(lambda: watch.reloads == 1, 5)


def test_the_hosts_own_files_are_taken_up(two_apps: Live, watch: Watch) -> None:
    assert two_apps.get("nobody.test").status == 0
    config = two_apps.paths.config
    text = config.read_text()
    config.write_text(text + 'default-site = "404"\n')
    until(lambda: two_apps.get("nobody.test").status == 404, SERVED)
    watch.says("the host's own files: structure")
    config.write_text(text + 'default-site = "perhaps"\n')
    watch.says("router.toml:")
    (two_apps.paths.app("blog") / "DOMAINS").write_text("blog.test\nmeanwhile.test\n")
    time.sleep(0.5)
    assert two_apps.get("meanwhile.test").status in (0, 404), "nothing is changed under broken settings"
    config.write_text(text)
    served(two_apps, "meanwhile.test", "blog")
    until(lambda: two_apps.get("nobody.test").status == 0, SERVED)
    two_apps.write("DOMAINS", "example.test\n")
    until(lambda: two_apps.generations.current().global_domains == "example.test\n", SERVED)  # type: ignore[union-attr]  # there is one
    two_apps.serves_current(SERVED)


def test_a_broken_app_is_named_and_watched_on(two_apps: Live, watch: Watch) -> None:
    domains = two_apps.paths.app("blog") / "DOMAINS"
    for text, words in (("*bad\n", "apps/blog/DOMAINS:1"), ("shop.test\n", "belongs to app shop")):
        domains.write_text(text)
        watch.says(words)
        assert two_apps.get("blog.test").body == "blog", "the last good one stays"
        assert two_apps("status").code == 8
    two_apps.snippet("shop", "gzip perhaps;\n")
    watch.says("own.conf")
    (two_apps.paths.app("shop") / "nginx.conf.d/own.conf").unlink()
    watch.says("shop: mended")
    # who lets go of a domain makes the other whole
    two_apps.write("apps/shop/DOMAINS", "new.shop.test\n")
    served(two_apps, "new.shop.test", "shop")
    served(two_apps, "shop.test", "blog")
    two_apps.serves_current(SERVED)


def test_what_is_no_file_or_too_large_harms_its_app_alone(two_apps: Live, watch: Watch) -> None:
    app = two_apps.paths.app("blog")
    os.mkfifo(app / "pipe")
    (app / "dump.sql").write_bytes(b"x" * (10 << 20))
    (app / "DOMAINS").unlink()
    os.mkfifo(app / "DOMAINS")
    watch.says("not a regular file")
    two_apps.write("apps/shop/DOMAINS", "shop.test\nmore.shop.test\n")
    served(two_apps, "more.shop.test", "shop")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").write_bytes(b"# " + b"x" * (10 << 20) + b"\n")
    watch.says("larger than")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").symlink_to("/etc/passwd")
    watch.says("a link or a device")
    (app / "DOMAINS").unlink()
    (app / "DOMAINS").mkdir()
    until(lambda: watch.said.count("not a regular file") >= 2, 5)
    (app / "DOMAINS").rmdir()
    (app / "DOMAINS").write_text("blog.test\nwell.blog.test\n")
    served(two_apps, "well.blog.test", "blog")
    two_apps.serves_current(SERVED)


def test_what_commands_write_makes_no_second_reload(two_apps: Live, watch: Watch) -> None:
    two_apps.done("domains:add", "blog", "one.test")
    two_apps.done("apps:create", "new")
    two_apps.done("upstreams:add", "new", "127.0.0.1:9")
    two_apps.done("domains:add", "new", "new.test")
    two_apps.done("apps:rename", "new", "newer")
    two_apps.done("domains:add-global", "example.test")
    two_apps.done("proxy:set", "--global", "default-site", "404")
    two_apps.done("apps:destroy", "newer", "--force")
    watch.is_quiet()
    assert watch.taken_up() == [], watch.said
    assert len(watch.lines) == 1, watch.said
    two_apps.serves_current(SERVED)


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


def test_names_are_resolved_again(two_apps: Live, backend: Callable[[str], Backend], start: Callable[..., Watch]) -> None:
    instance = backend("named")
    answer = two_apps.write("answer", "127.0.0.1\n")
    two_apps.plugin("resolver", endpoint_resolve=f'case "$(cat)" in *\'"web.lan"\'*) cat {answer};; esac')
    two_apps.app("named", ["named.test"], [f"web.lan:{instance.port}"])
    watch = start("--resolve", "0.5").begun()
    assert two_apps.get("named.test").body == "named"
    watch.is_quiet(1.2)  # two resolutions
    answer.write_text("127.0.0.9\n")
    watch.says("named: endpoints, generation")
    index = two_apps.generations.current()
    assert index and two_apps.generations.app_state(index.apps["named"])[1].resolved == {"web.lan": ("127.0.0.9",)}
    number = index.number
    answer.write_text("\n")
    watch.is_quiet(1.2)
    assert two_apps.generations.current_number() == number, "one that fails keeps the last"
    answer.write_text("127.0.0.1\n")
    served(two_apps, "named.test", "named", 5)
    # an app that waits for its name
    two_apps.app("later", ["later.test"], [f"later.web.lan.invalid:{instance.port}"])
    watch.says("later.web.lan.invalid", 15)
    answer.with_name("plugins").joinpath("resolver/endpoint-resolve").write_text(f"#!/bin/sh\ncat {answer}\n")
    served(two_apps, "later.test", "named", 15)
    two_apps.serves_current(SERVED)


def test_a_changed_plugin_is_taken_up_in_every_app(two_apps: Live, start: Callable[..., Watch]) -> None:
    watch = start().begun()
    pid = watch.process.pid
    plugin = two_apps.plugin("stamp", nginx_server_snippet='echo "add_header X-Stamp one;"')
    until(lambda: all(two_apps.get(host).headers.get("x-stamp") == "one" for host in ("blog.test", "shop.test")), 8)
    watch.says("starting anew")
    script = plugin / "nginx-server-snippet"
    script.write_text(script.read_text().replace("one", "two"))
    until(lambda: two_apps.get("blog.test").headers.get("x-stamp") == "two", 8)
    # Python code that is loaded already
    two_apps.write("plugins/py/plugin.toml", '[plugin]\nname = "py"\n')
    code = "import pluggy\n\n@pluggy.HookimplMarker('router')\ndef nginx_server_snippet(event):\n    return 'add_header X-Py {};'\n"
    module = two_apps.write("plugins/py/plugin.py", code.format("first"))
    until(lambda: two_apps.get("blog.test").headers.get("x-py") == "first", 8)
    module.write_text(code.format("second-one"))
    until(lambda: two_apps.get("blog.test").headers.get("x-py") == "second-one", 8)
    shutil.rmtree(two_apps.paths.plugins / "py")
    until(lambda: "x-py" not in two_apps.get("blog.test").headers, 8)
    until(lambda: watch.lines[-1].startswith("watching "), 5)
    watch.is_quiet(2.5)
    assert watch.process.pid == pid and watch.process.poll() is None, "systemd sees one process"
    assert two_apps("watch").code == 5, "it is still the one"
    two_apps.serves_current(SERVED)


def test_a_changed_template_is_taken_up(two_apps: Live, start: Callable[..., Watch], isolated: Path) -> None:
    # an installation of its own: what is shipped is everybody's
    for name in ("nginx_router", "templates", "plugins"):
        shutil.copytree(REPO / name, isolated / "installed" / name, ignore=shutil.ignore_patterns("__pycache__"))
    python = (sys.executable, "-m", "nginx_router")
    watch = start(argv=python, PYTHONPATH=str(isolated / "installed")).begun()
    template = isolated / "installed/templates/vhost.conf.j2"
    whole = template.read_text()
    template.write_text(whole.replace("\nserver {", "\nserver {\n    add_header X-Template new;", 1))
    until(lambda: two_apps.get("blog.test").headers.get("x-template") == "new", 10)
    # an own template of an app
    two_apps.write("apps/shop/nginx.conf.j2", f"server {{ listen 127.0.0.1:{two_apps.port}; server_name shop.test; return 203; }}\n")
    until(lambda: two_apps.get("shop.test").status == 203, SERVED)
    # a program that is half installed is not started
    cli = isolated / "installed/nginx_router/cli.py"
    whole = cli.read_text()
    cli.write_text("import nothing_of_this_name\n")
    watch.says("does not run", 10)
    two_apps.write("apps/blog/DOMAINS", "blog.test\nmeanwhile.test\n")
    served(two_apps, "meanwhile.test", "blog")
    anew = watch.said.count("starting anew")
    cli.write_text(whole)
    until(lambda: watch.said.count("starting anew") > anew, 10)
    until(lambda: watch.lines[-1].startswith("watching "), 10)
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
