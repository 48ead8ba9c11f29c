"""What a change asks of plugins and of DNS before it waits for the host lock, and tells plugins after it.

No hook runs under the lock.  The answers are the facts of the event: they are kept in the app's state, so that another
app's change never asks again.
"""

from __future__ import annotations

import socket
import threading
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from .errors import ChecksFailed, RouterError, UsageProblem, error_as_json
from .events import Event, reduce
from .model import App, Facts
from .names import endpoint_line

if TYPE_CHECKING:
    from .candidate import Applied
    from .controller import Outcome, Router

#: How long names may take to resolve, in all.
RESOLVE_SECONDS = 5.0
_SNIPPETS = ("nginx-http-snippet", "nginx-server-snippet", "nginx-location-snippet")
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


def gate_hooks(event: Event) -> list[str]:
    """The gate hooks of an event."""
    return _hooks(_GATES, event)


def payload(event: Event, before: App | None) -> dict[str, Any]:
    """What hooks are told of an event; `before` is the app as it was."""
    args = event.args
    told: dict[str, Any] = {"app": event.app, "action": args.get("verb", event.action)}
    if event.action == "domains":
        told |= {"action": "reset" if args.get("reset") is not None else args["verb"], "domains": list(args["names"])}
    elif event.action == "domains-switch":
        told |= {"action": "enable" if args["enabled"] else "disable", "domains": list(before.domains) if before else []}
    elif event.action in ("deploy", "scale"):
        processes = {}
        for process, addresses in args.get("processes", {}).items():
            old = [e.address.text for e in before.of_process(process)] if before else []
            processes[process] = {"old": old, "new": list(addresses)}
        after = {a for sides in processes.values() for a in sides["new"]}
        others = {e.address.text for e in before.endpoints if e.process not in processes} if before else set()
        gone = [a for sides in processes.values() for a in sides["old"] if a not in after | others]
        told |= {"processes": processes, "retired": gone}
        for process, count in args.get("counts", {}).items():
            told |= {"process": process, "count": count}
    elif event.action in ("rename", "clone"):
        told |= {"app": args["new"], "old_app": event.app}
    elif event.action == "upstreams":
        told |= {"endpoints": [endpoint_line(line).address.text for line in args.get("endpoints", [])]}
    return told


def _hooks(table: Mapping[str, str], event: Event) -> list[str]:
    creates = event.args.get("create") and not event.args.get("existed", True)
    return [table[action] for action in (["create"] if creates else []) + [event.action] if action in table]


