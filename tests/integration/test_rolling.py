"""Deploys in batches (`--batch N`); one contract, with reloads and without."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from .conftest import until
from .instances import Backend, Slow
from .spreading import HOST
from .test_deploy_live import Clients

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(240)


@pytest.fixture
def old(backend: Callable[..., Backend]) -> list[Backend]:
    """Five instances that serve already."""
    return [backend(f"old{n}") for n in range(5)]


@pytest.fixture
def blog(both: Live, old: list[Backend]) -> Live:
    """An app of five instances."""
    both.app("blog", [HOST], old)
    both.done("reconcile")
    return both


def upstreams(live: Live) -> list[str]:
    return (live.store.texts("blog") or {})["UPSTREAMS"].splitlines()


def test_instances_are_exchanged_a_few_at_a_time(blog: Live, old: list[Backend], backend: Callable[..., Backend]) -> None:
    new = [backend(f"new{n}") for n in range(4)]
    clients = Clients(blog.port)
    before = len(blog.journal())
    try:
        result = blog.done("apps:deploy", "blog", *new, old[4], "--batch", "2", "--check", "/")
    finally:
        clients.stop()
    assert result.out.split() == [str(one) for one in old[:4]]
    assert sorted(upstreams(blog)) == sorted(map(str, [*new, old[4]]))
    assert [line["kind"] for line in blog.journal()[before:]] == ["endpoints"] * 2, "two batches"
    assert clients.failures == []
    again = blog.done("apps:deploy", "blog", *new, old[4], "--batch", "2", "--format", "json")
    assert again.json["kind"] == "nothing" and again.json["retired"] == []
    assert "2 batches" in blog.done("apps:deploy", "blog", *old[:4], old[4], "--batch", "2", "--dry-run").err
    assert blog("apps:deploy", "blog", old[0], "--batch", "0").code == 2
    blog.is_consistent()


def test_a_batch_that_fails_ends_it_and_what_serves_is_said(blog: Live, old: list[Backend], backend: Callable[..., Backend]) -> None:
    new = [backend("new0"), backend("new1"), "127.0.0.1:1", backend("new3"), backend("new4")]
    result = blog("apps:deploy", "blog", *new, "--batch", "2", "--check", "/", "--check-timeout", "1")
    assert result.code == 15, "12 would say that nothing was changed, and a script would stop the new ones"
    assert "deployed in part, batch 2 of 3 is not: app blog: endpoint 127.0.0.1:1 failed" in result.err, result
    assert result.out.split() == [str(old[0]), str(old[1])], "those may be stopped"
    serving = [str(one) for one in (new[0], new[1], old[2], old[3], old[4])]
    assert sorted(upstreams(blog)) == sorted(serving)
    assert f"serves {new[0]} {new[1]} (new) and {old[2]} {old[3]} {old[4]} (old)" in result.err
    assert f"go on: router apps:deploy blog {' '.join(map(str, new))} --batch 2 --check / --check-timeout 1;" in result.err
    assert f"back: router apps:deploy blog {' '.join(map(str, old))} --batch 2 --check-timeout 1\n" in result.err
    assert blog.done("apps:deploy", "blog", *old, "--batch", "3").out.split() == [str(new[0]), str(new[1])], "and back"
    with blog.unchanged():
        result = blog("apps:deploy", "blog", "127.0.0.1:1", *new[:2], "--batch", "2", "--check-timeout", "1", "--format", "json")
        assert result.code == 12 and result.out == "" and "serves" not in result.err, "the first batch: nothing was changed"


def busy(both: Live, slow: Slow, second: Backend) -> threading.Thread:
    """An app of two instances, of which the first has a request under way; the thread waits for its answer."""
    both.app("blog", [HOST], [slow])
    both.done("reconcile")
    asking = threading.Thread(target=both.get, args=(HOST, "/slow"))
    asking.start()
    assert slow.held.wait(10)
    both.done("upstreams:add", "blog", second)
    return asking


def test_a_file_that_somebody_breaks_during_a_drain_ends_it_behind_that_batch(
    both: Live, slow: Slow, backend: Callable[..., Backend]
) -> None:
    second, new = backend("old"), [backend("new0"), backend("new1")]
    asking = busy(both, slow, second)
    deploy = both.begin("apps:deploy", "blog", *new, "--batch", "1")
    until(lambda: str(slow) not in upstreams(both), 30, "the first batch")
    both.write("apps/blog/DOMAINS", "no domain at all\n")
    slow.may_go.set()
    result = deploy.wait()
    asking.join(10)
    assert (result.code, result.out) == (15, f"{slow}\n"), result
    assert "deployed in part, batch 2 of 2 is not: " in result.err and "apps/blog/DOMAINS:1" in result.err, result
    assert f"app blog serves {new[0]} (new) and {second} (old) as of batch 1 of 2" in result.err
    assert f"go on: router apps:deploy blog {new[0]} {new[1]} --batch 1; or back: " in result.err


def test_each_is_printed_when_it_may_be_stopped(both: Live, slow: Slow, backend: Callable[..., Backend]) -> None:
    first, second = backend("old"), slow
    both.app("blog", [HOST], [first, second])
    both.done("reconcile")
    new = [backend("new0"), backend("new1")]
    asking = [threading.Thread(target=both.get, args=(HOST, "/slow")) for _ in range(8)]
    for each in asking:  # each worker takes turns of its own: two of them may both begin with the other one
        each.start()
    assert slow.held.wait(10)
    deploy = both.begin("apps:deploy", "blog", *new, "--batch", "1")
    assert deploy.process.stdout
    assert deploy.process.stdout.readline() == f"{first}\n", "though the command goes on"
    assert deploy.process.poll() is None
    until(lambda: str(second) not in upstreams(both), 30, "the second batch")
    deploy.process.send_signal(signal.SIGTERM)
    result = deploy.wait()
    assert result.code == 15 and str(second) in result.err and result.out == "", result
    slow.may_go.set()
    for each in asking:
        each.join(10)


def test_a_first_batch_that_is_not_drained_says_that_some_are_not_there_yet(
    both: Live, slow: Slow, backend: Callable[..., Backend]
) -> None:
    second, new = backend("old"), [backend("new0"), backend("new1")]
    asking = busy(both, slow, second)
    result = both("apps:deploy", "blog", *new, "--batch", "1", "--drain", "0.2", "--drain-strict")
    assert result.code == 15 and result.out == "", result
    assert f"serves {new[0]} (new) and {second} (old)" in result.err
    assert f"go on: router apps:deploy blog {new[0]} {new[1]} --batch 1 --drain 0.2 --drain-strict;" in result.err
    slow.may_go.set()
    asking.join(10)


def test_more_and_fewer(blog: Live, old: list[Backend], backend: Callable[..., Backend]) -> None:
    one, api = backend("one"), [backend("api") for _ in range(3)]
    result = blog.done("apps:deploy", "blog", one, *(f"api={each}" for each in api), "--batch", "2")
    assert result.out.split() == [str(each) for each in old]
    assert sorted(upstreams(blog)) == sorted([str(one), *(f"api {each}" for each in api)])


@pytest.mark.parametrize("batch", [(), ("--batch", "1")])
def test_an_instance_that_was_drained_serves_again_when_a_deploy_names_it(
    both: Live, backend: Callable[..., Backend], batch: tuple[str, ...]
) -> None:
    one = backend("one")
    both.app("blog", [HOST], [f"{one} weight=2"])
    both.done("reconcile")
    both.done("upstreams:drain", "blog", one)
    assert both.get(HOST).status in (502, 503), "nobody is left"
    result = both.done("apps:deploy", "blog", one, *batch)
    assert f"{one} had the flag drain: taken off, it gets requests again" in result.err and result.out == ""
    assert (both.store.texts("blog") or {})["UPSTREAMS"] == f"{one} weight=2\n"
    assert both.get(HOST).body == "one"
    both.is_consistent()
