"""What the properties of an app come to: the values that count, held against each other, in nginx's words.

A value alone is checked where it is set; whether values fit together shows only when the app's, the host's and the defaults
are put together, which is done here for rendering and for reports alike.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from .errors import UsageProblem
from .kinds import LOG_FORMATS, size_in_bytes
from .names import Endpoint
from .properties import PROPERTIES

#: What is told to an app of behind trusted proxies, unless something is set.
_BEHIND_PROXIES = {
    "x-forwarded-for-value": "$proxy_add_x_forwarded_for",
    "x-forwarded-port-value": "$http_x_forwarded_port",
    "x-forwarded-proto-value": "$http_x_forwarded_proto",
}
#: What a trusted proxy may say: the header, what is taken of it (or the words that are), and what holds else.
_SAID: Mapping[str, tuple[str, str | tuple[str, ...], str]] = {
    "for": ("$http_x_forwarded_for", '"$http_x_forwarded_for, $realip_remote_addr"', "$realip_remote_addr"),
    "port": ("$http_x_forwarded_port", "$http_x_forwarded_port", "$server_port"),
    "proto": ("$http_x_forwarded_proto", ("http", "https"), "$scheme"),
    "host": ("$http_x_forwarded_host", "$http_x_forwarded_host", "$host$router_port"),
}
_BUSY = "proxy-busy-buffers-size"
#: `random two` is for equal weights alone.  nginx draws two by weight and asks the first only if it is less busy (measured on 1.22.1:
#: of 6,000 requests one after another, weights 4, 1 and 1, the heavy one got 1,532, where 4,000 are its share).
_METHODS = {"round_robin": "", "random two": "random two least_conn", "cookie": "hash $router_client consistent"}
#: The ways of choosing of which nginx says that they know no backups.
_WITHOUT_BACKUPS = ("ip_hash", "random two", "cookie")
#: How often each unit of weight stands on the ring of nginx's consistent hash, 160 points each time: with one of three instances
#: 160 points have shares that differ by a tenth and more, with 1,280 by a thirtieth.  A point costs nginx 16 bytes.
_RING = 8
_MOST_ON_RING = 2000

#: Gives a client its mark; the variable is empty where it has one, and then there is no header.
MARKING = ("add_header", "Set-Cookie $router_client_cookie always")


def computed(own: Mapping[str, str], everywhere: Mapping[str, str]) -> dict[str, str]:
    """The value of each nginx property that counts: the app's own, else the host's, else the default."""
    values = {name: own.get(name) or everywhere.get(name) or p.default for name, p in PROPERTIES["nginx"].items()}
    if values["trusted-proxies"] != "off":
        values |= {name: value for name, value in _BEHIND_PROXIES.items() if not is_set(name, own, everywhere)}
    if not is_set(_BUSY, own, everywhere):
        largest, body = _buffers(values)
        values[_BUSY] = _as_size(min(2 * largest, body))
    return values


def is_set(name: str, own: Mapping[str, str], everywhere: Mapping[str, str]) -> bool:
    """Whether somebody gave the property a value."""
    return bool(own.get(name) or everywhere.get(name))


def check(app: str, values: Mapping[str, str]) -> None:
    """Hold the values of an app against each other.

    Raises:
        UsageProblem: two do not fit together; both are named.
    """
    largest, body = _buffers(values)
    busy, size, buffers = values[_BUSY], values["proxy-buffer-size"], values["proxy-buffers"]
    if largest > body:
        count = int(buffers.split()[0])
        fitting = f"{max(count, 1 + -(-largest // size_in_bytes(buffers.split()[1])))} {buffers.split()[1]}"
        raise _misfit(
            app,
            f"proxy-buffer-size {size} is more than all but one of the proxy-buffers ({buffers}) hold",
            f"router nginx:set {app} proxy-buffers '{fitting}'",
        )
    if size_in_bytes(busy) < largest:
        raise _misfit(app, f"{_BUSY} {busy} is less than a buffer (proxy-buffer-size {size}, proxy-buffers {buffers})")
    if size_in_bytes(busy) > body:
        raise _misfit(app, f"{_BUSY} {busy} is more than all but one of the proxy-buffers ({buffers}) hold")
    if values["trusted-proxies"] == "off":
        for name in _BEHIND_PROXIES:
            if values[name].startswith(("$http_", "$proxy_add_")):
                raise _misfit(
                    app,
                    f"{name} {values[name]} would tell the app what any client claims: trusted-proxies is off",
                    f"router nginx:set {app} trusted-proxies NETWORK",
                )


def of_server(
    values: Mapping[str, str], asked: Collection[str], host_has: Collection[str], *, is_marking: bool = False
) -> list[tuple[str, str]]:
    """The directives of a server block: of the properties that are `asked` for, and those that would count otherwise.

    `is_marking`: clients get a cookie that tells them from each other.

    nginx's own defaults are not repeated, so that a snippet may say what no property was set to; but where the
    distribution's http block says something (`host_has`), the default is meant against that.
    """
    found = [
        (p.directive, values[name])
        for name, p in PROPERTIES["nginx"].items()
        if p.directive
        and (not p.needs or values[p.needs] == "on")
        and not p.host
        and (name in asked or values[name] != (p.nginx or p.default) or p.directive in host_has)
    ]
    if values["gzip"] == "on":
        found += [("gzip_proxied", "any"), ("gzip_vary", "on")]
    if values["trusted-proxies"] != "off":
        found += [("set_real_ip_from", network) for network in values["trusted-proxies"].split()]
        found += [("real_ip_header", values["real-ip-header"]), ("real_ip_recursive", "on")]
    if is_marking:
        found.append(MARKING)
    return found


def of_default_sites(everywhere: Mapping[str, str]) -> list[tuple[str, str]]:
    """The directives of the server that nginx asks before it knows which app is meant."""
    return [(p.directive, everywhere[name]) for name, p in PROPERTIES["nginx"].items() if p.host and name in everywhere]


def believed(app: str, own: Mapping[str, str], values: Mapping[str, str]) -> dict[str, str]:
    """The variables that hold what is believed of a request: from a trusted proxy what it says, from others what nginx sees.

    Apps that leave it to the host share those of router.conf.
    """
    if values["trusted-proxies"] == "off":
        return {}
    # variables are of letters, digits and _; names of apps are not
    tag = hashlib.sha256(app.encode()).hexdigest()[:12] if own.get("trusted-proxies") else "all"
    return {name: f"$router_{name}_{tag}" for name in ("peer", *_SAID)}


def maps(variables: Mapping[str, str], networks: str) -> list[dict[str, Any]]:
    """The blocks at http level that make these variables."""
    if not variables:
        return []
    rows = [("default", '""'), *((network, "1") for network in networks.split())]
    made: list[dict[str, Any]] = [{"kind": "geo", "source": "$realip_remote_addr", "variable": variables["peer"], "rows": rows}]
    for name, (header, said, seen) in _SAID.items():
        inner = variables[name].replace(f"_{name}_", f"_said_{name}_")
        known = [("default", seen), *((word, word) for word in said)] if isinstance(said, tuple) else [("default", said), ('""', seen)]
        made.append({"kind": "map", "source": header, "variable": inner, "rows": known})
        made.append({"kind": "map", "source": variables["peer"], "variable": variables[name], "rows": [("default", seen), ("1", inner)]})
    return made


def forwarded(values: Mapping[str, str], variables: Mapping[str, str]) -> list[tuple[str, str]]:
    """What an app is told of the request and its client, and by which headers."""
    instead = {
        "$http_x_forwarded_port": variables.get("port"),
        "$http_x_forwarded_proto": variables.get("proto"),
        "$proxy_add_x_forwarded_for": variables.get("for"),
        "$http_x_forwarded_for": variables.get("for"),
    }
    told = [
        ("X-Real-IP", "$remote_addr"),
        ("X-Forwarded-For", values["x-forwarded-for-value"]),
        ("X-Forwarded-Proto", values["x-forwarded-proto-value"]),
        ("X-Forwarded-Host", variables.get("host", "$host$router_port")),
        ("X-Forwarded-Port", values["x-forwarded-port-value"]),
        ("X-Forwarded-Ssl", values["x-forwarded-ssl"] or '""'),
        ("X-Request-ID", "$request_id"),
    ]
    return [(name, instead.get(value) or value) for name, value in told]


def logs(app: str, directory: str, values: Mapping[str, str]) -> dict[str, Any]:
    """Where an app's logs are, and in which format."""
    access, error, form = values["access-log-path"], values["error-log-path"], values["access-log-format"]
    named = {"main": "router_main", "json": "router_json", "combined": "combined"}
    own = None if form in LOG_FORMATS else {"name": f"router_{app}", "text": form, "escape": "json" if form.startswith("{") else "default"}
    return {
        "access_log": "off" if access == "off" else f"{directory}/{f'{app}-access.log' if access == 'default' else access}",
        # nginx has no `off` here: it would write a file of that name
        "error_log": "/dev/null" if error == "off" else f"{directory}/{f'{app}-error.log' if error == 'default' else error}",
        "access_log_format": own["name"] if own else named[form],
        "log_format": own,
    }


