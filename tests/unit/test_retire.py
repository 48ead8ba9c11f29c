"""Drain and retire against a router that has no nginx: what is waited for and told, and that what serves again is nobody's to stop."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nginx_router import deploy as engine
from nginx_router import drain
from nginx_router.errors import Busy, NotDrained, NotFound
from nginx_router.handover import Handover, Options

from .fakes import a_runner, an_app, answered, deploy, listening, never_drained, retire, router, scale, upstreams

__all__ = ["listening", "never_drained", "router"]  # fixtures


# retire and drain


def test_drain_sets_the_flag_and_keeps_the_line(router: Any) -> None:
    an_app(router, "10.0.0.1:80 weight=2\n10.0.0.2:80\n")
    done = answered(lambda show: engine.drain_endpoints(router, "blog", ["10.0.0.1:80"], Options(), show))
    assert upstreams(router) == "10.0.0.1:80 weight=2 drain\n10.0.0.2:80\n"
    assert (done.swap.retired, done.still_running) == ((), ())


def test_drain_of_what_is_not_there_is_not_found(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotFound):
        engine.drain_endpoints(router, "blog", ["10.0.0.2:80"], Options(), lambda _: None)


def test_retire_drains_then_removes_and_tells(router: Any) -> None:
    an_app(router, "10.0.0.1:80\napi 10.0.0.1:80\n10.0.0.2:80\n")
    done = retire(router, "10.0.0.1:80")
    assert router.steps == ["change upstreams drain", "change upstreams remove"]
    assert upstreams(router) == "10.0.0.2:80\n"
    assert (done.swap.retired, done.still_running, done.swap.generation) == (("10.0.0.1:80",), ("10.0.0.1:80",), 43)
    assert router.plugins.of("endpoints-retired")[0]["endpoints"] == ["10.0.0.1:80"]


def test_retire_tells_only_of_those_that_still_drain(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")

    def let_in() -> None:
        if router.steps:  # the wait is over, and it was not seen to serve again
            (router.paths.app("blog") / "UPSTREAMS").write_text("10.0.0.1:80\n10.0.0.2:80 drain\n")

    router.before_change = let_in
    shown: list[Handover] = []
    with pytest.raises(NotDrained, match=r"^10\.0\.0\.1:80 does not drain any more: left on blog$"):
        engine.retire(router, "blog", ["10.0.0.1:80", "10.0.0.2:80"], Options(), shown.append)
    assert upstreams(router) == "10.0.0.1:80\n" and [each.still_running for each in shown] == [("10.0.0.2:80",)]
    assert [each["endpoints"] for each in router.plugins.of("endpoints-retired")] == [["10.0.0.2:80"]]


def test_a_removal_that_fails_is_not_drained_for_the_flag_is_set(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")

    def full() -> None:
        if router.steps:
            raise Busy("the host lock is held by pid 7", hint="it is free when that has ended")

    router.before_change = full
    with pytest.raises(NotDrained, match=r"^draining as generation 42, their lines are not removed: the host lock is held") as caught:
        engine.retire(router, "blog", ["10.0.0.1:80"], Options(), lambda _: pytest.fail("nothing was retired"))
    assert caught.value.hint == "again: router apps:retire blog 10.0.0.1:80"
    assert upstreams(router) == "10.0.0.1:80 drain\n10.0.0.2:80\n" and not router.plugins.told


def test_retiring_what_is_not_there_is_quiet(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n")
    assert retire(router, "10.0.0.2:80").swap.kind == "nothing"
    assert router.said == ["10.0.0.2:80 is not on blog"]
    assert upstreams(router) == "10.0.0.1:80\n"


@pytest.mark.usefixtures("never_drained")
def test_retiring_what_a_deploy_did_not_drain_waits_for_it(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"not drained: 10\.0\.0\.2:80$"):
        retire(router, "10.0.0.2:80", drain=0, strict=True)
    monkeypatch.setattr(drain, "held", lambda *_: {})
    assert retire(router, "10.0.0.2:80", "10.0.0.1:80").swap.retired == ("10.0.0.1:80",)


@pytest.mark.usefixtures("never_drained")
def test_not_drained_the_lines_stay_and_a_second_call_goes_on(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n")
    with pytest.raises(NotDrained, match=r"^draining as generation 42, not drained"):
        retire(router, "10.0.0.1:80", drain=0, strict=True)
    assert upstreams(router) == "10.0.0.1:80 drain\n"
    monkeypatch.setattr(drain, "held", lambda *_: {})
    assert retire(router, "10.0.0.1:80").swap.retired == ("10.0.0.1:80",)
    assert upstreams(router) == ""


# what serves again


def held_at(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Old workers hold two connections to each of these for ever."""
    monkeypatch.setattr(drain, "held", lambda workers, retired, ports: {1: 2 * len(retired.intersection(addresses))})


