"""What is on disk was damaged, lost, or restored from another day: what was acknowledged is served again, and `doctor` says how."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live, Result

pytestmark = pytest.mark.timeout(120)


@pytest.fixture
def changed(two_apps: Live) -> Live:
    """blog and shop with generations behind them; the last change gave blog a domain."""
    two_apps.done("domains:add", "shop", "first.shop.test")
    two_apps.done("domains:add", "blog", "last.blog.test")
    return two_apps


def serves_all(live: Live) -> None:
    """Everything that was acknowledged is served."""
    for host in ("blog.test", "shop.test", "first.shop.test", "last.blog.test"):
        assert live.get(host).body in host.split("."), host


def mended(live: Live) -> Result:
    """`doctor --fix` did it, said what, and leaves nothing to mend."""
    result = live("doctor", "--fix")
    assert result.code == 0 and "Traceback" not in result.err, result
    assert "fixed " in result.out, result
    after = live("doctor")
    assert after.code == 0, f"{result}\nand then {after}"
    serves_all(live)
    live.is_consistent()
    live.serves_current()
    return result


def refused(live: Live, code: int = 10) -> Result:
    """A change is refused, says what is wrong, and changes nothing; nginx goes on."""
    files = live.files()
    result = live("domains:add", "shop", "refused.shop.test")
    assert result.code == code and "Traceback" not in result.err and len(result.err.splitlines()) == 2, result
    assert live.files() == files
    serves_all(live)
    return result


def current(live: Live) -> tuple[int, Path]:
    number = live.generations.current_number()
    assert number is not None
    return number, live.generations.directory(number)


def broken(file: Path, how: str) -> None:
    """Damage a file."""
    data = file.read_bytes()
    file.chmod(0o644)
    if how == "gone":
        file.unlink()
    else:
        file.write_bytes({"half": data[: len(data) // 2], "empty": b"", "zeros": b"\0" * len(data)}[how])


# `current`


@pytest.mark.parametrize(
    "how",
    ["dangling", *(pytest.param(each, marks=pytest.mark.slow) for each in ("a directory", "nowhere", "a file", "gone", "itself"))],
)
def test_a_current_that_names_no_generation(changed: Live, how: str) -> None:
    live = changed
    number, directory = current(live)
    link = live.paths.current
    link.unlink()
    if how == "a directory":
        shutil.copytree(directory, link)
    elif how == "a file":
        link.write_text("generations/000001")
    elif how != "gone":
        link.symlink_to({"dangling": "generations/999999", "nowhere": "", "itself": "current"}[how] or "/")
    assert str(link) in refused(live).err
    assert live("status").code == 10
    result = mended(live)
    assert f"current is generation {number}" in result.out, result
    if how == "a directory":
        assert "current.1" in result.out and (live.paths.root / "current.1").exists(), result


# the files of a generation


@pytest.mark.parametrize("how", ["half", *(pytest.param(each, marks=pytest.mark.slow) for each in ("empty", "zeros", "gone"))])
def test_a_state_that_cannot_be_read_is_made_anew_from_the_directories(changed: Live, how: str) -> None:
    live = changed
    number, directory = current(live)
    broken(directory / "state.json", how)
    assert directory.name in refused(live).err
    result = mended(live)
    assert f"current was generation {number - 1}; what the directories say was taken up" in result.out, result
    # of one without a state nothing is known: the next takes its number
    assert how == "gone" or f"generation {number} was removed: nothing could be rolled back to it" in result.out, result


@pytest.mark.slow
@pytest.mark.parametrize("how", ["half", "empty", "zeros", "gone"])
def test_a_manifest_that_cannot_be_read_is_made_again(changed: Live, how: str) -> None:
    live = changed
    number, directory = current(live)
    was = live.generations.manifest(number)
    broken(directory / "manifest.json", how)
    assert f"manifest.json of generation {number} was made again" in mended(live).out
    now = live.generations.manifest(number)
    assert (now.parent, now.apps, now.added, now.removed, now.digest) == (was.parent, was.apps, was.added, was.removed, was.digest)
    # and it does not keep the others from being pruned
    live.done("generations:prune", "--keep", 2)
    assert live.generations.numbers() == [number - 1, number]


@pytest.mark.slow
@pytest.mark.parametrize("file", ["router.conf", "nginx.conf"])
@pytest.mark.parametrize("how", ["half", "empty", "gone"])
def test_a_configuration_that_was_damaged_is_written_again_as_it_was(changed: Live, file: str, how: str) -> None:
    live = changed
    number, directory = current(live)
    was = (directory / file).read_bytes()
    broken(directory / file, how)
    assert f"router.conf and nginx.conf of generation {number} were written again, as they were" in mended(live).out
    assert (directory / file).read_bytes() == was
    kill_nginx(live)
    live.done("proxy:start")
    serves_all(live)


@pytest.mark.slow
@pytest.mark.parametrize("file", ["router.conf", "nginx.conf"])
def test_a_change_does_not_need_the_configuration_of_the_generation_before(changed: Live, file: str) -> None:
    _, directory = current(changed)
    broken(directory / file, "half")
    changed.done("domains:add", "shop", "next.shop.test")
    assert changed.get("next.shop.test").body == "shop"
    serves_all(changed)
    changed.serves_current()


@pytest.mark.slow
def test_an_older_generation_that_cannot_be_read_keeps_nobody_from_changing_and_is_cleared_away(changed: Live) -> None:
    live = changed
    number, _ = current(live)
    broken(live.generations.directory(number - 1) / "state.json", "half")
    live.done("domains:add", "shop", "next.shop.test")
    result = live("generations:rollback", number - 1, "blog")
    assert result.code == 10 and f"{number - 1:06d}/state.json" in result.err, result
    assert f"generation {number - 1} was removed" in mended(live).out


# objects


def kill_nginx(live: Live) -> None:
    for pid in (live.master or 0, *live.workers()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))  # noqa: B023 - called at once


def flip(data: bytes, at: int) -> bytes:
    """`data` with one bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def damages(data: bytes) -> dict[str, bytes | None]:
    return {
        "deleted": None,
        "empty": b"",
        "half": data[: len(data) // 2],
        "a bit of a directive": flip(data, data.index(b"proxy_pass")),
        # nginx would take this one: it is another app's name
        "another name": data.replace(b"server_name blog.test", b"server_name shop.test"),
        # and this one: blog.test would be gone
        "a bit of a name": flip(data, data.index(b"server_name blog.test") + len(b"server_name ")),
    }


def damaged_vhost(live: Live, how: str) -> Path:
    index = live.generations.current()
    assert index is not None and index.apps["blog"].vhost
    path = live.generations.object_path(index.apps["blog"].vhost)
    data = damages(path.read_bytes())[how]
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    return path


def test_a_vhost_that_was_damaged_is_made_again_before_another_apps_change_is_served(changed: Live) -> None:
    live = changed
    for number, how in enumerate(("deleted", "empty", "half", "a bit of a directive", "another name", "a bit of a name")):
        path = damaged_vhost(live, how)
        live.done("domains:add", "shop", f"n{number}.shop.test")
        assert live.get(f"n{number}.shop.test").body == "shop", how
        serves_all(live)
        assert live.generations.is_intact(path.name), how
    live.is_consistent()
    live.serves_current()


@pytest.mark.slow
def test_a_vhost_that_was_damaged_is_made_again_before_nginx_starts(changed: Live) -> None:
    live = changed
    for how in ("deleted", "a bit of a directive", "a bit of a name"):
        damaged_vhost(live, how)
        kill_nginx(live)
        live.done("proxy:start")
        serves_all(live)
        live.serves_current()


@pytest.mark.slow
def test_a_vhost_that_nginx_has_read_damaged_is_made_again_and_read_again(changed: Live) -> None:
    live = changed
    damaged_vhost(live, "a bit of a name")
    # somebody reloads by hand: the router does not see that
    assert live.master
    workers = live.workers()
    os.kill(live.master, signal.SIGHUP)
    until(lambda: not {*workers} & {*live.workers()} and live.workers())
    until(lambda: live.get("blog.test").status == 0)
    assert "made again from the files of blog, and nginx was reloaded" in mended(live).out


@pytest.mark.slow
def test_a_state_object_that_was_damaged_is_made_again_from_the_directory(changed: Live) -> None:
    live = changed
    index = live.generations.current()
    assert index is not None
    broken(live.generations.object_path(index.apps["blog"].state), "half")
    live.done("domains:add", "shop", "next.shop.test")
    assert "made again from the files of blog" in mended(live).out


def test_a_lost_state_object_keeps_no_app_with_a_snippet_from_being_changed(two_apps: Live) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Own 1 always;\n")
    live.done("reconcile", "blog")
    index = live.generations.current()
    assert index is not None
    live.generations.object_path(index.apps["blog"].state).unlink()
    live.snippet("blog", "add_header X-Own 2 always;\n")
    live.done("domains:add", "blog", "next.blog.test")
    assert live.get("next.blog.test").headers["x-own"] == "2"


@pytest.mark.slow
def test_pruning_leaves_what_a_generation_names_whose_parent_is_not_the_one_before(changed: Live) -> None:
    live = changed
    number, _ = current(live)
    live.done("domains:remove", "blog", "last.blog.test")
    # by hand, as the table of `doctor` says; the next one follows from it and not from the newest
    live.paths.current.unlink()
    live.paths.current.symlink_to(f"generations/{number:06d}")
    live.write("apps/blog/DOMAINS", "blog.test\nlast.blog.test\n")
    for n in range(3):
        live.done("domains:add", "shop", f"n{n}.shop.test")
    # the first that stays is the one that lacks what its follower has from before
    live.done("generations:prune", "--keep", 4)
    assert live.generations.numbers() == [number + 1, number + 2, number + 3, number + 4]
    live.done("proxy:reload")
    serves_all(live)
    live.is_consistent()


# what a command left


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", '{"number": 7, "st', "[]"], ids=["empty", "half", "something else"])
def test_an_intent_that_cannot_be_read_is_put_aside(changed: Live, text: str) -> None:
    live = changed
    live.paths.intent.write_text(text)
    live.paths.intent.chmod(0o600)
    assert "router doctor --fix" in refused(live).err
    assert "intent.damaged" in mended(live).out
    live.done("domains:add", "shop", "next.shop.test")
    live.serves_current()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["stale.json", "proven", "signal.conf", "reserve"])
