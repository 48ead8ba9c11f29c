"""Canaries: a share of the clients, and nobody else, gets the new instances; one contract, with reloads and without."""

from __future__ import annotations

import contextlib
import http.client
import re
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import pytest

from .instances import Backend
from .spreading import HOST
from .test_deploy_live import Clients
from .test_sticky import marks, places
from .updating import pids

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(240)

MANY = marks(1000)


@pytest.fixture
def old(backend: Callable[..., Backend]) -> list[Backend]:
    """The instances that serve already."""
    return [backend("old"), backend("old")]


@pytest.fixture
def new(backend: Callable[..., Backend]) -> Backend:
    """The canary."""
    return backend("new")


@pytest.fixture
def blog(both: Live, old: list[Backend]) -> Live:
    """An app of two instances."""
    both.app("blog", [HOST], old)
    both.done("reconcile")
    return both


def lucky(live: Live, clients: list[str] = MANY) -> set[str]:
    """The clients that get the canary."""
    return {mark for mark, name in places(live, clients).items() if name == "new"}


def upstreams(live: Live) -> list[str]:
    return (live.store.texts("blog") or {})["UPSTREAMS"].splitlines()


def begin(live: Live, new: object, share: str = "10%", *more: str) -> Any:
    return live.done("apps:deploy", "blog", new, "--canary", share, *more)


def test_a_share_of_the_clients_gets_it_and_keeps_it_when_the_share_grows(blog: Live, old: list[Backend], new: Backend) -> None:
    clients = Clients(blog.port)
    try:
        result = begin(blog, new)
        assert result.out == "" and "nobody aborts the canary by itself" in result.err, "the old ones stay"
        assert upstreams(blog) == [str(old[0]), str(old[1]), f"{new} canary"]
        ten = lucky(blog)
        assert 70 <= len(ten) <= 130, len(ten)
        assert lucky(blog) == ten, "clients, not requests"
        for _ in range(3):
            assert blog.done("trace", HOST, "--format", "json").json["problems"] == [], "whoever answers, it is one of those expected"
        blog.done("apps:traffic:set", "blog", "25%")
        assert blog.journal()[-1]["kind"] == "endpoints"
        more = lucky(blog)
        assert ten < more and 200 <= len(more) <= 300, len(more)
        blog.done("apps:traffic:set", "blog", "0")
        assert lucky(blog) == set(), "nobody"
        blog.done("apps:traffic:set", "blog", "100%")
        assert lucky(blog) == set(MANY), "everybody"
        said = blog.done("apps:report", "blog", "--format", "json").json
        assert said["canary"] == "100%" and [e["canary"] for e in said["endpoints"]] == [False, False, True]
        since = blog.done("apps:traffic:report", "blog", "--since").out.strip()
        assert abs((datetime.now(UTC) - datetime.fromisoformat(since)).total_seconds()) < 200
        assert blog.done("apps:traffic:report", "blog", "--format", "json").json == {
            "app": "blog", "canary": "100%", "served": f"100% of the clients get {new}", "since": since, "endpoints": [str(new)],
            "max_errors": "5%", "aborted": None,
        }  # fmt: skip
        assert blog.done("status", "--format", "json").json["canaries"] == [
            {
                "app": "blog", "canary": "100%", "endpoints": [str(new)], "draining": [], "down": [], "alone": [], "unreached": None,
                "since": since,
            },
        ]  # fmt: skip
        assert re.search(rf"canary +blog: 100% of the clients get {new}, for \d+ (s|min)\n", blog.done("status").out)
        result = blog.done("apps:deploy", "blog", "--promote")
        assert result.out == f"{old[0]}\n{old[1]}\n"
        assert blog.done("status", "--format", "json").json["canaries"] == []
        assert upstreams(blog) == [str(new)] and not (blog.store.texts("blog") or {}).get("app.toml")
        assert set(places(blog, MANY[:20]).values()) == {"new"}
    finally:
        clients.stop()
    assert clients.failures == []
    assert "set-cookie" not in blog.get(HOST).headers, "nobody needs a mark any more"
    blog.is_consistent()


def test_both_settings_of_an_app_are_one_answer(blog: Live, new: Backend) -> None:
    begin(blog, new)
    found = blog.done("traffic:set", "blog", "25%", "--max-errors", "1%", "--format", "json").json
    assert (found["app"], found["kind"], found["notes"]) == ("blog", "endpoints", [])
    found = blog.done("traffic:set", "blog", "25%", "--max-errors", "", "--format", "json").json
    assert (found["kind"], found["notes"]) == ("nothing", ["canary is 25% already"])
    assert blog.done("traffic:report", "blog", "--max-errors").out == "5%\n"


