"""What a hostile or clumsy person does to a root: command lines and hand edits, drawn by chance.

Everything is a plain value whose repr can be pasted into a regression case.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

from nginx_router.hookspecs import HOOKS
from nginx_router.properties import PROPERTIES, refused

from .chance import Some, always, built, either, one, several, text, together

Words = tuple[str, ...]

#: The seed of a slow run that is to be repeated.
SEED = os.environ.get("TEST_SEED", "")


@dataclass(frozen=True)
class Command:
    """A command line, and what comes on its stdin, so many times."""

    argv: Words
    stdin: bytes = b""
    times: int = 1

    def __repr__(self) -> str:
        more = f", {self.stdin!r}{f', {self.times}' if self.times != 1 else ''}" if self.stdin else ""
        return f"Command({self.argv!r}{more})"


@dataclass(frozen=True)
class Write:
    """A file written by hand: `text` so many times."""

    path: str
    data: bytes
    times: int = 1

    def __repr__(self) -> str:
        return f"Write({self.path!r}, {self.data!r}{f', {self.times}' if self.times != 1 else ''})"


@dataclass(frozen=True)
class Put:
    """Something in the place of a file or a directory: see `KINDS`."""

    path: str
    kind: str

    def __repr__(self) -> str:
        return f"Put({self.path!r}, {self.kind!r})"


@dataclass(frozen=True)
class Remove:
    """A file or a directory removed by hand."""

    path: str

    def __repr__(self) -> str:
        return f"Remove({self.path!r})"


Step = Command | Write | Put | Remove

#: The apps that there may be; the first are there from the start.
APPS = ("blog", "shop", "my.app", "news", "a..b")
#: What `Put` may put there.
KINDS = (
    "directory",
    "full directory",
    "fifo",
    "socket",
    "device",
    "link to a device",
    "link out of the root",
    "link to another app",
    "link to itself",
    "link to nowhere",
    "hard link",
    "somebody else's",
    "unreadable",
)

#: What stands in a text for a port that is free on this host.
PORTS = ("PORT0", "PORT1", "PORT2", "PORT3")
#: The one endpoint that answers.
ANSWERS = "127.0.0.1:ALIVE"

NASTY = "a0.-_:;{}$#'\"\\/=*[]()%@~^`|&<>!?, \t\n\r\0\x0b\x0c\x1b\x7f\x85\u2028\u3002\uff0eéß\u202e\ufeff\udcff\U0001f4a9"
HOSTILE = (
    "",
    " ",
    "\n",
    "a\nb",
    "blog\nserver_name evil.test",
    "a; return 200",
    "a.test; } server { listen 1; ",
    "{}",
    "$host",
    "${host}",
    "a\0b",
    "..",
    "../shop",
    "apps/../../etc",
    "/etc/passwd",
    "blog/",
    ".trash",
    ".",
    "-x",
    "--",
    "---",
    "-",
    "--format",
    "é",
    "\udcff\udcfe",
    "\u2028",
    "\x1b[31m",
    "x" * 64,
    "x" * 300,
    "x" * 5000,
    "*",
    "%00",
    "%s%n",
    "`id`",
    "$(id)",
    "'",
    '"',
    '"; "',
    "\\",
    "#",
    "a#b",
    "a #b",
    "[::1",
    "9" * 5000,
    "-1",
    "1e3",
    "nan",
    "٣",
    "\ufeffblog",
    "con",
    "con.",
    "default_server",
    "_",
    "~^.*$",
)
DOMAINS = (
    "blog.test",
    "shop.test",
    "my.app",
    "a.test",
    "b.test",
    "*.a.test",
    "*.test",
    "www.a.test",
    "A.TEST",
    "bücher.test",
    "xn--bcher-kva.test",
    "x.y.z.a.test",
    f"{'x' * 63}.test",
    f"{'x' * 63}.{'y' * 63}.{'z' * 63}.test",
    "1.2.3.4",
    "localhost",
    "router",
    "xn--a.test",
    "test",
)
BAD_DOMAINS = (
    "*",
    "*a.test",
    "a.*.test",
    "a..test",
    ".a.test",
    "a.test.",
    "-a.test",
    "a-.test",
    "a_b.test",
    "http://a.test",
    "a.test:80",
    "a.test/x",
    "~a",
    "a。test",
    "a.test\r",
    "a.test\x0b",
    "ß.test",
    "\u202etset.a",
    "xn--.test",
    "xn--ls8h=.test",
    f"{'x' * 64}.test",
    ".".join(["x"] * 200),
    "🦆.test",
    "a\u00adb.test",
    "١.test",
    "*.*.test",
    "*.",
)
ADDRESSES = (
    ANSWERS,
    "127.0.0.1:1",
    "127.0.0.1:65535",
    "10.0.0.1:80",
    "10.0.0.2:80",
    "[::1]:1",
    "[fd00::1]:80",
    "localhost:1",
    "localhost:2",
    "nowhere.invalid:80",
    "unix:/run/a.sock",
    "unix:/run/b+c@d.sock",
)
BAD_ADDRESSES = (
    "10.0.0.1",
    "10.0.0.1:0",
    "10.0.0.1:65536",
    "10.0.0.1:080",
    "10.0.0.1:٣",
    "10.0.0.1:80;",
    "10.0.0.1:80 down",
    "10.0.0.256:80",
    "010.0.0.1:80",
    "1:80",
    "::1:80",
    "[::1%lo]:80",
    "[::1]",
    "[127.0.0.1]:80",
    "http://10.0.0.1:80",
    "unix:",
    "unix:a.sock",
    "unix:/a b",
    "unix:/../x",
    "unix:/x;y",
    "unix:/$host",
    f"unix:/{'x' * 108}",
    "-a:80",
    "a..b:80",
    f"{'x' * 64}:80",
    "$host:80",
    "web:80=1",
    "=10.0.0.1:80",
    "127.1:80",
)
PROCESSES = ("web", "api", "wor_ker-1")
PORT_ENTRIES = (
    "http",
    *(f"http:{port}" for port in PORTS),
    "http:PORT0:api",
    "http:PORT1:api",
    "http::api",
    "PORT1",
    "http:80:5000",
    "https:443",
    "http:",
    "http:0",
    "http:99999",
    "http:PORT0:a:b",
    "tcp:1",
    "http:PORT0;",
    "http:PORT0:",
)
VALUES = (
    "on",
    "off",
    "true",
    "default",
    "0",
    "1",
    "2m",
    "16m",
    "8k",
    "999999999g",
    "1g",
    "60s",
    "500ms",
    "0ms",
    "366d",
    "00",
    "8 4k",
    "2 1k",
    "9999 16m",
    "least_conn",
    "ip_hash",
    "random two",
    "error timeout",
    "off error",
    "$scheme",
    "$http_x_forwarded_for",
    "$proxy_add_x_forwarded_for",
    "$http_x_forwarded_proto",
    "http",
    "10.0.0.0/8",
    "10.0.0.1/8",
    "127.0.0.1",
    "::1",
    "::/0",
    "0.0.0.0/0",
    "fe80::1%lo",
    "text/css",
    "*",
    "text/css; evil/x",
    "main",
    "json",
    "combined",
    "$status",
    "$status '",
    "$status $http_cookie",
    '{"a":"$uri"}',
    "own.log",
    "../own.log",
    "blog-access.log",
    "router.log",
    "X-Real-IP",
    "X-A;b",
    "1 ",
    " 1",
    "1;",
    "4k # x",
    "99999999999999999999",
)
#: What says something else than a value of nginx: where requests go and what root runs.  Only harmless values are drawn.
PROXY_VALUES: Mapping[str, Words] = {
    "http-port": (*PORTS, "0", "65536", "x"),
    "https-port": (*PORTS, "0", "x"),
    "bind-address": ("127.0.0.1", "127.0.0.1 127.0.0.1", "127.0.0.2 127.0.0.1", "[::1] 127.0.0.1", "203.0.113.9", "127.0.0.1:80", "lo"),
    "nginx-binary": ("nginx", "no-such-nginx", "nginx;", "-g", "/nonexistent/nginx"),
    "nginx-conf": ("HOME/host.conf", "HOME/none.conf", "relative.conf", "/a b", "/dev/null", "HOME"),
    "mode": ("managed", "host", "Host"),
    "reload-command": ("true", "false", "true; false", "'", "no-such-command", "$(true)"),
    "updates": ("reload", "live"),
    "draining-workers": ("0", "8", "-1", "99999999", "x"),
    "worker-shutdown-timeout": ("1h", "10s", "0", "off", "1s;", "-1s"),
    "generations-keep": ("2", "10", "1", "0", "99999"),
    "allowed-ports": ("1-65535", "PORT0 PORT1", "9-1", "1-99999", "x", "1;"),
    "default-site": ("444", "404", "421", "https://a.test/", "http://a.test/$uri", "200", "https://a.test/;"),
}
SNIPPETS = (
    "add_header X-A b;\n",
    "location /x { return 204; }\n",
    "location / { return 204; }\n",
    "gzip on;\ngzip on;\n",
    "gzip perhaps;\n",
    "client_max_body_size 3m;\n",
    "server_name evil.test;\n",
    "listen 1;\n",
    "server { listen 1; }\n",
    "} server { listen 1; ",
    "}",
    "{",
    "location /x {\n",
    "include /etc/passwd;\n",
    "include *.conf;\n",
    "include /etc/nginx/mime.types;\n",
    "return 200 'a\nb';\n",
    'return 200 "',
    "return 200 'it''s';\n",
    "set $x 1;\n",
    "set $host 1;\n",
    "set $router_port 1;\n",
    "if ($x) { return 200; }\n",
    "location @router_error { return 200; }\n",
    "error_page 502 /x;\n",
    "rewrite ^(.*$ /x;\n",
    "location ~ '(' { }\n",
    "# only a comment",
    "#\r\nadd_header X-A b;\r\n",
    "\ufeffadd_header X-A b;\n",
    "add_header X-A \udcff\udcfe;\n",
    "add_header\u00a0X-A b;\n",
    "limit_req zone=none;\n",
    "upstream x { server 127.0.0.1:1; }\n",
    "proxy_pass http://router_shop.web;\n",
    "location /y { proxy_pass http://router_shop.web; }\n",
    "location /y { proxy_pass http://no.such.host.invalid; }\n",
    "lua_code_cache off;\n",
    "map $a $b { }\n",
    "\n\n\n",
    ";;;;",
    "add_header X-A b",
    "add_header X-A ${host;\n",
    "location /z { " * 300,
    "\\",
)
SHIPPED = """\
{% for s in servers %}
server {
{% for l in s.listens %}
listen {{ l }};
{% endfor %}
server_name {{ s.names|join(' ') }};
}
{% endfor %}
"""
TEMPLATES = (
    SHIPPED,
    "",
    "{{ app }}",
    "# {{ app }}\n",
    "{{ nothing }}",
    "{% include 'vhost.conf.j2' %}",
    "{% include '/etc/passwd' %}",
    "{% extends app %}",
    "{% import 'x' as y %}",
    "{% for i in range(10**9) %}x{% endfor %}",
    "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{{ self.__init__.__globals__ }}",
    "{{ ''|attr('__class__') }}",
    "{{ '{0.__class__}'.format(1) }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ servers.append(1) }}{{ servers.clear() }}",
    "{{ 'x' * 10**9 }}",
    "{{ 2 ** 9 ** 9 }}",
    "{{ '%999999999d' % 1 }}",
    "{{ '{:999999999}'.format(1) }}",
    "{{ ('x' * 100000)|replace('x', 'y' * 100000) }}",
    "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
    "{{ " + "(" * 300 + "1" + ")" * 300 + " }}",
    "{% if %}",
    "{{",
    "{% raw %}",
    "{#",
    "{{ 1 // 0 }}",
    "{{ 'a' + 1 }}",
    "{{ app|nosuchfilter }}",
    "server { listen 1; server_name evil.test; }",
    "server { listen 127.0.0.1:PORT0 default_server; server_name blog.test; }",
    "} }",
    "include /etc/passwd;",
    "upstream router_shop.web { server 127.0.0.1:1; }",
    "limit_req_zone $uri zone=one:1m rate=1r/s;\n" + SHIPPED,
    "limit_req_zone $uri zone=one:2m rate=1r/s;\n" + SHIPPED,
    "map $uri $router_port { default 1; }\n" + SHIPPED,
    "server_names_hash_bucket_size 64;\n" + SHIPPED,
    "log_format router_main '$uri';\n" + SHIPPED,
    SHIPPED.replace("listen {{ l }}", "listen {{ l }} backlog=1"),
    SHIPPED.replace("listen {{ l }}", "listen {{ l }} backlog=2"),
    SHIPPED.replace("server_name", "server_name shop.test"),
    SHIPPED.replace("server_name", "server_name ''"),
    "\udcff",
    "events { }",
    "user root;",
)
APP_TOML = (
    "# ours",
    "",
    'ports = ["http"]',
    'ports = ["http:PORT0", "http:PORT1:api"]',
    'ports = ["http:PORT0", "http:PORT0:api"]',
    'ports = ["http:80:5000"]',
    "ports = 3",
    'ports = "http"',
    "ports = [1]",
    'ports = [["http"]]',
    'locked = "sale"',
    'locked = "a\\nb"',
    "locked = true",
    'domains = "disabled"',
    'domains = "enabled"',
    "domains = []",
    "count = { web = 1 }",
    "count.web = 2",
    "count = 3",
    "[count]",
    "web = 1",
    "web = -1",
    "web = true",
    "web = 99999999999999999999999",
    '"a b" = 1',
    '"" = 1',
    "[nginx]",
    "nginx = { gzip = 'on' }",
    'nginx.gzip = "on"',
    "nginx = 1",
    "[[nginx]]",
    "[traffic]",
    'canary = "30%"',
    "canary = 3",
    '["nginx"]',
    "[nginx.deep]",
    'gzip = "on"',
    "gzip = true",
    "gzip = 1979-05-27",
    "gzip = 1.5",
    "gzip = nan",
    "gzip = []",
    "gzip = {}",
    'gzip = """on"""',
    'gzip = "on" # why',
    'proxy-read-timeout = "5s"',
    "proxy-keepalive = 8",
    "proxy-keepalive = 0x8",
    'access-log-format = "$status \'"',
    'access-log-path = "../x"',
    'server-tokens = "on"',
    '"gz\\u000aip" = 1',
    "unknown = 1",
    "[unknown]",
    "[hello]",
    'hello.x = "y"',
    "hello = 1",
    "[proxy]",
    "x = " + "[" * 2000,
    "x = " + "{a=" * 500,
    "x = " + "9" * 5000,
    "x = 1" + "0" * 4000,
    'x = "\\uD800"',
    "x = 'a\tb'",
    "=",
    '"',
    "[",
    "a.b.c.d = 1",
    "\udcff = 1",
    "# \udcff",
    "# \u2028 x = 1",
    "\x0c",
)
ROUTER_TOML = (
    "[proxy]",
    "[nginx]",
    "[hello]",
    "proxy = 1",
    "[[proxy]]",
    "proxy = {}",
    'default-site = "404"',
    "default-site = 404",
    "generations-keep = 2",
    'mode = "host"',
    'nginx-conf = "HOME/host.conf"',
    'nginx-binary = "no-such-nginx"',
    'updates = "live"',
    "http-port = 99999999999999999999",
    'http-port = "PORT0\\n"',
    'gzip = "on"',
    'client-header-timeout = "5s"',
    'trusted-proxies = "10.0.0.0/8"',
    'bind-address-ipv6 = "off"',
    'bind-address-ipv4 = "off"',
    'x = "y"',
    "unknown = 1",
    "[unknown]",
    "# ours",
    "=",
    "\udcff",
    "[nginx.deep]",
    'nginx.gzip = "on"',
)
PLUGIN_TOML = (
    "[plugin]",
    "[[plugin]]",
    "plugin = 1",
    'name = "hello"',
    'name = "proxy"',
    'name = "nginx"',
    'name = "../x"',
    'name = "a\\nb"',
    "name = 1",
    'description = "a\\u001b[31m\\nb"',
    "api = 1",
    "api = 99",
    "api = true",
    "priority = 0",
    "priority = -1",
    "priority = 1.5",
    "timeout = 0.2",
    "timeout = -1",
    "timeout = nan",
    "timeout = inf",
    "timeout = 1e400",
    'hooks = ["nginx-server-snippet"]',
    'hooks = ["no-such-hook"]',
    "hooks = 1",
    "[plugin.config]",
    'x = "y"',
    "x = { default = 1, type = 'number' }",
    "x = 1979-05-27",
    "x = nan",
    "y = [1, [2]]",
    '"a b" = 1',
    "[plugin.commands]",
    '"hello:world" = { help = "x", run = "subcommands/world" }',
    '"apps:create" = { help = "x", run = "subcommands/world" }',
    '"hello:up" = { help = "x", run = "../../../bin/true" }',
    '"hello:abs" = { help = "x", run = "/bin/true" }',
    '"hello:py" = { help = "x", run = "plugin.py:f", kind = "change" }',
    '"hello world" = { help = "x", run = "subcommands/world" }',
    '"hello:x" = 1',
    '"hello:x" = { run = 1 }',
    "[plugin.properties.hello-size]",
    'type = "size"',
    'type = "nonsense"',
    'default = "1m"',
    'default = "; evil"',
    'help = "x"',
    "help = 1",
    'directive = "gzip; evil"',
    'directive = "gzip"',
    "=",
    "\udcff",
    "x = " + "[" * 2000,
)
#: What a plugin's hook answers: a shell script behind the first line.
SCRIPTS = (
    "echo 'add_header X-Hello world;'",
    "echo 'gzip perhaps;'",
    "echo 'server { listen 1; }'",
    "echo",
    "exit 1",
    "echo why >&2; exit 3",
    "printf 'a\\0b'",
    "printf '\\377\\376'",
    "head -c 3000000 /dev/zero | tr '\\0' 'x'",
    "kill -9 $$",
    f"echo {ANSWERS}",
    "echo 127.0.0.1:1",
    "echo '10.0.0.1:80; evil'",
    "cat >/dev/null; echo 127.0.0.9",
    "exec <&-; exec >&-; exit 0",
)
PLUGIN_HOOKS = (
    "nginx-server-snippet",
    "nginx-http-snippet",
    "nginx-location-snippet",
    "scale",
    "pre-apply",
    "endpoint-resolve",
    "report-rows",
)

_garbage = text(NASTY, 6)


def _of(*pools: Words) -> Some[str]:
    # the first pool is what is meant; what is not comes about as often as all of that
    return either(*(one(pool) for pool in pools), one(HOSTILE), _garbage)


_app = either(*[one(APPS[:3])] * 5, *[one(APPS)] * 3, _of(APPS))
_domain = either(*[one(DOMAINS)] * 5, _of(DOMAINS, BAD_DOMAINS))
_process = either(one(PROCESSES), _of(PROCESSES))
_bare_address = either(*[one(ADDRESSES)] * 5, _of(ADDRESSES, BAD_ADDRESSES))
_address = either(_bare_address, _bare_address, built("{}={}".format, _process, _bare_address))
_port = _of(PORT_ENTRIES, PORT_ENTRIES)
_value = _of(VALUES, VALUES)
_property = either(one([*PROPERTIES["nginx"]]), one([*PROPERTIES["nginx"], *refused()]), _garbage)
_check = either(one(["path", "interval", "timeout", "rise", "fall", "status", "host"]), _garbage)
_key = one(["--format=json", "--app", "--domains", "--stale", "--nonsense", "--a\nb", "--=", "--format=xml"])
_number = one(["1", "2", "3", "7", "0", "-1", "99999", "1.5", "x", "9" * 5000, "٣", ""])
_snippet_name = _of(("own", "a", "b"), ("own.conf", "../x", "a/b", ".hidden", "x" * 101))


def _words(*parts: Some[object]) -> Some[Words]:
    """A command's words: a part that draws a tuple stands for several."""
    return together(*parts).map(lambda drawn: tuple(w for part in drawn for w in (part if isinstance(part, tuple) else (part,))))  # type: ignore[misc]


