"""The values that configuration is made of: an app as its files say it, the host-wide settings, the index of a generation.

The text of the files is the state; everything else is derived from it by parsing.  So a generation can be written back
into the directories, compared and undone without a second representation.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from . import lines
from .errors import UsageProblem, nearest
from .keys import Keys, check_table
from .names import AppName, Domain, Endpoint, Port, Process, domain, endpoint_line, port_entry, process_name, shown
from .properties import PROPERTIES, lookup, refused

#: The files of an app that make its configuration, beside `nginx.conf.d/*.conf`.
DOMAINS, UPSTREAMS, APP_TOML, TEMPLATE = "DOMAINS", "UPSTREAMS", "app.toml", "nginx.conf.j2"
SNIPPETS = "nginx.conf.d/"

#: The most of an app's entries: each costs every other app's change a little.
MOST_DOMAINS, MOST_ENDPOINTS, MOST_PORTS = 10_000, 1000, 100

#: Relative path -> text, of everything in an app's directory that makes its configuration.
Texts = Mapping[str, str]

#: The plugins that may have keys in app.toml and router.toml: their names, or their names with the keys that they declare.
Tables = Collection[str] | Mapping[str, Keys]

NOTHING: Mapping[str, Any] = MappingProxyType({})


#: Host-wide settings that this process has parsed, with what they were parsed from: a change asks for the same a dozen times,
#: and holds everybody up meanwhile.
_known_globals: list[tuple[tuple[str, str], Tables, Globals]] = []
_MOST_KNOWN = 4


@dataclass(frozen=True)
class App:
    """One app as its files say it."""

    name: AppName
    domains: tuple[Domain, ...] = ()
    domains_enabled: bool = True
    ports: tuple[Port, ...] = ()
    locked: str | None = None
    counts: Mapping[Process, int] = field(default_factory=dict)
    endpoints: tuple[Endpoint, ...] = ()
    nginx: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    snippets: Mapping[str, str] = field(default_factory=dict)
    template: str | None = None

    @property
    def served_domains(self) -> tuple[Domain, ...]:
        """The domains with a server block."""
        return self.domains if self.domains_enabled else ()

    def of_process(self, process: str) -> tuple[Endpoint, ...]:
        """The endpoints of one process."""
        return tuple(e for e in self.endpoints if e.process == process)

    @property
    def processes(self) -> tuple[str, ...]:
        """The names of the processes that have endpoints."""
        return tuple(sorted({e.process for e in self.endpoints}))


@dataclass(frozen=True)
class Globals:
    """The host-wide settings as `router.toml` and the global `DOMAINS` say them."""

    domains: tuple[Domain, ...] = ()
    proxy: Mapping[str, str] = field(default_factory=dict)
    nginx: Mapping[str, str] = field(default_factory=dict)
    plugins: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def get(self, name: str) -> str:
        """A proxy property as it counts: set, else its default (ports by mode)."""
        value = self.proxy.get(name, "") or lookup("proxy", name).default
        if not value and name in ("http-port", "https-port"):
            host, managed = {"http-port": ("80", "8080"), "https-port": ("443", "8443")}[name]
            return host if self.get("mode") == "host" else managed
        if not value and name == "draining-workers":
            return str(max(32, 4 * (os.cpu_count() or 1)))
        return value

    @property
    def is_host_mode(self) -> bool:
        """Whether the distribution's nginx serves."""
        return self.get("mode") == "host"

    @property
    def is_live(self) -> bool:
        """Whether endpoint changes reach nginx without a reload."""
        return self.get("updates") == "live"

    @property
    def http_port(self) -> int:
        """The port of apps without ports of their own."""
        return int(self.get("http-port"))


