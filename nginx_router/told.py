"""Which hooks an event has, and what they are told of it.

A command says itself what it is about.  What an edit by hand, an earlier generation or an archive brings is told by what it
makes of the app: as the commands would tell it that came to the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from . import canaries
from .events import Event
from .hookspecs import HOOKS
from .model import App
from .names import Endpoint, endpoint_line

#: A hook, and what it is told.
Call = tuple[str, dict[str, Any]]

_T = TypeVar("_T")

_GATES = {
    "create": "pre-create",
    "clone": "pre-create",
    "destroy": "pre-destroy",
    "domains": "pre-domains-update",
    "domains-switch": "pre-domains-update",
    "deploy": "pre-deploy",
    "scale": "pre-scale",
}
_NOTIFIES = {
    "create": "post-create",
    "clone": "post-create",
    "destroy": "post-destroy",
    "rename": "post-rename",
    "domains": "post-domains-update",
    "domains-switch": "post-domains-update",
    "upstreams": "post-upstreams-update",
    "deploy": "post-deploy",
    "scale": "post-scale",
}
#: The hooks that an edit by hand may have.
TOLD_OF_EDITS = ("post-create", "post-destroy", "post-domains-update", "post-upstreams-update")
_COMPARED = ("take-up", "restore", "import")


def gates(event: Event, before: App | None, after: App | None = None) -> list[Call]:
    """The gate hooks of an event, in the order in which they are asked; an edit by hand has none: it is no command.

    `after` counts where the event itself does not say what it changes (`is_compared`).
    """
    if is_compared(event):
        return [] if event.action == "take-up" else _compared("pre", event, before, after)
    if asks_nobody(event):
        return []
    told = payload(event, before)
    return [(hook, told) for hook in _hooks(_GATES, event)]


def notifies(event: Event, before: App | None, after: App | None = None) -> list[Call]:
    """The notify hooks of an event, likewise."""
    if is_compared(event):
        return _compared("post", event, before, after)
    told = payload(event, before)
    return [(hook, each) for hook in _hooks(_NOTIFIES, event) for each in _each_count(hook, event, told)]


def asks_nobody(event: Event) -> bool:
    """Whether no plugin has a say in an event: what harms clients is ended, and what a canary's app has of plugins stays as it is."""
    return (event.args.get("canary") or {}).get("verb") == canaries.ABORT


def is_compared(event: Event) -> bool:
    """Whether only a look at the app, before and after, says what an event changes."""
    return event.action in _COMPARED


def payload(event: Event, before: App | None) -> dict[str, Any]:
    """What hooks are told of an event by its own words; `before` is the app as it was."""
    args = event.args
    told: dict[str, Any] = {"app": event.app, "action": args.get("verb", event.action)}
    if event.action in ("create", "clone") or args.get("create"):
        told |= {"domains": list(args.get("domains", []))}
    if event.action == "domains":
        told |= {"action": "reset" if args.get("reset") is not None else args["verb"], "domains": list(args["names"])}
    elif event.action == "domains-switch":
        told |= {"action": "enable" if args["enabled"] else "disable", "domains": list(before.domains) if before else []}
    elif event.action in ("deploy", "scale"):
        told |= _swap(args.get("processes", {}), before)
        for process, count in args.get("counts", {}).items():
            told |= {"process": process, "count": count, "endpoints": told["processes"].get(process, {}).get("old", [])}
    elif event.action in ("rename", "clone"):
        told |= {"app": args["new"], "old_app": event.app}
    elif event.action == "upstreams":
        told |= {"endpoints": [endpoint_line(line).address.text for line in args.get("endpoints", [])]}
    return told


def _hooks(table: Mapping[str, str], event: Event) -> list[str]:
    creates = event.args.get("create") and not event.args.get("existed", True)
    return [table[action] for action in (["create"] if creates else []) + [event.action] if action in table]


def _each_count(hook: str, event: Event, told: dict[str, Any]) -> list[dict[str, Any]]:
    # a scale of several processes is told once for each: argv holds one PROCESS and one COUNT
    if hook != "post-scale":
        return [told]
    return [
        {**told, "process": process, "count": count, "endpoints": told["processes"].get(process, {}).get("new", [])}
        for process, count in event.args.get("counts", {}).items()
    ]


def _swap(processes: Mapping[str, Sequence[str]], before: App | None) -> dict[str, Any]:
    """What a deploy tells of the new sets of these processes."""
    swapped = {p: {"old": [e.address.text for e in before.of_process(p)] if before else [], "new": [*new]} for p, new in processes.items()}
    after = {a for sides in swapped.values() for a in sides["new"]}
    others = {e.address.text for e in before.endpoints if e.process not in processes} if before else set()
    return {"processes": swapped, "retired": [a for sides in swapped.values() for a in sides["old"] if a not in after | others]}


def _compared(when: str, event: Event, before: App | None, after: App | None) -> list[Call]:
    told = {"app": event.app, "action": event.action}
    found: list[Call] = []
    if after is None:
        found = [("destroy", told)] if before else []
    else:
        if before is None:
            found = [("create", {**told, "domains": [*after.domains]})]
        else:
            if change := _change(before.domains, after.domains):
                found.append(("domains-update", {**told, "action": change[0], "domains": change[1]}))
            if before.domains_enabled != after.domains_enabled:
                verb = "enable" if after.domains_enabled else "disable"
                found.append(("domains-update", {**told, "action": verb, "domains": [*after.domains]}))
        found += _endpoints_compared(told, event, before, after)
    return [(f"{when}-{what}", told) for what, told in found if f"{when}-{what}" in HOOKS]


def _endpoints_compared(told: dict[str, Any], event: Event, before: App | None, after: App) -> list[Call]:
    old: Sequence[Endpoint] = before.endpoints if before else ()
    if (change := _change(old, after.endpoints)) is None:
        return []
    processes = dict.fromkeys(e.process for e in (*old, *after.endpoints))
    sets = {p: [e.address.text for e in after.of_process(p)] for p in processes}
    new: dict[str, Sequence[str]] = {p: a for p, a in sets.items() if {*a} != {e.address.text for e in old if e.process == p}}
    # who edits files by hand deploys nothing; and flags alone replace no instance
    if event.action != "take-up" and new:
        return [("deploy", {**told, **_swap(new, before)})]
    return [("upstreams-update", {**told, "action": change[0], "endpoints": [*dict.fromkeys(e.address.text for e in change[1])]})]


def _change(old: Sequence[_T], new: Sequence[_T]) -> tuple[str, list[_T]] | None:
    """The verb, and what it names, by which a command makes `new` of `old`; None: they hold the same."""
    had, has = {*old}, {*new}
    came, went = [each for each in new if each not in had], [each for each in old if each not in has]
    if came and went:
        return "set", [*new]
    return ("add", came) if came else ("remove", went) if went else None
