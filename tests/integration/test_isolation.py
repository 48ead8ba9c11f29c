"""One app never harms another: whatever is wrong with one, its change ends in its exit code, and nothing else happens."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from .conftest import Live, Result
    from .instances import Backend

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def taken_port(free_port: Callable[[], int]) -> Iterator[int]:
    """A port that somebody else listens on."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def refused(live: Live, code: int, *argv: object) -> Result:
    """Give a command that must end with `code`, name shop and change nothing; both apps go on."""
    with live.unchanged():
        result = live(*argv)
    assert result.code == code, result
    assert "shop" in result.err and "Traceback" not in result.err, result
    assert len(result.err.splitlines()) <= 2, "one line and one hint"
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    assert live.get("new.shop.test").status == 0
    live.done("status")
    return result


def goes_on(live: Live) -> None:
    """Good changes of both apps are served."""
    live.done("domains:add", "blog", "next.blog.test")
    assert live.get("next.blog.test").body == "blog"
    live.done("domains:add", "shop", "next.shop.test")
    assert live.get("next.shop.test").body == "shop"
    live.is_consistent()
    live.serves_current()


def test_a_port_that_is_taken_ends_in_9_with_nginxs_words(two_apps: Live, taken_port: int) -> None:
    result = refused(two_apps, 9, "ports:add", "shop", "http", f"http:{taken_port}")
    assert f"bind() to 127.0.0.1:{taken_port} failed (98: Address already in use)" in result.err
    goes_on(two_apps)


def test_a_port_that_is_taken_at_the_start_does_not_start_the_proxy(two_apps: Live) -> None:
    two_apps.done("proxy:stop")
    with socket.create_server(("127.0.0.1", two_apps.port)):
        result = two_apps("proxy:start")
    assert result.code == 13 and "Address already in use" in result.err, result
    two_apps.done("proxy:start")
    assert two_apps.get("blog.test").body == "blog"


#: A snippet and what must be said of it.
BROKEN = [
    ("gzip on\n", ("unexpected end of file", "own.conf:")),  # no semicolon
    ("add_header X-A 1;\ngzip perhaps;\n", ('invalid value "perhaps" in "gzip" directive', "own.conf:2", "2: gzip perhaps;")),
    ("no_such_directive on;\n", ('unknown directive "no_such_directive"', "own.conf:1")),
]
HOSTILE = [
    ("} server {\n", ('unexpected "}"', "own.conf:1")),
    ("add_header X-A 1; }\nserver { return 200 stolen;\n", ('unexpected "}"', "own.conf:1")),
    ("server_name blog.test;\n", ("server_name", "own.conf:1")),
    ("listen 80;\n", ("listen", "own.conf:1")),
    ("location /x { include /etc/passwd; }\n", ("include /etc/passwd", "own.conf:1")),
]


@pytest.mark.parametrize("snippets", [BROKEN, HOSTILE], ids=["broken", "hostile"])
def test_a_snippet_that_cannot_be_served_ends_in_8(two_apps: Live, snippets: list[tuple[str, tuple[str, ...]]]) -> None:
    for text, words in snippets:
        snippet = two_apps.snippet("shop", text)
        result = refused(two_apps, 8, "domains:add", "shop", "new.shop.test")
        for each in words:
            assert each in result.err, result
    # another app is not concerned by it, before it is repaired
    two_apps.done("domains:add", "blog", "meanwhile.blog.test")
    assert two_apps.get("meanwhile.blog.test").body == "blog"
    snippet.write_text("add_header X-Shop yes;\n")
    goes_on(two_apps)
    assert two_apps.get("shop.test").headers["x-shop"] == "yes"


TEMPLATE = """upstream shop-own {{ server {backend}; }}
server {{
    listen 127.0.0.1:{port};
    server_name {name};
    location / {{ proxy_pass http://shop-own; }}
}}
"""


