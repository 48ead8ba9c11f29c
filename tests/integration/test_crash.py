"""kill -9 at each step of a change, and of nginx itself: the next command finds everything old or everything new, and goes on."""

from __future__ import annotations

import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS
from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live

COMMIT = STEPS.index("committed")


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


@pytest.mark.timeout(120)
def test_a_rename_killed_at_any_step_leaves_one_app_under_one_name(two_apps: Live) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet kept;\n")
    live.done("reconcile")
    old, new = "blog", "news"
    for number, step in enumerate(STEPS):
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


@pytest.mark.timeout(120)
def test_a_destroy_or_a_create_killed_at_any_step_is_whole(two_apps: Live) -> None:
    live = two_apps
    live.done("domains:add-global", "test")  # a created app has a domain, so that all steps are passed
    for number, step in enumerate(STEPS):
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
