"""A bounded memory of a process: the newest stay."""

from __future__ import annotations

from nginx_router.recent import Recent


def test_the_oldest_go() -> None:
    recent: Recent[str, int] = Recent(2)
    for number, key in enumerate(("a", "b", "a", "c")):
        recent.put(key, number)
    assert [recent.get(key) for key in "abc"] == [2, None, 3]
    recent.clear()
    assert recent.get("a") is None