def _some(of: Some[str], least: int = 0, most: int = 3) -> Some[Words]:
    return several(of, least, most).map(tuple)


def _maybe(*options: object) -> Some[Words]:
    """None or one of the options, each a word or a tuple of words."""
    return one([(), *(o if isinstance(o, tuple) else (o,) for o in options)])


_one_app = _words(_app)
_app_or_none = _maybe(*APPS)
_quick = _maybe(("--check-timeout", "nan"), ("--check-timeout", "-1"), ("--check", "/x"), ("--check", "x y"), ("--check", "/\n")).map(
    lambda more: ("--check-timeout=0.05", *more)
)
_drained = _maybe(("--drain", "nan"), "--drain-strict", ("--drain", "-1"), ("--drain", "x")).map(lambda more: ("--drain=0.1", *more))
_share = _of(("10%", "0", "100%", "2.5%"), ("101%", "-1%", "x", "1e3%", "10%;", "0.001%"))
_gently = _maybe(
    "--canary=10%", "--canary=x", "--canary=0%", "--promote", "--abort", ("--abort", "--reason=why\n"), "--batch=1", "--batch=0"
)
_flags = _maybe("--backup", "--down", "--weight=3", "--weight=0", "--weight=1;", ("--weight", "1001"), ("--backup", "--down"))
_proxy_setting = one([(key, value) for key, values in PROXY_VALUES.items() for value in values])
_plugin = _of(("hello", "scaler"), ("apps", "nginx"))
_source = one(
    [
        "new/hello",
        "new/scaler",
        "new",
        "plugins/hello",
        "",
        "/",
        "/dev/zero",
        "/etc/passwd",
        "nowhere",
        "-x",
        "--upload-pack=touch HOME/owned",
        "ext::sh -c 'touch HOME/owned'",
        "file:///nonexistent",
        "file://HOME/new/hello",
        "http://a.test/x",
        "a\nb",
        "\udcff",
        "../../..",
    ]
)

