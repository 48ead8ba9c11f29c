"""Deploys against a router that has no nginx: the order of things, and what failures leave."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import pytest

from nginx_router import deploy as engine
from nginx_router.errors import Busy, ChecksFailed, Conflict, NotDrained, NotFound, Refused, UsageProblem
from nginx_router.events import Event
from nginx_router.handover import Handover, Options
from nginx_router.model import parse_app
from nginx_router.plugins import Plugins

from .fakes import FakeOutcome, a_runner, an_app, deploy, listening, never_drained, retire, router, scale, upstreams

__all__ = ["listening", "never_drained", "router"]  # fixtures


def test_new_instances_take_over_and_the_old_ones_are_told(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "# mine\n10.0.0.1:80\napi 10.0.0.9:80\n")
    done = deploy(router, new)
    assert upstreams(router) == f"# mine\n{new}\napi 10.0.0.9:80\n"
    assert router.steps == ["gate deploy", "change deploy"]
    assert done.as_json() | {"seconds": 0} == {
        "app": "blog",
        "generation": 42,
        "serving": 42,
        "kind": "endpoints",
        "retired": ["10.0.0.1:80"],
        "forced": 0,
        "reloads": 1,
        "closed_connections": 3,
        "kept_connections": 2,
        "websockets": 0,
        "seconds": 0,
        "still_running": ["10.0.0.1:80"],
        "canary": None,
    }
    assert router.plugins.of("endpoints-retired") == [
        {"app": "blog", "action": "retire", "command": "as typed", "endpoints": ["10.0.0.1:80"]}
    ]


def test_several_processes_are_one_swap(router: Any, listening: Callable[[], str]) -> None:
    web, api = listening(), listening()
    an_app(router, "10.0.0.1:80\napi 10.0.0.2:80\nworker 10.0.0.3:80\n")
    done = deploy(router, web, f"api={api}")
    assert set(done.swap.retired) == {"10.0.0.1:80", "10.0.0.2:80"}
    assert upstreams(router) == f"{web}\napi {api}\nworker 10.0.0.3:80\n"


def test_an_equal_address_keeps_its_flags(router: Any, listening: Callable[[], str]) -> None:
    kept, new = listening(), listening()
    an_app(router, f"{kept} weight=3 backup  # slow\n10.0.0.1:80 weight=5\n")
    assert deploy(router, kept, new).swap.retired == ("10.0.0.1:80",)
    assert upstreams(router) == f"{kept} weight=3 backup  # slow\n{new}\n"


def test_what_was_draining_gets_requests_again_when_a_deploy_names_it(router: Any, listening: Callable[[], str]) -> None:
    named, other, passing = listening(), listening(), listening()
    an_app(router, f"{named} weight=3 drain\n{other} down\napi {other} drain\n")
    assert deploy(router, named, other).swap.retired == ()
    assert upstreams(router) == f"{named} weight=3\n{other}\napi {other} drain\n", "the other process was not named"
    router.plugins.hooks["scale"] = lambda event: f"{named}\n{passing}\n"
    (router.paths.app("blog") / "UPSTREAMS").write_text(f"{named} drain\n")
    scale(router, "web=2")
    assert upstreams(router) == f"{named} drain\n{passing}\n", "a scale names no instance"


def test_the_same_set_again_is_checked_and_changes_nothing(router: Any, listening: Callable[[], str]) -> None:
    same = listening()
    an_app(router, f"{same}\n")
    done = deploy(router, same)
    assert (done.swap.kind, done.swap.retired, done.still_running) == ("nothing", (), ())
    assert router.said[0].startswith(f"{same}: accepts connections")
    assert not router.plugins.of("endpoints-retired")


def test_an_instance_that_does_not_answer_changes_nothing(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(ChecksFailed, match="Connection refused"):
        deploy(router, f"127.0.0.1:{free_port()}", check_timeout=0.1)
    assert upstreams(router) == "10.0.0.1:80\n"
    assert router.steps == ["gate deploy"]


def test_a_refusal_comes_before_the_checks(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router)

    def refuse(event: Event) -> None:
        raise Refused("not today")

    router.refuse = refuse
    with pytest.raises(Refused):
        deploy(router, f"127.0.0.1:{free_port()}")
    assert router.said == []


def test_while_a_canary_is_under_way_neither_a_deploy_nor_a_scale_begins(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80 canary\n")
    router.plugins.hooks["scale"] = lambda event: "10.0.0.3:80\n"
    for begin in (lambda: deploy(router, "10.0.0.3:80"), lambda: scale(router, "web=2")):
        with pytest.raises(Conflict, match="canary under way"):
            begin()
    assert router.steps == [], "no gate, no check, no runner was asked"
    assert router.plugins.of("scale") == []


def test_a_locked_app_refuses_before_all_else_with_its_reason(router: Any) -> None:
    an_app(router, toml='locked = "moving its database"\n')
    with pytest.raises(Conflict, match="moving its database"):
        deploy(router, "127.0.0.1:1")
    assert router.steps == []


def test_an_app_that_does_not_exist_is_named(router: Any) -> None:
    an_app(router)
    with pytest.raises(NotFound, match=r"no app 'blok'; did you mean blog\?"):
        deploy(router, "127.0.0.1:1", app="blok")


def test_create_makes_the_app_with_its_first_domains(router: Any, listening: Callable[[], str]) -> None:
    router.paths.global_domains.write_text("example.com\n")
    new = listening()
    deploy(router, new, app="shop", create=True)
    assert upstreams(router, "shop") == f"{new}\n"
    assert (router.paths.app("shop") / "DOMAINS").read_text() == "shop.example.com\n"
    assert deploy(router, new, app="shop", create=True).swap.kind == "nothing"


def test_the_check_asks_for_the_first_exact_domain(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine.checks, "run", lambda *args: asked.append(args))
    an_app(router)
    deploy(router, "10.0.0.1:80", check="/up", check_timeout=7)
    ((_, check),) = asked[0][1]
    assert (check.path, check.host, check.timeout, check.statuses) == ("/up", "blog.example.com", 7, ((200, 399),))


def test_the_check_is_as_the_files_say_and_the_commands_own_word_counts_first(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(engine.checks, "run", lambda *args: asked.append(args[1]))
    keys = Plugins(router.paths, router.said.append, dict).tables()
    monkeypatch.setattr(router, "tables", lambda: keys)
    monkeypatch.setattr(router, "app", lambda name: parse_app(name, router.store.texts(name) or {}, keys))
    monkeypatch.setattr(router, "parse", lambda name, texts: parse_app(name, texts, keys))
    directory = an_app(router)
    (directory / "app.toml").write_text('[checks]\npath = "/up"\nstatus = 204\ntimeout = 2\n[checks.api]\npath = "off"\nhost = "a.io"\n')
    deploy(router, "10.0.0.1:80", "api=10.0.0.2:80")
    (_, web), (_, api) = asked[0]
    assert (web.path, web.host, web.each, web.statuses) == ("/up", "blog.example.com", 2, ((204, 204),))
    assert (api.path, api.host, api.each) == (None, "a.io", 2)
    deploy(router, "10.0.0.3:80", "api=10.0.0.4:80", check="/own")
    assert [(check.path, check.host, check.each, check.statuses) for _, check in asked[1]] == [
        ("/own", "blog.example.com", None, ((200, 399),)),
        ("/own", "a.io", None, ((200, 399),)),
    ]
    deploy(router, "10.0.0.5:80", "api=10.0.0.5:80")
    assert [(address.text, check.path) for address, check in asked[2]] == [("10.0.0.5:80", "/up"), ("10.0.0.5:80", None)]


def test_endpoints_that_were_changed_during_the_checks_are_a_conflict(router: Any, listening: Callable[[], str]) -> None:
    directory = an_app(router, "10.0.0.1:80\n")
    router.before_change = lambda: (directory / "UPSTREAMS").write_text("10.0.0.5:80\n")
    with pytest.raises(Conflict, match="changed during the checks"):
        deploy(router, listening())


def test_what_was_made_during_the_checks_already_is_none(router: Any, listening: Callable[[], str]) -> None:
    directory, new = an_app(router, "10.0.0.1:80\n"), listening()
    router.before_change = lambda: (directory / "UPSTREAMS").write_text(f"{new} weight=2\n")
    deploy(router, new)
    assert (directory / "UPSTREAMS").read_text() == f"{new} weight=2\n"


def test_a_second_deploy_of_the_same_app_is_told_who_is_at_it(router: Any, listening: Callable[[], str]) -> None:
    an_app(router)
    an_app(router, name="shop")
    script = """
