"""Requested changes, and what each makes of the texts it is applied to.

`reduce` is pure: it is given the texts and the owners of domains and answers with new texts.  It runs twice for each
change: in the asking command (to know what the hooks are to be asked about) and under the host lock (where it counts).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from . import lines
from .errors import Conflict, NotFound, nearest
from .model import APP_TOML, DOMAINS, SNIPPETS, TEMPLATE, UPSTREAMS, App, Texts
from .names import Endpoint, endpoint_line


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


def reduce(event: Event, world: World) -> Edit:
    """What `event` makes of `world`.

    Raises:
        RouterError: the change cannot be; nothing follows from it.
    """
    return _ACTIONS[event.action](event, world)


def require(world: World, app: str) -> Texts:
    """The texts of an app that must exist.

    Raises:
        NotFound: it does not; the nearest name is said.
    """
    texts = world.texts(app)
    if texts is None:
        raise NotFound(f"there is no app '{app}'{nearest(app, world.names())}", hint="router apps:list", app=app)
    return texts


def edit_toml(text: str, edit: Callable[[Any], None]) -> str:
    """`text` with `edit` applied to its document; comments and order survive."""
    import tomlkit  # 10 ms, and only changes of app.toml and router.toml need it

    document = tomlkit.parse(text)
    edit(document)
    return tomlkit.dumps(document)


def set_key(text: str, table: str, key: str, value: Any) -> str:
    """`text` with `key` of `table` ("": top level) set, or unset where `value` is None."""

    def edit(document: Any) -> None:
        import tomlkit

        if not table:
            if value is None:
                document.pop(key, None)
            else:
                document[key] = value
            return
        if value is not None:
            if table not in document:
                document[table] = tomlkit.table()
            document[table][key] = value
        elif table in document:
            document[table].pop(key, None)
            if not document[table]:
                del document[table]

    return edit_toml(text, edit)


def _create(event: Event, world: World) -> Edit:
    assert event.app is not None
    if world.texts(event.app) is not None:
        return Edit(notes=(f"app {event.app} exists already",))
    notes, names = [], []
    for name in event.args.get("domains", []):
        owner = world.owners.get(name)
        if owner:
            notes.append(f"{name} belongs to app {owner}: left out")
        else:
            names.append(name)
    texts = {DOMAINS: lines.add("", names), UPSTREAMS: ""}
    return Edit(apps={event.app: texts}, notes=tuple(notes))


def _destroy(event: Event, world: World) -> Edit:
    assert event.app is not None
    require(world, event.app)
    return Edit(apps={event.app: None})


def _rename(event: Event, world: World) -> Edit:
    assert event.app is not None
    old, new = event.app, event.args["new"]
    texts = dict(require(world, old))
    if world.texts(new) is not None:
        raise Conflict(f"app {new} exists already", app=old)
    instead = {f"{old}.{g}": f"{new}.{g}" for g in event.args["globals"]}
    texts[DOMAINS] = lines.replace(texts.get(DOMAINS, ""), instead)
    return Edit(apps={old: None, new: texts}, moved=(old, new))


def _clone(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    new = event.args["new"]
    if world.texts(new) is not None:
        raise Conflict(f"app {new} exists already", app=event.app)
    made = _create(Event("create", new, event.args), world)
    created = dict(made.apps[new] or {})
    toml = texts.get(APP_TOML, "")
    if toml:
        for key in ("locked", "count", "domains"):
            toml = set_key(toml, "", key, None)
        created[APP_TOML] = toml
    created |= {path: text for path, text in texts.items() if path.startswith(SNIPPETS) or path == TEMPLATE}
    return Edit(apps={new: created}, notes=made.notes)


def _domains(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    text = texts.get(DOMAINS, "")
    new, notes = _edit_names(text, event.args["verb"], event.args["names"], f"app {event.app}")
    if event.args.get("reset"):
        made = _create(Event("create", "\0", {"domains": event.args["reset"]}), _Without(world, event.app))
        new = lines.add(new, [n for _, n in lines.entries((made.apps["\0"] or {})[DOMAINS])])
        notes += list(made.notes)
    texts[DOMAINS] = new
    return Edit(apps={event.app: texts}, notes=tuple(notes))


class _Without:
    """A world in which one app owns nothing: its own names are free to it."""

    def __init__(self, world: World, app: str) -> None:
        self._world, self._app = world, app

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    @property
    def owners(self) -> Mapping[str, str]:
        return {d: a for d, a in self._world.owners.items() if a != self._app}


def _edit_names(text: str, verb: str, names: Sequence[str], where: str) -> tuple[str, list[str]]:
    have = {entry.lower(): entry for _, entry in lines.entries(text)}
    notes: list[str] = []
    if verb == "add":
        new = [n for n in dict.fromkeys(names) if n not in have]
        notes = [f"{n} is there already on {where}" for n in dict.fromkeys(names) if n in have]
        return lines.add(text, new), notes
    if verb == "remove":
        notes = [f"{n} is not on {where}" for n in names if n not in have]
        gone = {have[n] for n in names if n in have}
        return lines.keep(text, lambda entry: entry not in gone), notes
    kept = lines.keep(text, lambda entry: entry.lower() in names) if verb == "set" else lines.keep(text, lambda _: False)
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
    text = texts.get(UPSTREAMS, "")
    wanted = [endpoint_line(line) for line in event.args.get("endpoints", [])]
    new, notes = _UPSTREAM_VERBS[event.args["verb"]](text, wanted, event.args, event.app)
    texts[UPSTREAMS] = new
    return Edit(apps={event.app: texts}, notes=tuple(notes), answer={"endpoints": [e.address.text for e in wanted]})


def _add_endpoints(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    have = _endpoints(text)
    notes = [f"{e.address} is there already on {app}" for e in wanted if have.get((e.process, e.address.text), (None, ""))[0] == e]
    changed = {have[key][1]: e.line() for e in wanted if (key := (e.process, e.address.text)) in have and have[key][0] != e}
    new = {e.line(): None for e in wanted if (e.process, e.address.text) not in have}
    return lines.add(lines.replace(text, changed), new), notes


def _set_endpoints(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    processes = {e.process for e in wanted}
    keys = {(e.process, e.address.text) for e in wanted}
    kept = lines.keep(text, lambda entry: _key(entry)[0] not in processes or _key(entry) in keys)
    new, _ = _add_endpoints(kept, wanted, args, app)
    return new, [] if new != text else [f"the endpoints of {app} are these already"]


def _remove_endpoints(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    named = set(args.get("named_processes", []))
    have = _endpoints(text)
    gone: set[str] = set()
    notes = []
    for e in wanted:
        found = [line for (p, a), (_, line) in have.items() if a == e.address.text and (p == e.process or e.process not in named)]
        gone |= set(found)
        if not found:
            notes.append(f"{e.address} is not on {app}")
    return lines.keep(text, lambda entry: entry not in gone), notes


def _clear_endpoints(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    only = args.get("process")
    new = lines.keep(text, lambda entry: only is not None and _key(entry)[0] != only)
    return new, [] if new != text else [f"{app} has no endpoints"]


def _drain_endpoints(text: str, wanted: Sequence[Endpoint], args: Mapping[str, Any], app: str) -> tuple[str, list[str]]:
    have = _endpoints(text)
    instead: dict[str, str] = {}
    notes = []
    for e in wanted:
        found = [pair for (p, a), pair in have.items() if a == e.address.text]
        if not found:
            raise NotFound(f"{e.address} is no endpoint of {app}{nearest(e.address.text, [a for _, a in have])}", app=app)
        for endpoint, line in found:
            if endpoint.drain:
                notes.append(f"{e.address} is draining already")
            else:
                instead[line] = replace(endpoint, drain=True).line()
    return lines.replace(text, instead), notes


_UPSTREAM_VERBS = {
    "add": _add_endpoints,
    "set": _set_endpoints,
    "remove": _remove_endpoints,
    "clear": _clear_endpoints,
    "drain": _drain_endpoints,
}


def _deploy(event: Event, world: World) -> Edit:
    assert event.app is not None
    name = event.app
    notes: tuple[str, ...] = ()
    texts = world.texts(name)
    if texts is None and event.args.get("create"):
        made = _create(Event("create", name, event.args), world)
        texts, notes = made.apps[name], made.notes
    if texts is None:
        if event.args["existed"]:
            raise Conflict(f"app {name} was destroyed during the checks", app=name)
        texts = require(world, name)
    texts = dict(texts)
    app = world.parse(name, texts)
    if app.locked is not None:
        raise Conflict(f"app {name} is locked: {app.locked}", hint=f"router apps:unlock {name}", app=name)
    text = texts.get(UPSTREAMS, "")
    have = _endpoints(text)
    instead: dict[str, str | None] = {}
    fresh: list[str] = []
    retired: list[str] = []
    for process, addresses in event.args["processes"].items():
        old = {a: line for (p, a), (_, line) in have.items() if p == process}
        if sorted(old.values()) != sorted(event.args["expected"][process]):
            raise Conflict(f"the endpoints of {name} ({process}) were changed during the checks", hint="deploy again", app=name)
        leaving = [a for a in old if a not in addresses]
        coming = [endpoint_line(f"{process} {a}").line() for a in dict.fromkeys(addresses) if a not in old]
        retired += leaving
        # each newcomer takes the place of one that leaves, so that the order a person gave the file stays
        for number, a in enumerate(leaving):
            instead[old[a]] = coming[number] if number < len(coming) else None
        fresh += coming[len(leaving) :]
    new = lines.keep(text, lambda entry: instead.get(entry, "") is not None)
    new = lines.add(lines.replace(new, {k: v for k, v in instead.items() if v is not None}), fresh)
    texts[UPSTREAMS] = new
    for process, count in event.args.get("counts", {}).items():
        if app.counts.get(process) != count:
            texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "count", process, count)
    still = {a for (_, a) in _endpoints(new)}
    return Edit(apps={name: texts}, notes=notes, answer={"retired": [a for a in dict.fromkeys(retired) if a not in still]})


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
        new = set_key(world.config, table, key, value)
        return Edit(config=new, notes=_unchanged(new == world.config, key, value))
    texts = dict(require(world, event.app))
    old = texts.get(APP_TOML, "")
    texts[APP_TOML] = set_key(old, table, key, value)
    return Edit(apps={event.app: texts}, notes=_unchanged(texts[APP_TOML] == old, key, value))


def _unchanged(same: bool, key: str, value: Any) -> tuple[str, ...]:
    return (f"{key} is {'unset' if value is None else value} already",) if same else ()


def _lock(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = dict(require(world, event.app))
    reason = event.args["reason"]
    if world.parse(event.app, texts).locked == reason:
        return Edit(apps={event.app: texts}, notes=(f"{event.app} is {'unlocked' if reason is None else 'locked'} already",))
    texts[APP_TOML] = set_key(texts.get(APP_TOML, ""), "", "locked", reason)
    return Edit(apps={event.app: texts})


def _global_domains(event: Event, world: World) -> Edit:
    new, notes = _edit_names(world.global_domains, event.args["verb"], event.args["names"], "the global list")
    return Edit(global_domains=new, notes=tuple(notes))


def _restore(event: Event, world: World) -> Edit:
    """The texts of an earlier generation: endpoints, the lock and the counts stay as they are unless asked for."""
    assert event.app is not None
    then: dict[str, str] = dict(event.args["texts"])
    now = world.texts(event.app)
    if event.args.get("endpoints"):
        if sorted(_lines_of(now)) != sorted(event.args["expected"]):
            raise Conflict(f"the endpoints of {event.app} were changed during the checks", hint="roll back again", app=event.app)
    else:
        then[UPSTREAMS] = (now or {}).get(UPSTREAMS, "")
    app = world.parse(event.app, now) if now is not None else None
    toml = then.get(APP_TOML, "")
    if toml or (app and (app.locked is not None or app.counts)):
        toml = set_key(toml, "", "locked", app.locked if app else None)
        toml = set_key(toml, "", "count", dict(app.counts) if app and app.counts else None)
        then[APP_TOML] = toml
    # files that came since go: an empty app.toml says nothing, a snippet that was not there must not stay
    return Edit(apps={event.app: then})


def _take_up(event: Event, world: World) -> Edit:
    assert event.app is not None
    texts = world.texts(event.app)
    if texts is None and not event.args.get("may_be_gone"):
        require(world, event.app)
    return Edit(apps={event.app: texts})


def _take_up_globals(event: Event, world: World) -> Edit:
    return Edit()


def _endpoints(text: str) -> dict[tuple[str, str], tuple[Endpoint, str]]:
    found = {}
    for _, entry in lines.entries(text):
        endpoint = endpoint_line(entry)
        found[str(endpoint.process), endpoint.address.text] = (endpoint, entry)
    return found


def _lines_of(texts: Texts | None) -> list[str]:
    return [entry for _, entry in lines.entries((texts or {}).get(UPSTREAMS, ""))]


def _key(entry: str) -> tuple[str, str]:
    endpoint = endpoint_line(entry)
    return endpoint.process, endpoint.address.text


_ACTIONS: Mapping[str, Callable[[Event, World], Edit]] = {
    "create": _create,
    "destroy": _destroy,
    "rename": _rename,
    "clone": _clone,
    "domains": _domains,
    "domains-switch": _switch_domains,
    "upstreams": _upstreams,
    "deploy": _deploy,
    "ports": _ports,
    "property": _property,
    "lock": _lock,
    "global-domains": _global_domains,
    "restore": _restore,
    "take-up": _take_up,
    "take-up-globals": _take_up_globals,
}
