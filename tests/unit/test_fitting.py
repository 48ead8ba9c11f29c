"""Which changes fit together: each for itself, then again behind those that made room, at last together."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from nginx_router.errors import Conflict, UsageProblem
from nginx_router.fitting import fit


class Seats:
    """Each change (`who`, `seat`) takes a seat and leaves the one it had; a seat that is taken is a conflict."""

    def __init__(self, **seats: str) -> None:
        self.seats, self.tried = seats, list[tuple[str, ...]]()

    def apply(self, changes: Sequence[str]) -> None:
        self.tried.append(tuple(changes))
        wanted = dict(change.split(">") for change in changes)
        if "nowhere" in wanted.values():
            raise UsageProblem("there is no such seat")
        after = {**self.seats, **wanted}
        if len(set(after.values())) < len(after):
            raise Conflict("somebody sits there")
        self.seats = after


def test_what_is_free_when_another_has_moved_is_taken_behind_it() -> None:
    seats = Seats(a="1", b="2", c="3")
    assert fit(["a>2", "b>3", "c>4"], seats.apply) == []
    assert seats.seats == {"a": "2", "b": "3", "c": "4"}


def test_those_who_exchange_are_applied_together() -> None:
    seats = Seats(a="1", b="2")
    assert fit(["a>2", "b>1"], seats.apply) == []
    assert seats.seats == {"a": "2", "b": "1"}


def test_what_cannot_be_is_said_with_its_own_reason_and_keeps_nobody_else() -> None:
    seats = Seats(a="1", b="2", c="3")
    failed = fit(["a>2", "c>nowhere", "b>4"], seats.apply)
    assert [(change, type(why)) for change, why in failed] == [("c>nowhere", UsageProblem)]
    assert seats.seats == {"a": "2", "b": "4", "c": "3"}
    assert seats.tried.count(("c>nowhere",)) == 1, "only a conflict may end by itself"


@pytest.mark.parametrize("changes", [["a>2"], ["a>2", "c>2"]])
def test_a_conflict_that_nobody_ends_is_said(changes: list[str]) -> None:
    seats = Seats(a="1", b="2", c="3")
    failed = fit(changes, seats.apply)
    assert [change for change, _ in failed] == changes and all(isinstance(why, Conflict) for _, why in failed)
    assert seats.seats == {"a": "1", "b": "2", "c": "3"}