#: The archives that there are for `import`: a good one, and what a stranger may have made of it.
ARCHIVES = ("good", "empty", "cut", "text", "upwards", "absolute", "link", "device", "twice", "not-utf-8", "bad-names", "large")
_import_flags = _maybe(
    "--app=blog", "--app=..", "--no-endpoints", "--no-settings", "--plugins", "--prune", ("--no-settings", "--prune"), "--dry-run"
)

#: What is drawn for each command; a new command is added here, or to `NOT_DRAWN` with the reason.
ARGUMENTS: Mapping[str, Some[Words]] = {
    "apps:create": _one_app,
    "apps:destroy": _words(_app, _maybe("--force", "--force")),
    "apps:rename": _words(_app, _app),
    "apps:clone": _words(_app, _app),
    "apps:list": _maybe("--format=json"),
    "apps:exists": _one_app,
    "apps:report": _words(_app_or_none),
    "apps:urls": _one_app,
    "apps:lock": _words(_app, _some(_of(("sale",)), 0, 1)),
    "apps:unlock": _one_app,
    "apps:deploy": _words(_app, _some(_address, 0, 3), _quick, _drained, _maybe("--create"), _gently),
    "apps:scale": _words(
        _app, _some(_of(("web=1", "web=0", "api=2"), ("web=-1", "web", "=1", "web=x", "web=1e9")), 1, 2), _quick, _drained
    ),
    "apps:retire": _words(_app, _some(_address, 1, 2), _drained),
    "apps:traffic:set": _words(_app, _some(_share, 0, 1), _maybe("--max-errors=1%", "--max-errors=x")),
    "apps:traffic:report": _words(_app_or_none),
    "apps:checks:set": _words(
        either(_app, _app, always("--global")), _maybe("--process=web", "--process=x y"), _check, _some(_value, 0, 1)
    ),
    "apps:checks:report": _words(_maybe(*APPS, "--global")),
    "apps:checks:run": _words(_app, _maybe("--process=web", "--process=api", "--process=")),
    "apps:domains:add": _words(_app, _some(_domain, 1)),
    "apps:domains:remove": _words(_app, _some(_domain, 1)),
    "apps:domains:set": _words(_app, _some(_domain, 0)),
    "apps:domains:clear": _one_app,
    "apps:domains:reset": _one_app,
    "apps:domains:enable": _one_app,
    "apps:domains:disable": _one_app,
    "apps:domains:report": _words(_maybe(*APPS, "--global")),
    "apps:domains:add-global": _some(_domain, 1, 2),
    "apps:domains:remove-global": _some(_domain, 1, 2),
    "apps:domains:set-global": _some(_domain, 0, 2),
    "apps:domains:clear-global": always(()),
    "apps:upstreams:add": _words(_app, _some(_address, 1), _flags),
    "apps:upstreams:remove": _words(_app, _some(_address, 1)),
    "apps:upstreams:set": _words(_app, _some(_address, 0), _flags),
    "apps:upstreams:clear": _words(_app, _some(_process, 0, 1)),
    "apps:upstreams:drain": _words(_app, _some(_address, 1, 2), _drained),
    "apps:upstreams:report": _words(_app_or_none),
    "apps:ports:add": _words(_app, _some(_port, 1)),
    "apps:ports:remove": _words(_app, _some(_port, 1)),
    "apps:ports:set": _words(_app, _some(_port, 0)),
    "apps:ports:clear": _one_app,
    "apps:ports:list": _one_app,
    "apps:ports:report": _words(_app_or_none),
    "apps:nginx:set": _words(either(_app, _app, always("--global")), _property, _some(_value, 0, 1)),
    "apps:nginx:report": _words(_maybe(*APPS, "--global")),
    "apps:nginx:show-config": _words(_maybe(*APPS, "--template")),
    "apps:nginx:validate": _words(_some(_app, 0, 2), _maybe("--all")),
    "apps:nginx:access-logs": _words(_app, _maybe("--lines=3", "--lines=-1", "--lines=x")),
    "apps:nginx:error-logs": _words(_app, _maybe("-n3", ("-n", "0"))),
    "apps:snippets:add": _words(_app, _snippet_name),
    "apps:snippets:remove": _words(_app, _snippet_name),
    "apps:snippets:list": _one_app,
    "apps:snippets:show": _words(_app, _snippet_name),
    "proxy:reload": always(()),
    "proxy:stop": always(()),
    "proxy:start": always(()),
    "proxy:status": always(()),
    "proxy:report": _maybe("--global"),
    "proxy:set": _words(one(["--global"]), _proxy_setting),
    "proxy:build-config": _words(_some(_app, 0, 2), _maybe("--all")),
    "reconcile": _words(_some(_app, 0, 2), _maybe("--all")),
    "status": _maybe("--quiet"),
    # the configuration of the host itself is not to be touched: the path is always said
    "setup": _words(one(["--nginx-conf=HOME/host.conf", "--nginx-conf=HOME/none.conf", "--nginx-conf=/dev/null"]), _maybe("--remove")),
    "doctor": _maybe("--fix", "--quiet"),
    "trace": _words(
        _of(DOMAINS, ("a.test/x", "http://a.test/", "https://a.test", "a.test:1/x?y#z", "//", "[::1]")),
        _maybe("--port=1", "--port=x", "--get"),
    ),
    "generations:list": always(()),
    "generations:show": _some(_number, 0, 1),
    "generations:diff": _some(_number, 0, 2),
    "generations:rollback": _words(_number, _some(_app, 0, 2), _maybe("--all", ("--endpoints", "--check-timeout=0.05"))),
    "generations:prune": _maybe("--keep=2", "--keep=0", "--keep=x"),
    "plugins:list": always(()),
    "plugins:report": _some(_plugin, 0, 1),
    "plugins:hooks": _some(_of(tuple(HOOKS)), 0, 1),
    "plugins:trigger": _words(
        _of(PLUGIN_HOOKS, tuple(HOOKS)), _some(_app, 0, 2), _maybe("--event={}", "--event=[", "--event=1", '--event={"app":1}')
    ),
    "plugins:install": _words(_source, _maybe("--ref=x", "--ref=--upload-pack=x")),
    "plugins:update": _some(_plugin, 0, 1),
    "plugins:enable": _words(_plugin),
    "plugins:disable": _words(_plugin),
    "plugins:uninstall": _words(_plugin, _maybe("--purge")),
    "plugins:set": _words(
        _plugin, _of(("x", "y", "hello-size")), _some(_value, 0, 1), _maybe(*(f"--app={app}" for app in APPS), "--app=..")
    ),
    "plugins:new": _words(_of(("hello", "mine")), _maybe("--lang=sh", "--lang=perl", "--lang=../sh")),
    "export": _words(
        _maybe("--output=HOME/x.tar", "--output=HOME", "--output=/dev/null", "--output=HOME/no/x.tar"),
        _maybe("--app=blog", "--app=..", "--app="),
    ),
    "import": _words(
        one([*(f"HOME/archives/{name}.tar" for name in ARCHIVES), "HOME/x.tar", "HOME/none.tar", "HOME", "-", ""]), _import_flags
    ),
    "help": _some(_of(("apps", "domains", "apps:create")), 0, 1),
    "version": always(()),
    "completion": _words(_of(("bash", "zsh", "fish"))),
    "complete": _some(_of(("router", "apps:create", "blog", "domains:add")), 0, 3).map(lambda words: ("--", *words)),
}
#: Commands that are not drawn, and why.
NOT_DRAWN: Mapping[str, str] = {
    "top": "it looks at what is asked of nginx until somebody ends it",
    "selftest": "it takes its time, on a root of its own",
    "selftest:instances": "a selftest starts it, and it runs until its stdin ends",
    "watch": "it runs until a signal ends it: test_handedits drives it",
}
#: Commands that start many processes or look at much; they are drawn less often than the others.
_DEAR = (
    "doctor",
    "apps:nginx:validate",
    "plugins:install",
    "plugins:update",
    "plugins:trigger",
    "apps:scale",
    "export",
    "import",
    "setup",
    "trace",
    "apps:checks:run",
    "proxy:start",
)
_OFTEN = (
    "apps:domains:add",
    "apps:domains:set",
    "apps:upstreams:add",
    "apps:upstreams:set",
    "apps:nginx:set",
    "apps:snippets:add",
    "reconcile",
    "apps:create",
)
_MORE = one([*[()] * 24, ("--dry-run",), ("--format", "json"), ("--format",), ("--lock-timeout=0.5",), ("--help",), ("",)])


