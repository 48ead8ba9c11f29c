"""What docs/security.md promises, tried as whom it is promised against: users with no rights but to an app's directory, or none."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nginx_router.beneath import MOST_NAMES, Directory
from nginx_router.errors import Conflict, UsageProblem
from nginx_router.events import Event
from nginx_router.files import LARGEST
from nginx_router.model import MOST_DOMAINS, MOST_ENDPOINTS, MOST_PORTS
from nginx_router.owners import Hosts
from nginx_router.queue import Queue
from nginx_router.store import LARGEST_APP, LARGEST_TOML, Write

from .conftest import ROUTER, Live, Result, Root, until

ALICE, BOB, NOBODY = 64001, 64002, 64003  # blog's owner, shop's owner, and somebody who owns nothing; no such users need exist

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


def as_user(uid: int, code: str, *argv: object, seconds: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, with no rights of ours."""
    return subprocess.run(_argv(uid, code, *argv), capture_output=True, text=True, timeout=seconds, check=False, cwd="/")


@contextlib.contextmanager
def meanwhile(uid: int, directory: Path, code: str, *argv: object) -> Iterator[None]:
    """Another user does this in a loop in a directory meanwhile; it has begun."""
    loop = f"while True:\n    try: {code}\n    except OSError: pass"
    code = f"import os, sys\nos.chdir({str(directory)!r})\nprint('begun', flush=True)\n{loop}"
    with subprocess.Popen(_argv(uid, code, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as process:
        assert process.stdout and process.stderr
        try:
            assert process.stdout.readline() == b"begun\n"
            yield
            assert process.poll() is None, process.stderr.read().decode()
        finally:
            process.kill()


def _argv(uid: int, code: str, *argv: object) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", code, *map(str, argv)]


def give(path: Path, uid: int) -> None:
    """As `chown -R`."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, uid, uid, follow_symlinks=False)


@pytest.fixture
def tenants(two_apps: Live) -> Live:
    """blog is ALICE's and shop BOB's: each may write the directory of their app, and nothing else."""
    for name, uid in (("blog", ALICE), ("shop", BOB)):
        directory = two_apps.paths.app(name)
        (directory / "nginx.conf.d").mkdir(exist_ok=True)
        (directory / "tls").mkdir(mode=0o700)
        (directory / "tls/key.pem").write_text(f"the key of {name}\n")
        (directory / "tls/key.pem").chmod(0o600)
        give(directory, uid)
    return two_apps


@pytest.fixture
def secret(tenants: Live, isolated: Path) -> Iterator[Path]:
    """A file that only root may read; each of its lines would be a domain."""
    path = isolated / "secret"
    path.write_text("root-password.hunter2\n")
    path.chmod(0o600)
    yield path
    assert path.read_text() == "root-password.hunter2\n" and stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_uid == 0


def alice(root: Live, code: str, *argv: object) -> None:
    """What blog's owner does in their directory, which must succeed."""
    code = f"import os, sys\nos.chdir({str(root.paths.app('blog'))!r})\n{code}"
    done = as_user(ALICE, code, *argv)
    assert done.returncode == 0, done.stderr


def alice_writes(root: Live, path: str, text: str) -> None:
    alice(root, "open(sys.argv[1], 'w').write(sys.argv[2])", path, text)


def refused(root: Live, code: int, *argv: object) -> Result:
    """A command that ends with `code`; shop is served as before."""
    result = root(*argv)
    assert result.code == code, result
    assert root.get("shop.test").body == "shop"
    return result


def goes_on(root: Live) -> None:
    """shop takes a change and is served."""
    name = f"n{time.monotonic_ns()}.test"
    root.done("domains:add", "shop", name)
    assert root.get(name).body == root.get("shop.test").body == "shop"


def holds(root: Root, text: str) -> list[str]:
    """The files of the root that hold a text."""
    files = (path for path in root.paths.root.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(root.paths.root)) for path in files if text in path.read_text(errors="replace")]


# another's key, or any file that they may not read

PLACES = ("DOMAINS", "UPSTREAMS", "app.toml", "nginx.conf.j2", "nginx.conf.d/own.conf")


def test_no_link_leads_out_of_an_apps_directory(tenants: Live, secret: Path) -> None:
    (secret.parent / "d").mkdir(mode=0o700)
    shutil.copy2(secret, secret.parent / "d/own.conf")
    for place in (*PLACES, "nginx.conf.d"):
        target = secret.parent / "d" if place == "nginx.conf.d" else secret
        put = "os.path.lexists(p) and os.rename(p, 'aside')\nos.symlink(sys.argv[2], p)"
        alice(tenants, f"p = sys.argv[1]\n{put}", place, target)
        result = refused(tenants, 2, "reconcile", "blog")
        assert "a link or a device" in result.err and "hunter2" not in result.err
        alice(tenants, "p = sys.argv[1]\nos.unlink(p)\nos.path.lexists('aside') and os.rename('aside', p)", place)
    assert holds(tenants, "hunter2") == []
    goes_on(tenants)


@pytest.mark.timeout(400)  # many commands, one after the other
def test_no_second_name_of_a_file_leads_out(tenants: Live, secret: Path) -> None:
    # as alice could make one where fs.protected_hardlinks is 0
    key = tenants.paths.app("shop") / "tls/key.pem"
    for place in PLACES:
        path = tenants.paths.app("blog") / place
        kept = path.read_text() if path.exists() else None
        for other in (secret, key):
            path.unlink(missing_ok=True)
            path.hardlink_to(other)
            assert "may not read this file" in refused(tenants, 2, "reconcile", "blog").err
        # the first name goes, as /etc/shadow's does whenever passwd(1) writes it: nothing tells the second from a file made there
        path.unlink()
        path.write_text("root-password.hunter2\n")
        path.chmod(0o600)
        assert "may not read this file" in refused(tenants, 2, "reconcile", "blog").err
        path.unlink()
        if kept is not None:
            alice_writes(tenants, place, kept)
    assert holds(tenants, "hunter2") == [] and holds(tenants, "the key of shop") == ["apps/shop/tls/key.pem"]
    assert as_user(ALICE, f"open({str(key)!r})").returncode != 0
    goes_on(tenants)


def test_a_file_that_is_exchanged_for_a_link_while_it_is_read(tenants: Live, secret: Path) -> None:
    (secret.parent / "d").mkdir(mode=0o700)
    shutil.copy2(secret, secret.parent / "d/own.conf")
    alice_writes(tenants, "nginx.conf.d/own.conf", "gzip on;")
    exchange = (
        "os.symlink(sys.argv[1], 'l'); os.rename('l', 'DOMAINS'); open('t', 'w').close(); os.rename('t', 'DOMAINS'); "
        "os.rename('nginx.conf.d', 'y'); os.symlink(sys.argv[2], 'nginx.conf.d'); os.unlink('nginx.conf.d'); os.rename('y', 'nginx.conf.d')"
    )
    read, links = set(), 0
    with meanwhile(ALICE, tenants.paths.app("blog"), exchange, secret, secret.parent / "d"):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (links < 50 or "gzip on;" not in read):
            try:
                read |= {*(tenants.store.texts("blog") or {}).values()}
            except UsageProblem:
                links += 1
    assert links >= 50 and "gzip on;" in read, "the race was run"
    assert not any("hunter2" in text for text in read)


# what root writes


def test_a_directory_that_is_exchanged_for_a_link_while_root_writes(tenants: Live, isolated: Path) -> None:
    target = isolated / "cron.d"
    target.mkdir()
    exchange = (
        "import time; os.rename('nginx.conf.d', f'y{time.monotonic_ns()}'); os.symlink(sys.argv[1], 'nginx.conf.d'); "
        "os.unlink('nginx.conf.d'); os.mkdir('nginx.conf.d')"
    )
    written = refusals = 0
    with meanwhile(ALICE, tenants.paths.app("blog"), exchange, target):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (written < 50 or refusals < 50):
            for step in (Write("apps/blog/nginx.conf.d/job.conf", None, "x"), Write("apps/blog/nginx.conf.d/job.conf", "x", None)):
                with contextlib.suppress(Conflict):
                    try:
                        tenants.store.apply([step])
                        written += 1
                    except (UsageProblem, OSError):
                        refusals += 1
    assert written >= 50 and refusals >= 50, "the race was run"
    assert list(target.iterdir()) == []


def test_what_root_makes_in_an_apps_directory_is_its_owners(tenants: Live) -> None:
    blog = tenants.paths.app("blog")
    shutil.rmtree(blog / "nginx.conf.d")
    tenants.done("nginx:set", "blog", "gzip", "on")
    tenants.store.apply([Write("apps/blog/nginx.conf.d/own.conf", None, "gzip_vary on;\n")])
    for path in (blog / "app.toml", blog / "nginx.conf.d", blog / "nginx.conf.d/own.conf"):
        assert path.stat().st_uid == ALICE and not path.stat().st_mode & 0o022
    # a program of root's by a second name: what takes its place is no program that runs as root
    program = blog.parent.parent / "program"
    program.write_text("# one.test\n")
    program.chmod(0o4755)
    (blog / "UPSTREAMS").unlink()
    (blog / "UPSTREAMS").hardlink_to(program)
    tenants.store.apply([Write("apps/blog/UPSTREAMS", "# one.test\n", "# two.test\n")])
    assert (blog / "UPSTREAMS").stat().st_mode & 0o7000 == 0 and program.stat().st_mode & 0o7777 == 0o4755


def test_doctor_mends_no_mode_of_what_an_owner_put_there_instead(tenants: Live, secret: Path) -> None:
    key = tenants.paths.app("blog") / "tls/key.pem"
    key.unlink()
    key.symlink_to(secret.parent / "passwd")
    passwd = secret.parent / "passwd"
    passwd.write_text("everybody reads it")
    passwd.chmod(0o666)
    with Directory.open(tenants.paths.apps, Hosts.of(tenants.paths.root)) as apps, apps.inside("blog") as blog, blog.inside("tls") as tls:
        with pytest.raises(UsageProblem, match="a link"):
            tls.restrict("key.pem", 0o600)
        key.unlink()
        key.hardlink_to(passwd)
        with pytest.raises(UsageProblem, match="another name"):
            tls.restrict("key.pem", 0o600)
    assert stat.S_IMODE(passwd.stat().st_mode) == 0o666


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


def test_nobody_but_its_owner_opens_a_lock(tenants: Live, router_root: Path) -> None:
    tenants.done("apps:deploy", "shop", (tenants.paths.app("shop") / "UPSTREAMS").read_text().strip())
    locks = [tenants.paths.lock, *router_root.glob("run/*.lock"), *router_root.glob("run/deploy/*.lock")]
    for lock in locks:
        for uid in (ALICE, NOBODY):
            assert as_user(uid, f"open({str(lock)!r})").returncode != 0, lock
    # one that flock(1) made, with the mode that everything gets
    tenants.paths.lock.chmod(0o644)
    tenants.done("domains:add", "shop", "two.test")
    assert stat.S_IMODE(tenants.paths.lock.stat().st_mode) == 0o600
    journal = tenants.paths.journal
    assert as_user(NOBODY, f"open({str(journal)!r})").returncode != 0, "it is locked while a line is added"


def test_nobody_asks_by_the_queue(tenants: Live) -> None:
    queue = tenants.paths.queue
    for uid in (ALICE, NOBODY):
        assert as_user(uid, f"open({str(queue / 'x')!r}, 'w')").returncode != 0
        assert as_user(uid, f"import os; os.listdir({str(queue)!r})").returncode != 0
    # and if somebody could, it would not be done
    with tenants.locked():
        command = tenants.begin("reconcile", "shop")
        until(lambda: tenants.queued() == 1, 10, "the submission")
        (asked,) = queue.glob("*.json")
        forged = json.loads(asked.read_text())
        forged["events"] = [Event("destroy", "shop").as_json()]
        name = asked.with_name(f"0{asked.name[1:-10]}abcdef.json")
        name.write_text(json.dumps(forged))
        os.chown(name, ALICE, ALICE)
        link = asked.with_name(f"0{asked.name[1:-10]}fedcba.json")
        link.symlink_to(asked)
    assert command.wait().code == 0
    assert tenants.store.exists("shop") and tenants.get("shop.test").body == "shop"
    assert Queue(queue).take() == [] and list(queue.iterdir()) == []


# modes


def test_nothing_is_for_others_to_write(tenants: Live, router_root: Path) -> None:
    os.umask(0)  # of whoever runs the test; pytest's own files are its own affair
    try:
        tenants.done("apps:create", "new")
        tenants.done("nginx:set", "new", "gzip", "on")
        tenants.done("proxy:set", "--global", "allowed-ports", "1024-65535")
        tenants.done("snippets:list", "new")
        tenants.done("proxy:reload")
    finally:
        os.umask(0o022)
    own = [path for path in router_root.rglob("*") if not path.is_symlink() and not path.is_socket()]
    assert [str(path) for path in own if path.stat().st_mode & 0o002] == []
    for path, mode in (("run/queue", 0o700), ("objects", 0o700), ("run/lock", 0o600)):
        assert stat.S_IMODE((router_root / path).stat().st_mode) == mode, path
    result = tenants("doctor", "--format", "json")
    wrong = [check for check in result.json["checks"] if check["name"] in ("modes", "owners") and not check["ok"]]
    assert wrong == [], wrong


def test_doctor_mends_the_modes_of_what_is_the_hosts(tenants: Live, router_root: Path) -> None:
    (router_root / "run/watch.lock").touch()
    for path, mode in (("run/queue", 0o777), ("objects", 0o755), ("run/watch.lock", 0o644), ("router.toml", 0o666), ("apps", 0o777)):
        (router_root / path).chmod(mode)
    key = router_root / "apps/blog/tls/key.pem"
    key.chmod(0o644)
    os.chown(router_root / "generations", 0, ALICE)
    (router_root / "generations").chmod(0o775)
    found = [c for c in tenants("doctor", "--fix", "--format", "json").json["checks"] if c["name"] == "modes"]
    assert len(found) >= 5 and all(check["fixed"] for check in found), found
    assert stat.S_IMODE((router_root / "run/watch.lock").stat().st_mode) == 0o600
    for path in ("run/queue", "objects", "router.toml", "apps", "generations"):
        assert not (router_root / path).stat().st_mode & 0o002, path
    assert not (router_root / "generations").stat().st_mode & 0o020
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_uid == ALICE
    os.chown(router_root / "run/queue", ALICE, ALICE)
    (check,) = [c for c in tenants("doctor", "--format", "json").json["checks"] if c["name"] == "owners" and not c["ok"]][:1]
    assert "run/queue" in check["problem"] and check["fix"].startswith("chown -R root")
