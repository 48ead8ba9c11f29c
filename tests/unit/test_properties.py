from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from nginx_router.errors import UsageProblem
from nginx_router.properties import PROPERTIES, declared, lookup, of_directive, refused


@pytest.mark.parametrize(
    ("table", "name", "value", "spelled"),
    [
        ("nginx", "client-max-body-size", "2m", "2m"),
        ("nginx", "client-max-body-size", 0, "0"),
        ("nginx", "proxy-read-timeout", "90", "90"),
        ("nginx", "proxy-read-timeout", "500ms", "500ms"),
        ("nginx", "proxy-keepalive", 0, "0"),
        ("nginx", "proxy-keepalive", "064", "64"),
        ("nginx", "client-max-body-size", "999999999g", "999999999g"),
        ("nginx", "client-max-body-size", "2M", "2m"),
        ("nginx", "proxy-read-timeout", "365d", "365d"),
        ("nginx", "keepalive-timeout", "0", "0"),
        ("nginx", "load-balancing", "random two", "random two"),
        ("nginx", "proxy-next-upstream", "error  timeout error http_502", "error timeout http_502"),
        ("nginx", "proxy-next-upstream", "off", "off"),
        ("nginx", "trusted-proxies", "10.0.0.0/8 192.0.2.1 192.0.2.1/32 2001:DB8::/32", "10.0.0.0/8 192.0.2.1 2001:db8::/32"),
        ("nginx", "real-ip-header", "CF-Connecting-IP", "CF-Connecting-IP"),
        ("nginx", "x-forwarded-proto-value", "$http_x_forwarded_proto", "$http_x_forwarded_proto"),
        ("nginx", "gzip", True, "on"),
        ("nginx", "gzip-types", "text/html Text/CSS text/css", "text/css"),
        ("nginx", "gzip-types", "*", "*"),
        ("nginx", "proxy-buffers", "016 8K", "16 8k"),
        ("nginx", "access-log-path", "off", "off"),
        ("nginx", "access-log-path", "all.log", "all.log"),
        ("nginx", "access-log-format", "json", "json"),
        (
            "nginx",
            "access-log-format",
            '$remote_addr [$time_local] "$request" $status;{}#',
            '$remote_addr [$time_local] "$request" $status;{}#',
        ),
        ("nginx", "bind-address-ipv4", "127.0.0.2 127.0.0.2", "127.0.0.2"),
        ("nginx", "bind-address-ipv6", "[::1]", "::1"),
        ("nginx", "disable-custom-config", True, "true"),
        ("proxy", "mode", "host", "host"),
        ("proxy", "http-port", 8081, "8081"),
        ("proxy", "bind-address", "127.0.0.1 [::1]", "127.0.0.1 ::1"),
        ("proxy", "bind-address", "127.0.0.1 127.0.0.1 0:0::1 ::1", "127.0.0.1 ::1"),
        ("proxy", "default-site", "421", "421"),
        ("proxy", "default-site", "https://example.com/a?b=c", "https://example.com/a?b=c"),
        ("proxy", "reload-command", "systemctl reload 'nginx'", "systemctl reload 'nginx'"),
        ("proxy", "generations-keep", "2", "2"),
    ],
)
def test_a_value_has_one_spelling(table: str, name: str, value: object, spelled: str) -> None:
    assert lookup(table, name).parse(value) == spelled


