"""docs/security.md of what an app's owner may say: it takes nothing of another's or the host's, leads nowhere and holds up nobody."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nginx_router.beneath import MOST_NAMES
from nginx_router.files import LARGEST
from nginx_router.model import MOST_DOMAINS, MOST_ENDPOINTS, MOST_PORTS
from nginx_router.store import LARGEST_APP, LARGEST_TOML

from .conftest import ROUTER, Live, until
from .tenants import ALICE, alice, alice_writes, as_user, goes_on, meanwhile, refused, tenants

__all__ = ["tenants"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


# domains


def test_an_app_owner_takes_no_domain_that_another_app_has(tenants: Live) -> None:
    tenants.done("domains:add", "shop", "*.shop.test", "api.other.test")
    for name in ("shop.test", "*.shop.test", "admin.shop.test", "a.b.shop.test", "*.b.shop.test", "*.other.test", "*.test"):
        alice_writes(tenants, "DOMAINS", f"blog.test\n{name}\n")
        result = refused(tenants, 4, "reconcile", "blog")
        assert "app shop" in result.err, result
        assert "app shop" in refused(tenants, 4, "nginx:set", "blog", "gzip", "on").err, "another command of the app takes it up as little"
        assert tenants.get("admin.shop.test").body == tenants.get("api.other.test").body == "shop"
    assert tenants.get("blog.test").body == "blog"
    # what nobody has is there for the asking, and what the host's own people give is given
    alice_writes(tenants, "DOMAINS", "blog.test\nfree.test\n")
    tenants.done("reconcile", "blog")
    tenants.done("domains:add", "blog", "admin.shop.test")
    assert tenants.get("free.test").body == tenants.get("admin.shop.test").body == "blog"
    tenants.done("reconcile")
    alice_writes(tenants, "nginx.conf.d/own.conf", "gzip on;\n")
    tenants.done("reconcile")
    assert tenants.get("admin.shop.test").body == "blog"
    goes_on(tenants)


@pytest.mark.parametrize("together", [True, False])
def test_an_app_owner_takes_no_domain_that_is_free_for_a_moment(tenants: Live, together: bool) -> None:
    alice_writes(tenants, "DOMAINS", "blog.test\nshop.test\n")
    assert tenants("reconcile", "blog").code == 4
    # bob's editor empties the file before it writes it
    bob = tenants.paths.app("shop") / "DOMAINS"
    text = bob.read_text()
    bob.write_text("")
    if not together:
        tenants.done("reconcile", "shop")
    result = tenants("reconcile", "blog", "shop")
    assert result.code == 4 and "domain shop.test of app blog was app shop's until a moment ago" in result.err
    alice_writes(tenants, "DOMAINS", "blog.test\n*.test\n")
    assert tenants("reconcile", "blog").code == 4
    alice_writes(tenants, "DOMAINS", "blog.test\nshop.test\n")
    assert tenants("reconcile", "blog").code == 4
    bob.write_text(text)
    tenants.done("reconcile", "shop")
    assert tenants.get("shop.test").body == "shop"
    goes_on(tenants)


# ports


def test_an_app_owner_opens_no_port_that_the_host_does_not_allow(tenants: Live, free_port: Callable[[], int]) -> None:
    allowed, other, https = free_port(), free_port(), free_port()
    tenants.done("proxy:set", "--global", "https-port", https)
    tenants.done("proxy:set", "--global", "allowed-ports", f"{allowed}-{allowed} 1-2")
    alice_writes(tenants, "app.toml", f'ports = ["http:{other}"]\n')
    result = refused(tenants, 2, "reconcile", "blog")
    assert f"blog: port {other} is not among those that apps may have ({allowed}-{allowed} 1-2)" in result.err
    alice_writes(tenants, "app.toml", f'ports = ["http", "http:{tenants.port}", "http:{https}", "http:{allowed}"]\n')
    tenants.done("reconcile", "blog")
    assert tenants.get("blog.test", port=allowed).body == tenants.get("blog.test").body == "blog"
    assert refused(tenants, 2, "ports:add", "blog", f"http:{other}").err.count(str(other)) >= 1
    result = tenants("proxy:set", "--global", "allowed-ports", "1-2")
    assert result.code == 2 and f"port {allowed}" in result.err, "an app has one of those that would go"
    tenants.done("proxy:set", "--global", "allowed-ports")
    tenants.done("ports:add", "blog", f"http:{other}")
    goes_on(tenants)


# out of the app by nginx's own words


def out_of_the_app(target: Path) -> list[str]:
    return [
        f"include {target};",
        "include /etc/passwd;",
        "root /;",
        "location /x/ { alias /; }",
        f"auth_basic x; auth_basic_user_file {target};",
        f"ssl_certificate_key {target};",
        f"access_log {target};",
        "access_log syslog:server=127.0.0.1;",
        f"error_log {target};",
        "error_log memory:1g;",
        "location /x { proxy_pass http://unix:/run/docker.sock:/; }",
        "location /x { proxy_pass http://127.0.0.1:1; }",
        "location /x { proxy_pass http://router_shop.web; }",
        "location /x { proxy_pass http://router_blog.x.web; }",
        "location /x { set $u router_shop.web; proxy_pass http://$u; }",
        f"location /x {{ proxy_store {target}; }}",
        f"client_body_temp_path {target};",
        "load_module modules/x.so;",
        "perl x::y;",
        "js_content x;",
        "content_by_lua_block { os.execute('x') }",
        "ssl_engine x;",
        "resolver 127.0.0.1;",
        "limit_req zone=router_shop;",
        "fastcgi_pass unix:/run/php.sock;",
        "stub_status;",
        "autoindex on;",
        "try_files /etc/passwd =404;",
        "client_body_buffer_size 10g;",
        "proxy_buffers 9999 16m;",
        "set $router_probe x;",
        "auth_request_set $router_probe x;",
        "} server { listen 1;",
        # what crossplane and nginx read differently
        "default_type ${; alias /etc; #};",
        "default_type b#; alias /etc;\n;",
        'add_header X "a"b; alias /etc;',
        "add_header X a}; root /;",
        '"root" /;',
        "ro\\ot /;",
        "types { include /etc/passwd; }",
    ]


@pytest.mark.timeout(400)  # many commands, one after the other
def test_a_snippet_of_an_app_owner_leads_nowhere(tenants: Live, isolated: Path) -> None:
    target = isolated / "target"
    before = tenants.files()
    for text in out_of_the_app(target):
        alice_writes(tenants, "nginx.conf.d/own.conf", f"{text}\n")
        result = tenants("reconcile", "blog")
        assert result.code == 8 and "app blog: apps/blog/nginx.conf.d/own.conf:1: " in result.err, (text, result)
        assert not target.exists(), text
    alice(tenants, "os.unlink('nginx.conf.d/own.conf')")
    assert tenants.files() == before
    # a snippet by command lies in their directory too
    result = subprocess.run(
        [ROUTER, "snippets:add", "blog", "own"],
        input=f"access_log {target};",
        capture_output=True,
        text=True,
        env={**os.environ, "ROUTER_ROOT": str(tenants.paths.root)},
        check=False,
    )
    assert result.returncode == 8 and not target.exists()
    goes_on(tenants)


def test_a_snippet_of_an_app_owner_says_what_is_theirs_to_say(tenants: Live) -> None:
    log = tenants.paths.log / "blog-access.log"
    alice_writes(
        tenants,
        "nginx.conf.d/own.conf",
        f"""# the owner's