@dataclass(frozen=True)
class Facts:
    """What was asked of the world for an app before its change: addresses by name, and what plugins answered."""

    resolved: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    snippets: tuple[tuple[str, str, str], ...] = ()  # hook, plugin, text
    template: tuple[str, str] | None = None  # plugin, text
    templates: Mapping[str, str] = field(default_factory=dict)  # name -> text, of what own templates may include
    unhealthy: Mapping[str, str] = field(default_factory=dict)  # endpoint (its bare line in UPSTREAMS) -> why it gets no requests

    def problem_of(self, endpoint: Endpoint) -> str | None:
        """Why an endpoint fails its checks, and since when; None: it does not, or has none."""
        return self.unhealthy.get(endpoint.bare) if self.unhealthy else None

    def as_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "resolved": {k: list(v) for k, v in sorted(self.resolved.items())},
            "snippets": [list(s) for s in self.snippets],
            "template": list(self.template) if self.template else None,
            **({"templates": dict(self.templates)} if self.templates else {}),
            **({"unhealthy": dict(sorted(self.unhealthy.items()))} if self.unhealthy else {}),
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Facts:
        """The reverse of `as_json`."""
        template = raw.get("template")
        return cls(
            {k: tuple(v) for k, v in raw.get("resolved", {}).items()},
            tuple((h, p, t) for h, p, t in raw.get("snippets", [])),
            (template[0], template[1]) if template else None,
            dict(raw.get("templates", {})),
            dict(raw.get("unhealthy", {})),
        )


