"""What the directories hold is judged before it is served: `nginx:validate`, and own templates on the states that come."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from .conftest import ROUTER
from .echoing import blog, instance, seen, setting

if TYPE_CHECKING:
    from .conftest import Live

__all__ = ["blog", "instance"]  # fixtures

pytestmark = pytest.mark.timeout(90)


def test_validate_judges_what_the_directories_hold_and_changes_nothing(blog: Live) -> None:
    assert blog.done("nginx:validate").err == "2 of 2 valid\n"
    blog.write("apps/blog/nginx.conf.d/own.conf", "# fine\nadd_heder X y;\n")
    blog.write("apps/shop/app.toml", "[nginx]\nproxy-keepalive = -1\n")
    with blog.unchanged():
        result = blog("nginx:validate", "blog")
    assert result.code == 8, result
    assert "app blog: nginx rejected apps/blog/nginx.conf.d/own.conf:2:" in result.err and "add_heder" in result.err
    with blog.unchanged():
        both = blog("nginx:validate", "--all", "--format", "json")
    assert both.code == 8, "that of the first, by name"
    assert [(row["app"], row["valid"], row["exit"]) for row in both.json] == [("blog", False, 8), ("shop", False, 2)]
    assert "apps/shop/app.toml:2" in both.json[1]["problem"]
    assert seen(blog) and seen(blog, "shop.test")
    (blog.paths.apps / "blog/nginx.conf.d/own.conf").write_text("add_header X y;\n")
    assert blog.done("nginx:validate", "blog").err == "1 of 1 valid\n"
    assert "x" not in blog.get("blog.test").headers, "it was judged, not taken up"


def test_one_broken_app_among_many_is_found_by_few_tests(live: Live) -> None:
    for number in range(40):
        live.app(f"app{number}", [f"app{number}.test"], ["127.0.0.1:1"])
    live.snippet("app7", "nonsense;\n")
    live.snippet("app31", "gzip perhaps;\n")
    result = live("nginx:validate")
    assert result.code == 8 and "38 of 40 valid" in result.err, result
    assert "apps/app7/nginx.conf.d/own.conf:1" in result.err and "apps/app31/nginx.conf.d/own.conf:1" in result.err
    assert not list(live.paths.run.glob("validate-*"))


def test_the_shipped_template_is_what_an_own_one_starts_from(blog: Live) -> None:
    text = blog.done("nginx:show-config", "--template").out
    plain = blog.done("nginx:show-config", "blog").out
    blog.write("apps/blog/nginx.conf.j2", text)
    blog.done("reconcile", "blog")
    assert blog.done("nginx:show-config", "blog").out == plain
    assert blog("nginx:show-config").code == 2 and blog("nginx:show-config", "blog", "--template").code == 2
    blog.write("apps/blog/nginx.conf.j2", text.replace("server_name", "add_header X-Mine 1 always;\n    server_name"))
    blog.done("reconcile", "blog")
    assert blog.get("blog.test").headers["x-mine"] == "1"
    setting(blog, "disable-custom-config", "true")
    assert "x-mine" not in blog.get("blog.test").headers


TEMPLATE = """\
server {{
{{% for server in servers %}}
{{% for listen in server.listens %}}
    listen {{{{ listen }}}};
{{% endfor %}}
{{% endfor %}}
    server_name {{{{ domains | join(" ") }}}};
    location / {{ {location} }}
}}
"""


@pytest.mark.parametrize(
    ("location", "code", "said"),
    [
        ("proxy_pass http://router_blog.web;", 8, "tried with no endpoints"),
        ("proxy_pass http://{{ servers[0].upstream }};", 8, "tried with no endpoints"),
        ("proxy_pass http://{{ upstreams[0].servers[0].address }};", 7, "tried with no endpoints"),
        ("{% if upstreams | length > 1 %}nonsense;{% endif %} return 200 ok;", 8, "tried with the processes web and api"),
    ],
)
def test_a_template_is_tried_on_the_states_that_come(blog: Live, location: str, code: int, said: str) -> None:
    guarded = "{% if upstreams %}upstream router_blog.web { server 127.0.0.1:1; }\n{% endif %}"
    own = blog.write("apps/blog/nginx.conf.j2", guarded + TEMPLATE.format(location=location))
    with blog.unchanged():
        result = blog("nginx:set", "blog", "send-timeout", "5s")
    assert result.code == code and said in result.err and "apps/blog/nginx.conf.j2" in result.err, result
    validated = blog("nginx:validate", "blog")
    assert validated.code == code and said in validated.err, validated
    own.write_text(TEMPLATE.format(location="return 200 mine;"))
    blog.done("nginx:set", "blog", "send-timeout", "5s")
    assert blog.get("blog.test").body == "mine"


def test_the_state_of_the_app_itself_is_named_as_ever(blog: Live) -> None:
    blog.write("apps/blog/nginx.conf.j2", "{{ domainz }}\n")
    result = blog("reconcile", "blog")
    assert result.code == 7 and "nginx.conf.j2:1: 'domainz' is undefined" in result.err and "tried with" not in result.err


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root can give up the right to ports below 1024")
@pytest.mark.parametrize("words", [("ports:add", "blog", "http", "http:81"), ("proxy:set", "--global", "http-port", "81")])
def test_a_port_that_is_roots_is_not_permitted_and_no_apps_doing(blog: Live, words: tuple[str, ...]) -> None:
    without = ["setpriv", "--inh-caps", "-all", "--ambient-caps", "-all", "--bounding-set", "-net_bind_service"]
    bind = "import socket; socket.create_server(('127.0.0.1', 81))"
    if subprocess.run([*without, sys.executable, "-c", bind], capture_output=True, timeout=60, check=False).returncode == 0:
        pytest.skip("this machine lets everybody listen on port 81")
    with blog.unchanged():
        done = subprocess.run(
            [*without, str(ROUTER), *words],
            env={**os.environ, "ROUTER_ROOT": str(blog.paths.root)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    what, hint = done.stderr.splitlines()
    assert done.returncode == 14 and what.endswith(":81: ports below 1024 are root's") and "app blog" not in what, done
    assert "from 1024 on" in hint and "proxy:start" in hint
    assert blog("status", "--format", "json").json["stale"] == []