@pytest.mark.parametrize(
    ("table", "name", "value"),
    [
        ("nginx", "client-max-body-size", "2 m"),
        ("nginx", "client-max-body-size", "2m; deny all"),
        ("nginx", "client-max-body-size", ""),
        ("nginx", "proxy-read-timeout", "0"),
        ("nginx", "proxy-read-timeout", "1h30m"),
        ("nginx", "proxy-keepalive", "4097"),
        ("nginx", "proxy-keepalive", True),
        ("nginx", "proxy-keepalive", 1.5),
        ("nginx", "proxy-keepalive", ["32"]),
        ("nginx", "client-max-body-size", "2m\n"),
        ("nginx", "client-body-buffer-size", "1g"),
        ("nginx", "proxy-buffer-size", "512"),
        ("nginx", "proxy-read-timeout", "366d"),
        ("nginx", "proxy-read-timeout", "99999999d"),
        ("nginx", "load-balancing", "random two least_conn; evil"),
        ("nginx", "proxy-next-upstream", "off error"),
        ("nginx", "proxy-next-upstream", "error;"),
        ("nginx", "proxy-next-upstream", " "),
        ("nginx", "trusted-proxies", "0.0.0.0/0"),
        ("nginx", "trusted-proxies", "::/0"),
        ("nginx", "trusted-proxies", "10.0.0.1/8"),
        ("nginx", "trusted-proxies", "fe80::1%;}"),
        ("nginx", "trusted-proxies", "unix:"),
        ("nginx", "trusted-proxies", "proxy.example.com"),
        ("nginx", "real-ip-header", "X-Real-IP; evil"),
        ("nginx", "real-ip-header", "X_Real"),
        ("nginx", "x-forwarded-proto-value", "$http_cookie"),
        ("nginx", "x-forwarded-ssl", '"'),
        ("nginx", "gzip-types", "text/css;"),
        ("nginx", "gzip-types", "text"),
        ("nginx", "proxy-buffers", "1 4k"),
        ("nginx", "proxy-buffers", "8"),
        ("nginx", "proxy-buffers", "8 4k 4k"),
        ("nginx", "proxy-buffers", "9999 16m"),
        ("nginx", "access-log-path", "/etc/passwd"),
        ("nginx", "access-log-path", "../x"),
        ("nginx", "access-log-path", "a/b"),
        ("nginx", "access-log-path", ".hidden"),
        ("nginx", "access-log-path", "shop-access.log"),
        ("nginx", "access-log-path", "shop-error.log.1"),
        ("nginx", "access-log-path", "error.log"),
        ("nginx", "error-log-path", "router.log"),
        ("nginx", "error-log-path", "x info"),
        ("nginx", "access-log-format", "no variable"),
        ("nginx", "access-log-format", "$http_cookie"),
        ("nginx", "access-log-format", "$http_authorization"),
        ("nginx", "access-log-format", "$status'; evil"),
        ("nginx", "access-log-format", "$status\\"),
        ("nginx", "access-log-format", "$status\n"),
        ("nginx", "access-log-format", "${status}"),
        ("nginx", "access-log-format", "$status$"),
        ("nginx", "access-log-format", "$status é"),
        ("nginx", "bind-address-ipv4", "::1"),
        ("nginx", "bind-address-ipv6", "127.0.0.1"),
        ("nginx", "bind-address-ipv4", "localhost"),
        ("nginx", "disable-custom-config", "yes"),
        ("proxy", "mode", "managed\n"),
        ("proxy", "http-port", "65536"),
        ("proxy", "bind-address", "localhost"),
        ("proxy", "bind-address", "::1%;}"),
        ("proxy", "default-site", "200"),
        ("proxy", "default-site", "https://example.com/$host"),
        ("proxy", "default-site", "https://example.com/;"),
        ("proxy", "reload-command", "systemctl reload nginx; reboot"),
        ("proxy", "reload-command", "systemctl 'reload"),
        ("proxy", "reload-command", " "),
        ("proxy", "nginx-conf", "nginx.conf"),
        ("proxy", "generations-keep", "1"),
    ],
)
def test_a_value_that_breaks_its_rule_is_refused_with_the_rule(table: str, name: str, value: object) -> None:
    row = lookup(table, name)
    with pytest.raises(UsageProblem) as wrong:
        row.parse(value)
    assert name in wrong.value.message
    assert row.rule in wrong.value.message


@pytest.mark.parametrize("table", ["nginx", "proxy"])
def test_every_default_obeys_its_own_rule(table: str) -> None:
    for row in PROPERTIES[table].values():
        if row.default:
            assert row.parse(row.default) == row.default
        assert row.rule
        assert row.help


def test_an_unknown_property_names_the_nearest() -> None:
    with pytest.raises(UsageProblem) as wrong:
        lookup("nginx", "client-max-body")
    assert "did you mean client-max-body-size?" in wrong.value.message
    assert wrong.value.hint == "router nginx:report --global", "what lists them, and not dozens of names"


