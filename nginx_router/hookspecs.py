"""The hooks: every point where a plugin may act, as one table that the registry, the calls and `docs/hooks.md` are made from.

A hook has dashes for users (`pre-domains-update`, the name of an executable) and underscores in Python.  It is a promise:
hooks and event keys are added, never changed.  Every hook takes exactly one argument, `event`.
"""

from __future__ import annotations

import copy
import os
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .errors import NotFound, UsageProblem, nearest
from .names import shown

#: The version of this contract; a plugin that needs a newer one is not loaded.
API = 1

Kind = Literal["gate", "collect", "first", "run", "notify"]

#: What the answer of each kind means, and what its failure does.
KINDS: Mapping[Kind, str] = {
    "gate": "May refuse. The first refusal stops the change: exit 6, nothing changed. Lines on stdout are shown to the user.",
    "collect": "Every plugin's stdout is taken, an empty one is no answer. A failure fails that app's change: exit 11.",
    "first": "The first answer counts; an empty stdout or a non-zero exit is no answer, and the next plugin is asked.",
    "run": "One plugin, the first in order, does it. A failure fails the change, save `stop`: a warning naming what still runs.",
    "notify": "Told afterwards. A failure is a warning and the others still run. Lines on stdout are shown to the user.",
}

#: The keys that every event has.
COMMON: Mapping[str, str] = {
    "api": "the version of this contract, a number",
    "hook": "the hook's name, with dashes",
    "app": "the app, null for a change of the host",
    "action": "what is done: `add`, `deploy`, ...",
    "command": "the words as typed, one string",
    "user": "who asked",
    "uid": "their number",
    "time": "when, RFC 3339 in UTC",
}

#: The keys that only some events have: what is sent where there is nothing to say, and what each means.
KEYS: Mapping[str, tuple[Any, str]] = {
    "domains": ([], "domains, a list"),
    "processes": ({}, "process -> `{old: [ADDRESS], new: [ADDRESS]}`"),
    "retired": ([], "addresses that were replaced, a list"),
    "process": ("", "the process, such as `web`"),
    "count": (None, "how many instances are wanted, a number"),
    "old_app": ("", "the name before"),
    "endpoints": ([], "addresses, a list"),
    "host": ("", "a host name"),
    "apps": ([], "the apps concerned, a list"),
    "generation": (None, "the number of the generation"),
    "kind": ("", "`nothing`, `endpoints` or `structure`"),
    "problem": (None, "why it failed, null where it did not"),
    "vhost": ("", "the rendered vhost"),
}


@dataclass(frozen=True)
class Hook:
    """One hook: a row of the table."""

    name: str
    kind: Kind
    help: str
    argv: str = "APP"
    keys: tuple[str, ...] = ()

    @property
    def python(self) -> str:
        """Its name in `plugin.py`."""
        return self.name.replace("-", "_")

    def arguments(self, event: Mapping[str, Any]) -> list[str]:
        """The arguments of an executable for `event`, as `argv` says."""
        return [argument for word in self.argv.split() for argument in _WORDS[word](event)]

    def event(self, words: Sequence[str]) -> dict[str, Any]:
        """The reverse of `arguments`: what an event holds whose executables get `words`; those at the end may be left out.

        Raises:
            UsageProblem: there are more than the hook has, or one is not what stands there.
        """
        told: dict[str, Any] = {}
        left = list(words)
        for word in self.argv.split():
            taken, left = (left, []) if word.endswith("...") else (left[:1], left[1:])
            if taken and taken != [""]:
                told |= _TOLD[word](taken)
        if left:
            raise UsageProblem(f"{self.name} has the arguments {self.argv}, and not {shown(left[0])}")
        return told

    def complete(self, event: Mapping[str, Any]) -> dict[str, Any]:
        """`event` with every key that it promises: what the caller left out is filled with who, when and nothing."""
        user, uid = who()
        common = {
            "app": None,
            "action": "",
            "command": "",
            "user": user,
            "uid": uid,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            **{key: copy.copy(KEYS[key][0]) for key in self.keys},
        }
        return {"api": API, "hook": self.name, **common, **{k: v for k, v in event.items() if k not in ("api", "hook")}}


