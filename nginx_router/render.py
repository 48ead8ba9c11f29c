"""State and facts to configuration text: pure and deterministic, the same bytes for the same state.

The decisions are made here, with typed values; the templates hold layout alone.  An app's own template runs in jinja2's
immutable sandbox, and what it makes goes through the same parse as snippets (`vetting`).
"""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from . import balancing, directives
from .balancing import upstream_name
from .compiled import Compiled
from .errors import TemplateError, UsageProblem
from .kinds import is_among
from .model import TEMPLATE, App, Facts, Globals, HostFacts
from .names import WEB, listener
from .reach import refuse_own_socket
from .resources import shipped
from .sandbox import Sandbox, Unrendered
from .settings import LONGEST_SOCKET

#: Beside it a name too long for the hash fails; no domain ends so.
_SECOND_NAME = f"{'x' * 63}.{'y' * 6}.invalid"
#: How long a connection whose request has just ended outlives the reload: a client's next request may be on its way.  More
#: would keep old workers, and the drain of a deploy, waiting for clients that say nothing.
_KEEPALIVE_MIN, _SINCE_KEEPALIVE_MIN = "1s", (1, 27, 4)
#: The files of the Lua program, in the order in which each knows what those before it name.
_LIVE = ("counters", "routes", "choosing", "balancing", "taking", "admin")
_BARE = re.compile(r"[A-Za-z0-9_./:@%+,=~-]+")


@dataclass(frozen=True)
class Include:
    """A file that the server blocks of an app include."""

    path: str
    source: str


