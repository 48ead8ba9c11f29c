"""What the wrapper cannot see, because it stands in the sum of all apps: found by the proof, and only its app is put back."""

from __future__ import annotations

import shutil
import socket
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Live, Result
    from .instances import Backend

pytestmark = pytest.mark.timeout(180)

#: An own template that serves as the shipped one does; `outside` stands at http level, `options` behind the address.
TEMPLATE = """{outside}
upstream router_{app}.web {{ zone router_{app}.web 64k; server {backend}; }}
server {{
    listen 127.0.0.1:{port}{options};
    server_name {{{{ domains | join(" ") }}}};
    location / {{
        {inside}
        proxy_pass http://router_{app}.web;
    }}
}}
"""


@pytest.fixture
def taken_port(free_port: Callable[[], int]) -> Iterator[int]:
    """A port that somebody else listens on."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        yield port


def template(live: Live, app: str, *, outside: str = "", options: str = "", inside: str = "") -> None:
    """Give an app a template of its own."""
    backend = live.store.texts(app)["UPSTREAMS"].split()[0]  # type: ignore[index]  # the app is there
    text = TEMPLATE.format(app=app, backend=backend, port=live.port, outside=outside, options=options, inside=inside)
    live.write(f"apps/{app}/nginx.conf.j2", text.replace("ROOT", str(live.paths.root)))


def edited(live: Live, *apps: str, name: str = "next") -> None:
    """Something of each app that is good for itself."""
    for app in apps:
        with (live.paths.app(app) / "DOMAINS").open("a") as file:
            file.write(f"{name}.{app}.test\n")


def is_put_back_alone(live: Live, result: Result, app: str, words: str, *others: str, code: int = 9, name: str = "next") -> None:
    """The change of `app` is not served, it is stale and named with nginx's words; `others` are taken up."""
    assert result.code == code and words in result.err and f"app {app}" in result.err and "Traceback" not in result.err, result
    status = live("status", "--format", "json")
    assert status.code == 8 and [each["app"] for each in status.json["stale"]] == [app], status
    assert words in status.json["stale"][0]["problem"], status
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")
    assert live.get(f"{name}.{app}.test").status == 0, "what stands in its directory is not served"
    for other in others:
        assert live.get(f"{name}.{other}.test").body == other, "the others are taken up"


@pytest.fixture
def three_apps(two_apps: Live, backend: Callable[..., Backend]) -> Live:
    """blog, shop and news."""
    two_apps.app("news", ["news.test"], [backend("news")])
    two_apps.done("reconcile")
    return two_apps


#: What two templates can say that fits into one configuration each, and what nginx says of both in one.
COLLISIONS = {
    "listen": ({"options": " backlog=101"}, {"options": " backlog=102"}, "duplicate listen options for 127.0.0.1:"),
    "zone": (
        {"outside": "limit_req_zone $uri zone=shared:1m rate=99r/s;", "inside": "limit_req zone=shared burst=99;"},
        {"outside": "limit_req_zone $uri zone=shared:2m rate=99r/s;", "inside": "limit_req zone=shared burst=99;"},
        'of shared memory zone "shared" conflicts with already declared size',
    ),
    "cache": (
        {"outside": "proxy_cache_path ROOT/run/a keys_zone=cache:1m;"},
        {"outside": "proxy_cache_path ROOT/run/b keys_zone=cache:1m;"},
        'duplicate zone "cache"',
    ),
    "upstream": (
        {"outside": "upstream backend { server 127.0.0.1:1; }"},
        {"outside": "upstream backend { server 127.0.0.1:2; }"},
        'duplicate upstream "backend"',
    ),
    "upstream-zone": (
        {"outside": "upstream one { zone other 64k; server 127.0.0.1:1; }"},
        {"outside": "upstream two { zone other 128k; server 127.0.0.1:2; }"},
        'of shared memory zone "other" conflicts with already declared size',
    ),
    "log-format": (
        {"outside": "log_format short '$host';"},
        {"outside": "log_format short '$uri';"},
        'duplicate "log_format" name "short"',
    ),
}


