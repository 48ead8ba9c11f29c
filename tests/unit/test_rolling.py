"""The batches of a deploy: every instance comes and goes once, and never more than so many at a time."""

from __future__ import annotations

import itertools
import random

from nginx_router.controller import Outcome
from nginx_router.events import Event
from nginx_router.handover import Options, Swap
from nginx_router.rolling import plan


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


def test_options_as_a_command_says_them() -> None:
    assert Options().words() == ""
    said = " --check '/it'\"'\"'s' --check-timeout 1.5 --drain 0 --websockets close --drain-strict"
    assert Options("/it's", 1.5, 0.0, strict=True, websockets="close").words() == said