def test_an_own_template_cannot_take_a_name_that_the_app_does_not_have(two_apps: Live) -> None:
    for name in ("blog.test", "other.test", "*.test", "~.*"):
        own = two_apps.write("apps/shop/nginx.conf.j2", TEMPLATE.format(backend="127.0.0.1:1", port=two_apps.port, name=name))
        result = refused(two_apps, 8, "domains:add", "shop", "new.shop.test")
        assert "nginx.conf.j2:4" in result.err and f"server_name {name}" in result.err, result
    own.unlink()
    goes_on(two_apps)


def test_a_wrong_template_variable_ends_in_7_with_file_line_and_variable(two_apps: Live) -> None:
    own = two_apps.write("apps/shop/nginx.conf.j2", "# fine\n{% if app %}\nserver_name {{ domainz }};\n{% endif %}\n")
    result = refused(two_apps, 7, "domains:add", "shop", "new.shop.test")
    assert "apps/shop/nginx.conf.j2:3" in result.err and "domainz" in result.err, result
    own.write_text("{% if app %}\n{{ app \n")
    result = refused(two_apps, 7, "domains:add", "shop", "new.shop.test")
    assert "apps/shop/nginx.conf.j2:2" in result.err, result
    own.unlink()
    goes_on(two_apps)


def test_an_endpoint_that_does_not_resolve_ends_in_2(two_apps: Live) -> None:
    result = refused(two_apps, 2, "upstreams:add", "shop", "no-such-host.invalid:80")
    assert "no-such-host.invalid" in result.err and "resolve" in result.err, result
    goes_on(two_apps)


def test_a_hand_edited_endpoint_that_does_not_resolve_makes_the_app_stale(two_apps: Live, backend: Callable[[str], Backend]) -> None:
    upstreams = two_apps.paths.app("shop") / "UPSTREAMS"
    good = upstreams.read_text()
    upstreams.write_text("no-such-host.invalid:80\n")
    two_apps.write("apps/blog/DOMAINS", "blog.test\nnext.test\n")
    result = two_apps("reconcile")
    assert result.code == 2 and "shop" in result.err and "no-such-host.invalid" in result.err, result
    assert two_apps.get("shop.test").body == "shop", "its last addresses stay"
    assert two_apps.get("next.test").body == "blog", "the others are taken up"
    status = two_apps("status", "--format", "json")
    assert status.code == 8
    stale: list[dict[str, Any]] = status.json["stale"]
    assert [s["app"] for s in stale] == ["shop"] and "no-such-host.invalid" in stale[0]["problem"]
    assert two_apps.done("apps:report", "shop", "--format", "json").json["stale"] is True
    upstreams.write_text(good)
    two_apps.done("reconcile")
    goes_on(two_apps)


def name_of(length: int) -> str:
    """A domain of `length` characters, in labels of at most 63."""
    labels = "a" * 63 + "." + "b" * 63 + "." + "c" * 63 + "."
    return labels + "d" * (length - len(labels) - 5) + ".test"


def test_a_name_of_254_characters_is_refused_and_one_of_253_is_served(two_apps: Live) -> None:
    assert (len(name_of(254)), len(name_of(253))) == (254, 253)
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", name_of(254))
    assert result.code == 2 and "253" in result.err, result
    two_apps.done("domains:add", "shop", name_of(253))
    assert two_apps.get(name_of(253)).body == "shop"
    assert two_apps.get(name_of(253).upper()).body == "shop"
    goes_on(two_apps)


def test_of_several_arguments_none_is_taken_when_one_is_wrong(two_apps: Live) -> None:
    result = refused(two_apps, 4, "domains:add", "shop", "new.shop.test", "blog.test")
    assert "app blog" in result.err
    with two_apps.unchanged():
        assert two_apps("domains:add", "shop", "new.shop.test", "a.*.test").code == 2
    assert two_apps.get("new.shop.test").status == 0
    goes_on(two_apps)
