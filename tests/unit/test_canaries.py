"""What a canary makes of an app's texts, and who gets it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from nginx_router import canaries
from nginx_router.errors import Conflict, NotFound, UsageProblem
from nginx_router.model import App, Facts, Globals, parse_app
from nginx_router.names import endpoint_line
from nginx_router.times import stamp

UNDER_WAY = "# ours\n10.0.0.3:80 weight=2\n10.0.0.9:80 canary   # the new one\napi 10.0.0.5:80\n"
SINCE = "2026-11-24T20:12:00.000Z"
TOML = f'[traffic]\nmax-errors = "1%"\ncanary = "10%"\nsince = "{SINCE}"\n'


def app_of(upstreams: str, toml: str = "") -> App:
    return parse_app("blog", {"UPSTREAMS": upstreams, "app.toml": toml}, ("traffic",))


def test_a_line_keeps_the_word() -> None:
    assert endpoint_line("api 10.0.0.3:80 weight=2 canary").line() == "api 10.0.0.3:80 weight=2 canary"


@pytest.mark.parametrize(
    ("text", "share"), [("10%", "10%"), ("10", "10%"), ("2.50%", "2.5%"), ("0", "0%"), ("100%", "100%"), ("007%", "7%")]
)
def test_a_share_has_one_spelling(text: str, share: str) -> None:
    assert canaries.percent(text) == share


@pytest.mark.parametrize("text", ["", "%", "101%", "-1%", "1e1", "ten", "10%%", "0.001%", "nan", "10% "])
def test_what_is_no_share(text: str) -> None:
    with pytest.raises(UsageProblem):
        canaries.percent(text)


def test_who_stands_beside_whom() -> None:
    old, new = endpoint_line("10.0.0.3:80"), endpoint_line("10.0.0.9:80 canary")
    assert canaries.parted([old, new]) == ([old], [new])
    down = replace(old, down=True), replace(new, down=True)
    assert canaries.parted([old, down[1]]) == ([old], []), "nobody is sent to a canary that is down"
    assert canaries.parted([down[0], new]) == ([down[0], new], []), "with nobody beside it it is an instance like any other"
    assert canaries.parted([new]) == ([new], [])


@pytest.mark.parametrize(
    ("verb", "processes", "upstreams", "toml"),
    [
        ("promote", {"web": ["10.0.0.9:80"]}, "# ours\n10.0.0.9:80   # the new one\n", '[traffic]\nmax-errors = "1%"\n'),
        ("abort", {"web": ["10.0.0.3:80"]}, "# ours\n10.0.0.3:80 weight=2\n", '[traffic]\nmax-errors = "1%"\naborted = "why"\n'),
    ],
)
def test_how_it_ends(verb: str, processes: dict[str, list[str]], upstreams: str, toml: str) -> None:
    app = app_of(UNDER_WAY, TOML)
    assert canaries.ended(app, verb) == processes
    kept = [line for line in UNDER_WAY.splitlines(keepends=True) if line[0] == "#" or any(a in line for a in processes["web"])]
    step: dict[str, Any] = {"verb": verb, **({"reason": "why"} if verb == "abort" else {})}
    made = canaries.flagged(app, {"UPSTREAMS": "".join(kept), "app.toml": TOML}, step, processes)
    assert made == {"UPSTREAMS": upstreams, "app.toml": toml}
    assert canaries.aborted(app_of(upstreams, toml)) == ("why" if verb == "abort" else None)
    assert "aborted" not in canaries.without_aborted(made)["app.toml"]


def test_only_one_is_under_way() -> None:
    app = app_of(UNDER_WAY, TOML)
    with pytest.raises(Conflict, match=r"at 10% of its clients: 10\.0\.0\.9:80"):
        canaries.refuse_under_way(app)
    with pytest.raises(Conflict):
        canaries.flagged(app, {"UPSTREAMS": UNDER_WAY}, {"verb": "begin", "share": "5%"}, {"web": []})
    none = app_of("10.0.0.3:80\n")
    canaries.refuse_under_way(none)
    with pytest.raises(NotFound):
        canaries.require(none)
    with pytest.raises(Conflict):
        canaries.flagged(none, {"UPSTREAMS": ""}, {"verb": "promote"}, {"web": []})


@pytest.mark.parametrize("coming", [{"web": ["10.0.0.3:80"]}, {"api": ["10.0.0.9:80"]}])
def test_a_canary_is_new_and_stands_beside_others(coming: dict[str, list[str]]) -> None:
    with pytest.raises(UsageProblem):
        canaries.begun(app_of("10.0.0.3:80\napi 10.0.0.5:80 down\n"), coming)


@pytest.mark.parametrize(
    ("upstreams", "hint"),
    [
        ("10.0.0.3:80\n10.0.0.4:80\n", "router apps:retire blog 10.0.0.3:80"),
        ("10.0.0.3:80\n", "a new one at another address"),
        ("10.0.0.3:80\n10.0.0.4:80 down\n", "a new one at another address"),
    ],
)
def test_nobody_is_told_to_take_the_last_instance_away(upstreams: str, hint: str) -> None:
    with pytest.raises(UsageProblem, match="a canary is a new one") as caught:
        canaries.begun(app_of(upstreams), {"web": ["10.0.0.3:80"]})
    assert caught.value.hint.startswith(hint)


def test_what_a_rollback_of_settings_leaves_of_it() -> None:
    now = app_of(UNDER_WAY, TOML)
    ours = f'[traffic]\ncanary = "10%"\nsince = "{SINCE}"\n'
    assert canaries.kept(now, {"app.toml": '[traffic]\ncanary = "50%"\nsince = "then"\n'})["app.toml"] == ours
    assert canaries.kept(app_of("10.0.0.3:80\n"), {"app.toml": '[traffic]\ncanary = "50%"\n'})["app.toml"] == ""
    assert canaries.kept(now, {})["app.toml"] == ours
    assert canaries.kept(None, {"UPSTREAMS": ""}) == {"UPSTREAMS": ""}


def test_since_when_it_is_under_way() -> None:
    began = {"verb": "begin", "share": "5%", "since": SINCE}
    made = canaries.flagged(app_of("10.0.0.3:80\n"), {"UPSTREAMS": "10.0.0.3:80\n10.0.0.9:80\n"}, began, {"web": ["10.0.0.9:80"]})
    since = canaries.since(app_of(made["UPSTREAMS"], made["app.toml"]))
    assert since and stamp(since) == SINCE
    for text in ("", '[traffic]\nsince = "then"\n', '[traffic]\nsince = "2026-11-24T20:12:00"\n'):
        assert canaries.since(app_of(UNDER_WAY, text)) is None, "by hand"


def test_why_it_was_aborted_moves_no_cursor() -> None:
    assert canaries.aborted(app_of("", '[traffic]\naborted = "a\\u001b[31mred"\n')) == "a?[31mred"


@pytest.mark.parametrize(
    ("upstreams", "failing", "domains", "said"),
    [
        ("10.0.0.3:80\n10.0.0.9:80 canary\n", (), "a.io", "10% of the clients get 10.0.0.9:80, for 2 h"),
        ("10.0.0.3:80 drain\n10.0.0.9:80 canary\n", (), "a.io", "all clients get 10.0.0.9:80: no other instance is up"),
        ("10.0.0.3:80\n10.0.0.9:80 canary\n", ("10.0.0.3:80",), "a.io", "all clients get 10.0.0.9:80: no other instance is up"),
        ("10.0.0.3:80\n10.0.0.9:80 canary\n", ("10.0.0.9:80",), "a.io", "10.0.0.9:80 is down"),
        (
            "10.0.0.3:80\n10.0.0.9:80 canary\napi 10.0.0.9:81 canary\n", (), "a.io",
            "10% of the clients get 10.0.0.9:80, for 2 h; all clients get api=10.0.0.9:81: no other instance is up",
        ),
        ("10.0.0.3:80\n10.0.0.9:80 canary\n", (), "", "nobody gets 10.0.0.9:80: app blog has no domain"),
        ("10.0.0.3:80 drain\n10.0.0.9:80 canary drain\n", (), "a.io", "10.0.0.9:80 drains"),
    ],
)  # fmt: skip
def test_who_gets_it(upstreams: str, failing: tuple[str, ...], domains: str, said: str) -> None:
    app = parse_app("blog", {"UPSTREAMS": upstreams, "DOMAINS": domains}, ("traffic",))
    assert canaries.who_gets("10%", canaries.seen(app, Facts(unhealthy=dict.fromkeys(failing, "no answer"))), "2 h") == said


@pytest.mark.parametrize(
    ("of_app", "of_host", "said"),
    [("1%", "50%", "1%"), (None, "50", "50%"), (None, None, "5%"), (None, "much", "5%"), ("much", "50%", "50%")],
)
def test_whose_word_on_errors_counts(of_app: str | None, of_host: str | None, said: str) -> None:
    everywhere = Globals(plugins={"traffic": {"max-errors": of_host}} if of_host else {})
    assert canaries.max_errors_of(app_of("", f'[traffic]\nmax-errors = "{of_app}"\n' if of_app else ""), everywhere) == said
