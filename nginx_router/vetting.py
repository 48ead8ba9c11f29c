"""The parse that comes before nginx: what an app's snippets and own template may not say, though nginx would take it.

nginx accepts a snippet that names another app's domain or opens a port; the harm shows only to that other app.  A file
is parsed with crossplane; what crossplane cannot parse is left to nginx, whose words are better.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .errors import NginxRejected

#: Files of the distribution that configuration commonly includes; any other file could change or go later.
SHARED_FILES = frozenset(
    f"/etc/nginx/{name}" for name in ("fastcgi.conf", "fastcgi_params", "mime.types", "proxy_params", "scgi_params", "uwsgi_params")
)
#: Options of `listen` that say how the kernel treats the socket; every other one changes what all apps on that port speak.
_SOCKET_OPTIONS = ("backlog", "bind", "deferred", "fastopen", "ipv6only", "rcvbuf", "reuseport", "setfib", "sndbuf", "so_keepalive")
#: What an own template may say outside of a server: it defines something by a name, and holds for nobody else.
_DEFINITIONS = {"server", "upstream", "map", "geo", "split_clients", "log_format", "limit_req_zone", "limit_conn_zone", "include"}
_DEFINITIONS |= {"js_set", "js_var", "lua_shared_dict", "perl_set"} | {
    f"{kind}_cache_path" for kind in ("proxy", "fastcgi", "scgi", "uwsgi")
}
#: Which word of a directive at http level is the variable that it makes.
_MAKES_VARIABLES = {"map": -1, "geo": -1, "split_clients": -1, "js_set": 1, "js_var": 1, "perl_set": 1}
_TOKEN = re.compile(r"""\s+|\#[^\n]*|(?P<word>"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[{};]|(?:\\.|\$\{|[^\s;{\\])+)""", re.DOTALL)
_REFUSED_IN_SNIPPETS = {"server": "a server block", "listen": "a listener", "server_name": "a server name"}


def vet_snippet(app: str, source: str, path: Path) -> str | None:
    """Check one snippet; what is wrong with its syntax, if anything: for the case that nginx takes it all the same.

    Raises:
        NginxRejected: it holds a directive that a snippet may not hold; file, line and directive are named.
    """
    directives, problem = _parse(path)
    for directive in _flat(directives):
        name = directive["directive"]
        if name in _REFUSED_IN_SNIPPETS:
            raise _refusal(app, source, directive, f"{name}: {_REFUSED_IN_SNIPPETS[name]} cannot stand in a snippet")
        _vet_include(app, source, directive, ())
    return f"app {app}: {source}:{problem}" if problem else None


def vet_template(
    app: str,
    source: str,
    path: Path,
    *,
    ports: Collection[int],
    listens: Collection[str],
    domains: Collection[str],
    own: Collection[str],
    http: Collection[str],
) -> str | None:
    """Check the vhost that an own template made: `ports` and `domains` of the app, `own` files it may include (`http`: outside too).

    Raises:
        NginxRejected: a `listen` is no port of the app, a `server_name` not its domain, or something holds for other apps too.
    """
    directives, problem = _parse(path)
    for directive in directives:
        name, args = directive["directive"], directive["args"]
        if name not in _DEFINITIONS or (name == "include" and not set(args) <= {*http}):
            raise _refusal(app, source, directive, f"{name} stands outside of a server and would hold for every app")
    for directive in _flat(directives):
        name, args = directive["directive"], directive["args"]
        if name == "listen":
            _vet_listen(app, source, directive, ports, listens)
        elif name == "server_name":
            for word in args:
                if word.lower() not in domains:
                    raise _refusal(app, source, directive, f"server_name {word} is not a domain of the app")
        else:
            _vet_include(app, source, directive, own)
    return f"app {app}: {source}:{problem}" if problem else None


def http_variables(text: str) -> set[str]:
    """The variables that a vhost, or a snippet for http level, makes for the whole of nginx.

    Of two that make one, nginx takes the last and says nothing: it would answer for the other app too.
    """
    found: set[str] = set()
    depth, words = 0, list[str]()
    for match in _TOKEN.finditer(text):
        word = match["word"]
        if word not in (";", "{", "}"):
            words += [word.strip("\"'")] if word and not depth else []
            continue
        if not depth and (variable := made_variable(words)):
            found.add(variable)
        depth = max(0, depth + (word == "{") - (word == "}"))
        words = []
    return found


def made_variable(words: Sequence[str]) -> str:
    """The variable that a directive at http level makes, without its sign; empty: none."""
    if len(words) < 2 or words[0] not in _MAKES_VARIABLES:
        return ""
    return words[_MAKES_VARIABLES[words[0]]].lstrip("$").lower()


def _vet_listen(app: str, source: str, directive: Mapping[str, Any], ports: Collection[int], listens: Collection[str]) -> None:
    address, *options = directive["args"] or [""]
    port = address.rpartition(":")[2]
    if address.startswith("unix:") or address not in listens or not port.isdigit() or int(port) not in ports:
        allowed = " ".join(sorted(listens))
        raise _refusal(app, source, directive, f"listen {address} is no port of the app; its listeners are: {allowed}")
    for option in options:
        if option in ("default_server", "default"):
            raise _refusal(app, source, directive, "default_server: unknown hosts get the default-site property's answer")
        if option.partition("=")[0] not in _SOCKET_OPTIONS:
            raise _refusal(app, source, directive, f"listen {address} {option} would hold for every app on this port")


def _vet_include(app: str, source: str, directive: Mapping[str, Any], own: Collection[str]) -> None:
    if directive["directive"] == "include" and not set(directive["args"]) <= {*SHARED_FILES, *own}:
        raise _refusal(app, source, directive, f"include {' '.join(directive['args'])}: only {' '.join(sorted(SHARED_FILES))} can be")


def _refusal(app: str, source: str, directive: Mapping[str, Any], what: str) -> NginxRejected:
    return NginxRejected(f"app {app}: {source}:{directive['line']}: {what}", app=app)


def _parse(path: Path) -> tuple[list[dict[str, Any]], str]:
    import crossplane  # 30 ms: only where there is a snippet or an own template

    try:
        payload = crossplane.parse(str(path), single=True, strict=False, check_ctx=False, check_args=False, comments=False)
    except Exception as why:  # whatever a parser of hostile text raises, nginx judges next
        return [], f"1: {why}"
    errors = [f"{e.get('line') or 1}: {str(e['error']).partition(' in /')[0]}" for e in payload["errors"]]
    return [d for config in payload["config"] for d in config["parsed"]], errors[0] if errors else ""


def _flat(directives: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for directive in directives:
        yield directive
        yield from _flat(directive.get("block") or ())
