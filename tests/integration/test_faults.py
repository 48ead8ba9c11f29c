"""What goes wrong around the router, by hand, by chance or by a full disk: each ends in a true answer and a whole root."""

from __future__ import annotations

import contextlib
import http.client
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.processes import is_alive

from .conftest import NGINX, ROUTER, Live, Root, until
from .test_host_mode import DEBIAN, Host

if TYPE_CHECKING:
    from .instances import Backend

pytestmark = [pytest.mark.timeout(60), pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")]

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can")


def domains_of(root: Root, app: str) -> list[str]:
    return (root.paths.app(app) / "DOMAINS").read_text().split()


def served_domains(root: Root, app: str) -> tuple[str, ...]:
    index = root.generations.current()
    assert index is not None
    return tuple(index.apps[app].domains)


def new_root(path: Path, port: int, *, config: str = "") -> Live:
    """A root that no command has seen."""
    live = Live(path, port)
    live.write("router.toml", f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {port}\n{config}')
    return live


@pytest.fixture
def roots(free_port: Callable[[], int]) -> Iterator[Callable[[Path], Live]]:
    """Roots besides the first, each with a port of its own; what runs in them is ended."""
    with contextlib.ExitStack() as cleanup:

        def make(path: Path) -> Live:
            live = new_root(path, free_port())
            cleanup.callback(live.end)
            return live

        yield make


def wrap_nginx(live: Live, during_test: str) -> None:
    """Have `during_test` (shell) run before each `nginx -t`."""
    wrapper = live.paths.root.parent / "nginx-wrapper"
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" -t "*)\n{during_test}\n;; esac\nexec {NGINX} "$@"\n')
    wrapper.chmod(0o755)
    live.done("proxy:set", "--global", "nginx-binary", wrapper)


# what people do to the files


def test_a_name_that_only_the_file_holds_is_removed_from_it(two_apps: Live) -> None:
    with (two_apps.paths.app("blog") / "DOMAINS").open("a") as file:
        file.write("oops.com\n")
    two_apps.done("domains:remove", "blog", "oops.com")
    assert domains_of(two_apps, "blog") == ["blog.test"]
    two_apps.is_consistent()
    two_apps.serves_current()


def test_setting_the_domains_repairs_a_file_that_was_broken_by_hand(two_apps: Live) -> None:
    two_apps.write("apps/blog/DOMAINS", "blog.test\n*oops..com\n")
    two_apps.done("domains:set", "blog", "blog.test")  # what is served already
    assert domains_of(two_apps, "blog") == ["blog.test"]
    two_apps.is_consistent()
    two_apps.write("apps/blog/DOMAINS", "blog.test\n*oops..com\n")
    two_apps.done("domains:set", "blog", "blog.test", "new.blog.test")
    assert domains_of(two_apps, "blog") == ["blog.test", "new.blog.test"]
    assert two_apps.get("new.blog.test").body == "blog"
    two_apps.is_consistent()
    two_apps.serves_current()


def test_a_file_that_is_edited_during_the_change_is_left_and_nothing_is_changed(two_apps: Live) -> None:
    live = two_apps
    once, file = live.paths.root.parent / "once", live.paths.app("blog") / "DOMAINS"
    wrap_nginx(live, f"[ -e {once} ] && rm {once} && echo hand.blog.test >>{file}")
    number = live.generations.current_number()
    once.touch()
    result = live("domains:add", "blog", "new.blog.test")
    assert result.code == 4 and "apps/blog/DOMAINS was edited during the change" in result.err, result
    assert file.read_text() == "blog.test\nhand.blog.test\n"
    assert live.generations.current_number() == number and live.get("new.blog.test").status == 0
    live.serves_current()
    live.done("domains:add", "blog", "new.blog.test")
    assert (live.get("hand.blog.test").body, live.get("new.blog.test").body) == ("blog", "blog")
    live.is_consistent()


def test_what_is_no_directory_below_apps_is_no_app(two_apps: Live) -> None:
    live, elsewhere = two_apps, two_apps.paths.root.parent / "elsewhere"
    elsewhere.mkdir()
    live.write("apps/plain", "notes\n")
    (live.paths.apps / "ln").symlink_to(elsewhere)
    number = live.generations.current_number()
    for name in ("plain", "ln"):
        result = live("apps:create", name)
        assert live.generations.current_number() == number
        assert result.code == 2 and f"apps/{name}" in result.err, result
    live.done("domains:add", "blog", "new.blog.test")
    live.done("reconcile", "--all")
    assert live.get("new.blog.test").body == "blog"
    assert list(elsewhere.iterdir()) == [] and (live.paths.apps / "plain").read_text() == "notes\n"
    live.is_consistent()
    live.serves_current()


def test_domains_that_were_moved_and_exchanged_by_hand_are_taken_up_at_once(two_apps: Live) -> None:
    live = two_apps
    live.write("apps/blog/DOMAINS", "blog.test\nmoved.test\n")
    live.done("reconcile", "--all")
    for blog, shop in (
        ("blog.test\n", "shop.test\nmoved.test\n"),  # from the first by name to the last
        ("blog.test\nmoved.test\n", "shop.test\n"),  # and back
        ("shop.test\n", "blog.test\nmoved.test\n"),  # two exchanged, one moved
    ):
        live.write("apps/blog/DOMAINS", blog)
        live.write("apps/shop/DOMAINS", shop)
        live.done("reconcile", "--all")
        assert [live.get(name).body for name in blog.split()] == ["blog"] * len(blog.split())
        assert [live.get(name).body for name in shop.split()] == ["shop"] * len(shop.split())
        live.is_consistent()
        live.serves_current()


def test_the_domain_of_an_app_that_was_removed_by_hand_is_freed_by_the_command_of_the_hint(two_apps: Live) -> None:
    shutil.rmtree(two_apps.paths.app("shop"))
    with two_apps.unchanged():
        result = two_apps("domains:add", "blog", "shop.test")
    assert result.code == 4 and "router reconcile shop" in result.err, result
    two_apps.done("reconcile", "shop")
    two_apps.done("domains:add", "blog", "shop.test")
    assert two_apps.get("shop.test").body == "blog"
    two_apps.is_consistent()


def test_a_deep_app_toml_is_stale_and_the_others_go_on(two_apps: Live) -> None:
    deep = "x = " + "[" * 3000 + "]" * 3000 + "\n"
    two_apps.write("apps/blog/app.toml", deep)
    two_apps.write("apps/shop/DOMAINS", "shop.test\nnew.shop.test\n")
    result = two_apps("reconcile", "--all")
    assert result.code == 2 and "apps/blog/app.toml" in result.err and "Traceback" not in result.err, result
    assert (two_apps.get("blog.test").body, two_apps.get("new.shop.test").body) == ("blog", "shop")
    assert list(two_apps.store.stale()) == ["blog"]
    (two_apps.paths.app("blog") / "app.toml").unlink()
    two_apps.done("reconcile", "--all")
    two_apps.is_consistent()
    two_apps.serves_current()


# what happens to the router's own files


@as_root
def test_every_amount_of_room_on_the_disk_ends_in_a_true_answer_at_once(
    isolated: Path, roots: Callable[[Path], Live], backend: Callable[[str], Backend]
) -> None:
    with small_disk(isolated / "d", "size=3m") as disk:
        live = roots(disk / "r")
        live.app("blog", ["blog.test"], [backend("blog")])
        live.done("proxy:start")
        codes = set()
        with_reserve, without = (0, 1, 4, 8, 20, 100), (0, 4, 6, 7, 8, 9, 12, 20)
        for pages, has_reserve in [*((n, True) for n in with_reserve), *((n, False) for n in without)]:
            if not has_reserve:
                live.paths.reserve.unlink()
            fill(disk / "filler", pages)
            name = f"p{pages}-{'with' if has_reserve else 'without'}.blog.test"
            result = live("domains:add", "blog", name, seconds=20)
            (disk / "filler").unlink()
            assert result.code in (0, 1), f"{name}: {result}"
            assert "Traceback" not in result.err, result
            codes.add(result.code)
            is_there = result.code == 0
            assert (name in domains_of(live, "blog")) == (name in served_domains(live, "blog")) == is_there, f"{name}: {result}"
            assert live.get(name).body == ("blog" if is_there else ""), f"{name}: {result}"
            live.done("domains:add", "blog", f"after.{name}")
            live.is_consistent()
        assert codes == {0, 1}, "some of these amounts are too little and some are enough"
        live.end()


@pytest.mark.slow
@pytest.mark.timeout(180)
@as_root
def test_every_number_of_inodes_left_ends_in_a_true_answer_at_once(
    isolated: Path, roots: Callable[[Path], Live], backend: Callable[[str], Backend]
) -> None:
    with small_disk(isolated / "d", "size=32m,nr_inodes=400") as disk:
        live = roots(disk / "r")
        live.app("blog", ["blog.test"], [backend("blog")])
        live.app("shop", ["shop.test"], [backend("shop")])
        live.done("proxy:start")
        codes = set()
        for left in (0, 1, 2, 3, 5, 8, 12, 20, 40):
            with no_inodes(disk / "filler", left):
                name = f"i{left}.blog.test"
                result = live("domains:add", "blog", name, seconds=30)
                assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
            assert result.code in (0, 1) and "Traceback" not in result.err, f"{name}: {result}"
            codes.add(result.code)
            assert result.code == 0 or "No space left on device" in result.err, f"{name}: {result}"
            is_there = result.code == 0
            assert (name in domains_of(live, "blog")) == (name in served_domains(live, "blog")) == is_there, f"{name}: {result}"
            assert live.get(name).body == ("blog" if is_there else ""), f"{name}: {result}"
            live.done("domains:add", "shop", f"after.{name}")
            live.is_consistent()
        assert codes == {0, 1}, "some of these numbers are too small and some are enough"
        with no_inodes(disk / "filler", 0):
            report = live("doctor")
            assert report.code == 8 and "has no inodes left" in report.out, report
        live.end()


@as_root
def test_a_root_that_became_read_only_is_served_on_and_says_so(two_apps: Live) -> None:
    live, root = two_apps, two_apps.paths.root
    with live.unchanged():
        # as ext4 does after an error: what nginx has open it keeps
        subprocess.run(["mount", "--bind", root, root], check=True)
        try:
            subprocess.run(["mount", "-o", "remount,bind,ro", root], check=True)
            for words in (("domains:add", "blog", "new.blog.test"), ("apps:destroy", "shop", "--force"), ("reconcile", "--all")):
                result = live(*words)
                assert result.code == 1 and "Read-only file system" in result.err and "Traceback" not in result.err, result
            assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
            status = live("status")
            assert "Traceback" not in status.err and "serving  generation" in status.out, status
            assert live("apps:report", "blog").code == 0
            report = live("doctor")
            assert report.code == 8 and "Read-only file system" in report.out and "Traceback" not in report.err, report
            assert live("doctor", "--fix").code == 8
            assert live("domains:add", "blog", "new.blog.test", "--dry-run").code in (0, 1)
        finally:
            subprocess.run(["umount", "-l", root], check=True)
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"
    live.is_consistent()
    live.serves_current()


@contextlib.contextmanager
def small_disk(path: Path, options: str) -> Iterator[Path]:
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", path], capture_output=True, text=True, check=False)
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs here: {mounted.stderr}")
    try:
        yield path
    finally:
        subprocess.run(["umount", "-l", path], check=True)


@contextlib.contextmanager
def no_inodes(directory: Path, left: int) -> Iterator[None]:
    """Leave `left` inodes on the disk of `directory`."""
    directory.mkdir()
    files = 0
    with contextlib.suppress(OSError):
        while True:
            (directory / str(files)).touch()
            files += 1
    for number in range(min(left, files)):
        (directory / str(number)).unlink()
    try:
        yield
    finally:
        shutil.rmtree(directory)


def fill(file: Path, pages: int) -> None:
    """Leave `pages` pages on the disk of `file`."""
    size = 0
    with file.open("wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            size += filler.write(b"\0" * 4096)
    os.truncate(file, max(0, size // 4096 - pages) * 4096)


def test_a_journal_that_cannot_be_written_is_a_warning(two_apps: Live) -> None:
    two_apps.paths.journal.unlink()
    two_apps.paths.journal.mkdir()
    result = two_apps.done("domains:add", "blog", "new.blog.test")
    assert "warning" in result.err and "journal.jsonl" in result.err, result
    assert two_apps.get("new.blog.test").body == "blog"


def test_a_lost_current_is_said_and_the_hint_mends_it(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "new.blog.test")
    number = two_apps.generations.current_number()
    two_apps.paths.current.unlink()
    result = two_apps("domains:add", "blog", "next.blog.test")
    line = re.search(r"ln -s \S+ [^\s,]+", result.err)
    assert result.code == 10 and line, result
    assert not os.path.lexists(two_apps.paths.current)
    subprocess.run(line[0].split(), check=True)
    assert two_apps.generations.current_number() == number
    two_apps.done("domains:add", "blog", "next.blog.test")
    assert {two_apps.get(f"{name}blog.test").body for name in ("", "new.", "next.")} == {"blog"}
    two_apps.is_consistent()
    two_apps.serves_current()


@pytest.mark.parametrize("first", [("proxy:start",), ("domains:add", "blog", "new.blog.test")], ids=["start", "change"])
def test_directories_that_were_copied_into_a_fresh_root_are_all_served(
    router_root: Path, roots: Callable[[Path], Live], backend: Callable[[str], Backend], first: tuple[str, ...]
) -> None:
    live = roots(router_root)
    for name in ("blog", "shop"):
        live.app(name, [f"{name}.test"], [backend(name)])
    live.done(*first)
    live.done("proxy:start")
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    live.is_consistent()
    live.serves_current()


def test_a_deleted_vhost_is_written_again_by_a_reconcile_of_its_app(two_apps: Live) -> None:
    index = two_apps.generations.current()
    assert index is not None and index.apps["blog"].vhost
    path = two_apps.generations.object_path(index.apps["blog"].vhost)
    path.unlink()
    two_apps.done("reconcile", "blog")
    assert path.exists()
    two_apps.done("proxy:reload")
    assert two_apps.get("blog.test").body == "blog"
    two_apps.is_consistent()
    two_apps.serves_current()


def test_a_change_is_served_when_what_says_that_nginx_should_run_is_gone(two_apps: Live) -> None:
    two_apps.paths.wanted.unlink()
    result = two_apps.done("domains:add", "blog", "new.blog.test", "--format", "json")
    assert result.json["serving"] == result.json["generation"], result
    assert two_apps.get("new.blog.test").body == "blog"
    two_apps.is_consistent()


# who runs it, and where


@pytest.mark.parametrize("length", [100, 140])
def test_a_long_path_of_the_root_is_served(isolated: Path, roots: Callable[[Path], Live], length: int) -> None:
    live = roots(isolated / ("x" * (length - len(str(isolated)) - 1)))
    assert len(str(live.paths.root)) == length
    live.app("blog", ["blog.test"])
    live.done("proxy:start")
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").status == 502
    live.is_consistent()
    live.serves_current()


def test_a_root_with_a_path_that_ends_like_anothers_is_another(two_apps: Live, isolated: Path, roots: Callable[[Path], Live]) -> None:
    other = roots(isolated / f"x{two_apps.paths.root}")
    other.done("proxy:start")
    first, second = two_apps.master, other.master
    assert first and second and first != second and two_apps.get("blog.test").body == "blog"
    two_apps.done("proxy:stop")
    assert is_alive(second)
    two_apps.done("proxy:start")
    assert other.master == second
    first = two_apps.master
    other.done("proxy:stop")
    other.done("proxy:start")
    assert first and two_apps.master == first and two_apps.get("blog.test").body == "blog"


@as_root
def test_a_strict_umask_keeps_no_request_body_from_the_workers(
    isolated: Path, free_port: Callable[[], int], backend: Callable[[str], Backend]
) -> None:
    live = Live(isolated / "made", free_port())
    was = os.umask(0o077)
    try:
        live.done("proxy:set", "--global", "bind-address", "127.0.0.1")
        live.done("proxy:set", "--global", "http-port", live.port)
        live.done("apps:create", "blog")
        live.done("domains:add", "blog", "blog.test")
        live.done("upstreams:add", "blog", backend("blog"))
        live.done("proxy:start")
        connection = http.client.HTTPConnection("127.0.0.1", live.port, timeout=10)
        connection.request("POST", "/", b"x" * 400_000, {"Host": "blog.test"})
        answer = connection.getresponse()
        assert (answer.status, answer.read()) == (200, b"blog")
        connection.close()
    finally:
        os.umask(was)
        live.end()


@as_root
@pytest.mark.parametrize("is_new", [True, False], ids=["new", "used"])
def test_what_root_does_in_a_users_root_is_the_users(router: Root, is_new: bool) -> None:
    user = pwd.getpwnam("nobody")
    if not is_new:
        router.done("apps:create", "first")
    for path in (router.paths.root, *router.paths.root.rglob("*")):
        os.chown(path, user.pw_uid, user.pw_gid, follow_symlinks=False)
    router.done("apps:create", "blog")
    router.done("domains:add", "blog", "blog.test")
    router.done("upstreams:add", "blog", "127.0.0.1:1")
    router.write("apps/blog/UPSTREAMS", "perhaps perhaps perhaps\n")
    assert router("reconcile", "--all").code == 2
    router.done("apps:create", "other")
    odd = [str(p) for p in router.paths.root.rglob("*") if (p.lstat().st_uid, p.lstat().st_gid) != (user.pw_uid, user.pw_gid)]
    assert odd == []


# changes that meet


def both(live: Live, first: tuple[str, ...], second: tuple[str, ...]) -> list[tuple[int, str]]:
    """The exit codes and words of two commands that were in the queue, in this order, before one was taken."""
    with live.locked():
        commands = []
        for number, words in enumerate((first, second), 1):
            commands.append(live.begin(*words))
            until(lambda: live.queued() == number, 20)  # noqa: B023 - called at once
    return [(result.code, result.err) for result in (command.wait() for command in commands)]


def test_a_name_goes_to_the_next_who_asked_when_the_first_could_not_be_served(two_apps: Live) -> None:
    two_apps.snippet("blog", "no_such_directive;\n")
    first, second = both(two_apps, ("domains:add", "blog", "x.test"), ("domains:add", "shop", "x.test"))
    assert first[0] == 8 and "no_such_directive" in first[1], first
    assert second[0] == 0, second
    assert two_apps.get("x.test").body == "shop"
    assert domains_of(two_apps, "blog") == ["blog.test"]


@pytest.mark.parametrize("is_rename_first", [True, False], ids=["rename first", "create first"])
def test_an_app_that_is_renamed_and_made_anew_at_once(two_apps: Live, is_rename_first: bool) -> None:
    rename, create = ("apps:rename", "blog", "news"), ("apps:create", "blog")
    results = both(two_apps, rename, create) if is_rename_first else both(two_apps, create, rename)
    # who asked to create an app that was there then, and was another's a moment later, is told to ask again
    assert [code for code, _ in results] == ([0, 4] if is_rename_first else [0, 0]), results
    two_apps.is_consistent()
    assert two_apps.store.names() == ["news", "shop"]
    if is_rename_first:
        assert "the same command again" in results[1][1]
        two_apps.done(*create)
    assert two_apps.store.names() == (["blog", "news", "shop"] if is_rename_first else ["news", "shop"])
    assert two_apps.get("blog.test").body == "blog", "the backend that is now news's"
    assert two_apps.generations.current().owners["blog.test"] == "news"  # type: ignore[union-attr]  # it serves
    two_apps.is_consistent()
    two_apps.serves_current()


def test_a_killed_nginx_with_its_port_taken_makes_no_app_stale(two_apps: Live) -> None:
    live = two_apps
    for pid in (live.master or 0, *live.workers()):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))  # noqa: B023 - called at once
    live.write("apps/blog/DOMAINS", "blog.test\nnew.blog.test\n")
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", live.port))
        thief.listen()
        with live.unchanged():
            result = live("reconcile", "--all")
        assert result.code == 13, result
        assert live.store.stale() == {}
    live.done("reconcile", "--all")
    assert live.get("new.blog.test").body == "blog"
    live.is_consistent()
    live.serves_current()


def test_ctrl_c_during_the_validation_is_no_fault_of_the_app(two_apps: Live) -> None:
    live, started, go = two_apps, two_apps.paths.root.parent / "started", two_apps.paths.root.parent / "go"
    go.touch()
    wrap_nginx(live, f"touch {started}; while [ ! -e {go} ]; do sleep 0.01; done")
    for path in (started, go):
        path.unlink(missing_ok=True)
    process = subprocess.Popen(
        [ROUTER, "domains:add", "blog", "new.blog.test"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "ROUTER_ROOT": str(live.paths.root)},
        start_new_session=True,
    )
    try:
        until(started.exists, 20)
        os.killpg(process.pid, signal.SIGINT)
        go.touch()
        _, said = process.communicate(timeout=20)
    finally:
        go.touch()
        if process.poll() is None:
            process.kill()
            process.communicate(timeout=10)
    assert process.returncode in (0, 130), said
    assert "Traceback" not in said
    is_there = process.returncode == 0
    assert live.get("new.blog.test").body == ("blog" if is_there else ""), said
    assert ("new.blog.test" in domains_of(live, "blog")) == is_there
    assert live.store.stale() == {}
    live.is_consistent()
    live.serves_current()


# the distribution's nginx


@pytest.mark.skipif(not (DEBIAN / "sites-available/default").exists(), reason="no nginx as Debian configures it")
def test_a_reload_command_that_fails_is_refused_and_the_next_change_works(
    router_root: Path, isolated: Path, free_port: Callable[[], int], backend: Callable[[str], Backend]
) -> None:
    host = Host(router_root, free_port(), isolated / "etc")
    try:
        host.app("blog", ["blog.test"], [backend("blog")])
        host.systemctl_start()
        host.done("setup", "--nginx-conf", host.conf)
        host.done("reconcile")
        config = host.paths.config.read_text()
        result = host("proxy:set", "--global", "reload-command", "/bin/false")
        assert result.code == 9, result
        assert host.paths.config.read_text() == config
        host.done("domains:add", "blog", "new.blog.test")
        assert host.get("new.blog.test").body == "blog"
        host.is_consistent()
        host.serves_current()
    finally:
        host.end()