def test_an_abort_sends_everybody_back(blog: Live, old: list[Backend], new: Backend) -> None:
    begin(blog, new, "50%", "--check", "/")
    assert lucky(blog, MANY[:40])
    first = blog.get(HOST)
    mark = first.headers["set-cookie"].partition("=")[2].partition(";")[0]
    assert places(blog, [mark]) == {mark: first.body}, "from its first request on"
    with blog.unchanged():
        for reason in ("too\nslow", "\x1b[31m"):
            result = blog("apps:deploy", "blog", "--abort", "--reason", reason)
            assert result.code == 2 and "one line of text" in result.err
    result = blog.done("apps:deploy", "blog", "--abort", "--reason", "too slow", "--format", "json")
    assert (result.json["retired"], result.json["canary"], result.json["kind"]) == ([str(new)], None, "endpoints")
    assert lucky(blog, MANY[:40]) == set() and upstreams(blog) == [str(old[0]), str(old[1])]
    assert blog.done("apps:report", "blog", "--aborted").out == "too slow\n"
    blog.done("apps:deploy", "blog", old[0])
    assert blog.done("apps:report", "blog", "--aborted").out == "\n", "until the next deploy"


def test_no_plugin_keeps_a_canary_from_being_aborted(blog: Live, new: Backend) -> None:
    blog.plugin("tag", nginx_server_snippet='echo "add_header X-Tag tag always;"')
    begin(blog, new)
    hooks = ("pre_deploy", "pre_apply", "nginx_http_snippet", "nginx_server_snippet", "nginx_app_template_source", "template_dirs")
    blog.plugin("tag", **dict.fromkeys(hooks, "kill -9 $$"))
    with blog.unchanged():
        assert blog("apps:deploy", "blog", "--promote").code == 6
    blog.done("apps:deploy", "blog", "--abort", "--dry-run")
    assert blog.done("apps:deploy", "blog", "--abort").out == f"{new}\n"
    answer = blog.get(HOST)
    assert (answer.body, answer.headers["x-tag"]) == ("old", "tag"), "what plugins gave it stays"
    blog.serves_current()


@pytest.mark.parametrize("out", ["drain", "retire", "remove", "down", "hand"])
def test_an_abort_never_takes_the_last_that_gets_requests(blog: Live, old: list[Backend], new: Backend, out: str) -> None:
    begin(blog, new)
    if out == "hand":
        blog.write("apps/blog/UPSTREAMS", f"{old[0]} down\n{new} canary\n")
        blog.done("reconcile")
    elif out == "down":
        blog.done("upstreams:add", "blog", *old, "--down")
    else:
        blog.done({"drain": "upstreams:drain", "retire": "apps:retire", "remove": "upstreams:remove"}[out], "blog", *old)
    for more in ([], ["--dry-run"]):
        with blog.unchanged():
            result = blog("apps:deploy", "blog", "--abort", *more)
            assert (result.code, result.out) == (4, ""), result
            assert f"without its canary no web instance would get requests: {new}" in result.err
            assert "router apps:deploy blog --promote" in result.err
    assert set(places(blog, MANY[:20]).values()) == {"new"}
    blog.done("upstreams:add", "blog", old[0])
    assert blog.done("apps:deploy", "blog", "--abort").out == f"{new}\n"
    assert set(places(blog, MANY[:20]).values()) == {"old"}
    blog.is_consistent()


def test_other_flags_leave_it_a_canary(blog: Live, old: list[Backend], new: Backend) -> None:
    begin(blog, new, "50%")
    for words, flags in ((["add", "--weight", "5"], " weight=5 canary"), (["add", "--down"], " down canary"), (["add"], " canary")):
        blog.done(f"upstreams:{words[0]}", "blog", new, *words[1:])
        assert upstreams(blog)[-1] == f"{new}{flags}"
    assert "is there already on blog" in blog.done("upstreams:add", "blog", new).err
    blog.done("upstreams:set", "blog", old[0], new, "--weight", "2")
    assert upstreams(blog) == [f"{old[0]} weight=2", f"{new} weight=2 canary"]
    assert 5 <= len(lucky(blog, MANY[:40])) <= 35


