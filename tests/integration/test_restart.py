"""Stopping, starting and rebooting lose nothing, and a stopped proxy takes changes all the same."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(60)


def test_stop_and_start_keep_everything(two_apps: Live) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet kept;\n")
    live.done("reconcile")
    before = live.kept()
    live.done("proxy:stop")
    assert live.master is None and live.processes() == []
    assert not (live.paths.run / "probe.sock").exists()
    with pytest.raises(ConnectionRefusedError):
        live.get("blog.test")
    assert live.done("proxy:stop").code == 0, "twice is quiet"
    live.done("proxy:start")
    assert live.kept() == before
    answer = live.get("blog.test")
    assert (answer.body, answer.headers["x-snippet"], live.get("shop.test").body) == ("blog", "kept", "shop")
    master = live.master
    live.done("proxy:start")
    assert live.master == master, "twice is quiet"
    live.serves_current()


def test_changes_of_a_stopped_proxy_are_validated_saved_and_served_by_its_start(two_apps: Live) -> None:
    live = two_apps
    live.done("proxy:stop")
    result = live.done("domains:add", "blog", "new.blog.test", "--format", "json")
    assert "saved, proxy is stopped" in result.err and result.json["serving"] is None, result
    live.snippet("shop", "gzip perhaps;\n")
    with live.unchanged():
        assert live("domains:add", "shop", "new.shop.test").code == 8
    status = live.done("status", "--format", "json").json
    assert status["serving"] is None and status["proxy"]["running"] is False and status["proxy"]["pid"] is None
    assert live.master is None, "a change does not start what was stopped"
    assert live("proxy:reload").code == 13
    shutil.rmtree(live.paths.app("shop") / "nginx.conf.d")
    live.done("proxy:start")
    assert (live.get("new.blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    live.is_consistent()
    live.serves_current()


def test_a_reboot_that_empties_run_loses_nothing(two_apps: Live) -> None:
    live = two_apps
    pids = [live.master or 0, *live.workers()]
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in pids))
    shutil.rmtree(live.paths.run)
    assert live.done("apps:list").out.split() == ["blog", "shop"], "reading needs nothing there"
    live.done("status")
    live.done("proxy:start")
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"
    live.is_consistent()
    live.serves_current()


def test_a_snippet_that_was_broken_since_does_not_keep_nginx_from_starting(two_apps: Live) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet good;\n")
    live.done("reconcile")
    live.done("proxy:stop")
    live.snippet("blog", "gzip perhaps;\n")
    shutil.rmtree(live.paths.app("shop"))
    live.done("proxy:start")
    assert live.get("blog.test").headers["x-snippet"] == "good"
    assert live.get("shop.test").body == "shop"


def test_current_moved_by_hand_is_served_after_the_next_command(two_apps: Live) -> None:
    live = two_apps
    old = live.generations.current_number()
    live.done("domains:add", "blog", "new.blog.test")
    live.paths.current.unlink()
    live.paths.current.symlink_to(f"generations/{old:06d}")
    status = live("status", "--format", "json")
    assert status.code == 9 and status.json["generation"] == old and status.json["serving"] != old, status
    live.done("domains:add", "shop", "new.shop.test")
    assert live.get("new.shop.test").body == "shop"
    assert live.get("new.blog.test").status == 0, "what `current` says is served; the file waits for its reconcile"
    live.done("reconcile", "blog")
    assert live.get("new.blog.test").body == "blog"
    live.is_consistent()
    live.serves_current()


def test_a_current_that_points_nowhere_ends_in_10_and_says_what_to_do(two_apps: Live) -> None:
    live = two_apps
    target = live.paths.current.readlink()
    live.paths.current.unlink()
    live.paths.current.symlink_to("generations/999999")
    result = live("domains:add", "blog", "new.blog.test")
    assert result.code == 10 and "current" in result.err and "generations" in result.err, result
    assert live.get("blog.test").body == "blog"
    live.paths.current.unlink()
    live.paths.current.symlink_to(target)
    live.done("domains:add", "blog", "new.blog.test")
    assert live.get("new.blog.test").body == "blog"


def test_the_journal_has_one_line_a_change(two_apps: Live) -> None:
    live = two_apps
    live.done("domains:add", "blog", "new.blog.test")
    live("domains:add", "shop", "blog.test")
    live.done("domains:add", "blog", "new.blog.test")
    done, refused, nothing = live.journal()[-3:]
    assert (done["command"], done["kind"], done["result"], done["exit"], done["reloads"]) == (
        "domains:add blog new.blog.test",
        "structure",
        "done",
        0,
        1,
    )
    assert done["generation"] == live.generations.current_number() and done["apps"] == ["blog"] and done["seconds"] > 0
    assert (refused["result"], refused["exit"], refused["kind"], refused["reloads"]) == ("refused", 4, "nothing", 0)
    assert (nothing["result"], nothing["exit"], nothing["kind"], nothing["reloads"]) == ("done", 0, "nothing", 0)
    assert json.dumps(done)


def kill_master(live: Live) -> list[int]:
    """kill -9 of the master alone; the workers that go on."""
    workers, master = live.workers(), live.master
    assert master and workers
    os.kill(master, signal.SIGKILL)
    until(lambda: not is_alive(master))
    return workers


#: The keys of a line of the journal, in their order.
KEYS = """time user uid command apps kind generation result exit seconds reloads closed_connections kept_connections websockets
served_seconds"""


def test_starts_stops_and_reloads_say_what_they_did_and_leave_a_line(two_apps: Live) -> None:
    live = two_apps
    current = live.generations.current_number()

    def told(*argv: str, code: int = 0) -> tuple[str, dict[str, Any]]:
        before = len(live.journal())
        result = live(*argv)
        assert result.code == code, result
        (line,) = live.journal()[before:]
        assert list(line) == KEYS.split()
        assert (line["command"], line["apps"], line["kind"], line["exit"]) == (" ".join(argv), [], "nothing", code)
        return result.err, line

    said, line = told("proxy:reload")
    assert (said, line["result"], line["reloads"], line["generation"]) == (f"nginx serves generation {current}\n", "done", 1, current)
    assert line["seconds"] > 0
    master = live.master
    said, line = told("proxy:stop")
    assert re.fullmatch(rf"proxy stopped: master {master}, \d+ workers?\n", said), said
    assert (line["result"], line["reloads"], line["generation"]) == ("done", 0, current)
    assert told("proxy:stop")[0] == "the proxy is stopped already\n"
    said, line = told("proxy:reload", code=13)
    assert (line["result"], line["reloads"], line["generation"]) == ("failed", 0, None)
    said, line = told("proxy:start")
    assert re.fullmatch(rf"proxy started: master {live.master}, \d+ workers?\n", said), said
    assert told("proxy:start")[0] == "the proxy runs already\n"
    workers = kill_master(live)
    said, line = told("proxy:start")
    orphans = f"{len(workers)} orphan worker{'s' if len(workers) > 1 else ''}"
    assert re.fullmatch(rf"ended {orphans} of an earlier nginx\nproxy started: master {live.master}, \d+ workers?\n", said), said
    kill_master(live)
    assert told("proxy:stop")[0] == f"ended {orphans} of an earlier nginx\nthe proxy is stopped already\n"
    assert not live.processes()
    before = len(live.journal())
    live.done("proxy:start", "--dry-run")
    assert len(live.journal()) == before
    with socket.create_server(("127.0.0.1", live.port)):
        assert told("proxy:start", code=13)[1]["result"] == "failed"


def test_an_nginx_that_a_change_started_is_said_and_in_the_journal(two_apps: Live) -> None:
    live = two_apps
    kill_master(live)
    before = len(live.journal())
    result = live.done("domains:add", "blog", "new.blog.test")
    assert f"nginx should have run and did not: started, master {live.master}\n" in result.err, result
    start, change = live.journal()[before:]
    assert list(start) == list(change) == KEYS.split()
    assert (start["command"], start["kind"], start["result"], start["reloads"]) == (
        "proxy:start (by domains:add blog new.blog.test)",
        "nothing",
        "done",
        0,
    )
    assert (change["command"], change["reloads"]) == ("domains:add blog new.blog.test", 1)
    assert "proxy:start (by domains:add" in live.done("status").out
    kill_master(live)
    result = live.done("reconcile")
    assert result.err.count("did not: started") == 1, "once, and not for each app"
    live.serves_current()


def test_orphans_go_on_serving_where_a_new_nginx_would_not_start(two_apps: Live) -> None:
    live = two_apps
    workers = kill_master(live)
    conf = live.paths.current / "nginx.conf"
    good = conf.read_text()
    conf.write_text(good + "broken\n")
    result = live("proxy:start")
    assert result.code == 13 and "nginx would not start: " in result.err and "still serve" in result.err, result
    assert all(is_alive(pid) for pid in workers) and live.get("blog.test").body == "blog"
    conf.write_text(good)
    live.done("proxy:start")
    assert not any(is_alive(pid) for pid in workers)
    live.serves_current()
