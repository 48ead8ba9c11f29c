"""What a change asks of plugins and of DNS before it waits for the host lock, and tells plugins after it.

No hook runs under the lock.  The answers are the facts of the event: they are kept in the app's state, so that another
app's change never asks again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .draft import Draft
from .errors import ChecksFailed, Conflict, PluginBroken, RouterError, UsageProblem, as_error, as_ours, error_as_json
from .events import Edit, Event, reduce
from .files import read_text
from .fitting import fit
from .model import App, Facts
from .resolving import ask_plugins, look_up
from .told import TOLD_OF_EDITS, Call, asks_nobody, gates, is_compared, notifies, payload

if TYPE_CHECKING:
    from .candidate import Applied
    from .controller import Outcome, Router

_SNIPPETS = ("nginx-http-snippet", "nginx-server-snippet", "nginx-location-snippet")
#: The hooks whose answers an app's configuration keeps.
FACTS = (*_SNIPPETS, "nginx-app-template-source", "template-dirs", "endpoint-resolve")


class Asking:
    """What one command asks before and tells after."""

    def __init__(self, router: Router, *, gated: bool) -> None:
        self.router, self._gated = router, gated
        self._candidate = router.rehearsal()
        self._told: dict[int, list[Call]] = {}  # what notify hooks are told
        self._compared: set[str] = set()
        self._unchanging: set[int] = set()  # what is so already is not told as if it were done
        self._applied: dict[int, Applied] = {}

    def prepare(self, events: Sequence[Event], *, independent: bool) -> list[Event]:
        """The events with their facts, applied to a rehearsal.

        Raises:
            RouterError: one cannot be, or a plugin refused it; of an independent event the leader says so.
        """
        prepared: dict[int, Event] = {}
        conflicts: dict[int, Event] = {}
        for place, event in enumerate(events):
            try:
                prepared[place] = self._ask_for(place, event)
                self._rehearse([place], [prepared[place]])
            except (RouterError, OSError) as why:
                if isinstance(why, Conflict) and place in prepared and (independent or event.action == "import"):
                    conflicts[place] = prepared[place]
                elif not independent:
                    raise
                else:
                    prepared[place] = _with_problem(event, why)
        for place, problem in fit(list(conflicts), lambda places: self._rehearse(places, [prepared[at] for at in places])):
            prepared[place] = _with_problem(prepared[place], problem)
        if not independent and (met := next((e.args["problem"] for e in prepared.values() if e.args.get("problem")), None)):
            raise as_error(met)
        return [prepared[place] for place in range(len(events))]

    def needs_reload(self) -> bool:
        """Whether nginx would have to be reloaded for the prepared events."""
        return any(applied.kind != "nothing" for applied in self._applied.values()) and Draft(self._candidate).needs_reload()

    def rehearse(self, events: Sequence[Event]) -> list[Outcome]:
        """Say what the prepared events would change; nothing is written.

        Raises:
            RouterError: nginx would not take it.
        """
        from .controller import Outcome
        from .validate import sweep, validate

        candidate, router = self._candidate, self.router
        draft, plane = Draft(candidate), router.plane()
        if candidate.problem is not None:
            raise candidate.problem
        try:
            validate(candidate, plane, candidate.changes_vhosts)
        finally:
            sweep(router.paths.run)
        for line in draft.difference():
            router.request.show(line)
        kinds = {applied.kind for applied in self._applied.values()}
        kind = next((k for k in ("structure", "endpoints") if k in kinds), "nothing")
        master = plane.master()
        reloads = kind != "nothing" and (draft.needs_reload() or draft.reloads_otherwise)
        cost = "one reload" if reloads else "no reload"
        how = "nothing to reload" if kind == "nothing" else f"{kind}: {cost}" if master else f"{kind}: the proxy is stopped"
        if master and reloads:
            how += f", which touches {plane.clients(master).text()}"
        router.request.say(f"dry run, nothing was changed ({how})")
        number = candidate.base.number if candidate.base else None
        serving = router.serving()
        return [
            Outcome(event, event.app, number, serving, applied.kind, answer=applied.edit.answer)
            if (applied := self._applied.get(n))
            else Outcome(event, event.app, number, serving, error=as_error(event.args["problem"]))
            for n, event in enumerate(events)
        ]

    def judge(self, names: Sequence[str]) -> dict[str, RouterError | None]:
        """What is wrong with what the directories of these apps hold now, if anything; nothing is changed."""
        from .validate import check_template, check_unserved, judge

        found: dict[str, RouterError | None] = dict.fromkeys(names)
        for place, name in enumerate(names):
            try:
                self._rehearse([place], [self._ask_for(place, Event("take-up", name))])
            except (RouterError, OSError) as why:
                found[name] = as_ours(why)
        plane = self.router.plane()
        good = {name: r for name in names if found[name] is None and (r := self._candidate.rendered(name)) is not None}
        waiting = [{name: r for name, r in good.items() if r.vhost}]
        while waiting:
            group = waiting.pop()
            try:
                judge(self._candidate, plane, group)
            except RouterError as why:
                culprits = [why.app] if why.app in group else list(group) if len(group) == 1 else []
                found |= {name: why for name in culprits}
                others = [name for name in group if name not in culprits]
                parts = [others] if culprits else [others[: len(others) // 2], others[len(others) // 2 :]]
                waiting += [{name: group[name] for name in part} for part in parts if part]
        for name, rendered in good.items():
            if found[name] is None:
                try:
                    (check_unserved if rendered.template is None else check_template)(self._candidate, plane, rendered)
                except RouterError as why:
                    found[name] = why
        return found

    def notify(self, outcomes: Sequence[Outcome]) -> None:
        """Tell plugins what was done."""
        plugins = self.router.plugins
        for n, outcome in enumerate(outcomes):
            for hook, told in self._told[n] if self._is_done(n, outcome) else ():
                if plugins.has(hook):
                    plugins.notify(hook, self.router.signed(told))
        done = [o for o in outcomes if o.error is None and o.generation is not None and o.kind != "nothing"]
        if done and plugins.has("post-apply"):
            kind = next((k for k in ("structure", "endpoints") if any(o.kind == k for o in done)), "nothing")
            apps = sorted({o.event.args.get("new") or o.app for o in done if o.app})
            number = max(o.generation or 0 for o in done)
            plugins.notify(
                "post-apply", self.router.signed({"app": apps[0] if apps else None, "apps": apps, "generation": number, "kind": kind})
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
            self.router.plugins.notify("apply-failed", self.router.signed(told))

    def _is_done(self, place: int, outcome: Outcome) -> bool:
        if outcome.error is not None or place not in self._told:
            return False
        if outcome.kind == "nothing" and outcome.event.action == "take-up":
            return place in self._applied and self._applied[place].kind == "nothing"  # else another command took it up first
        return outcome.kind != "nothing" or place not in self._unchanging

    def _ask_for(self, place: int, event: Event) -> Event:
        edit = reduce(event, self._candidate)
        changes = any(self._candidate.texts(name) != texts for name, texts in edit.apps.items())
        if not changes and edit.config is None and edit.global_domains is None:
            self._unchanging.add(place)
        before, after = self._sides(event, edit)
        by_hand = [] if is_compared(event) else self._by_hand(event, edit)
        if by_hand:
            self._unchanging.discard(place)
        is_there = not changes and (by_hand or event.action == "create")  # whatever is done, it is not what the command says
        self._told[place] = by_hand + ([] if is_there else notifies(event, before, after))
        if changes and not self._gated:
            for hook, told in gates(event, before, after):
                if self.router.plugins.has(hook):
                    self.router.plugins.gate(hook, self.router.signed(told))
        base = self._candidate.base
        if asks_nobody(event) and base and event.app in base.apps:
            return event  # it keeps the facts that it is served with
        facts = {
            name: self._facts(event, self._candidate.parse(name, texts)).as_json() for name, texts in edit.apps.items() if texts is not None
        }
        return replace(event, facts=facts)

    def _sides(self, event: Event, edit: Edit) -> tuple[App | None, App | None]:
        """The app of an event before it, and after it where only that says what changes; None: there is none."""
        if event.app is None or not is_compared(event):
            return self.router.app_or_none(event.app), None
        if event.action == "take-up" and not self._tells_of_edits:
            return None, None
        texts = edit.apps[event.app]
        return self._served(event.app), None if texts is None else self._candidate.parse(event.app, texts)

    def _by_hand(self, event: Event, edit: Edit) -> list[Call]:
        """What is told of edits by hand that a command takes up with what it does itself."""
        name = event.app
        if name is None or name not in edit.apps or event.action == "destroy" or not self._tells_of_edits or name in self._compared:
            return []
        self._compared.add(name)  # two events of one app take one edit up
        texts = self._candidate.texts(name)
        if self.router.store.is_changing_app(name):
            return []  # another command is about to write what it tells itself
        try:
            return notifies(Event("take-up", name), self._served(name), None if texts is None else self._candidate.parse(name, texts))
        except RouterError:
            return []  # what cannot be read is not taken up

    def _served(self, name: str) -> App | None:
        """An app as it is served, as far as that can be known: of one whose state is lost all is new.  None: it is not served."""
        base = self._candidate.base
        if base is None or name not in base.apps:
            return None
        try:
            return self._candidate.parse(name, self._candidate.served(name)[0])
        except UsageProblem:  # of an earlier version, or its plugins
            return self._candidate.parse(name, {})

    @cached_property
    def _tells_of_edits(self) -> bool:
        """Whether anybody wants to know; else it would have to be read of all apps for nobody."""
        return any(self.router.plugins.has(hook) for hook in TOLD_OF_EDITS)

    def _rehearse(self, places: Sequence[int], events: Sequence[Event]) -> None:
        plugins = self.router.plugins
        for at, event, applied in zip(places, events, self._candidate.apply_all(events), strict=True):
            self._applied[at] = applied
            if applied.kind == "nothing" or asks_nobody(event) or not plugins.has("pre-apply"):
                continue
            before = self.router.app_or_none(event.app)
            for name in applied.apps:
                rendered = self._candidate.changed.get(name)
                vhost = rendered.vhost.decode(errors="replace") if rendered else ""
                about = {**payload(event, before), "app": name, "apps": [name], "kind": applied.kind, "vhost": vhost}
                with plugins.foreseeing(self._candidate.settings.plugins, {name: rendered.app.plugins if rendered else {}}):
                    plugins.gate("pre-apply", self.router.signed(about))

    def _facts(self, event: Event, app: App) -> Facts:
        # what `plugins:set` is about to write counts already
        with self.router.plugins.foreseeing(self._candidate.settings.plugins, {app.name: app.plugins}):
            return self._ask(event, app)

    def _ask(self, event: Event, app: App) -> Facts:
        plugins = self.router.plugins
        told = self.router.signed({"app": app.name, "action": event.action})
        hosts = sorted({e.address.host for e in app.endpoints if not e.address.is_literal})
        resolved = ask_plugins(plugins, hosts, told)
        resolved |= look_up([host for host in hosts if host not in resolved])
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
        return Facts(resolved, tuple(snippets), template, self._templates(told) if plugins.has("template-dirs") else {})

    def _templates(self, told: Mapping[str, Any]) -> dict[str, str]:
        """What own templates may include; of two of one name that of the plugin which is called first."""
        plugins = self.router.plugins
        found: dict[str, str] = {}
        for plugin, text in plugins.collect("template-dirs", told):
            for line in filter(None, map(str.strip, text.splitlines())):
                directory = (plugins.directory(plugin) or Path("/")) / line
                try:
                    if not directory.is_dir():
                        raise UsageProblem("there is no such directory")
                    for path in sorted(directory.glob("*.j2")):
                        found.setdefault(path.name, read_text(path) or "")
                except UsageProblem as why:
                    raise PluginBroken(
                        f"plugin {plugin} failed template-dirs of '{told['app']}': {directory}: {why.message}", app=told["app"]
                    ) from None
        return found


def _with_problem(event: Event, why: Exception) -> Event:
    if not isinstance(why, RouterError | OSError):
        raise why
    return replace(event, args={**event.args, "problem": error_as_json(as_ours(why))})