def test_status_says_who_drains_and_not_that_clients_get_it(blog: Live, new: Backend, backend: Callable[..., Backend]) -> None:
    other = backend("new")
    blog.done("apps:deploy", "blog", new, other, "--canary", "10%")
    blog.done("upstreams:drain", "blog", new)
    assert re.search(rf"canary +blog: 10% of the clients get {other}, for \d+ (s|min); {new} drains\n", blog.done("status").out)
    (found,) = blog.done("status", "--format", "json").json["canaries"]
    assert (found["endpoints"], found["draining"], found["down"]) == ([str(new), str(other)], [str(new)], [])
    blog.done("upstreams:add", "blog", other, "--down")
    said = blog.done("status").out
    assert f"blog: {new} drains; {other} is down\n" in said and "of the clients" not in said


def test_what_is_said_of_who_gets_it_is_what_is_served(blog: Live, old: list[Backend], new: Backend) -> None:
    begin(blog, new, "0%")
    assert f"0% of the clients get {new}" in blog.done("status").out and set(places(blog, MANY[:10]).values()) == {"old"}
    assert "no other instance is up" not in blog.done("upstreams:drain", "blog", old[0]).err
    said = f"all clients get the canary of blog, {new}: no other instance is up\n"
    assert said in blog.done("apps:retire", "blog", *old).err
    assert set(places(blog, MANY[:10]).values()) == {"new"}
    for shown in (blog.done("status").out, blog.done("traffic:report", "blog", "--served").out):
        assert f"all clients get {new}: no other instance is up\n" in shown and "% of the clients" not in shown
    (found,) = blog.done("status", "--format", "json").json["canaries"]
    assert (found["canary"], found["alone"], found["unreached"]) == ("0%", [str(new)], None)
    blog.done("domains:disable", "blog")
    for shown in (blog.done("status").out, blog.done("traffic:report", "blog", "--served").out):
        assert f"nobody gets {new}: the domains of blog are disabled\n" in shown
    blog.done("domains:enable", "blog")
    blog.done("upstreams:add", "blog", old[0])
    assert f"0% of the clients get {new}, for " in blog.done("status").out
    assert said in blog.done("upstreams:remove", "blog", old[0]).err


@pytest.mark.parametrize("method", ["round_robin", "cookie", "ip_hash", "random two", "least_conn"])
def test_where_no_canary_answers_its_clients_get_the_others(blog: Live, new: Backend, backend: Callable[..., Backend], method: str) -> None:
    blog.done("nginx:set", "blog", "load-balancing", method)
    blog.done("nginx:set", "blog", "max-fails", "2")
    other = backend("new")
    blog.done("apps:deploy", "blog", new, other, "--canary", "100%")
    assert set(places(blog, MANY[:10]).values()) == {"new"}
    new.close()
    assert set(places(blog, MANY[:10]).values()) == {"new"}
    other.close()
    assert set(places(blog, MANY[:30]).values()) == {"old"}
    assert set(places(blog, MANY[:30]).values()) == {"old"}


def test_only_one_at_a_time_and_nothing_beside_it(blog: Live, old: list[Backend], new: Backend, backend: Callable[..., Backend]) -> None:
    with blog.unchanged():
        for words, code, said in (
            (["--promote"], 3, "has no canary"),
            (["--abort"], 3, "has no canary"),
            ([old[0], "--canary", "10%"], 2, "is an instance of web already"),
            ([f"api={new}", "--canary", "10%"], 2, "no api instance"),
            ([new, "--canary", "101%"], 2, "is not a share"),
            ([new, "--canary", "10%", "--create"], 2, "do not go together"),
            ([new, "--canary", "10%", "--batch", "0"], 2, "do not go together"),
            (["--promote", "--batch", "0"], 2, "do not go together"),
            ([new, "--promote"], 2, "takes no ADDRESS"),
            ([], 2, "ADDRESS... is missing"),
            (["127.0.0.1:1", "--canary", "10%", "--check-timeout", "1"], 12, "127.0.0.1:1"),
        ):
            result = blog("apps:deploy", "blog", *words)
            assert result.code == code and said in result.err, f"{words}: {result}"
        assert blog("apps:traffic:set", "blog", "10%").code == 3
        result = blog.done("apps:deploy", "blog", new, "--canary", "10%", "--dry-run")
        assert f"+{new} canary" in result.out, result
    begin(blog, new)
    with blog.unchanged():
        for words in ([backend("x"), "--canary", "5%"], [backend("y")]):
            result = blog("apps:deploy", "blog", *words)
            assert result.code == 4 and str(new) in result.err and "--promote, or --abort" in result.err, result
        blog.done("apps:deploy", "blog", "--abort", "--dry-run")
        blog.done("apps:deploy", "blog", "--promote", "--dry-run")