def test_other_files_of_run_may_be_anything(changed: Live, name: str) -> None:
    live = changed
    (live.paths.run / name).write_bytes(b"\0\0{")
    live.done("domains:add", "shop", "next.shop.test")
    assert live.get("next.shop.test").body == "shop"
    serves_all(live)
    live.is_consistent()
    live.serves_current()


def test_a_torn_line_of_the_journal_does_not_take_the_next_one_with_it(changed: Live) -> None:
    live = changed
    with live.paths.journal.open("a") as file:
        file.write('{"time": "2026-01-0')
    live.done("domains:add", "shop", "next.shop.test")
    last = live.paths.journal.read_text().splitlines()[-1]
    assert json.loads(last)["command"] == "domains:add shop next.shop.test"
    shown = live.done("status", "--format", "json").json["changes"]
    assert [change["command"] for change in shown][:2] == ["domains:add shop next.shop.test", "domains:add blog last.blog.test"]


@pytest.mark.slow
def test_the_directory_of_an_app_that_is_gone_costs_nobody_anything(changed: Live) -> None:
    live = changed
    number, _ = current(live)
    endpoints = (live.paths.app("blog") / "UPSTREAMS").read_text()
    shutil.rmtree(live.paths.app("blog"))
    live.done("domains:add", "shop", "next.shop.test")
    serves_all(live)
    report = live.done("doctor")
    assert "edits were not taken up: blog" in report.out and "router reconcile blog" in report.out, report
    # --fix does not decide whether that was meant
    live.done("doctor", "--fix")
    serves_all(live)
    live.done("generations:rollback", number, "blog")
    live.done("upstreams:set", "blog", endpoints.strip())
    serves_all(live)
    live.is_consistent()
    live.serves_current()


