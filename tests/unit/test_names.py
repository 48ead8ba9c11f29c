from __future__ import annotations

import pytest

from nginx_router import names
from nginx_router.errors import UsageProblem
from nginx_router.names import Endpoint, Port, address, endpoint_argument, endpoint_line, port_entry


@pytest.mark.parametrize("text", ["a", "0", "blog", "my-app", "my.app.example", "a" * 63, "9lives"])
def test_names_of_apps(text: str) -> None:
    assert names.app_name(text) == text


@pytest.mark.parametrize("text", ["", "-a", ".a", "a.", "a-", "A", "a_b", "a b", "a/b", "..", "a\n", "a" * 64, "bücher", "\udcff"])
def test_what_is_no_name_of_an_app_is_refused_with_the_rule(text: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        names.app_name(text)
    assert "63 of a-z 0-9 . -" in refused.value.hint
    assert refused.value.message.isprintable()


@pytest.mark.parametrize("text", ["web", "api", "web2", "job_worker", "2web", "a" * 63])
def test_names_of_processes(text: str) -> None:
    assert names.process_name(text) == text


@pytest.mark.parametrize("text", ["", "1", "5000", "Web", "a.b", "-a", "a" * 64, "web\n"])
def test_what_is_no_name_of_a_process_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem):
        names.process_name(text)


LONGEST = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 61])