@pytest.mark.parametrize("table", ["nginx", "proxy"])
def test_what_lists_the_properties_does(run: Callable[..., Any], table: str) -> None:
    with pytest.raises(UsageProblem) as wrong:
        lookup(table, "xyzzy")
    assert wrong.value.message == f"no {table} property 'xyzzy'"
    shown = run(*wrong.value.hint.split()[1:])
    assert shown.code == 0 and all(f"{name}:" in shown.out for name in PROPERTIES[table])


def test_a_report_of_dozens_of_keys_names_the_nearest_alone(run: Callable[..., Any]) -> None:
    run("apps:create", "blog")
    got = run("nginx:report", "blog", "--client-max-body")
    assert got.code == 2
    assert got.talk == [
        "router: no key '--client-max-body' in this report; did you mean --client-max-body-size?",
        "  without it the report shows all",
    ]
    assert "there are: --app --domains" in run("apps:report", "blog", "--domain").err, "a few are listed"


#: What Dokku's nginx:set knows (0.38).
DOKKU = """access-log-format access-log-path error-log-path bind-address-ipv4 bind-address-ipv6 client-body-timeout client-header-timeout
client-max-body-size disable-custom-config hsts hsts-include-subdomains hsts-max-age hsts-preload keepalive-timeout lingering-timeout
nginx-conf-sigil-path nginx-service-command proxy-buffer-size proxy-buffering proxy-buffers proxy-busy-buffers-size
proxy-connect-timeout proxy-keepalive proxy-read-timeout proxy-send-timeout send-timeout underscore-in-headers
x-forwarded-for-value x-forwarded-port-value x-forwarded-proto-value x-forwarded-ssl"""


@pytest.mark.parametrize("name", DOKKU.split())
def test_each_property_of_dokku_is_there_or_refused_with_the_reason(name: str) -> None:
    if name in PROPERTIES["nginx"]:
        assert lookup("nginx", name).name == name
        return
    with pytest.raises(UsageProblem) as wrong:
        lookup("nginx", name)
    assert f"{name} is refused: {refused()[name]}" in wrong.value.message


@pytest.mark.parametrize("value", ["$remote_addr", "$server_port", "$scheme"])
def test_the_defaults_of_dokku_hold(value: str) -> None:
    assert value in {p.default for p in PROPERTIES["nginx"].values()}


def test_a_property_has_other_names_too() -> None:
    assert lookup("nginx", "access-log").name == "access-log-path"
    assert lookup("nginx", "underscores-in-headers").name == "underscore-in-headers"


def test_a_property_of_the_host_alone_says_why() -> None:
    row = lookup("nginx", "client-header-timeout")
    row.require_scope(None)
    with pytest.raises(UsageProblem) as wrong:
        row.require_scope("blog")
    assert "before nginx knows which app is meant" in wrong.value.message
    assert wrong.value.hint == "router nginx:set --global client-header-timeout VALUE"


def test_a_directive_leads_to_its_property() -> None:
    found = of_directive("proxy_read_timeout")
    assert found is not None and found.name == "proxy-read-timeout"
    assert of_directive("add_header") is None
    directives = [p.directive for p in PROPERTIES["nginx"].values() if p.directive]
    assert len(directives) == len(set(directives))


def test_a_plugin_declares_its_properties_by_type() -> None:
    row = declared("gzip", {"type": "word", "words": ["on", "off"], "default": "off", "help": "whether answers are compressed"})
    assert (row.rule, row.parse(True), row.directive) == ("on or off", "on", "")
    with pytest.raises(UsageProblem):
        row.parse("on; evil")
    number = declared("proxy-keepalive", {"type": "number", "min": 1, "max": 9, "default": "5", "help": "x", "directive": "keepalive"})
    assert (number.rule, number.parse(9), number.directive) == ("a number from 1 to 9", "9", "keepalive")


def test_the_tables_are_what_set_and_report_offer() -> None:
    assert set(PROPERTIES) == {"nginx", "proxy"}
    assert {"client-max-body-size", "proxy-read-timeout", "proxy-keepalive"} <= set(PROPERTIES["nginx"])
    assert {"http-port", "https-port", "bind-address", "nginx-binary", "nginx-conf", "reload-command", "updates"} <= set(
        PROPERTIES["proxy"]
    )
