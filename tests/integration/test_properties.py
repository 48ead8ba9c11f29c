"""nginx properties as they are served: set, taken up at once, held by the real nginx, unset again."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from nginx_router.properties import PROPERTIES

from .echoing import Instance, blog, instance, logged, seen, setting, status

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["blog", "instance"]  # fixtures

pytestmark = pytest.mark.timeout(90)

#: A value other than the default, for each property that is one of an app.
SAMPLES = {
    "client-max-body-size": "2m",
    "client-body-buffer-size": "8k",
    "client-body-timeout": "30s",
    "underscore-in-headers": "on",
    "keepalive-timeout": "10s",
    "keepalive-requests": "100",
    "send-timeout": "30s",
    "lingering-timeout": "2s",
    "proxy-connect-timeout": "5s",
    "proxy-read-timeout": "5m",
    "proxy-send-timeout": "500ms",
    "proxy-request-buffering": "off",
    "proxy-buffering": "off",
    "proxy-buffer-size": "8k",
    "proxy-buffers": "16 8k",
    "proxy-busy-buffers-size": "16k",
    "load-balancing": "least_conn",
    "max-fails": "3",
    "fail-timeout": "1s",
    "proxy-next-upstream": "error http_503",
    "proxy-next-upstream-tries": "0",
    "proxy-next-upstream-timeout": "5s",
    "proxy-keepalive": "8",
    "proxy-keepalive-timeout": "30s",
    "proxy-keepalive-requests": "10",
    "trusted-proxies": "10.0.0.0/8",
    "real-ip-header": "X-Real-IP",
    "x-forwarded-for-value": "$proxy_add_x_forwarded_for",
    "x-forwarded-port-value": "443",
    "x-forwarded-proto-value": "https",
    "x-forwarded-ssl": "on",
    "gzip": "on",
    "gzip-types": "text/css",
    "gzip-min-length": "1",
    "error-pages": "default",
    "access-log-path": "named.log",
    "access-log-format": "json",
    "error-log-path": "errors.txt",
    "bind-address-ipv4": "127.0.0.1",
    "bind-address-ipv6": "off",
    "disable-custom-config": "true",
}


def post(size: int, host: str = "blog.test") -> bytes:
    return f"POST / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n".encode() + b"x" * size


def test_every_property_has_a_sample_and_each_is_served_and_unset(live: Live, instance: Callable[[], Instance]) -> None:
    assert set(SAMPLES) == {name for name, p in PROPERTIES["nginx"].items() if not p.host}
    need = {"x-forwarded-for-value": "trusted-proxies", "gzip-types": "gzip", "gzip-min-length": "gzip"}
    one = instance()
    for name, value in SAMPLES.items():
        assert value != PROPERTIES["nginx"][name].default
        keys = [name, *([need[name]] if name in need else []), *(["proxy-buffers"] if name == "proxy-busy-buffers-size" else [])]
        live.app(name, [f"{name}.test"], [one], **{"app.toml": "[nginx]\n" + "".join(f'{key} = "{SAMPLES[key]}"\n' for key in keys)})
    live.done("reconcile")
    vhosts = {}
    for name, value in SAMPLES.items():
        assert seen(live, f"{name}.test"), name
        entry = live.generations.current().apps[name]  # type: ignore[union-attr]  # there is one
        vhosts[name] = live.generations.object(str(entry.vhost)).decode()
        directive = PROPERTIES["nginx"][name].directive
        assert not directive or f"    {directive} {value};" in vhosts[name].splitlines()
        live.write(f"apps/{name}/app.toml", "")
    live.done("reconcile")
    index = live.generations.current()
    assert index
    plain = {live.generations.object(str(index.apps[name].vhost)).decode().replace(name, "APP") for name in SAMPLES}
    assert len(plain) == 1, "without a property all are alike"
    silent = {name for name in SAMPLES if vhosts[name].replace(name, "APP").replace(", app.toml", "") in plain}
    # what goes without a trace: addresses that the host has anyway, and a template that is not there
    assert silent == {"bind-address-ipv4", "bind-address-ipv6", "disable-custom-config", "real-ip-header"}


def test_all_of_them_together(blog: Live) -> None:
    blog.write("apps/blog/app.toml", "[nginx]\n" + "".join(f'{key} = "{value}"\n' for key, value in SAMPLES.items()))
    blog.done("reconcile", "blog")
    assert seen(blog)["x-forwarded-ssl"] == "on"
    blog.serves_current()


def test_a_property_is_taken_up_at_once_and_unset_returns_to_the_default(blog: Live) -> None:
    assert status(blog, post(2_000_000)) == 413
    setting(blog, "client-max-body-size", "3m")
    assert status(blog, post(2_000_000)) == 200
    assert status(blog, post(2_000_000, "shop.test")) == 413
    blog.done("nginx:set", "--global", "client-max-body-size", "4m")
    assert status(blog, post(3_500_000)) == 413, "the app's own counts before the host's"
    assert status(blog, post(3_500_000, "shop.test")) == 200
    report = blog.done("nginx:report", "blog", "--format", "json").json
    assert [report[f"{form}client-max-body-size"] for form in ("", "global-", "computed-")] == ["3m", "4m", "3m"]
    blog.done("nginx:set", "blog", "client-max-body-size")
    assert status(blog, post(3_500_000)) == 200
    blog.done("nginx:set", "--global", "client-max-body-size")
    assert status(blog, post(2_000_000)) == 413


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["client-max-body-size", "2m; deny all"], "is not a size"),
        (["client-max-body-siz", "2m"], "did you mean client-max-body-size?"),
        (["hsts", "on"], "hsts is refused: it belongs to certificates"),
        (["nginx-service-command", "/bin/true"], "is refused: root would run"),
        (["client-header-timeout", "5s"], "is the host's alone"),
        (["access-log-format", "$http_cookie"], "access-log-format '$http_cookie' is not main, json"),
        (["proxy-buffer-size", "64k"], "proxy-buffers (8 4k)"),
        (["x-forwarded-proto-value", "$http_x_forwarded_proto"], "trusted-proxies is off"),
        (["trusted-proxies", "0.0.0.0/0"], "not everybody's"),
    ],
)
def test_a_value_that_cannot_be_is_refused_and_nothing_is_changed(blog: Live, words: list[str], said: str) -> None:
    with blog.unchanged():
        result = blog("nginx:set", "blog", *words)
    assert result.code == 2 and said in result.err, result


def test_a_host_wide_value_that_does_not_fit_one_app_names_it(blog: Live) -> None:
    setting(blog, "proxy-buffers", "2 4k")
    with blog.unchanged():
        result = blog("nginx:set", "--global", "proxy-buffer-size", "8k")
    assert result.code == 2 and "app blog: proxy-buffer-size 8k" in result.err, result


def test_a_hand_edited_value_that_cannot_be_makes_the_app_stale_with_file_and_line(blog: Live) -> None:
    blog.write("apps/blog/app.toml", '# mine\n[nginx]\nhsts = "true"\n')
    result = blog("reconcile", "blog")
    assert result.code == 2 and "apps/blog/app.toml:3: nginx property hsts is refused" in result.err, result
    assert seen(blog) and blog("status").code == 8


def test_who_the_client_is_is_believed_from_trusted_proxies_alone(blog: Live) -> None:
    claims = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https", "X-Forwarded-Port": "443", "X-Forwarded-Host": "evil.test"}
    mine = {"x-forwarded-for": "127.0.0.1", "x-real-ip": "127.0.0.1", "x-forwarded-proto": "http", "x-forwarded-host": "blog.test"}
    mine["x-forwarded-port"] = str(blog.port)

    def told(host: str = "blog.test", **headers: str) -> dict[str, Any]:
        found = seen(blog, host, **headers)
        return {key: found.get(key) for key in mine}

    assert told(**claims) == mine
    setting(blog, "trusted-proxies", "192.0.2.0/24")
    assert told(**claims) == mine, "this client is no proxy of theirs"
    setting(blog, "trusted-proxies", "127.0.0.0/8 ::1")
    believed = {"x-forwarded-for": "6.6.6.6, 127.0.0.1", "x-real-ip": "6.6.6.6", "x-forwarded-proto": "https", "x-forwarded-port": "443"}
    assert told(**claims) == believed | {"x-forwarded-host": "evil.test"}
    assert told() == mine, "a proxy that says nothing"
    assert told(**{"X-Forwarded-Proto": "gopher"})["x-forwarded-proto"] == "http"
    # of a chain the last that is no proxy is the client: what stands before it anybody may have written
    assert told(**{"X-Forwarded-For": "6.6.6.6, 7.7.7.7, 127.0.0.2"})["x-real-ip"] == "7.7.7.7"
    assert told("shop.test", **claims)["x-real-ip"] == "127.0.0.1"
    setting(blog, "real-ip-header", "CF-Connecting-IP")
    assert told(**claims, **{"CF-Connecting-IP": "8.8.8.8"})["x-real-ip"] == "8.8.8.8"
    setting(blog, "x-forwarded-for-value", "$remote_addr")
    assert told(**claims, **{"CF-Connecting-IP": "8.8.8.8"})["x-forwarded-for"] == "8.8.8.8"
    assert logged(blog, "blog-access.log", "\n8.8.8.8 "), "logs and limits see the client too"


def test_trusted_proxies_of_the_host_hold_for_every_app_and_one_may_do_without(blog: Live) -> None:
    blog.done("nginx:set", "--global", "trusted-proxies", "127.0.0.1")
    claim = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "6.6.6.6"}
    assert seen(blog, "shop.test", **claim)["x-forwarded-proto"] == "https"
    assert seen(blog, "blog.test", **claim)["x-real-ip"] == "6.6.6.6"
    setting(blog, "trusted-proxies", "off")
    assert seen(blog, "blog.test", **claim)["x-forwarded-proto"] == "http"
    assert seen(blog, "blog.test", **claim)["x-real-ip"] == "127.0.0.1"


def test_what_a_client_claims_of_tls_does_not_reach_the_app(blog: Live) -> None:
    assert "x-forwarded-ssl" not in seen(blog, **{"X-Forwarded-Ssl": "on"})
    setting(blog, "x-forwarded-ssl", "off")
    assert seen(blog, **{"X-Forwarded-Ssl": "on"})["x-forwarded-ssl"] == "off"


def test_headers_with_an_underscore(blog: Live) -> None:
    assert "a_b" not in seen(blog, a_b="1")
    setting(blog, "underscore-in-headers", "on")
    assert seen(blog, a_b="1")["a_b"] == "1"
    assert "a_b" not in seen(blog, "shop.test", a_b="1")


def test_gzip(blog: Live) -> None:
    accept = {"Accept-Encoding": "gzip"}
    assert "content-encoding" not in blog.get("blog.test", "/css", **accept).headers
    setting(blog, "gzip", "on")

    def packed(path: str, **headers: str) -> bool:
        with socket.create_connection(("127.0.0.1", blog.port), timeout=10) as client:
            lines = "".join(f"{k}: {v}\r\n" for k, v in headers.items())
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: blog.test\r\nConnection: close\r\n{lines}\r\n".encode())
            answer = b""
            while data := client.recv(65536):
                answer += data
        head, _, body = answer.partition(b"\r\n\r\n")
        if b"Content-Encoding: gzip" in head:
            assert b"Vary: Accept-Encoding" in head
            assert gzip.decompress(body.partition(b"\r\n")[2].rpartition(b"\r\n0\r\n")[0] if b"chunked" in head else body)
        return b"Content-Encoding: gzip" in head

    assert packed("/css", **accept) and packed("/css", **accept, Via="1.1 cdn")
    assert not packed("/css")
    setting(blog, "gzip-types", "application/json")
    assert not packed("/css", **accept)
    setting(blog, "gzip-min-length", "1")
    assert packed("/", **accept)
    setting(blog, "gzip-min-length", "100000")
    assert not packed("/", **accept)


def test_timeouts_and_error_pages(blog: Live) -> None:
    setting(blog, "proxy-read-timeout", "100ms")
    answer = blog.get("blog.test", "/slow")
    assert answer.status == 504 and "nginx" in answer.body
    setting(blog, "error-pages", "default")
    answer = blog.get("blog.test", "/slow")
    assert answer.status == 504 and "504: no answer" in answer.body and "The app blog" in answer.body
    request_id = answer.body.partition("Request ")[2].partition(".")[0]
    assert logged(blog, "blog-access.log", f" {request_id}\n"), "the person who calls can be found in the log"
    own = blog.get("blog.test", "/status/503")
    assert own.status == 503 and "no answer" not in own.body, "an app's own errors stay"
    assert blog.get("shop.test", "/status/502").status == 502


def test_client_timeouts(blog: Live) -> None:
    setting(blog, "client-body-timeout", "200ms")
    blog.done("nginx:set", "--global", "client-header-timeout", "200ms")
    began = time.monotonic()
    assert status(blog, b"POST / HTTP/1.1\r\nHost: blog.test\r\nContent-Length: 10\r\n\r\nx") in (408, 0)
    assert status(blog, b"GET / HTTP/1.1\r\nHost: blog.test\r\n") in (408, 0)
    assert time.monotonic() - began < 5
    answer = blog.get("blog.test")
    assert "keep-alive" in answer.headers.get("connection", "keep-alive")
    setting(blog, "keepalive-timeout", "0")
    assert blog.get("blog.test").headers["connection"] == "close"


def test_an_upload_streams_where_it_is_not_buffered(live: Live, instance: Callable[[], Instance]) -> None:
    one = instance()
    live.app("blog", ["blog.test"], [one])
    live.done("reconcile")
    head = b"POST / HTTP/1.1\r\nHost: blog.test\r\nConnection: close\r\nContent-Length: 40000\r\n\r\n"

    def upload(streams: bool) -> None:
        one.body = 0
        with socket.create_connection(("127.0.0.1", live.port), timeout=10) as client:
            client.sendall(head + b"x" * 20000)
            deadline = time.monotonic() + (10 if streams else 0.5)
            while one.body < 20000 and time.monotonic() < deadline:
                time.sleep(0.01)
            assert (one.body >= 20000) is streams
            client.sendall(b"x" * 20000)
            assert b" 200 " in client.recv(65536)

    upload(streams=False)
    setting(live, "proxy-request-buffering", "off")
    upload(streams=True)


def test_another_instance_is_tried_as_the_property_says(live: Live, instance: Callable[[], Instance]) -> None:
    bad, good = instance(), instance()
    bad.answer = 503
    live.app("blog", ["blog.test"], [f"{bad} weight=1000", good])
    live.done("reconcile")
    assert live.get("blog.test").status == 503
    live.done("nginx:set", "blog", "proxy-next-upstream", "error", "timeout", "http_503")
    assert live.get("blog.test").status == 200
    setting(live, "max-fails", "0")
    before = bad.asked
    for _ in range(5):
        assert live.get("blog.test").status == 200
    assert bad.asked >= before + 5, "with max-fails 0 it is asked each time"
    live.done("nginx:set", "blog", "proxy-next-upstream-tries", "1")
    assert live.get("blog.test").status == 503


def test_ways_of_choosing(live: Live, instance: Callable[[], Instance]) -> None:
    instances = [instance() for _ in range(3)]
    live.app("blog", ["blog.test"], instances)
    live.done("reconcile")
    for method, most in (("round_robin", 3), ("least_conn", 3), ("random two", 3), ("ip_hash", 1)):
        live.done("nginx:set", "blog", "load-balancing", method)
        ports = {seen(live)["port"] for _ in range(60)}
        assert len(ports) == most, method
    with live.unchanged():
        result = live("upstreams:add", "blog", "127.0.0.1:1", "--backup")
    assert result.code == 2 and "load-balancing ip_hash knows no backups" in result.err, result
    # least_conn by one count for all workers: who is busy is left out
    live.done("nginx:set", "blog", "load-balancing", "least_conn")
    before = {one.server_port: one.asked for one in instances}
    slow = threading.Thread(target=live.get, args=("blog.test", "/slow"))
    slow.start()
    deadline = time.monotonic() + 10
    while not (busy := [one for one in instances if one.asked > before[one.server_port]]):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    ports = {seen(live)["port"] for _ in range(40)}
    busy[0].awaited.set()
    slow.join(10)
    assert busy[0].server_port not in ports and len(ports) == 2


def test_an_app_is_served_on_the_address_that_it_chose(live: Live, instance: Callable[[], Instance]) -> None:
    live.app("blog", ["blog.test"], [instance()])
    live.app("shop", ["shop.test"], [instance()])
    live.done("reconcile")
    live.done("proxy:set", "--global", "bind-address", "127.0.0.1 127.0.0.2")
    setting(live, "bind-address-ipv4", "127.0.0.2")

    def answers(host: str, ip: str) -> bool:
        with socket.create_connection((ip, live.port), timeout=10) as client:
            client.sendall(f"GET / HTTP/1.0\r\nHost: {host}\r\n\r\n".encode())
            return b" 200 " in client.recv(65536)

    assert [answers("blog.test", ip) for ip in ("127.0.0.1", "127.0.0.2")] == [False, True]
    assert [answers("shop.test", ip) for ip in ("127.0.0.1", "127.0.0.2")] == [True, True]
    assert not answers("nobody.test", "127.0.0.2"), "the address has its default site"
    with live.unchanged():
        result = live("nginx:set", "shop", "bind-address-ipv4", "127.0.0.3")
    assert result.code == 2 and "127.0.0.3 is not among the host's addresses" in result.err, result
