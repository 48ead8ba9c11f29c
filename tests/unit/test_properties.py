from __future__ import annotations

import pytest

from nginx_router.errors import UsageProblem
from nginx_router.properties import PROPERTIES, declared, lookup


@pytest.mark.parametrize(
    ("table", "name", "value", "spelled"),
    [
        ("nginx", "client-max-body-size", "2m", "2m"),
        ("nginx", "client-max-body-size", 0, "0"),
        ("nginx", "proxy-read-timeout", "90", "90"),
        ("nginx", "proxy-read-timeout", "500ms", "500ms"),
        ("nginx", "proxy-keepalive", 0, "0"),
        ("nginx", "proxy-keepalive", "064", "64"),
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
    with pytest.raises(UsageProblem) as refused:
        row.parse(value)
    assert name in refused.value.message
    assert row.rule in refused.value.message


@pytest.mark.parametrize("table", ["nginx", "proxy"])
def test_every_default_obeys_its_own_rule(table: str) -> None:
    for row in PROPERTIES[table].values():
        if row.default:
            assert row.parse(row.default) == row.default
        assert row.rule
        assert row.help


def test_an_unknown_property_names_the_nearest() -> None:
    with pytest.raises(UsageProblem) as refused:
        lookup("nginx", "client-max-body")
    assert "did you mean client-max-body-size?" in refused.value.message


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