@pytest.mark.parametrize(
    ("first", "second", "edits"),
    [("blog", "shop", ("shop", "news")), ("shop", "blog", ("blog", "news")), ("shop", "blog", ("blog", "news", "shop"))],
    ids=["shop has it second", "blog has it second", "both are edited"],
)
@pytest.mark.parametrize(
    "kinds", [("listen", "zone"), pytest.param(tuple(COLLISIONS), marks=pytest.mark.slow)], ids=["some kinds", "all kinds"]
)
def test_what_collides_only_in_the_whole_is_bisected_to_the_app_that_brought_it(
    three_apps: Live, first: str, second: str, edits: tuple[str, ...], kinds: tuple[str, ...]
) -> None:
    live = three_apps
    for name in kinds:
        one, two, words = COLLISIONS[name]
        template(live, first, **one)
        live.done("reconcile")
        # nginx names the later of the two, by the order of the apps: who had it first keeps it all the same, and its own
        # change of this moment is taken up
        template(live, second, **two)
        edited(live, *edits, name=name)
        result = live("reconcile")
        is_put_back_alone(live, result, second, words, *{*edits} - {second}, name=name)
        assert f"app {second}: nginx did not take the change up" in result.err, "the wrapper had nothing against it, the proof had"
        for app in (first, second):
            (live.paths.app(app) / "nginx.conf.j2").unlink()
        live.done("reconcile")
        assert live.get(f"{name}.{second}.test").body == second
    live.is_consistent()
    live.serves_current()


def test_http_snippets_of_plugins_that_collide_are_bisected_to_the_app_that_brought_the_second(three_apps: Live) -> None:
    live = three_apps
    live.plugin("limits", nginx_http_snippet='[ "$1" = news ] || cat "$ROUTER_ROOT/apps/$1/limits"')
    bring = {"blog": "limit_req_zone $uri zone=shared:1m rate=99r/s;\n", "shop": "limit_req_zone $uri zone=shared:2m rate=99r/s;\n"}
    for app in ("shop", "blog"):
        live.write(f"apps/{app}/limits", "\n")
    live.write("apps/shop/limits", bring["shop"])
    live.done("reconcile")
    live.write("apps/blog/limits", bring["blog"])
    edited(live, "blog", "shop", "news")
    result = live("reconcile")
    is_put_back_alone(live, result, "blog", 'shared memory zone "shared" conflicts with already declared size', "shop", "news")
    assert "nginx-http-snippet of plugin limits:1" in result.err or "the vhost of app shop:1" in result.err, result
    live.write("apps/blog/limits", "log_format of_blog '$host';\n")
    live.done("reconcile")
    assert live.get("next.blog.test").body == "blog"
    live.serves_current()


def test_a_variable_that_another_app_makes_is_refused_for_nginx_would_take_the_last_and_say_nothing(three_apps: Live) -> None:
    live = three_apps
    template(live, "shop", outside="map $host $answer { default of-shop; }", inside="add_header X-Answer $answer;")
    live.done("reconcile")
    for kind in (
        "map $uri $answer { default of-blog; }",
        "geo $Answer { default of-blog; }",
        "split_clients $uri '$answer' { * of-blog; }",
    ):
        template(live, "blog", outside=kind, inside="add_header X-Answer $answer;")
        result = live("domains:add", "blog", "next.blog.test")
        assert result.code == 4 and "$answer is made by app shop" in result.err, result
        assert live.get("shop.test").headers["x-answer"] == "of-shop"
    for own in ("$router_upgrade", "$router_port"):
        template(live, "blog", outside=f"map $uri {own} {{ default x; }}")
        result = live("domains:add", "blog", "next.blog.test")
        assert result.code == 4 and f"{own} is made by router itself" in result.err, result
    template(live, "blog", outside="map $uri $answer_blog { default of-blog; }", inside="add_header X-Answer $answer_blog;")
    live.done("domains:add", "blog", "next.blog.test")
    assert [live.get(f"{app}.test").headers["x-answer"] for app in ("blog", "shop")] == ["of-blog", "of-shop"]
    # both at once: the first by name has it, and the other is stale until it chooses another name
    for app in ("news", "shop"):
        template(live, app, outside="map $host $new { default x; }")
    result = live("reconcile")
    assert result.code == 4 and "app shop: $new is made by app news" in result.err, result
    live.plugin("maps", nginx_http_snippet='[ "$1" = blog ] && echo "map \\$uri \\$new { default x; }"; exit 0')
    result = live("domains:add", "blog", "more.blog.test")
    assert result.code == 4 and "app blog: $new is made by app news" in result.err, result


