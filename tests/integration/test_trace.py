"""`router trace`: what the state says and what nginx does, side by side."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)


def traced(live: Live, *argv: object, code: int = 0) -> dict[str, Any]:
    result = live("trace", *argv, "--format", "json")
    assert result.code == code, result
    found: dict[str, Any] = result.json
    return found


def addresses(found: dict[str, Any]) -> list[str]:
    return [each["address"] for each in found["endpoints"]]


def test_the_exact_name_its_process_and_the_endpoint_that_answered(two_apps: Live) -> None:
    found = traced(two_apps, "blog.test/about?q=1")
    assert (found["app"], found["domain"], found["rule"]) == ("blog", "blog.test", "the exact name: blog.test")
    assert (found["location"], found["process"], found["port"]) == ("/", "web", two_apps.port)
    assert found["generation"] == found["serving"] == two_apps.generations.current_number()
    answer = found["answer"]
    assert (answer["status"], answer["app"], answer["upstream_addr"]) == (200, "blog", addresses(found))
    assert len(answer["request_id"]) == 32 and found["problems"] == []
    log = (two_apps.paths.log / "blog-access.log").read_text()
    assert answer["request_id"] in log and "router-trace/" in log
    path, _, line = found["server"].rpartition(":")
    assert Path(path).read_text().splitlines()[int(line) - 1] == "server {"


def test_the_longest_wildcard_answers_and_the_exact_name_before_it(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "*.blog.test")
    two_apps.done("domains:add", "shop", "*.a.blog.test")
    two_apps.done("domains:add", "blog", "x.a.blog.test")
    for host, app, rule in (
        ("b.blog.test", "blog", "the longest wildcard that fits: *.blog.test"),
        ("c.b.blog.test", "blog", "the longest wildcard that fits: *.blog.test"),
        ("y.a.blog.test", "shop", "the longest wildcard that fits: *.a.blog.test"),
        ("z.y.a.blog.test", "shop", "the longest wildcard that fits: *.a.blog.test"),
        ("X.A.blog.test", "blog", "the exact name: x.a.blog.test"),
    ):
        found = traced(two_apps, host)
        assert (found["app"], found["rule"], found["answer"]["app"]) == (app, rule, app), host


def test_an_unknown_host_is_3_and_the_nearest_domain_is_named(two_apps: Live) -> None:
    result = two_apps("trace", "blgo.test")
    assert result.code == 3
    assert "no app serves 'blgo.test'" in result.err and "did you mean blog.test?" in result.err
    assert "the default site: no app owns blgo.test" in result.out and "closed without an answer" in result.out
    found = traced(two_apps, "blgo.test", code=3)
    assert found["app"] is None and found["problems"] == [] and found["answer"]["status"] is None


def test_ports_processes_and_disabled_domains_are_explained(two_apps: Live, backend: Callable[[str], Backend], free_port: Any) -> None:
    port, api = free_port(), backend("api")
    two_apps.done("upstreams:add", "blog", f"api={api}")
    two_apps.done("ports:add", "blog", "http", f"http:{port}:api")
    found = traced(two_apps, "blog.test", "--port", port)
    assert (found["process"], addresses(found), found["answer"]["upstream_addr"]) == ("api", [str(api)], [str(api)])
    assert traced(two_apps, f"http://blog.test:{port}/x")["process"] == "api"
    found = traced(two_apps, "shop.test", "--port", port, code=3)
    assert "shop.test belongs to shop, which listens on" in found["rule"]
    two_apps.done("domains:disable", "shop")
    assert "shop.test belongs to shop, which serves no domains" in traced(two_apps, "shop.test", code=3)["rule"]


def test_an_app_without_instances_answers_itself(two_apps: Live) -> None:
    two_apps.done("upstreams:clear", "shop")
    found = traced(two_apps, "shop.test")
    assert found["itself"].startswith("502 ") and found["endpoints"] == []
    assert (found["answer"]["status"], found["answer"]["upstream_addr"]) == (502, [])


def test_an_endpoint_that_fails_and_the_one_that_answered_are_both_named(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    dead = backend("dead")
    address = str(dead)
    dead.close()
    two_apps.done("upstreams:add", "shop", address)
    tried = [traced(two_apps, "shop.test")["answer"]["upstream_addr"] for _ in range(4)]
    assert any(len(each) == 2 and each[0] == address for each in tried), tried


def test_what_nginx_does_against_the_state_is_9_and_both_are_said(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "moved.test")
    before = two_apps.generations.current_number()
    two_apps.done("domains:remove", "blog", "moved.test")
    two_apps.done("domains:add", "shop", "moved.test")
    two_apps.paths.current.unlink()
    two_apps.paths.current.symlink_to(f"generations/{before:06d}")
    result = two_apps("trace", "moved.test", "--format", "json")
    assert result.code == 9 and "contradict" in result.err, result
    found = result.json
    assert (found["app"], found["answer"]["app"]) == ("blog", "shop")
    assert f"nginx serves generation {before + 2}, and current is generation {before}" in found["problems"][0]
    assert found["problems"][1] == "nginx gave the request to app shop, the state says app blog"
    text = two_apps("trace", "moved.test").out
    assert "problem" in text and "app shop" in text


def test_an_endpoint_that_the_state_does_not_have_is_a_contradiction(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    before = two_apps.generations.current_number()
    other = backend("other")
    two_apps.done("upstreams:set", "shop", other)
    two_apps.paths.current.unlink()
    two_apps.paths.current.symlink_to(f"generations/{before:06d}")
    found = traced(two_apps, "shop.test", code=9)
    assert any(f"nginx asked {other}, and the state has" in problem for problem in found["problems"]), found


def test_a_stopped_proxy_is_not_asked(two_apps: Live) -> None:
    two_apps.done("proxy:stop")
    found = traced(two_apps, "blog.test")
    assert (found["app"], found["answer"], found["serving"]) == ("blog", None, None)
    assert found["notes"] == ["nginx does not run: only the state was looked at"]


def test_workers_whose_master_is_gone_are_asked(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "www.blog.test")  # there is an older generation
    assert two_apps.master
    current, orphans, pids = two_apps.generations.current_number(), two_apps.workers(), [two_apps.master, *two_apps.workers()]
    os.kill(pids[0], signal.SIGKILL)
    until(lambda: not is_alive(pids[0]))
    found = traced(two_apps, "blog.test")
    assert (found["answer"]["status"], found["answer"]["app"], found["serving"]) == (200, "blog", current)
    assert found["answer"]["upstream_addr"] == addresses(found) and found["problems"] == []
    (note,) = found["notes"]
    assert note.startswith(f"{len(orphans)} orphan worker") and note.endswith(", whose master is gone: router proxy:start")
    # what they serve is not what is current: not a reload mends that, but the start
    two_apps.paths.current.unlink()
    two_apps.paths.current.symlink_to(f"generations/{(current or 0) - 1:06d}")
    found = traced(two_apps, "blog.test", code=9)
    assert found["problems"][0].endswith(f"current is generation {(current or 0) - 1}: router proxy:start")
    two_apps.paths.current.unlink()
    two_apps.paths.current.symlink_to(f"generations/{current:06d}")
    for pid in pids[1:]:
        os.kill(pid, signal.SIGKILL)
    until(lambda: not two_apps.processes())
    result = two_apps("trace", "blog.test", "--format", "json")
    assert (result.code, result.json["app"], result.json["answer"], result.json["serving"]) == (13, "blog", None, None), result
    assert result.err.splitlines() == ["router: nginx should run and does not", "  router proxy:start"]


def test_orphans_that_do_not_listen_on_the_port_are_13(two_apps: Live, free_port: Callable[[], int]) -> None:
    def point(number: int | None) -> None:
        two_apps.paths.current.unlink()
        two_apps.paths.current.symlink_to(f"generations/{number or 0:06d}")

    before, port = two_apps.generations.current_number(), free_port()
    two_apps.done("ports:add", "blog", "http", f"http:{port}")
    after = two_apps.generations.current_number()
    point(before)
    two_apps.done("proxy:reload")
    master = two_apps.master
    assert master
    os.kill(master, signal.SIGKILL)
    until(lambda: not is_alive(master))
    point(after)
    result = two_apps("trace", "blog.test", "--port", port, "--format", "json")
    assert result.code == 13 and "router proxy:start" in result.err, result
    assert (result.json["app"], result.json["answer"]["error"], result.json["problems"]) == ("blog", "Connection refused", [])


def test_a_snippets_location_is_found_and_its_answer_told(two_apps: Live) -> None:
    two_apps.snippet("blog", "location /static/ { return 204; }\nlocation ~ \\.php$ { return 403; }\n")
    two_apps.done("reconcile", "blog")
    for path, location, status in (("/static/x", "/static/", 204), ("/a.php", "~ \\.php$", 403), ("/a", "/", 200)):
        found = traced(two_apps, f"blog.test{path}")
        assert (found["location"], found["answer"]["status"]) == (location, status), path


def test_json_logs_and_no_logs(two_apps: Live) -> None:
    two_apps.done("nginx:set", "blog", "log-format", "json")
    found = traced(two_apps, "blog.test")
    assert found["answer"]["upstream_addr"] == addresses(found) and len(found["answer"]["request_id"]) == 32
    two_apps.done("nginx:set", "shop", "access-log", "off")
    found = traced(two_apps, "shop.test")
    assert found["answer"]["status"] == 200 and found["problems"] == []
    assert found["notes"] == ["app shop writes no access log: which endpoint answered is not known"]
    two_apps.done("nginx:set", "shop", "access-log")
    two_apps.done("nginx:set", "shop", "log-format", "combined")
    found = traced(two_apps, "shop.test")
    assert (found["answer"]["app"], found["problems"]) == ("shop", [])
    assert found["notes"] == ["the access log is in a format of its own: which endpoint answered is not known"]