add_header X-Frame-Options "DENY; really" always;
client_body_buffer_size 1m;
if ($http_user_agent ~* "bad bot|worse") {{ return 403; }}
location ~ ^/old/(.*)\\.php$ {{ return 301 /new/$1; }}
location /api/ {{
    access_log {log} router_json;
    proxy_pass http://router_blog.web/;
    proxy_set_header X-App ${{host}}x;
}}
types {{ text/x-own own; }}
""",
    )
    tenants.done("reconcile", "blog")
    answer = tenants.get("blog.test", "/api/x")
    assert answer.body == "blog" and answer.headers["x-frame-options"] == "DENY; really"
    assert tenants.get("blog.test", "/old/a.php").headers["location"].endswith("/new/a")
    assert tenants.get("blog.test", **{"User-Agent": "a bad bot"}).status == 403
    goes_on(tenants)


def test_the_hosts_own_people_say_in_snippets_what_they_like(two_apps: Live, isolated: Path) -> None:
    target = isolated / "target.log"
    two_apps.snippet("blog", f"access_log {target};\nlocation /x/ {{ alias /usr/share/; }}\n")
    two_apps.done("reconcile", "blog")
    assert two_apps.get("blog.test").body == "blog" and target.exists()
    # given away, file by file, as access lists and groups may
    for path, mode, uid in (("nginx.conf.d/own.conf", 0o666, 0), ("nginx.conf.d", 0o775, 0), ("nginx.conf.d", 0o755, ALICE)):
        each = two_apps.paths.app("blog") / path
        each.chmod(mode)
        os.chown(each, uid, uid or ALICE)
        assert two_apps("nginx:validate", "blog").code == 8, f"{path} {mode:o} {uid}"
        each.chmod(0o644 if each.is_file() else 0o755)
        os.chown(each, 0, 0)
    assert two_apps("nginx:validate", "blog").code == 0


@pytest.mark.timeout(400)  # many commands, one after the other
def test_the_template_of_an_app_owner(tenants: Live, isolated: Path, free_port: Callable[[], int]) -> None:
    port, shipped = free_port(), tenants.done("nginx:show-config", "--template").out
    for key, value in {
        "gzip": "on",
        "trusted-proxies": "127.0.0.1",
        "error-pages": "default",
        "access-log-format": "$remote_addr $status",
        "load-balancing": "random two",
        "client-body-buffer-size": "32k",
        "max-fails": "2",
        "x-forwarded-ssl": "on",
    }.items():
        tenants.done("nginx:set", "blog", key, value)
    tenants.done("ports:add", "blog", "http", f"http:{port}")
    tenants.done("upstreams:add", "blog", "api=127.0.0.1:1")
    alice_writes(tenants, "nginx.conf.d/own.conf", "add_header X-Own 1;\n")
    alice_writes(tenants, "nginx.conf.j2", shipped.replace("    server_name ", "    add_header X-Template 1;\n    server_name "))
    tenants.done("reconcile", "blog")
    assert tenants.get("blog.test", port=port).body == "blog"
    target = isolated / "target"
    for old, new in {
        "listen {{ listen }};": "listen {{ listen }} proxy_protocol;",
        "location / {": "location /x { alias /; }\n    location / {",
        "access_log {{ access_log | q }}": f"access_log {target}; access_log {{{{ access_log | q }}}}",
        "error_log {{ error_log | q }};": f"error_log {target};",
        "server {{ server.address }}{{ server.flags }};": "server unix:/run/docker.sock;",
        "zone {{ upstream.name }} {{ upstream.zone }};": "zone {{ upstream.name }} 64g;",
        "upstream {{ upstream.name }} {": "upstream router_shop.web {",
        'server_name {{ server.names | join(" ") }};': "server_name shop.test;",
        "{{ map.variable }}": "$router_upgrade",
        "log_format {{ log_format.name }}": "log_format router_main",
    }.items():
        assert old in shipped, old
        alice_writes(tenants, "nginx.conf.j2", shipped.replace(old, new))
        result = tenants("reconcile", "blog")
        assert result.code == 8 and "apps/blog/nginx.conf.j2" in result.err, (new, result)
        assert not target.exists(), new
    goes_on(tenants)


# files and sockets of the host by properties and endpoints


def test_an_app_owner_writes_logs_under_their_own_name_alone(tenants: Live) -> None:
    for value in ("/etc/cron.d/x", "../x", "shop-access.log", "error.log", "router.log", "all.log", "a/b", "x;y"):
        alice_writes(tenants, "app.toml", f"[nginx]\naccess-log-path = {json.dumps(value)}\n")
        assert refused(tenants, 2, "reconcile", "blog").err.count("log"), value
    alice_writes(tenants, "app.toml", '[nginx]\naccess-log-path = "blog_own.log"\n')
    tenants.done("reconcile", "blog")
    tenants.done("nginx:set", "blog", "error-log-path", "all.log")
    tenants.get("blog.test")
    until(lambda: (tenants.paths.log / "blog_own.log").read_text(), 5, "a line in the log")
    assert as_user(ALICE, f"open({str(tenants.paths.log / 'x')!r}, 'w')").returncode != 0, "so a link in log/ is nobody's to make"
    goes_on(tenants)


def test_an_app_owner_takes_no_socket_of_the_host(tenants: Live) -> None:
    alice_writes(tenants, "UPSTREAMS", "unix:/run/docker.sock\n")
    result = refused(tenants, 2, "reconcile", "blog")
    assert "router upstreams:add blog unix:/run/docker.sock" in result.err
    tenants.done("upstreams:add", "blog", "unix:/run/docker.sock")
    tenants.done("reconcile", "blog")
    goes_on(tenants)


# other apps' changes


@pytest.mark.timeout(400)  # many commands, one after the other
def test_an_app_owner_holds_up_nobody(tenants: Live) -> None:
    blog = tenants.paths.app("blog")
    many = "".join(f"d{n}.test\n" for n in range(MOST_DOMAINS + 1))
    for code, exit_code, words in (
        ("os.mkfifo('x'); os.rename('x', 'DOMAINS')", 2, "not a regular file"),
        ("os.unlink('DOMAINS'); os.mkdir('DOMAINS')", 2, "not a regular file"),
        (f"os.rmdir('DOMAINS'); open('DOMAINS', 'w').write('#' * {LARGEST + 1})", 2, "larger than"),
        (f"open('DOMAINS', 'w').write({many!r})", 2, f"at most {MOST_DOMAINS}"),
        (f"open('DOMAINS', 'w').write(''.join('%x.a\\n' % n for n in range({LARGEST // 8})))", 2, f"at most {MOST_DOMAINS}"),
        (
            "open('DOMAINS', 'w').write('blog.test'); "
            f"open('UPSTREAMS', 'w').write(''.join('10.0.%d.%d:1\\n' % divmod(n, 256) for n in range({MOST_ENDPOINTS + 1})))",
            2,
            f"at most {MOST_ENDPOINTS}",
        ),
        (
            "open('UPSTREAMS', 'w').close(); "
            f"open('app.toml', 'w').write('ports = [' + ','.join('\"http:%d\"' % n for n in range(1, {MOST_PORTS + 2})) + ']')",
            2,
            f"at most {MOST_PORTS}",
        ),
        (f"open('app.toml', 'w').write('#' * {LARGEST_TOML + 1})", 2, "larger than"),
        ("open('app.toml', 'w').write('[' * 60000)", 2, "app.toml"),
        (
            f"open('app.toml', 'w').close(); [open(f'nginx.conf.d/{{n}}.conf', 'w').close() for n in range({MOST_NAMES + 1})]",
            2,
            "more than",
        ),
        (
            f"[os.unlink(f'nginx.conf.d/{{n}}.conf') for n in range({MOST_NAMES + 1})]; "
            f"[open(f'nginx.conf.d/{{n}}.conf', 'w').write('#' * {LARGEST}) for n in range({LARGEST_APP // LARGEST + 1})]",
            2,
            "come to more than",
        ),
        (
            f"[os.unlink(f'nginx.conf.d/{{n}}.conf') for n in range({LARGEST_APP // LARGEST + 1})]; "
            "open('nginx.conf.j2', 'w').write('{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}')",
            7,
            "may not take more than",
        ),
    ):
        alice(tenants, code)
        began = time.monotonic()
        result = tenants("reconcile", "blog")
        assert result.code == exit_code and words in result.err and len(result.err) < 1000, result
        assert time.monotonic() - began < 10
    alice(tenants, "os.unlink('nginx.conf.j2'); os.chmod('.', 0)")
    tenants.done("reconcile")
    blog.chmod(0o755)
    # a lease: whoever opens the file waits until its owner has had time to let go of it
    with meanwhile(
        ALICE,
        blog,
        "import fcntl, signal, time; signal.signal(signal.SIGIO, signal.SIG_IGN); f = open('DOMAINS'); "
        "fcntl.fcntl(f, fcntl.F_SETLEASE, fcntl.F_WRLCK); time.sleep(60)",
    ):
        until(lambda: "LEASE" in Path("/proc/locks").read_text(), 10, "the lease")
        began = time.monotonic()
        assert tenants("reconcile", "blog").code in (0, 2)
        assert time.monotonic() - began < 10
    goes_on(tenants)


def test_what_an_owner_left_too_deep_is_removed_with_the_app(tenants: Live) -> None:
    alice(tenants, "for n in range(2000): os.mkdir('d'); os.chdir('d')")
    tenants.done("doctor", "--format", "json")
    tenants.done("apps:destroy", "blog", "--force")
    goes_on(tenants)
    # on a busy host it takes more than one change's time
    deadline = time.monotonic() + 60
    while list(tenants.paths.apps.glob(".*")):
        assert time.monotonic() < deadline
        goes_on(tenants)
