"""The apps of a generation: as plain values, each of which becomes an `Entry` when it is asked for.

A change looks at a few apps of thousands: making 5,000 entries takes 50 ms, and reading their values 2.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from .model import Entry

_FIELDS = frozenset(field.name for field in fields(Entry))
_NEEDED = frozenset({"state", "vhost", "generation"})
_SELDOM = ("inline", "canary", "aborted")
_LISTS = ("domains", "ports", "objects", "variables", "pool")


class Entries(Mapping[str, Entry]):
    """Name -> entry, of plain values (as a file has them) by name.

    Raises:
        ValueError: one lacks what an entry needs, or has what none has.
    """

    def __init__(self, values: Mapping[str, Mapping[str, Any]]) -> None:
        for name, each in values.items():
            if not each.keys() >= _NEEDED or not each.keys() <= _FIELDS:
                raise ValueError(f"app {name}: {sorted(each)}")
        self._values = values
        self._made: dict[str, Entry] = {}
        self._owners: list[dict[str, str]] = []  # once they were asked for; those with other values for the same domains share them

    @classmethod
    def of(cls, apps: Mapping[str, Entry]) -> Entries:
        """The same apps; those that are entries of plain values already as they are."""
        return apps if isinstance(apps, Entries) else cls(values_of(apps))

    def __getitem__(self, name: str) -> Entry:
        if name not in self._made:
            each = self._values[name]
            # what an earlier version wrote lacks some
            lists: dict[str, Any] = {key: tuple(each.get(key, ())) for key in _LISTS}
            if "addresses" in each:
                lists["addresses"] = tuple(each["addresses"])
            self._made[name] = Entry(**{**each, **lists, "routes": tuple((process, line) for process, line in each.get("routes", ()))})
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, name: object) -> bool:
        return name in self._values

    def __eq__(self, other: object) -> bool:
        return self is other or (isinstance(other, Mapping) and dict(self) == dict(other))

    __hash__ = None  # type: ignore[assignment]  # as a dict has none

    def overlaid(self, values: Mapping[str, Mapping[str, Any]]) -> Entries:
        """The same with other plain values for some names.

        Raises:
            ValueError: as at the making.
        """
        return self._with({**self._values, **Entries(values).plain()}, values)

    def changed(self, changes: Mapping[str, Entry | None]) -> Entries:
        """The same with other entries, or without (None)."""
        gone = {name for name, entry in changes.items() if entry is None}
        new = {name: plain(entry) for name, entry in changes.items() if entry is not None}
        values = {**self._values, **new}
        return self._with({name: each for name, each in values.items() if name not in gone} if gone else values, changes)

    @property
    def owners(self) -> dict[str, str]:
        """Domain -> app."""
        if not self._owners:
            self._owners.append({domain: name for name, each in self._values.items() for domain in each.get("domains", ())})
        return dict(self._owners[0])

    def _with(self, values: Mapping[str, Mapping[str, Any]], names: Iterable[str]) -> Entries:
        found = Entries({})
        found._values = values  # looked at already
        if all(_domains(values, name) == _domains(self._values, name) for name in names):
            found._owners = self._owners
        return found

    def plain(self) -> Mapping[str, Mapping[str, Any]]:
        """The plain values by name."""
        return self._values


def _domains(values: Mapping[str, Mapping[str, Any]], name: str) -> list[str]:
    return list(values[name].get("domains", ())) if name in values else []


def plain(entry: Entry) -> dict[str, Any]:
    """An entry as plain values; what nobody knows is left out, which is not the same as none."""
    found = {key: value for key, value in vars(entry).items() if key not in _SELDOM or value}
    if entry.addresses is None:
        del found["addresses"]
    return found


def values_of(apps: Mapping[str, Entry]) -> Mapping[str, Mapping[str, Any]]:
    """The plain values of entries, by name."""
    return apps.plain() if isinstance(apps, Entries) else {name: plain(entry) for name, entry in apps.items()}
