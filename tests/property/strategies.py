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
from .words import (
    ADDRESSES,
    APP_TOML,
    APPS,
    BAD_ADDRESSES,
    BAD_DOMAINS,
    DOMAINS,
    HOSTILE,
    KINDS,
    NASTY,
    PLUGIN_HOOKS,
    PLUGIN_TOML,
    PORT_ENTRIES,
    PROCESSES,
    PROXY_VALUES,
    ROUTER_TOML,
    SCRIPTS,
    SHIPPED,
    SNIPPETS,
    TEMPLATES,
    VALUES,
    Words,
)

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
    "demo": "it takes its time, on a root of its own",
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
