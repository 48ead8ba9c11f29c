"""apps:snippets: lines of nginx's configuration of one app, judged by the real nginx before they are there."""

from __future__ import annotations

import os
import subprocess
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Live

pytestmark = pytest.mark.timeout(60)


def add(live: Live, text: str | bytes, *words: str) -> subprocess.CompletedProcess[str]:
    """`router snippets:add` with `text` on stdin."""
    from .conftest import ROUTER

    data = text.encode() if isinstance(text, str) else text
    done = subprocess.run(
        [str(ROUTER), "snippets:add", *words],
        input=data,
        capture_output=True,
        timeout=60,
        check=False,
        env={**os.environ, "ROUTER_ROOT": str(live.paths.root)},
    )
    return subprocess.CompletedProcess(done.args, done.returncode, done.stdout.decode(), done.stderr.decode())


def test_a_snippet_is_added_served_shown_replaced_and_removed(two_apps: Live) -> None:
    done = add(two_apps, "add_header X-One 1 always;\n", "blog", "headers")
    assert done.returncode == 0, done
    assert two_apps.get("blog.test").headers["x-one"] == "1"
    assert "x-one" not in two_apps.get("shop.test").headers
    assert (two_apps.paths.apps / "blog/nginx.conf.d/headers.conf").read_text() == "add_header X-One 1 always;\n"
    assert two_apps.done("snippets:list", "blog").out == "headers\n"
    assert two_apps.done("apps:snippets:list", "blog", "--format", "json").json == ["headers"]
    assert two_apps.done("snippets:show", "blog", "headers").out == "add_header X-One 1 always;\n"
    again = add(two_apps, "add_header X-One 1 always;\n", "blog", "headers")
    assert (again.returncode, again.stderr) == (0, "snippet headers of blog is this already\n")
    assert add(two_apps, "add_header X-One 2 always;", "blog", "headers").returncode == 0
    assert two_apps.get("blog.test").headers["x-one"] == "2"
    two_apps.done("snippets:remove", "blog", "headers")
    assert "x-one" not in two_apps.get("blog.test").headers
    assert not (two_apps.paths.apps / "blog/nginx.conf.d").exists()
    gone = two_apps.done("snippets:remove", "blog", "headers")
    assert gone.err == "blog has no snippet headers\n"
    two_apps.is_consistent()


@pytest.mark.parametrize("text", ["no_such x;\n", "listen 81;\n", "} server {\n", "server { }\n"])
@pytest.mark.parametrize("why", ["no domain", "disabled"])
def test_an_app_that_nothing_serves_yet_gets_no_broken_one_either(two_apps: Live, text: str, why: str) -> None:
    name = "new"
    if why == "disabled":
        name = "blog"
        two_apps.done("domains:disable", "blog")
    else:
        two_apps.done("apps:create", "new")
    with two_apps.unchanged():
        done = add(two_apps, text, name, "x")
    assert done.returncode == 8 and f"apps/{name}/nginx.conf.d/x.conf:1" in done.stderr, done
    by_hand = two_apps.write(f"apps/{name}/nginx.conf.d/x.conf", text)
    assert two_apps("nginx:validate", name).code == 8
    by_hand.unlink()
    assert add(two_apps, "add_header X-One 1 always;\n", name, "x").returncode == 0


def test_a_snippet_by_hand_is_one_too(two_apps: Live) -> None:
    two_apps.write("apps/blog/nginx.conf.d/by hand.conf", "add_header X-Hand 1 always;\n")
    add(two_apps, "add_header X-One 1 always;", "blog", "a")
    assert two_apps.done("snippets:list", "blog").out == "a\nby hand\n"
    assert two_apps.get("blog.test").headers["x-hand"] == "1"
    two_apps.done("snippets:remove", "blog", "by hand")
    assert "x-hand" not in two_apps.get("blog.test").headers


