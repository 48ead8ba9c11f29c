"""Endpoint changes that need no reload: `updates live`, switched on and off, and what of an app works with it."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.live import InFlight

from .instances import Backend, Slow
from .spreading import HOST, spread
from .test_deploy_live import Clients
from .updating import out_by_its_checks, pids, switch, under_way

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)


def test_a_canary_that_nobody_gets_any_more_is_a_change_of_endpoints_all_the_same(both: Live, three: list[Backend]) -> None:
    both.app("blog", [HOST], three[:2])
    both.done("reconcile")
    both.done("checks:set", "blog", "interval", "5")
    both.done("apps:deploy", "blog", three[2], "--canary", "10%")
    out_by_its_checks(both, three[2])
    before = pids(both)
    both.done("traffic:set", "blog", "50%")
    abort = ("apps:deploy", "blog", "--abort", "--reason", "it fails its checks")
    with both.unchanged():
        result = both.done(*abort, "--dry-run")
    assert "endpoints: no reload" in result.err, result
    assert both.done(*abort, "--format", "json").json["kind"] == "endpoints"
    last = [(line["command"].split()[0], line["kind"], line["reloads"]) for line in both.journal()[-2:]]
    assert last == [("traffic:set", "endpoints", 0), ("apps:deploy", "endpoints", 0)]
    assert pids(both) == before and len(spread(both, 6)) == 2
    both.is_consistent()
    both.write("apps/blog/UPSTREAMS", f"# the first\n{three[0]}\n{three[1]}\n")
    both.done("reconcile", "blog")
    assert both.journal()[-1]["kind"] == "nothing", "a comment is none of them"


def test_deploys_need_no_reload_and_lose_nothing(lively: Live, backend: Callable[..., Backend]) -> None:
    lively.app("blog", [HOST], [backend("v0")])
    lively.done("reconcile")
    lively.done("nginx:set", "blog", "keepalive-requests", "1000000")  # nginx closes a connection after so many, whoever changes what
    before = pids(lively)
    clients = Clients(lively.port)
    try:
        for number in range(1, 11):
            old = lively.store.texts("blog")["UPSTREAMS"].split()[0]  # type: ignore[index]  # it is there
            result = lively.done("apps:deploy", "blog", backend(f"v{number}"))
            assert result.out == f"{old}\n"
            assert lively.get(HOST).body == f"v{number}"
    finally:
        clients.stop()
    assert clients.failures == [] and clients.repeated == 0 and clients.unrepeated == 0, "not even an idle connection was closed"
    assert pids(lively) == before, "the same nginx"
    assert sum(line["reloads"] for line in lively.journal()[-10:]) == 0
    assert {line["kind"] for line in lively.journal()[-10:]} == {"endpoints"}
    lively.serves_current()
    lively.is_consistent()


def test_the_socket_that_changes_routes_is_nobody_elses(lively: Live) -> None:
    directory = lively.paths.run / "live"
    assert (directory / "admin.sock").is_socket() and directory.stat().st_mode & 0o777 == 0o700


def test_the_routers_own_sockets_are_nobodys_instance(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with lively.unchanged():
        result = lively("apps:deploy", "blog", f"unix:{lively.paths.run}/live/admin.sock")
    assert result.code == 2 and "the router's own" in result.err, result
    assert spread(lively, 2) == {"one": 2}


def test_a_websocket_lives_on(lively: Live, slow: Slow, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [slow])
    lively.done("reconcile")
    with socket.create_connection(("127.0.0.1", lively.port), timeout=10) as client:
        client.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".encode())
        assert b" 101 " in client.recv(65536)
        result = lively.done("apps:deploy", "blog", three[0], "--drain", "1", "--format", "json")
        assert result.json["forced"] == 1, "it is counted as what is under way"
        assert under_way(lively, slow) == InFlight(websockets=1)
        client.sendall(b"still there")
        assert client.recv(65536) == b"still there"


def test_an_instance_that_is_late_is_said_so_whatever_a_snippet_does_with_pages(both: Live, slow: Slow) -> None:
    both.app("blog", [HOST], [slow])
    both.snippet("blog", "recursive_error_pages on;\n")
    both.done("reconcile")
    both.done("nginx:set", "blog", "proxy-read-timeout", "500ms")
    assert both.get(HOST, "/slow").status == 504


def test_an_upload_goes_where_the_newest_version_says(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with socket.create_connection(("127.0.0.1", lively.port), timeout=30) as client:
        client.sendall(f"POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 4\r\n\r\nab".encode())
        lively.done("apps:deploy", "blog", three[1])
        three[0].close()
        client.sendall(b"cd")
        assert client.recv(65536).endswith(b"two")


def test_what_vhosts_of_an_earlier_version_name_is_there(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.snippet("blog", 'set $router_of_blog "router_blog.web$router_kind";\n')
    lively.done("reconcile")
    assert spread(lively, 3) == {"one": 3}


def test_a_socket_that_somebody_removed_is_said_and_doctor_starts_nginx_anew(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    (lively.paths.run / "live/admin.sock").unlink()
    result = lively("apps:deploy", "blog", three[1])
    assert result.code == 9 and "doctor --fix" in result.err, result
    assert spread(lively, 5) == {"one": 5}
    lively("doctor", "--fix")
    lively.done("apps:deploy", "blog", three[1])
    assert spread(lively, 5) == {"two": 5}


def test_settings_that_do_not_fit_the_place_can_be_changed(lively: Live, three: list[Backend], tmp_path: Path) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    far = tmp_path / ("x" * 100) / "r"
    far.parent.mkdir()
    shutil.copytree(lively.paths.root, far, symlinks=True, ignore=shutil.ignore_patterns("*.sock"))
    result = lively("apps:lock", "blog", ROUTER_ROOT=str(far))
    assert result.code == 2 and "shorter root" in result.err, result
    lively.done("proxy:set", "--global", "updates", "reload", ROUTER_ROOT=str(far))
    lively.done("apps:lock", "blog", ROUTER_ROOT=str(far))


def test_without_the_module_it_is_refused_with_the_command_that_installs_it(live: Live) -> None:
    fake = live.write(
        "bin/nginx", '#!/bin/sh\n[ "$1" = -V ] && { echo "configure arguments: --modules-path=/nowhere" >&2; exit 0; }\nexec nginx "$@"\n'
    )
    fake.chmod(0o755)
    live.done("proxy:set", "--global", "nginx-binary", fake)
    with live.unchanged():
        result = live("proxy:set", "--global", "updates", "live")
    assert result.code == 2 and "libnginx-mod-http-lua" in result.err, result


def test_an_own_template_says_itself_where_requests_go(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    shipped = lively.done("apps:nginx:show-config", "--template").out
    lively.write("apps/blog/nginx.conf.j2", shipped)
    lively.done("reconcile", "blog")
    before = pids(lively)
    assert lively.done("apps:deploy", "blog", three[1]).out == f"{three[0]}\n"
    assert pids(lively) != before and lively.get(HOST).body == "two"


def test_a_snippet_may_name_the_upstreams(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.snippet("blog", "location /old/ {\n    proxy_pass http://router_blog.web/;\n}\n")
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    assert lively.get(HOST, "/old/x").body == lively.get(HOST).body == "two"


def test_back_to_reloads_under_load(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    clients = Clients(lively.port)
    try:
        lively.done("proxy:set", "--global", "updates", "reload")
        lively.done("apps:deploy", "blog", three[1])
        switch(lively)
        lively.done("apps:deploy", "blog", three[2])
    finally:
        clients.stop()
    assert clients.failures == []
    assert spread(lively, 5) == {"three": 5}


def test_a_dry_run_says_that_nothing_is_reloaded(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    with lively.unchanged():
        result = lively.done("apps:deploy", "blog", three[1], "--dry-run")
    assert "endpoints: no reload" in result.err, result


def test_a_deploy_that_creates_an_app_without_a_domain_says_so(lively: Live, three: list[Backend]) -> None:
    result = lively.done("apps:deploy", "blog", three[0], "--create")
    assert "blog: created; nothing leads to it before: router domains:add blog DOMAIN" in result.err, result
    assert "nothing to change" in lively.done("apps:deploy", "blog", three[0]).err


def test_status_says_what_is_served_where_the_settings_cannot_be_read(lively: Live) -> None:
    lively.write("router.toml", f'{lively.paths.config.read_text()}updats = "live"\n')
    status = lively("status", "--format", "json").json
    assert status["updates"] == "live" and any("did you mean updates?" in each for each in status["problems"])
