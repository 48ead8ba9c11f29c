"""Random sequences of changes, the same for the same seed: whatever is asked in whatever order, these things hold."""

from __future__ import annotations

import json
import random
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from nginx_router import lines
from nginx_router.errors import RouterError
from nginx_router.events import Event, reduce
from nginx_router.model import Facts, Globals, HostFacts, Texts, parse_app
from nginx_router.render import Include, Renderer
from nginx_router.upstreams import endpoint_lines

from ..conftest import World

APPS = ("blog", "shop", "my.app", "news")
DOMAINS = ("a.com", "*.a.com", "b.com", "xn--bcher-kva.example", "www.b.com", "blog.example.com", "shop.example.com")
ADDRESSES = ("10.0.0.1:80", "10.0.0.2:80", "[fd00::1]:80", "unix:/run/a.sock", "web1.lan:80")
HAND_MADE = {
    "DOMAINS": "# the names\n\nBücher.example   # in our script\nB.com\n\n# end",
    "UPSTREAMS": "# instances\r\n\n  10.0.0.1:80  weight=2\t# first\nweb 10.0.0.1:80\n\napi   10.0.0.2:80 backup # b\n",
    "app.toml": "# settings\nports = ['http', 'http:9001:api']   # two\n\n[nginx]\n# ours\nproxy-keepalive = 8 # few\n\n[count]\nweb = 2\n",
}


def host() -> World:
    """A host whose one app was made by hand."""
    return World({"blog": HAND_MADE}, "# host\n[proxy]\nhttp-port = 8081 # p\n", "# ours\nexample.com\n")


def some_event(rng: random.Random, world: World) -> Event:
    app = rng.choice(APPS)
    names = rng.sample(DOMAINS, rng.randint(0, 3))
    addresses = rng.sample(ADDRESSES, rng.randint(0, 3))
    process = rng.choice(["web", "api"])
    endpoints = [f"{process} {a}{rng.choice(['', '', ' weight=3', ' backup', ' down'])}" for a in addresses]
    text = (world.texts(app) or {}).get("UPSTREAMS", "")
    events = {
        "create": {"domains": [f"{app}.example.com"]},
        "destroy": {},
        "rename": {"new": rng.choice(APPS), "globals": ["example.com"]},
        "clone": {"new": rng.choice(APPS), "domains": names},
        "domains": {
            "verb": rng.choice(["add", "remove", "set", "clear"]),
            "names": names,
            **({"reset": names} if rng.random() < 0.2 else {}),
        },
        "domains-switch": {"enabled": rng.random() < 0.5},
        "upstreams": {"verb": rng.choice(["add", "set", "remove", "clear", "drain"]), "endpoints": endpoints, "process": process},
        "deploy": {
            "processes": {process: addresses},
            "expected": {process: endpoint_lines(text, process)},
            "existed": app in world.apps,
            "create": True,
            "domains": names,
            "counts": {process: len(addresses)} if rng.random() < 0.5 else {},
            "named": {process: addresses} if rng.random() < 0.5 else {},
        },
        "ports": {"verb": rng.choice(["add", "remove", "set", "clear"]), "ports": rng.sample(["http", "http:9000", "http:9001:api"], 2)},
        "property": {"table": "nginx", "key": "proxy-keepalive", "value": rng.choice(["8", "16", None])},
        "lock": {"reason": rng.choice(["sale", None, None])},
        "global-domains": {"verb": rng.choice(["add", "remove", "set"]), "names": rng.sample(["example.com", "example.org"], 1)},
        "restore": {"texts": dict(rng.choice(list(world.apps.values()))) if world.apps else {}},
        "take-up": {"may_be_gone": True},
    }
    # an app is destroyed less often than changed, or nothing would ever grow
    action = rng.choice([*events, "domains", "upstreams", "deploy", "upstreams", "ports", "property"])
    app_or_none = None if action == "global-domains" or (action == "property" and rng.random() < 0.3) else app
    return Event(action, app_or_none, events[action])


def comments(text: str) -> list[str]:
    return [line.strip() for line in text.split("\n") if line.strip().startswith("#")]