def served_at(router: Any, monkeypatch: pytest.MonkeyPatch, places: str, apps: Sequence[str], *, from_look: int = 0) -> None:
    """Other apps have this address, from that look on."""
    looks: list[None] = []

    def found(asked: Sequence[str]) -> Sequence[str]:
        looks.append(None)
        return apps if places in asked and len(looks) > from_look else []

    monkeypatch.setattr(router.generations, "served_at", found)


def test_drain_of_what_is_let_in_again_is_not_drained_whether_the_flag_was_new_or_not(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(router.generations, "served_at", lambda places: ["blog"] if "10.0.0.1:80" in places else [])
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    for _ in range(2):
        with pytest.raises(NotDrained, match=r"^10\.0\.0\.1:80 gets requests of blog again: not drained$"):
            engine.drain_endpoints(router, "blog", ["10.0.0.1:80", "10.0.0.2:80"], Options(), lambda _: None)


def test_what_another_app_serves_is_neither_told_nor_stopped_nor_waited_for(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    held_at(monkeypatch, "10.0.0.1:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"])
    done = scale(router, "web=1", drain=60, strict=True)
    assert (done.swap.retired, done.still_running, done.swap.left) == (("10.0.0.2:80",), (), 0)
    assert router.said[1:] == ["10.0.0.1:80 still serves shop: left running"], "no word of what is left there, which nobody stops"
    assert done.seconds < 10
    told = [event["endpoints"] for name in ("stop", "endpoints-retired") for event in router.plugins.of(name)]
    assert told == [["10.0.0.2:80"]] * 2
    an_app(router, "10.0.0.1:80\n", name="news")
    assert deploy(router, new, app="news", drain=60, strict=True).swap.retired == (), "nobody is to stop it, so that nothing is left"


def test_what_serves_again_behind_the_wait_is_not_counted(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n10.0.0.3:80\n")
    held_at(monkeypatch, "10.0.0.1:80", "10.0.0.3:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    done = deploy(router, listening(), drain=0.05)
    assert (done.swap.retired, done.swap.left) == (("10.0.0.2:80", "10.0.0.3:80"), 2)
    assert router.said[-2:] == ["10.0.0.1:80 still serves shop: left running", "2 connections left after 0.05 s on 10.0.0.2:80 10.0.0.3:80"]


@pytest.mark.parametrize("is_ended", [False, True])
def test_the_rest_is_drained_where_only_what_serves_again_held_it_up(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch, is_ended: bool
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    held_at(monkeypatch, "10.0.0.1:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM)) if is_ended else None
    if timer:
        timer.start()
    done = deploy(router, listening(), drain=20 if is_ended else 0.05, strict=True)
    assert (done.swap.retired, done.swap.left) == (("10.0.0.2:80",), 0), "what is drained is told, also strictly, also when a signal came"
    if timer:
        timer.join()


def test_a_signal_ends_the_wait_also_where_one_of_those_serves_again(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    held_at(monkeypatch, "10.0.0.2:80")
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=1)
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.2:80$"):
        deploy(router, listening(), drain=20)
    timer.join()


@pytest.mark.parametrize("begin", ["deploy", "scale", "retire"])
def test_what_another_app_gets_behind_the_wait_is_not_handed_out(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch, begin: str
) -> None:
    """While post-deploy hooks ran, or while the removal waited for the host lock."""
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    served_at(router, monkeypatch, "10.0.0.1:80", ["shop"], from_look=2)
    done = {
        "deploy": lambda: deploy(router, new),
        "scale": lambda: scale(router, "web=1"),
        "retire": lambda: retire(router, "10.0.0.1:80", "10.0.0.2:80"),
    }[begin]()
    assert done.swap.retired == ("10.0.0.2:80",) and set(done.still_running) <= {"10.0.0.2:80"}
    assert router.said[-1] == "10.0.0.1:80 still serves shop: left running"
    assert [event["endpoints"] for name in ("stop", "endpoints-retired") for event in router.plugins.of(name)] == [["10.0.0.2:80"]] * (
        2 if begin == "scale" else 1
    )


def test_a_retired_line_goes_and_what_another_app_serves_goes_on(router: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    monkeypatch.setattr(router.generations, "served_at", lambda places: ["news", "shop"] if "10.0.0.1:80" in places else [])
    assert retire(router, "10.0.0.1:80", "10.0.0.2:80").still_running == ("10.0.0.2:80",)
    assert upstreams(router) == "" and router.said == ["10.0.0.1:80 still serves news and shop: left running"]