class Renderer:
    """Renders for one host: its paths, its settings, its facts."""

    def __init__(self, root: Path, settings: Globals, facts: HostFacts) -> None:
        self.root, self.settings, self.facts = root, settings, facts
        self._shipped, self._sandbox = _environments()

    def ports(self, app: App) -> dict[int, str]:
        """Port -> process, of the server blocks of an app.

        Raises:
            UsageProblem: two entries mean one port and different processes, or the host allows no app this port.
        """
        if not app.ports:
            return {self.settings.http_port: WEB}
        found: dict[int, str] = {}
        allowed, global_ports = self.settings.get("allowed-ports"), {self.settings.get("http-port"), self.settings.get("https-port")}
        for entry in app.ports:
            number = entry.number or self.settings.http_port
            if allowed and str(number) not in global_ports and not is_among(number, allowed):
                raise UsageProblem(
                    f"{app.name}: port {number} is not among those that apps may have ({allowed})",
                    hint=f"router proxy:set --global allowed-ports '{allowed} {number}'",
                    app=app.name,
                )
            if found.setdefault(number, entry.process) != entry.process:
                raise UsageProblem(f"{app.name}: port {number} is given to {found[number]} and to {entry.process}", app=app.name)
        return found

    def listens(self, port: int, app: App | None = None) -> list[str]:
        """The arguments of `listen` for a port: of the host, or of an app.

        Raises:
            UsageProblem: the app asks for addresses that the host does not have.
        """
        bound = self.settings.get("bind-address").split()
        found = bound or (["", "::"] if self.facts.ipv6 else [""])
        if app is not None:
            found = directives.addresses(app.name, self.properties(app), bound, ipv6=self.facts.ipv6)
        return [f"[{ip}]:{port}" if ":" in ip else f"{ip}:{port}".lstrip(":") for ip in found]

    def properties(self, app: App) -> dict[str, str]:
        """The nginx properties of an app that count."""
        return directives.computed(app.nginx, self.settings.nginx)

    def template_of(self, app: App, facts: Facts) -> tuple[str, str] | None:
        """Where the template of an app comes from, and its text; None: the shipped one."""
        if self.properties(app)["disable-custom-config"] == "true":
            return None
        if app.template is not None:
            return f"apps/{app.name}/{TEMPLATE}", app.template
        return (f"the template of plugin {facts.template[0]}", facts.template[1]) if facts.template else None

    def vhost(
        self, app: App, facts: Facts, includes: Sequence[Include], *, http: Sequence[Include] = (), location: Sequence[Include] = ()
    ) -> str:
        """The vhost of an app; empty when it has nothing to serve.  `http` and `location` are included there instead of in the servers.

        Raises:
            TemplateError: its own template, or a plugin's, does not render.
            UsageProblem: its ports or its properties contradict each other.
        """
        values = self.values(app, facts, includes, http=http, location=location)
        if not values["upstreams"] and not values["servers"] and not app.domains:
            return ""
        own = self.template_of(app, facts)
        if own is not None:
            return self._custom(app, own[1], own[0], values, facts.templates)
        return self._shipped.get_template("vhost.conf.j2").render(values)

    def values(
        self, app: App, facts: Facts, includes: Sequence[Include], *, http: Sequence[Include] = (), location: Sequence[Include] = ()
    ) -> dict[str, Any]:
        """What a vhost template is given; docs/templates.md explains each."""
        nginx = self.properties(app)
        directives.check(app.name, nginx)
        for endpoint in app.endpoints:
            refuse_own_socket(self.root, app.name, endpoint.address)
        variables = directives.believed(app.name, app.nginx, nginx)
        upstreams = [u for process in app.processes for u in balancing.blocks(app, process, facts, nginx)]
        splits = {process: s for process in app.processes if (s := balancing.split(app, process, facts))}
        names = {**{u["process"]: u["name"] for u in upstreams}, **{process: s["variable"] for process, s in splits.items()}}
        is_live = self._is_live(app, facts)
        is_sticky = nginx["load-balancing"] == "cookie"
        by_process: dict[str, list[int]] = {}
        for port, process in sorted(self.ports(app).items()):
            by_process.setdefault(process, []).append(port)
        servers = [
            {
                "process": process,
                "ports": ports,
                "listens": [listen for port in ports for listen in self.listens(port, app)],
                "names": list(app.served_domains),
                "upstream": balancing.pool_name(balancing.pool(nginx)) if is_live else names.get(process),
                "live": upstream_name(app.name, process) if is_live else "",
                "includes": [{"path": i.path, "source": i.source} for i in includes],
                "location_includes": [{"path": i.path, "source": i.source} for i in location],
            }
            for process, ports in by_process.items()
        ]
        sources = [
            name
            for name, there in (("DOMAINS", app.domains), ("UPSTREAMS", app.endpoints or is_live), ("app.toml", app.nginx or app.ports))
            if there
        ]
        if not app.domains_enabled:
            # the names stand here so that the generation knows whose they are
            sources.append(f"domains disabled: {' '.join(app.domains)}")
        return {
            "app": app.name,
            "sources": [f"apps/{app.name}/{sources[0]}", *sources[1:]] if sources else [f"apps/{app.name}"],
            "domains": list(app.served_domains),
            "http_includes": [{"path": i.path, "source": i.source} for i in http],
            "upstreams": [] if is_live else upstreams,
            "servers": servers if app.served_domains else [],
            "nginx": nginx,
            "directives": directives.of_server(
                nginx, {*app.nginx, *self.settings.nginx}, self.facts.host_has, is_marking=not is_live and (is_sticky or bool(splits))
            ),
            # without a reload: a canary may begin at any time, and says so by this variable
            "mark": "$router_client_cookie" if is_sticky else "$router_mark",
            "maps": [
                *(directives.maps(variables, nginx["trusted-proxies"]) if app.nginx.get("trusted-proxies") else []),
                *([] if is_live else splits.values()),
            ],
            "headers": directives.forwarded(nginx, variables),
            "error_pages": nginx["error-pages"] == "default",
            "server_tokens": self._server_tokens(),
            **directives.logs(app.name, f"{self.root}/log", nginx),
        }

    def routes(self, app: App, facts: Facts) -> dict[str, str]:
        """Where the requests of an app go, by the names of its upstreams; nothing where that stands in its vhost.

        Raises:
            UsageProblem: a host name was not resolved.
        """
        if not self._is_live(app, facts):
            return {}
        nginx = self.properties(app)
        found = {}
        for process in app.processes:
            if line := balancing.route(app, process, facts, nginx):
                found[upstream_name(app.name, process)] = line
        return found

    def pool(self, app: App, facts: Facts) -> tuple[str, ...]:
        """How connections to the endpoints of an app are kept, where it shares them with others."""
        return balancing.pool(self.properties(app)) if self._is_live(app, facts) else ()

    def _is_live(self, app: App, facts: Facts) -> bool:
        if not self.settings.is_live or self.template_of(app, facts) is not None:
            return False  # an own template says itself where requests go
        # and so does a snippet with `proxy_pass http://router_APP.PROCESS`
        own = upstream_name(app.name, "").lower()
        return not any(own in text.lower() for text in (*app.snippets.values(), *(text for _, _, text in facts.snippets)))

    def http(
        self,
        number: int,
        probe: str,
        ports: Sequence[int],
        vhosts: Mapping[str, str],
        *,
        pools: Collection[tuple[str, ...]] = (),
        probe_socket: str | None = None,
        admin_socket: str | None = None,
        others: Sequence[str] = (),
    ) -> str:
        """router.conf of a generation: what stands at http level, the probe, the default sites, one include a vhost."""
        site = self.settings.get("default-site")
        answer = f"302 {site}" if site.startswith("http") else site
        socket = self.probe_socket() if probe_socket is None else probe_socket
        if not socket:
            # the probe listens there: without a default site it would answer for every unknown name
            ports = [*{*ports, self.settings.http_port}]
        free = [[listen for listen in self.listens(p) if not self._host_has_default(listen)] for p in sorted(ports)]
        bound = self.settings.get("bind-address").split()
        everywhere = directives.believed("", {}, directives.computed({}, self.settings.nginx))
        return self._shipped.get_template("router.conf.j2").render(
            number=number,
            probe=probe,
            live=self._live(pools, admin_socket) if self.settings.is_live else None,
            keepalive_min=_KEEPALIVE_MIN if self.facts.version >= _SINCE_KEEPALIVE_MIN and not self.settings.is_host_mode else "",
            probe_socket=socket,
            probe_name=self.facts.probe_name,
            probe_listens=self.listens(self.settings.http_port),
            probe_clients=sorted({"127.0.0.1", "::1", *bound}),
            host_has=self.facts.host_has,
            server_tokens=self._server_tokens(),
            directives=directives.of_default_sites(self.settings.nginx),
            maps=directives.maps(everywhere, self.settings.nginx.get("trusted-proxies", "")),
            default_sites=[{"listens": listens, "answer": answer} for listens in free if listens],
            vhosts=[{"app": app, "path": path} for app, path in sorted(vhosts.items())],
            others={"listens": [listen for p in sorted(ports) for listen in self.listens(p)], "names": sorted(others)},
        )

    def wrapper(
        self,
        directory: Path,
        ports: Sequence[int],
        vhosts: Mapping[str, str],
        others: Sequence[str],
        pools: Collection[tuple[str, ...]] = (),
    ) -> dict[str, str]:
        """The files of a small configuration that lets `nginx -t` judge `vhosts` without all the rest.

        It has the same http-level lines, its own sockets, logs and temp directories (`nginx -t` really makes them), and
        one more server: a 70-character name passes alone and fails beside a second one.  `others` are the names of all
        other apps; whoever takes one of them is told by nginx's warning.
        """
        alone = Renderer(self.root, self.settings, replace(self.facts, host_has=()))
        names = [_SECOND_NAME, *others]
        probe, admin = (f"{directory}/{name}.sock" for name in ("probe", "admin"))
        router_conf = alone.http(
            0,
            "validate",
            ports,
            vhosts,
            pools=pools,
            probe_socket=probe if len(probe) <= LONGEST_SOCKET else "",
            admin_socket=admin if len(admin) <= LONGEST_SOCKET else "",
            others=names,
        )
        return {"nginx.conf": self.main(0, directory, f"{directory}", f"{directory}"), "router.conf": router_conf}

    def main(self, number: int, directory: Path, run: str = "", log: str = "") -> str:
        """nginx.conf of a generation of a managed nginx."""
        return self._shipped.get_template("nginx.conf.j2").render(
            number=number,
            user=self.facts.user,
            modules=self.facts.modules,
            nofile=self.facts.nofile,
            # each costs a worker 424 bytes from its start, and old workers pile up while they drain
            connections=min(self.facts.nofile // 2, 16384),
            shutdown=self.settings.get("worker-shutdown-timeout"),
            run=run or f"{self.root}/run",
            log=log or f"{self.root}/log",
            router_conf=f"{directory}/router.conf",
        )

    def live_program(self) -> str:
        """What chooses endpoints in nginx's workers, in Lua: one program of several files, so that all of it is compiled together."""
        return _live_program()

    def _live(self, pools: Collection[tuple[str, ...]], admin_socket: str | None) -> dict[str, Any]:
        apps = Counter(filter(None, pools))
        return {
            "program": f"{self.root}/current/live.lua",
            # a new program is another text, which a reload takes up
            "digest": hashlib.sha256(self.live_program().encode()).hexdigest()[:12],
            "routes": f"{self.root}/current/live.tsv",
            "admin": f"{self.root}/run/live/admin.sock" if admin_socket is None else admin_socket,
            "pools": [
                # each app may keep as many as it would alone; what that costs a worker at its start, 1,024 bound
                {
                    "name": balancing.pool_name(pool),
                    "keepalive": min(count * int(pool[0]), max(int(pool[0]), 1024)),
                    "timeout": pool[1],
                    "requests": pool[2],
                }
                for pool, count in sorted(apps.items())
            ],
        }

    def probe_socket(self) -> str:
        """The unix socket of the probe; empty where the probe is a secret server name.

        Host mode has no unix listener: a stale one keeps the distribution's nginx from starting after a kill -9.
        """
        path = f"{self.root}/run/probe.sock"
        return "" if self.settings.is_host_mode or len(path) > LONGEST_SOCKET else path

    def _host_has_default(self, listen: str) -> bool:
        return f"default_server:{listener(listen)}" in self.facts.host_has

    def _server_tokens(self) -> str:
        # at http level it would hold for the host's own sites too, and twice it is an error
        return "off" if self.settings.is_host_mode and "server_tokens" not in self.facts.host_has else ""

    def _custom(self, app: App, text: str, source: str, values: Mapping[str, Any], templates: Mapping[str, str]) -> str:
        try:
            return self._sandbox.render(text, values, templates)
        except Unrendered as why:
            # whatever the owner wrote: it is theirs to mend, and harms nobody else
            words = f"no plugin brings a template '{why.missing}' (hook template-dirs)" if why.missing else why.words
            hint = f"there are: {' '.join(sorted(values))}" if why.is_undefined else ""
            raise TemplateError(f"app {app.name}: {source}:{why.line}: {words}", hint=hint, app=app.name) from None


@cache
def _live_program() -> str:
    # once a process: a change asks for it three times
    return "\n\n".join((shipped("templates") / f"live/{part}.lua").read_text() for part in _LIVE)


@cache
def _environments() -> tuple[Environment, Sandbox]:
    # one pair a process: each change renders twice
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "keep_trailing_newline": True}
    templates = shipped("templates")
    both = (
        Environment(
            loader=FileSystemLoader(templates),
            bytecode_cache=Compiled(templates, options),
            undefined=StrictUndefined,
            autoescape=False,  # noqa: S701 - nginx's configuration is not HTML; values are typed and pass the `q` filter
            **options,
        ),
        Sandbox(**options),
    )
    for environment in both:
        environment.filters["q"] = quoted
        environment.filters["comment"] = commented
    return both


def quoted(value: object) -> str:
    """`value` as one word of nginx's configuration."""
    text = str(value)
    if _BARE.fullmatch(text):
        return text
    if "$" in text or not text.isprintable():
        raise UsageProblem(f"{text!r} cannot stand in nginx's configuration")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


def commented(value: object) -> str:
    """`value` as it may stand in a comment: nothing in it ends the line."""
    return "".join(c if c.isprintable() else "?" for c in str(value))