def _stdin(argv: Words) -> Some[bytes]:
    if "snippets:add" in argv[0]:
        return _content(SNIPPETS)
    return _content((*DOMAINS[:4], *ADDRESSES[:4], "a\0b", "")) if "-" in argv else always(b"")


def _content(pool: Words) -> Some[bytes]:
    """The bytes of a file of such lines."""
    text = either(one(pool), several(one(pool), 0, 4).map("\n".join), _garbage)
    ended = built(
        lambda text, end, raw: text.encode(errors="surrogateescape") + end + raw,
        text.map(lambda each: each.encode(errors="replace").decode() if not _is_encodable(each) else each),
        one([b"\n", b"\n", b"", b"\r\n", b"\n\n# end"]),
        one([b"", b"", b"", b"", b"", b"\0", b"\xff\xfe\n", b"\x1a"]),
    )
    return either(ended, ended.map(lambda data: data.replace(b"\n", b"\r\n")), ended)


def _is_encodable(text: str) -> bool:
    try:
        text.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        return False
    return True


def commands(*, running: bool = False) -> Some[Command]:
    """A command line; only on a root whose nginx may run also `proxy:start`."""
    names = [name for name in ARGUMENTS if name != "proxy:start" or running]
    weighted = [name for name in names for _ in range(1 if name in _DEAR else 6 if name in _OFTEN else 3)]
    drawn = one(weighted).then(lambda name: together(ARGUMENTS[name], _MORE).map(lambda more: (name, *more[0], *more[1])))
    odd = several(either(one([*ARGUMENTS]), one(HOSTILE), _garbage), 0, 3).map(tuple)
    odd = odd.map(lambda words: words if not words or words[0] not in NEVER_BARE else ("version", *words))
    argv = one([*[drawn] * 40, odd]).then(lambda each: each)
    times = one([*[1] * 40, 10 << 20])
    return argv.then(lambda words: built(Command, always(words), _stdin(words), times) if words else always(Command(words)))


