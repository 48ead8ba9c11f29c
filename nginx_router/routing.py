"""Who must answer a request, by nginx's own rules: port, exact name, longest wildcard, default server; then the location."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import routes
from .balancing import addresses_of, upstream_name
from .errors import RouterError, UsageProblem
from .index import Index
from .model import App, parse_app
from .names import covers, domain, port_number, shown

if TYPE_CHECKING:
    from .controller import Router


@dataclass(frozen=True)
class Target:
    """What is asked about."""

    host: str
    path: str = "/"
    port: int | None = None


@dataclass(frozen=True)
class Expected:
    """What the current generation makes of it."""

    generation: int | None
    port: int
    app: str | None = None  # None: the default site
    domain: str | None = None
    rule: str = ""
    server: str | None = None  # FILE:LINE of the server block
    location: str | None = None
    process: str | None = None
    endpoints: tuple[Mapping[str, Any], ...] = ()
    itself: str | None = None  # what nginx answers itself, without an instance
    logs: tuple[str, ...] = ()

    @property
    def addresses(self) -> set[str]:
        """Where nginx may connect to."""
        return {address for endpoint in self.endpoints for address in endpoint["addresses"]}


def target(text: str, port: int | None) -> Target:
    """`HOST[/PATH]`, or a whole `http://HOST[:PORT]/PATH` as a browser shows it.

    Raises:
        UsageProblem: it is neither, or names two ports.
    """
    rest, is_url = (text.removeprefix("http://"), True) if text.startswith("http://") else (text, False)
    host, slash, path = rest.partition("/")
    name, colon, number = host.partition(":")
    if colon:
        if port is not None and is_url:
            raise UsageProblem(f"{shown(text)} and --port {port}: one port", hint="usage: router trace HOST[/PATH] [--port N]")
        if not is_url:
            raise UsageProblem(f"{shown(host)} holds a port", hint=f"router trace {name}{slash}{path} --port {number or 'N'}")
        port = port_number(number)
    if name.startswith("*."):
        raise UsageProblem(f"{shown(name)} is a pattern, and nobody asks for one", hint=f"router trace any{name[1:]}")
    path = f"{slash}{path}".partition("#")[0] or "/"
    if not path.isascii() or not path.isprintable() or " " in path:
        raise UsageProblem(f"{shown(path)} is not a path: printable ASCII without blanks", hint="write other characters as %XX")
    return Target(domain(name), path, port if port is None else port_number(str(port)))


def expect(router: Router, index: Index | None, wanted: Target) -> Expected:
    """What the generation `index` makes of a request, by nginx's rules.

    Raises:
        StateCorrupt: an object is gone or not what its name says.
    """
    port = wanted.port or router.plane().settings.http_port
    if index is None:
        return Expected(None, port, rule="there is no generation yet: nothing is served")
    number, reasons = index.number, []
    for name in _candidates(index, wanted.host):
        app = index.owners[name]
        entry = index.apps[app]
        if entry.vhost is None or port not in entry.ports:
            where = f"listens on {', '.join(map(str, entry.ports))}" if entry.ports else "serves no domains (disabled, or none)"
            reasons.append(f"{name} belongs to {app}, which {where}")
            continue
        path = router.generations.object_path(entry.vhost)
        parsed = _parsed(path)
        server = next((s for s in parsed if s["directive"] == "server" and _takes(s, port, name)), None)
        if server is None:
            reasons.append(f"{name} belongs to {app}, whose vhost has no server block for it on port {port}")
            continue
        kind = "the longest wildcard that fits" if name.startswith("*.") else "the exact name"
        rule = f"{kind}: {name}"
        if reasons:
            rule += f" ({'; '.join(reasons)})"
        return _within(router, index, Expected(number, port, app, name, rule, f"{path}:{server['line']}"), server, parsed, wanted.path)
    rule = "; ".join(reasons) if reasons else f"no app owns {wanted.host}"
    listened = {router.plane().settings.http_port, *(p for e in index.apps.values() for p in e.ports)}
    if port not in listened:
        return Expected(number, port, rule=f"nothing of ours listens on port {port}; {rule}")
    site = router.plane().settings.get("default-site")
    what = "the connection is closed without an answer (444)" if site == "444" else f"302 to {site}" if "://" in site else site
    return Expected(number, port, rule=f"the default site: {rule}", itself=what)


def _candidates(index: Index, host: str) -> Iterator[str]:
    """The names of apps that fit `host`, in nginx's order: exact, then wildcards, the longest first."""
    owners = index.owners
    if host in owners:
        yield host
    labels = host.split(".")
    for start in range(1, len(labels)):
        pattern = f"*.{'.'.join(labels[start:])}"
        if pattern in owners and covers(pattern, host):
            yield pattern


def _parsed(path: Path) -> list[dict[str, Any]]:
    import crossplane

    payload = crossplane.parse(str(path), combine=True, strict=False, check_ctx=False, check_args=False)
    return [directive for config in payload["config"] for directive in config["parsed"]]


