from __future__ import annotations

import errno
import os
import struct
from pathlib import Path

import pytest

from nginx_router.beneath import MOST_NAMES, Directory
from nginx_router.claims import RESTS, Claims, named_by, refuse
from nginx_router.confinement import Own, confine, parse
from nginx_router.errors import Conflict, NginxRejected, UsageProblem
from nginx_router.events import Event
from nginx_router.kinds import is_among
from nginx_router.model import MOST_DOMAINS, Facts, Globals, HostFacts, parse_app
from nginx_router.owners import Confined, Hosts
from nginx_router.properties import lookup
from nginx_router.render import Renderer

TEXTS = {"DOMAINS": "blog.example.com\n", "UPSTREAMS": "10.0.0.3:80\n"}


@pytest.fixture
def own() -> Own:
    app = parse_app("blog", TEXTS)
    return Own.of(Renderer(Path("/srv/router"), Globals(), HostFacts()).values(app, Facts(), ()), ["/srv/router/objects/a"])


# the grammar


def test_a_text_is_read_as_nginx_reads_it() -> None:
    (one, two, three) = parse('add_header X "a;b\\" {}" always; # a } comment\nlocation ~ \\.php$ {return 403;}\nset $a ${b}c;')
    assert (one.name, one.args) == ("add_header", ("X", 'a;b\\" {}', "always"))
    assert (two.name, two.args, [d.args for d in two.block or ()]) == ("location", ("~", "\\.php$"), [("403",)])
    assert (three.line, three.args) == (3, ("$a", "${b}c"))


