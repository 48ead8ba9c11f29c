"""Canaries: new instances that a share of an app's clients gets while all others stay with the old ones.

Which instances they are stands in UPSTREAMS (the flag `canary`), how many of the clients they get in app.toml:

    [traffic]
    canary = "10%"
    since = "2026-11-24T20:12:00Z"

While none of a process's other endpoints is up they are its instances like any other.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from . import health, lines
from .errors import Conflict, NotFound, UsageProblem
from .kinds import share
from .model import APP_TOML, UPSTREAMS, App, Facts, Globals, Texts
from .names import Endpoint, endpoint_line, instance
from .names import shown as quoted
from .tomltext import set_key

#: The table of app.toml, and the plugin that declares its keys.
TABLE = "traffic"

BEGIN, PROMOTE, ABORT = "begin", "promote", "abort"

MAX_ERRORS = "5%"

#: The keys that say something of the canary that is under way, and of the last one: they are about endpoints, not settings.
KEYS = ("canary", "since", "aborted")


def percent(text: str) -> str:
    """A share in its one spelling: `2.5%`.

    Raises:
        UsageProblem: it is none.
    """
    try:
        return share(text)
    except ValueError:
        raise UsageProblem(f"{quoted(text)} is not a share", hint="such as 10% or 2.5%; 0%: nobody") from None


def hundredths(text: str) -> int:
    """A share in hundredths of a percent."""
    return round(float(text.removesuffix("%")) * 100)


def share_of(app: App) -> str:
    """The share of an app's clients that its canaries get; nobody, where nothing says it."""
    return _key(app, "canary", "0%")


def max_errors_of(app: App, settings: Globals) -> str:
    """The share of a canary's answers that may be errors: as the app says, else the host, else a twentieth."""
    return _key(app, "max-errors", _share(settings.plugins.get(TABLE, {}).get("max-errors"), MAX_ERRORS))


def aborted(app: App) -> str | None:
    """Why the last canary was aborted, while no other deploy came since; a hand may have written it: nothing in it moves a cursor."""
    words = str(app.plugins.get(TABLE, {}).get("aborted") or "")
    return "".join(c if c.isprintable() else "?" for c in words) or None


def since(app: App) -> datetime | None:
    """When the canary that is under way was begun; None where nobody knows: by hand, or the key holds no moment."""
    try:
        found = datetime.fromisoformat(str(app.plugins.get(TABLE, {}).get("since")))
    except ValueError:
        return None
    return found if found.tzinfo else None


def of_app(app: App) -> tuple[Endpoint, ...]:
    """The canaries of an app; it has any only while a canary is under way."""
    return tuple(e for e in app.endpoints if e.canary)


def parted(serving: Sequence[Endpoint]) -> tuple[list[Endpoint], list[Endpoint]]:
    """Of the endpoints of a process that get requests at all, those that all clients get and the canaries.

    None of either is up: nobody is parted.
    """
    stable, canaries = [e for e in serving if not e.canary], [e for e in serving if e.canary]
    if all(e.down for e in canaries):
        return (stable, []) if any(not e.down for e in stable) else (list(serving), [])
    return (list(serving), []) if all(e.down for e in stable) else (stable, canaries)


def require(app: App) -> tuple[Endpoint, ...]:
    """The canaries of an app that must have some.

    Raises:
        NotFound: it has none.
    """
    found = of_app(app)
    if not found:
        raise NotFound(f"app {app.name} has no canary", hint=f"router apps:deploy {app.name} ADDRESS... --canary 10%", app=app.name)
    return found


def refuse_under_way(app: App) -> None:
    """Make sure that no canary is under way: whatever came now would be neither what it was compared with nor what replaces it.

    Raises:
        Conflict: one is; its instances and what ends it are named.
    """
    if found := of_app(app):
        raise Conflict(
            f"app {app.name} has a canary under way, at {share_of(app)} of its clients: {' '.join(shown(found))}",
            hint=f"router apps:deploy {app.name} --promote, or --abort",
            app=app.name,
        )


def alone(app: App, facts: Facts) -> list[str]:
    """The processes whose canaries are the only ones that get requests."""
    found = {e.process: health.serving(app, e.process, facts) for e in of_app(app)}
    return [process for process, each in found.items() if (up := [e for e in each if not e.down]) and all(e.canary for e in up)]


def left(before: App, after: App, facts: Facts) -> list[str]:
    """What is said of the canary of an app whose endpoints are `after`: that it is ended, or that all clients get it from now on."""
    if not of_app(after):
        return [f"the canary of {after.name} is ended: that was its last instance"]
    processes = set(alone(after, facts)) - set(alone(before, facts))
    last = " ".join(shown(e for e in of_app(after) if e.process in processes and e.state == "active"))
    return [f"all clients get the canary of {after.name}, {last}: no other instance is up"] if processes else []


def unreached(app: App) -> str | None:
    """Why no client comes to any instance of an app; None: some may."""
    if app.served_domains:
        return None
    return f"the domains of {app.name} are disabled" if app.domains else f"app {app.name} has no domain"


def seen(app: App, facts: Facts) -> dict[str, Any]:
    """The canaries of an app as nginx has them: all of them, and which of these drain, are down, or are the only ones that get requests."""
    states = {e: health.seen(app, e, facts)[0] for e in of_app(app)}
    processes = alone(app, facts)
    return {
        "endpoints": shown(states),
        **{state: shown(e for e, its in states.items() if its == state) for state in ("draining", "down")},
        "alone": shown(e for e, its in states.items() if its == "active" and e.process in processes),
        "unreached": unreached(app),
    }


