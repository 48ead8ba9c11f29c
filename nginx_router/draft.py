"""The generation that a candidate comes to: what it is made of, its files, and what nginx has to do for it.

Nothing is written here.  It follows its candidate: events that are applied later are in what it says then.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from . import endpointlog, routes
from .candidate import Candidate
from .differing import but_routes
from .entries import Entries, values_of
from .index import Index
from .model import Entry
from .rendering import Rendered
from .store import Write


class Draft:
    """Of one candidate."""

    def __init__(self, candidate: Candidate) -> None:
        self._of = candidate

    # what it is made of

    def index(self, number: int, probe: str, live: str = "") -> Index:
        """What generation `number` is made of; `live` is the version of its routes, where those change without a reload."""
        of, base = self._of, self._base
        changes = {
            **{name: replace(base[name], inline="") for name in self._inline()},
            **{name: replace(r.entry, generation=number) if r is not None else None for name, r in of.changed.items()},
        }
        apps = Entries.of(base).changed(changes)
        return Index(number, probe, of.config, of.global_domains, of.facts, apps, str(of.store.paths.root), of.released(), live)

    def logged(self, live: str) -> tuple[Index, dict[str, Entry]]:
        """The base with changes of endpoints alone, and the entries that differ; `live` is the version of the routes then."""
        base = self._of.base
        assert base is not None
        changes = {
            name: replace(r.entry, generation=base.number, inline=r.state.decode()) for name, r in self._of.changed.items() if r is not None
        }
        return replace(base, apps=Entries.of(base.apps).changed(changes), live=live), changes

    def inlined(self) -> dict[str, bytes]:
        """What a generation of its own keeps as objects of the base's changes of endpoints."""
        base, changed = self._base, self._of.changed
        return {base[name].state: base[name].inline.encode() for name in self._inline() if name not in changed}

    def lost_objects(self) -> dict[str, bytes]:
        """Objects of apps that events looked at, which the disk lost or somebody changed."""
        of = self._of
        named = {sha for r in of.changed.values() if r is not None for sha, _ in r.objects()}
        kept = {sha: data for r in of.looked_at.values() if r is not None for sha, data in r.objects() if sha not in named}
        inlined = self.inlined() if kept else {}
        return {sha: data for sha, data in kept.items() if sha not in inlined and not of.generations.is_intact(sha)}

    # its files

    def stage_files(self, index: Index) -> dict[str, str]:
        """router.conf and, managed, nginx.conf of a generation."""
        of = self._of
        files = {"router.conf": self.router_conf(index)}
        if not of.settings.is_host_mode:
            files["nginx.conf"] = of.renderer.main(index.number, of.generations.directory(index.number))
        if index.live:
            files |= {
                "live.lua": of.renderer.live_program(),
                "live.tsv": routes.snapshot(index.live, index.routes),
                endpointlog.NAME: endpointlog.begun(index.live),
            }
        return files

    def router_conf(self, index: Index) -> str:
        """router.conf of a generation, the probe's number in its header: unchanged bytes need no reload."""
        of, apps = self._of, values_of(index.apps)
        ports = {of.settings.http_port, *(port for each in apps.values() for port in each.get("ports", ()))}
        vhosts = {name: f"{of.store.paths.objects}/{each['vhost']}" for name, each in apps.items() if each["vhost"]}
        pools = [tuple(each.get("pool", ())) for each in apps.values()]
        return of.renderer.http(_numbered(index.probe), index.probe, sorted(ports), vhosts, pools=pools)

    def main_conf(self, directory: Path) -> str:
        """nginx.conf of what is current, with what it makes in `directory`."""
        return self._of.renderer.main(0, self._of.store.paths.current, run=f"{directory}")

    def wrapper(self, directory: Any, apps: Mapping[str, Rendered]) -> dict[str, str]:
        """The files of the configuration that validates `apps` alone."""
        of = self._of
        ports = {port for r in apps.values() for port in r.entry.ports} or {of.settings.http_port}
        vhosts = {name: f"{directory}/{r.entry.vhost}" for name, r in apps.items()}
        others = [name for name, owner in of.owners.items() if owner not in apps]
        return of.renderer.wrapper(directory, sorted(ports), vhosts, others, [r.entry.pool for r in apps.values()])

    def difference(self) -> list[str]:
        """What it changes, file by file and vhost by vhost, as unified diffs."""
        import difflib

        of = self._of
        pairs = [
            (step.path, step.old or "", step.new or "") if isinstance(step, Write) else (f"{step.old} -> {step.new}", "", "")
            for step in of.steps()
        ]
        for name, rendered in of.changed.items():
            entry = self._base.get(name)
            was = of.generations.object(entry.vhost).decode(errors="replace") if entry and entry.vhost else ""
            now = rendered.vhost.decode(errors="replace") if rendered else ""
            if was != now:
                pairs.append((f"vhost of {name}", was, now))
        lines_of = []
        for path, old, new in pairs:
            found = list(difflib.unified_diff(old.splitlines(), new.splitlines(), path, path, lineterm="", n=2))
            lines_of += found or [path]
        return lines_of

    # what nginx has to do for it

    def needs_reload(self) -> bool:
        """Whether nginx would read something else than it did."""
        if self.is_logged:
            return False  # thousands of apps need not be looked at for one that changes its instances
        of, base = self._of, self._of.base
        if base is None or self.router_conf(self.index(base.number, base.probe)) != self._read("router.conf"):
            return True
        if of.settings.is_host_mode or base.config == of.config:
            return False
        # of what stands above the http block nginx takes this one up by a reload
        was = base.settings(of.tables)
        return was.get("worker-shutdown-timeout") != of.settings.get("worker-shutdown-timeout")

    @property
    def reloads_otherwise(self) -> bool:
        """Whether the command that reloads nginx is another: a wrong one is to be found by the change that sets it."""
        of, base = self._of, self._of.base
        if base is None or not of.settings.is_host_mode:
            return False
        return base.settings(of.tables).get("reload-command") != of.settings.get("reload-command")

    @property
    def changes_routes(self) -> bool:
        """Whether requests go elsewhere, of what nginx takes up without a reload."""
        base = self._base
        return any((r.entry.routes if r else ()) != (base[n].routes if n in base else ()) for n, r in self._of.changed.items())

    @property
    def is_logged(self) -> bool:
        """Whether nothing changes but where requests go: nginx takes that up as it runs, and it makes no generation."""
        of, base = self._of, self._of.base
        if base is None or not base.live or base.is_lost or base.log >= endpointlog.LONGEST or of.moves_apps:
            return False
        if not self.changes_routes or not self._reads_the_same(base):
            return False
        return all(
            r is not None and name in base.apps and but_routes(r.entry) == but_routes(base.apps[name]) for name, r in of.changed.items()
        )

    # private

    @property
    def _base(self) -> Mapping[str, Entry]:
        return self._of.base.apps if self._of.base else {}

    def _inline(self) -> list[str]:
        return [name for name, each in values_of(self._base).items() if each.get("inline")]

    def _reads_the_same(self, base: Index) -> bool:
        """Whether what nginx reads besides the apps is the base's."""
        of = self._of
        if (of.config, of.global_domains, of.facts) != (base.config, base.global_domains, base.facts):
            return False
        if not of.settings.is_live or not base.is_of(of.store.paths.root):
            return False
        return self._read("live.lua") == of.renderer.live_program()  # else it is of another version of this program

    def _read(self, name: str) -> str:
        """A file of the base; empty where it is gone."""
        assert self._of.base is not None
        try:
            return (self._of.generations.directory(self._of.base.number) / name).read_text()
        except FileNotFoundError:
            return ""


def _numbered(probe: str) -> int:
    return int(probe.partition("-")[0])
