"""Whether a canary is to be aborted: what counts as an error of whom, and how many are too many."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from nginx_router.accesslog import Line
from nginx_router.judging import Aborted, Count, Judging, _Trial, outcomes, verdict

CANARY, OLD = "10.0.0.9:80", "10.0.0.3:80"
NONE = Count()


@pytest.mark.parametrize(
    ("status", "tried", "expected"),
    [
        (200, [CANARY], [(True, False)]),
        (404, [CANARY], [(True, False)]),
        (500, [CANARY], [(True, True)]),
        (503, [OLD], [(False, True)]),
        (200, [CANARY, OLD], [(True, True), (False, False)]),  # the canary had no answer
        (502, [CANARY, OLD], [(True, True), (False, True)]),
        (502, ["router_canary_blog.web"], []),
        (200, [], []),
    ],
)
def test_who_failed(status: int, tried: list[str], expected: list[tuple[bool, bool]]) -> None:
    line = Line("blog.test", "GET / HTTP/1.1", status, 0.1, tuple((address, 0.1) for address in tried))
    assert list(outcomes(line, {CANARY}, {OLD})) == expected


@pytest.mark.parametrize(
    ("canary", "others", "most", "is_aborted"),
    [
        ((20, 2), (200, 0), 5.0, True),
        ((19, 19), (200, 0), 5.0, False),  # too few to say
        ((100, 5), (900, 0), 5.0, False),  # as many as may be
        ((100, 6), (900, 0), 5.0, True),
        ((100, 50), (900, 450), 5.0, False),  # it is not the canary
        ((100, 50), (0, 0), 5.0, True),  # what is allowed decides alone
        ((100, 50), (1, 0), 5.0, True),
        ((100, 100), (0, 0), 100.0, False),
    ],
)
def test_how_many_are_too_many(canary: tuple[int, int], others: tuple[int, int], most: float, is_aborted: bool) -> None:
    assert (verdict(Count(*canary), Count(*others), most) is not None) == is_aborted


@pytest.mark.parametrize(
    ("canary", "others", "most", "row", "is_aborted"),
    [
        ((4, 4), (200, 0), 5.0, 4, False),
        ((5, 5), (200, 0), 5.0, 5, True),
        ((1, 1), (200, 0), 5.0, 5, True),  # all within longer than counts: few come to it
        ((1, 1), (0, 0), 5.0, 1, False),
        ((12, 5), (200, 0), 5.0, 3, False),
        ((5, 5), (200, 20), 5.0, 5, False),  # the others fail as well: so few say nothing
        ((5, 5), (0, 0), 5.0, 5, True),
        ((900, 10), (900, 0), 5.0, 5, False),  # in a row, among many that were good
        ((5, 5), (200, 0), 100.0, 5, False),
    ],
)
def test_a_few_in_a_row_are_enough(canary: tuple[int, int], others: tuple[int, int], most: float, row: int, is_aborted: bool) -> None:
    assert (verdict(Count(*canary), Count(*others), most, row) is not None) == is_aborted


def a_trial(alone: Sequence[str] = ()) -> _Trial:
    return _Trial("state", frozenset({CANARY}), frozenset({OLD}), 5.0, [], alone=alone)


def counted(trial: _Trial, now: float, canary: Count, others: Count = NONE) -> _Trial:
    answers = [(CANARY, n < canary.errors) for n in range(canary.answers)] + [(OLD, n < others.errors) for n in range(others.answers)]
    lines = [
        f'{{"status": {500 if failed else 200}, "request_time": 0.1, "upstream_addr": "{address}", "upstream_response_time": "0.1"}}'
        for address, failed in answers
    ]
    trial.logs = [SimpleNamespace(lines=lambda: lines)]  # type: ignore[list-item]  # as a log, but without a file
    trial.read(now)
    trial.logs = []
    return trial


def test_what_the_others_answered_last_is_what_one_at_100_percent_is_compared_with() -> None:
    trial = counted(a_trial(), 1000, Count(30, 0), Count(300, 3))
    assert counted(trial, 1200, Count(30, 30)).reason() is not None, "long after that"
    assert (counted(a_trial(), 1200, Count(30, 30)).reason() or "").endswith("within 60 s, and none was asked of the others")
    failing = counted(a_trial(), 1000, Count(30, 0), Count(100, 100))
    assert counted(failing, 1010, Count(0), Count(100, 0)).seconds_of_others and counted(failing, 1200, Count(30, 15)).reason() is None
    assert counted(counted(failing, 1300, Count(0), Count(1, 0)), 1301, Count(30, 15)).reason() is not None, "they are well since"


def test_one_that_nginx_asks_again_only_now_and_then_is_known_by_its_row() -> None:
    trial = a_trial()
    for number in range(4):
        assert counted(trial, 1000 + 25 * number, Count(1, 1), Count(50, 0)).reason() is None, number
    assert trial.reason() is None
    said = "the last 5 answers of the canary were errors, 0.0% of 150 of the others"
    assert counted(trial, 1100, Count(1, 1), Count(50, 0)).reason() == said
    assert counted(trial, 1110, Count(1, 0)).reason() is None, "it answered"


def test_why_one_that_fails_is_left_is_said_once() -> None:
    said = "blog: its canary is not aborted, without it no web instance would get requests (router apps:deploy blog --promote): "
    talk: list[str] = []
    router: Any = SimpleNamespace(index=lambda: None)
    judging = Judging(router, lambda _: None, tell=talk.append, say=talk.append)
    judging._trials["blog"] = counted(a_trial(["web"]), time.monotonic(), Count(40, 30))
    for _ in range(3):
        judging.judge()
    assert len(talk) == 1 and talk[0].startswith(said) and "75.0% of 40 answers of the canary were errors within 60 s" in talk[0]


def test_the_reason_has_the_numbers() -> None:
    assert (
        verdict(Count(40, 12), Count(300, 3), 5.0) == "30.0% of 40 answers of the canary were errors within 60 s, 1.0% of 300 of the others"
    )


@pytest.mark.parametrize(
    ("code", "err", "said"),
    [
        (5, "router: pid 7 has the lock\n  it is free when that has ended\n", "pid 7 has the lock (it is free when that has ended)"),
        (8, "a note: of a plugin\nrouter: nginx rejected it\n", "nginx rejected it"),
        (1, "Segmentation fault\n", "Segmentation fault"),
        (1, "", "exit 1"),
    ],
)
def test_why_it_was_not_aborted_is_said_once_with_what_to_do(code: int, err: str, said: str) -> None:
    talk: list[str] = []
    router: Any = SimpleNamespace(index=lambda: None)
    judging = Judging(router, lambda _: None, tell=talk.append, say=talk.append)
    for _ in range(2):
        judging.ended(Aborted("blog", code, "", err))
    assert talk == [f"blog: its canary was not aborted: {said}"]
