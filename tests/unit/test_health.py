"""Health: when an endpoint is taken out and in, what nginx is told, and what is left when all fail."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router import balancing, health
from nginx_router.controller import Router
from nginx_router.directives import computed
from nginx_router.events import Event, reduce
from nginx_router.health import CALM, MOST_RELAPSES, Health, Settings
from nginx_router.model import App, Facts, parse_app
from nginx_router.names import AppName, endpoint_line
from nginx_router.settings import Paths

SETTINGS = Settings(interval=1.0)


# the state of one endpoint


def after(answers: str, *, health: Health | None = None, every: float = 1.0, settings: Settings = SETTINGS) -> Health:
    """What `answers` (`+` good, `-` bad), one each `every` seconds, come to."""
    found = health or Health()
    for number, answer in enumerate(answers):
        found = found.after(answer == "+", number * every, settings)
    return found


@pytest.mark.parametrize(
    ("answers", "is_up"),
    [
        ("", True),
        ("--", True),
        ("---", False),
        ("--+--", True),
        ("---+", False),
        ("---++", True),
        ("---+-+-+", False),
        ("---++---", False),
        ("---++---++", False),  # after a relapse two are not enough
        ("---++---++++", True),
        ("---++---++++---++++++++", True),
    ],
)
def test_so_many_in_a_row_take_an_endpoint_out_and_in(answers: str, is_up: bool) -> None:
    assert after(answers).is_up is is_up


def test_one_that_fell_long_ago_is_taken_in_as_soon_as_the_first_time() -> None:
    came_back = after("---++")
    for later, relapses in ((0, 1), (CALM - 1, 1), (CALM, 0)):
        fell = came_back
        for _ in range(3):
            fell = fell.after(False, 4 + later, SETTINGS)
        assert (fell.is_up, fell.relapses) == (False, relapses)


def test_relapses_are_forgotten_one_by_one() -> None:
    bad = Health(True, 0, MOST_RELAPSES, 0.0)
    for calm in range(1, MOST_RELAPSES + 2):
        fell = bad
        for _ in range(3):
            fell = fell.after(False, CALM * calm, SETTINGS)
        assert fell.relapses == max(0, MOST_RELAPSES - calm)


@pytest.mark.parametrize("seed", range(40))
def test_whatever_an_endpoint_answers_its_changes_are_few_and_each_has_its_reason(seed: int) -> None:
    chance = random.Random(seed)
    settings = Settings(interval=1.0, rise=chance.randint(1, 5), fall=chance.randint(1, 5))
    good = chance.random()
    found, history, changes = Health(), [], []
    for now in range(2000):
        passed = chance.random() < good if chance.random() < 0.7 or not history else history[-1]
        needed, was = found.needed(settings), found
        history.append(passed)
        found = found.after(passed, float(now), settings)
        assert 0 <= found.relapses <= MOST_RELAPSES
        assert found.needed(settings) <= max(settings.fall, settings.rise * 2**MOST_RELAPSES), "it is bounded: who is well comes back"
        if found.is_up != was.is_up:
            changes.append(now)
            assert history[-needed:] == [not was.is_up] * needed, "only answers in a row change it"
        else:
            assert found.streak < found.needed(settings)
    # within any stretch of 300 s: the doubling leaves room for a few changes, however often its answers change
    for first in changes:
        assert sum(first <= change < first + CALM for change in changes) <= 2 * (MOST_RELAPSES + 2) + 2 * CALM / (
            settings.rise * 2**MOST_RELAPSES + settings.fall
        )


def test_an_endpoint_that_is_well_from_now_on_always_comes_back() -> None:
    found = after("---++" + "---++++" + "---" + "+" * 8 + "-" * 40)
    assert not found.is_up
    assert after("+" * found.needed(SETTINGS), health=found).is_up


# what nginx is told


def an_app(*lines: str) -> App:
    return App(AppName("blog"), endpoints=tuple(map(endpoint_line, lines)))


def rotation(app: App, *failing: str, process: str = "web") -> dict[str, str]:
    """Who gets requests: address -> flags."""
    facts = Facts(unhealthy=dict.fromkeys(failing, "HTTP 503"))
    (found,) = balancing.blocks(app, process, facts, computed({}, {}))
    return {each["address"]: " ".join(each["flags"].split()) for each in found["servers"]}


def test_one_that_fails_is_down_and_the_others_are_not() -> None:
    found = rotation(an_app("10.0.0.1:80", "10.0.0.2:80"), "10.0.0.1:80")
    assert "down" in found["10.0.0.1:80"] and "down" not in found["10.0.0.2:80"]


def test_if_none_were_left_all_stay() -> None:
    app = an_app("10.0.0.1:80", "10.0.0.2:80", "10.0.0.3:80 down", "10.0.0.4:80 drain")
    found = rotation(app, "10.0.0.1:80", "10.0.0.2:80")
    assert [address for address, flags in found.items() if "down" not in flags] == ["10.0.0.1:80", "10.0.0.2:80"]


def test_a_backup_is_enough_to_be_left() -> None:
    found = rotation(an_app("10.0.0.1:80", "10.0.0.2:80 backup"), "10.0.0.1:80")
    assert "down" in found["10.0.0.1:80"] and "down" not in found["10.0.0.2:80"]


def test_the_same_address_of_another_process_is_another_endpoint() -> None:
    app = an_app("10.0.0.1:80", "10.0.0.2:80", "api 10.0.0.1:80", "api 10.0.0.2:80")
    assert "down" in rotation(app, "api 10.0.0.1:80", process="api")["10.0.0.1:80"]
    assert "down" not in rotation(app, "api 10.0.0.1:80")["10.0.0.1:80"]


def test_health_changes_no_file() -> None:
    class World:
        def __getattr__(self, name: str) -> object:
            raise AssertionError("the files are not looked at")

    edit = reduce(Event("health", "blog", {"endpoints": {"10.0.0.1:80": "why"}}), World())  # type: ignore[arg-type]  # nothing of it is asked
    assert edit.unhealthy == {"blog": {"10.0.0.1:80": "why"}} and not edit.apps


def test_what_is_known_of_an_endpoint_goes_with_it(keys: Mapping[str, Any]) -> None:
    facts = Facts(unhealthy={"10.0.0.1:80": "why", "10.0.0.2:80": "why", "api 10.0.0.3:80": "why", "10.0.0.9:80": "why"})
    texts = {"UPSTREAMS": "10.0.0.1:80\n10.0.0.2:80 drain\napi 10.0.0.3:80\n", "app.toml": "[checks.web]\ninterval = 1\n"}
    app = parse_app("blog", texts, keys)
    assert health.still_out(facts, app, keys, {}) == {"10.0.0.1:80": "why"}, "there, asked for, and checked"
    assert health.still_out(facts, app, {}, {}) == {}, "the plugin is switched off"
    assert Facts.from_json(facts.as_json()) == facts
    assert "unhealthy" not in Facts().as_json(), "what an app is made of is what it was, without checks"


def test_every_other_change_keeps_what_is_known(run: Callable[..., Any], router_root: Path) -> None:
    def states(app: str) -> list[str]:
        return [each["state"] for each in run("apps:report", app, "--format", "json").json()["endpoints"]]

    run("apps:create", "blog.io")
    run("upstreams:add", "blog.io", "10.0.0.1:80", "10.0.0.2:80")
    run("checks:set", "blog.io", "path", "/health")
    files = {path: path.read_bytes() for path in (router_root / "apps").rglob("*") if path.is_file()}
    router = Router(Paths(router_root))
    (outcome,) = router.change([Event("health", "blog.io", {"endpoints": {"10.0.0.1:80": "HTTP 503"}})], independent=True)
    assert (outcome.error, outcome.kind) == (None, "endpoints")
    assert {path: path.read_bytes() for path in (router_root / "apps").rglob("*") if path.is_file()} == files
    assert states("blog.io") == ["down", "active"]
    assert run("upstreams:report", "blog.io", "--format", "json").json()["upstreams"]["web"][0]["problem"] == "HTTP 503"
    assert run("checks:report", "blog.io", "--format", "json").json()["endpoints"][0]["problem"] == "HTTP 503"
    for command in (
        ("nginx:set", "blog.io", "keepalive-timeout", "9s"),
        ("upstreams:add", "blog.io", "10.0.0.3:80"),
        ("nginx:set", "--global", "keepalive-timeout", "8s"),
        ("generations:rollback", "3", "blog.io"),
        ("reconcile", "--all"),
    ):
        assert run(*command).code == 0
        assert states("blog.io")[:2] == ["down", "active"], command
    assert run("apps:rename", "blog.io", "shop.io").code == 0
    assert states("shop.io")[:2] == ["down", "active"]
    (router_root / "apps/shop.io/DOMAINS").write_text("a..b\n")  # an edit that cannot be taken up is in nobody's way
    (outcome,) = router.change([Event("health", "shop.io", {"endpoints": {}})], independent=True)
    assert (outcome.error, states("shop.io")[:2]) == (None, ["active", "active"])
    (outcome,) = router.change([Event("health", "blog.io", {"endpoints": {}})], independent=True)
    assert outcome.error is not None and outcome.error.exit_code == 4, "an app that is gone"


# what people are told


def test_what_is_told_of_those_that_fail_is_what_becomes_of_them() -> None:
    app = parse_app("blog", {"UPSTREAMS": "10.0.0.3:80\n10.0.0.4:80\napi 10.0.0.5:80 drain\n"})
    three, four = "10.0.0.3:80", "10.0.0.4:80"
    none, one, other = Facts(), Facts(unhealthy={three: "why"}), Facts(unhealthy={four: "why"})
    both = Facts(unhealthy={three: "why", four: "why"})
    all_the_same = "why; it gets requests all the same: no other endpoint of web is up"
    everybody = "all of web fail, and get requests all the same"
    assert health.moves(app, none, one) == [f"{three} is out: why"]
    assert health.moves(app, one, none) == [f"{three} is in again"]
    assert health.moves(app, none, both) == [f"{three} fails: {all_the_same}", f"{four} fails: {all_the_same}", everybody], "nobody is out"
    assert health.moves(app, one, both) == [f"{four} fails: {all_the_same}", everybody]
    assert health.moves(app, both, one) == [f"{three} is out: why", f"{four} is well again"], "it was never out"
    assert health.moves(app, both, none) == [f"{three} is well again", f"{four} is well again"]
    assert health.moves(app, one, other) == [f"{three} is in again", f"{four} is out: why"]
    assert health.moves(app, both, both) == []
