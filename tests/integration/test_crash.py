"""Signals at each step of a change, to the command and to nginx: the next one finds everything old or everything new, and goes on."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS
from nginx_router.processes import has_pending, is_alive

from .conftest import NGINX, until
from .instances import Backend
from .spreading import HOST

if TYPE_CHECKING:
    from .conftest import Live

COMMIT = STEPS.index("committed")

#: The steps on both sides of the commit; all of them in the slow suite.
some_or_all = pytest.mark.parametrize(
    "steps", [("queued", "files", "committed"), pytest.param(STEPS, marks=pytest.mark.slow)], ids=["some steps", "all steps"]
)


def killed(live: Live, step: str, *argv: object) -> None:
    """Give a command that is killed at `step`."""
    result = live(*argv, ROUTER_KILL_AT=step)
    assert result.code == -signal.SIGKILL, f"step {step} was not passed: {result}"


def readers_work(live: Live) -> None:
    """Whatever lies around, what only reads answers."""
    for command, codes in ((("status",), (0, 9)), (("apps:report",), (0,))):
        result = live(*command)
        assert result.code in codes and "Traceback" not in result.err, result


#: Another app's change, the same command again, and what changes no file of an app: each of them repairs first.
NEXT = (
    ("domains:add", "shop", "{}.shop.test"),
    ("domains:add", "blog", "{}.blog.test"),
    ("proxy:reload",),
    ("reconcile",),
    ("domains:remove", "shop", "not-there.test"),
    ("apps:lock", "shop"),
    ("domains:add-global", "{}.test"),
)


@pytest.mark.timeout(120)
def test_a_command_killed_at_any_step_leaves_old_or_new_and_the_next_repairs(two_apps: Live) -> None:
    live = two_apps
    for number, step in enumerate(STEPS):
        new, other = f"{step}.blog.test", f"{step}.shop.test"
        killed(live, step, "domains:add", "blog", new)
        assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
        readers_work(live)
        again = [word.format(step) for word in NEXT[number % len(NEXT)]]
        live.done(*again)
        is_new = number >= COMMIT or new in again
        lines = (live.paths.app("blog") / "DOMAINS").read_text().split()
        assert (new in lines) == is_new, f"after {step} then {again}: {lines}"
        assert live.get(new).body == ("blog" if is_new else "")
        assert live.get(other).body == ("shop" if other in again else "")
        live.is_consistent()
        live.serves_current()
        live.done("domains:add", "blog", new)
        assert live.get(new).body == "blog"


def test_a_reload_of_a_killed_command_ends_before_the_next_begins(two_apps: Live) -> None:
    live = two_apps
    os.kill(live.master or 0, signal.SIGSTOP)
    try:
        command = live.begin("domains:add", "blog", "www.blog.test")
        until(lambda: has_pending(live.master or 0, signal.SIGHUP), 20, "its HUP")
        command.process.kill()
        command.wait()
        # who finds it first: one on top of the other would be one signal
        following = live.begin("domains:add", "shop", "www.shop.test")
        time.sleep(1.5)
        assert following.process.poll() is None
        before = live.workers()
    finally:
        os.kill(live.master or 0, signal.SIGCONT)
    assert following.wait().code == 0
    assert (live.get("www.blog.test").body, live.get("www.shop.test").body) == ("blog", "shop")
    assert not set(before) & set(live.workers())
    live.serves_current()


def test_a_killed_command_whose_nginx_is_slow_to_signal_is_waited_for(two_apps: Live) -> None:
    live = two_apps
    held, binary = live.paths.root.parent / "held", live.paths.root.parent / "slow-nginx"
    once = f"mkdir {held}.once 2>/dev/null && while [ -e {held} ]; do sleep 0.05; done"
    binary.write_text(f'#!/bin/sh\ncase "$*" in *"-s reload"*) [ -e {held} ] && {once};; esac\nexec {NGINX} "$@"\n')
    binary.chmod(0o755)
    live.done("proxy:set", "--global", "nginx-binary", binary)
    held.touch()
    command = live.begin("domains:add", "blog", "www.blog.test")
    until(held.with_name("held.once").exists, 20, "its nginx -s reload")
    command.process.kill()
    command.wait()
    following = live.begin("domains:add", "shop", "www.shop.test")
    time.sleep(1.5)
    assert following.process.poll() is None, "it would be proven while a signal is to come"
    held.unlink()
    assert following.wait().code == 0
    assert (live.get("www.blog.test").body, live.get("www.shop.test").body) == ("blog", "shop")
    live.serves_current()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("command", ["deploy", "rollback"])
def test_a_command_that_was_killed_at_any_step_can_be_given_again(both: Live, three: list[Backend], command: str) -> None:
    both.app("blog", [HOST], [three[0]])
    both.done("reconcile")
    for number, step in enumerate(STEPS):
        new = three[(number + 1) % 3]
        words: tuple[object, ...] = ("apps:deploy", "blog", new, "--check", "/")
        if command == "rollback":
            both.done("apps:deploy", "blog", new)
            both.done("apps:lock", "blog")  # a change of structure: the generation has that endpoint
            words = ("generations:rollback", both.generations.current_number(), "blog", "--endpoints", "--check", "/")
            both.done("apps:unlock", "blog")
            both.done("apps:deploy", "blog", three[(number + 2) % 3])
        result = both(*words, ROUTER_KILL_AT=step)
        if result.code == -signal.SIGKILL:  # else it does not pass that step in this way of updating
            both.done(*words)
        assert both.get(HOST).body == new.name
        both.is_consistent()


@some_or_all
@pytest.mark.timeout(300)
def test_a_command_that_is_told_to_end_at_any_step_does_all_of_it_or_nothing_and_says_which(two_apps: Live, steps: tuple[str, ...]) -> None:
    live = two_apps
    for step in steps:
        new, is_new = f"{step}.blog.test", step != "queued"
        result = live("domains:add", "blog", new, ROUTER_KILL_AT=f"{step}:TERM")
        # under the host lock it is too late to take it back: it is done, and said
        assert result.code == (0 if is_new else 143), f"{step}: {result}"
        assert "Traceback" not in result.err
        assert live.get(new).body == ("blog" if is_new else ""), step
        assert (new in (live.paths.app("blog") / "DOMAINS").read_text().split()) == is_new
        assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
        live.is_consistent()
    live.serves_current()


@some_or_all
@pytest.mark.timeout(300)
def test_a_rename_killed_at_any_step_leaves_one_app_under_one_name(two_apps: Live, steps: tuple[str, ...]) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet kept;\n")
    live.done("reconcile")
    old, new = "blog", "news"
    for step in steps:
        number = STEPS.index(step)
        lines = len(live.journal())
        killed(live, step, "apps:rename", old, new)
        assert live.get("blog.test").body == "blog"
        live.done("domains:add", "shop", f"n{number}.shop.test")
        name, gone = (new, old) if number >= COMMIT else (old, new)
        assert live.store.names() == sorted([name, "shop"]), f"after {step}"
        assert len(live.journal()) == lines + 1 + (number >= COMMIT), "a change has one line, whoever had to write it"
        answer = live.get("blog.test")
        assert (answer.body, answer.headers["x-snippet"]) == ("blog", "kept")
        assert live.get(f"n{number}.shop.test").body == "shop"
        live.is_consistent()
        live.serves_current()
        old, new = name, gone


@some_or_all
@pytest.mark.timeout(300)
def test_a_destroy_or_a_create_killed_at_any_step_is_whole(two_apps: Live, steps: tuple[str, ...]) -> None:
    live = two_apps
    live.done("domains:add-global", "test")  # a created app has a domain, so that all steps are passed
    for step in steps:
        number = STEPS.index(step)
        if live.store.exists("blog"):
            killed(live, step, "apps:destroy", "blog", "--force")
            is_there = number < COMMIT
        else:
            killed(live, step, "apps:create", "blog")
            is_there = number >= COMMIT
        live.done("reconcile", "shop")
        assert live.store.exists("blog") == is_there, f"after {step}"
        assert live.get("blog.test").status in ((200, 502) if is_there else (0,))
        live.is_consistent()
        live.serves_current()


@pytest.mark.timeout(60)
def test_the_journal_tells_of_a_change_whose_command_was_killed_behind_its_commit(two_apps: Live) -> None:
    live = two_apps
    killed(live, "committed", "domains:add", "blog", "new.blog.test")
    live.done("domains:add", "shop", "other.shop.test")
    told = [line for line in live.journal() if line["command"] == "domains:add blog new.blog.test"]
    assert len(told) == 1
    assert told[0]["apps"] == ["blog"] and told[0]["result"] == "done" and told[0]["exit"] == 0, told


@pytest.mark.timeout(60)
def test_an_asker_whose_leader_was_killed_gets_its_true_answer(two_apps: Live) -> None:
    # the first command takes both events and dies; the second, which waited, finds its own change committed, or applies it
    for step, host in (("taken", "t.shop.test"), ("files", "f.shop.test"), ("committed", "c.shop.test"), ("proven", "p.shop.test")):
        with two_apps.locked():
            leader = two_apps.begin("domains:add", "blog", f"{step}.blog.test", ROUTER_KILL_AT=step)
            until(lambda: two_apps.queued() == 1)
            follower = two_apps.begin("domains:add", "shop", host)
            until(lambda: two_apps.queued() == 2)
            # only the leader may win the lock: the other one stands still until the leader is dead
            follower.process.send_signal(signal.SIGSTOP)
        assert leader.wait().code == -signal.SIGKILL
        follower.process.send_signal(signal.SIGCONT)
        result = follower.wait()
        assert result.code == 0, result
        assert two_apps.get(host).body == "shop", step
        two_apps.is_consistent()
        two_apps.serves_current()


@pytest.mark.timeout(60)
def test_an_answer_for_a_killed_leader_does_not_claim_that_a_stopped_proxy_serves(two_apps: Live) -> None:
    two_apps.done("proxy:stop")
    with two_apps.locked():
        leader = two_apps.begin("domains:add", "blog", "new.blog.test", ROUTER_KILL_AT="committed")
        until(lambda: two_apps.queued() == 1)
        follower = two_apps.begin("domains:add", "shop", "new.shop.test", "--format", "json")
        until(lambda: two_apps.queued() == 2)
        follower.process.send_signal(signal.SIGSTOP)
    assert leader.wait().code == -signal.SIGKILL
    follower.process.send_signal(signal.SIGCONT)
    result = follower.wait()
    assert result.code == 0 and result.json["serving"] is None and "saved, proxy is stopped" in result.err, result
    two_apps.done("proxy:start")
    assert (two_apps.get("new.blog.test").body, two_apps.get("new.shop.test").body) == ("blog", "shop")


@pytest.mark.timeout(60)
def test_the_next_change_brings_a_killed_master_back(two_apps: Live) -> None:
    live = two_apps
    master, workers = live.master, live.workers()
    assert master
    os.kill(master, signal.SIGKILL)
    until(lambda: not is_alive(master))
    assert any(is_alive(pid) for pid in workers), "orphans go on serving"
    status = live("status", "--format", "json")
    assert status.code == 13 and status.json["proxy"]["running"] is False, status
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"
    until(lambda: not any(is_alive(pid) for pid in workers), what="the end of the orphans")
    assert live.master not in (None, master)
    assert sorted(live.processes()) == sorted([live.master or 0, *live.workers()])
    live.is_consistent()
    live.serves_current()


@pytest.mark.timeout(60)
def test_proxy_start_ends_what_a_killed_master_left(two_apps: Live) -> None:
    live = two_apps
    master, workers = live.master, live.workers()
    assert master and workers and (live.paths.run / "probe.sock").exists()
    os.kill(master, signal.SIGKILL)
    until(lambda: not is_alive(master))
    live.done("proxy:start")
    assert not any(is_alive(pid) for pid in workers)
    assert sorted(live.processes()) == sorted([live.master or 0, *live.workers()])
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    live.serves_current()


def stands_still(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def kill_of_nginx(live: Live, victims: str) -> None:
    master, workers = live.master, live.workers()
    assert master
    chosen = {"master": [master], "workers": workers, "both": [master, *workers]}[victims]
    for pid in chosen:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in chosen))


def survives_a_kill_of_nginx(live: Live, victims: str, step: str) -> None:
    new = f"{victims}-{step}.blog.test"
    command = live.begin("domains:add", "blog", new, ROUTER_KILL_AT=f"{step}:STOP")
    until(lambda: stands_still(command.process.pid), 30, f"step {step}")
    kill_of_nginx(live, victims)
    command.process.send_signal(signal.SIGCONT)
    result = command.wait()
    assert result.code == 0, f"{victims} killed at {step}: {result}"
    if STEPS.index(step) <= STEPS.index("committed"):
        assert live.get(new).body == "blog", f"{victims} killed at {step}: it said that it is served"
    live.done("domains:add", "shop", f"{victims}-{step}.shop.test")
    for host in ("blog.test", "shop.test", new, f"{victims}-{step}.shop.test"):
        assert live.get(host).body in host.split("."), f"{victims} killed at {step}: {host}"
    live.is_consistent()
    live.serves_current()
    assert sorted(live.processes()) == sorted([live.master or 0, *live.workers()])


@pytest.mark.timeout(120)
@pytest.mark.parametrize("victims", ["master", *(pytest.param(each, marks=pytest.mark.slow) for each in ("workers", "both"))])
def test_nginx_killed_around_the_commit_of_a_change_serves_it_when_the_command_says_so(two_apps: Live, victims: str) -> None:
    survives_a_kill_of_nginx(two_apps, victims, "committed")


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("victims", ["master", "workers", "both"])
def test_nginx_killed_at_any_step_of_a_change(two_apps: Live, victims: str) -> None:
    for step in STEPS:
        survives_a_kill_of_nginx(two_apps, victims, step)


@pytest.mark.timeout(60)
def test_a_master_killed_while_it_reloads_is_started_again_with_the_change(two_apps: Live) -> None:
    live, once = two_apps, two_apps.paths.root.parent / "once"
    wrapper = live.paths.root.parent / "nginx-that-dies"
    pid_file = live.paths.run / "nginx.pid"
    then = f'{NGINX} "$@"; [ -e {once} ] && rm {once} && kill -9 $(cat {pid_file}); exit 0'
    wrapper.write_text(f'#!/bin/sh\ncase " $* " in *" -s "*) {then} ;; esac\nexec {NGINX} "$@"\n')
    wrapper.chmod(0o755)
    live.done("proxy:set", "--global", "nginx-binary", wrapper)
    master = live.master
    once.touch()
    live.done("domains:add", "blog", "new.blog.test")
    assert not once.exists() and live.master not in (None, master)
    assert (live.get("new.blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    live.is_consistent()
    live.serves_current()


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_the_next_change_brings_all_of_nginx_back(two_apps: Live) -> None:
    kill_of_nginx(two_apps, "both")
    assert two_apps("status").code == 13
    began = time.monotonic()
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert time.monotonic() - began < 20
    assert (two_apps.get("new.blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")
    two_apps.is_consistent()
    two_apps.serves_current()


@pytest.mark.slow
@pytest.mark.timeout(90)
def test_an_upgrade_of_nginx_is_told_and_no_change_is_half_taken_up_during_it(two_apps: Live) -> None:
    live = two_apps
    assert NGINX
    binary = live.paths.root.parent / "nginx"
    shutil.copy2(NGINX, binary)
    live.done("proxy:set", "--global", "nginx-binary", binary)
    live.done("proxy:stop")
    live.done("proxy:start")
    fresh = binary.with_name("nginx.new")
    shutil.copy2(NGINX, fresh)
    fresh.rename(binary)
    # replaced and not restarted: everything goes on, and doctor says it
    live.done("domains:add", "blog", "one.blog.test")
    report = live.done("doctor")
    assert "was replaced since it was started" in report.out, report
    old = live.master
    assert old
    os.kill(old, signal.SIGUSR2)
    until(lambda: live.master not in (None, old) and live.workers(), what="the new master")
    new = live.master
    # both accept: a change would reach half of the connections
    number = live.generations.current_number()
    result = live("domains:add", "blog", "two.blog.test")
    assert result.code == 9 and f"an upgrade of nginx is under way: the workers of its old master, pid {old}" in result.err, result
    assert f"kill -QUIT {old}" in result.err
    assert live.generations.current_number() == number and live.get("two.blog.test").status == 0
    assert "an upgrade of nginx is under way" in live("doctor").out
    assert is_alive(old), "nobody ended it unasked"
    live("doctor", "--fix")
    until(lambda: not is_alive(old), what="the end of the old master")
    assert live.master == new
    live.done("domains:add", "blog", "two.blog.test")
    for host in ("blog.test", "shop.test", "one.blog.test", "two.blog.test"):
        assert live.get(host).body in host.split("."), host
    live.is_consistent()
    live.serves_current()
    report = live.done("doctor")
    assert "was replaced" not in report.out, report


@pytest.mark.timeout(60)
def test_a_killed_worker_does_not_matter(two_apps: Live) -> None:
    live = two_apps
    for pid in live.workers():
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))  # noqa: B023 - called at once
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"
    live.is_consistent()
    live.serves_current()


@pytest.mark.timeout(60)
def test_a_master_that_cannot_come_back_ends_in_13_and_changes_nothing(two_apps: Live) -> None:
    live = two_apps
    for pid in (live.master or 0, *live.workers()):
        os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(pid))  # noqa: B023 - called at once
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", live.port))
        thief.listen()
        with live.unchanged():
            result = live("domains:add", "blog", "new.blog.test")
        assert result.code == 13 and "Address already in use" in result.err and "proxy:start" in result.err, result
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"
    live.serves_current()
