"""`router doctor`: what is wrong is named with what mends it, and --fix mends what is safe."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(90)


@pytest.fixture
def hold() -> Iterator[Callable[[int], int]]:
    """Let a stranger's process listen on a port; its pid."""
    started: list[subprocess.Popen[str]] = []

    def start(port: int) -> int:
        code = f"import socket; s = socket.create_server(('127.0.0.1', {port})); print('up', flush=True); s.accept()"
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "up\n"
        return process.pid

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=10)


def examined(live: Live, *argv: object, code: int = 0) -> dict[str, list[dict[str, Any]]]:
    """The checks that are not well, by name."""
    result = live("doctor", *argv, "--format", "json")
    assert result.code == code, result
    found = result.json
    assert found["healthy"] == (code == 0) and found["problems"] == sum(c["state"] == "problem" for c in found["checks"])
    bad: dict[str, list[dict[str, Any]]] = {}
    for check in found["checks"]:
        assert list(check) == ["name", "state", "ok", "note", "problem", "fix", "fixed"]
        if check["state"] != "ok" or check["fixed"]:
            bad.setdefault(check["name"], []).append(check)
    return bad


def examined_any(live: Live) -> dict[str, Any]:
    return {check["name"]: check for check in live("doctor", "--format", "json").json["checks"] if not check["ok"]}


def text_of(live: Live, name: str, *argv: object, code: int = 8) -> dict[str, Any]:
    """The one finding of a check."""
    bad = examined(live, *argv, code=code)
    assert name in bad, bad
    (only,) = bad[name]
    return only


def point(live: Live, target: str) -> None:
    live.paths.current.unlink()
    live.paths.current.symlink_to(target)


def test_a_healthy_host_is_0_and_every_check_is_named(two_apps: Live) -> None:
    result = two_apps.done("doctor", "--endpoints")
    names = [line.split()[1] for line in result.out.splitlines()]
    assert {"binary", "master", "serving", "objects", "open-files", "hand-edits", "plugins"} <= set(names)
    assert all(line.startswith("ok ") for line in result.out.splitlines()), result
    assert not result.err and not examined(two_apps)
    assert two_apps.done("doctor", "--quiet").out == ""
    with two_apps.unchanged():
        two_apps.done("doctor", "--fix")
    two_apps.serves_current()


def kill_master(live: Live) -> list[int]:
    """kill -9 of the master alone; the workers that go on."""
    workers, master = live.workers(), live.master
    assert master
    os.kill(master, signal.SIGKILL)
    until(lambda: not is_alive(master))
    assert workers and all(is_alive(pid) for pid in workers)
    return workers


def test_a_killed_master_is_found_with_its_orphans_and_started_again(two_apps: Live) -> None:
    current = two_apps.generations.current_number()
    workers = kill_master(two_apps)
    bad = examined(two_apps, code=8)
    assert {name for name in bad if bad[name][0]["state"] == "problem"} == {"orphans", "master"}
    (orphans,) = bad["orphans"]
    assert re.match(rf"{len(workers)} orphan workers? serve generation {current}: ", orphans["problem"]), orphans
    assert all(str(pid) in orphans["problem"] for pid in workers)
    proposed = {check["fix"] for checks in bad.values() for check in checks if check["fix"]}
    assert proposed == {"router proxy:start"}, "who kills the workers by hand leaves nobody that serves"
    for name in ("serving", "workers"):
        (check,) = bad[name]
        assert (check["state"], check["ok"], check["note"], check["problem"]) == ("skipped", False, "there is no master", None)
    assert "ports" not in bad, "the orphans are no strangers"
    result = two_apps("doctor", "--quiet")
    assert "skipped" not in result.out
    assert result.err.splitlines() == ["router: 2 problems: orphans, master; router doctor --fix mends them"]
    result = two_apps.done("doctor", "--fix")
    assert re.search(r"^fixed +orphans ", result.out, re.M), result
    assert re.search(
        rf"^ +ended {len(workers)} orphan workers? of an earlier nginx; proxy started: master {two_apps.master}, ", result.out, re.M
    )
    assert "--fix" not in result.err
    assert not any(is_alive(pid) for pid in workers)
    assert two_apps.get("blog.test").body == "blog"
    two_apps.serves_current()
    assert not examined(two_apps)