import sys; from pathlib import Path; from nginx_router.files import FileLock
FileLock(Path(sys.argv[1])).acquire(1, "")
print(flush=True); input()"""
    (router.paths.run / "deploy").mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", script, str(router.paths.run / "deploy/blog.lock")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout and other.stdout.readline()
        with pytest.raises(Busy, match=rf"app blog is being deployed by pid {other.pid} "):
            deploy(router, listening())
        deploy(router, listening(), app="shop")
        other.communicate(b"\n", timeout=10)
    deploy(router, listening())


def test_the_apps_lock_is_held_until_the_answer_is_given(router: Any, listening: Callable[[], str]) -> None:
    an_app(router)

    def again(_: Handover) -> None:
        with pytest.raises(Busy):
            engine.deploy(router, "blog", {"web": ["127.0.0.1:1"]}, Options(), lambda _: None)

    engine.deploy(router, "blog", {"web": [listening()]}, Options(), again)


@pytest.mark.usefixtures("never_drained")
def test_at_the_deadline_the_old_are_told_all_the_same_and_what_was_left_is_counted(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")
    done = deploy(router, listening(), drain=0.05)
    assert (done.swap.left, done.still_running) == (2, ("10.0.0.1:80",))
    assert router.said[-1] == "2 connections left after 0.05 s on 10.0.0.1:80"


@pytest.mark.usefixtures("never_drained")
def test_strict_is_deployed_and_not_drained(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.1:80$"):
        deploy(router, new, drain=0.05, strict=True)
    assert upstreams(router) == f"{new}\n"
    assert not router.plugins.of("endpoints-retired")


@pytest.mark.usefixtures("never_drained")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_during_the_wait_ends_the_wait_alone(router: Any, listening: Callable[[], str], number: int) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    before = signal.getsignal(number)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), number))
    timer.start()
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.1:80$"):
        deploy(router, new, drain=20)
    timer.join()
    assert upstreams(router) == f"{new}\n"
    assert signal.getsignal(number) is before


@pytest.mark.usefixtures("never_drained")
def test_a_signal_that_the_controller_swallows_ends_the_wait(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")

    def taken() -> None:  # by a leader: what is taken is done
        with contextlib.suppress(SystemExit):
            os.kill(os.getpid(), signal.SIGTERM)

    router.before_change = taken
    with pytest.raises(NotDrained):
        deploy(router, listening(), drain=20)


def test_a_signal_before_the_change_ends_the_command(router: Any, listening: Callable[[], str]) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.before_change = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit) as ended:
        deploy(router, listening())
    assert ended.value.code == 143
    assert upstreams(router) == "10.0.0.1:80\n"


@pytest.mark.parametrize("options", [{"drain": -1}, {"drain": float("nan")}, {"check": "up"}, {"check_timeout": 0}])
def test_options_that_mean_nothing_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(UsageProblem):
        Options(**options)


# what is told of nothing


def test_a_dry_run_writes_nothing_and_retires_nothing(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.request.dry_run = True
    monkeypatch.setattr(router, "change", lambda events, **_: [FakeOutcome(events[0], 41, "endpoints", {})])
    assert deploy(router, "127.0.0.1:1").still_running == ()
    assert retire(router, "10.0.0.1:80").still_running == ()
    a_runner(router)
    engine.scale(router, "blog", {"web": 1}, Options(), lambda _: None)
    assert not router.plugins.told
    assert not (router.paths.run / "deploy").exists()
