"""The table of hooks: names, arguments, events, and what is generated from it."""

import json
import re

import pytest

from nginx_router.errors import NotFound
from nginx_router.hookspecs import API, COMMON, HOOKS, KEYS, KINDS, lookup, markdown, specifications

CONTRACT = {
    "gate": "pre-create pre-destroy pre-domains-update pre-deploy pre-scale pre-apply",
    "collect": "nginx-http-snippet nginx-server-snippet nginx-location-snippet template-dirs report-rows doctor-checks",
    "first": "nginx-app-template-source app-hostname certificate-for endpoint-resolve",
    "run": "scale stop",
    "notify": "post-create post-destroy post-rename post-domains-update post-upstreams-update post-deploy post-scale"
    " post-certs-update endpoints-retired post-apply apply-failed",
}


@pytest.mark.parametrize("kind", CONTRACT)
def test_every_promised_hook_is_there_with_its_kind(kind):
    assert {name for name, hook in HOOKS.items() if hook.kind == kind} == set(CONTRACT[kind].split())


def test_every_row_is_well_formed():
    for name, hook in HOOKS.items():
        assert re.fullmatch(r"[a-z]+(-[a-z]+)*", name)
        assert hook.python.isidentifier()
        assert hook.kind in KINDS
        assert hook.help
        assert set(hook.keys) <= set(KEYS)
        assert not set(hook.keys) & set(COMMON)
        hook.arguments(hook.complete({}))  # an event of nothing has all keys that the arguments need


ARGUMENTS = [
    ("pre-domains-update", {"action": "add", "domains": ["a.com", "*.b.com"]}, ["blog", "add", "a.com", "*.b.com"]),
    ("post-domains-update", {"action": "clear", "domains": []}, ["blog", "clear"]),
    (
        "pre-deploy",
        {"processes": {"web": {"old": ["10.0.0.1:80"], "new": ["10.0.0.2:80", "[::1]:80"]}, "api": {"old": [], "new": ["unix:/a"]}}},
        ["blog", "web=10.0.0.2:80", "web=[::1]:80", "api=unix:/a"],
    ),
    ("post-deploy", {"processes": {"web": {"old": ["10.0.0.1:80"], "new": []}}}, ["blog"]),
    ("pre-scale", {"process": "web", "count": 3}, ["blog", "web", "3"]),
    ("post-scale", {"process": "web", "count": 0}, ["blog", "web", "0"]),
    ("scale", {"process": "api", "count": 0}, ["blog", "api", "0"]),
    ("stop", {"endpoints": ["10.0.0.1:80", "10.0.0.2:80"]}, ["blog", "10.0.0.1:80", "10.0.0.2:80"]),
    ("endpoints-retired", {"endpoints": ["10.0.0.1:80"]}, ["blog", "10.0.0.1:80"]),
    ("post-rename", {"old_app": "weblog"}, ["weblog", "blog"]),
    ("pre-apply", {"generation": 41, "apps": ["blog"]}, ["41", "blog"]),
    ("post-apply", {"generation": 42, "apps": ["blog", "shop"]}, ["42", "blog", "shop"]),
    ("post-apply", {"apps": ["blog"]}, ["", "blog"]),
    ("apply-failed", {"apps": ["blog"], "generation": 42}, ["blog"]),
    ("pre-create", {}, ["blog"]),
    ("nginx-server-snippet", {}, ["blog"]),
    ("doctor-checks", {"app": None}, [""]),
]


@pytest.mark.parametrize(("name", "event", "expected"), ARGUMENTS)
def test_arguments(name, event, expected):
    hook = lookup(name)
    assert hook.arguments(hook.complete({"app": "blog", **event})) == expected


def test_complete_fills_what_is_missing_and_keeps_what_is_said():
    event = lookup("pre-deploy").complete({"app": "blog", "action": "deploy", "user": "ann", "hook": "wrong", "api": 99, "extra": 1})
    assert event["hook"] == "pre-deploy"
    assert event["api"] == API
    assert event["user"] == "ann"
    assert (event["processes"], event["retired"], event["extra"]) == ({}, [], 1)
    assert set(COMMON) <= set(event)
    assert list(event)[: len(COMMON)] == list(COMMON)[:2] + [k for k in COMMON if k not in ("api", "hook")]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", event["time"])
    assert json.loads(json.dumps(event)) == event


def test_two_events_do_not_share_their_empty_lists():
    lookup("stop").complete({})["endpoints"].append("10.0.0.1:80")
    assert lookup("stop").complete({})["endpoints"] == []


def test_an_unknown_hook_names_the_nearest():
    with pytest.raises(NotFound, match="did you mean pre-deploy"):
        lookup("pre-deplyo")


def test_pluggy_takes_the_table():
    import pluggy

    manager = pluggy.PluginManager("router")
    manager.add_hookspecs(specifications())
    for hook in HOOKS.values():
        caller = getattr(manager.hook, hook.python)
        assert caller.spec.argnames == ("event",)
        assert caller.spec.function.__doc__ == hook.help


def test_the_reference_has_every_hook_and_key():
    text = markdown()
    for name in (*HOOKS, *COMMON, *KEYS):
        assert f"`{name}`" in text
    for kind, meaning in KINDS.items():
        assert f"## {kind}" in text
        assert meaning in text