def test_an_nginx_that_was_killed_as_a_whole_is_started_by_one_command(two_apps: Live) -> None:
    for pid in (two_apps.master or 0, *two_apps.workers()):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not two_apps.processes())
    bad = examined(two_apps, code=8)
    assert {check["fix"] for checks in bad.values() for check in checks if check["fix"]} == {"router proxy:start"}
    two_apps.done("proxy:start")
    assert not examined(two_apps)


def test_orphans_of_a_stopped_proxy_are_ended(two_apps: Live) -> None:
    workers = kill_master(two_apps)
    two_apps.paths.wanted.unlink()
    found = text_of(two_apps, "orphans")
    assert found["fix"] == "router proxy:stop"
    assert f"{len(workers)} orphan worker" in two_apps.done("status", "--problems").out
    assert re.search(r"^fixed +orphans ", two_apps.done("doctor", "--fix").out, re.M)
    assert not two_apps.processes() and two_apps.master is None


def test_an_orphan_beside_a_running_master_is_ended_and_nothing_else(two_apps: Live) -> None:
    log = two_apps.paths.log / "error.log"
    workers = two_apps.workers()
    # as a worker looks whose master was killed
    orphan = subprocess.Popen(["bash", "-c", f"exec -a 'nginx: worker process' sleep 60 3>>{log}"])
    try:
        until(lambda: str(orphan.pid) in str(examined_any(two_apps).get("orphans")))
        two_apps.done("doctor", "--fix")
        assert orphan.wait(10) == -signal.SIGTERM
    finally:
        orphan.kill()
        orphan.wait(10)
    assert two_apps.workers() == workers
    assert not examined(two_apps)


def test_current_that_points_nowhere_goes_to_the_newest_good_generation(two_apps: Live) -> None:
    good = two_apps.generations.current_number()
    two_apps.done("domains:add", "blog", "next.test")
    newest = two_apps.generations.current_number()
    assert good and newest
    (two_apps.generations.directory(newest) / "state.json").write_text("{")
    point(two_apps, "generations/999999")
    assert two_apps("status").code == 10
    found = text_of(two_apps, "current")
    assert f"the newest good one is {good}" in found["problem"]
    assert found["fix"].startswith(f"ln -sfn generations/{good:06d} ")
    result = two_apps.done("doctor", "--fix")
    # the files say more than that generation does
    done = rf"^ +current was generation {good}; what the directories say was taken up: generation {newest + 1}$"
    assert re.search(done, result.out, re.M), result
    assert two_apps.generations.current_number() == newest + 1
    assert two_apps.get("next.test").body == "blog"


@pytest.mark.parametrize("which", ["vhost", "state", "snippet"])
@pytest.mark.parametrize("how", ["missing", "changed"])
def test_an_object_that_is_not_what_its_name_says_is_made_again(two_apps: Live, which: str, how: str) -> None:
    two_apps.snippet("blog", "add_header X-Blog yes;\n")
    two_apps.done("reconcile", "blog")
    index = two_apps.generations.current()
    assert index is not None
    entry = index.apps["blog"]
    sha = {"vhost": entry.vhost, "state": entry.state, "snippet": entry.objects[0]}[which]
    assert sha is not None
    path = two_apps.generations.object_path(sha)
    before = path.read_bytes()
    path.unlink()
    if how == "changed":
        path.write_bytes(before + b"# x\n")
    found = text_of(two_apps, "objects")
    assert "app blog: objects/" in found["problem"] and found["problem"].endswith(f"{'is missing' if how == 'missing' else 'was changed'}")
    two_apps.done("doctor", "--fix")
    assert path.read_bytes() == before and path.stat().st_mode & 0o777 == 0o444
    assert not examined(two_apps)
    assert two_apps.get("blog.test").headers["x-blog"] == "yes"


