"""What a process found of late and need not find again: a few values, by what they were found for."""

from __future__ import annotations

from typing import Generic, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class Recent(Generic[K, V]):
    """The values that were put last, `most` of them; the oldest go."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._found: dict[K, V] = {}

    def get(self, key: K) -> V | None:
        """What was put for a key, if it is still there."""
        return self._found.get(key)

    def put(self, key: K, value: V) -> None:
        """Keep a value in place of that key's last one."""
        self._found.pop(key, None)  # the newest stands last
        self._found[key] = value
        for old in list(self._found)[: -self._most]:
            self._found.pop(old, None)  # another thread may have taken it away

    def clear(self) -> None:
        """Forget all of them."""
        self._found.clear()