def of_upstream(app: str, values: Mapping[str, str], endpoints: Sequence[Endpoint]) -> dict[str, Any]:
    """What an upstream says besides its servers.

    Raises:
        UsageProblem: the way of choosing knows no backups, and there are some; or the weights need too much memory.
    """
    method = values["load-balancing"]
    if method == "cookie" and (total := sum(e.weight for e in endpoints)) > _MOST_ON_RING:
        raise _misfit(app, f"load-balancing cookie takes weights up to {_MOST_ON_RING} in all, and these are {total}")
    backup = next((e for e in endpoints if e.backup), None)
    if backup and method in _WITHOUT_BACKUPS and not all(e.backup or e.down for e in endpoints):
        raise _misfit(
            app,
            f"load-balancing {method} knows no backups, and {backup.address} is one",
            f"router upstreams:add {app} {backup.process}={backup.address}",
        )
    if method == "random two" and len({e.weight for e in endpoints if not e.down}) > 1:
        method = "least_conn"  # which asks the least busy for its weight too, and knows no chance
    return {
        "method": _METHODS.get(method, method),
        "keepalive": int(values["proxy-keepalive"]),
        "keepalive_timeout": values["proxy-keepalive-timeout"],
        "keepalive_requests": int(values["proxy-keepalive-requests"]),
    }