@pytest.mark.parametrize("option", ["proxy_protocol", "http2", "ssl", "default_server"])
def test_a_listen_option_that_changes_what_every_app_on_the_port_speaks_is_refused(two_apps: Live, option: str) -> None:
    template(two_apps, "shop", options=f" {option}")
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", "next.shop.test")
    assert result.code == 8 and option in result.err and "apps/shop/nginx.conf.j2:4" in result.err, result
    assert (two_apps.get("blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")


@pytest.mark.parametrize(
    "line", ["client_max_body_size 1;", "deny all;", "add_header X-All shop always;", "include /etc/nginx/mime.types;"]
)
def test_a_template_says_nothing_that_would_hold_for_every_app(two_apps: Live, line: str) -> None:
    template(two_apps, "shop", outside=line)
    with two_apps.unchanged():
        result = two_apps("domains:add", "shop", "next.shop.test")
    assert result.code == 8 and "would hold for every app" in result.err and line.split()[0] in result.err, result
    assert "x-all" not in two_apps.get("blog.test").headers
    # the same inside of a server is the app's own affair
    template(two_apps, "shop", inside=line)
    two_apps.done("domains:add", "shop", "next.shop.test")


def test_a_snippet_included_at_http_level_would_hold_for_every_app(two_apps: Live) -> None:
    two_apps.snippet("shop", "deny all;\n")
    template(two_apps, "shop", outside="{% for each in servers[0].includes %}\ninclude {{ each.path }};\n{% endfor %}")
    result = two_apps("domains:add", "shop", "next.shop.test")
    assert result.code == 8 and "would hold for every app" in result.err, result
    assert two_apps.get("blog.test").body == "blog"


def test_a_port_that_another_program_has_puts_one_app_back_and_the_others_are_taken_up(three_apps: Live, taken_port: int) -> None:
    live = three_apps
    live.write("apps/shop/app.toml", f'ports = ["http", "http:{taken_port}"]\n')
    edited(live, "blog", "shop", "news")
    result = live("reconcile")
    is_put_back_alone(live, result, "shop", f"bind() to 127.0.0.1:{taken_port} failed (98: Address already in use)", "blog", "news")


def test_while_the_proxy_is_stopped_what_collides_is_found_and_the_proxy_starts(three_apps: Live) -> None:
    """Nobody proves a change then, and nginx would not start with it: for any app."""
    live = three_apps
    live.done("proxy:stop")
    for name, (one, two, words) in COLLISIONS.items():
        template(live, "shop", **one)
        live.done("reconcile")
        template(live, "blog", **two)
        edited(live, "blog", "shop", "news", name=name)
        result = live("reconcile")
        assert result.code == 8 and words in result.err and "app blog: nginx would not start with it" in result.err, result
        assert "saved, proxy is stopped" in result.err, "the others are"
        assert list(live.store.stale()) == ["blog"]
        with live.unchanged():
            single = live("domains:add", "blog", "single.blog.test")
        assert single.code == 8 and words in single.err, single
        last = name
        if name != list(COLLISIONS)[-1]:
            (live.paths.app("blog") / "nginx.conf.j2").unlink()
            live.done("reconcile")
    live.done("proxy:start")
    is_put_back_alone(live, result, "blog", words, "shop", "news", code=8, name=last)


def test_while_the_proxy_is_stopped_a_port_that_another_program_has_is_found(three_apps: Live, taken_port: int) -> None:
    live = three_apps
    live.done("proxy:stop")
    with live.unchanged():
        result = live("ports:add", "shop", "http", f"http:{taken_port}")
    assert result.code == 8 and f"port {taken_port} is taken by " in result.err and "app shop" in result.err, result
    live.done("ports:add", "shop", "http")
    live.done("proxy:start")
    assert (live.get("blog.test").body, live.get("shop.test").body) == ("blog", "shop")


def test_a_port_that_was_taken_while_the_proxy_was_stopped_leaves_its_app_out_and_all_others_are_served(
    three_apps: Live, free_port: Callable[[], int]
) -> None:
    live = three_apps
    ports = {app: free_port() for app in ("shop", "news")}
    for app, port in ports.items():
        live.done("ports:add", app, "http", f"http:{port}")
    live.done("proxy:stop")
    with socket.create_server(("127.0.0.1", ports["shop"])), socket.create_server(("127.0.0.1", ports["news"])):
        result = live.done("proxy:start")
        for app, port in ports.items():
            assert f"app {app} is left out: nginx does not start: [emerg] bind() to 127.0.0.1:{port} failed" in result.err, result
        assert live.get("blog.test").body == "blog"
        status = live("status", "--format", "json")
        assert status.code == 8 and [each["app"] for each in status.json["stale"]] == ["news", "shop"], status
        live.done("domains:add", "blog", "next.blog.test")
        assert live.get("next.blog.test").body == "blog"
        assert live("reconcile", "shop").code == 9, "it is taken yet"
    live.done("reconcile")
    assert [live.get(f"{app}.test").body for app in ports] == [live.get(f"{app}.test", port=port).body for app, port in ports.items()]
    assert live.get("shop.test", port=ports["shop"]).body == "shop"
    live.is_consistent()
    live.serves_current()


def test_while_the_proxy_is_stopped_what_keeps_nginx_from_starting_anyway_is_no_apps_fault(three_apps: Live) -> None:
    live = three_apps
    live.done("proxy:stop")
    entry = live.generations.current().apps["news"]  # type: ignore[union-attr]  # it is there
    lost = live.generations.object_path(str(entry.vhost))
    lost.unlink()
    live.done("domains:add", "blog", "next.blog.test")
    live.done("reconcile")
    live.done("proxy:start")
    assert live.get("next.blog.test").body == "blog"


#: Five apps, each broken in its own way, in the order of their names: the exit code and words of what is wrong.
BROKEN = {
    "aa-snippet": (8, 'invalid value "perhaps" in "gzip" directive'),
    "bb-upstream": (9, 'duplicate upstream "backend"'),
    "cc-port": (9, "bind() to 127.0.0.1:{port} failed (98: Address already in use)"),
    "dd-endpoint": (2, "no-such-host.invalid:80 does not resolve"),
    "ee-template": (7, "'domainz' is undefined"),
}


def break_them(live: Live, port: int) -> dict[str, str]:
    """Break the five; what must be said of each."""
    live.snippet("aa-snippet", "gzip perhaps;\n")
    live.write("apps/bb-upstream/nginx.conf.j2", OWN.format(port=live.port))
    live.write("apps/cc-port/app.toml", f'ports = ["http", "http:{port}"]\n')
    live.write("apps/dd-endpoint/UPSTREAMS", "no-such-host.invalid:80\n")
    live.write("apps/ee-template/nginx.conf.j2", "{{ domainz }}\n")
    return {app: words.format(port=port) for app, (_, words) in BROKEN.items()}


OWN = """upstream backend {{ server 127.0.0.1:1; }}
server {{
    listen 127.0.0.1:{port};
    server_name {{{{ domains | join(" ") }}}};
    location / {{ proxy_pass http://backend; }}
}}
"""


def unserved(live: Live, hosts: list[str]) -> list[str]:
    """Which of these hosts nobody answers for: the apps have no endpoints, so that 502 is the answer."""
    return [host for host in hosts if live.get(host).status != 502]


@pytest.mark.timeout(400)
@pytest.mark.parametrize("number", [20, pytest.param(200, marks=pytest.mark.slow)])
def test_of_many_apps_five_are_broken_in_five_ways_and_the_others_never_notice(live: Live, taken_port: int, number: int) -> None:
    good = [f"app{n:03}" for n in range(number - len(BROKEN))]
    names = good + list(BROKEN)
    for name in names:
        live.app(name, [f"{name}.test"])
    live.write("apps/app000/nginx.conf.j2", OWN.format(port=live.port))
    live.done("reconcile")
    assert unserved(live, [f"{name}.test" for name in names]) == []

    said = break_them(live, taken_port)
    edited(live, *names)
    lines = len(live.journal())
    result = live("reconcile", seconds=120)
    assert result.code == BROKEN["aa-snippet"][0], "that of the first by name"
    for app, words in said.items():
        assert any(app in line and words in line for line in result.err.splitlines()), (app, result)
    assert unserved(live, [f"next.{name}.test" for name in good]) == [], "the others took up their changes"
    assert unserved(live, [f"{name}.test" for name in names]) == [], "what was served last stays"
    assert [name for name in BROKEN if live.get(f"next.{name}.test").status] == []
    assert sum(line["reloads"] for line in live.journal()[lines:]) == 1, "they share one reload"
    names_the_five(live, said)
    for app in BROKEN:
        single = live("reconcile", app)
        assert single.code == BROKEN[app][0] and said[app] in single.err, single

    # a start, and one after a crash, with the five as they are
    for _ in range(2):
        live.done("proxy:stop")
        live.done("proxy:start")
        assert unserved(live, [f"{name}.test" for name in names]) == [], "everyone's last good vhost"
    names_the_five(live, said)

    # all the same while nobody proves anything
    live.done("proxy:stop")
    edited(live, *names, name="more")
    said["cc-port"] = f"port {taken_port} is taken by "
    result = live("reconcile", seconds=120)
    assert result.code == 8
    for app, words in said.items():
        assert any(app in line and words in line for line in result.err.splitlines()), (app, result)
    live.done("proxy:start")
    assert unserved(live, [f"more.{name}.test" for name in good] + [f"{name}.test" for name in names]) == []
    names_the_five(live, said)

    # from the directories alone: of the five there is nothing that was served last
    live.done("proxy:stop")
    for path in (live.paths.generations, live.paths.objects):
        shutil.rmtree(path)
    live.paths.current.unlink()
    live.done("proxy:start")
    assert unserved(live, [f"more.{name}.test" for name in good]) == []
    assert [name for name in BROKEN if live.get(f"{name}.test").status] == []
    names_the_five(live, said)


def names_the_five(live: Live, said: dict[str, str]) -> None:
    """`status`, `doctor` and the reports name each with its own reason."""
    status = live("status", "--format", "json")
    assert status.code == 8 and [each["app"] for each in status.json["stale"]] == list(said), status
    assert all(said[each["app"]] in each["problem"] for each in status.json["stale"]), status
    checks = live("doctor", "--format", "json").json["checks"]
    for app, words in said.items():
        assert any(f"app {app} is stale" in (c["problem"] or "") and words in c["problem"] for c in checks), (app, checks)
    reports = {report["app"]: report for report in live.done("apps:report", "--format", "json").json}
    assert [app for app, report in reports.items() if report["stale"]] == list(said)


def test_a_host_wide_edit_that_nginx_does_not_take_up_is_tried_once_and_no_apps_doing(live: Live, taken_port: int) -> None:
    for number in range(6):
        live.app(f"app{number}", [f"app{number}.test"])
    live.done("reconcile")
    before = live.generations.current_number()
    text = live.paths.config.read_text()
    live.paths.config.write_text(text.replace(f"http-port = {live.port}", f"http-port = {taken_port}"))
    live.write("apps/app3/DOMAINS", "app3.test\nnew.test\n")
    began = time.monotonic()
    result = live("reconcile")
    what, hint = result.err.splitlines()
    assert "another port" in hint
    assert result.code == 9 and what.startswith(f"router: {live.paths.config} was edited: ") and f":{taken_port} failed" in what, result
    # nginx tries a port that is taken for 2.5 s: with all of it, and with the edit alone
    assert time.monotonic() - began < 12, "not once an app"
    status = live("status", "--format", "json").json
    assert status["stale"] == [] and any("router.toml" in each and "router reconcile --all" in each for each in status["problems"])
    one = live("domains:add", "app1", "other.test")
    assert one.code == 9 and f"{live.paths.config} was edited" in one.err and "app app1" not in one.err, one
    assert live.get("app1.test").status == 502 and live.generations.current_number() == before
    # an edit that says nothing is not to blame for what a command says
    live.paths.config.write_text(f"# a word\n{text}")
    other = live("proxy:set", "--global", "http-port", str(taken_port))
    assert other.code == 9 and "was edited" not in other.err, other
    live.paths.config.write_text(text.replace(f"http-port = {live.port}", f"http-port = {taken_port}"))
    live.done("proxy:set", "--global", "http-port", str(live.port))
    live.done("reconcile")
    assert live.get("new.test").status == 502
    live.serves_current()
