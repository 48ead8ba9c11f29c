"""The next generation in the making: the base with events applied, nothing written.

It is made twice for each change: in the asking command (what would come of it, what hooks are to be asked about) and
under the host lock (where it counts).  An event that fails leaves it as it was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import lines
from .errors import Conflict, RouterError, StateCorrupt, UsageProblem, as_error
from .events import Edit, Event, reduce
from .generations import Generations, Index
from .model import APP_TOML, SNIPPETS, UPSTREAMS, App, Entry, Facts, Globals, HostFacts, Tables, Texts, parse_app, parse_globals
from .render import Include, Renderer
from .store import Step, Store, Write

_HTTP, _SERVER, _LOCATION = "nginx-http-snippet", "nginx-server-snippet", "nginx-location-snippet"


@dataclass(frozen=True)
class Rendered:
    """One app with everything nginx needs to serve it."""

    app: App
    texts: Texts
    facts: Facts
    entry: Entry
    vhost: bytes
    includes: Mapping[str, tuple[str, bytes]]  # object -> source, bytes
    state: bytes
    template: tuple[str, str] | None = None  # where its template comes from, and the text; None: the shipped one

    @property
    def template_source(self) -> str:
        """Where its own template comes from; empty for the shipped one."""
        return self.template[0] if self.template else ""

    def objects(self) -> Iterable[tuple[str, bytes]]:
        """Every object it needs, by its name."""
        yield self.entry.state, self.state
        if self.entry.vhost:
            yield self.entry.vhost, self.vhost
        for sha, (_, data) in self.includes.items():
            yield sha, data


@dataclass(frozen=True)
class Applied:
    """What one event came to."""

    event: Event
    edit: Edit
    kind: str  # nothing, endpoints or structure
    apps: tuple[str, ...]  # that it is about


class Candidate:
    """A `World` that events change; `facts` says what the host has under given settings."""

    def __init__(
        self,
        store: Store,
        generations: Generations,
        base: Index | None,
        tables: Tables,
        facts: Callable[[Globals, HostFacts | None], HostFacts],
    ) -> None:
        self.store, self.generations, self.base = store, generations, base
        self._tables = tables
        self._host_facts = facts
        self.config, self.global_domains = store.globals()
        self._old_globals = (self.config, self.global_domains)
        self._on_disk: dict[str, Texts | None] = {}
        self._texts: dict[str, Texts | None] = {}
        self._moves: list[tuple[str, str]] = []
        self._rendered: dict[str, Rendered | None] = {}
        self._owners: dict[str, str] = base.owners if base else {}
        self.settings = parse_globals(self.config, self.global_domains, self._tables)
        self.facts = facts(self.settings, base.facts if base else None)
        self._renderer = Renderer(store.paths.root, self.settings, self.facts)
        if base and self._renders_differently(base):
            self._render_all()

    # what events look at (events.World)

    def texts(self, app: str) -> Texts | None:
        """The texts of an app, with what earlier events made of them."""
        return self._texts[app] if app in self._texts else self._disk(app)

    def parse(self, app: str, texts: Texts) -> App:
        """The app these texts describe."""
        return parse_app(app, texts, self._tables)

    def names(self) -> list[str]:
        """Every app there is."""
        there = {n for n in self.store.names() if self._texts.get(n, True) is not None}
        return sorted(there | {n for n, texts in self._texts.items() if texts is not None})

    @property
    def owners(self) -> Mapping[str, str]:
        """Domain -> the app that has it."""
        return self._owners

    # changes

    def apply(self, event: Event) -> Applied:
        """Apply one event.

        Raises:
            RouterError: it cannot be; the candidate is as before.
        """
        return self.apply_all([event])[0]

    def apply_all(self, events: Sequence[Event]) -> list[Applied]:
        """Apply several events together.

        Raises:
            RouterError: one of them cannot be; the candidate is as before them all.
        """
        before = self._save()
        # files that were edited together may exchange a domain: none of them holds it until each has its own
        taken_up = {event.app for event in events if event.action in ("take-up", "restore")}
        if len(taken_up) > 1:
            self._owners = {name: app for name, app in self._owners.items() if app not in taken_up}
        try:
            return [self._apply(event) for event in events]
        except BaseException:
            self._restore(before)
            raise

    @property
    def changed(self) -> dict[str, Rendered | None]:
        """The apps whose configuration or texts are not the base's; None: gone."""
        base = self.base.apps if self.base else {}
        return {
            name: rendered
            for name, rendered in sorted(self._rendered.items())
            if (rendered is None and name in base) or (rendered is not None and not _same(rendered.entry, base.get(name)))
        }

    @property
    def changes_vhosts(self) -> dict[str, Rendered]:
        """The apps with a vhost that nginx has not seen."""
        base = self.base.apps if self.base else {}
        return {
            name: r
            for name, r in self.changed.items()
            if r is not None and r.entry.vhost and (name not in base or base[name].vhost != r.entry.vhost)
        }

    @property
    def is_change(self) -> bool:
        """Whether a generation is to be made: the texts changed, or what nginx would read."""
        if self.base is None:
            return True
        if self.changed or (self.config, self.global_domains) != (self.base.config, self.base.global_domains):
            return True
        if self.steps():  # a hand edit that this takes back: what is served stays, the file does not
            return True
        return self.router_conf(self.index(self.base.number, self.base.probe)) != self._base_conf()

    def steps(self) -> list[Step]:
        """The files to write."""
        steps: list[Step] = [step for old, new in self._moves for step in self.store.move(old, new)]
        came_from = {new: old for old, new in self._moves}
        went = set(came_from.values())
        for name, texts in sorted(self._texts.items()):
            if name in went and name not in came_from:
                steps += self.store.steps(name, None, texts)  # gone, or made anew under the name that got free
            else:
                steps += self.store.steps(name, self._first(name, came_from), texts)
        return steps + self.store.global_steps(self._old_globals, (self.config, self.global_domains))

    def _first(self, name: str, came_from: Mapping[str, str]) -> Texts | None:
        while name in came_from:
            name = came_from[name]
        return self._disk(name)

    def lost_objects(self) -> dict[str, bytes]:
        """Objects of apps that events looked at, which the disk lost or somebody changed."""
        kept = {sha: data for r in self._rendered.values() if r is not None for sha, data in r.objects()}
        named = {sha for r in self.changed.values() if r is not None for sha, _ in r.objects()}
        return {sha: data for sha, data in kept.items() if sha not in named and not self.generations.is_intact(sha)}

    def index(self, number: int, probe: str) -> Index:
        """What generation `number` is made of."""
        apps = dict(self.base.apps) if self.base else {}
        for name, rendered in self.changed.items():
            if rendered is None:
                apps.pop(name, None)
            else:
                apps[name] = replace(rendered.entry, generation=number)
        return Index(number, probe, self.config, self.global_domains, self.facts, apps)

    def router_conf(self, index: Index) -> str:
        """router.conf of a generation, the probe's number in its header: unchanged bytes need no reload."""
        ports = {self.settings.http_port, *(port for entry in index.apps.values() for port in entry.ports)}
        objects = self.store.paths.objects
        vhosts = {name: f"{objects}/{e.vhost}" for name, e in index.apps.items() if e.vhost}
        return self._renderer.http(_numbered(index.probe), index.probe, sorted(ports), vhosts)

    def stage_files(self, index: Index) -> dict[str, str]:
        """router.conf and, managed, nginx.conf of a generation."""
        files = {"router.conf": self.router_conf(index)}
        if not self.settings.is_host_mode:
            files["nginx.conf"] = self._renderer.main(index.number, self.generations.directory(index.number))
        return files

    def wrapper(self, directory: Any, apps: Mapping[str, Rendered]) -> dict[str, str]:
        """The files of the configuration that validates `apps` alone."""
        ports = {port for r in apps.values() for port in r.entry.ports} or {self.settings.http_port}
        vhosts = {name: f"{directory}/{r.entry.vhost}" for name, r in apps.items()}
        others = [name for name, owner in self._owners.items() if owner not in apps]
        return self._renderer.wrapper(directory, sorted(ports), vhosts, others)

    def listens(self, app: App) -> list[str]:
        """The arguments of `listen` of an app's ports."""
        return [listen for port in self._renderer.ports(app) for listen in self._renderer.listens(port, app)]

    @property
    def reloads_otherwise(self) -> bool:
        """Whether the command that reloads nginx is another: a wrong one is to be found by the change that sets it."""
        if self.base is None or not self.settings.is_host_mode:
            return False
        was = parse_globals(self.base.config, self.base.global_domains, self._tables)
        return was.get("reload-command") != self.settings.get("reload-command")

    def needs_reload(self, text: str) -> bool:
        """Whether nginx would read something else than it did: `text` is router.conf under the base's probe."""
        return self.base is None or text != self._base_conf()

    def render(self, name: str, texts: Texts, facts: Facts) -> Rendered:
        """An app as it would be served with these texts and facts; the candidate stays as it is.

        Raises:
            RouterError: it cannot be.
        """
        return self._render(name, texts, facts)

    def rendered(self, name: str) -> Rendered | None:
        """An app that an event was about, as it would be served."""
        return self._rendered.get(name)

    def is_new_template(self, name: str, rendered: Rendered) -> bool:
        """Whether an app has a template of its own (or a plugin's) that is not the one it is served by."""
        entry = self.base.apps.get(name) if self.base else None
        if rendered.template is None or entry is None:
            return rendered.template is not None
        texts, facts = self.generations.app_state(entry)
        try:
            return self._renderer.template_of(self.parse(name, texts), facts) != rendered.template
        except UsageProblem:
            return True  # a property that this version does not know any more

    def difference(self) -> list[str]:
        """What the next generation changes, file by file and vhost by vhost, as unified diffs."""
        import difflib

        pairs = [
            (step.path, step.old or "", step.new or "") if isinstance(step, Write) else (f"{step.old} -> {step.new}", "", "")
            for step in self.steps()
        ]
        for name, rendered in self.changed.items():
            entry = self.base.apps.get(name) if self.base else None
            was = self.generations.object(entry.vhost).decode(errors="replace") if entry and entry.vhost else ""
            now = rendered.vhost.decode(errors="replace") if rendered else ""
            if was != now:
                pairs.append((f"vhost of {name}", was, now))
        lines_of = []
        for path, old, new in pairs:
            found = list(difflib.unified_diff(old.splitlines(), new.splitlines(), path, path, lineterm="", n=2))
            lines_of += found or [path]
        return lines_of

    # private

    def _apply(self, event: Event) -> Applied:
        if event.args.get("problem"):
            raise as_error(event.args["problem"])  # what its asker met before the lock
        edit = reduce(event, self)
        if edit.moved:
            self._moves.append(edit.moved)
        kinds = []
        for name, texts in edit.apps.items():
            if event.action == "take-up" and self._emptied(name, texts):
                edit = replace(edit, notes=(*edit.notes, f"{name}: UPSTREAMS is empty now; its domains answer 502"))
            kind = self._put(name, texts, event.facts.get(name))
            kinds.append(kind)
        config = self.config if edit.config is None else edit.config
        domains = self.global_domains if edit.global_domains is None else edit.global_domains
        if (config, domains) != (self.config, self.global_domains):
            kinds.append(self._set_globals(config, domains))
        if event.action == "take-up-globals" and self.base is not None and self._renders_differently(self.base):
            kinds.append("structure")  # what was edited by hand was read when this was made
        kind = next((k for k in ("structure", "endpoints") if k in kinds), "nothing")
        return Applied(event, edit, kind, tuple(sorted(edit.apps)))

    def _put(self, name: str, texts: Texts | None, given: Mapping[str, Any] | None) -> str:
        before = self._entry(name)
        self._disk(name)
        self._texts[name] = texts
        self._owners = {d: a for d, a in self._owners.items() if a != name}
        if texts is None:
            self._rendered[name] = None
            return "structure" if before and before.vhost else "nothing"
        if given is None and before is None:
            # its asker saw another app of this name, so nobody asked plugins and DNS about this one
            raise Conflict(f"app {name} is not the one it was when this command began", hint="the same command again", app=name)
        old_texts, old_facts = self._before(name, before)
        facts = Facts.from_json(given) if given is not None else old_facts
        facts = replace(facts, resolved={**old_facts.resolved, **facts.resolved})
        rendered = self._render(name, texts, facts)
        self._rendered[name] = rendered
        self._owners |= dict.fromkeys(rendered.app.domains, name)
        if before is not None and before.vhost == rendered.entry.vhost:
            return "nothing"
        if before is None and not rendered.vhost:
            return "nothing"
        same = before is not None and _but_endpoints(old_texts) == _but_endpoints(texts)
        return "endpoints" if same and replace(facts, resolved={}) == replace(old_facts, resolved={}) else "structure"

    def _of_the_host(self, domain: str, ports: Iterable[int]) -> str:
        marks = tuple(f"server_name {domain} {port} " for port in ports)
        return next((has.split(" ", 3)[3] for has in self.facts.host_has if has.startswith(marks)), "")

    def _emptied(self, name: str, texts: Texts | None) -> bool:
        if texts is None or lines.entries(texts.get(UPSTREAMS, "")):
            return False
        return bool(lines.entries(self._before(name, self._entry(name))[0].get(UPSTREAMS, "")))

    def _render(self, name: str, texts: Texts, facts: Facts) -> Rendered:
        app = self.parse(name, texts)
        for domain in app.domains:
            owner = self._owners.get(domain)
            if owner is not None and owner != name:
                there = self.store.exists(owner)
                free = f"router apps:domains:remove {owner} {domain}" if there else f"router reconcile {owner}"
                raise Conflict(f"domain {domain} of app {name} belongs to app {owner}", hint=free, app=name)
            if place := self._of_the_host(domain, self._renderer.ports(app)):
                raise Conflict(f"domain {domain} of app {name} belongs to the host's own nginx", hint=f"its server_name: {place}", app=name)
        used = {e.address.host for e in app.endpoints if not e.address.is_literal}
        facts = replace(facts, resolved={host: ips for host, ips in sorted(facts.resolved.items()) if host in used})
        includes: dict[str, tuple[str, bytes]] = {}
        places: dict[str, list[Include]] = {_HTTP: [], _SERVER: [], _LOCATION: []}
        for place, source, text in [
            *((_SERVER, f"apps/{name}/{SNIPPETS}{file}", text) for file, text in app.snippets.items()),
            *((hook, f"{hook} of plugin {plugin}", text) for hook, plugin, text in facts.snippets),
        ]:
            data = text.encode(errors="surrogateescape")
            sha = hashlib.sha256(data).hexdigest()
            includes[sha] = (source, data)
            places[place].append(Include(str(self.generations.object_path(sha)), source))
        try:
            text = self._renderer.vhost(app, facts, places[_SERVER], http=places[_HTTP], location=places[_LOCATION])
        except RouterError as why:
            why.app = name
            raise
        vhost = text.encode(errors="surrogateescape")
        state = json.dumps({"texts": dict(texts), "facts": facts.as_json()}, sort_keys=True).encode()
        entry = Entry(
            state=hashlib.sha256(state).hexdigest(),
            vhost=hashlib.sha256(vhost).hexdigest() if vhost else None,
            generation=0,
            domains=tuple(app.domains),
            ports=tuple(sorted(self._renderer.ports(app))) if vhost and app.served_domains else (),
            objects=tuple(sorted(includes)) if vhost else (),
        )
        return Rendered(app, texts, facts, entry, vhost, includes if vhost else {}, state, self._renderer.template_of(app, facts))

    def _set_globals(self, config: str, domains: str) -> str:
        settings = parse_globals(config, domains, self._tables)
        was, self.config, self.global_domains = self.settings, config, domains
        self.settings = settings
        if (settings.proxy, settings.nginx) == (was.proxy, was.nginx):  # what plugins make of their keys are facts
            return "nothing"
        self.facts = self._host_facts(settings, self.base.facts if self.base else None)
        self._renderer = Renderer(self.store.paths.root, settings, self.facts)
        self._render_all()
        return "structure"

    def _render_all(self) -> None:
        names = {*(self.base.apps if self.base else ()), *self._rendered}
        for name in sorted(names):
            if name in self._rendered:
                rendered = self._rendered[name]
                if rendered is not None:
                    self._rendered[name] = self._render(name, rendered.texts, rendered.facts)
            else:
                assert self.base is not None
                self._rendered[name] = self._render(name, *self.generations.app_state(self.base.apps[name]))

    def _renders_differently(self, base: Index) -> bool:
        # what the host's own http block says decides which defaults a vhost has to repeat
        if base.facts.ipv6 != self.facts.ipv6 or base.facts.host_has != self.facts.host_has:
            return True
        if base.config == self.config:
            return False
        was = parse_globals(base.config, base.global_domains, self._tables)
        now = self.settings
        return (was.proxy, was.nginx) != (now.proxy, now.nginx)

    def _entry(self, name: str) -> Entry | None:
        if name in self._rendered:
            rendered = self._rendered[name]
            return rendered.entry if rendered else None
        return self.base.apps.get(name) if self.base else None

    def _before(self, name: str, entry: Entry | None) -> tuple[Texts, Facts]:
        rendered = self._rendered.get(name)
        if rendered is not None:
            return rendered.texts, rendered.facts
        try:
            return self.generations.app_state(entry) if entry is not None else ({}, Facts())
        except StateCorrupt:
            return {}, Facts()  # its object is lost: the directory alone says what the app is

    def _disk(self, name: str) -> Texts | None:
        if name not in self._on_disk:
            self._on_disk[name] = self.store.texts(name)
        return self._on_disk[name]

    def _base_conf(self) -> str:
        assert self.base is not None
        try:
            return (self.generations.directory(self.base.number) / "router.conf").read_text()
        except FileNotFoundError:
            return ""

    def _save(self) -> tuple[Any, ...]:
        return (
            dict(self._texts),
            list(self._moves),
            dict(self._rendered),
            dict(self._owners),
            self.config,
            self.global_domains,
            self.settings,
            self.facts,
            self._renderer,
        )

    def _restore(self, saved: tuple[Any, ...]) -> None:
        self._texts, self._moves, self._rendered, self._owners = saved[:4]
        self.config, self.global_domains, self.settings, self.facts, self._renderer = saved[4:]


def _same(entry: Entry, other: Entry | None) -> bool:
    return other is not None and replace(entry, generation=0) == replace(other, generation=0)


def _but_endpoints(texts: Texts) -> dict[str, str]:
    kept = {path: text for path, text in texts.items() if path not in (UPSTREAMS, APP_TOML)}
    # counts say how many endpoints there are to be; they render nothing
    from .events import set_key

    toml = texts.get(APP_TOML, "")
    if "count" in toml or "locked" in toml:
        try:
            toml = set_key(set_key(toml, "", "count", None), "", "locked", None)
        except (ValueError, UsageProblem):
            return {**kept, APP_TOML: toml}
    return {**kept, APP_TOML: toml.strip()}


def _numbered(probe: str) -> int:
    return int(probe.partition("-")[0])