@pytest.mark.parametrize(
    ("text", "code", "said"),
    [
        ("add_heder X 1;\n", 8, 'apps/blog/nginx.conf.d/x.conf:1: [emerg] unknown directive "add_heder"'),
        ("location /a { return 200; }\n}\nserver {\n", 8, "apps/blog/nginx.conf.d/x.conf:2"),
        ("# a\nlisten 1;\n", 8, "apps/blog/nginx.conf.d/x.conf:2: listen: a listener cannot stand in a snippet"),
        ("server_name shop.test;\n", 8, "server_name: a server name cannot stand in a snippet"),
        ("include /etc/passwd;\n", 8, "apps/blog/nginx.conf.d/x.conf:1: include /etc/passwd"),
        ("", 2, "stdin holds no snippet"),
        (" \n", 2, "stdin holds no snippet"),
        ("a\0b;", 2, "stdin holds no snippet"),
        ("#" * (1 << 20) + "x", 2, "stdin holds no snippet"),
    ],
)
def test_a_snippet_that_nginx_would_not_take_changes_nothing(two_apps: Live, text: str, code: int, said: str) -> None:
    with two_apps.unchanged():
        done = add(two_apps, text, "blog", "x")
    assert done.returncode == code and said in done.stderr, done
    assert (two_apps.get("blog.test").body, two_apps.get("shop.test").body) == ("blog", "shop")


@pytest.mark.parametrize("name", ["../x", "a/b", ".hidden", "-x", "x.conf", "", "a b", "ä", "x" * 101, "x\n"])
def test_a_name_that_is_none_is_refused_with_the_rule(two_apps: Live, name: str) -> None:
    with two_apps.unchanged():
        done = add(two_apps, "add_header X 1;", "--", "blog", name)
    assert done.returncode == 2 and "letters, digits, . _ -" in done.stderr, done


@pytest.mark.parametrize(
    ("setup", "text", "hint"),
    [
        (["proxy-read-timeout", "2m"], "proxy_read_timeout 5m;", "router nginx:set blog proxy-read-timeout 5m"),
        ([], "# mine\nproxy_next_upstream_tries 5;", "router nginx:set blog proxy-next-upstream-tries 5"),
        (["proxy-buffers", "16 8k"], "proxy_buffers 8 16k;", "router nginx:set blog proxy-buffers '8 16k'"),
    ],
)
def test_what_a_property_says_already_leads_to_the_property(two_apps: Live, setup: list[str], text: str, hint: str) -> None:
    if setup:
        two_apps.done("nginx:set", "blog", *setup)
    with two_apps.unchanged():
        done = add(two_apps, text, "blog", "x")
    assert done.returncode == 8, done
    assert "apps/blog/nginx.conf.d/x.conf:" in done.stderr and "directive is duplicate" in done.stderr and hint in done.stderr, done
    words = hint.replace("'", "").split()[1:]
    two_apps.done(*words)


def test_what_no_property_was_set_to_a_snippet_may_say(two_apps: Live) -> None:
    assert add(two_apps, "client_max_body_size 5m;\nproxy_read_timeout 5m;\ngzip on;", "blog", "x").returncode == 0
    result = two_apps("nginx:set", "blog", "client-max-body-size", "6m")
    assert result.code == 8 and "take it out of the snippet" in result.err, result


def test_a_dry_run_shows_the_snippet_and_writes_none(two_apps: Live) -> None:
    with two_apps.unchanged():
        done = add(two_apps, "add_header X 1;\n", "blog", "x", "--dry-run")
    assert done.returncode == 0 and "+add_header X 1;" in done.stdout and "nothing was changed" in done.stderr, done


def test_an_app_or_a_snippet_that_is_not_there(two_apps: Live) -> None:
    assert add(two_apps, "add_header X 1;", "blgo", "x").returncode == 3
    assert two_apps("snippets:list", "blgo").code == 3
    add(two_apps, "add_header X 1;", "blog", "headers")
    result = two_apps("snippets:show", "blog", "header")
    assert result.code == 3 and "did you mean headers?" in result.err
    assert two_apps("snippets:remove", "blog", "../DOMAINS").code == 2


def test_a_text_that_is_not_utf8_stays_as_it_is(two_apps: Live) -> None:
    assert add(two_apps, b"# caf\xe9\nadd_header X-Raw 1 always;\n", "blog", "raw").returncode == 0
    assert two_apps.get("blog.test").headers["x-raw"] == "1"
    assert (two_apps.paths.apps / "blog/nginx.conf.d/raw.conf").read_bytes() == b"# caf\xe9\nadd_header X-Raw 1 always;\n"


