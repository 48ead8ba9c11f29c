"""Every hook is fired by the command that says so, and whatever a hook does, the router goes on: all through `router` itself."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.hookspecs import HOOKS
from nginx_router.processes import all_pids, command_line

from .hooklog import Log, log

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

__all__ = ["log"]  # a fixture

pytestmark = pytest.mark.timeout(120)

#: Nothing fires these before there are certificates; `plugins:trigger` calls them by hand.
AWAITED = {"certificate-for", "post-certs-update"}

FACTS = ["nginx-http-snippet", "nginx-server-snippet", "nginx-location-snippet", "nginx-app-template-source", "template-dirs"]


def facts(app: str) -> list[str]:
    return [f"{hook} {app}" for hook in FACTS]


def test_every_hook_is_fired_by_some_command_with_exactly_these_arguments(
    two_apps: Live, log: Log, backend: Callable[[str], Backend], free_port: Callable[[], int]
) -> None:
    a, b, c, d = (backend(name) for name in "abcd")
    blog = (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip()
    dead = f"127.0.0.1:{free_port()}"
    number = two_apps.generations.current_number() or 0

    def next_number() -> int:
        nonlocal number
        number += 1
        return number

    def change(app: str) -> list[str]:
        return [*facts(app), f"pre-apply  {app}"]

    log.answers(app_hostname="new.test\n", endpoint_resolve="127.0.0.1\n")
    assert log.words("apps:create", "new") == [
        "app-hostname new",
        "pre-create new",
        *change("new"),
        "post-create new",
        f"post-apply {next_number()} new",
    ]
    assert log.words("domains:add", "new", "x.test", "y.test") == [
        "pre-domains-update new add x.test y.test",
        *change("new"),
        "post-domains-update new add x.test y.test",
        f"post-apply {next_number()} new",
    ]
    assert log.words("upstreams:add", "new", f"db.internal:{a.port}") == [
        "endpoint-resolve new",
        *change("new"),
        "post-upstreams-update new",
        f"post-apply {next_number()} new",
    ]
    assert two_apps.get("x.test").body == "a", "the plugin resolved what no DNS knows"
    assert log.words("apps:deploy", "new", str(b), f"api={c}") == [
        f"pre-deploy new web={b} api={c}",
        *change("new"),
        f"post-deploy new web={b} api={c}",
        f"post-apply {next_number()} new",
        f"endpoints-retired new db.internal:{a.port}",
    ]
    log.answers(scale=f"{b}\n{d}\n")
    assert log.words("apps:scale", "new", "web=2") == [
        "pre-scale new web 2",
        "scale new web 2",
        *change("new"),
        "post-scale new web 2",
        f"post-apply {next_number()} new",
    ]
    log.answers(scale=f"{d}\n")
    assert log.words("apps:scale", "new", "web=1") == [
        "pre-scale new web 1",
        "scale new web 1",
        *change("new"),
        "post-scale new web 1",
        f"post-apply {next_number()} new",
        f"endpoints-retired new {b}",
        f"stop new {b}",
    ]
    log.answers(scale=f"{d}\n{dead}\n")
    assert log.words("apps:scale", "new", "web=2", "--check-timeout", "1", code=12) == [
        "pre-scale new web 2",
        "scale new web 2",
        f"stop new {dead}",
    ]
    assert log.words("apps:rename", "new", "renamed") == [
        *facts("renamed"),
        "pre-apply  new",
        "pre-apply  renamed",
        "post-rename new renamed",
        f"post-apply {next_number()} renamed",
    ]
    assert log.words("apps:report", "renamed") == ["report-rows renamed"]
    assert log.words("doctor", code=two_apps("doctor").code)[-1:] == ["doctor-checks "]
    two_apps.snippet("blog", "no_such_directive on;\n")
    assert log.words("domains:add", "blog", "z.test", code=8)[-1:] == ["apply-failed blog"]
    (two_apps.paths.app("blog") / "nginx.conf.d/own.conf").unlink()
    assert log.words("apps:destroy", "renamed", "--force") == [
        "pre-destroy renamed",
        "pre-apply  renamed",
        "post-destroy renamed",
        f"post-apply {next_number()} renamed",
    ]
    assert blog and two_apps.get("blog.test").body == "blog"
    assert log.seen == set(HOOKS) - AWAITED
    for hook in AWAITED:
        assert log.words("plugins:trigger", hook, "blog") == [f"{hook} blog"]


def test_events_say_what_their_keys_promise(two_apps: Live, log: Log, backend: Callable[[str], Backend]) -> None:
    old, new = (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip(), str(backend("new"))
    swap = {"processes": {"web": {"old": [old], "new": [new]}}, "retired": [old]}
    told = {call["hook"]: call["event"] for call in log.calls("apps:deploy", "blog", new)}
    for hook in ("pre-deploy", "post-deploy"):
        assert {key: told[hook][key] for key in swap} == swap
    assert told["pre-apply"]["vhost"].count(new) == 1 and told["pre-apply"]["apps"] == ["blog"]
    assert told["pre-apply"]["generation"] is None, "it has no number yet"
    assert told["endpoints-retired"]["endpoints"] == [old]
    log.answers(scale=f"{new}\n{old}\n")
    told = {call["hook"]: call["event"] for call in log.calls("apps:scale", "blog", "web=2")}
    assert told["scale"]["endpoints"] == told["pre-scale"]["endpoints"] == [new] and told["scale"]["count"] == 2
    assert told["post-scale"]["endpoints"] == [new, old]
    assert told["post-scale"]["processes"] == {"web": {"old": [new], "new": [new, old]}}
    two_apps.done("domains:add-global", "example.com")
    told = {call["hook"]: call["event"] for call in log.calls("apps:create", "third")}
    assert told["app-hostname"]["domains"] == ["example.com"]
    assert told["pre-create"]["domains"] == told["post-create"]["domains"] == ["third.example.com"]


def test_nothing_that_changes_nothing_is_told(two_apps: Live, log: Log) -> None:
    for command in (("domains:add", "blog", "blog.test"), ("apps:create", "blog"), ("domains:remove", "blog", "not.there")):
        assert [word for word in log.words(*command) if word.startswith(("pre-", "post-"))] == []


def test_the_order_of_calls_is_the_order_that_is_shown(two_apps: Live, isolated: Path) -> None:
    for name, priority in (("zz", 1), ("mm", 50), ("aa", 99), ("bb", 50)):
        two_apps.plugin(name, f"priority = {priority}\n", pre_domains_update=f"echo {name} >>{isolated}/order")
    shown = [line.split()[1] for line in two_apps.done("plugins:hooks", "pre-domains-update").out.splitlines()]
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert (isolated / "order").read_text().split() == shown == ["zz", "bb", "mm", "aa"]


def test_a_veto_is_the_last_word(two_apps: Live, isolated: Path) -> None:
    two_apps.plugin("a-first", pre_domains_update="echo looked; exit 0")
    two_apps.plugin("b-says-no", pre_domains_update="echo it is late >&2; exit 7")
    two_apps.plugin("c-never", pre_domains_update=f"touch {isolated}/asked")
    with two_apps.unchanged():
        result = two_apps("domains:add", "blog", "new.blog.test")
    assert result.code == 6 and "b-says-no" in result.err and "it is late" in result.err and "looked" in result.err, result
    assert not (isolated / "asked").exists()
    assert two_apps.get("new.blog.test").status == 0


#: OWN is a word of the test's own, by which what is left of it is known: the same may run in another process.
FAULTS = [
    ("hangs", "sleep OWN", "no answer within 0.5 s"),
    ("hangs and ignores TERM", "trap '' TERM; sleep OWN; sleep OWN", "no answer within 0.5 s"),
    ("dies", "kill -SEGV $$", "SIGSEGV"),
    ("prints binary", "printf '\\377\\376\\000'", "UTF-8"),
    ("prints for ever", "exec yes OWN", "1048576"),
    ("is no program", None, "cannot be run"),
]


@pytest.mark.parametrize(("fault", "script", "said"), FAULTS, ids=[fault[0] for fault in FAULTS])
def test_whatever_a_hook_does_only_the_change_of_its_app_suffers(two_apps: Live, fault: str, script: str | None, said: str) -> None:
    own = f"61.{two_apps.port}"

    def plugin(name: str, hook: str) -> None:
        text = f'[ "$1" = blog ] || exit 0; {script}'.replace("OWN", own)
        directory = two_apps.plugin(name, "timeout = 0.5\n", **{hook: text})
        if script is None:
            (directory / hook.replace("_", "-")).write_text("no interpreter\n")

    def retires(name: str) -> None:
        two_apps.done("plugins:uninstall", name, "--purge")

    for name, hook, code in (("gatekeeper", "pre_domains_update", 6), ("writer", "nginx_server_snippet", 11)):
        plugin(name, hook)
        with two_apps.unchanged():
            result = two_apps("domains:add", "blog", "new.blog.test")
        assert result.code == code and name in result.err and said in result.err, result
        assert result.seconds < 15
        if script is not None:
            two_apps.done("domains:add", "shop", f"{name}.shop.test")
            assert two_apps.get(f"{name}.shop.test").body == "shop"
        (two_apps.paths.plugins / name / hook.replace("_", "-")).unlink()
        retires(name)
    plugin("listener", "post_domains_update")
    result = two_apps.done("domains:add", "blog", "new.blog.test")
    assert "warning: plugin listener" in result.err and said in result.err, result
    assert two_apps.get("new.blog.test").body == "blog"
    assert not [pid for pid in all_pids() if own in command_line(pid).split()], "nothing of it is left"
    two_apps.is_consistent()


def test_a_hook_may_ask_router_and_a_notify_hook_may_change_the_app(two_apps: Live, isolated: Path) -> None:
    two_apps.plugin(
        "asks",
        pre_domains_update=f'"$ROUTER_BIN" apps:urls "$1" >{isolated}/urls; "$ROUTER_BIN" apps:lock "$1" no; echo $? >{isolated}/locked',
        nginx_server_snippet=f"""[ "$1" = blog ] || exit 0
            "$ROUTER_BIN" apps:report "$1" --domains >{isolated}/domains
            "$ROUTER_BIN" apps:lock shop why""",
        post_domains_update='[ "$3" = new.blog.test ] && "$ROUTER_BIN" domains:add "$1" "also-$3" || true',
    )
    result = two_apps.done("domains:add", "blog", "new.blog.test")
    assert (isolated / "urls").read_text().startswith("http://blog.test")
    assert (isolated / "locked").read_text().strip() == "5"
    assert (isolated / "domains").read_text().split()[0] == "blog.test"
    assert two_apps.done("apps:report", "shop", "--locked").out.strip() == "why", "another app may be changed from everywhere"
    assert two_apps.get("also-new.blog.test").body == "blog", result
    two_apps.is_consistent()


def test_what_is_broken_is_named_and_everything_else_works(two_apps: Live) -> None:
    two_apps.plugin("fine", post_domains_update="echo fine was told")
    two_apps.write("plugins/broken/plugin.toml", "[plugin]\nname = 7\n")
    result = two_apps.done("domains:add", "blog", "new.blog.test")
    assert "broken" in result.err and "fine was told" in result.err
    assert two_apps.done("apps:list").out.split() == ["blog", "shop"]
    rows = {row["name"]: row for row in two_apps.done("plugins:list", "--format", "json").json}
    assert "name" in rows["broken"]["problem"] and rows["fine"]["problem"] is None
