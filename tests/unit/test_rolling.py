"""The batches of a deploy: every instance comes and goes once, and never more than so many at a time."""

from __future__ import annotations

import itertools
import random
import shutil
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from nginx_router import drain, rolling
from nginx_router.controller import Outcome
from nginx_router.errors import NotDrained
from nginx_router.events import Event
from nginx_router.handover import Handover, Options, Swap
from nginx_router.rolling import plan

from .fakes import an_app, listening, router

__all__ = ["listening", "router"]  # fixtures


def test_two_at_a_time() -> None:
    now, wanted = {"web": ["a", "b", "c"]}, {"web": ["x", "b", "y", "z"]}
    assert plan(now, wanted, 1) == [{"web": ["b", "c", "x"]}, {"web": ["b", "x", "y"]}, {"web": ["b", "x", "y", "z"]}]
    assert plan(now, wanted, 9) == [{"web": ["b", "x", "y", "z"]}]
    assert plan(now, now, 2) == [now], "what is so already is one batch, in which they are checked"
    assert plan({"web": ["a"], "api": []}, {"web": ["x"], "api": ["p", "q"]}, 1) == [
        {"web": ["x"], "api": ["p"]},
        {"web": ["x"], "api": ["p", "q"]},
    ]


def test_whatever_comes_and_goes() -> None:
    some = random.Random(1)  # the same each time
    for _ in range(300):
        now = {"web": [f"old{n}" for n in range(some.randrange(9))]}
        wanted = {"web": some.sample(now["web"], some.randrange(len(now["web"]) + 1)) + [f"new{n}" for n in range(some.randrange(9))]}
        size = some.randrange(1, 5)
        batches = [now, *plan(now, wanted, size)]
        assert sorted(batches[-1]["web"]) == sorted(wanted["web"])
        for before, after in itertools.pairwise(batches):
            came, went = {*after["web"]} - {*before["web"]}, {*before["web"]} - {*after["web"]}
            assert len(came) <= size and len(went) <= size
        assert all(len(each["web"]) >= min(len(now["web"]), len(wanted["web"])) for each in batches), "never fewer than before and after"


def test_swaps_behind_each_other_add_up() -> None:
    first, second = Outcome(Event("deploy", "blog"), "blog"), Outcome(Event("deploy", "blog"), "blog", 8)
    one, two = Swap(7, "endpoints", ("a",), 2, 3, (first,)), Swap(8, "nothing", ("b",), 20, 30, (second,))
    assert one.and_then(two) == Swap(8, "endpoints", ("a", "b"), 22, 33, (first, second))


@pytest.mark.parametrize("why", ["apps/blog/DOMAINS", "no app 'blog'"])
def test_an_app_that_cannot_be_read_any_more_ends_it_as_any_failure_behind_the_first_batch(
    router: Any, listening: Callable[[], str], why: str
) -> None:
    directory = an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    new = [listening(), listening()]
    told: list[str] = []

    def tell(retired: Sequence[str]) -> None:
        told.extend(retired)
        if "DOMAINS" in why:
            (directory / "DOMAINS").write_text("no domain at all\n")
        else:
            shutil.rmtree(directory)

    with pytest.raises(NotDrained, match=rf"^deployed in part, batch 2 of 2 is not: .*{why}") as caught:
        rolling.deploy(router, "blog", {"web": new}, 1, Options(), tell, lambda _: pytest.fail("it is not done"))
    assert router.said[-1] == f"app blog serves {new[0]} (new) and 10.0.0.2:80 (old) as of batch 1 of 2"
    on, back = (f"router apps:deploy blog {' '.join(each)} --batch 1" for each in (new, ["10.0.0.1:80", "10.0.0.2:80"]))
    assert caught.value.hint == f"go on: {on}; or back: {back}"
    assert told == ["10.0.0.1:80"]


def test_a_batch_that_is_not_drained_serves(router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    new = [listening(), listening()]
    monkeypatch.setattr(drain, "held", lambda *_: {1: 2})
    with pytest.raises(NotDrained, match=r"^deployed as generation 42, not drained: 10\.0\.0\.1:80$"):
        rolling.deploy(router, "blog", {"web": new}, 1, Options(drain=0, strict=True), lambda _: None, lambda _: None)
    assert router.said[-1] == f"app blog serves {new[0]} (new) and 10.0.0.2:80 (old) as of batch 1 of 2"


def test_what_another_app_gets_while_hooks_run_is_not_handed_out(
    router: Any, listening: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    an_app(router, "10.0.0.1:80\n10.0.0.2:80\n")
    looks = itertools.count()
    monkeypatch.setattr(router.generations, "served_at", lambda places: ["shop"] if "10.0.0.1:80" in places and next(looks) > 1 else [])
    told: list[Sequence[str]] = []
    shown: list[Handover] = []
    rolling.deploy(router, "blog", {"web": [listening(), listening()]}, 1, Options(), told.append, shown.append)
    assert told == [(), ("10.0.0.2:80",)] and shown[0].as_json()["retired"] == ["10.0.0.2:80"]
    assert "10.0.0.1:80 still serves shop: left running" in router.said


def test_options_as_a_command_says_them() -> None:
    assert Options().words() == ""
    said = " --check '/it'\"'\"'s' --check-timeout 1.5 --drain 0 --websockets close --drain-strict"
    assert Options("/it's", 1.5, 0.0, strict=True, websockets="close").words() == said
