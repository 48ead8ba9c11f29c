from __future__ import annotations

import json

import pytest

from nginx_router.errors import UsageProblem
from nginx_router.model import App, Facts, HostFacts, parse_app, parse_globals
from nginx_router.names import AppName

TOML = """\
# the shop's settings
ports = ["http", "http:9001:api"]
locked = "sale"
domains = "disabled"

[count]
web = 3

[nginx]
client-max-body-size = "2m"
proxy-keepalive = 16

[basic-auth]
users = ["ada"]
"""


def test_an_app_is_what_its_files_say() -> None:
    app = parse_app(
        "shop",
        {
            "DOMAINS": "# ours\nShop.example.com\n*.shop.example.com # all\nshop.example.com\n",
            "UPSTREAMS": "10.0.0.3:80\napi 10.0.0.3:81 weight=2\n10.0.0.3:80 down\n",
            "app.toml": TOML,
            "nginx.conf.d/b.conf": "gzip on;",
            "nginx.conf.d/a.conf": "gzip_vary on;",
            "nginx.conf.j2": "{{ app }}",
        },
        tables=["basic-auth"],
    )
    assert app.domains == ("shop.example.com", "*.shop.example.com")
    assert app.served_domains == ()
    assert [e.line() for e in app.endpoints] == ["10.0.0.3:80 down", "api 10.0.0.3:81 weight=2"]  # of two lines the last counts
    assert app.processes == ("api", "web")
    assert [str(p) for p in app.ports] == ["http", "http:9001:api"]
    assert (app.locked, dict(app.counts)) == ("sale", {"web": 3})
    assert dict(app.nginx) == {"client-max-body-size": "2m", "proxy-keepalive": "16"}
    assert app.plugins == {"basic-auth": {"users": ["ada"]}}
    assert list(app.snippets) == ["a.conf", "b.conf"]
    assert app.template == "{{ app }}"


def test_an_empty_directory_is_an_app() -> None:
    assert parse_app("blog", {}) == App(AppName("blog"))


@pytest.mark.parametrize(
    ("file", "text", "said"),
    [
        ("DOMAINS", "# x\n\na..b\n", "apps/blog/DOMAINS:3: 'a..b' is not a domain"),
        ("DOMAINS", "a.com b.com\n", "apps/blog/DOMAINS:1: "),
        ("UPSTREAMS", "10.0.0.3:80\n10.0.0.3\n", "apps/blog/UPSTREAMS:2: "),
        ("app.toml", "ports = [", "apps/blog/app.toml:1: "),
        ("app.toml", "\nlocked = 3\n", "apps/blog/app.toml:2: locked is a text"),
        ("app.toml", "\ndomains = true\n", "apps/blog/app.toml:2: domains is enabled or disabled"),
        ("app.toml", "\nport = []\n", "apps/blog/app.toml:2: unknown key 'port'"),
        ("app.toml", "\n[waf]\n", "apps/blog/app.toml:2: unknown key 'waf'"),
        ("app.toml", "limits = 3\n", "apps/blog/app.toml:1: 'limits' is a table of a plugin"),
        ("app.toml", "ports = 'http'\n", "apps/blog/app.toml:1: ports is a list"),
        ("app.toml", "ports = ['http:80:5000']\n", "apps/blog/app.toml:1: 'http:80:5000' ends in a container port"),
        ("app.toml", "ports = ['http:90', 'http:90:api']\n", "apps/blog/app.toml:1: http:90 and http:90:api are one port"),
        ("app.toml", "count = 3\n", "apps/blog/app.toml:1: count is a table"),
        ("app.toml", "[count]\nweb = -1\n", "apps/blog/app.toml:2: the count of web"),
        ("app.toml", "[count]\nweb = true\n", "apps/blog/app.toml:2: the count of web"),
        ("app.toml", "[count]\n5 = 1\n", "apps/blog/app.toml:2: '5' is not a process name"),
        ("app.toml", "[nginx]\n\nproxy-keepalve = 3\n", "apps/blog/app.toml:3: unknown nginx property 'proxy-keepalve'; did you mean"),
        ("app.toml", "[nginx]\nproxy-keepalive = 1.5\n", "apps/blog/app.toml:2: proxy-keepalive '1.5' is not a number"),
        ("app.toml", "nginx = []\n", "apps/blog/app.toml:1: nginx is a table"),
        ("app.toml", "\n# caf\udce9\n", "apps/blog/app.toml:2: not UTF-8"),
    ],
)
def test_a_broken_rule_names_file_and_line_and_app(file: str, text: str, said: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        parse_app("blog", {file: text}, tables=["limits"])
    assert refused.value.message.startswith(said)
    assert refused.value.app == "blog"


def test_comments_in_another_encoding_are_no_error_in_lists() -> None:
    assert parse_app("blog", {"DOMAINS": "# caf\udce9\na.com\n"}).domains == ("a.com",)


def test_globals() -> None:
    found = parse_globals('[proxy]\nhttp-port = 8081\n[nginx]\nproxy-keepalive = "0"\n[x]\na = 1\n', "a.com\nA.com\n", tables=["x"])
    assert found.domains == ("a.com",)
    assert (found.http_port, found.get("https-port"), found.get("default-site")) == (8081, "8443", "444")
    assert found.nginx == {"proxy-keepalive": "0"}
    assert not found.is_host_mode


def test_the_ports_of_host_mode() -> None:
    found = parse_globals('[proxy]\nmode = "host"\n', "")
    assert found.is_host_mode
    assert (found.http_port, found.get("https-port")) == (80, "443")


@pytest.mark.parametrize(
    ("config", "domains", "said"),
    [
        ("[proxi]\n", "", "router.toml:1: unknown table 'proxi'"),
        ("\nproxy = 3\n", "", "router.toml:2: 'proxy' is a table"),
        ("[proxy]\nhttp-port = 0\n", "", "router.toml:2: http-port '0' is not a port"),
        ("", "a.com\n*.b.com\n", "DOMAINS:2: *.b.com cannot be global"),
        ("", "a..com\n", "DOMAINS:1: "),
    ],
)
def test_broken_globals_name_file_and_line(config: str, domains: str, said: str) -> None:
    with pytest.raises(UsageProblem) as refused:
        parse_globals(config, domains)
    assert refused.value.message.startswith(said)


def test_facts_survive_json() -> None:
    facts = Facts({"web1": ("10.0.0.3", "fd00::1")}, (("nginx-server-snippet", "waf", "deny all;\n"),), ("waf", "{{ app }}"))
    assert Facts.from_json(json.loads(json.dumps(facts.as_json()))) == facts
    assert Facts.from_json(Facts().as_json()) == Facts()


def test_host_facts_survive_json() -> None:
    facts = HostFacts(True, 65536, "www-data", "router-probe-x.invalid", ("server_tokens", "default_server:80"))
    assert HostFacts.from_json(json.loads(json.dumps(facts.as_json()))) == facts