# run/


def test_a_pid_file_that_somebody_removed_is_written_again_and_nothing_is_restarted(changed: Live) -> None:
    live = changed
    master = live.master
    (live.paths.run / "nginx.pid").unlink()
    live.done("domains:add", "shop", "next.shop.test")
    assert live.master == master, "no request was lost"
    assert live.get("next.shop.test").body == "shop"
    live.is_consistent()
    live.serves_current()


@pytest.mark.slow
@pytest.mark.parametrize("by", ["a change", "doctor", "start"])
def test_a_run_directory_that_somebody_removed_is_no_stopped_proxy(changed: Live, by: str) -> None:
    live = changed
    shutil.rmtree(live.paths.run)
    status = live("status")
    assert status.code == 13, status
    serves_all(live)
    if by == "a change":
        result = live.done("domains:add", "shop", "next.shop.test")
        assert "stopped" not in result.err and live.get("next.shop.test").body == "shop", result
    elif by == "start":
        live.done("proxy:start")
    else:
        mended(live)
    serves_all(live)
    live.is_consistent()
    live.serves_current()
    assert sorted(live.processes()) == sorted([live.master or 0, *live.workers()])


@pytest.mark.slow
def test_a_socket_that_somebody_removed_is_said_at_once_and_doctor_starts_nginx_anew(changed: Live) -> None:
    live = changed
    (live.paths.run / "probe.sock").unlink()
    began = time.monotonic()
    assert "probe.sock is gone" in refused(live, 9).err
    assert time.monotonic() - began < 15, "no proof was waited for that cannot come"
    assert "nginx was ended, and proxy started" in mended(live).out


