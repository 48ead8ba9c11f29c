"""Settings of checks: what counts from the process to the host, which values are none, and how commands write them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router import health
from nginx_router.errors import UsageProblem
from nginx_router.health import Settings
from nginx_router.model import parse_app
from nginx_router.tomltext import set_key


def settings_of(keys: Mapping[str, Any], toml: str, process: str = "web", **everywhere: object) -> Settings | None:
    app = parse_app("blog", {"DOMAINS": "*.blog.io\nblog.io\n", "UPSTREAMS": "a:1\n", "app.toml": toml}, keys)
    return health.settings_of(keys, app, process, {"checks": everywhere} if everywhere else {})


def test_what_is_set_counts_from_the_process_to_the_host(keys: Mapping[str, Any]) -> None:
    toml = '[checks]\npath = "/app"\nfall = 4\n[checks.api]\npath = "/api"\n'
    web, api = settings_of(keys, toml, fall=9, rise=7), settings_of(keys, toml, "api", fall=9, rise=7)
    assert web and api
    assert (web.path, web.fall, web.rise, web.interval, web.host) == ("/app", 4, 7, 10.0, "blog.io")
    assert (api.path, api.fall, api.rise) == ("/api", 4, 7)


@pytest.mark.parametrize(
    ("toml", "interval"),
    [
        ("", None),
        ('[checks]\npath = "/"\n', 10.0),
        ("[checks]\ninterval = 0.2\n", 0.2),
        ('[checks]\ninterval = "500ms"\n', 0.5),
        ('[checks]\ninterval = "1m"\npath = "/"\n', 60.0),
        ('[checks]\npath = "/"\ninterval = "off"\n', None),
        ('[checks]\npath = "/"\n[checks.web]\npath = "off"\n', None),
        ("[checks]\nrise = 5\n", None),
        ('[checks]\npath = "/"\n[checks.web]\ninterval = "off"\n', None),
    ],
)
def test_a_path_or_an_interval_has_the_watch_ask(keys: Mapping[str, Any], toml: str, interval: float | None) -> None:
    found = settings_of(keys, toml)
    assert found and found.interval == interval


def test_a_plugin_that_is_switched_off_checks_nothing(keys: Mapping[str, Any]) -> None:
    assert settings_of({"checks": {}}, '[checks]\npath = "/"\n') is None


def test_a_wrong_value_for_the_host_is_named_with_its_file(keys: Mapping[str, Any]) -> None:
    with pytest.raises(UsageProblem, match=r"router\.toml: \[checks\] rise: '0' is not a number from 1 to 100"):
        settings_of(keys, "", rise=0)
    with pytest.raises(UsageProblem, match=r"router\.toml: \[checks\] plugin checks has no key 'api'"):
        settings_of(keys, "", api={"path": "/"})


@pytest.mark.parametrize("value", ["health", "/a b", "/a\r\nX: y", "/ä", "/a#b", ""])
def test_a_path_that_is_none_is_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not a path such as /health"):
        keys["checks"]["path"].parse(value)


@pytest.mark.parametrize(("given", "kept"), [("200", "200"), ("200-299, 304", "200-299 304"), ("204 204", "204")])
def test_statuses_have_one_spelling(keys: Mapping[str, Any], given: str, kept: str) -> None:
    assert keys["checks"]["status"].parse(given) == kept


@pytest.mark.parametrize("value", ["", "2xx", "100", "299-200", "600", "200-", "99"])
def test_statuses_that_are_none_are_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not HTTP statuses"):
        keys["checks"]["status"].parse(value)


@pytest.mark.parametrize("value", ["a b", "*.a.io", "a.io:80", "a\r\nb"])
def test_a_host_that_is_none_is_refused(keys: Mapping[str, Any], value: str) -> None:
    with pytest.raises(UsageProblem, match="is not a host name, or auto"):
        keys["checks"]["host"].parse(value)


# what is written


def test_a_key_of_a_process_is_set_and_unset_in_a_table_of_its_own() -> None:
    text = '# mine\n[checks]\npath = "/a"  # why\n\n[nginx]\nkeepalive = "1"\n'
    one = set_key(text, "checks", "path", "/b", inner="api")
    assert one.startswith('# mine\n[checks]\npath = "/a"  # why\n') and '[checks.api]\npath = "/b"\n' in one and "[nginx]" in one
    assert set_key(one, "checks", "path", None, inner="api").strip() == text.strip()
    alone = set_key("", "checks", "path", "/b", inner="api")
    assert alone == '[checks.api]\npath = "/b"\n'
    assert set_key(alone, "checks", "path", None, inner="api") == ""
    assert set_key(alone, "checks", "path", None) == alone
    inline = set_key('checks = {path = "/a"}\n', "checks", "path", "/b", inner="api")
    assert parse_app("blog", {"app.toml": inline}, ["checks"]).plugins["checks"] == {"path": "/a", "api": {"path": "/b"}}


def test_settings_are_set_and_unset_by_words(run: Callable[..., Any], router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    file = router_root / "apps/blog/app.toml"
    assert run("checks:set", "blog", "path", "/health").code == 0
    assert run("checks:set", "blog", "interval", "500ms").code == 0
    assert run("checks:set", "blog", "--process", "api", "status", "204", "301").code == 0
    text = file.read_text()
    assert text == '[checks]\npath = "/health"\ninterval = "0.5s"\n\n[checks.api]\nstatus = "204 301"\n'
    assert run("checks:set", "blog", "interval", "0.5").talk[0] == "interval is 0.5s already"
    for wrong in (
        ("blog", "path", "health"),
        ("blog", "rise", "0"),
        ("blog", "interval", "0.01"),
        ("blog", "pth", "/"),
        ("blog", "--process", "80", "rise", "1"),
        ("blog", "--process", "path", "rise", "1"),
        ("--global", "--process", "api", "rise", "1"),
        ("blog",),
    ):
        assert run("checks:set", *wrong).code == 2, wrong
    assert run("checks:set", "blgo", "path", "/").code == 3
    assert file.read_text() == text and not (router_root / "router.toml").exists(), "nothing changed"
    assert run("checks:set", "--global", "fall", "5").code == 0
    report = run("checks:report", "blog", "--format", "json").json()
    assert (report["path"], report["computed-path"], report["fall"], report["global-fall"], report["computed-fall"]) == (
        "/health",
        "/health",
        None,
        "5",
        "5",
    )
    assert report["computed-interval"] == "0.5s"
    assert report["processes"]["api"] | {"status": "204 301", "path": "/health", "fall": "5"} == report["processes"]["api"]
    assert run("checks:report", "--global", "--computed-fall").lines == ["5"]
    for words in (("blog", "path"), ("blog", "interval"), ("blog", "--process", "api", "status"), ("--global", "fall")):
        assert run("checks:set", *words).code == 0
    assert file.read_text().strip() == "" and (router_root / "router.toml").read_text().strip() == ""
    assert run("checks:report", "blog", "--computed-interval").lines == ["off"], "without a path nobody asks all the time"
    assert run("checks:set", "--global", "path", "/").code == 0
    assert run("checks:report", "blog", "--computed-interval").lines == ["10s"]
    assert run("checks:set", "blog", "path").talk[0] == "path is unset already"
