"""The routes of `updates live` after kills, refusals, lost answers and full memory: the right ones, or the old."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from typing import TYPE_CHECKING

import pytest

from nginx_router.errors import ReloadFailed
from nginx_router.processes import is_alive
from nginx_router.routes import lines

from .conftest import until
from .instances import Backend
from .spreading import HOST, spread
from .updating import pids, socket_of, started_with

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(180)


#: More routes than nginx has memory for.
FILLER = {f"filler{n}": "round_robin 1 10 " + "x" * 100_000 for n in range(400)}


def test_what_else_reloads_keeps_the_routes(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    before = pids(lively)
    lively.done("apps:domains:add", "blog", "www.blog.test")
    assert pids(lively) != before, "a domain is structure"
    assert lively.get("www.blog.test").body == lively.get(HOST).body == "two"
    lively.done("proxy:reload")
    assert lively.get(HOST).body == "two"
    lively.done("apps:destroy", "blog", "--force")
    assert lively.get(HOST).status == 0


@pytest.mark.parametrize("who", ["worker", "master", "all"])
def test_what_is_killed_comes_back_with_the_newest_routes(lively: Live, three: list[Backend], who: str) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("apps:deploy", "blog", three[1])
    master, workers = lively.master, lively.workers()
    assert master
    for pid in {"worker": workers[:1], "master": [master], "all": [master, *workers]}[who]:
        os.kill(pid, signal.SIGKILL)
    if who != "worker":
        until(lambda: not is_alive(master))
        lively.done("proxy:start")
    until(lambda: lively.get(HOST).status == 200)
    assert spread(lively, 10) == {"two": 10}
    assert lively.done("apps:deploy", "blog", three[2]).out == f"{three[1]}\n", "the dead worker's requests are over"
    assert spread(lively, 10) == {"three": 10}


@pytest.mark.parametrize("damage", ["cut", "gone", "other"])
def test_a_broken_snapshot_keeps_nobody_from_being_served(lively: Live, three: list[Backend], damage: str) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    lively.done("proxy:stop")
    snapshot = lively.paths.current / "live.tsv"
    text = snapshot.read_text()
    if damage == "gone":
        snapshot.unlink()
    else:
        snapshot.write_text(text[: len(text) // 2] if damage == "cut" else "\0\xff no snapshot\n")
    lively.done("proxy:start")
    assert spread(lively, 5) == {"one": 5}


def test_an_answer_that_is_lost_ends_with_the_right_routes(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    admin = lively.paths.run / "live"
    aside = lively.paths.run / "aside"
    admin.rename(aside)
    try:
        result = lively("apps:deploy", "blog", three[1])
        assert result.code == 9 and "did not take the endpoints up" in result.err, result
        assert spread(lively, 5) == {"one": 5}
        assert str(three[0]) in lively.store.texts("blog")["UPSTREAMS"]  # type: ignore[index]  # it is there
    finally:
        with contextlib.suppress(OSError):
            admin.rmdir()
        aside.rename(admin)
    # taken up, but its word was lost: the next command sends all
    routes = {"router_blog.web": f"round_robin 1 10 {str(three[2]).replace(':', '|')}|1|active"}
    socket_of(lively).take("99-lost", None, lambda: routes)
    assert spread(lively, 5) == {"three": 5}
    assert lively("status").code == 9
    lively.done("apps:lock", "blog")
    assert spread(lively, 5) == {"one": 5}
    lively.serves_current()


def test_what_was_sent_and_given_up_does_not_put_nginx_back(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.connect(str(lively.paths.run / "live/admin.sock"))
        late.sendall(b"GET /version HTTP/1.0\r\n\r\n")
        version, writes = late.recv(65536).partition(b"\r\n\r\n")[2].decode().split()
    assert version == index.live
    body = f"route router_blog.web\tround_robin 1 10 127.0.0.1|{three[2].port}|1|active\n".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as late:
        late.settimeout(10)
        late.connect(str(lively.paths.run / "live/admin.sock"))
        head = f"POST /routes?version=99-late&only=0&from={writes} HTTP/1.0\r\nContent-Length: {len(body)}\r\n\r\n"
        late.sendall(head.encode() + body[:10])
        lively.done("apps:deploy", "blog", three[1])
        lively.done("apps:deploy", "blog", three[0])
        late.sendall(body[10:])
        assert late.recv(65536).startswith(b"HTTP/1.1 409 ")
    assert spread(lively, 5) == {"one": 5}
    lively.serves_current()


def test_whoever_knows_another_version_sends_all(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    one, other = socket_of(lively), socket_of(lively)
    assert one.version() == other.version() == index.live
    moved = dict.fromkeys(index.routes, f"round_robin 1 10 127.0.0.1|{three[1].port}|1|active")
    more = moved | {"router_more.web": "round_robin 1 10"}
    one.take("98-one", lines(index.routes, more), lambda: more)
    other.take("99-other", lines(moved, moved), lambda: moved)
    assert other.version() == "99-other" and spread(lively, 5) == {"two": 5}
    assert one.version() == "99-other"


def test_a_full_memory_refuses_and_loses_nothing(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    admin = socket_of(lively)
    with pytest.raises(ReloadFailed, match="no memory"):
        admin.take(index.live, lines(index.routes, index.routes | FILLER), lambda: index.routes | FILLER)
    assert spread(lively, 5) == {"one": 5}
    lively.done("apps:deploy", "blog", three[1])
    assert spread(lively, 5) == {"two": 5}


def test_a_command_that_needs_more_memory_than_there_is_is_put_back(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.app("shop", ["shop.test"], [three[1]])
    lively.done("reconcile")
    # what 200,000 endpoints do to the memory there is, 900 do to less
    with_memory(lively, "32k")
    many = [f"127.0.0.1:{port}" for port in range(20000, 20900)]
    for _ in range(2):
        with lively.unchanged():
            result = lively("apps:upstreams:add", "blog", *many)
        assert result.code == 9 and "no memory: it has room for some 200,000 endpoints" in result.err, result
        assert (spread(lively, 5), lively.get("shop.test").body) == ({"one": 5}, "two")
        lively.serves_current()
    assert lively.journal()[-1]["exit"] == 9
    lively.done("apps:deploy", "blog", three[2])
    assert spread(lively, 5) == {"three": 5}
    lively.is_consistent()


def with_memory(live: Live, size: str) -> None:
    """Start nginx anew with so little memory for routes."""
    started_with(live, "router.conf", "lua_shared_dict router_routes 32m;\n", f"lua_shared_dict router_routes {size};\n")


def test_after_a_refusal_nobody_goes_by_half_of_it(lively: Live, three: list[Backend]) -> None:
    lively.app("blog", [HOST], [three[0]])
    lively.done("reconcile")
    index = lively.generations.current()
    assert index
    admin = socket_of(lively)
    with pytest.raises(ReloadFailed):
        too_many = {"router_blog.web": f"round_robin 1 10 127.0.0.1|{three[1].port}|1|active"} | FILLER
        admin.take("99-x", lines(index.routes, too_many), lambda: too_many)
    assert admin.version() == "", "what it has now is no version"
    lively.done("apps:lock", "blog")
    assert spread(lively, 20) == {"one": 20}
    lively.serves_current()