#: Without the arguments that are drawn for them these would wait for long, or change the machine that the test runs on.
NEVER_BARE = ("setup", "apps:deploy", "apps:scale", "generations:rollback", "plugins:install", "proxy:start", *NOT_DRAWN)

_DOMAINS_FILE = _content((*DOMAINS, *DOMAINS, *BAD_DOMAINS, "# ours", "", "  b.test   # why", "a.test b.test"))
_UPSTREAMS_FILE = _content(
    (
        *ADDRESSES,
        *ADDRESSES,
        *BAD_ADDRESSES,
        "api 10.0.0.1:80",
        "10.0.0.2:80 weight=2 backup",
        "10.0.0.3:80 down",
        "10.0.0.1:80 weight=0",
        "10.0.0.4:80 canary",
    )
)
_FILES: Mapping[str, Some[bytes]] = {
    "DOMAINS": _DOMAINS_FILE,
    "UPSTREAMS": _UPSTREAMS_FILE,
    "app.toml": _content((*APP_TOML, "\n".join(["[nginx]", 'gzip = "on"']), "\n".join(["[count]", "web = 1"]))),
    "nginx.conf.d/own.conf": _content(SNIPPETS),
    "nginx.conf.d/a\nb.conf": _content(SNIPPETS),
    "nginx.conf.d/own": _content(SNIPPETS),
    "nginx.conf.j2": _content(TEMPLATES),
}
_HOOK_FILES = [f"plugins/hello/{hook}" for hook in PLUGIN_HOOKS] + ["plugins/hello/pre-deplyo", "plugins/hello/plugin.py"]
_own_file = built("apps/{}/{}".format, one(APPS[:4]), one([*_FILES, *list(_FILES)[:4]]))
_own_place = either(
    _own_file,
    built("apps/{}{}".format, one(APPS[:4]), one(["", "/nginx.conf.d"])),
    built("apps/{}{}".format, one(["news", "Blog", ".trash", "a b", "-x", "x" * 64]), one(["", "/DOMAINS"])),
)
_host_place = one(["router.toml", "DOMAINS"])
_plugin_place = one(["plugins/hello", "plugins/hello/plugin.toml", "plugins/.disabled", "plugins/.origins.json", *_HOOK_FILES])


