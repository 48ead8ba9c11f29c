"""nginx's Lua module is gone while `updates` is `live`: what is said, and the two ways out, whether nginx runs or not."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.processes import is_alive

from .conftest import until
from .instances import Backend

if TYPE_CHECKING:
    from .conftest import Live, Result

pytestmark = pytest.mark.timeout(180)

HOST = "blog.test"
INSTALL, SWITCH = "sudo apt-get install libnginx-mod-http-lua", "router proxy:set --global updates reload"


class Host:
    """A root in live mode whose nginx has a directory of modules of its own, which can be emptied."""

    def __init__(self, live: Live, instance: Backend) -> None:
        self.live, self.modules = live, live.paths.root.parent / "modules"
        built = subprocess.run(["nginx", "-V"], capture_output=True, text=True, check=True, env=_with_sbin()).stderr
        where = re.search(r"--modules-path=(\S+)", built)
        assert where
        self.modules.mkdir()
        for name in ("ndk_http_module.so", "ngx_http_lua_module.so"):
            shutil.copy(Path(where[1]) / name, self.modules)
        said = f'[ "$1" = -V ] && {{ echo "configure arguments: --modules-path={self.modules}" >&2; exit 0; }}'
        binary = live.write("bin/nginx", f'#!/bin/sh\n{said}\nexec {shutil.which("nginx", path=_with_sbin()["PATH"])} "$@"\n')
        binary.chmod(0o755)
        live.done("proxy:set", "--global", "nginx-binary", binary)
        live.done("proxy:set", "--global", "updates", "live")
        live.app("blog", [HOST], [instance])
        live.done("reconcile")
        live.done("apps:upstreams:set", "blog", f"{instance}", "--weight", "2")  # which stands in endpoints.log alone
        assert str(self.modules) in (live.paths.current / "nginx.conf").read_text()

    def lose(self) -> None:
        """Somebody removes the package."""
        self.modules.rename(self.modules.with_name("away"))

    def exchange(self) -> None:
        """What lies there by now is no module of this nginx."""
        self.lose()
        self.modules.mkdir()
        for path in self.modules.with_name("away").iterdir():
            (self.modules / path.name).write_text("of another nginx")

    def install(self) -> None:
        """Somebody installs it again."""
        shutil.rmtree(self.modules, ignore_errors=True)
        self.modules.with_name("away").rename(self.modules)

    def kill(self, *, orphans: bool = False) -> None:
        """nginx dies, its workers too or not."""
        master, workers = self.live.master, self.live.workers()
        assert master
        for pid in [master, *([] if orphans else workers)]:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not is_alive(master) and (orphans or not any(map(is_alive, workers))))

    def problems(self) -> list[str]:
        """What `status` says is wrong."""
        return list(self.live("status", "--format", "json").json["problems"])

    def names_both_ways(self, result: Result, code: int) -> None:
        """A command failed, and says what to type instead."""
        assert result.code == code and "ndk_http_module.so" in result.err, result
        assert INSTALL in result.err and SWITCH in result.err, result

    def reloads_from_now_on(self) -> None:
        """It is the other mode, and nginx serves what the files say."""
        self.live.serves_current()
        self.live.is_consistent()
        assert self.live.done("status", "--updates").out == "reload\n"
        assert "modules" not in (self.live.paths.current / "nginx.conf").read_text()
        assert self.live.get(HOST).body == "one"
        self.live.done("apps:domains:add", "blog", "www.blog.test")
        assert self.live.get("www.blog.test").body == "one"


def _with_sbin() -> dict[str, str]:
    return {**os.environ, "PATH": f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"}


@pytest.fixture
def host(live: Live, backend: Callable[..., Backend]) -> Host:
    """A root in live mode that serves blog."""
    return Host(live, backend("one"))


def test_while_nginx_runs_status_names_it_and_reload_is_a_way_on(host: Host) -> None:
    host.live.serves_current()
    host.lose()
    assert host.live.get(HOST).body == "one"
    (said,) = host.problems()
    assert "ndk_http_module.so is gone" in said and "would not start" in said
    with host.live.unchanged():
        host.names_both_ways(host.live("apps:domains:add", "blog", "www.blog.test"), 2)
    checks = host.live("doctor", "--format", "json").json["checks"]
    (found,) = [check for check in checks if check["problem"]]
    assert found["name"] == "configuration" and "ndk_http_module.so" in found["problem"] and INSTALL in found["fix"]
    with host.live.unchanged():
        result = host.live("doctor", "--fix")
    assert result.code == 8 and "could not be mended" not in result.out and SWITCH in result.out, result
    assert "--fix mends" not in host.live("doctor").err, "it promises nothing that it does not do"

    host.live.done("proxy:set", "--global", "updates", "reload")
    host.reloads_from_now_on()


@pytest.mark.parametrize("orphans", [False, True])
def test_where_nginx_died_the_switch_to_reload_starts_it(host: Host, orphans: bool) -> None:
    host.lose()
    host.kill(orphans=orphans)
    with host.live.unchanged():
        host.names_both_ways(host.live("proxy:start"), 13)
        host.names_both_ways(host.live("apps:domains:add", "blog", "www.blog.test"), 13)
    assert host.live("status").code == 13
    assert any("ndk_http_module.so is gone" in problem for problem in host.problems())
    assert host.live.get(HOST).body == "one" if orphans else not host.live.processes()

    result = host.live.done("proxy:set", "--global", "updates", "reload")
    assert "nginx should have run and did not: started with this change" in result.err, result
    host.reloads_from_now_on()
    assert [line["reloads"] for line in host.live.journal() if line["command"].endswith("updates reload")] == [0]
    (start,) = [line for line in host.live.journal() if line["command"].startswith("proxy:start (by proxy:set")]
    assert start["result"] == "done", "a start that nobody typed leaves its line"


def test_where_nginx_died_the_module_and_a_start_bring_it_back(host: Host) -> None:
    host.lose()
    host.kill()
    host.names_both_ways(host.live("proxy:start"), 13)
    host.install()
    host.live.done("proxy:start")
    host.live.serves_current()
    assert host.live.get(HOST).body == "one"
    assert host.live.done("status", "--updates").out == "live\n"


@pytest.mark.parametrize("is_back", [False, True])
def test_where_nginx_died_doctor_mends_what_it_says_it_mends(host: Host, is_back: bool) -> None:
    host.lose()
    host.kill()
    if is_back:
        host.install()
    promised = [check["name"] for check in host.live("doctor", "--format", "json").json["checks"] if check["fix"] == "router proxy:start"]
    assert promised == (["master"] if is_back else [])
    assert ("router doctor --fix mends" in host.live("doctor").err) == is_back
    result = host.live("doctor", "--fix")
    assert "could not be mended" not in result.out
    assert (result.code, host.live.master is not None) == ((0, True) if is_back else (8, False)), result
    if not is_back:
        assert INSTALL in result.out and f"{SWITCH}; then: router proxy:start" in result.out
        host.live.done("proxy:set", "--global", "updates", "reload")
        host.reloads_from_now_on()


def test_a_module_of_another_nginx_has_the_same_ways_out(host: Host) -> None:
    host.exchange()
    host.kill()
    with host.live.unchanged():
        host.names_both_ways(host.live("proxy:start"), 13)
        host.names_both_ways(host.live("apps:domains:add", "blog", "www.blog.test"), 13)
        result = host.live("doctor", "--fix")
    assert result.code == 8 and "could not be mended" not in result.out and f"{SWITCH}; then: router proxy:start" in result.out, result
    host.live.done("proxy:set", "--global", "updates", "reload")
    host.reloads_from_now_on()


@pytest.mark.parametrize("is_gone", [True, False], ids=["gone", "of another nginx"])
def test_while_nginx_runs_no_app_is_blamed_for_the_module(host: Host, is_gone: bool) -> None:
    host.live.app("shop", ["shop.test"], [])
    host.live.done("reconcile")
    if is_gone:
        host.lose()
    else:
        host.exchange()
    for words in (("apps:domains:add", "blog", "www.blog.test"), ("apps:domains:add", "blog", "www.blog.test", "--dry-run")):
        with host.live.unchanged():
            result = host.live(*words)
        assert "rejected its vhost" not in result.err, result
        host.names_both_ways(result, 2)
    for app in ("blog", "shop"):
        host.live.write(f"apps/{app}/DOMAINS", f"{app}.test\nmore.{app}.test\n")
    assert host.live("reconcile").code == 2
    assert host.live("status", "--format", "json").json["stale"] == []
    host.install()
    host.live.done("reconcile")
    assert host.live.get("more.blog.test").body == "one"
    host.live.serves_current()


def test_while_the_proxy_is_stopped_the_switch_is_saved_and_it_starts(host: Host) -> None:
    host.live.done("proxy:stop")
    host.lose()
    with host.live.unchanged():
        host.names_both_ways(host.live("proxy:start"), 13)
    assert not host.live.paths.wanted.exists(), "it did not start, and is not wanted for that"
    result = host.live.done("proxy:set", "--global", "updates", "reload")
    assert "saved, proxy is stopped" in result.err and not host.live.processes()
    host.live.done("proxy:start")
    host.reloads_from_now_on()


def test_a_hand_edit_of_the_mode_starts_it_too(host: Host) -> None:
    host.lose()
    host.kill()
    config = host.live.paths.config
    config.write_text(config.read_text().replace('updates = "live"', 'updates = "reload"'))
    host.live.done("reconcile", "--all")
    host.reloads_from_now_on()


def test_a_hand_edit_to_host_mode_is_no_start(host: Host) -> None:
    host.lose()
    host.kill()
    config = host.live.paths.config
    conf = host.live.write("distribution/nginx.conf", "events {}\nhttp {}\n")
    text = config.read_text().replace('updates = "live"', 'updates = "reload"')
    config.write_text(text.replace("[proxy]\n", f'[proxy]\nmode = "host"\nnginx-conf = "{conf}"\n', 1))
    result = host.live("reconcile", "--all")
    assert result.code == 13 and "started with this change" not in result.err, result


def test_a_switch_that_does_not_start_it_either_changes_nothing(host: Host) -> None:
    host.lose()
    host.kill()
    with socket.create_server(("127.0.0.1", host.live.port)), host.live.unchanged():
        result = host.live("proxy:set", "--global", "updates", "reload")
    assert result.code == 13 and f":{host.live.port}" in result.err, result
    assert not host.live.processes()
    host.live.done("proxy:set", "--global", "updates", "reload")
    host.reloads_from_now_on()


def test_a_port_that_somebody_took_is_left_by_the_command_that_is_said(live: Live, backend: Callable[..., Backend]) -> None:
    live.app("blog", [HOST], [backend("one")])
    live.done("reconcile")
    master = live.master
    assert master
    for pid in [master, *live.workers()]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not live.processes())
    with socket.create_server(("127.0.0.1", live.port)), socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
        free.close()
        result = live("proxy:start")
        assert result.code == 13 and "router proxy:set --global http-port N" in result.err, result
        live.done("proxy:set", "--global", "http-port", port)
        live.port = port
        live.serves_current()
        assert live.get(HOST).body == "one"
