"""What hooks are told of an event that does not say itself what it changes."""

from __future__ import annotations

from typing import Any

import pytest

from nginx_router import told
from nginx_router.events import Event
from nginx_router.model import App, parse_app


def app(domains: str = "", upstreams: str = "", toml: str = "") -> App:
    return parse_app("blog", {"DOMAINS": domains, "UPSTREAMS": upstreams, "app.toml": toml})


def words(calls: list[told.Call]) -> list[tuple[Any, ...]]:
    return [(hook, event["action"], *(event[key] for key in ("domains", "endpoints") if key in event)) for hook, event in calls]


@pytest.mark.parametrize(
    ("before", "after", "wanted"),
    [
        (None, None, []),
        (None, app("a.com"), [("post-create", "take-up", ["a.com"])]),
        (None, app("", "10.0.0.1:80"), [("post-create", "take-up", []), ("post-upstreams-update", "add", ["10.0.0.1:80"])]),
        (app("a.com"), None, [("post-destroy", "take-up")]),
        (app("a.com\nb.com"), app("b.com\na.com"), []),
        (app("a.com"), app("a.com\nb.com\nc.com"), [("post-domains-update", "add", ["b.com", "c.com"])]),
        (app("a.com\nb.com"), app("b.com"), [("post-domains-update", "remove", ["a.com"])]),
        (app("a.com\nb.com"), app("b.com\nc.com"), [("post-domains-update", "set", ["b.com", "c.com"])]),
        (app("a.com", "", "domains = 'disabled'"), app("a.com"), [("post-domains-update", "enable", ["a.com"])]),
        (app("", "10.0.0.1:80\napi 10.0.0.1:80"), app("", "api 10.0.0.1:80"), [("post-upstreams-update", "remove", ["10.0.0.1:80"])]),
        (app("", "10.0.0.1:80"), app("", "10.0.0.1:80 down"), [("post-upstreams-update", "set", ["10.0.0.1:80"])]),
    ],
)
def test_an_edit_by_hand_is_told_by_what_it_changes_and_asked_of_no_gate(before: App | None, after: App | None, wanted: list[Any]) -> None:
    event = Event("take-up", "blog")
    assert words(told.notifies(event, before, after)) == wanted
    assert told.gates(event, before, after) == []
