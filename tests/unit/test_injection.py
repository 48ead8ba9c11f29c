"""No value becomes a word of nginx's own: hostile ones through each kind of value that reaches a template."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router.confinement import Directive, parse
from nginx_router.errors import UsageProblem
from nginx_router.keys import of_property
from nginx_router.kinds import KINDS
from nginx_router.model import App, Facts, Globals, HostFacts, parse_app
from nginx_router.names import address, app_name, domain, endpoint_line, port_entry, process_name
from nginx_router.properties import PROPERTIES
from nginx_router.render import Include, Renderer, quoted
from nginx_router.resources import shipped

ROOT = Path("/srv/router")
TEXTS = {"DOMAINS": "blog.example.com\n", "UPSTREAMS": "10.0.0.3:80\nweb.lan:80\n"}

#: Each would make `pwned` a directive, a block or a variable if it stood in the configuration as it is.
HOSTILE = [
    "; pwned on;",
    "} pwned {",
    '"; pwned on; "',
    "'; pwned on; '",
    '\\"; pwned on;',
    "\\'; pwned on;",
    "\\\\'; pwned on;",
    "\npwned on;",
    "\r\npwned on;",
    "\rpwned on;",
    "\u2028pwned on;",
    "\x0bpwned on;",
    " # \npwned on;",
    "$pwned",
    "${pwned}",
    "${;pwned on;",
    "{{ pwned }}",
    "{% raw %}pwned on;",
    "\\",
    "\x00",
    "\udce9;pwned on;",
    " pwned",
]

#: What a value of the property may be, where its default is none.
VALID = {"proxy-busy-buffers-size": "8k", "x-forwarded-ssl": "on", "bind-address-ipv4": "127.0.0.1", "bind-address-ipv6": "::1"}


def names(directives: tuple[Directive, ...]) -> Iterator[str]:
    for directive in directives:
        yield directive.name
        yield from names(directive.block or ())


def shape(text: str) -> list[str]:
    """The directives of a configuration, as nginx reads them."""
    found = list(names(parse(text)))
    assert "pwned" not in found and not any("pwned" in name for name in found)
    return found


def rendered(app: App, settings: Globals | None = None) -> str:
    renderer = Renderer(ROOT, settings or Globals(proxy={"bind-address": "127.0.0.1 ::1"}), HostFacts(ipv6=True))
    facts = Facts(resolved={"web.lan": ("10.0.0.4",)})
    vhost = renderer.vhost(app, facts, [Include("/srv/router/objects/a", "apps/blog/nginx.conf.d/own.conf")])
    return vhost + renderer.http(1, "1-a", [8080], {app.name: "/srv/router/objects/b"})


def with_property(name: str, value: str) -> App:
    app = parse_app("blog", TEXTS)
    return App(app.name, app.domains, endpoints=app.endpoints, nginx={name: PROPERTIES["nginx"][name].parse(value)})


@pytest.mark.parametrize("name", list(PROPERTIES["nginx"]))
def test_no_value_of_an_nginx_property_is_more_than_a_value(name: str) -> None:
    row = PROPERTIES["nginx"][name]
    valid = VALID.get(name) or row.default
    plain = {*shape(rendered(with_property(name, valid))), row.directive, "log_format", "set_real_ip_from", "gzip_proxied", "gzip_vary"}
    for payload in HOSTILE:
        for value in (payload, f"{valid}{payload}", f"{payload}{valid}", f"{valid} {payload}", f"$status{payload}"):
            try:
                app = with_property(name, value)
            except UsageProblem:
                continue
            try:
                text = rendered(app)
            except UsageProblem:
                continue  # a misfit, such as a size
            assert {*shape(text)} <= plain, (name, value)
            assert text.count("\nserver {") == rendered(with_property(name, valid)).count("\nserver {")


@pytest.mark.parametrize("name", list(PROPERTIES["proxy"]))
def test_no_value_of_a_host_property_is_more_than_a_value(name: str) -> None:
    row = PROPERTIES["proxy"][name]
    valid = row.default or {"bind-address": "127.0.0.1", "reload-command": "true", "allowed-ports": "1-2"}.get(name, "8080")
    app = parse_app("blog", TEXTS)
    for payload in HOSTILE:
        for value in (payload, f"{valid}{payload}", f"{payload}{valid}", f"{valid} {payload}", f"https://a.test/{payload}"):
            try:
                settings = Globals(proxy={name: row.parse(value)})
                text = rendered(app, settings)
            except UsageProblem:
                continue
            assert "pwned" not in text or name in ("nginx-conf", "nginx-binary", "reload-command"), "the host's own, and in no template"
            shape(text)


NAMES: dict[str, tuple[Callable[[str], object], str]] = {
    "app": (app_name, "blog"),
    "process": (process_name, "web"),
    "domain": (domain, "a.example.com"),
    "address": (address, "web.lan:80"),
    "socket": (address, "unix:/run/a.sock"),
    "endpoint": (endpoint_line, "web 10.0.0.3:80 weight=2"),
    "port": (port_entry, "http:9000:web"),
}


@pytest.mark.parametrize("kind", list(NAMES))
def test_no_name_or_address_is_more_than_one(kind: str) -> None:
    check, valid = NAMES[kind]
    check(valid)
    for payload in HOSTILE:
        for value in (payload, f"{valid}{payload}", f"{payload}{valid}", f"{valid[:3]}{payload}{valid[3:]}"):
            try:
                made = str(check(value))
            except UsageProblem:
                continue
            # a line has words, and white space around them is no part of any
            assert kind == "endpoint" and re.fullmatch(r"[a-z0-9.:= ]+", endpoint_line(value).line()), (kind, value, made)


def test_what_an_apps_files_hold_is_refused_or_rendered_as_the_same_directives() -> None:
    plain = shape(rendered(parse_app("blog", TEXTS)))
    for payload in HOSTILE:
        for file, valid in (("DOMAINS", "blog.example.com"), ("UPSTREAMS", "10.0.0.3:80")):
            for value in (payload, f"{valid}{payload}", f"{valid}\n{payload}", f"# {payload}\n{valid}"):
                try:
                    text = rendered(parse_app("blog", TEXTS | {file: value}))
                except UsageProblem:
                    continue
                assert {*shape(text)} <= {*plain}, (file, value)


def test_the_names_of_files_and_plugins_end_no_comment() -> None:
    renderer = Renderer(ROOT, Globals(), HostFacts())
    app = parse_app("blog", TEXTS)
    facts = Facts(resolved={"web.lan": ("10.0.0.4",)})
    plain = shape(renderer.vhost(app, facts, [Include("/a", "x")]))
    for payload in HOSTILE:
        assert shape(renderer.vhost(app, facts, [Include("/a", f"nginx.conf.d/{payload}.conf")])) == plain


def keys_of_plugins() -> Iterator[tuple[str, Mapping[str, Any]]]:
    for file in sorted(shipped("plugins").glob("*/plugin.toml")):
        for name, row in tomllib.loads(file.read_text())["plugin"].get("properties", {}).items():
            yield f"{file.parent.name}.{name}", row


@pytest.mark.parametrize(("name", "row"), [pytest.param(*each, id=each[0]) for each in keys_of_plugins()])
def test_no_value_of_a_plugins_key_is_more_than_a_value(name: str, row: Mapping[str, Any]) -> None:
    """As it stands in a server block, where the row has a directive."""
    key = of_property(name.partition(".")[2], row)
    valid = {"host": "a.example.com", "url-path": "/health"}.get(row["type"], str(row["default"]))
    assert shape(f"gzip {quoted(key.accept(valid))};\n") == ["gzip"]
    for payload in HOSTILE:
        for value in (payload, f"{valid}{payload}", f"{payload}{valid}", f"{valid} {payload}", f"$status{payload}"):
            try:
                text = f"gzip {quoted(key.accept(value))};\n"
            except (UsageProblem, ValueError):
                continue
            (directive,) = parse(text)
            assert directive.name == "gzip" and len(directive.args) == 1, (name, value)
            assert "$" not in text, "nginx reads a variable in quotes too"


def test_every_kind_of_value_was_tried() -> None:
    used = {
        row["type"]
        for file in shipped("plugins").glob("*/properties.toml")
        for row in tomllib.loads(file.read_text()).values()
        if "refused" not in row
    }
    assert used | {row["type"] for _, row in keys_of_plugins()} == {*KINDS}