def _takes(server: Mapping[str, Any], port: int, name: str) -> bool:
    listens = [d["args"][0] for d in server["block"] if d["directive"] == "listen"]
    names = [n for d in server["block"] if d["directive"] == "server_name" for n in d["args"]]
    return name in names and any(re.fullmatch(rf"(.*:)?{port}", listen) for listen in listens)


def _within(router: Router, index: Index, found: Expected, server: Mapping[str, Any], parsed: list[dict[str, Any]], path: str) -> Expected:
    """The location, the process and its endpoints."""
    logs = tuple(d["args"][0] for d in server["block"] if d["directive"] == "access_log" and d["args"][0].startswith("/"))
    found = replace(found, logs=logs)
    if (said := _returns(server["block"])) is not None:
        return replace(found, itself=said)
    location = _location(server["block"], path.partition("?")[0])
    if location is None:
        return found
    found = replace(found, location=" ".join(location["args"]))
    if (said := _returns(location["block"])) is not None:
        return replace(found, itself=said)
    passed = next((d["args"][0] for d in location["block"] if d["directive"] == "proxy_pass"), "")
    name = passed.partition("://")[2].partition("/")[0]
    live = next((d["args"][1] for d in server["block"] if d["directive"] == "set" and d["args"][:1] == ["$router_process"]), "")
    if live and found.app is not None and name.startswith("router_live_"):
        return _live(router, index, found, live)
    # what a canary parts: the clients of one name are sent to this upstream or that, the process's own last
    rows = next((d["block"] for d in parsed if d["directive"] == "split_clients" and d["args"][-1] == name), ())
    upstreams = [
        d for row in [*(row["args"][0] for row in rows), name] for d in parsed if d["directive"] == "upstream" and d["args"] == [row]
    ]
    if not upstreams:
        return replace(found, endpoints=({"address": name, "addresses": [name], "state": "active", "flags": ""},) if passed else ())
    assert found.app is not None
    app, named = _app(router, index, found.app)
    by_address = {
        d["args"][0]: {
            "address": named.get(d["args"][0], d["args"][0]),
            "addresses": [d["args"][0]],
            "state": "down" if "down" in d["args"] else "backup" if "backup" in d["args"] else "active",
            "flags": " ".join(d["args"][1:]),
        }
        for upstream in upstreams
        for d in upstream["block"]
        if d["directive"] == "server"
    }
    endpoints, name = tuple(by_address.values()), upstreams[-1]["args"][0]
    process = next((p for p in app.processes if upstream_name(app.name, p) == name), None)
    return replace(found, process=process, endpoints=endpoints)


def _live(router: Router, index: Index, found: Expected, name: str) -> Expected:
    """The process and its endpoints where these change without a reload."""
    assert found.app is not None
    app, named = _app(router, index, found.app)
    endpoints = tuple(
        {
            "address": named.get(address, address),
            "addresses": [address],
            "state": "active" if kind == "canary" else kind,
            "flags": " ".join([f"weight={weight}"] * (weight != 1) + ["canary"] * (kind == "canary")),
        }
        for address, weight, kind in routes.peers(dict(index.apps[found.app].routes).get(name, ""))
    )
    process = next((p for p in app.processes if upstream_name(app.name, p) == name), None)
    return replace(found, process=process, endpoints=endpoints)


def _app(router: Router, index: Index, name: str) -> tuple[App, dict[str, str]]:
    """The app as it is served, and the names of its endpoints by the addresses that they resolved to."""
    texts, facts = router.generations.app_state(index.apps[name])
    app = parse_app(name, texts, router.tables())
    named: dict[str, str] = {}
    for endpoint in app.endpoints:
        with contextlib.suppress(RouterError):
            for address in addresses_of(name, endpoint, facts):
                named.setdefault(address, endpoint.address.text)
    return app, named


def _returns(block: list[dict[str, Any]]) -> str | None:
    for directive in block:
        if directive["directive"] == "return":
            return " ".join(directive["args"])[:80]
    return None


def _location(block: list[dict[str, Any]], path: str) -> dict[str, Any] | None:
    """The location that nginx takes: `=`, else the longest prefix if it says `^~`, else the first pattern, else the prefix."""
    best: dict[str, Any] | None = None
    patterns = []
    for each in (d for d in block if d["directive"] == "location"):
        *mark, what = each["args"]
        if mark == ["="]:
            if what == path:
                return each
        elif mark in (["~"], ["~*"]):
            patterns.append((re.IGNORECASE if mark == ["~*"] else 0, what, each))
        elif path.startswith(what) and (best is None or len(what) > len(best["args"][-1])):
            best = each
    if best is None or best["args"][0] != "^~":
        for flags, pattern, each in patterns:
            with contextlib.suppress(re.error):  # what only PCRE knows
                if re.search(pattern, path, flags):
                    return each
    return best
