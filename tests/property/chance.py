"""Values drawn by a seeded generator, put together as hypothesis puts strategies together.

A step is drawn from one number that hypothesis chose.  Drawn by hypothesis itself, choice by choice, a step costs more than
most commands do, and two thirds of 20,000 steps would be its bookkeeping; a failing sequence is shrunk by its steps all the same.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

T = TypeVar("T")
U = TypeVar("U")


class Some(Generic[T]):
    """Something that is drawn."""

    def __init__(self, draw: Callable[[random.Random], T]) -> None:
        self.draw = draw

    def map(self, make: Callable[[T], U]) -> Some[U]:
        """What `make` makes of it."""
        return Some(lambda rng: make(self.draw(rng)))

    def then(self, follow: Callable[[T], Some[U]]) -> Some[U]:
        """What `follow` draws for it."""
        return Some(lambda rng: follow(self.draw(rng)).draw(rng))


def always(value: T) -> Some[T]:
    """The same value each time."""
    return Some(lambda rng: value)


def one(values: Sequence[T]) -> Some[T]:
    """One of the values."""
    found = list(values)
    return Some(lambda rng: rng.choice(found))


def either(*each: Some[Any]) -> Some[Any]:
    """What one of these draws; one that is named twice is drawn twice as often."""
    return Some(lambda rng: rng.choice(each).draw(rng))


def several(of: Some[T], least: int, most: int) -> Some[list[T]]:
    """Some of them."""
    return Some(lambda rng: [of.draw(rng) for _ in range(rng.randint(least, most))])


def together(*parts: Some[Any]) -> Some[tuple[Any, ...]]:
    """One of each."""
    return Some(lambda rng: tuple(part.draw(rng) for part in parts))


def built(make: Callable[..., T], *parts: Some[Any]) -> Some[T]:
    """What `make` makes of one of each."""
    return together(*parts).map(lambda drawn: make(*drawn))


def text(alphabet: str, most: int) -> Some[str]:
    """A text of at most so many characters."""
    return several(one(alphabet), 0, most).map("".join)
