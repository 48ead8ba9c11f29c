"""Scale against a router that has no nginx: what a runner is asked for, what it answers, and what is stopped again."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

import pytest

from nginx_router import deploy as engine
from nginx_router.errors import ChecksFailed, Conflict, NotDrained, NotFound, PluginBroken, Refused, UsageProblem

from .fakes import a_runner, an_app, listening, never_drained, router, scale, upstreams

__all__ = ["listening", "never_drained", "router"]  # fixtures


def test_scale_routes_to_what_the_runner_answers_and_stops_the_rest(router: Any, listening: Callable[[], str]) -> None:
    kept, new = listening(), listening()
    an_app(router, f"{kept}\n10.0.0.1:80\n")
    a_runner(router, kept, new)
    done = scale(router, "web=2")
    assert router.plugins.of("scale")[0] == {
        "app": "blog", "action": "scale", "command": "as typed", "process": "web", "count": 2, "endpoints": [kept, "10.0.0.1:80"],
    }  # fmt: skip
    assert router.plugins.of("stop")[0]["endpoints"] == ["10.0.0.1:80"]
    assert [hook for hook, _ in router.plugins.told] == ["scale", "endpoints-retired", "stop"]
    assert (done.swap.retired, done.still_running) == (("10.0.0.1:80",), ())
    assert router.app("blog").counts == {"web": 2}


def test_what_could_not_be_stopped_is_told(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    a_runner(router, new)
    router.plugins.hooks["stop"] = lambda event: "10.0.0.2:80\n"
    assert scale(router, "web=1").still_running == ("10.0.0.2:80",)
    del router.plugins.hooks["stop"]
    a_runner2 = listening()
    router.plugins.hooks["scale"] = lambda event: a_runner2
    assert scale(router, "web=1").still_running == (new,)
    assert router.said[-1] == f"warning: no plugin stops instances (hook stop); still running: {new}"


def test_to_nothing_is_allowed(router: Any) -> None:
    an_app(router, "10.0.0.1:80\n", 'ports = ["http:9000"]\n')
    a_runner(router)
    assert scale(router, "web=0").swap.retired == ("10.0.0.1:80",)
    assert router.app("blog").endpoints == ()


def test_what_was_started_and_does_not_answer_is_stopped_again(router: Any, free_port: Callable[[], int]) -> None:
    an_app(router, "10.0.0.1:80\n")
    new = f"127.0.0.1:{free_port()}"
    a_runner(router, "10.0.0.1:80", new)
    with pytest.raises(ChecksFailed):
        scale(router, "web=2", check_timeout=0.1)
    assert router.plugins.of("stop")[0]["endpoints"] == [new]
    assert upstreams(router) == "10.0.0.1:80\n"
    assert router.app("blog").counts == {}


def test_a_signal_before_the_change_stops_what_was_started(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router)
    a_runner(router, new)
    router.before_change = lambda: os.kill(os.getpid(), signal.SIGTERM)
    with pytest.raises(SystemExit):
        scale(router, "web=1")
    assert router.plugins.of("stop")[0]["endpoints"] == [new]


@pytest.mark.usefixtures("never_drained")
def test_scaled_and_not_drained_stops_nothing(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router, "10.0.0.1:80\n")
    a_runner(router, new)
    with pytest.raises(NotDrained, match=r"^scaled as generation 42, not drained"):
        scale(router, "web=1", drain=0, strict=True)
    assert not router.plugins.of("stop")


@pytest.mark.parametrize("answer", ["", "started 3 of them\n", "10.0.0.7:80\nnonsense\n"])
def test_an_answer_that_cannot_be_used_is_the_runners_fault(router: Any, answer: str) -> None:
    an_app(router, "10.0.0.1:80\n")
    router.plugins.hooks |= {"scale": lambda event: answer, "stop": lambda event: ""}
    with pytest.raises(PluginBroken, match="plugin runner answered"):
        scale(router, "web=2")
    assert upstreams(router) == "10.0.0.1:80\n"
    assert [e["endpoints"] for e in router.plugins.of("stop")] == ([["10.0.0.7:80"]] if "10.0.0.7" in answer else [])


def test_a_runner_that_fails_at_the_second_process_loses_the_first(router: Any, listening: Callable[[], str]) -> None:
    web = listening()
    an_app(router)

    def run(event: dict[str, Any]) -> str:
        if event["process"] == "api":
            raise Refused("no memory")
        return web

    router.plugins.hooks |= {"scale": run, "stop": lambda event: ""}
    with pytest.raises(Refused):
        scale(router, "web=1", "api=1")
    assert router.plugins.of("stop")[0]["endpoints"] == [web]


def test_without_a_runner_the_way_by_hand_is_named(router: Any) -> None:
    an_app(router)
    with pytest.raises(NotFound) as caught:
        scale(router, "web=3")
    assert "apps:upstreams:add blog" in caught.value.hint


def test_a_locked_app_refuses_before_anybody_looks_for_a_runner(router: Any) -> None:
    an_app(router, toml='locked = "moving its database"\n')
    with pytest.raises(Conflict, match="moving its database"):
        scale(router, "web=3")


@pytest.mark.parametrize("word", ["web", "web=", "web=-1", "web=x", "3", "Web=1", "3=1", "web=²"])
def test_a_count_that_is_none_is_refused(word: str) -> None:
    with pytest.raises(UsageProblem):
        engine.counts_of([word])


def test_a_process_has_one_count() -> None:
    with pytest.raises(UsageProblem, match="web is named twice: web=1 and web=2"):
        engine.counts_of(["web=1", "api=1", "web=2"])


def test_a_runner_that_gives_another_number_is_routed_to_and_that_is_said(router: Any, listening: Callable[[], str]) -> None:
    new = listening()
    an_app(router)
    a_runner(router, new)
    scale(router, "web=2")
    assert upstreams(router) == f"{new}\n"
    assert "warning: the runner gave 1 endpoint of web, asked for 2" in router.said
    router.said.clear()
    scale(router, "web=1")
    assert not [line for line in router.said if "warning" in line]