@pytest.mark.parametrize(
    "text",
    [
        "default_type ${; alias /etc; #};",
        "default_type ${a; alias /etc;}",
        'a "b"c;',
        "a 'b'c;",
        'a b"c";',
        'a "b;',
        'a "b\nc";',
        "a b#c;",
        "default_type b#; alias /etc;\n;",
        "default_type b}; alias /etc; }",
        "a b}c;",
        "a b",
        "a {",
        "}",
        "a; }",
        ";",
        "{ }",
        "a \\",
        "a \\\n;",
        "a\x01b;",
        "a\x00;",
        "a \x7f;",
        "a{" * 30 + "}" * 30,
    ],
)
def test_what_two_may_read_differently_is_not_read(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse(text)


def test_crossplane_reads_what_passes_as_we_do(tmp_path: Path) -> None:
    import crossplane

    path = tmp_path / "x.conf"
    path.write_text('add_header X "a b" always;\nlocation ~* \\.(a|b)$ { set $x $y; return 301 /a$1; }\nif ($a ~ "x") { break; }\n')
    found = crossplane.parse(str(path), single=True, check_ctx=False, check_args=False)["config"][0]["parsed"]
    assert [d["directive"] for d in found] == [d.name for d in parse(path.read_text())]
    assert [d["directive"] for d in found[1]["block"]] == [d.name for d in parse(path.read_text())[1].block or ()]


@pytest.mark.parametrize(
    "text",
    [
        "set $router_process router_shop.web;",
        "set $Router_Process router_shop.web;",
        "location ~ ^/x/(?<router_process>.*)$ { return 200; }",
        'if ($arg_a ~ "(?<Router_process>.*)") { return 200; }',
        "rewrite (?P<router_process>.*) /x;",
        "rewrite \"(?'router_process'.*)\" /x;",
        "auth_request_set $ROUTER_process $upstream_http_x;",
    ],
)
def test_whose_instances_answer_is_not_chosen_by_a_snippet(own: Own, text: str) -> None:
    with pytest.raises(NginxRejected):
        confine("apps/blog/nginx.conf.d/x.conf", text, own, is_template=False)


def test_a_refusal_names_file_line_and_directive(own: Own) -> None:
    with pytest.raises(NginxRejected) as refused:
        confine("apps/blog/nginx.conf.d/x.conf", "gzip on;\nlocation / {\n  root /;\n}\n", own, is_template=False)
    assert refused.value.app == "blog"
    assert refused.value.message == "app blog: apps/blog/nginx.conf.d/x.conf:3: root: it may lead out of the app"


@pytest.mark.parametrize(
    "text", ["server { listen 8080 ssl; }", "server { listen 81; }", "http { }", "map $a $b { include /x; }", "gzip on;"]
)
def test_a_template_holds_servers_and_upstreams_of_the_app_alone(own: Own, text: str) -> None:
    with pytest.raises(NginxRejected):
        confine("apps/blog/nginx.conf.j2", text, own, is_template=True)


def test_what_the_shipped_template_makes_is_an_apps_own(own: Own) -> None:
    app = parse_app("blog", TEXTS)
    confine("x", Renderer(Path("/srv/router"), Globals(), HostFacts()).vhost(app, Facts(), ()), own, is_template=True)


# claims


def test_what_a_command_names_is_its_word() -> None:
    assert named_by(Event("domains", "blog", {"verb": "add", "names": ["a.test"]})) == Claims(frozenset({"a.test"}))
    assert named_by(Event("upstreams", "blog", {"verb": "add", "endpoints": ["api unix:/a"]})) == Claims(sockets=frozenset({"unix:/a"}))
    assert named_by(Event("deploy", "blog", {"processes": {"web": ["unix:/a"]}})) == Claims(sockets=frozenset({"unix:/a"}))
    assert named_by(Event("rename", "blog", {"new": "b", "globals": ["x.test"]})) == Claims(frozenset({"b.x.test"}))
    assert named_by(Event("property", "blog", {"table": "nginx", "key": "error-log-path", "value": "x"})) == Claims(logs=frozenset({"x"}))
    assert named_by(Event("take-up", "blog", {"may_be_gone": True})) == Claims()
    assert named_by(Event("restore", "blog", {"texts": {}})) is None


@pytest.mark.parametrize(
    ("domain", "others", "ok"),
    [
        ("a.test", {"b.test": "shop", "*.b.test": "shop"}, True),
        ("b.test", {"*.b.test": "shop"}, True),  # which does not cover it
        ("a.b.test", {"*.b.test": "shop"}, False),
        ("x.a.b.test", {"*.b.test": "shop"}, False),
        ("*.b.test", {"a.b.test": "shop"}, False),
        ("*.b.test", {"x.a.b.test": "shop"}, False),
        ("*.b.test", {"*.a.b.test": "shop"}, False),
        ("*.a.b.test", {"*.b.test": "shop"}, False),
        ("*.b.test", {"b.test": "shop", "ab.test": "shop"}, True),
    ],
)
def test_a_confined_app_takes_no_part_of_another(domain: str, others: dict[str, str], ok: bool) -> None:
    new = Claims(frozenset({domain}))
    if ok:
        refuse("blog", new, Confined(everything=True), others, {}, 0.0)
        return
    with pytest.raises(Conflict, match="app shop"):
        refuse("blog", new, Confined(everything=True), others, {}, 0.0)
    refuse("blog", new, Confined(files=frozenset({"UPSTREAMS"})), others, {}, 0.0)


def test_a_name_rests_for_an_hour() -> None:
    new, confined, released = Claims(frozenset({"b.test"})), Confined(everything=True), {"b.test": ("shop", 1000.0)}
    for now in (1000.0, 999.0, 1000.0 + RESTS - 1):
        with pytest.raises(Conflict, match="until a moment ago"):
            refuse("blog", new, confined, {}, released, now)
    refuse("blog", new, confined, {}, released, 1000.0 + RESTS)
    refuse("shop", new, confined, {}, released, 1000.0)


# who may write what


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_what_others_may_write_is_confined(router_root: Path) -> None:
    hosts, path = Hosts.of(router_root), router_root / "x"
    path.write_text("")
    for mode, uid, gid, alone in (
        (0o644, 0, 0, True),
        (0o664, 0, 0, True),
        (0o664, 0, 64001, False),
        (0o646, 0, 0, False),
        (0o644, 64001, 0, False),
        (0o640, 0, 64001, True),
    ):
        os.chown(path, uid, gid)
        path.chmod(mode)
        assert hosts.alone_write(path.stat(), path) is alone, (oct(mode), uid, gid)
    # an access list: alice may write, and what it says of the group is the most that anybody on it may
    os.chown(path, 0, 0)
    path.chmod(0o664)
    undefined = 0xFFFFFFFF
    entries = [(1, 6, undefined), (2, 6, 64001), (4, 4, undefined), (0x10, 6, undefined), (0x20, 4, undefined)]
    try:
        os.setxattr(path, "system.posix_acl_access", struct.pack("<I", 2) + b"".join(struct.pack("<HHI", *entry) for entry in entries))
    except OSError as why:
        assert why.errno == errno.EOPNOTSUPP  # a file system without them has none to be afraid of
    else:
        assert not hosts.alone_write(path.stat(), path)
        os.removexattr(path, "system.posix_acl_access")
    path.chmod(0o644)
    os.chown(router_root, 64001, 64001)
    os.chown(path, 64001, 64001)
    assert Hosts.of(router_root).alone_write(path.stat(), path), "whose root it is may write all of it"


def test_one_step_is_one_name(router_root: Path) -> None:
    (router_root / "a").mkdir()
    with Directory.open(router_root / "a", Hosts.of(router_root)) as directory:
        for name in ("..", ".", "", "b/c", "../x", "a\0b"):
            with pytest.raises(UsageProblem):
                directory.read(name)
            with pytest.raises(UsageProblem):
                directory.write(name, b"")
            with pytest.raises(UsageProblem):
                directory.inside(name, make=True)


def test_a_directory_that_overflows_is_not_listed(router_root: Path) -> None:
    for number in range(MOST_NAMES + 1):
        (router_root / str(number)).write_text("")
    with Directory.open(router_root, Hosts.of(router_root)) as directory, pytest.raises(UsageProblem, match="holds more than"):
        directory.names()


# bounds


def test_ports_and_ranges() -> None:
    row = lookup("proxy", "allowed-ports")
    assert row.parse("8000-8999,9443  80") == "8000-8999 9443 80"
    assert row.parse(8080) == "8080"
    for wrong in ("", " ", "0-1", "9-8", "1-65536", "1-", "-1", "a", "1-2-3", "1;2"):
        with pytest.raises(UsageProblem):
            row.parse(wrong)
    assert [n for n in (79, 80, 7999, 8000, 8999, 9000, 9443) if is_among(n, "8000-8999 9443 80")] == [80, 8000, 8999, 9443]


def test_an_app_has_so_many_domains_and_no_more() -> None:
    with pytest.raises(UsageProblem, match=rf"apps/blog/DOMAINS:{MOST_DOMAINS + 1}: an app has at most"):
        parse_app("blog", {"DOMAINS": "".join(f"d{n}.test\n" for n in range(MOST_DOMAINS + 1))})


# canaries


def test_a_canary_in_a_template_leads_to_the_apps_own_upstreams_alone() -> None:
    texts = {**TEXTS, "UPSTREAMS": "10.0.0.3:80\n10.0.0.9:80 canary\n", "app.toml": '[traffic]\ncanary = "10%"\n'}
    app = parse_app("blog", texts, ("traffic",))
    renderer = Renderer(Path("/srv/router"), Globals(), HostFacts())
    own = Own.of(renderer.values(app, Facts(), ()), [])
    vhost = renderer.vhost(app, Facts(), ())
    confine("nginx.conf.j2", vhost, own, is_template=True)
    (variable,) = own.splits
    for was, instead in (
        ("10% router_canary_blog.web", "10% router_shop.web"),
        (f"split_clients $router_client {variable} {{", f"map $host {variable} {{"),
        (f"split_clients $router_client {variable} {{", "split_clients $router_client $router_peer_all {"),
        (f"http://{variable}", "http://$router_canary_000000000000"),
        (f"http://{variable}", f"http://{variable}x"),
    ):
        assert was in vhost
        with pytest.raises(NginxRejected):
            confine("nginx.conf.j2", vhost.replace(was, instead), own, is_template=True)