def test_what_killed_commands_left_is_cleared_away(two_apps: Live) -> None:
    gone = subprocess.Popen(["true"])
    gone.wait(10)
    old = time.time() - 3600
    queued = two_apps.write(f"run/queue/00000000000000000001-{gone.pid}-abcdef.json", "{}")
    answer = two_apps.write(f"run/queue/00000000000000000002-{gone.pid}-abcdef.answer", "[]")
    validation = two_apps.write(f"run/validate-{gone.pid}/nginx.conf", "").parent
    half = two_apps.write("apps/blog/.DOMAINS.x1.tmp", "half")
    os.utime(half, (old, old))
    trash = two_apps.write("apps/.trash/old/DOMAINS", "").parent.parent
    unnamed = two_apps.write(f"objects/{'a' * 64}", "nobody's")
    os.utime(unnamed, (old, old))
    bad = examined(two_apps, code=8)
    assert "queue/" in str(bad["leftovers"]) and bad["leftovers"][0]["fix"] == "router doctor --fix"
    assert bad["unnamed"][0]["state"] == "warning"
    said = two_apps("doctor", "--quiet").err
    assert re.fullmatch(r"router: \d+ problems?: leftovers; router doctor --fix mends leftovers, unnamed\n", said), said
    two_apps.done("doctor", "--fix")
    assert not [path for path in (queued, answer, validation, half, trash, unnamed) if path.exists()]
    assert not examined(two_apps)
    two_apps.serves_current()


def test_a_command_that_was_killed_behind_its_intent_is_undone_or_finished(two_apps: Live) -> None:
    two_apps("domains:add", "blog", "next.test", ROUTER_KILL_AT="files")
    assert two_apps.paths.intent.exists(), "it was killed in the middle"
    assert "run/intent.json" in text_of(two_apps, "leftovers")["problem"]
    two_apps.done("doctor", "--fix")
    assert not examined(two_apps)
    two_apps.is_consistent()
    assert two_apps.get("next.test").status == 0


def test_modes_of_keys_and_files(two_apps: Live) -> None:
    key = two_apps.write("apps/blog/tls/blog.key", "key")
    key.parent.chmod(0o755)
    key.chmod(0o644)
    domains = two_apps.paths.app("blog") / "DOMAINS"
    domains.chmod(0o666)
    bad = examined(two_apps, code=8)["modes"]
    assert [check["problem"] for check in bad] == [
        "apps/blog/tls is 0755: others may read keys",
        "apps/blog/tls/blog.key is 0644: others may read keys",
        "anybody may write apps/blog/DOMAINS",
    ]
    assert bad[0]["fix"] == f"chmod 0700 {key.parent}"
    two_apps.done("doctor", "--fix")
    assert [oct(p.stat().st_mode & 0o777) for p in (key.parent, key, domains)] == ["0o700", "0o600", "0o664"]
    assert not examined(two_apps)


def test_edits_that_nobody_took_up_and_apps_that_are_stale(two_apps: Live) -> None:
    two_apps.write("apps/blog/DOMAINS", "blog.test\nnext.test\n")
    two_apps.app("new", ["new.test"])
    found = text_of(two_apps, "hand-edits", code=0)
    assert (found["state"], found["problem"]) == ("warning", "edits were not taken up: blog, new")
    assert found["fix"] == "router reconcile blog new"
    two_apps.done(*found["fix"].split()[1:])
    assert not examined(two_apps)
    two_apps.snippet("shop", "no_such_directive on;\n")
    assert two_apps("reconcile", "shop").code == 8
    found = text_of(two_apps, "stale")
    assert "app shop is stale" in found["problem"] and "no_such_directive" in found["problem"] and "router reconcile shop" in found["fix"]
    result = two_apps("doctor")
    assert result.err.splitlines() == ["router: 1 problem: stale"], "nothing that --fix mends"


