"""The next generation in the making: the base with events applied, nothing written.

It is made twice for each change: in the asking command (what would come of it, what hooks are to be asked about) and
under the host lock (where it counts).  An event that fails leaves it as it was.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import claims, differing, health, lines
from .confinement import Own
from .errors import Conflict, StateCorrupt, UsageProblem, as_error
from .events import Edit, Event, reduce
from .generations import Generations
from .index import Index
from .model import UPSTREAMS, App, Entry, Facts, Globals, HostFacts, Tables, Texts, parse_app, parse_globals
from .owners import Confined
from .recent import Recent
from .render import Renderer
from .rendering import Rendered, render
from .store import Step, Store

#: What this process parsed and rendered of late, by app: what an asker finds before it waits for the host lock it need not
#: find again under it, where everybody waits.
_parsed: Recent[str, list[tuple[Texts, Tables, App]]] = Recent(16)
_rendered: Recent[str, list[tuple[tuple[Any, ...], Rendered]]] = Recent(16)
_MOST_OF_ONE = 3


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
        if base is not None and not base.is_of(store.paths.root):
            base = _without_lost(base, generations)  # a copy of a root that was at work may lack what came meanwhile
        self.store, self.generations, self.base = store, generations, base
        self.tables = tables
        self._host_facts = facts
        self.config, self.global_domains = store.globals()
        self._old_globals = (self.config, self.global_domains)
        self._on_disk: dict[str, Texts | None] = {}
        self._texts: dict[str, Texts | None] = {}
        self._moves: list[tuple[str, str]] = []
        self._rendered: dict[str, Rendered | None] = {}
        self._owners: dict[str, str] = base.owners if base else {}
        self.settings = parse_globals(self.config, self.global_domains, self.tables)
        self.problem: UsageProblem | None = None  # of the settings as they stand: a change of these is the way out
        try:
            self.facts = facts(self.settings, base.facts if base else None)
        except UsageProblem as why:
            if base is None:
                raise
            self.facts, self.problem = base.facts, why
        self.renderer = Renderer(store.paths.root, self.settings, self.facts)
        if base and self._renders_differently(base):
            self._render_all()

    # what events look at (events.World)

    def texts(self, app: str) -> Texts | None:
        """The texts of an app, with what earlier events made of them."""
        return self._texts[app] if app in self._texts else self._disk(app)

    def parse(self, app: str, texts: Texts) -> App:
        """The app these texts describe."""
        for known_texts, known_tables, known in _parsed.get(app) or ():
            if known_tables is self.tables and known_texts == texts:
                return known
        found = parse_app(app, texts, self.tables)
        # a copy of the texts: who asks goes on to change them
        _parsed.put(app, [(dict(texts), self.tables, found), *(_parsed.get(app) or ())[: _MOST_OF_ONE - 1]])
        return found

    def names(self) -> list[str]:
        """Every app there is."""
        there = {n for n in self.store.names() if self._texts.get(n, True) is not None}
        return sorted(there | {n for n, texts in self._texts.items() if texts is not None})

    def unhealthy(self, app: str) -> Mapping[str, str]:
        """The endpoints of an app that fail their checks, and why."""
        return self._before(app, self._entry(app))[1].unhealthy

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
        taken_up = {event.app for event in events if event.action in ("take-up", "restore", "import")}
        if len(taken_up) > 1:
            self._owners = {name: app for name, app in self._owners.items() if app not in taken_up}
        try:
            return [self._apply(event) for event in events]
        except BaseException:
            self._restore(before)
            raise

    @property
    def is_edited(self) -> bool:
        """Whether router.toml and the global DOMAINS are what somebody made of them by hand since the base was made, and no event."""
        return self.base is not None and (self.base.config, self.base.global_domains) != self._old_globals == self.globals

    @property
    def globals(self) -> tuple[str, str]:
        """The texts of router.toml and of the global DOMAINS, with what events made of them."""
        return self.config, self.global_domains

    @property
    def changed(self) -> dict[str, Rendered | None]:
        """The apps whose configuration or texts are not the base's; None: gone."""
        base = self.base.apps if self.base else {}
        return {
            name: rendered
            for name, rendered in sorted(self._rendered.items())
            if (rendered is None and name in base) or (rendered is not None and not differing.is_same(rendered.entry, base.get(name)))
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
        """Whether texts change; nginx may read the same as before, and the other way round (`needs_reload`)."""
        if self.base is None or self.changed or (self.config, self.global_domains) != (self.base.config, self.base.global_domains):
            return True
        return bool(self.steps())  # a hand edit that this takes back: what is served stays, the file does not

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

    def listens(self, app: App) -> list[str]:
        """The arguments of `listen` of an app's ports."""
        return [listen for port in self.renderer.ports(app) for listen in self.renderer.listens(port, app)]

    def render(self, name: str, texts: Texts, facts: Facts) -> Rendered:
        """An app as it would be served with these texts and facts; the candidate stays as it is.

        Raises:
            RouterError: it cannot be.
        """
        return self._render(name, texts, facts)

    @property
    def looked_at(self) -> Mapping[str, Rendered | None]:
        """The apps that events were about, changed or not."""
        return self._rendered

    @property
    def moves_apps(self) -> bool:
        """Whether an app gets another name."""
        return bool(self._moves)

    def rendered(self, name: str) -> Rendered | None:
        """An app that an event was about, as it would be served."""
        return self._rendered.get(name)

    def served(self, name: str) -> tuple[Texts, Facts]:
        """What an app is served by in the base; nothing where it is not, or where that is lost."""
        return self._served(self.base.apps.get(name) if self.base else None)

    # private

    def _apply(self, event: Event) -> Applied:
        if event.args.get("problem"):
            raise as_error(event.args["problem"])  # what its asker met before the lock
        edit = reduce(event, self)
        if edit.moved:
            self._moves.append(edit.moved)
        kinds = []
        had = {name: self._claims(name) for name in edit.apps}
        for name, texts in edit.apps.items():
            if event.action == "take-up" and self._emptied(name, texts):
                edit = replace(edit, notes=(*edit.notes, f"{name}: UPSTREAMS is empty now; its domains answer 502"))
            kind = self._put(name, texts, event.facts.get(name))
            kinds.append(kind)
            self._refuse_claims(event, name, had[edit.moved[0] if edit.moved else name])
        kinds += [self._mark(name, unhealthy) for name, unhealthy in edit.unhealthy.items()]
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
        for domain in before.domains if before else ():
            if self._owners.get(domain) == name:
                del self._owners[domain]
        if texts is None:
            self._rendered[name] = None
            return "structure" if before and before.vhost else "nothing"
        if given is None and before is None:
            # its asker saw another app of this name, so nobody asked plugins and DNS about this one
            raise Conflict(f"app {name} is not the one it was when this command began", hint="the same command again", app=name)
        old_texts, old_facts = self._before(name, before)
        facts = Facts.from_json(given) if given is not None else old_facts
        # which endpoints are unhealthy is found out by the watch alone, whoever asks for whatever else
        known = old_facts if before is not None else self._facts_before_move(name)
        facts = replace(facts, resolved={**old_facts.resolved, **facts.resolved}, unhealthy=known.unhealthy)
        rendered = self._render(name, texts, facts)
        self._rendered[name] = rendered
        self._owners |= dict.fromkeys(rendered.app.domains, name)
        if before is not None and before.vhost == rendered.entry.vhost:
            # which instances there are, and who gets them, may change though nobody of them gets requests: all fail their checks
            moves = (before.routes, before.canary) != (rendered.entry.routes, rendered.entry.canary)
            return "endpoints" if moves or differing.endpoints(old_texts) != differing.endpoints(texts) else "nothing"
        if before is None and not rendered.vhost:
            return "nothing"
        same = before is not None and differing.but_endpoints(old_texts) == differing.but_endpoints(texts)
        return "endpoints" if same and differing.but_endpoints_of(facts) == differing.but_endpoints_of(old_facts) else "structure"

    def _mark(self, name: str, unhealthy: Mapping[str, str]) -> str:
        """Which of an app's endpoints fail their checks, of what is served: what its directory holds by now is another change."""
        before = self._entry(name)
        if before is None:
            raise Conflict(f"app {name} is not served any more", app=name)
        texts, facts = self._before(name, before)
        rendered = self._rendered[name] = self._render(name, texts, replace(facts, unhealthy=unhealthy))
        is_same = (before.vhost, before.routes) == (rendered.entry.vhost, rendered.entry.routes)
        return "nothing" if is_same else "endpoints"

    def _facts_before_move(self, name: str) -> Facts:
        came_from = self._came_from(name)
        entry = self.base.apps.get(came_from) if self.base and came_from != name else None
        return self._before(came_from, entry)[1] if entry else Facts()

    def confined(self, name: str) -> Confined:
        """What of an app's directory others than the host's own people may write."""
        return self.store.confined(self._came_from(name))

    def own(self, rendered: Rendered) -> Own:
        """What a confined app's files may speak of."""
        values = self.renderer.values(rendered.app, rendered.facts, ())
        return Own.of(values, [str(self.generations.object_path(sha)) for sha in rendered.includes])

    def _came_from(self, name: str) -> str:
        came_from = {new: old for old, new in self._moves}
        while name in came_from:
            name = came_from[name]
        return name

    def _claims(self, name: str) -> claims.Claims:
        """What an app has before an event."""
        entry = self._entry(name)
        if entry is None:
            return claims.Claims()
        try:
            found = claims.Claims.of(self.parse(name, self._before(name, entry)[0]))
        except UsageProblem:  # a property that this version does not know any more
            found = claims.Claims()
        return replace(found, domains=frozenset(entry.domains))

    def _refuse_claims(self, event: Event, name: str, had: claims.Claims) -> None:
        rendered, named = self._rendered[name], claims.named_by(event)
        if rendered is None or named is None or not (new := claims.Claims.of(rendered.app) - had - named):
            return
        if confined := self.confined(name):
            mine = {name, self._came_from(name)}
            before = self.base.owners if self.base else {}
            others = {domain: app for domain, app in {**before, **self._owners}.items() if app not in mine}
            claims.refuse(name, new, confined, others, self.released(besides=name), time.time())

    def released(self, besides: str = "") -> claims.Released:
        """The domains that apps let go of lately, or do so now, and that no other has (`besides` this one)."""
        now, base = time.time(), self.base
        if base is None:
            return {}
        gone = {domain: (name, now) for name in self._rendered if name in base.apps for domain in base.apps[name].domains}
        taken = {domain for name, r in self._rendered.items() if r is not None and name != besides for domain in r.entry.domains}
        lately = {domain: was for domain, was in base.released.items() if now - was[1] < claims.RESTS}
        return {domain: was for domain, was in {**lately, **gone}.items() if domain not in taken}

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
            if place := self._of_the_host(domain, self.renderer.ports(app)):
                raise Conflict(f"domain {domain} of app {name} belongs to the host's own nginx", hint=f"its server_name: {place}", app=name)
        used = {e.address.host for e in app.endpoints if not e.address.is_literal}
        facts = replace(
            facts,
            resolved={host: ips for host, ips in sorted(facts.resolved.items()) if host in used},
            unhealthy=health.still_out(facts, app, self.tables, self.settings.plugins),
        )
        made_of = (self.store.paths, self.settings, self.facts)
        for known_of, known in _rendered.get(name) or ():
            if known.app is app and known.facts == facts and known_of == made_of:
                return known
        rendered = render(self.renderer, self.store.paths.objects, app, texts, facts)
        _rendered.put(name, [(made_of, rendered), *(_rendered.get(name) or ())[: _MOST_OF_ONE - 1]])
        return rendered

    def _set_globals(self, config: str, domains: str) -> str:
        settings = parse_globals(config, domains, self.tables)
        was, self.config, self.global_domains = self.settings, config, domains
        self.settings = settings
        if (settings.proxy, settings.nginx) == (was.proxy, was.nginx):  # what plugins make of their keys are facts
            return "nothing"
        self.facts, self.problem = self._host_facts(settings, self.base.facts if self.base else None), None
        self.renderer = Renderer(self.store.paths.root, settings, self.facts)
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
        if not base.is_of(self.store.paths.root):
            return True  # logs and snippets are named by absolute paths
        # what the host's own http block says decides which defaults a vhost has to repeat
        if base.facts.ipv6 != self.facts.ipv6 or base.facts.host_has != self.facts.host_has:
            return True
        if base.config == self.config:
            return False
        was = base.settings(self.tables)
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
        return self._served(entry)

    def _served(self, entry: Entry | None) -> tuple[Texts, Facts]:
        try:
            return self.generations.app_state(entry) if entry is not None else ({}, Facts())
        except StateCorrupt:
            return {}, Facts()  # its object is lost: the directory alone says what the app is

    def _disk(self, name: str) -> Texts | None:
        if name not in self._on_disk:
            self._on_disk[name] = self.store.texts(name)
        return self._on_disk[name]

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
            self.renderer,
            self.problem,
        )

    def _restore(self, saved: tuple[Any, ...]) -> None:
        self._texts, self._moves, self._rendered, self._owners = saved[:4]
        self.config, self.global_domains, self.settings, self.facts, self.renderer, self.problem = saved[4:]


def _without_lost(base: Index, generations: Generations) -> Index:
    return replace(base, apps={name: entry for name, entry in base.apps.items() if entry.inline or generations.is_intact(entry.state)})