@pytest.mark.parametrize(
    ("text", "said", "hint"),
    [
        ('# $nosuch\n\nadd_header X-A "$nosuch";\n', ':3: [emerg] unknown "nosuch" variable', '3: add_header X-A "$nosuch";'),
        ("location /a {\n    return 200 a${NoSuch}b;\n}\n", ':2: [emerg] unknown "nosuch" variable', "2: return 200 a${NoSuch}b;"),
        ("# location /\nlocation / { return 200 hi; }\n", ':2: [emerg] duplicate location "/"', "2: location / { return 200 hi; }"),
        ("location = / { return 200; }\nlocation ^~ / { return 200; }\n", ':2: [emerg] duplicate location "/"', "2: location ^~ /"),
        ("gzip on;\nlimit_req zone=none burst=2;\n", ':2: [emerg] zero size shared memory zone "none"', "2: limit_req zone=none"),
        ("gzip on;\naccess_log /no/such/log;\n", ':2: [emerg] open() "/no/such/log" failed', "2: access_log /no/such/log;"),
    ],
)
def test_what_nginx_says_of_no_line_or_of_the_routers_own_is_the_snippets(two_apps: Live, text: str, said: str, hint: str) -> None:
    with two_apps.unchanged():
        done = add(two_apps, text, "blog", "x")
    what, then = done.stderr.splitlines()
    assert done.returncode == 8 and f"nginx rejected apps/blog/nginx.conf.d/x.conf{said}" in what and then.startswith(f"  {hint}"), done


def test_an_own_template_is_named_where_nginx_names_no_file(two_apps: Live) -> None:
    shipped = two_apps.done("nginx:show-config", "--template").out
    text = "{# $nosuch\n#}\n# $nosuch\n" + shipped.replace("location / {", "location / {\n    add_header X-A $nosuch;", 1)
    two_apps.write("apps/blog/nginx.conf.j2", text)
    line = text.split("\n").index("    add_header X-A $nosuch;") + 1
    done = two_apps("domains:add", "blog", "new.blog.test")
    assert done.code == 8 and f'nginx rejected apps/blog/nginx.conf.j2:{line}: [emerg] unknown "nosuch" variable' in done.err, done


@pytest.mark.parametrize(
    ("hook", "text", "said"),
    [
        ("nginx_server_snippet", "add_header X-A \\$nosuch;", 'nginx-server-snippet of plugin bad:1: [emerg] unknown "nosuch" variable'),
        ("nginx_http_snippet", "map \\$host \\$bad { default \\$nosuch; }", 'nginx-http-snippet of plugin bad:1: [emerg] unknown "nosuch"'),
        ("nginx_server_snippet", "location / { return 200; }", 'nginx-server-snippet of plugin bad:1: [emerg] duplicate location "/"'),
        (
            "nginx_location_snippet",
            "proxy_http_version 1.1;",
            'nginx-location-snippet of plugin bad:1: [emerg] "proxy_http_version" directive',
        ),
    ],
)
def test_a_plugins_snippet_is_not_blamed_on_the_apps(two_apps: Live, hook: str, text: str, said: str) -> None:
    own = "# $nosuch\nproxy_http_version 1.1;\nlocation = / { add_header X-$host 1; }\nlocation /a { location /a/b { return 200; } }\n"
    assert add(two_apps, own, "blog", "x").returncode == 0
    two_apps.plugin("bad", **{hook: f'[ "$1" = blog ] || exit 0; echo "{text}"'})
    done = two_apps("domains:add", "blog", "new.blog.test")
    assert done.code == 8 and f"nginx rejected {said}" in done.err and "x.conf" not in done.err, done


def test_a_name_that_two_servers_of_one_app_have_is_that_apps(two_apps: Live) -> None:
    shipped = two_apps.done("nginx:show-config", "--template").out
    two_apps.write(
        "apps/blog/nginx.conf.j2", shipped + f"server {{ listen 127.0.0.1:{two_apps.port}; server_name blog.test; return 200; }}\n"
    )
    done = two_apps("domains:add", "blog", "new.blog.test")
    assert done.code == 8 and "app ?" not in done.err and done.err.startswith("router: app blog: nginx rejected apps/blog/nginx.conf.j2"), (
        done
    )
    assert "two of its own servers" in done.err


def test_what_no_file_says_is_said_of_the_vhost(two_apps: Live) -> None:
    assert add(two_apps, "# $nosuch\nadd_header X-A $host$nosuch_too;\nset $nosuch_too 1;\n", "blog", "x").returncode == 0
    shipped = two_apps.done("nginx:show-config", "--template").out
    two_apps.write("apps/blog/nginx.conf.j2", shipped.replace("location / {", "location / {\n    add_header X-A {{ '$no' ~ 'such' }};", 1))
    done = two_apps("domains:add", "blog", "new.blog.test")
    assert done.code == 8 and 'app blog: nginx rejected its vhost: [emerg] unknown "nosuch" variable' in done.err, done