# another day


@pytest.fixture
def backup(two_apps: Live) -> Iterator[Callable[[str], None]]:
    """Put the root back to where it was, as `cp -a` and `rsync` do: `backup("all")` or without run/ and log/."""
    copy = two_apps.paths.root.parent / "backup"
    shutil.copytree(two_apps.paths.root, copy, symlinks=True, ignore=_sockets)

    def restore(what: str) -> None:
        for path in two_apps.paths.root.iterdir():
            if what == "all" or path.name not in ("run", "log"):
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
        for path in copy.iterdir():
            target = two_apps.paths.root / path.name
            if path.is_symlink():
                target.symlink_to(path.readlink())
            elif path.is_dir():
                shutil.copytree(path, target, symlinks=True, dirs_exist_ok=True)
            else:
                shutil.copy2(path, target)

    yield restore
    shutil.rmtree(copy)


def _sockets(directory: str, names: list[str]) -> list[str]:
    return [name for name in names if Path(directory, name).is_socket()]


@pytest.mark.parametrize("what", ["without run and log", pytest.param("all", marks=pytest.mark.slow)])
@pytest.mark.parametrize("first", ["change", pytest.param("doctor", marks=pytest.mark.slow), pytest.param("start", marks=pytest.mark.slow)])
def test_a_root_that_was_restored_is_served_as_it_was_then(two_apps: Live, backup: Callable[[str], None], what: str, first: str) -> None:
    live = two_apps
    then = live.generations.current_number()
    for n in range(3):
        live.done("domains:add", "blog", f"n{n}.blog.test")
    # a command is killed today, and one that asks is killed: what they left lies there when the backup comes
    assert live("domains:add", "blog", "half.blog.test", ROUTER_KILL_AT="files").code == -signal.SIGKILL
    assert live("domains:add", "shop", "asked.shop.test", ROUTER_KILL_AT="queued").code == -signal.SIGKILL
    backup(what)
    assert live.get("n2.blog.test").body == "blog", "nginx serves what it has read"
    assert live.generations.current_number() == then
    if first == "change":
        if what == "all":
            # the socket of the nginx that runs is in no copy
            assert live("domains:add", "shop", "next.shop.test").code == 9
            assert live("doctor", "--fix").code == 0
        live.done("domains:add", "shop", "next.shop.test")
        assert live.get("next.shop.test").body == "shop"
    elif first == "start":
        live.done("proxy:start")
    else:
        assert live("doctor", "--fix").code == 0
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    assert [live.get(f"{name}.blog.test").status for name in ("n0", "n2", "half")] == [0, 0, 0]
    live.is_consistent()
    live.serves_current()
    assert live("doctor").code == 0


