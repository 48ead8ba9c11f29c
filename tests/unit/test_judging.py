"""Whether a canary is to be aborted: what counts as an error of whom, and how many are too many."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from nginx_router.accesslog import Line
from nginx_router.judging import Aborted, Count, Judging, outcomes, verdict

CANARY, OLD = "10.0.0.9:80", "10.0.0.3:80"


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
        ((100, 50), (0, 0), 5.0, True),
        ((100, 100), (0, 0), 100.0, False),
    ],
)
def test_how_many_are_too_many(canary: tuple[int, int], others: tuple[int, int], most: float, is_aborted: bool) -> None:
    assert (verdict(Count(*canary), Count(*others), most) is not None) == is_aborted


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
