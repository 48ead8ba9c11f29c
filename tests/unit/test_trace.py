"""What may be traced, and which location nginx takes."""

from __future__ import annotations

from typing import Any

import pytest

from nginx_router.errors import UsageProblem
from nginx_router.routing import Target, _location, target


@pytest.mark.parametrize(
    ("text", "port", "found"),
    [
        ("blog.test", None, Target("blog.test")),
        ("Blog.TEST/a/b?c=d", 9000, Target("blog.test", "/a/b?c=d", 9000)),
        ("http://blog.test:9000/a#part", None, Target("blog.test", "/a", 9000)),
        ("müller.test", None, Target("xn--mller-kva.test")),
    ],
)
def test_a_host_a_path_or_a_url(text: str, port: int | None, found: Target) -> None:
    assert target(text, port) == found


@pytest.mark.parametrize(
    ("text", "port", "words"),
    [
        ("blog.test:80", None, "holds a port"),
        ("*.blog.test", None, "is a pattern"),
        ("http://blog.test:80/", 81, "one port"),
        ("blog.test/ä", None, "is not a path"),
        ("blog.test/a b", None, "is not a path"),
        ("blog.test/a\r\nX: y", None, "is not a path"),
        ("a..b", None, "is not a domain"),
        ("blog.test", 70000, "is not a port"),
    ],
)
def test_what_cannot_be_asked_for_is_refused(text: str, port: int | None, words: str) -> None:
    with pytest.raises(UsageProblem, match=words):
        target(text, port)


def test_locations_by_nginxs_rules() -> None:
    def block(*locations: str) -> list[dict[str, Any]]:
        return [{"directive": "location", "args": text.split(), "block": []} for text in locations]

    every = block("/", "= /", "/images/", "^~ /images/raw/", "~ \\.png$", "~* \\.JPG$")
    for path, taken in (
        ("/", "= /"),
        ("/x", "/"),
        ("/images/a.gif", "/images/"),
        ("/images/a.png", "~ \\.png$"),
        ("/images/raw/a.png", "^~ /images/raw/"),
        ("/a.jpg", "~* \\.JPG$"),
        ("/a.PNG", "/"),
    ):
        found = _location(every, path)
        assert found is not None and " ".join(found["args"]) == taken, path
    assert _location(block("/a"), "/b") is None
