"""What one generation is made of, as its state.json says it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .entries import Entries, values_of
from .model import Entry, Globals, HostFacts, Tables, parse_globals

#: The shape of state.json; a later program reads all earlier ones.
SCHEMA = 1


@dataclass(frozen=True)
class Index:
    """What one generation is made of (state.json)."""

    number: int
    probe: str  # what the probe answers while nginx serves this generation
    config: str  # router.toml
    global_domains: str  # DOMAINS
    facts: HostFacts
    apps: Mapping[str, Entry]
    root: str = ""  # where it was made: its files name others there by absolute paths; empty: not known
    released: Mapping[str, tuple[str, float]] = field(default_factory=dict)  # domain -> the app that let go of it lately, and when
    live: str = ""  # the version of the routes that nginx has of it; empty: endpoint changes reload
    log: int = 0  # how long its endpoints.log is
    is_lost: bool = False  # its endpoints.log is not what was written: where requests go, the directories alone know
    last: Mapping[str, Any] = field(default_factory=dict)  # who made the last change of that log: time, command, submissions, steps
    since: int = 0  # where that change begins
    behind: str = ""  # the version that it came to, if it needs nothing more

    def is_of(self, root: Path) -> bool:
        """Whether it was made in `root`; a root that was copied or moved holds generations of another place."""
        return self.root in ("", str(root))

    @property
    def is_unfinished(self) -> bool:
        """Whether the files of its log's last change may not be written, and its askers not told."""
        return "steps" in self.last and not self.behind and not self.is_lost

    def settings(self, tables: Tables) -> Globals:
        """The host-wide settings that it was made with.

        Raises:
            UsageProblem: this version, or its plugins, refuse them.
        """
        return parse_globals(self.config, self.global_domains, tables)

    @property
    def owners(self) -> dict[str, str]:
        """Domain -> app."""
        return Entries.of(self.apps).owners

    @property
    def routes(self) -> dict[str, str]:
        """Where requests go, of what changes without a reload."""
        return {name: line for each in values_of(self.apps).values() for name, line in each.get("routes", ())}

    def moved(self, base: Index) -> tuple[dict[str, str], dict[str, str]]:
        """The routes of the apps that are not as in `base`: there, and here."""
        was, now = values_of(base.apps), values_of(self.apps)
        names = [name for name in {**was, **now} if was.get(name) is not now.get(name)]
        before, after = (
            {name: line for each in names if each in side for name, line in side[each].get("routes", ())} for side in (was, now)
        )
        return before, after

    def as_json(self) -> dict[str, Any]:
        """Plain values for state.json."""
        return {
            "schema": SCHEMA,
            "generation": self.number,
            "probe": self.probe,
            "router.toml": self.config,
            "DOMAINS": self.global_domains,
            "facts": self.facts.as_json(),
            "apps": dict(sorted(values_of(self.apps).items())),
            "root": self.root,
            "live": self.live,
            "released": {domain: list(was) for domain, was in sorted(self.released.items())},
        }

    @classmethod
    def from_json(cls, raw: Mapping[str, Any]) -> Index:
        """What `as_json` gave.

        Raises:
            KeyError, TypeError, AttributeError, ValueError: it is not that.
        """
        return cls(
            raw["generation"],
            raw["probe"],
            raw["router.toml"],
            raw["DOMAINS"],
            HostFacts.from_json(raw["facts"]),
            Entries(raw["apps"]),
            raw.get("root", ""),
            {domain: (app, when) for domain, (app, when) in raw.get("released", {}).items()},
            raw.get("live", ""),
        )


def objects_of(entry: Entry) -> tuple[str, ...]:
    """Every object an app needs."""
    return objects_named(vars(entry))


def objects_named(values: Mapping[str, Any]) -> tuple[str, ...]:
    """The same, by the values of its entry."""
    return tuple(sha for sha in ("" if values.get("inline") else values["state"], values["vhost"], *values.get("objects", ())) if sha)


def objects_in(index: Index) -> set[str]:
    """Every object a generation names."""
    return {sha for each in values_of(index.apps).values() for sha in objects_named(each)}
