"""Plugins act on changes, and none of them can hold up or harm another app."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)

#: Keeps what a hook was told: a line with its name and arguments, and the event.
NOTE = 'echo "$ROUTER_HOOK $*" >>"$ROUTER_PLUGIN_DATA/calls"; cat >"$ROUTER_PLUGIN_DATA/$ROUTER_HOOK.json"'


def calls(live: Live, plugin: str) -> list[str]:
    file = live.paths.root / "data" / plugin / "calls"
    return file.read_text().splitlines() if file.exists() else []


def told(live: Live, plugin: str, hook: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((live.paths.root / "data" / plugin / f"{hook}.json").read_text())
    return found


def test_a_slow_collect_hook_of_one_app_does_not_hold_up_another(two_apps: Live) -> None:
    usual = two_apps.done("domains:add", "shop", "usual.shop.test").seconds
    two_apps.plugin("slow", nginx_server_snippet='[ "$1" = blog ] && touch "$ROUTER_PLUGIN_DATA/asked" && exec sleep 20; exit 0')
    waiting = two_apps.begin("domains:add", "blog", "slow.blog.test")
    until((two_apps.paths.root / "data/slow/asked").exists)
    meanwhile = two_apps.done("domains:add", "shop", "meanwhile.shop.test")
    assert meanwhile.seconds < usual + 1
    assert two_apps.get("meanwhile.shop.test").body == "shop"
    assert waiting.process.poll() is None, "it still sleeps"
    # a hook that is waited for is ended with its command
    waiting.process.terminate()
    assert waiting.wait(10).code == 143
    assert two_apps.get("slow.blog.test").status == 0
    two_apps.is_consistent()


def test_an_answer_is_kept_so_that_another_apps_change_asks_nobody(two_apps: Live) -> None:
    two_apps.plugin("tag", nginx_server_snippet=f'{NOTE}; echo "add_header X-Tag $1;"')
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert two_apps.get("new.blog.test").headers["x-tag"] == "blog"
    assert calls(two_apps, "tag") == ["nginx-server-snippet blog"]
    two_apps.done("domains:add", "shop", "new.shop.test")
    assert calls(two_apps, "tag") == ["nginx-server-snippet blog", "nginx-server-snippet shop"]
    assert [two_apps.get(f"{app}.test").headers["x-tag"] for app in ("blog", "shop")] == ["blog", "shop"]
    config = two_apps.done("apps:nginx:show-config", "blog").out
    assert "nginx-server-snippet of plugin tag" in config


def test_what_a_collect_hook_breaks_is_its_own_apps_change(two_apps: Live) -> None:
    two_apps.plugin("bad", nginx_server_snippet='[ "$1" = shop ] || exit 0; echo "gzip perhaps;"')
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", "new.shop.test")
    assert result.code == 8 and "nginx-server-snippet of plugin bad:1" in result.err and 'invalid value "perhaps"' in result.err, result
    two_apps.plugin("bad", nginx_server_snippet='[ "$1" = shop ] || exit 0; echo "the licence ran out" >&2; exit 1')
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", "new.shop.test")
    assert result.code == 11 and "plugin bad" in result.err and "the licence ran out" in result.err, result
    two_apps.done("domains:add", "blog", "new.blog.test")
    assert two_apps.get("new.blog.test").body == "blog"


def test_a_gate_refuses_and_nothing_changes(two_apps: Live) -> None:
    two_apps.plugin("guard", pre_domains_update=f'{NOTE}; case "$*" in *evil*) echo "evil names are not sold" >&2; exit 3;; esac')
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", "fine.shop.test", "evil.shop.test")
    assert result.code == 6 and "plugin guard" in result.err and "evil names are not sold" in result.err and "shop" in result.err, result
    assert two_apps.get("fine.shop.test").status == 0
    two_apps.done("domains:add", "shop", "fine.shop.test")
    assert two_apps.get("fine.shop.test").body == "shop"
    assert calls(two_apps, "guard") == [
        "pre-domains-update shop add fine.shop.test evil.shop.test",
        "pre-domains-update shop add fine.shop.test",
    ]
    event = told(two_apps, "guard", "pre-domains-update")
    assert event["app"] == "shop" and event["action"] == "add" and event["domains"] == ["fine.shop.test"]
    assert event["command"] == "domains:add shop fine.shop.test" and event["api"] == 1
    # adding what is there is no change, and nobody is asked
    two_apps.done("domains:add", "shop", "fine.shop.test")
    assert len(calls(two_apps, "guard")) == 2


def test_pre_apply_sees_the_vhost_and_its_refusal_is_for_that_app_alone(two_apps: Live) -> None:
    two_apps.plugin("look", pre_apply=f"{NOTE}; grep -q forbidden $ROUTER_PLUGIN_DATA/pre-apply.json && exit 1; exit 0")
    two_apps.done("domains:add", "shop", "new.shop.test")
    event = told(two_apps, "look", "pre-apply")
    assert event["app"] == "shop" and event["apps"] == ["shop"] and event["kind"] == "structure"
    assert "server_name new.shop.test shop.test;" in event["vhost"] or "server_name shop.test new.shop.test;" in event["vhost"], event[
        "vhost"
    ]
    with two_apps.unchanged():
        assert two_apps("domains:add", "shop", "forbidden.shop.test").code == 6
    two_apps.write("apps/shop/DOMAINS", "shop.test\nforbidden.shop.test\n")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nnew.blog.test\n")
    result = two_apps("reconcile")
    assert result.code == 6 and "shop" in result.err, result
    assert two_apps.get("new.blog.test").body == "blog"
    assert two_apps.get("forbidden.shop.test").status == 0
    assert two_apps("status").code == 8


def test_notify_hooks_are_told_and_cannot_spoil_what_was_done(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    names = (
        "post_create",
        "post_destroy",
        "post_rename",
        "post_domains_update",
        "post_upstreams_update",
        "post_deploy",
        "endpoints_retired",
    )
    two_apps.plugin("a-broken", **dict.fromkeys((*names, "post_apply"), "echo broken >&2; exit 1"))
    two_apps.plugin("b-log", **dict.fromkeys((*names, "post_apply"), NOTE))
    old, new = (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip(), backend("new")
    result = two_apps.done("domains:add", "blog", "new.blog.test")
    assert "a-broken" in result.err and "broken" in result.err, result
    assert told(two_apps, "b-log", "post-domains-update")["domains"] == ["new.blog.test"]
    number = two_apps.generations.current_number()
    assert calls(two_apps, "b-log") == ["post-domains-update blog add new.blog.test", f"post-apply {number} blog"]
    applied = told(two_apps, "b-log", "post-apply")
    assert (applied["generation"], applied["kind"], applied["apps"], applied["problem"]) == (number, "structure", ["blog"], None)
    result = two_apps.done("apps:deploy", "blog", new)
    assert result.out.split() == [old]
    assert told(two_apps, "b-log", "post-deploy")["processes"] == {"web": {"old": [old], "new": [str(new)]}}
    assert told(two_apps, "b-log", "endpoints-retired")["endpoints"] == [old]
    assert f"post-deploy blog web={new}" in calls(two_apps, "b-log") and f"endpoints-retired blog {old}" in calls(two_apps, "b-log")
    two_apps.done("upstreams:add", "blog", old)
    assert told(two_apps, "b-log", "post-upstreams-update")["endpoints"] == [old]
    two_apps.done("apps:create", "third")
    two_apps.done("apps:rename", "third", "fourth")
    assert "post-create third" in calls(two_apps, "b-log") and "post-rename third fourth" in calls(two_apps, "b-log")
    two_apps.done("apps:destroy", "fourth", "--force")
    assert "post-destroy fourth" in calls(two_apps, "b-log")


def test_what_python_hooks_print_is_not_among_the_retired(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    hooks = ("pre_deploy", "nginx_server_snippet", "post_deploy", "endpoints_retired")
    printing = "".join(
        f"@hookimpl\ndef {hook}(event):\n    print('{hook} prints')\n    os.system('echo {hook} starts')\n" for hook in hooks
    )
    two_apps.plugin("chatty")
    two_apps.write(
        "plugins/chatty/plugin.py", f"import os, pluggy\nhookimpl = pluggy.HookimplMarker('router')\nprint('loaded')\n{printing}"
    )
    old, new, newest = (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip(), backend("new"), backend("newest")
    result = two_apps.done("apps:deploy", "blog", new)
    assert result.out == f"{old}\n"
    assert {"loaded", *(f"{hook} {what}" for hook in hooks for what in ("prints", "starts"))} <= set(result.err.splitlines())
    assert two_apps.done("apps:deploy", "blog", newest, "--format", "json").json["retired"] == [str(new)]


def test_a_signal_during_a_notify_hook_ends_the_hook_and_not_what_was_done(two_apps: Live) -> None:
    two_apps.plugin("a-slow", post_domains_update='touch "$ROUTER_PLUGIN_DATA/asked"; exec sleep 20')
    two_apps.plugin("b-log", post_domains_update=NOTE)
    command = two_apps.begin("domains:add", "blog", "new.blog.test")
    until((two_apps.paths.root / "data/a-slow/asked").exists)
    command.process.terminate()
    result = command.wait(10)
    assert result.code == 0 and "a-slow" in result.err and "interrupted" in result.err, result
    assert two_apps.get("new.blog.test").body == "blog"
    assert calls(two_apps, "b-log") == ["post-domains-update blog add new.blog.test"]
    assert two_apps.journal()[-1]["command"] == "domains:add blog new.blog.test"


def test_apply_failed_is_told_with_nginxs_words(two_apps: Live) -> None:
    two_apps.plugin("log", apply_failed=NOTE, post_apply=NOTE)
    two_apps.snippet("shop", "gzip perhaps;\n")
    assert two_apps("domains:add", "shop", "new.shop.test").code == 8
    event = told(two_apps, "log", "apply-failed")
    assert event["apps"] == ["shop"] and 'invalid value "perhaps"' in event["problem"]
    assert [call.split()[0] for call in calls(two_apps, "log")] == ["apply-failed"]


def test_a_hook_that_calls_router_back_cannot_lock_itself_out(two_apps: Live) -> None:
    script = (
        '"$ROUTER_BIN" apps:report "$1" --domains >"$ROUTER_PLUGIN_DATA/report" || exit 9\n'
        '"$ROUTER_BIN" domains:add "$1" back.shop.test 2>"$ROUTER_PLUGIN_DATA/said"; echo $? >"$ROUTER_PLUGIN_DATA/code"'
    )
    two_apps.plugin("back", pre_domains_update=script)
    result = two_apps.done("domains:add", "shop", "new.shop.test")
    data = two_apps.paths.root / "data/back"
    assert (data / "code").read_text().strip() == "5", (data / "said").read_text()
    assert result.seconds < 10 and (data / "report").read_text().split() == ["shop.test"]
    assert two_apps.get("back.shop.test").status == 0 and two_apps.get("new.shop.test").body == "shop"
    # from a notify hook it works: the change is over
    two_apps.plugin("back", post_domains_update='[ "$3" = back.shop.test ] || "$ROUTER_BIN" domains:add "$1" back.shop.test')
    (two_apps.paths.plugins / "back/pre-domains-update").unlink()
    two_apps.done("domains:add", "shop", "third.shop.test")
    assert two_apps.get("back.shop.test").body == "shop"
    two_apps.is_consistent()


def test_scale_lets_a_runner_start_and_stop_instances(two_apps: Live, backend: Callable[[str], Backend], isolated: Path) -> None:
    instances = [backend(f"i{n}") for n in range(3)]
    # this runner has three instances at hand and answers with the first COUNT of them
    two_apps.plugin(
        "run",
        scale=f'{NOTE}; [ "$3" = 0 ] || printf "%s\\n" {" ".join(map(str, instances))} | head -n "$3"',
        stop=NOTE,
    )
    result = two_apps.done("apps:scale", "blog", "web=2")
    assert {two_apps.get("blog.test").body for _ in range(20)} == {"i0", "i1"}
    assert result.out == "", "the runner stopped the old one; nothing is left to the caller"
    event = told(two_apps, "run", "scale")
    assert (event["process"], event["count"]) == ("web", 2)
    assert two_apps.done("apps:scale", "blog", "web=3").code == 0
    assert {two_apps.get("blog.test").body for _ in range(40)} == {"i0", "i1", "i2"}
    two_apps.done("apps:scale", "blog", "web=1")
    assert told(two_apps, "run", "stop")["endpoints"] == [str(instances[1]), str(instances[2])]
    assert two_apps.get("blog.test").body == "i0"
    assert "web = 1" in (two_apps.paths.app("blog") / "app.toml").read_text()
    two_apps.done("apps:scale", "blog", "web=0")
    assert two_apps.get("blog.test").status == 502
    two_apps.is_consistent()


def test_what_a_runner_started_and_does_not_answer_is_stopped_again(two_apps: Live, free_port: Callable[[], int]) -> None:
    dead = f"127.0.0.1:{free_port()}"
    old = (two_apps.paths.app("blog") / "UPSTREAMS").read_text().strip()
    two_apps.plugin("run", scale=f"echo {old}; echo {dead}", stop=NOTE)
    with two_apps.unchanged():
        result = two_apps("apps:scale", "blog", "web=2", "--check-timeout", "1")
    assert result.code == 12 and dead in result.err and "blog" in result.err, result
    assert told(two_apps, "run", "stop")["endpoints"] == [dead]
    assert two_apps.get("blog.test").body == "blog"


def test_scale_without_a_runner_ends_in_3_and_says_what_to_type(two_apps: Live) -> None:
    with two_apps.unchanged():
        result = two_apps("apps:scale", "blog", "web=2")
    assert result.code == 3 and "apps:upstreams:add" in result.err, result