def _host_file(lines: bytes) -> bytes:
    # whatever else it says: nginx listens on loopback, and on a port that is free
    return b'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = PORT0\n' + lines


def edits(*, host: bool = True, plugins: bool = True) -> Some[Write | Put | Remove]:
    """A hand edit of an app's files, of the host's (`host`), or of a plugin's."""
    written = _own_file.then(lambda path: _FILES[path.split("/", 2)[2]].map(lambda data: Write(path, data)))
    large = built(Write, _own_file, one([b"x", b"a.test\n", b"# ", b"\xff", b"{"]), one([2 << 20, 10 << 20]))
    odd = built(Put, _own_place, one(KINDS))
    gone = built(Remove, _own_place)
    host_written = either(
        _content(ROUTER_TOML).map(lambda data: Write("router.toml", _host_file(data))),
        _DOMAINS_FILE.map(lambda data: Write("DOMAINS", data)),
    )
    host_odd = either(built(Put, _host_place, one(KINDS)), built(Write, _host_place, always(b"#"), always(10 << 20)))
    plugin_written = either(
        _content(PLUGIN_TOML).map(lambda data: Write("plugins/hello/plugin.toml", b'[plugin]\nname = "hello"\n' + data)),
        built(lambda path, script: Write(path, f"#!/bin/sh\n{script}\n".encode()), one(_HOOK_FILES[:-1]), one(SCRIPTS)),
    )
    plugin_odd = either(built(Put, _plugin_place, one(KINDS)), built(Remove, _plugin_place))
    # what is well again: in a root where nothing is right any more, every step would be refused for the same reason
    good = either(*(built(Write, built("apps/{}/{}".format, one(APPS[:4]), always(file)), data) for file, data in _GOOD))
    kinds = [written] * 12 + [good] * 9 + [odd] * 2 + [gone] * 3 + [large]
    kinds += ([host_written, host_odd] + [always(Write("router.toml", _host_file(b"")))] * 4) if host else []
    kinds += (
        ([plugin_written, plugin_written, plugin_odd] + [always(Remove("plugins/hello")), always(Remove("plugins"))] * 3) if plugins else []
    )
    return either(*kinds)


def _texts(*texts: str) -> Some[bytes]:
    return one([text.encode() for text in texts])


_GOOD = (
    ("DOMAINS", several(one(DOMAINS), 0, 3).map(lambda names: "".join(f"{n}\n" for n in names).encode())),
    ("UPSTREAMS", several(one(ADDRESSES[:8]), 0, 3).map(lambda found: "".join(f"{a}\n" for a in found).encode())),
    ("app.toml", _texts("", "# ours\n", '[nginx]\ngzip = "on"\n', 'ports = ["http", "http:PORT1:api"]\n', "[count]\nweb = 2\n")),
    ("nginx.conf.d/own.conf", _texts("", "add_header X-A b;\n", "location /x { return 204; }\n")),
    ("nginx.conf.j2", _texts(SHIPPED, "# {{ app }}\n")),
)


def steps(*, running: bool = False) -> Some[Step]:
    """Commands, and hand edits between them."""
    return either(*[commands(running=running)] * 3, edits(host=not running))