@pytest.mark.slow
def test_what_a_backup_needs_is_not_thrown_away_with_what_a_killed_command_brought(two_apps: Live, backup: Callable[[str], None]) -> None:
    live = two_apps
    index = live.generations.current()
    assert index is not None and index.apps["blog"].vhost
    # its objects go, and a command that brings them anew is killed: its intent names them as its own
    live.done("domains:add", "blog", "new.blog.test")
    live.generations.object_path(index.apps["blog"].vhost).unlink()
    live.generations.object_path(index.apps["blog"].state).unlink()
    assert live("domains:remove", "blog", "new.blog.test", ROUTER_KILL_AT="staged").code == -signal.SIGKILL
    assert index.apps["blog"].vhost in live.paths.intent.read_text()
    backup("without run and log")
    live.done("domains:add", "shop", "next.shop.test")
    assert live.generations.is_intact(index.apps["blog"].vhost)
    assert (live.get("blog.test").body, live.get("next.shop.test").body) == ("blog", "shop")
    live.is_consistent()
    live.serves_current()


# the clock

_TOMORROW = """
import datetime, sys, time
day, now, now_ns, real = 86400, time.time, time.time_ns, datetime.datetime
class Tomorrow(real):
    @classmethod
    def now(cls, tz=None):
        return real.now(tz) + datetime.timedelta(days=1)
datetime.datetime = Tomorrow
time.time, time.time_ns = lambda: now() + day, lambda: now_ns() + day * 10**9
from nginx_router.cli import main
sys.exit(main(sys.argv[1:]))
"""


def tomorrow(live: Live, *words: str, **environment: str) -> int:
    """Give a command whose clock is a day ahead."""
    argv = [sys.executable, "-c", _TOMORROW, *words]
    done: Any = subprocess.run(argv, env={**os.environ, "ROUTER_ROOT": str(live.paths.root), **environment}, timeout=60, check=False)
    return int(done.returncode)


@pytest.mark.slow
def test_a_clock_that_goes_back_changes_no_order_and_keeps_nobody_waiting(two_apps: Live) -> None:
    live = two_apps
    live.done("proxy:set", "--global", "generations-keep", "3")
    assert tomorrow(live, "domains:add", "blog", "tomorrow.blog.test") == 0
    number = live.generations.current_number()
    assert number is not None and live.generations.manifest(number).time > time.strftime(
        "%Y-%m-%dT%H:%M:%S", time.gmtime(time.time() + 3600)
    )
    report = live("doctor")
    assert report.code == 8 and "the clock is behind" in report.out and "timedatectl" in report.out, report
    # what a command of tomorrow left, dead or waiting, and its files
    assert tomorrow(live, "domains:add", "blog", "asked.blog.test", ROUTER_KILL_AT="queued") == -signal.SIGKILL
    assert tomorrow(live, "domains:add", "blog", "half.blog.test", ROUTER_KILL_AT="staged") == -signal.SIGKILL
    future = time.time() + 86400
    left = live.write("apps/blog/.DOMAINS.x.tmp", "half")
    for path in (left, live.paths.app("shop") / "DOMAINS", live.paths.lock):
        os.utime(path, (future, future))
    live.done("domains:add", "shop", "today.shop.test")
    live.write("apps/shop/DOMAINS", "shop.test\ntoday.shop.test\nedited.shop.test\n")
    live.done("reconcile")
    for host in ("blog.test", "tomorrow.blog.test", "today.shop.test", "edited.shop.test"):
        assert live.get(host).body in host.split("."), host
    assert [live.get(f"{name}.blog.test").status for name in ("asked", "half")] == [0, 0]
    assert live.generations.current_number() == number + 2, "numbers order generations, and no clock"
    assert live.generations.numbers() == [number, number + 1, number + 2]
    assert "apps/blog/.DOMAINS.x.tmp" in live("doctor").out
    live("doctor", "--fix")
    assert not left.exists()
    live.done("generations:rollback", number, "shop")
    assert (live.get("today.shop.test").status, live.get("shop.test").body) == (0, "shop")
    live.is_consistent()
    live.serves_current()