def test_the_share_goes_with_the_last_instance(blog: Live, new: Backend, backend: Callable[..., Backend]) -> None:
    other = backend("new")
    begin(blog, new, "50%")
    blog.done("upstreams:add", "blog", other)
    blog.write("apps/blog/UPSTREAMS", "".join(f"{line}\n" for line in upstreams(blog)).replace(f"{other}\n", f"{other} canary\n"))
    blog.done("reconcile")
    assert "is ended" not in blog.done("apps:retire", "blog", new).err
    assert blog.done("traffic:report", "blog", "--canary").out == "50%\n", "one is left"
    assert "the canary of blog is ended" in blog.done("apps:retire", "blog", other).err
    assert not (blog.store.texts("blog") or {})["app.toml"]
    blog.write("apps/blog/UPSTREAMS", "".join(f"{line}\n" for line in [*upstreams(blog), f"{new} canary"]))
    blog.done("reconcile")
    assert lucky(blog, MANY[:40]) == set(), "no share is left over"
    blog.is_consistent()


def test_who_changes_updates_meanwhile_is_told_that_clients_move(blog: Live, new: Backend) -> None:
    other = "reload" if blog.done("status", "--updates").out == "live\n" else "live"
    words = ("proxy:set", "--global", "updates")
    begin(blog, new, "30%")
    assert "blog (30%)" in blog.done(*words, other, "--dry-run").err
    assert "clients moved" not in blog.done(*words, "live" if other == "reload" else "reload").err, "it is that already"
    result = blog.done(*words, other)
    assert "note: clients moved between old instances and the canary, as many as before and others: blog (30%)" in result.err
    assert 5 <= len(lucky(blog, MANY[:40])) <= 20
    blog.done("traffic:set", "blog", "0%")
    assert "clients moved" not in blog.done(*words, "live" if other == "reload" else "reload").err, "nobody has it"


def test_by_hand(blog: Live, old: list[Backend], new: Backend) -> None:
    blog.write("apps/blog/UPSTREAMS", f"{old[0]}\n{new} canary\n")
    blog.done("reconcile")
    assert lucky(blog, MANY[:40]) == set(), "no share is said"
    blog.write("apps/blog/app.toml", '[traffic]\ncanary = "30%"\n')
    blog.done("reconcile")
    assert 2 <= len(lucky(blog, MANY[:40])) <= 25
    blog.write("apps/blog/app.toml", '[traffic]\ncanary = "some"\n')
    result = blog("reconcile")
    assert result.code == 2 and "apps/blog/app.toml:2" in result.err, result
    blog.write("apps/blog/app.toml", "")
    blog.write("apps/blog/UPSTREAMS", f"{new} canary\n")
    blog.done("reconcile")
    assert set(places(blog, MANY[:10]).values()) == {"new"}, "with nobody beside it it is an instance like any other"


def test_without_a_reload_nothing_is_reloaded(lively: Live, old: list[Backend], new: Backend) -> None:
    lively.app("blog", [HOST], old)
    lively.done("reconcile")
    before = pids(lively)
    begin(lively, new)
    lively.done("apps:traffic:set", "blog", "50%")
    lively.done("apps:deploy", "blog", "--promote")
    assert pids(lively) == before
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", lively.port, timeout=10)) as connection:
        connection.request("GET", "/", headers={"Host": HOST})
        assert connection.getresponse().status == 200


def test_who_begins_one_that_nobody_gets_is_told(blog: Live, new: Backend) -> None:
    assert "no client gets" not in begin(blog, new).err
    blog.done("apps:deploy", "blog", "--abort")
    template = blog.paths.apps / "blog" / "nginx.conf.j2"
    template.write_text(f"server {{ listen 127.0.0.1:{blog.port}; server_name {HOST}; return 204; }}\n")
    blog.done("reconcile")
    assert "no client gets the canary: no server block of app blog parts its clients" in begin(blog, new).err
    blog.done("apps:deploy", "blog", "--abort")
    template.unlink()
    blog.done("domains:clear", "blog")
    assert "no client gets the canary: app blog has no domain" in begin(blog, new).err
