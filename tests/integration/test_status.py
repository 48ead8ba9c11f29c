"""`router status`: one screen, and exit codes that a monitoring system can go by."""

from __future__ import annotations

import os
import re
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(60)


def test_the_screen_names_what_serves_and_the_last_changes(two_apps: Live) -> None:
    for number in range(6):
        two_apps.done("domains:add", "blog", f"n{number}.blog.test")
    assert two_apps("domains:add", "shop", "n0.blog.test").code == 4
    result = two_apps.done("status")
    current = two_apps.generations.current_number()
    assert re.search(rf"^nginx +runs, master {two_apps.master}, \d+ workers? \(mode managed, updates reload\)$", result.out, re.M), result
    assert re.search(rf"^serving +generation {current}$", result.out, re.M), result
    assert not result.err
    table = result.out.partition("\n\n")[2].splitlines()
    assert len(table) == 1 + 5
    assert re.fullmatch(r"[\d-]+ [\d:]+ +\S+ +refused \(4\) +\d+\.\d{3}  domains:add shop n0\.blog\.test", table[1]), table
    assert table[2].endswith("domains:add blog n5.blog.test") and " done " in table[2]
    assert max(len(line) for line in result.out.splitlines()) <= 80, "80 columns hold it"


def test_json_has_the_promised_keys_and_what_was_added(two_apps: Live) -> None:
    found = two_apps.done("status", "--format", "json").json
    assert list(found) == ["generation", "serving", "updates", "proxy", "apps", "stale", "problems", "canaries", "draining", "changes"]
    assert list(found["proxy"]) == ["type", "mode", "running", "pid", "workers", "draining_workers"]
    assert (found["apps"], found["draining"], found["proxy"]["pid"]) == (2, [], two_apps.master)
    assert found["changes"][0] == two_apps.journal()[-1]


def test_a_worker_that_finishes_a_request_is_named_with_its_age_and_connections(two_apps: Live) -> None:
    with socket.create_connection(("127.0.0.1", two_apps.port)) as slow:
        slow.sendall(b"GET / HTTP/1.1\r\nHost: blog.test\r\n")  # and nothing more: a request that is under way
        until(lambda: two_apps.done("status", "--draining").out == "")
        two_apps.done("domains:add", "blog", "next.blog.test")
        found = two_apps.done("status", "--format", "json").json
        assert found["proxy"]["draining_workers"] >= 1
        (leaving,) = [each for each in found["draining"] if each["connections"]]
        assert leaving["connections"] == 1 and 0 <= leaving["seconds"] < 10 and is_alive(leaving["pid"])
        assert re.search(rf"^draining +worker {leaving['pid']} for \d+ s, 1 connection$", two_apps.done("status").out, re.M)
    until(lambda: not is_alive(leaving["pid"]), what="the end of the old worker")


def test_a_stale_app_is_8_with_nginxs_line_on_stderr(two_apps: Live) -> None:
    two_apps.snippet("shop", "no_such_directive on;\n")
    assert two_apps("reconcile", "shop").code == 8
    for argv in (["status"], ["status", "--quiet"], ["status", "--format", "json"]):
        result = two_apps(*argv)
        assert result.code == 8
        (line,) = result.err.splitlines()
        assert line.startswith("router: app shop is stale: ") and 'unknown directive "no_such_directive"' in line
        assert (result.out == "") == ("--quiet" in argv)
    assert re.search(r'^stale +shop: .*unknown directive "no_such_directive"', two_apps("status").out, re.M)
    assert two_apps.get("shop.test").body == "shop"


@pytest.mark.parametrize("step", ["committed", "proven", "answered"])
def test_an_app_that_is_served_again_is_not_stale_though_nobody_was_told(two_apps: Live, step: str) -> None:
    two_apps.snippet("shop", "no_such_directive on;\n")
    assert two_apps("reconcile", "shop").code == 8
    two_apps.snippet("shop", "client_max_body_size 2m;\n")
    assert two_apps("reconcile", "shop", ROUTER_KILL_AT=step).code == -signal.SIGKILL
    two_apps.done("domains:add", "blog", "www.blog.test")
    assert two_apps("status").code == 0


def test_a_proxy_that_should_run_and_does_not_is_13(two_apps: Live) -> None:
    master = two_apps.master
    assert master is not None
    for pid in (master, *two_apps.workers()):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not two_apps.processes())
    result = two_apps("status")
    assert result.code == 13 and "does not run, and should" in result.out
    assert result.err.splitlines() == ["router: nginx should run and does not: router proxy:start, or router doctor"]
    two_apps.done("proxy:stop")
    assert "is stopped" in two_apps.done("status").out, "stopped on purpose is no problem"


def test_workers_whose_master_is_gone_are_said_to_serve(two_apps: Live) -> None:
    workers, current = two_apps.workers(), two_apps.generations.current_number()
    assert two_apps.master
    os.kill(two_apps.master, signal.SIGKILL)
    until(lambda: two_apps.master is None)
    assert two_apps.get("blog.test").body == "blog"
    result = two_apps("status", "--format", "json")
    assert result.code == 13, result
    orphans = f"{len(workers)} orphan worker{'s' if len(workers) > 1 else ''} still serve: router proxy:start ends them"
    assert result.json["problems"] == ["nginx should run and does not", orphans]
    assert result.json["serving"] == current, "what answers is said"
    assert (result.json["proxy"]["running"], result.json["proxy"]["workers"]) == (False, 0)
    assert re.search(rf"^problem +.*\n +{re.escape(orphans)}$", two_apps("status").out, re.M)
    for pid in workers:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not two_apps.processes())
    found = two_apps("status", "--format", "json").json
    assert (found["problems"], found["serving"]) == (["nginx should run and does not"], None)


def test_another_generation_than_current_is_9(two_apps: Live) -> None:
    before = two_apps.generations.current_number()
    two_apps.done("domains:add", "blog", "next.blog.test")
    two_apps.paths.current.unlink()
    two_apps.paths.current.symlink_to(f"generations/{before:06d}")
    result = two_apps("status", "--quiet")
    assert (result.code, result.out) == (9, "")
    assert result.err.splitlines() == [
        f"router: nginx serves generation {(before or 0) + 1} and not generation {before}: router proxy:reload"
    ]
    two_apps.done("proxy:reload")
    two_apps.serves_current()


def test_broken_settings_do_not_keep_status_from_telling(two_apps: Live) -> None:
    good = two_apps.paths.config.read_text()
    two_apps.paths.config.write_text("[proxy\n")
    result = two_apps.done("status")
    assert re.search(r"^problem +router.toml:1: ", result.out, re.M), result
    two_apps.paths.config.write_text(good)