_WORDS: Mapping[str, Callable[[Mapping[str, Any]], Iterable[str]]] = {
    # a missing app or number is an empty argument: those behind it keep their places
    "APP": lambda e: [e["app"] or ""],
    "ACTION": lambda e: [e["action"]],
    "DOMAIN...": lambda e: e["domains"],
    "PROCESS=ADDRESS...": lambda e: [f"{p}={address}" for p, sides in e["processes"].items() for address in sides.get("new", ())],
    "PROCESS": lambda e: [e["process"]],
    "COUNT": lambda e: [_number(e["count"])],
    "ADDRESS...": lambda e: e["endpoints"],
    "OLD": lambda e: [e["old_app"]],
    "NEW": lambda e: [e["app"] or ""],
    "GENERATION": lambda e: [_number(e["generation"])],
    "APP...": lambda e: e["apps"],
}


def _to_number(word: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", word):
        raise UsageProblem(f"{shown(word)} is not a number")
    return int(word)


def _to_processes(words: Sequence[str]) -> dict[str, Any]:
    new: dict[str, list[str]] = {}
    for word in words:
        process, equals, address = word.partition("=")
        if not equals:
            raise UsageProblem(f"{shown(word)} is not PROCESS=ADDRESS")
        new.setdefault(process, []).append(address)
    return {process: {"old": [], "new": addresses} for process, addresses in new.items()}


#: What an argument, or all that are left, says of the event.
_TOLD: Mapping[str, Callable[[Sequence[str]], dict[str, Any]]] = {
    "APP": lambda w: {"app": w[0]},
    "ACTION": lambda w: {"action": w[0]},
    "DOMAIN...": lambda w: {"domains": list(w)},
    "PROCESS=ADDRESS...": lambda w: {"processes": _to_processes(w)},
    "PROCESS": lambda w: {"process": w[0]},
    "COUNT": lambda w: {"count": _to_number(w[0])},
    "ADDRESS...": lambda w: {"endpoints": list(w)},
    "OLD": lambda w: {"old_app": w[0]},
    "NEW": lambda w: {"app": w[0]},
    "GENERATION": lambda w: {"generation": _to_number(w[0])},
    "APP...": lambda w: {"apps": list(w), "app": w[0]},
}

_DOMAINS = "APP ACTION DOMAIN..."
_DEPLOY = "APP PROCESS=ADDRESS..."
_SCALE = "APP PROCESS COUNT"
_STOP = "APP ADDRESS..."
_APPLY = "GENERATION APP..."
_APPLIED = ("apps", "generation", "kind", "problem")
_SWAP = ("processes", "retired")

# one row a hook, however long: it is a table
# ruff: noqa: E501
# fmt: off
_TABLE = (
    Hook("pre-create", "gate", "an app is about to be created", keys=("domains",)),
    Hook("pre-destroy", "gate", "an app is about to be destroyed"),
    Hook("pre-domains-update", "gate", "an app's domains are about to change; `domains`: those named", _DOMAINS, ("domains",)),
    Hook("pre-deploy", "gate", "new instances are about to replace old ones; asked before their checks", _DEPLOY, _SWAP),
    Hook("pre-scale", "gate", "a process is about to get another number of instances; `endpoints`: those that it has", _SCALE, ("process", "count", "endpoints", *_SWAP)),
    Hook("pre-apply", "gate", "a rendered vhost is about to be served; asked once for each app, before there is a number: GENERATION is empty, `generation` null", _APPLY, (*_APPLIED, "vhost")),
    Hook("nginx-http-snippet", "collect", "lines for nginx's http level, beside the app's server blocks"),
    Hook("nginx-server-snippet", "collect", "lines for each server block of the app"),
    Hook("nginx-location-snippet", "collect", "lines for the app's location /"),
    Hook("template-dirs", "collect", "directories of `*.j2` that own templates may include, one a line; the plugin's own are relative"),
    Hook("report-rows", "collect", "rows for the app's report, `KEY: VALUE`, one a line"),
    Hook("doctor-checks", "collect", "checks of `router doctor`, one JSON object a line: `{name, ok, problem, fix}`"),
    Hook("nginx-app-template-source", "first", "the text of the app's template"),
    Hook("app-hostname", "first", "the domains that a new app gets, separated by white space; `domains`: the global ones", keys=("domains",)),
    Hook("certificate-for", "first", "the certificate for `domains`; not called before there are certificates", keys=("domains",)),
    Hook("endpoint-resolve", "first", "the IP addresses of `host`, separated by white space", keys=("host", "endpoints")),
    Hook("scale", "run", "start and stop instances; stdout: the full wanted set of endpoints, one a line", _SCALE, ("process", "count", "endpoints")),
    Hook("stop", "run", "stop the instances at `endpoints`; where it fails, stdout: those that still run (none said: all)", _STOP, ("endpoints",)),
    Hook("post-create", "notify", "an app was created", keys=("domains",)),
    Hook("post-destroy", "notify", "an app was destroyed"),
    Hook("post-rename", "notify", "an app has a new name", "OLD NEW", ("old_app",)),
    Hook("post-domains-update", "notify", "an app's domains changed; `domains`: those named", _DOMAINS, ("domains",)),
    Hook("post-upstreams-update", "notify", "an app's endpoints changed by hand or by `apps:upstreams`", keys=("endpoints",)),
    Hook("post-deploy", "notify", "new instances serve, and the old ones are drained or given up", _DEPLOY, _SWAP),
    Hook("post-scale", "notify", "a process has another number of instances; `endpoints`: those that it has now", _SCALE, ("process", "count", "endpoints", *_SWAP)),
    Hook("post-certs-update", "notify", "an app's certificate changed; not called before there are certificates", keys=("domains",)),
    Hook("endpoints-retired", "notify", "nothing goes to `endpoints` any more: they may be stopped", _STOP, ("endpoints",)),
    Hook("post-apply", "notify", "a change is served", _APPLY, _APPLIED),
    Hook("apply-failed", "notify", "a change was put back; `problem` says why", keys=_APPLIED),
)
# fmt: on

#: Every hook by its name with dashes.
HOOKS: Mapping[str, Hook] = {hook.name: hook for hook in _TABLE}


def who() -> tuple[str, int]:
    """Who asks, name and number: with sudo the person, and not root."""
    import pwd

    uid = os.getuid()
    behind = os.environ.get("SUDO_UID", "") if uid == 0 else ""
    uid = int(behind) if behind.isdigit() else uid
    try:
        return pwd.getpwuid(uid).pw_name, uid
    except KeyError:
        return str(uid), uid


def lookup(name: str) -> Hook:
    """The hook of this name.

    Raises:
        NotFound: there is none; the nearest is named.
    """
    if name not in HOOKS:
        raise NotFound(f"there is no hook '{name}'{nearest(name, HOOKS)}", hint="router plugins:hooks")
    return HOOKS[name]


def specifications() -> type:
    """The table as pluggy reads it: one function of `event` a hook."""
    import pluggy  # 10 ms that only a call of a hook needs

    marker = pluggy.HookspecMarker("router")

    class Specifications:
        pass

    for hook in _TABLE:

        def specification(event: Mapping[str, Any]) -> str | None:
            """Replaced by the row's help."""

        specification.__doc__ = hook.help
        setattr(Specifications, hook.python, staticmethod(marker(specification)))
    return Specifications


def markdown() -> str:
    """The reference of all hooks, the body of `docs/hooks.md`."""
    out = []
    for kind, meaning in KINDS.items():
        out += [f"## {kind}", "", meaning, "", "| hook | arguments | keys of the event | |", "|---|---|---|---|"]
        for hook in _TABLE:
            if hook.kind == kind:
                keys = " ".join(f"`{key}`" for key in hook.keys)
                out.append(f"| `{hook.name}` | `{hook.argv}` | {keys} | {hook.help} |")
        out.append("")
    out += ["## The event", "", "| key | |", "|---|---|"]
    out += [f"| `{key}` | {text} |" for key, text in COMMON.items()]
    out += [f"| `{key}` | {text} |" for key, (_, text) in KEYS.items()]
    return "\n".join(out) + "\n"


def _number(value: int | None) -> str:
    return "" if value is None else str(value)
