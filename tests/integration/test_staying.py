"""What was to leave and serves again when the wait is over is nobody's to stop; one contract, with reloads and without."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

from .conftest import until
from .instances import Backend, Slow
from .spreading import HOST
from .test_canary import upstreams
from .test_websockets import Chat

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)


@pytest.fixture
def chat(both: Live, backend: Callable[..., Backend]) -> Iterator[Chat]:
    """An app with a websocket that holds up whoever waits for its instance."""
    old = Slow()
    found = Chat(both, old, backend("new"))
    found.connect()
    yield found
    assert found.answer() == 1, "nothing cut it"
    found.end()
    old.close()


@pytest.mark.parametrize(
    "words",
    [
        (["upstreams:add", "blog", "OLD"],),
        (["upstreams:add", "blog", "OLD", "--backup"],),
        (["apps:rename", "blog", "bleg"], ["apps:deploy", "bleg", "OLD", "--drain", "0"]),
        (["apps:create", "shop"], ["upstreams:add", "shop", "OLD"]),
    ],
    ids=["added", "backup", "renamed", "another"],
)
def test_a_deploy_prints_nothing_that_serves_again(chat: Chat, words: tuple[list[str], ...]) -> None:
    live, old = chat.live, str(chat.old)
    deploy = live.begin("apps:deploy", "blog", chat.new, "--drain", "6", "--format", "json")
    until(lambda: live.get(HOST).body == "new", 20)
    for each in words:
        live.done(*(old if word == "OLD" else word for word in each))
    result = deploy.wait(30)
    app = {"bleg": "bleg", "shop": "shop"}.get(words[-1][1], "blog")
    assert result.code == 0 and f"{old} still serves {app}: left running" in result.err, result
    assert (result.json["retired"], result.json["still_running"], result.json["forced"]) == ([], [], 0)
    assert f"left after 6 s on {old}" not in result.err


def test_one_that_is_known_and_gets_nothing_is_printed(chat: Chat) -> None:
    deploy = chat.live.begin("apps:deploy", "blog", chat.new, "--drain", "4")
    until(lambda: chat.live.get(HOST).body == "new", 20)
    chat.live.done("upstreams:add", "blog", chat.old, "--down")
    result = deploy.wait(30)
    assert (result.code, result.out) == (0, f"{chat.old}\n") and "still serves" not in result.err, result


def test_strictly_too_it_is_nobody_s_to_drain(chat: Chat) -> None:
    deploy = chat.live.begin("apps:deploy", "blog", chat.new, "--drain", "4", "--drain-strict")
    until(lambda: chat.live.get(HOST).body == "new", 20)
    chat.live.done("upstreams:add", "blog", chat.old)
    result = deploy.wait(30)
    assert (result.code, result.out) == (0, ""), result


def test_an_instance_of_two_apps_is_printed_when_the_second_lets_go(both: Live, backend: Callable[..., Backend]) -> None:
    shared, new = backend("shared"), backend("new")
    name = str(shared).replace("127.0.0.1", "localhost")
    both.app("blog", [HOST], [shared])
    both.app("shop", ["shop.test"], [name])
    both.done("reconcile")
    result = both.done("apps:deploy", "shop", new)
    assert result.out == "" and f"{name} still serves blog: left running" in result.err, result
    assert both.get(HOST).body == "shared"
    result = both.done("apps:deploy", "blog", new)
    assert result.out == f"{shared}\n" and "still serves" not in result.err, result


@pytest.mark.parametrize("words", [(), ("--drain-strict",)])
def test_another_app_s_requests_to_a_shared_instance_are_not_waited_for(
    both: Live, slow: Slow, backend: Callable[..., Backend], words: tuple[str, ...]
) -> None:
    idle, new = backend("idle"), backend("new")
    both.app("blog", [HOST], [slow, idle])
    both.app("shop", ["shop.test"], [slow])
    both.done("reconcile")
    asking = threading.Thread(target=both.get, args=("shop.test", "/slow"))
    asking.start()
    assert slow.held.wait(10)
    result = both("apps:deploy", "blog", new, "--drain", "20", "--format", "json", *words)
    assert slow.may_go.is_set() is False and result.code == 0, result
    assert (result.json["retired"], result.json["forced"]) == ([str(idle)], 0) and result.json["seconds"] < 10
    assert f"{slow} still serves shop: left running" in result.err and "left after" not in result.err
    slow.may_go.set()
    asking.join(10)


def test_what_another_app_gets_while_hooks_run_is_not_printed(both: Live, backend: Callable[..., Backend]) -> None:
    old, other, new = backend("old"), backend("other"), backend("new")
    both.app("blog", [HOST], [old, other])
    both.app("shop", ["shop.test"], [new])
    both.done("reconcile")
    # the wait is over by then; the hook does what somebody else may do while it runs
    both.plugin("slow", "timeout = 60\n", post_deploy=f'[ "$1" = shop ] || {sys.executable} -m nginx_router upstreams:add shop {old} >&2')
    result = both.done("apps:deploy", "blog", new)
    assert result.out == f"{other}\n" and f"{old} still serves shop: left running" in result.err, result
    assert both.journal()[-1]["command"].startswith("apps:deploy") and both.get("shop.test").body in ("old", "new")


def test_retire_leaves_what_a_deploy_let_in_again_and_retires_the_others(chat: Chat, backend: Callable[..., Backend]) -> None:
    live, old, other = chat.live, str(chat.old), backend("other")
    live.done("upstreams:add", "blog", other, chat.new)
    retire = live.begin("apps:retire", "blog", old, other, "--drain", "6")
    assert retire.process.stderr
    assert any("waiting for" in line for line in iter(retire.process.stderr.readline, "")), "it waits, and has looked who serves"
    deploy = live.done("apps:deploy", "blog", f"web={old}", f"web={other}", "--drain", "0")
    assert deploy.out == f"{chat.new}\n" and "it gets requests again" in deploy.err
    live.done("upstreams:drain", "blog", other, "--drain", "0")
    result = retire.wait(30)
    assert (result.code, result.out) == (15, f"{other}\n"), result
    assert f"{old} does not drain any more: left on blog" in result.err and upstreams(live) == [old]
    assert live.get(HOST).body == "slow"
    live.is_consistent()


def test_drain_claims_nothing_of_one_that_gets_requests_again(chat: Chat) -> None:
    live, old = chat.live, str(chat.old)
    live.done("upstreams:add", "blog", chat.new)
    drain = live.begin("upstreams:drain", "blog", old, "--drain", "4", "--format", "json")
    until(lambda: f"{old} drain" in upstreams(live), 20)
    live.done("upstreams:add", "blog", old)
    result = drain.wait(30)
    assert (result.code, result.out) == (15, ""), result
    assert f"{old} gets requests of blog again: not drained" in result.err and upstreams(live) == [old, str(chat.new)]