@dataclass(frozen=True)
class HostFacts:
    """What the host has: IPv6, open files, what its own nginx configuration says already."""

    ipv6: bool = False
    nofile: int = 1024
    user: str = ""
    probe_name: str = ""
    host_has: tuple[str, ...] = ()  # http-level directives of the distribution's nginx, and `default_server:LISTENER` (names.listener)
    modules: tuple[str, ...] = ()  # files that a managed nginx loads; with them, endpoint changes need no reload
    version: tuple[int, ...] = ()  # of a managed nginx: what its binary and its running master both understand
    program: str = ""  # the files that `version` was asked of

    def as_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {
            "ipv6": self.ipv6,
            "nofile": self.nofile,
            "user": self.user,
            "probe_name": self.probe_name,
            "modules": list(self.modules),
            "host_has": list(self.host_has),
            "version": list(self.version),
            "program": self.program,
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> HostFacts:
        """The reverse of `as_json`."""
        # what an earlier version wrote has none of the last three
        modules, version, program = tuple(raw.get("modules", ())), tuple(raw.get("version", ())), str(raw.get("program", ""))
        known = (bool(raw["ipv6"]), int(raw["nofile"]), str(raw["user"]), str(raw["probe_name"]), tuple(raw["host_has"]))
        return cls(*known, modules, version, program)


@dataclass(frozen=True)
class Entry:
    """What a generation knows of an app without opening its objects."""

    state: str  # object: texts and facts
    vhost: str | None  # object; None: nothing to serve
    generation: int
    domains: tuple[str, ...] = ()
    ports: tuple[int, ...] = ()
    objects: tuple[str, ...] = ()  # included by the vhost
    variables: tuple[str, ...] = ()  # that it makes at http level
    routes: tuple[tuple[str, str], ...] = ()  # name of a process's upstream, line: what changes without a reload
    unhealthy: int = 0  # how many of its endpoints fail their checks
    checked: bool = False  # whether its files say how its endpoints are checked
    canary: str = ""  # the share of its clients that its canaries get, while it has some
    aborted: str = ""  # why the last of these were aborted
    pool: tuple[str, ...] = ()  # how connections to its endpoints are kept, where it shares them: how many, how long, for how many requests
    addresses: tuple[str, ...] | None = None  # where its requests may go (`asked`); None: an earlier version made this entry
    inline: str = ""  # the text of `state` where that is no object: a change of endpoints that made no generation


def asked(app: App, facts: Facts) -> tuple[str, ...]:
    """Where requests of an app may go: the addresses of its endpoints, and what host names in these were resolved to.

    One that drains or is down gets none; one that fails its checks may get some at any time.
    """
    found: set[str] = set()
    for endpoint in app.endpoints:
        if endpoint.state == "active":
            found |= {endpoint.address.text, *(endpoint.address.at(ip) for ip in facts.resolved.get(endpoint.address.host, ()))}
    return tuple(sorted(found))


def parse_app(name: str, texts: Texts, tables: Tables = ()) -> App:
    """The app that `texts` describe; `tables` are the plugins that may have keys in app.toml, and which.

    Raises:
        UsageProblem: a file breaks a rule; file and line are named.
    """
    where = f"apps/{name}/"
    domains = {
        _at(f"{where}{DOMAINS}", number, lambda entry=entry: domain(entry), name): None
        for number, entry in _entries(where, DOMAINS, texts, MOST_DOMAINS, name)
    }
    endpoints: dict[tuple[str, str], Endpoint] = {}
    for number, entry in _entries(where, UPSTREAMS, texts, MOST_ENDPOINTS, name):
        e = _at(f"{where}{UPSTREAMS}", number, lambda entry=entry: endpoint_line(entry), name)
        endpoints[e.key] = e
    raw = parse_toml(f"{where}{APP_TOML}", texts.get(APP_TOML, ""), name)
    problem = _Places(f"{where}{APP_TOML}", texts.get(APP_TOML, ""), name)
    known = {"ports", "locked", "domains", "count", "nginx"}
    for key in raw:
        if key in known:
            continue
        if key not in tables:
            raise problem.at(key, f"unknown key {shown(key)}")
        if not isinstance(raw[key], dict):
            raise problem.at(key, f"{shown(key)} is a table of a plugin")
        if isinstance(tables, Mapping):
            check_table(key, tables[key], raw[key], problem.at)
    switch = raw.get("domains", "enabled")
    if switch not in ("enabled", "disabled"):
        raise problem.at("domains", "domains is enabled or disabled")
    locked = raw.get("locked")
    if locked is not None and not isinstance(locked, str):
        raise problem.at("locked", "locked is a text, the reason")
    return App(
        name=AppName(name),
        domains=tuple(domains),
        domains_enabled=switch == "enabled",
        ports=_ports(raw, problem),
        locked=locked,
        counts=_counts(raw, problem),
        endpoints=tuple(endpoints.values()),
        nginx=_properties("nginx", raw, problem),
        plugins={key: raw[key] for key in raw if key not in known},
        snippets={path.removeprefix(SNIPPETS): text for path, text in sorted(texts.items()) if path.startswith(SNIPPETS)},
        template=texts.get(TEMPLATE),
    )


def parse_globals(config: str, domains_text: str, tables: Tables = ()) -> Globals:
    """The host-wide settings of `router.toml` and the global `DOMAINS`.

    The keys of a plugin are looked at when it is called: a wrong one is that plugin's affair, and the host is not held up.

    Raises:
        UsageProblem: a file breaks a rule; file and line are named.
    """
    for texts, known_tables, known in _known_globals:
        if texts == (config, domains_text) and known_tables is tables:
            return known
    found = _parse_globals(config, domains_text, tables)
    _known_globals[:] = [((config, domains_text), tables, found), *_known_globals[: _MOST_KNOWN - 1]]
    return found


def _parse_globals(config: str, domains_text: str, tables: Tables) -> Globals:
    raw = parse_toml("router.toml", config)
    problem = _Places("router.toml", config, None)
    for key in raw:
        if key not in ("proxy", "nginx") and key not in tables:
            raise problem.at(key, f"unknown table {shown(key)}")
        if not isinstance(raw[key], dict):
            raise problem.at(key, f"{shown(key)} is a table")
    domains = {_at("DOMAINS", number, lambda e=entry: _global_domain(e), None): None for number, entry in lines.entries(domains_text)}
    return Globals(
        domains=tuple(domains),
        proxy=_properties("proxy", raw, problem),
        nginx=_properties("nginx", raw, problem),
        plugins={key: raw[key] for key in raw if key not in ("proxy", "nginx")},
    )


class _Places:
    """Says where in a TOML file a key stands (tomllib keeps no positions)."""

    def __init__(self, path: str, text: str, app: str | None) -> None:
        self.path, self.text, self.app = path, text, app

    def at(self, key: str, what: str, *, within: str = "") -> UsageProblem:
        rows = self.text.splitlines()
        begin = next((n for n, text in enumerate(rows) if within and re.match(rf"\s*\[\s*{re.escape(within)}\s*\]", text)), 0)
        pattern = re.compile(rf"""^\s*\[?\s*["']?{re.escape(key)}["']?\s*[\]=.]""")
        line = next((n for n, text in enumerate(rows, 1) if n > begin and pattern.match(text)), begin + 1)
        return UsageProblem(f"{self.path}:{line}: {what}", app=self.app)


def _entries(where: str, file: str, texts: Texts, most: int, app: str) -> list[tuple[int, str]]:
    found = lines.entries(texts.get(file, ""))
    if len(found) > most:
        raise UsageProblem(f"{where}{file}:{found[most][0]}: an app has at most {most} of these", app=app)
    return found


def _at(path: str, number: int, parse: Any, app: str | None) -> Any:
    try:
        return parse()
    except UsageProblem as why:
        raise UsageProblem(f"{path}:{number}: {why.message}", hint=why.hint, app=app) from None


def _global_domain(entry: str) -> Domain:
    parsed = domain(entry)
    if parsed.startswith("*."):
        raise UsageProblem(f"{entry} cannot be global: each new app gets APP.<each global domain>")
    return parsed


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def parse_toml(path: str, text: str, app: str | None = None) -> dict[str, Any]:
    """The values of a TOML file.

    Raises:
        UsageProblem: it is no TOML; file and line are named.
    """
    if not text:
        return {}
    for number, row in enumerate(text.split("\n") if not _is_unicode(text) else (), 1):
        if not _is_unicode(row):
            raise UsageProblem(f"{path}:{number}: not UTF-8", app=app)
    try:
        return tomllib.loads(text)
    except (ValueError, RecursionError) as why:  # TOMLDecodeError is a ValueError, and so is a number of 5,000 digits
        line = re.search(r"line (\d+)", str(why))
        raise UsageProblem(f"{path}:{line[1] if line else 1}: {why}", app=app) from None


def _ports(raw: Mapping[str, Any], problem: _Places) -> tuple[Port, ...]:
    given = raw.get("ports", [])
    if not isinstance(given, list) or not all(isinstance(p, str) for p in given):
        raise problem.at("ports", 'ports is a list such as ["http", "http:9000"]')
    if len(given) > MOST_PORTS:
        raise problem.at("ports", f"an app has at most {MOST_PORTS} ports")
    found: dict[int | None, Port] = {}
    for text in given:
        try:
            port = port_entry(text)
        except UsageProblem as why:
            raise problem.at("ports", why.message) from None
        if port.number in found and found[port.number] != port:
            raise problem.at("ports", f"{found[port.number]} and {port} are one port with two processes")
        found[port.number] = port
    return tuple(found.values())


def _counts(raw: Mapping[str, Any], problem: _Places) -> dict[Process, int]:
    given = raw.get("count", {})
    if not isinstance(given, dict):
        raise problem.at("count", "count is a table such as web = 3")
    counts = {}
    for key, value in given.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise problem.at(key, f"the count of {key} is a whole number")
        try:
            counts[process_name(key)] = value
        except UsageProblem as why:
            raise problem.at(key, why.message) from None
    return counts


def _properties(table: str, raw: Mapping[str, Any], problem: _Places) -> dict[str, str]:
    given = raw.get(table, {})
    if not isinstance(given, dict):
        raise problem.at(table, f"{table} is a table")
    found = {}
    for key, value in given.items():
        if key not in PROPERTIES[table] and key not in refused():
            raise problem.at(key, f"unknown {table} property {shown(key)}{nearest(key, PROPERTIES[table])}")
        try:
            known = lookup(table, key)
            known.require_scope(problem.app)
            found[key] = known.parse(value)
        except UsageProblem as why:
            raise problem.at(key, why.message) from None
    return found