def test_who_holds_a_port_is_named(two_apps: Live, hold: Callable[[int], int], free_port: Callable[[], int]) -> None:
    port = free_port()
    two_apps.done("proxy:stop")
    two_apps.done("ports:add", "blog", "http", f"http:{port}")
    pid = hold(port)
    found = text_of(two_apps, "ports")
    assert f"port {port} is taken by pid {pid} ({sys.executable} -c" in found["problem"]
    assert found["problem"].endswith(": a start leaves app blog out") and found["fix"].endswith(f"router ports:remove blog http:{port}")
    result = two_apps.done("proxy:start")
    assert f"pid {pid} (" in result.err and result.err.count("bind()") == 1, result
    two_apps.done("proxy:stop")
    port = two_apps.port
    pid = hold(port)
    found = examined(two_apps, code=8)["ports"][-1]
    assert f"port {port} is taken by pid {pid} (" in found["problem"] and found["problem"].endswith(": nginx will not start")
    result = two_apps("proxy:start")
    assert result.code == 13, result
    what, hint = result.err.splitlines()
    assert what.startswith(
        f"router: nginx does not start: [emerg] bind() to 127.0.0.1:{port} failed (98: Address already in use): pid {pid} ("
    )
    assert what.count("bind()") == 1 and what.endswith(" has it") and "http-port" in hint, result
    assert not two_apps.paths.wanted.exists()


def test_who_holds_the_port_of_a_change_is_named(two_apps: Live, hold: Callable[[int], int], free_port: Callable[[], int]) -> None:
    port = free_port()
    pid = hold(port)
    for words in (("ports:add", "blog", "http", f"http:{port}"), ("proxy:set", "--global", "http-port", str(port))):
        with two_apps.unchanged():
            result = two_apps(*words)
        what, hint = result.err.splitlines()
        assert result.code == 9 and f"bind() to 127.0.0.1:{port} failed (98: Address already in use): pid {pid} (" in what, result
        assert what.endswith(" has it") and "another port" in hint, result


def test_addresses_that_a_running_nginx_cannot_exchange_lead_to_a_stop(two_apps: Live) -> None:
    change = ("proxy:set", "--global", "bind-address", "0.0.0.0")
    with two_apps.unchanged():
        result = two_apps(*change)
    assert result.code == 9 and f"pid {two_apps.master} (" in result.err and "router proxy:stop, then this again" in result.err, result
    two_apps.done("proxy:stop")
    two_apps.done(*change)
    two_apps.done("proxy:start")
    assert two_apps.get("blog.test").body == "blog"


