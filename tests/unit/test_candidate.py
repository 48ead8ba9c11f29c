"""What a process remembers of what it parsed and rendered: found again where everything is equal, and nowhere else."""

from __future__ import annotations

from pathlib import Path

import pytest

from nginx_router import candidate
from nginx_router.candidate import Candidate
from nginx_router.controller import Router
from nginx_router.model import Facts
from nginx_router.settings import Paths


@pytest.fixture
def world(router_root: Path) -> Candidate:
    (router_root / "apps/blog").mkdir(parents=True)
    return Router(Paths(router_root)).rehearsal()


def test_texts_that_are_changed_behind_their_parse_are_parsed_again(world: Candidate) -> None:
    texts = {"UPSTREAMS": "10.0.0.3:80\n"}
    app = world.parse("blog", texts)
    assert world.parse("blog", dict(texts)) is app, "once is enough"
    texts["UPSTREAMS"] = "10.0.0.4:80\n"
    assert [e.address.text for e in world.parse("blog", texts).endpoints] == ["10.0.0.4:80"]
    assert world.parse("news", {"UPSTREAMS": "10.0.0.3:80\n"}).name == "news"


def test_an_app_is_rendered_again_when_anything_of_it_or_of_the_host_differs(world: Candidate, router_root: Path) -> None:
    texts = {"DOMAINS": "blog.test\n", "UPSTREAMS": "10.0.0.3:80\n"}
    first = world.render("blog", texts, Facts())
    assert world.render("blog", dict(texts), Facts()) is first
    assert world.render("blog", {**texts, "UPSTREAMS": "10.0.0.4:80\n"}, Facts()).entry != first.entry
    assert world.render("blog", texts, Facts(snippets=(("nginx-server-snippet", "x", "gzip on;\n"),))).entry != first.entry
    (router_root / "router.toml").write_text('[proxy]\nhttp-port = "8181"\n')
    other = Router(Paths(router_root)).rehearsal()
    assert other.render("blog", texts, Facts()).entry.ports == (8181,)


def test_what_is_known_of_an_app_without_opening_it_says_where_its_requests_may_go(world: Candidate) -> None:
    lines = [
        "10.0.0.4:80 backup",
        "10.0.0.3:80 weight=2",
        "api 10.0.0.3:80 drain",
        "10.0.0.5:80 drain",
        "10.0.0.6:80 down",
        "10.0.0.7:80 canary",
    ]
    texts = {"DOMAINS": "blog.test\n", "UPSTREAMS": "".join(f"{line}\n" for line in [*lines, "web1.lan:81"])}
    facts = Facts(resolved={"web1.lan": ("10.0.0.8", "fd00::1")}, unhealthy={"10.0.0.3:80": "HTTP 500"})
    found = ("10.0.0.3:80", "10.0.0.4:80", "10.0.0.7:80", "10.0.0.8:81", "[fd00::1]:81", "web1.lan:81")
    assert world.render("blog", texts, facts).entry.addresses == found


def test_little_is_remembered(world: Candidate) -> None:
    for number in range(100):
        world.parse(f"app{number}", {})
        world.parse("blog", {"UPSTREAMS": f"10.0.0.{number + 1}:80\n"})
    assert candidate._parsed.get("app0") is None and candidate._parsed.get("app99") is not None
    assert len(candidate._parsed.get("blog") or ()) == candidate._MOST_OF_ONE