class Asking:
    """What one command asks before and tells after."""

    def __init__(self, router: Router, *, gated: bool) -> None:
        self.router, self._gated = router, gated
        self._candidate = router.rehearsal()
        self._told: dict[int, dict[str, Any]] = {}
        self._applied: dict[int, Applied] = {}

    def prepare(self, event: Event, *, independent: bool) -> Event:
        """The event with its facts, applied to a rehearsal.

        Raises:
            RouterError: it cannot be, or a plugin refused it; of an independent event the leader says so.
        """
        try:
            return self._prepare(event)
        except RouterError as why:
            if not independent:
                raise
            return replace(event, args={**event.args, "problem": error_as_json(why)})

    def rehearse(self, events: Sequence[Event]) -> list[Outcome]:
        """Say what the prepared events would change; nothing is written.

        Raises:
            RouterError: nginx would not take it.
        """
        from .controller import Outcome
        from .validate import validate

        candidate, router = self._candidate, self.router
        plane = router.plane()
        validate(candidate, plane, candidate.changes_vhosts)
        for line in candidate.difference():
            router.request.show(line)
        kinds = {applied.kind for applied in self._applied.values()}
        kind = next((k for k in ("structure", "endpoints") if k in kinds), "nothing")
        master = plane.master()
        how = "nothing to reload" if kind == "nothing" else f"{kind}: one reload" if master else f"{kind}: the proxy is stopped"
        if master and kind != "nothing":
            how += f", which touches {plane.client_connections(master)} client connections"
        router.request.say(f"dry run, nothing was changed ({how})")
        number = candidate.base.number if candidate.base else None
        serving = router.serving()
        return [
            Outcome(event, event.app, number, serving, applied.kind, answer=applied.edit.answer)
            for n, event in enumerate(events)
            if (applied := self._applied.get(n))
        ]

    def notify(self, outcomes: Sequence[Outcome]) -> None:
        """Tell plugins what was done."""
        plugins = self.router.plugins
        for n, outcome in enumerate(outcomes):
            if outcome.error is not None or n not in self._told:
                continue
            for hook in _hooks(_NOTIFIES, outcome.event):
                if plugins.has(hook):
                    for told in _each_count(hook, outcome.event, self._told[n]):
                        plugins.notify(hook, self.router._signed(told))
        done = [o for o in outcomes if o.error is None and o.generation is not None and o.kind != "nothing"]
        if done and plugins.has("post-apply"):
            kind = next((k for k in ("structure", "endpoints") if any(o.kind == k for o in done)), "nothing")
            apps = sorted({o.app for o in done if o.app})
            number = max(o.generation or 0 for o in done)
            plugins.notify(
                "post-apply", self.router._signed({"app": apps[0] if apps else None, "apps": apps, "generation": number, "kind": kind})
            )

    def failed(self, events: Sequence[Event], why: RouterError) -> None:
        """Tell plugins that nginx did not take a change."""
        if why.exit_code in (7, 8, 9, 13) and self.router.plugins.has("apply-failed"):
            apps = sorted({e.app for e in events if e.app})
            index = self.router.index()
            told = {
                "app": why.app or (apps[0] if apps else None),
                "apps": apps,
                "generation": index.number if index else 0,
                "problem": why.message,
            }
            self.router.plugins.notify("apply-failed", self.router._signed(told))

    def _prepare(self, event: Event) -> Event:
        place = len(self._told)
        before = self.router.app_or_none(event.app)
        told = payload(event, before)
        self._told[place] = told
        edit = reduce(event, self._candidate)
        changes = any(self._candidate.texts(name) != texts for name, texts in edit.apps.items())
        plugins = self.router.plugins
        if changes and not self._gated:
            for hook in gate_hooks(event):
                if plugins.has(hook):
                    plugins.gate(hook, self.router._signed(told))
        facts = {
            name: self._facts(event, self._candidate.parse(name, texts)).as_json() for name, texts in edit.apps.items() if texts is not None
        }
        event = replace(event, facts=facts)
        applied = self._candidate.apply(event)
        self._applied[place] = applied
        if applied.kind != "nothing" and plugins.has("pre-apply"):
            for name in applied.apps:
                rendered = self._candidate.changed.get(name)
                vhost = rendered.vhost.decode(errors="replace") if rendered else ""
                plugins.gate("pre-apply", self.router._signed({**told, "app": name, "apps": [name], "kind": applied.kind, "vhost": vhost}))
        return event

    def _facts(self, event: Event, app: App) -> Facts:
        plugins = self.router.plugins
        told = self.router._signed({"app": app.name, "action": event.action})
        hosts = sorted({e.address.host for e in app.endpoints if not e.address.is_literal})
        resolved = self._resolve(hosts, told) if hosts else {}
        if event.action in ("deploy", "scale"):
            asked = {a for addresses in event.args["processes"].values() for a in addresses}
            for endpoint in app.endpoints:
                if endpoint.address.text in asked and endpoint.address.host in hosts and endpoint.address.host not in resolved:
                    raise ChecksFailed(
                        f"app {app.name}: the host name of endpoint {endpoint.address} does not resolve",
                        hint=f"getent ahosts {endpoint.address.host}",
                        app=app.name,
                    )
        snippets = [
            (hook, plugin, text) for hook in _SNIPPETS if plugins.has(hook) for plugin, text in plugins.collect(hook, told) if text.strip()
        ]
        template = plugins.first("nginx-app-template-source", told) if plugins.has("nginx-app-template-source") else None
        return Facts(resolved, tuple(snippets), template)

    def _resolve(self, hosts: Sequence[str], told: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
        found: dict[str, tuple[str, ...]] = {}
        plugins = self.router.plugins
        if plugins.has("endpoint-resolve"):
            for host in hosts:
                answer = plugins.first("endpoint-resolve", {**told, "host": host})
                if answer is not None and answer[1].split():
                    found[host] = tuple(_ip(word, answer[0]) for word in answer[1].split())

        def ask(host: str) -> None:
            try:
                answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError):
                return
            found[host] = tuple(sorted({str(a[4][0]) for a in answers}))

        # getaddrinfo has no deadline of its own; a daemon thread that hangs dies with the command
        threads = [threading.Thread(target=ask, args=(host,), daemon=True) for host in hosts if host not in found]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(RESOLVE_SECONDS / len(threads))
        return dict(found)


def _each_count(hook: str, event: Event, told: dict[str, Any]) -> list[dict[str, Any]]:
    # a scale of several processes is told once for each: argv holds one PROCESS and one COUNT
    if hook != "post-scale":
        return [told]
    return [{**told, "process": process, "count": count} for process, count in event.args.get("counts", {}).items()]


def _ip(word: str, plugin: str) -> str:
    import ipaddress

    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise UsageProblem(f"plugin {plugin} resolved a name to '{word}', which is no IP address") from None