def test_endpoints_that_do_not_accept(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    dead = backend("dead")
    address = str(dead)
    dead.close()
    two_apps.done("upstreams:add", "shop", address, f"unix:{two_apps.paths.root}/none.sock")
    assert not examined(two_apps), "they are asked on request only"
    bad = examined(two_apps, "--endpoints", code=8)["endpoints"]
    assert len(bad) == 2 and f"endpoint {address} of shop does not accept: Connection refused" == bad[0]["problem"]
    assert f"router apps:upstreams:remove shop {address}" in bad[0]["fix"]


def test_domains_that_do_not_lead_here(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "localhost")
    bad = examined(two_apps, "--domains")["domains"]
    assert {check["problem"] for check in bad} == {
        "domain blog.test of blog does not resolve",
        "domain shop.test of shop does not resolve",
    }


def test_another_generation_than_current_is_mended_by_a_reload(two_apps: Live) -> None:
    before = two_apps.generations.current_number()
    two_apps.done("domains:add", "blog", "next.test")
    point(two_apps, f"generations/{before:06d}")
    bad = examined(two_apps, code=8)
    assert f"current is generation {before}" in bad["serving"][0]["problem"] and bad["serving"][0]["fix"] == "router proxy:reload"
    assert "generations newer than the current one" in bad["generations"][0]["problem"]
    assert two_apps("doctor", "--fix").code == 0
    assert two_apps.get("next.test").status == 0
    assert "serving" not in examined(two_apps)


def test_plugins_add_checks_and_a_broken_one_stops_nobody(two_apps: Live) -> None:
    two_apps.plugin(
        "mine",
        doctor_checks="""
echo '{"name": "backup", "ok": false, "problem": "the last backup is old", "fix": "backup now"}'
echo '{"name": "mail", "ok": true}'
echo '{"name": "space", "ok": false, "warning": true, "problem": "room for a week"}'
""",
    )
    two_apps.plugin("bad", doctor_checks="echo 'it is down' >&2; exit 1")
    two_apps.plugin("worse", doctor_checks="echo no json")
    broken = two_apps.write("plugins/broken/plugin.py", "import nothing_of_that_name\n")
    two_apps.write("plugins/broken/plugin.toml", '[plugin]\nname = "broken"\n')
    bad = examined(two_apps, code=8)
    assert (bad["mine:backup"][0]["problem"], bad["mine:backup"][0]["fix"]) == ("the last backup is old", "backup now")
    assert bad["mine:space"][0]["state"] == "warning" and "mine:mail" not in bad
    assert bad["bad"][0]["problem"] == "its checks failed: it is down"
    assert "is not {name, ok, problem, fix}" in bad["worse"][0]["problem"]
    assert "nothing_of_that_name" in bad["plugins"][0]["problem"]
    broken.unlink()


def test_a_configuration_with_which_nginx_would_not_start(two_apps: Live) -> None:
    index = two_apps.generations.current()
    assert index is not None
    conf = two_apps.paths.current / "nginx.conf"
    conf.write_text(conf.read_text() + "broken\n")
    found = text_of(two_apps, "configuration")
    assert "nginx would not start: [emerg]" in found["problem"] and found["fix"].startswith("nginx -t -c ")
    assert two_apps.get("blog.test").body == "blog"


def test_a_dead_socket_is_removed(two_apps: Live) -> None:
    path = two_apps.paths.run / "old.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    assert text_of(two_apps, "sockets")["problem"] == f"{path} is a dead socket: nobody listens"
    two_apps.done("doctor", "--fix")
    assert not path.exists() and (two_apps.paths.run / "probe.sock").exists()


def test_a_root_that_does_not_exist_yet_is_no_problem(router: Any) -> None:
    result = router("doctor", "--format", "json")
    assert result.code == 0, result


@pytest.fixture
def deployed(two_apps: Live, backend: Callable[[str], Backend]) -> Live:
    """`updates live`, and a change of endpoints that made no generation."""
    two_apps.done("proxy:set", "--global", "updates", "live")
    two_apps.done("apps:deploy", "blog", backend("new"))
    return two_apps


@pytest.mark.parametrize("damage", ["gone", "cut"])
def test_a_lost_snapshot_is_written_again(deployed: Live, damage: str) -> None:
    snapshot = deployed.paths.current / "live.tsv"
    text = snapshot.read_bytes()
    assert deployed.done("doctor", "--quiet").out == ""
    snapshot.unlink() if damage == "gone" else snapshot.write_bytes(text[: len(text) // 2])
    found = text_of(deployed, "generations")
    assert "live.tsv is gone or was changed: an nginx that starts knows no instance" in found["problem"], found
    deployed.done("doctor", "--fix")
    assert snapshot.read_bytes() == text, "with its log it is what nginx has"
    assert deployed.done("doctor", "--quiet").out == ""
    deployed.done("proxy:stop")
    deployed.done("proxy:start")
    assert deployed.get("blog.test").body == "new"


def test_a_lost_log_of_an_older_generation_is_named_and_said_by_a_rollback(deployed: Live, backend: Callable[[str], Backend]) -> None:
    older = deployed.generations.current_number() or 0
    deployed.done("domains:add", "blog", "www.blog.test")
    deployed.generations.log_path(older).unlink()
    found = text_of(deployed, "generations", code=0)
    assert found["state"] == "warning" and f"endpoints.log of generation {older} is lost or was changed: a rollback" in found["problem"]
    assert found["fix"] == f"roll back without --endpoints: router generations:rollback {older}"
    result = deployed.done("generations:rollback", older, "blog", "--endpoints")
    assert f"endpoints.log of generation {older} is lost: endpoints are those that it began with" in result.err
    assert deployed.get("blog.test").body == "blog"
    deployed.is_consistent()