@pytest.mark.parametrize(
    ("text", "served"),
    [
        ("a.com", "a.com"),
        ("WWW.MySuperSideProject.com", "www.mysupersideproject.com"),
        ("*.a.com", "*.a.com"),
        ("localhost", "localhost"),
        ("10.0.0.3", "10.0.0.3"),
        ("bücher.example", "xn--bcher-kva.example"),
        ("BÜCHER.example", "xn--bcher-kva.example"),
        ("bu\u0308cher.example", "xn--bcher-kva.example"),
        ("*.日本.example", "*.xn--wgv71a.example"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
        ("a-b.c--d.com", "a-b.c--d.com"),
        (f"{'a' * 63}.com", f"{'a' * 63}.com"),
        (LONGEST, LONGEST),
    ],
)
def test_domains_are_lower_cased_and_in_punycode(text: str, served: str) -> None:
    assert names.domain(text) == served


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "empty"),
        ("*", "stands alone as the first label"),
        ("*.", "label is empty"),
        ("*a.com", "stands alone"),
        ("a.*.com", "stands alone"),
        ("*.*.com", "stands alone"),
        ("a..b", "label is empty"),
        (".a.com", "label is empty"),
        ("a.com.", "label is empty"),
        ("-a", "not first or last"),
        ("a-.com", "not first or last"),
        ("a_b.com", "letters, digits and -"),
        ("a b.com", "white space"),
        (" a.com", "white space"),
        ("a.com\n", "white space"),
        ("a.com\x00", "control"),
        ("a.com\udcff", "control"),
        ("a.com:80", "no port"),
        ("http://a.com", "no scheme"),
        ("a.com/path", "no path"),
        ("~^www\\d+\\.a\\.com$", "regular expressions"),
        ("a.com;", "letters, digits"),
        ("a{b}.com", "letters, digits"),
        ('a".com', "letters, digits"),
        ("$host", "letters, digits"),
        ("a。com", "ASCII dot"),
        (f"{'a' * 64}.com", "64 characters, 63"),
        (f"{LONGEST}x", "254 characters, 253"),
        ("☃.example", "codepoint"),
    ],
)
def test_what_is_no_domain_is_refused_with_the_rule_and_never_repaired(text: str, rule: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        names.domain(text)
    assert rule in refused.value.message
    assert refused.value.message.isprintable()


def test_punycode_is_readable_in_reports() -> None:
    assert names.readable("xn--bcher-kva.example") == "bücher.example (xn--bcher-kva.example)"
    assert names.readable("*.xn--bcher-kva.example") == "*.bücher.example (*.xn--bcher-kva.example)"
    assert names.readable("a.com") == "a.com"
    assert names.readable("xn--a.example") == "xn--a.example"  # no punycode of anything: as it stands


def test_a_wildcard_covers_every_depth_below_it_and_not_the_name_itself() -> None:
    assert names.covers("*.a.com", "b.a.com")
    assert names.covers("*.a.com", "c.b.a.com")
    assert not names.covers("*.a.com", "a.com")
    assert not names.covers("*.a.com", "ba.com")
    assert not names.covers("a.com", "a.com")


@pytest.mark.parametrize(
    ("text", "spelled", "host", "port"),
    [
        ("10.0.0.3:80", "10.0.0.3:80", "10.0.0.3", 80),
        ("[::1]:5000", "[::1]:5000", "::1", 5000),
        ("[0:0:0:0:0:0:0:1]:5000", "[::1]:5000", "::1", 5000),
        ("[2001:DB8::1]:5000", "[2001:db8::1]:5000", "2001:db8::1", 5000),
        ("Web1.lan:80", "web1.lan:80", "web1.lan", 80),
        ("my_service:65535", "my_service:65535", "my_service", 65535),
        ("unix:/run/app/web.1.sock", "unix:/run/app/web.1.sock", "", 0),
    ],
)
def test_addresses_have_one_spelling(text: str, spelled: str, host: str, port: int) -> None:
    found = address(text)
    assert (found.text, found.host, found.port) == (spelled, host, port)
    assert address(found.text) == found
    assert found.is_unix == text.startswith("unix:")
    assert found.is_literal == (text[0] in "1[u")


@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("", "port is missing"),
        ("10.0.0.3", "port is missing"),
        ("10.0.0.3:", "number from 1 to 65535"),
        ("10.0.0.3:0", "number from 1 to 65535"),
        ("10.0.0.3:65536", "number from 1 to 65535"),
        ("10.0.0.3:080", "number from 1 to 65535"),
        ("10.0.0.3:80 down", "number from 1 to 65535"),
        ("10.0.0.256:80", "0 to 255"),
        ("10.0.3:80", "0 to 255"),
        ("010.0.0.3:80", "0 to 255"),
        ("::1:80", "brackets"),
        ("[::1]", "brackets"),
        ("[::g]:80", "not an IPv6"),
        ("[10.0.0.3]:80", "not an IPv6"),
        ("[fe80::1%eth0]:80", "not an IPv6"),
        ("[::1%;}server{]:80", "not an IPv6"),
        ("http://10.0.0.3:80", "no scheme"),
        ("a b:80", "labels"),
        ("a;b:80", "labels"),
        ("-a.lan:80", "labels"),
        ("a..b:80", "labels"),
        (f"{'a' * 64}:80", "labels"),
        (f"{LONGEST}x:80", "253"),
        ("$host:80", "labels"),
        ("unix:relative.sock", "absolute"),
        ("unix:/a/../b.sock", "absolute"),
        ("unix:/a/./b.sock", "absolute"),
        ("unix://b.sock", "absolute"),
        ("unix:/a/", "absolute"),
        ("unix:/a b", "absolute"),
        ("unix:/a;b", "absolute"),
        ("unix:/a:b", "absolute"),
        (f"unix:/{'a' * 107}", "107"),
    ],
)
def test_what_is_no_address_is_refused_with_the_rule(text: str, rule: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        address(text)
    assert rule in refused.value.message


def test_an_address_at_another_ip() -> None:
    assert address("web1.lan:80").at("10.0.0.3") == "10.0.0.3:80"
    assert address("web1.lan:80").at("fd00::1") == "[fd00::1]:80"


@pytest.mark.parametrize(
    ("line", "endpoint"),
    [
        ("10.0.0.3:80", Endpoint(names.WEB, address("10.0.0.3:80"))),
        ("api 10.0.0.3:80", Endpoint(names.Process("api"), address("10.0.0.3:80"))),
        ("10.0.0.3:80 weight=3 backup", Endpoint(names.WEB, address("10.0.0.3:80"), weight=3, backup=True)),
        ("unix:/run/a.sock drain", Endpoint(names.WEB, address("unix:/run/a.sock"), drain=True)),
        ("api [::1]:80 down", Endpoint(names.Process("api"), address("[::1]:80"), down=True)),
    ],
)
def test_a_line_of_upstreams_and_back(line: str, endpoint: Endpoint) -> None:
    assert endpoint_line(line) == endpoint
    assert endpoint.line() == line


def test_the_process_web_need_not_be_named_and_flags_have_no_order() -> None:
    assert endpoint_line("web  10.0.0.3:80\tdown  backup").line() == "10.0.0.3:80 backup down"


@pytest.mark.parametrize(
    "line", ["", "web", "web api 10.0.0.3:80", "10.0.0.3:80 weight", "10.0.0.3:80 weight=0", "10.0.0.3:80 weight=1001", "10.0.0.3:80 fast"]
)
def test_what_is_no_line_of_upstreams_is_refused(line: str) -> None:
    with pytest.raises(UsageProblem):
        endpoint_line(line)


def test_states_have_words() -> None:
    assert [endpoint_line(f"10.0.0.3:80 {flags}").state for flags in ("", "drain", "down", "drain down")] == [
        "active",
        "draining",
        "down",
        "down",
    ]


def test_an_argument_may_name_its_process() -> None:
    assert endpoint_argument("api=10.0.0.3:80").process == "api"
    assert endpoint_argument("10.0.0.3:80").process == "web"
    assert endpoint_argument("10.0.0.3:80", process=names.Process("jobs")).process == "jobs"
    assert endpoint_argument("api=unix:/a.sock").address.text == "unix:/a.sock"
    for text in ("=10.0.0.3:80", "api=", "5=10.0.0.3:80", "api=web=10.0.0.3:80"):
        with pytest.raises(UsageProblem):
            endpoint_argument(text)


@pytest.mark.parametrize(
    ("text", "port"),
    [
        ("http", Port("http")),
        ("http:9000", Port("http", 9000)),
        ("http:9001:api", Port("http", 9001, names.Process("api"))),
        ("http::api", Port("http", None, names.Process("api"))),
    ],
)
def test_port_entries(text: str, port: Port) -> None:
    assert port_entry(text) == port
    assert str(port) == text


@pytest.mark.parametrize(
    "text", ["", "https:443", "tcp:5", "http:", "http:0", "http:99999", "http:9000:", "http:a", "http:1:web:x", "9000"]
)
def test_what_is_no_port_entry_is_refused(text: str) -> None:
    with pytest.raises(UsageProblem):
        port_entry(text)


def test_a_container_port_is_named_as_such() -> None:
    with pytest.raises(UsageProblem) as refused:
        port_entry("http:80:5000")
    assert "endpoints carry their ports here" in refused.value.message
    assert "apps:upstreams:add APP HOST:5000" in refused.value.hint


def test_shown_is_safe_on_a_terminal() -> None:
    assert names.shown("a\x1b[31m") == "'a\\x1b[31m'"
    assert names.shown("") == "''"
    assert len(names.shown("a" * 1000)) == 82


@pytest.mark.parametrize(
    ("text", "listener"),
    [
        ("80", "80"),
        ("*:80", "80"),
        ("0.0.0.0:8080", "8080"),
        ("127.0.0.1:80", "127.0.0.1:80"),
        ("127.0.0.1", "127.0.0.1:80"),
        ("[::]:80", "[::]:80"),
        ("[::]", "[::]:80"),
        ("localhost", "localhost:80"),
    ],
)
def test_listeners_have_one_spelling(text: str, listener: str) -> None:
    assert names.listener(text) == listener
