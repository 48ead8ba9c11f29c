"""Requested changes, and what each makes of the texts it is applied to.

`reduce` is pure: it is given the texts and the owners of domains and answers with new texts.  It runs twice for each
change: in the asking command (to know what the hooks are to be asked about) and under the host lock (where it counts).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from . import canaries, lines
from .errors import Conflict, NotFound, UsageProblem, nearest
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, App, Facts, Texts, parse_toml
from .names import WEB, domain, endpoint_line
from .properties import lookup
from .tomltext import set_key
from .upstreams import addresses as all_addresses
from .upstreams import edited, endpoint_lines, let_in, swapped


@dataclass(frozen=True)
class Event:
    """One requested change; plain values, so that it can wait in a file."""

    action: str
    app: str | None
    args: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # app -> Facts.as_json()

    def as_json(self) -> dict[str, Any]:
        """Plain values for a file."""
        return {"action": self.action, "app": self.app, "args": dict(self.args), "facts": dict(self.facts)}

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Event:
        """The reverse of `as_json`."""
        return cls(raw["action"], raw["app"], raw["args"], raw["facts"])


class World(Protocol):
    """What a change may look at."""

    def texts(self, app: str) -> Texts | None:
        """The texts of an app as its directory holds them now; None where there is no such app."""

    def parse(self, app: str, texts: Texts) -> App:
        """The app these texts describe."""

    def names(self) -> list[str]:
        """Every app there is."""

    def unhealthy(self, app: str) -> Mapping[str, str]:
        """The endpoints of an app that fail their checks, and why."""

    @property
    def owners(self) -> Mapping[str, str]:
        """Domain -> the app that has it."""

    @property
    def config(self) -> str:
        """The text of router.toml."""

    @property
    def global_domains(self) -> str:
        """The text of the global DOMAINS."""


@dataclass(frozen=True)
class Edit:
    """What a change makes of the world."""

    apps: Mapping[str, Texts | None] = field(default_factory=dict)  # None: the app goes
    config: str | None = None
    global_domains: str | None = None
    moved: tuple[str, str] | None = None  # an app's directory: old name, new name
    notes: tuple[str, ...] = ()
    answer: Mapping[str, Any] = field(default_factory=dict)
    unhealthy: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # app -> endpoints that get no requests, and why


def reduce(event: Event, world: World) -> Edit:
    """What `event` makes of `world`.

    Raises:
        RouterError: the change cannot be; nothing follows from it.
    """
    action = _ACTIONS.get(event.action)
    if action is None:
        # an event waits in a file, and the one who takes it may be an older program
        raise UsageProblem(f"unknown change '{event.action}'", app=event.app)
    return action(event, world)


def require(world: World, app: str) -> Texts:
    """The texts of an app that must exist.

    Raises:
        NotFound: it does not; the nearest name is said.
    """
    texts = world.texts(app)
    if texts is None:
        raise NotFound(f"there is no app '{app}'{nearest(app, world.names())}", hint="router apps:list", app=app)
    return texts


def _create(event: Event, world: World) -> Edit:
    assert event.app is not None
    if (there := world.texts(event.app)) is not None:
        return Edit(apps={event.app: there}, notes=(f"app {event.app} exists already",))
    if event.args.get("existed"):
        raise Conflict(f"app {event.app} was there, and is not any more", hint="the same command again", app=event.app)
    names, notes = _free(event.args.get("domains", []), world.owners)
    texts = {DOMAINS: lines.add("", names), UPSTREAMS: ""}
    return Edit(apps={event.app: texts}, notes=tuple(notes))


def _free(names: Sequence[str], owners: Mapping[str, str]) -> tuple[list[str], list[str]]:
    # a copied name that somebody has is no reason to refuse the app
    wanted = list(dict.fromkeys(names))
    notes = [f"{name} belongs to app {owners[name]}: left out" for name in wanted if name in owners]
    return [name for name in wanted if name not in owners], notes


def _refuse_taken(world: World, new: str, app: str) -> None:
    if world.texts(new) is not None:
        raise Conflict(f"app {new} exists already", hint=f"another name; what that is: router apps:report {new}", app=app)


def _destroy(event: Event, world: World) -> Edit:
    assert event.app is not None
    require(world, event.app)
    return Edit(apps={event.app: None})


def _rename(event: Event, world: World) -> Edit:
    assert event.app is not None
    old, new = event.app, event.args["new"]
    texts = dict(require(world, old))
    _refuse_taken(world, new, old)
    instead = {f"{old}.{g}": f"{new}.{g}" for g in event.args["globals"]}
    texts[DOMAINS] = lines.edit(texts.get(DOMAINS, ""), lambda entry: instead.get(_domain(entry), entry))
    return Edit(apps={old: None, new: texts}, moved=(old, new))


def _clone(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    world.parse(event.app, texts)
    new = event.args["new"]
    _refuse_taken(world, new, event.app)
    made = _create(Event("create", new, event.args), world)
    created = dict(made.apps[new] or {})
    toml = texts.get(APP_TOML, "")
    if toml:
        for key in ("locked", "count", "domains"):
            toml = set_key(toml, "", key, None)
        for key in canaries.KEYS:
            toml = set_key(toml, canaries.TABLE, key, None)
        if toml.strip():
            created[APP_TOML] = toml
    created |= {path: text for path, text in texts.items() if path.startswith(SNIPPETS) or path == TEMPLATE}
    return Edit(apps={new: created}, notes=made.notes)


def _domains(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    text = texts.get(DOMAINS, "")
    verb, names = event.args["verb"], event.args["names"]
    left_out: list[str] = []
    if event.args.get("reset"):
        others = {d: a for d, a in world.owners.items() if a != event.app}
        verb = "set"
        names, left_out = _free(event.args["reset"], others)
    new, notes = _edit_names(text, verb, names, f"app {event.app}")
    texts[DOMAINS] = new
    return Edit(apps={event.app: texts}, notes=(*left_out, *notes))


def _domain(entry: str) -> str:
    # a hand-edited line may be in capitals or in another script; one that is no domain at all is only ever itself
    try:
        return domain(entry)
    except UsageProblem:
        return entry.lower()


def _edit_names(text: str, verb: str, names: Sequence[str], where: str) -> tuple[str, list[str]]:
    have = {_domain(entry) for _, entry in lines.entries(text)}
    notes: list[str] = []
    if verb == "add":
        new = [n for n in dict.fromkeys(names) if n not in have]
        notes = [f"{n} is there already on {where}" for n in dict.fromkeys(names) if n in have]
        return lines.add(text, new), notes
    if verb == "remove":
        notes = [f"{n} is not on {where}" for n in dict.fromkeys(names) if n not in have]
        return lines.keep(text, lambda entry: _domain(entry) not in names), notes
    kept = lines.keep(text, lambda entry: _domain(entry) in names) if verb == "set" else lines.keep(text, lambda _: False)
    if verb == "set":
        kept = lines.add(kept, [n for n in dict.fromkeys(names) if n not in have])
    if kept == text:
        notes = [f"nothing to change on {where}"]
    return kept, notes


def _switch_domains(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    app = world.parse(event.app, texts)
    enabled = bool(event.args["enabled"])
    if app.domains_enabled == enabled:
        return Edit(apps={event.app: texts}, notes=(f"the domains of {event.app} are {'enabled' if enabled else 'disabled'} already",))
    texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "", "domains", None if enabled else "disabled")
    return Edit(apps={event.app: texts})


def _upstreams(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    before = world.parse(event.app, texts)
    text = texts.get(UPSTREAMS, "")
    wanted = [endpoint_line(line) for line in event.args.get("endpoints", [])]
    new, notes = edited(text, event.args["verb"], wanted, event.args, event.app)
    texts[UPSTREAMS] = new
    if canaries.of_app(before):
        after = world.parse(event.app, texts)
        notes += canaries.left(before, after, Facts(unhealthy=world.unhealthy(event.app)))
        texts = texts if canaries.of_app(after) else canaries.without_share(texts)
    answer = {"endpoints": [e.address.text for e in wanted]}
    if event.args["verb"] == "remove":
        answer["left"] = [a for a in answer["endpoints"] if a in all_addresses(new)]
    return Edit(apps={event.app: texts}, notes=tuple(notes), answer=answer)


def _deploy(event: Event, world: World) -> Edit:
    assert event.app is not None
    name = event.app
    notes: tuple[str, ...] = ()
    texts = world.texts(name)
    if texts is not None and not event.args["existed"]:
        raise Conflict(f"app {name} was created during the checks", hint="deploy again", app=name)
    if texts is None and event.args.get("create"):
        made = _create(Event("create", name, event.args), world)
        texts, notes = made.apps[name], made.notes
    if texts is None:
        if event.args["existed"]:
            raise Conflict(f"app {name} was destroyed during the checks", app=name)
        texts = require(world, name)
    texts = dict(texts)
    app = world.parse(name, texts)
    canary = event.args.get("canary")
    if (canary or {}).get("verb") != canaries.ABORT:
        refuse_locked(app)
    if canary is None:
        canaries.refuse_under_way(app)
        texts = canaries.without_aborted(texts)
    elif canary["verb"] == canaries.ABORT:
        canaries.refuse_alone(app, Facts(unhealthy=world.unhealthy(name)))
    text = texts.get(UPSTREAMS, "")
    retired: list[str] = []
    for process, addresses in event.args["processes"].items():
        is_changed = endpoint_lines(text, process) != sorted(set(event.args["expected"][process]))
        before, (text, left) = text, swapped(text, process, addresses)
        if is_changed and text != before:  # what it would make may be there by now: another command asked for the same and was killed
            raise Conflict(f"the endpoints of {name} ({process}) were changed during the checks", hint="deploy again", app=name)
        retired += left
        # requests are asked for them, and an exit 0 says that they get some; what an earlier version asks for names none
        text, lifted = let_in(text, process, event.args.get("named", {}).get(process, ()))
        notes = (*notes, *lifted, *_nowhere(app, process, addresses))
    texts[UPSTREAMS] = text
    if canary is not None:
        texts = canaries.flagged(app, texts, canary, event.args["processes"])
        text = texts[UPSTREAMS]
    for process, count in event.args.get("counts", {}).items():
        if app.counts.get(process) != count:
            texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "count", process, count)
    still = all_addresses(text)
    return Edit(apps={name: texts}, notes=notes, answer={"retired": [a for a in dict.fromkeys(retired) if a not in still]})


def refuse_locked(app: App) -> None:
    """Make sure that the instances of an app may be exchanged.

    Raises:
        Conflict: it is locked; the reason is said.
    """
    if app.locked is not None:
        raise Conflict(f"app {app.name} is locked: {app.locked}", hint=f"router apps:unlock {app.name}", app=app.name)


def _nowhere(app: App, process: str, addresses: Sequence[str]) -> list[str]:
    """What is said of the first instances of a process that no port leads to: its name may be misspelt."""
    served = {port.process for port in app.ports} or {WEB}
    if not addresses or process in served or app.of_process(process):
        return []
    more = f"router ports:add {app.name} http:PORT:{process}"
    return [f"no port of {app.name} leads to {process}{nearest(process, sorted(served))}; unless a template or snippet names it: {more}"]


def _ports(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    app = world.parse(event.app, texts)
    have = [str(p) for p in app.ports]
    verb, given = event.args["verb"], list(dict.fromkeys(event.args["ports"]))
    notes: list[str] = []
    if verb == "add":
        notes = [f"{p} is there already on {event.app}" for p in given if p in have]
        new = have + [p for p in given if p not in have]
        if not have and new and "http" not in new:
            notes.append(f"{event.app} is not served on the global port any more; to have that too: router ports:add {event.app} http")
    elif verb == "remove":
        gone = {h for h in have for p in given if h == p or (p.isdigit() and h.split(":")[1:2] == [p])}
        notes = [f"{p} is not on {event.app}" for p in given if not any(h == p or (p.isdigit() and h.split(":")[1:2] == [p]) for h in have)]
        new = [h for h in have if h not in gone]
    else:
        new = given if verb == "set" else []
        notes = [f"the ports of {event.app} are these already"] if new == have else []
    if new != have:
        texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "", "ports", new or None)
    return Edit(apps={event.app: texts}, notes=tuple(notes))


def _property(event: Event, world: World) -> Edit:
    table, key, value = event.args["table"], event.args["key"], event.args["value"]
    if event.app is None:
        new = _set_property(world.config, "router.toml", table, key, value)
        return Edit(config=new) if new is not None else Edit(notes=_unchanged(key, value))
    texts = dict(require(world, event.app))
    world.parse(event.app, texts)
    new = _set_property(texts.get(APP_TOML, ""), f"apps/{event.app}/{APP_TOML}", table, key, value)
    if new is None:
        return Edit(apps={event.app: texts}, notes=_unchanged(key, value))
    texts[APP_TOML] = new
    return Edit(apps={event.app: texts})


def _set_property(text: str, path: str, table: str, key: str, value: str | None) -> str | None:
    # None: it has this value already, however the file spells it (32 or "32")
    have = parse_toml(path, text).get(table, {})
    if not isinstance(have, dict):
        raise UsageProblem(f"{path}: {table} is a table")
    row = lookup(table, key)
    is_there = key not in have if value is None else key in have and row.parse(have[key]) == row.parse(value)
    return None if is_there else set_key(text, table, key, value)


def _snippets(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    name, path = event.args["name"], f"{SNIPPETS}{event.args['name']}.conf"
    notes: tuple[str, ...] = ()
    if event.args["verb"] == "add":
        notes = (f"snippet {name} of {event.app} is this already",) if texts.get(path) == event.args["text"] else ()
        texts[path] = event.args["text"]
    elif texts.pop(path, None) is None:
        notes = (f"{event.app} has no snippet {name}",)
    return Edit(apps={event.app: texts}, notes=notes)


def _plugin_key(event: Event, world: World) -> Edit:
    """KEY of a plugin's table in router.toml or an app.toml, or of a process's table in that.

    Whoever asks has checked the value, and no KEY means the table.
    """
    table, key, value, process = event.args["table"], event.args["key"], event.args["value"], event.args.get("process", "")
    texts = dict(require(world, event.app)) if event.app else {}
    old = texts.get(APP_TOML, "") if event.app else world.config
    have = parse_toml(f"apps/{event.app}/{APP_TOML}" if event.app else "router.toml", old, event.app)
    if key is None:
        new = set_key(old, "", table, None)
        notes: tuple[str, ...] = ()
    else:
        own = have.get(table, {}).get(process, {}) if process else have.get(table, {})
        now = own.get(key)
        same = (type(now), now) == (type(value), value)
        new = old if same else set_key(old, table, key, value, inner=process)
        notes = _unchanged(key, value) if same else ()
    if event.app is None:
        return Edit(config=new, notes=notes)
    if new != old:
        texts[APP_TOML] = new
    return Edit(apps={event.app: texts}, notes=notes)


def _unchanged(key: str, value: Any) -> tuple[str, ...]:
    return (f"{key} is {'unset' if value is None else value} already",)


def _health(event: Event, world: World) -> Edit:
    """Which endpoints fail their checks; the files are not even looked at: whose they are has no say in it."""
    assert event.app is not None
    return Edit(unhealthy={event.app: dict(event.args["endpoints"])})


def _lock(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    reason = event.args["reason"]
    if world.parse(event.app, texts).locked == reason:
        return Edit(apps={event.app: texts}, notes=(f"{event.app} is {'unlocked' if reason is None else 'locked'} already",))
    texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "", "locked", reason)
    return Edit(apps={event.app: texts})


def _global_domains(event: Event, world: World) -> Edit:
    wildcard = next((n for n in event.args["names"] if n.startswith("*.") and event.args["verb"] in ("add", "set")), None)
    if wildcard:
        raise UsageProblem(f"{wildcard} cannot be global: each new app gets APP.<each global domain>")
    new, notes = _edit_names(world.global_domains, event.args["verb"], event.args["names"], "the global list")
    return Edit(global_domains=new, notes=tuple(notes))


def _restore(event: Event, world: World) -> Edit:
    """The texts of an earlier generation: endpoints, the lock and the counts stay as they are unless asked for."""
    assert event.app is not None
    then: dict[str, str] = dict(event.args["texts"])
    now = world.texts(event.app)
    app = world.parse(event.app, now) if now is not None else None
    if event.args.get("endpoints"):
        if app is not None and sorted(_lines_of(now)) != sorted(_lines_of(then)):
            refuse_locked(app)
        if sorted(_lines_of(now)) != sorted(event.args["expected"]):
            raise Conflict(f"the endpoints of {event.app} were changed during the checks", hint="roll back again", app=event.app)
    else:
        then[UPSTREAMS] = (now or {}).get(UPSTREAMS, "")
    toml = then.get(APP_TOML, "")
    had = parse_toml(APP_TOML, toml)
    for key, value in (("locked", app.locked if app else None), ("count", dict(app.counts) if app and app.counts else None)):
        if had.get(key) != value:
            toml = set_key(toml, "", key, value)
            then[APP_TOML] = toml
    if not event.args.get("endpoints"):
        then = canaries.kept(app, then)
    # files that came since go: an empty app.toml says nothing, a snippet that was not there must not stay
    return Edit(apps={event.app: then})


def _import(event: Event, world: World) -> Edit:
    """The texts that an archive holds, whatever the app was before.

    `endpoints` false: it keeps its own, and what its app.toml says of a canary among these.
    """
    assert event.app is not None
    now = world.texts(event.app)
    texts: dict[str, str] = {DOMAINS: "", UPSTREAMS: "", **event.args["texts"]}
    if not event.args["endpoints"]:
        app = None
        with contextlib.suppress(UsageProblem):  # an app that cannot be read may be what the archive is to mend
            app = world.parse(event.app, now) if now is not None else None
        texts = canaries.kept(app, {**texts, UPSTREAMS: (now or {}).get(UPSTREAMS, "")})
    return Edit(apps={event.app: texts})


def _import_globals(event: Event, world: World) -> Edit:
    return Edit(config=event.args["config"], global_domains=event.args["global_domains"])


def _take_up(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = world.texts(event.app)
    if texts is None and not event.args.get("may_be_gone"):
        require(world, event.app)
    return Edit(apps={event.app: texts})


def _take_up_globals(event: Event, world: World) -> Edit:
    return Edit()


def _lines_of(texts: Texts | None) -> list[str]:
    return [entry for _, entry in lines.entries((texts or {}).get(UPSTREAMS, ""))]


_ACTIONS: Mapping[str, Callable[[Event, World], Edit]] = {
    "create": _create,
    "destroy": _destroy,
    "rename": _rename,
    "clone": _clone,
    "domains": _domains,
    "domains-switch": _switch_domains,
    "upstreams": _upstreams,
    "deploy": _deploy,
    "scale": _deploy,
    "ports": _ports,
    "property": _property,
    "snippets": _snippets,
    "plugin-key": _plugin_key,
    "health": _health,
    "lock": _lock,
    "global-domains": _global_domains,
    "restore": _restore,
    "import": _import,
    "import-globals": _import_globals,
    "take-up": _take_up,
    "take-up-globals": _take_up_globals,
}
