"""The built-in commands, on a root whose proxy was never started: changes are validated by nginx and saved."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nginx_router.commands import alias, find, nouns, of_noun
from nginx_router.controller import Router
from nginx_router.discovery import Command
from nginx_router.errors import UsageProblem
from nginx_router.parsing import parse
from nginx_router.settings import Paths

Run = Callable[..., Any]

TABLE = {name: Command(name, "p", "help", "plugin.py:f") for name in ("apps:create", "apps:domains:add", "proxy:start", "status")}


def test_long_and_short_names_are_one_command() -> None:
    assert find("domains:add", TABLE) is find("apps:domains:add", TABLE)
    assert alias("apps:domains:add") == "domains:add"
    assert alias("apps:create") is None and alias("proxy:start") is None
    with pytest.raises(UsageProblem):
        find("create", TABLE)


def test_nouns_have_their_commands() -> None:
    assert nouns(TABLE) == ["apps", "apps:domains", "proxy", "status"]
    assert [c.name for c in of_noun("domains", TABLE)] == [c.name for c in of_noun("apps:domains", TABLE)] == ["apps:domains:add"]


def every_command(root: Path) -> list[tuple[Router, Command]]:
    router = Router(Paths(root))
    return [(router, command) for command in router.plugins.commands().values()]


def test_every_command_explains_itself(router_root: Path) -> None:
    commands = every_command(router_root)
    for router, command in commands:
        text = parse(command, router.plugins.function(command), ["--help"]).help or ""
        assert text.startswith(f"usage: router {command.name}"), command.name
        assert command.help, command.name


def test_no_built_in_command_waits_for_typers_parser(router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("nginx_router.parsing._Typer", refuse)
    for router, command in every_command(router_root):
        parse(command, router.plugins.function(command), ["--help"])


# apps


def test_create_takes_a_name_below_each_global_domain(run: Run) -> None:
    assert run("domains:add-global", "example.com", "example.org").code == 0
    assert run("apps:create", "blog").code == 0
    assert run("domains:report", "blog", "--domains").lines == ["blog.example.com", "blog.example.org"]
    assert run("apps:create", "shop.io").code == 0
    assert run("domains:report", "shop.io", "--domains").lines == ["shop.io"]


def test_create_of_what_exists_is_quiet(run: Run) -> None:
    assert run("apps:create", "blog").code == 0
    got = run("apps:create", "blog")
    assert (got.code, got.out) == (0, "")
    assert got.talk[0] == "app blog exists already"


def test_create_of_what_was_made_by_hand_takes_it_up(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    (router_root / "apps/news").mkdir()
    (router_root / "apps/news/DOMAINS").write_text("news.test\n")
    for name, line in (("news", "news.test\n"), ("blog", "blog.test\n")):
        (router_root / f"apps/{name}/DOMAINS").write_text(line)
        assert run("apps:create", name).code == 0
        assert run("apps:report", name, "--format", "json").json()["serving"] is False  # the proxy is stopped
        index = Router(Paths(router_root)).index()
        assert index and index.apps[name].domains == (line.strip(),)


def test_create_of_what_cannot_be_taken_up_says_so_and_is_no_failure(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    (router_root / "apps/blog/DOMAINS").write_text("*oops..test\n")
    got = run("apps:create", "blog")
    assert got.code == 0 and got.talk[0].startswith("app blog exists already; its files are not taken up: apps/blog/DOMAINS:1")
    assert run("apps:create", "blog", "--format", "json").json()["kind"] == "nothing"
    assert run("domains:add", "blog", "a.test").code == 2


def test_a_setup_that_is_not_there_is_removed_quietly(run: Run) -> None:
    got = run("setup", "--remove")
    assert (got.code, got.talk) == (0, ["host mode is not set up"])


@pytest.mark.parametrize("name", ["Blog", "-a", "a_b", "a.", "", "x" * 64, "../etc"])
def test_a_bad_name_is_refused_with_its_rule(run: Run, name: str) -> None:
    got = run("apps:create", "--", name)
    assert got.code == 2
    assert "is not an app name" in got.talk[0] and "beginning with a letter" in got.talk[1]
    assert run("apps:list").out == ""


@pytest.mark.parametrize(
    "argv",
    [
        ["apps:exists"],
        ["apps:report"],
        ["apps:urls"],
        ["apps:destroy"],
        ["apps:lock"],
        ["domains:clear"],
        ["domains:report"],
        ["upstreams:report"],
        ["ports:list"],
        ["nginx:report"],
        ["nginx:show-config"],
        ["reconcile"],
    ],
    ids=" ".join,
)
def test_an_app_that_does_not_exist_is_exit_3_and_names_the_nearest(run: Run, argv: list[str]) -> None:
    assert run("apps:create", "blog").code == 0
    for typed in ("blogg", "Blog"):
        got = run(*argv, typed)
        assert (got.code, got.out) == (3, "")
        assert got.talk[0] == f"router: there is no app '{typed}'; did you mean blog?"


def test_destroy_wants_to_be_told_twice(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    got = run("apps:destroy", "blog")
    assert (got.code, got.talk[1]) == (2, "  router apps:destroy blog --force")
    assert run("apps:exists", "blog").code == 0
    assert run("apps:destroy", "blog", "--dry-run").code == 0
    assert run("apps:destroy", "blog", "--force").code == 0
    assert run("apps:exists", "blog").code == 3
    assert not (router_root / "apps/blog").exists()


def test_rename_and_clone(run: Run) -> None:
    run("domains:add-global", "example.com")
    run("apps:create", "blog")
    run("domains:add", "blog", "own.com")
    assert run("apps:rename", "blog", "journal").code == 0
    assert run("domains:report", "journal", "--domains").lines == ["journal.example.com", "own.com"]
    assert run("apps:clone", "journal", "staging").code == 0
    assert run("domains:report", "staging", "--domains").lines == ["staging.example.com"]
    assert run("apps:clone", "journal", "staging").code == 4
    assert run("apps:rename", "journal", "staging").code == 4
    assert run("apps:list").lines == ["journal", "staging"]
    assert run("apps:list", "--format", "json").json() == ["journal", "staging"]


def test_a_lock_is_told_and_taken_back(run: Run) -> None:
    run("apps:create", "blog")
    assert run("apps:lock", "blog", "moving").code == 0
    assert run("apps:report", "blog", "--locked").out == "moving\n"
    assert run("apps:lock", "blog", "two\nlines").code == 2
    assert run("apps:unlock", "blog").code == 0
    assert run("apps:report", "blog", "--locked").out == "\n"


def test_report_has_the_promised_keys(run: Run) -> None:
    run("apps:create", "blog.io")
    run("upstreams:add", "blog.io", "10.0.0.3:5000", "api=10.0.0.4:5000", "--weight", "2")
    report = run("apps:report", "blog.io", "--format", "json").json()
    assert report == {
        "app": "blog.io",
        "domains": ["blog.io"],
        "urls": ["http://blog.io:8080"],
        "endpoints": [
            {"process": "web", "address": "10.0.0.3:5000", "weight": 2, "state": "active", "problem": None, "canary": False},
            {"process": "api", "address": "10.0.0.4:5000", "weight": 2, "state": "active", "problem": None, "canary": False},
        ],
        "processes": {"api": 1, "web": 1},
        "generation": 2,
        "serving": False,
        "stale": False,
        "problem": None,
        "locked": None,
        "canary": None,
        "aborted": None,
    }
    assert run("apps:report", "--format", "json").json() == [report]
    assert run("upstreams:report", "blog.io", "--format", "json").json() == {
        "app": "blog.io",
        "upstreams": {
            "api": [{"address": "10.0.0.4:5000", "weight": 2, "backup": False, "state": "active", "problem": None, "canary": False}],
            "web": [{"address": "10.0.0.3:5000", "weight": 2, "backup": False, "state": "active", "problem": None, "canary": False}],
        },
    }


def test_a_broken_hand_edit_is_reported_with_what_was_served_last(run: Run, router_root: Path) -> None:
    run("apps:create", "blog.io")
    with (router_root / "apps/blog.io/DOMAINS").open("a") as file:
        file.write("a..b\n")
    report = run("apps:report", "blog.io", "--format", "json").json()
    assert report["domains"] == ["blog.io"]
    assert report["stale"] is True
    assert report["problem"] == "apps/blog.io/DOMAINS:2: 'a..b' is not a domain: a label is empty"
    assert run("reconcile").code == 2
    assert run("status").code == 8


def test_urls_follow_ports_and_domains(run: Run) -> None:
    run("apps:create", "blog.io")
    run("domains:add", "blog.io", "*.blog.io")
    run("ports:add", "blog.io", "http:80", "http:9000", "http:9001:api")
    assert run("apps:urls", "blog.io").lines == ["http://blog.io", "http://blog.io:9000", "http://*.blog.io", "http://*.blog.io:9000"]
    run("domains:disable", "blog.io")
    assert run("apps:urls", "blog.io").out == ""
    assert run("domains:report", "blog.io", "--enabled").out == "false\n"


# domains


def test_all_domains_are_looked_at_before_the_first_is_written(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    before = (router_root / "apps/blog/DOMAINS").read_bytes()
    for bad in ("*", "*a.com", "a.*.com", "a..b", "-a.com", "a b.com", "a.com:80", "http://a.com", "a.com/x", "~a"):
        got = run("domains:add", "blog", "--", "good.com", bad)
        assert (got.code, len(got.talk)) == (2, 2), bad
    assert (router_root / "apps/blog/DOMAINS").read_bytes() == before


def test_domains_from_stdin_and_both_names_of_the_command(run: Run) -> None:
    run("apps:create", "blog")
    assert run("domains:add", "blog", "-", stdin="a.com\nb.com\n").code == 0
    assert run("apps:domains:set", "blog", "B.com", "bücher.example").code == 0
    assert run("domains:report", "blog", "--domains").lines == ["b.com", "xn--bcher-kva.example"]
    assert "bücher.example (xn--bcher-kva.example)" in run("domains:report", "blog").out
    assert run("domains:remove", "blog", "b.com").code == 0
    assert run("domains:clear", "blog").code == 0
    assert run("domains:report", "blog", "--domains").out == ""


def test_the_owner_of_a_domain_is_named(run: Run) -> None:
    run("apps:create", "blog")
    run("apps:create", "shop")
    run("domains:add", "shop", "a.com")
    got = run("domains:add", "blog", "a.com")
    assert got.code == 4 and "belongs to app shop" in got.talk[0]


def test_reset_gives_the_default_domains_again(run: Run) -> None:
    run("apps:create", "blog")
    run("domains:add", "blog", "own.com")
    run("domains:add-global", "example.com")
    assert run("domains:reset", "blog").code == 0
    report = run("domains:report", "blog", "--format", "json").json()
    assert report == {"app": "blog", "domains": ["blog.example.com"], "enabled": True, "global_domains": ["example.com"]}


def test_global_domains(run: Run) -> None:
    assert run("apps:domains:add-global", "a.com", "b.com").code == 0
    assert run("domains:remove-global", "a.com").code == 0
    assert run("domains:report", "--global", "--format", "json").json() == {"global_domains": ["b.com"]}
    assert run("domains:set-global", "c.com").code == 0
    for key in ("--global_domains", "--global-domains"):
        assert run("domains:report", "--global", key).lines == ["c.com"]
    assert run("domains:add-global", "*.d.com").code == 2
    assert run("domains:clear-global").code == 0
    assert run("domains:report", "--global").out == "global_domains:\n"
    assert run("domains:report", "blog", "--global").code == 2


# upstreams, ports, properties


def test_upstreams_by_process_with_flags(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    upstreams = router_root / "apps/blog/UPSTREAMS"
    assert run("upstreams:add", "blog", "10.0.0.3:1", "api=unix:/run/a.sock", "--backup").code == 0
    assert upstreams.read_text() == "10.0.0.3:1 backup\napi unix:/run/a.sock backup\n"
    assert run("upstreams:add", "blog", "10.0.0.3:1", "--weight", "3", "--down").code == 0
    assert run("upstreams:set", "blog", "10.0.0.4:1").code == 0
    assert upstreams.read_text() == "api unix:/run/a.sock backup\n10.0.0.4:1\n"
    assert run("upstreams:remove", "blog", "web=unix:/run/a.sock").code == 0
    assert "unix:/run/a.sock" in upstreams.read_text()
    assert run("upstreams:remove", "blog", "unix:/run/a.sock").code == 0
    assert run("upstreams:clear", "blog", "web").code == 0
    assert upstreams.read_text() == ""
    for bad in (["10.0.0.3"], ["10.0.0.3:1", "--weight", "0"], ["80=10.0.0.3:1"], ["http://a:1"]):
        assert run("upstreams:add", "blog", *bad).code == 2


def test_ports(run: Run) -> None:
    run("apps:create", "blog")
    got = run("ports:add", "blog", "http:80:5000")
    assert got.code == 2 and "endpoints carry their ports here" in got.talk[0]
    assert run("ports:set", "blog", "http", "http:9000:api").code == 0
    assert run("ports:list", "blog").lines == ["http", "http:9000:api"]
    assert run("ports:report", "blog", "--computed_ports").lines == ["http:8080:web", "http:9000:api"]
    assert run("ports:remove", "blog", "9000").code == 0
    assert run("ports:clear", "blog").code == 0
    assert run("ports:list", "blog").out == ""
    assert run("ports:add", "blog", "udp:53").code == 2


def test_properties_are_set_global_and_computed(run: Run) -> None:
    run("apps:create", "blog")
    key = "client-max-body-size"
    assert run("nginx:set", "--global", key, "3m").code == 0
    assert run("nginx:set", "blog", key, "2m").code == 0
    report = run("nginx:report", "blog", "--format", "json").json()
    assert [report[form + key] for form in ("", "global-", "computed-")] == ["2m", "3m", "2m"]
    assert run("nginx:set", "blog", key).code == 0
    assert run("nginx:report", "blog", f"--computed-{key}").out == "3m\n"
    assert run("nginx:report", "blog", f"--{key}").out == "\n"
    assert run("nginx:report", "--global", f"--global-{key}").out == "3m\n"
    got = run("nginx:set", "blog", "client-max-body-siz", "2m")
    assert got.code == 2 and f"did you mean {key}?" in got.talk[0]
    for bad in ([], ["blog"], ["blog", key, "2m", "3m"], ["--global"], ["blog", key, "big"]):
        assert run("nginx:set", *bad).code == 2


def test_settings_of_the_proxy_are_global(run: Run) -> None:
    assert run("proxy:set", "http-port", "8081").code == 2
    assert run("proxy:set", "--global", "http-port", "8081").code == 0
    assert run("proxy:report", "--http-port").out == "8081\n"
    assert run("proxy:set", "--global", "http-port").code == 0
    assert run("proxy:report", "--format", "json").json()["computed-http-port"] == "8080"
    got = run("proxy:set", "--global", "http-prt", "1")
    assert got.code == 2 and "did you mean http-port?" in got.talk[0]


def test_show_config_prints_the_vhost_of_the_current_generation(run: Run) -> None:
    run("apps:create", "blog.io")
    got = run("nginx:show-config", "blog.io")
    assert got.code == 0 and "server_name blog.io;" in got.out
    run("apps:create", "bare")
    assert run("nginx:show-config", "bare").code == 3


# the proxy, generations, plugins


def test_status_of_a_proxy_that_was_never_started(run: Run, router_root: Path) -> None:
    run("apps:create", "blog.io")
    status = run("status", "--format", "json")
    assert status.code == 0
    assert status.json() == {
        "generation": 1,
        "serving": None,
        "updates": "reload",
        "proxy": {"type": "nginx", "mode": "managed", "running": False, "pid": None, "workers": 0, "draining_workers": 0},
        "apps": 1,
        "stale": [],
        "problems": status.json()["problems"],
        "canaries": [],
        "draining": [],
        "changes": status.json()["changes"],
    }
    (router_root / "run/wanted").touch()
    assert run("status").code == run("proxy:status").code == 13


def test_status_of_a_running_proxy_that_serves_something_else_is_9(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    proxy = {"type": "nginx", "mode": "managed", "running": True, "pid": 1, "workers": 1, "draining_workers": 0}
    found = {"generation": 7, "serving": 6, "updates": "reload", "proxy": proxy, "apps": 1, "stale": [{"app": "a"}], "problems": []}
    monkeypatch.setattr("nginx_router.proxy.status", lambda router: {**found, "wanted": True})
    assert run("status").code == 9
    found["serving"] = 7
    assert run("status").code == 8
    found["stale"] = []
    assert run("status").code == 0
    assert run("status", "--serving").out == "7\n"
    assert json.loads(run("status", "--proxy").out) == proxy


def test_generations(run: Run) -> None:
    run("apps:create", "blog.io")
    run("domains:add", "blog.io", "a.com")
    listed = run("generations:list", "--format", "json").json()
    assert run("generations:list").lines == ["1", "2"]
    assert [set(row) for row in listed] == [{"generation", "parent", "time", "command", "apps", "serving"}] * 2
    assert (listed[1]["parent"], listed[1]["command"], listed[1]["apps"]) == (1, "domains:add blog.io a.com", ["blog.io"])
    assert run("generations:show", "1", "--command").out == "apps:create blog.io\n"
    assert "+a.com" in run("generations:diff").lines
    assert [f["file"] for f in run("generations:diff", "1", "2", "--format", "json").json()["files"]] == [
        "apps/blog.io/DOMAINS",
        "vhost of blog.io",
    ]
    assert run("generations:rollback", "1", "blog.io").code == 0
    assert run("domains:report", "blog.io", "--domains").lines == ["blog.io"]
    assert run("generations:rollback", "99").code == 3
    assert run("generations:rollback", "one").code == 2
    assert run("generations:rollback", "1", "blog.io", "--all").code == 2
    assert run("generations:prune", "--keep", "2").lines == ["1"]
    assert run("generations:list").lines == ["2", "3"]


def test_a_dry_run_shows_what_would_change_and_changes_nothing(run: Run) -> None:
    run("apps:create", "blog.io")
    got = run("domains:add", "blog.io", "a.com", "--dry-run")
    assert got.code == 0 and "+a.com" in got.lines
    assert run("domains:report", "blog.io", "--domains").lines == ["blog.io"]
    got = run("domains:add", "blog.io", "a.com", "--dry-run", "--format", "json")
    assert got.json()["kind"] == "structure"
    for verb in ("start", "stop", "reload"):
        assert run(f"proxy:{verb}", "--dry-run").talk == [f"would {verb} nginx"]


def test_a_change_in_json(run: Run) -> None:
    answer = run("apps:create", "blog.io", "--format", "json").json()
    assert (answer["app"], answer["generation"], answer["serving"], answer["kind"]) == ("blog.io", 1, None, "structure")


def test_plugins(run: Run) -> None:
    assert {"apps", "domains", "deploy"} <= set(run("plugins:list").lines)
    assert run("plugins:hooks").code == 0
    got = run("plugins:hooks", "pre-deplo")
    assert got.code == 3 and "did you mean pre-deploy?" in got.talk[0]


def test_help(run: Run) -> None:
    everything = run("help").out
    for word in ("apps:domains", "apps:create", "reconcile", "setup"):
        assert word in everything
    assert "router apps:domains:add APP DOMAIN..." in run("help", "domains").lines
    assert run("help", "domains:add").out == run("domains:add", "-h").out
    assert run("help", "nope").code == 2
    assert run("help", "a", "b").code == 2
    assert run("version", "--format", "json").json() == {"version": run("version").out.strip()}


def test_an_app_that_does_not_exist_is_exit_3_whatever_else_is_said(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    for command in Router(Paths(router_root)).plugins.commands():
        usage = run("help", command).out
        if command == "apps:create" or not re.search(rf"usage: router {command} APP\b", usage):
            continue
        found = [run(command, "nope", *["bad..:x"] * n) for n in range(4)]
        assert 3 in [each.code for each in found], (command, found)
        for each in found:
            assert each.code == 3 or (each.code == 2 and any("usage: " in line for line in each.talk)), (command, each)


def test_what_is_only_tried_leaves_no_file(run: Run, router_root: Path) -> None:
    run("apps:create", "blog")
    run("apps:create", "bad")
    (router_root / "apps/bad/nginx.conf.d").mkdir()
    (router_root / "apps/bad/nginx.conf.d/x.conf").write_text("no_such;\n")
    before = sorted(router_root.rglob("*"))
    for words in (("domains:add", "blog", "a.test"), ("apps:create", "new.test"), ("apps:rename", "blog", "other")):
        assert run(*words, "--dry-run").code == 0
    assert run("domains:add", "bad", "bad.test").code == 8
    assert sorted(router_root.rglob("*")) == before
