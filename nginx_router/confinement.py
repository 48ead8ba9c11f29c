"""What the snippets and the template of a confined app may say: what cannot leave the app.

nginx's master reads its configuration and opens its logs as root, so `include`, `access_log` or `alias` in a file that
somebody else may write would be root's hand in theirs.  What is not on the lists below is refused before nginx is asked:
`nginx -t` opens the logs too.

The text is read by a grammar of our own, stricter than nginx's, for what two parsers read differently passes the one and
harms by the other:

    default_type ${; alias /etc; #};        one directive to crossplane, two to nginx
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .errors import NginxRejected
from .kinds import size_in_bytes
from .names import shown
from .vetting import SHARED_FILES

#: The most memory that a directive may ask for, each time.
_MEMORY = 64 << 20

_TOKEN = re.compile(
    r"""
      (?P<space> [ \t\r\n]+ )
    | (?P<comment> \#[^\n]* )
    | (?P<mark> [;{}] )
    | "(?P<double> (?: [^"\\\x00-\x08\x0a-\x1f\x7f] | \\[ -~] )* )" (?= [ \t\r\n;{)] )
    | '(?P<single> (?: [^'\\\x00-\x08\x0a-\x1f\x7f] | \\[ -~] )* )' (?= [ \t\r\n;{)] )
    | (?P<word> (?: [^\x00-\x20\x7f;{}"'\\#$] | \\[!-~] | \$\{[A-Za-z0-9_]+\} | \$(?!\{) )+ ) (?= [ \t\r\n;{] )
    """,
    re.VERBOSE,
)

#: Directives with whatever arguments: they say how the app's own requests are answered.
_FREE_NAMES = """
absolute_redirect add_header add_trailer allow auth_request break charset chunked_transfer_encoding
client_body_timeout client_header_timeout client_max_body_size default_type deny error_page etag expires gzip gzip_comp_level
gzip_disable gzip_http_version gzip_min_length gzip_proxied gzip_types gzip_vary if_modified_since ignore_invalid_headers
internal keepalive_disable keepalive_requests keepalive_time keepalive_timeout limit_rate limit_rate_after lingering_close
lingering_time lingering_timeout log_not_found max_ranges merge_slashes msie_padding override_charset port_in_redirect
proxy_buffering proxy_connect_timeout proxy_cookie_domain proxy_cookie_flags proxy_cookie_path proxy_force_ranges
proxy_hide_header proxy_http_version proxy_ignore_client_abort proxy_ignore_headers proxy_intercept_errors proxy_limit_rate
proxy_method proxy_next_upstream proxy_next_upstream_timeout proxy_next_upstream_tries proxy_pass_header
proxy_pass_request_body proxy_pass_request_headers proxy_read_timeout proxy_redirect proxy_request_buffering
proxy_send_timeout proxy_set_body proxy_set_header proxy_socket_keepalive real_ip_header real_ip_recursive
recursive_error_pages reset_timedout_connection return rewrite satisfy send_timeout server_name_in_redirect
set_real_ip_from sub_filter sub_filter_last_modified sub_filter_once sub_filter_types tcp_nodelay underscores_in_headers
"""
_FREE = frozenset(_FREE_NAMES.split())
#: Directives whose arguments are numbers and sizes, multiplied no more than `_MEMORY`.
_SIZES_NAMES = """
client_body_buffer_size client_header_buffer_size gzip_buffers large_client_header_buffers output_buffers postpone_output
proxy_buffer_size proxy_buffers proxy_busy_buffers_size subrequest_output_buffer_size
"""
_SIZES = frozenset(_SIZES_NAMES.split())
#: Blocks that hold the same.
_BLOCKS = frozenset({"location", "if", "limit_except"})
_IN_UPSTREAMS = frozenset({"keepalive_requests", "keepalive_time", "keepalive_timeout", "least_conn", "ip_hash", "random", "hash"})
#: `(?<router_process>.*)` in a location, an `if` or a `rewrite`: with `updates live` it would choose whose instances answer.
_ROUTERS_GROUP = re.compile(r"[<']router_", re.IGNORECASE)
_SERVER_FLAG = re.compile(r"(weight|max_fails|max_conns)=[0-9]{1,6}|fail_timeout=[0-9]{1,6}(ms|s|m|h|d)?|backup|down")


@dataclass(frozen=True)
class Own:
    """What is an app's own, beyond the requests to it."""

    app: str
    logs: frozenset[str]
    formats: frozenset[str]
    variables: frozenset[str]  # at http level
    splits: frozenset[str]  # of these those that name an upstream of the app
    upstreams: frozenset[str]
    addresses: frozenset[str]
    listens: frozenset[str]
    domains: frozenset[str]
    files: frozenset[str]  # that it may include

    @classmethod
    def of(cls, values: Mapping[str, Any], files: Collection[str]) -> Own:
        """What a vhost of the app is rendered from (`Renderer.values`), and the files that it may include."""
        form = values["log_format"]
        return cls(
            values["app"],
            logs=frozenset({values["access_log"], values["error_log"], "off"} - {""}),
            formats=frozenset({"router_main", "router_json", "combined", *([form["name"]] if form else ())}),
            variables=frozenset(row["variable"] for row in values["maps"]),
            splits=frozenset(row["variable"] for row in values["maps"] if row["kind"] == "split_clients"),
            upstreams=frozenset(u["name"] for u in values["upstreams"]),
            addresses=frozenset(s["address"] for u in values["upstreams"] for s in u["servers"]),
            listens=frozenset(listen for s in values["servers"] for listen in s["listens"]),
            domains=frozenset(values["domains"]),
            files=frozenset({*files, *SHARED_FILES}),
        )


@dataclass(frozen=True)
class Directive:
    """One directive, with those of its block."""

    line: int
    name: str
    args: tuple[str, ...]
    block: tuple[Directive, ...] | None = None


def confine(source: str, text: str, own: Own, *, is_template: bool) -> None:
    """Make sure that what an app's snippet says, or its template made, does not leave the app.

    Raises:
        NginxRejected: it does, or cannot be read; source, line and directive are named.
    """
    try:
        tree = parse(text)
        _check(tree, _TOP if is_template else _SERVER, own)
    except _Leaves as why:
        raise NginxRejected(
            f"app {own.app}: {source}:{why.line}: {why.what}",
            hint="others than the host's own people may write this file, so it is held to what cannot leave the app (docs/security.md)",
            app=own.app,
        ) from None


def parse(text: str) -> tuple[Directive, ...]:
    """The directives of a text, where nginx and we cannot but read it alike.

    Raises:
        ValueError: it is no such text.
    """
    tokens = _tokens(text)
    return _block(tokens, is_top=True)


class _Leaves(ValueError):
    def __init__(self, line: int, what: str) -> None:
        super().__init__(what)
        self.line, self.what = line, what


def _tokens(text: str) -> Iterator[tuple[int, str, str]]:
    line, at = 1, 0
    while at < len(text):
        found = _TOKEN.match(text, at)
        if found is None:
            raise _Leaves(line, f"{shown(text[at : at + 20].partition(chr(10))[0])} is not read here: quote the argument as a whole")
        kind = str(found.lastgroup)
        if kind not in ("space", "comment"):
            yield line, kind, found[kind]
        line, at = line + text.count("\n", at, found.end()), found.end()


def _block(tokens: Iterator[tuple[int, str, str]], *, is_top: bool = False, depth: int = 0) -> tuple[Directive, ...]:
    directives: list[Directive] = []
    words: list[str] = []
    began = 1
    for line, kind, value in tokens:
        if kind != "mark":
            began = began if words else line
            words.append(value)
        elif value == "}":
            if words or is_top:
                raise _Leaves(line, "unexpected }")
            return tuple(directives)
        elif not words:
            raise _Leaves(line, f"unexpected {value}")
        else:
            if depth > 20:
                raise _Leaves(line, "blocks in blocks, too deep")
            inner = _block(tokens, depth=depth + 1) if value == "{" else None
            directives.append(Directive(began, words[0], tuple(words[1:]), inner))
            words = []
    if words or not is_top:
        raise _Leaves(began, "the end comes unexpectedly: a ; or } is missing")
    return tuple(directives)


Check = Callable[[Directive, Own], str]  # what is wrong; empty: nothing


def _check(directives: Sequence[Directive], allowed: Mapping[str, Check], own: Own) -> None:
    for directive in directives:
        check = allowed.get(directive.name)
        what = check(directive, own) if check else "it may lead out of the app"
        if any(map(_ROUTERS_GROUP.search, directive.args)):
            what = "a group of a pattern may not make a variable of router's"
        if what:
            raise _Leaves(directive.line, f"{directive.name}: {what}")


def _free(directive: Directive, own: Own) -> str:
    return "" if directive.block is None else "it has no block"


def _same_again(directive: Directive, own: Own) -> str:
    _check(directive.block or (), _SERVER, own)
    return "" if directive.block is not None else "its block is missing"


def _only(what: str, is_right: Callable[[Directive, Own], object]) -> Check:
    def check(directive: Directive, own: Own) -> str:
        return "" if directive.block is None and is_right(directive, own) else what

    return check


def _rows(what: str, is_right: Callable[[Directive, Own], object]) -> Check:
    def check(directive: Directive, own: Own) -> str:
        if directive.block is None or not is_right(directive, own):
            return what
        return "" if all(row.block is None and row.name != "include" for row in directive.block) else "only rows stand in it"

    return check


def _is_small(directive: Directive, own: Own) -> bool:
    product = 1
    for arg in directive.args:
        if not re.fullmatch(r"[0-9]{1,9}[kKmMgG]?", arg):
            return False
        product *= max(1, size_in_bytes(arg))
    return product <= _MEMORY


def _is_own_log(directive: Directive, own: Own) -> bool:
    return len(directive.args) in (1, 2) and directive.args[0] in own.logs and {*directive.args[1:]} <= own.formats


def _is_own_error_log(directive: Directive, own: Own) -> bool:
    levels = {"debug", "info", "notice", "warn", "error", "crit", "alert", "emerg"}
    return len(directive.args) in (1, 2) and directive.args[0] in own.logs - {"off"} and {*directive.args[1:]} <= levels


def _is_own_split(directive: Directive, own: Own) -> bool:
    rows = directive.block or ()
    return (
        len(directive.args) == 2
        and directive.args[1] in own.variables
        and all(len(row.args) == 1 and row.args[0] in own.upstreams for row in rows)
    )


def _is_own_upstream(directive: Directive, own: Own) -> bool:
    if directive.args[:1] and directive.args[0].removeprefix("http://") in own.splits:
        return len(directive.args) == 1
    found = re.fullmatch(r"http://([a-z0-9._-]+)(/[^$\\]*)?", directive.args[0]) if len(directive.args) == 1 else None
    process = found[1].removeprefix(f"router_{own.app}.") if found else ""
    return found is not None and found[1] != process and "." not in process


def _is_free_variable(directive: Directive, own: Own) -> bool:
    return len(directive.args) == 2 and not directive.args[0].lower().startswith("$router_")  # nginx does not mind the case


def _upstream(directive: Directive, own: Own) -> str:
    if directive.block is None or len(directive.args) != 1 or directive.args[0] not in own.upstreams:
        return f"the app has {', '.join(sorted(own.upstreams)) or 'none'}"
    _check(directive.block, _UPSTREAM, own)
    return ""


def _is_own_instance(directive: Directive, own: Own) -> bool:
    return bool(directive.args) and directive.args[0] in own.addresses and all(map(_SERVER_FLAG.fullmatch, directive.args[1:]))


def _is_own_zone(directive: Directive, own: Own) -> bool:
    size = directive.args[1] if len(directive.args) == 2 and directive.args[0] in own.upstreams else ""
    return bool(re.fullmatch(r"[0-9]{1,9}[kKmM]?", size)) and size_in_bytes(size) <= _MEMORY


def _server(directive: Directive, own: Own) -> str:
    if directive.block is None or directive.args:
        return "it is a block"
    _check(directive.block, _VHOST, own)
    return ""


_SERVER: Mapping[str, Check] = {
    **dict.fromkeys(_FREE, _free),
    **dict.fromkeys(_SIZES, _only(f"a size, at most {_MEMORY >> 20}m in all", _is_small)),
    **dict.fromkeys(_BLOCKS, _same_again),
    "types": _rows("types and endings", lambda d, own: not d.args),
    "include": _only("files of the distribution that hold parameters only", lambda d, own: len(d.args) == 1 and d.args[0] in own.files),
    "access_log": _only("off, or the app's own", _is_own_log),
    "error_log": _only("the app's own", _is_own_error_log),
    "proxy_pass": _only("http:// and an upstream of the app", _is_own_upstream),
    "auth_request_set": _only("a variable, not one of router's", _is_free_variable),
    "set": _only("a variable, not one of router's", _is_free_variable),
    "server_tokens": _only("off", lambda d, own: d.args == ("off",)),
}
_VHOST: Mapping[str, Check] = {
    **_SERVER,
    # what else stands behind an address (ssl, proxy_protocol, backlog) holds for every app that listens there
    "listen": _only("an address of the app, and nothing behind it", lambda d, own: len(d.args) == 1 and d.args[0] in own.listens),
    "server_name": _only("domains of the app", lambda d, own: d.args and {*map(str.lower, d.args)} <= own.domains),
}
_UPSTREAM: Mapping[str, Check] = {
    **dict.fromkeys(_IN_UPSTREAMS, _free),
    "server": _only("an endpoint of the app", _is_own_instance),
    "zone": _only(f"that of the upstream, at most {_MEMORY >> 20}m", _is_own_zone),
    "keepalive": _only("a number up to 4096", lambda d, own: len(d.args) == 1 and d.args[0].isdecimal() and int(d.args[0]) <= 4096),
}
_TOP: Mapping[str, Check] = {
    "server": _server,
    "upstream": _upstream,
    "map": _rows("a variable of the app", lambda d, own: len(d.args) == 2 and d.args[1] in own.variables - own.splits),
    "geo": _rows("a variable of the app", lambda d, own: len(d.args) == 2 and d.args[1] in own.variables - own.splits),
    "split_clients": _rows("upstreams of the app, into a variable of it", _is_own_split),
    "log_format": _only("that of the app", lambda d, own: d.args[:1] == (f"router_{own.app}",) and d.args[0] in own.formats),
    "include": _SERVER["include"],
}