def invariants(world: World, renderer: Renderer) -> None:
    for name, texts in world.apps.items():
        app = parse_app(name, texts)
        tomllib.loads(texts.get("app.toml", ""))
        lines_of = [e.line() for e in app.endpoints]
        again = parse_app(name, {**texts, "DOMAINS": lines.add("", app.domains), "UPSTREAMS": lines.add("", lines_of)})
        assert again == app
        facts = Facts({"web1.lan": ("10.0.0.9",)})
        vhost = renderer.vhost(app, facts, [Include("/o/1", "a.conf")])
        assert vhost == renderer.vhost(again, Facts.from_json(json.loads(json.dumps(facts.as_json()))), [Include("/o/1", "a.conf")])
        assert vhost.count("{") == vhost.count("}")
        for domain in app.served_domains:
            assert f" {domain}" in vhost
    assert len(world.owners) == len({*world.owners})


@pytest.mark.parametrize("seed", range(40))
def test_whatever_is_asked_the_texts_parse_and_the_same_state_gives_the_same_bytes(seed: int) -> None:
    rng, world = random.Random(seed), host()
    renderer = Renderer(Path("/srv/router"), Globals(), HostFacts(ipv6=True))
    for _ in range(40):
        event = some_event(rng, world)
        assert Event.from_json(json.loads(json.dumps(event.as_json()))) == event
        before = json.dumps(world.seen())
        try:
            edit = reduce(event, world)
        except RouterError:
            assert json.dumps(world.seen()) == before
            continue
        assert json.dumps(world.seen()) == before, "reduce changed what it was given"
        if event.action in ("domains", "upstreams", "deploy", "ports", "property", "lock", "domains-switch") and event.app in world.apps:
            comments_survive(world.apps[event.app], edit.apps.get(event.app) or {})
        world.take(edit)
    invariants(world, renderer)


def comments_survive(before: Texts, after: Mapping[str, str]) -> None:
    for file in ("DOMAINS", "UPSTREAMS"):
        assert comments(after.get(file, "")) == comments(before.get(file, ""))
        blank = [line for line in before.get(file, "").split("\n")[:-1] if not line.strip()]
        assert [line for line in after.get(file, "").split("\n")[:-1] if not line.strip()] == blank
        old, new = ([line for line in dict.fromkeys(texts.get(file, "").split("\n")) if line] for texts in (before, after))
        assert [line for line in new if line in old] == [line for line in old if line in new], "lines that stay keep their order"


@pytest.mark.parametrize("seed", range(40))
def test_the_same_change_again_changes_no_byte(seed: int) -> None:
    rng, world = random.Random(1000 + seed), host()
    tried = 0
    for _ in range(60):
        event = some_event(rng, world)
        if event.action in ("destroy", "rename", "clone", "restore"):
            continue
        try:
            world.take(reduce(event, world))
        except RouterError:
            continue
        if event.action == "deploy":
            again = {p: endpoint_lines(world.apps[event.app or ""]["UPSTREAMS"], p) for p in event.args["processes"]}
            event = Event("deploy", event.app, {**event.args, "expected": again, "existed": True})
        before = world.seen()
        edit = reduce(event, world)
        world.take(edit)
        assert world.seen() == before, event
        if event.action == "deploy":
            assert edit.answer["retired"] == []
            app = parse_app(event.app or "", world.apps[event.app or ""])
            asked = [e for p, addresses in event.args["named"].items() for e in app.of_process(p) if e.address.text in addresses]
            assert all(e.state == "active" for e in asked), "whoever is named gets requests"
        tried += 1
    assert tried > 10


@pytest.mark.parametrize("seed", range(20))
def test_what_leaves_by_deploys_is_told_exactly_once(seed: int) -> None:
    rng, world = random.Random(2000 + seed), host()
    world.apps = {"blog": {"DOMAINS": "", "UPSTREAMS": ""}}
    running: set[str] = set()
    for _ in range(30):
        processes = {p: rng.sample(ADDRESSES, rng.randint(0, 4)) for p in rng.sample(["web", "api"], rng.randint(1, 2))}
        text = world.apps["blog"]["UPSTREAMS"]
        args = {"processes": processes, "expected": {p: endpoint_lines(text, p) for p in processes}, "existed": True}
        edit = reduce(Event("deploy", "blog", args), world)
        world.take(edit)
        now = {e.address.text for e in parse_app("blog", world.apps["blog"]).endpoints}
        for process, addresses in processes.items():
            assert sorted(e.address.text for e in parse_app("blog", world.apps["blog"]).of_process(process)) == sorted(addresses)
        running |= now
        assert sorted(edit.answer["retired"]) == sorted(running - now)
        running = now