def of_endpoint(values: Mapping[str, str], weight: int) -> list[str]:
    """The parameters of a server of an upstream that come from properties, and its weight."""
    weight *= _RING if values["load-balancing"] == "cookie" else 1
    found = (("weight", f"{weight}", "1"), ("max_fails", values["max-fails"], "1"), ("fail_timeout", values["fail-timeout"], "10s"))
    return [f"{name}={value}" for name, value, default in found if value != default]


def addresses(app: str, values: Mapping[str, str], bound: Sequence[str], *, ipv6: bool) -> list[str]:
    """The addresses that an app listens on, of those that the host has; `bound`: none, everywhere.

    A listener on one address takes that address away from every app that listens everywhere (nginx looks for servers by
    address first), so an app may choose among the host's and have none of its own.

    Raises:
        UsageProblem: it asks for an address that is not the host's.
    """
    everywhere = not bound
    host = ["", "::"] if everywhere and ipv6 else [""] if everywhere else list(bound)
    found: list[str] = []
    for version, wildcard in ((4, ("", "0.0.0.0")), (6, ("", "::"))):  # noqa: S104 - compared, not bound
        name = f"bind-address-ipv{version}"
        there = [ip for ip in host if (":" in ip) == (version == 6)]
        wanted = values[name]
        if wanted in wildcard:
            found += there
        elif wanted != "off":
            missing = next((ip for ip in wanted.split() if ip not in there), None)
            if missing and everywhere:
                raise _misfit(
                    app,
                    f"{name} {missing}: the host listens everywhere, and would serve no other app there any more",
                    "name the host's addresses first: router proxy:set --global bind-address 'ADDRESS...'",
                )
            if missing:
                raise _misfit(app, f"{name} {missing} is not among the host's addresses ({' '.join(bound)})")
            found += wanted.split()
    if not found:
        raise _misfit(app, f"what bind-address-ipv4 and -ipv6 leave of the host's addresses ({' '.join(bound) or 'everywhere'}) is nothing")
    return found


def _buffers(values: Mapping[str, str]) -> tuple[int, int]:
    """The larger of the two kinds of buffers, and what all but one of those for the body hold."""
    count, size = values["proxy-buffers"].split()
    body = size_in_bytes(size)
    return max(size_in_bytes(values["proxy-buffer-size"]), body), (int(count) - 1) * body


def _as_size(number: int) -> str:
    for unit, size in (("m", 1 << 20), ("k", 1 << 10)):
        if number % size == 0:
            return f"{number // size}{unit}"
    return str(number)


def _misfit(app: str, what: str, hint: str = "") -> UsageProblem:
    return UsageProblem(f"app {app}: {what}", hint=hint, app=app)