def who_gets(share: str, found: Mapping[str, Any], age: str = "") -> str:
    """What `seen` found in words: who gets the canaries, and (`age`) for how long they have been there."""
    idle = {*found["draining"], *found["down"]}
    getting = [e for e in found["endpoints"] if e not in idle]
    some = [e for e in getting if e not in found["alone"]]
    parts = []
    if getting and found["unreached"]:
        parts.append(f"nobody gets {' '.join(getting)}: {found['unreached']}")
    elif getting or not found["endpoints"]:  # else a state that is lost hides which they are
        if some or not getting:
            parts.append(f"{share} of the clients get {' '.join(some) or 'it'}{age and f', for {age}'}")
        if found["alone"]:
            parts.append(f"all clients get {' '.join(found['alone'])}: no other instance is up")
    parts += [f"{e} drains" for e in found["draining"]] + [f"{e} is down" for e in found["down"]]
    return "; ".join(parts)


def refuse_alone(app: App, facts: Facts) -> None:
    """Make sure that an abort leaves each process somebody who gets its requests.

    Raises:
        Conflict: of one the canaries are the last; the way out is to let them take over.
    """
    if processes := alone(app, facts):
        last = [e for e in of_app(app) if e.process in processes]
        raise Conflict(
            f"app {app.name}: without its canary no {' and no '.join(processes)} instance would get requests: {' '.join(shown(last))}",
            hint=f"router apps:deploy {app.name} --promote",
            app=app.name,
        )


def shown(endpoints: Iterable[Endpoint]) -> list[str]:
    """Endpoints as commands take them: `[PROCESS=]ADDRESS`."""
    return [instance(e.process, e.address.text) for e in endpoints]


def begun(app: App, coming: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """The whole sets of the processes, with their canaries, as a deploy of them names these.

    Raises:
        UsageProblem: one is no new instance, or stands beside none.
    """
    found = {}
    for process, addresses in coming.items():
        there = [e.address.text for e in app.of_process(process)]
        if same := [a for a in addresses if a in there]:
            stays = any(e.state == "active" and e.address.text not in addresses for e in app.of_process(process))
            raise UsageProblem(
                f"{same[0]} is an instance of {process} already: a canary is a new one",
                # of the last one that would leave nobody to answer
                hint=f"router apps:retire {app.name} {same[0]}"
                if stays
                else f"a new one at another address: router apps:deploy {app.name} ADDRESS... --canary 10%",
                app=app.name,
            )
        if not any(e.state == "active" for e in app.of_process(process)):
            raise UsageProblem(
                f"app {app.name} has no {process} instance that a canary could stand beside",
                hint="the same without --canary",
                app=app.name,
            )
        found[process] = [*there, *addresses]
    return found


def ended(app: App, verb: str) -> dict[str, list[str]]:
    """The whole sets of the processes that have canaries when these have been promoted or aborted."""
    keeps = verb == PROMOTE
    return {p: [e.address.text for e in app.of_process(p) if e.canary == keeps] for p in dict.fromkeys(e.process for e in require(app))}


def flagged(app: App, texts: Texts, step: Mapping[str, Any], processes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """The texts after a swap, with the flags and the keys of this step; `app` is what it was before.

    Raises:
        Conflict: somebody else began a canary meanwhile, or ended it.
    """
    verb = step["verb"]
    if verb == BEGIN:
        refuse_under_way(app)
    elif not of_app(app):
        raise Conflict(f"the canary of {app.name} was ended meanwhile", app=app.name)
    before = {e.key for e in app.endpoints}

    def mark(entry: str) -> str:
        endpoint = endpoint_line(entry)
        if endpoint.process not in processes or (verb == BEGIN and endpoint.key in before):
            return entry
        return entry if endpoint.canary == (verb == BEGIN) else replace(endpoint, canary=verb == BEGIN).line()

    toml = set_key(texts.get(APP_TOML, ""), TABLE, "canary", step["share"] if verb == BEGIN else None)
    toml = set_key(toml, TABLE, "since", step.get("since"))
    toml = set_key(toml, TABLE, "aborted", step.get("reason"))
    return {**texts, UPSTREAMS: lines.edit(texts.get(UPSTREAMS, ""), mark), **({APP_TOML: toml} if toml or APP_TOML in texts else {})}


def kept(app: App | None, texts: Mapping[str, str]) -> dict[str, str]:
    """The texts of another time with what `app` says of its canary now, which is about its endpoints."""
    toml = texts.get(APP_TOML, "")
    for key in KEYS:
        value = app.plugins.get(TABLE, {}).get(key) if app else None
        if value is not None or key in toml:
            toml = set_key(toml, TABLE, key, value)
    return {**texts, APP_TOML: toml} if toml or APP_TOML in texts else dict(texts)


def without_share(texts: Texts) -> dict[str, str]:
    """The texts without what is said of a canary that is under way: its last instance went, and the next begins with a share of its own."""
    toml = texts.get(APP_TOML, "")
    for key in ("canary", "since"):
        toml = set_key(toml, TABLE, key, None) if key in toml else toml
    return {**texts, APP_TOML: toml} if APP_TOML in texts else dict(texts)


def without_aborted(texts: Texts) -> dict[str, str]:
    """The texts without the word on why a canary was aborted: what counts until the next deploy."""
    toml = texts.get(APP_TOML, "")
    if "aborted" not in toml:
        return dict(texts)
    return {**texts, APP_TOML: set_key(toml, TABLE, "aborted", None)}


def _key(app: App, key: str, default: str) -> str:
    return _share(app.plugins.get(TABLE, {}).get(key), default)


def _share(value: Any, default: str) -> str:
    try:
        return default if value is None else share(str(value))
    except ValueError:
        return default  # while the plugin is switched off nobody looks at its keys
