"""How the endpoints of a process are checked, and what their answers come to: pure, so that no test needs a clock.

The settings are keys of the plugin `checks`: a process's own table in app.toml counts first, then the app's, then the host's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .errors import UsageProblem
from .keys import Keys, lookup
from .kinds import as_seconds, status_ranges
from .model import App, Facts, Tables
from .names import Endpoint

#: The table of app.toml and router.toml that says how endpoints are checked, and the plugin that declares its keys.
TABLE = "checks"

#: Seconds: an endpoint that falls again so soon after it came back has to answer twice as often as the last time.
CALM = 300.0

#: How often that doubles at most.
MOST_RELAPSES = 5


@dataclass(frozen=True)
class Settings:
    """How the endpoints of one process are checked."""

    path: str | None = None  # None: by a TCP connection
    interval: float | None = None  # seconds; None: only when instances are deployed
    timeout: float = 5.0
    is_timeout_set: bool = False
    rise: int = 2
    fall: int = 3
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)
    host: str = ""

    def __str__(self) -> str:
        return "a TCP connection" if self.path is None else f"GET {self.path}"

    @classmethod
    def of(cls, words: Mapping[str, Any]) -> Settings:
        """The settings that the values of the keys come to; `words` are those that were set, in their one spelling."""
        path, interval = words.get("path", "off"), interval_of(words)
        return cls(
            path=None if path == "off" else path,
            interval=None if interval == "off" else as_seconds(interval),
            timeout=as_seconds(words.get("timeout", "5s")),
            is_timeout_set="timeout" in words,
            rise=int(words.get("rise", 2)),
            fall=int(words.get("fall", 3)),
            statuses=status_ranges(words.get("status", "200-399")),
            host="" if words.get("host", "auto") == "auto" else words["host"],
        )


def interval_of(words: Mapping[str, Any]) -> str:
    """How often instances are asked that serve: without a word only by deploys, or where there is a path every ten seconds."""
    return str(words.get("interval", "10s" if words.get("path", "off") != "off" else "off"))


def words_of(keys: Keys, table: Mapping[str, Any], process: str, everywhere: Mapping[str, Any]) -> dict[str, Any]:
    """What is set for a process, by key: its own table over the app's over the host's.

    Raises:
        UsageProblem: a value breaks the rule of its key; one of router.toml is named with that file.
    """
    found: dict[str, Any] = {}
    try:
        found |= {key: lookup(TABLE, keys, key).accept(value) for key, value in everywhere.items()}
    except UsageProblem as why:
        raise UsageProblem(f"router.toml: [{TABLE}] {why.message}", hint=f"router checks:set --global KEY VALUE; {why.hint}") from None
    own = table.get(process)
    for part in (table, own if isinstance(own, Mapping) else {}):
        found |= {key: keys[key].accept(value) for key, value in part.items() if key in keys}
    return found


def settings_of(tables: Tables, app: App, process: str, everywhere: Mapping[str, Mapping[str, Any]]) -> Settings | None:
    """How the endpoints of a process are checked; None where nobody knows of checks: their plugin is switched off.

    Raises:
        UsageProblem: a value of router.toml breaks the rule of its key.
    """
    keys = tables.get(TABLE) if isinstance(tables, Mapping) else None
    if not keys:
        return None
    found = Settings.of(words_of(keys, app.plugins.get(TABLE, {}), process, everywhere.get(TABLE, {})))
    return found if found.host else replace(found, host=first_domain(app))


def first_domain(app: App) -> str:
    """What an instance is asked for unless told otherwise: the first domain without a wildcard; empty where there is none."""
    return next((name for name in app.domains if not name.startswith("*")), "")


def still_out(facts: Facts, app: App, tables: Tables, everywhere: Mapping[str, Mapping[str, Any]]) -> dict[str, str]:
    """Of what `facts` says of failing endpoints that which still counts: they are there, and somebody checks them."""
    if not facts.unhealthy:
        return {}
    found = {}
    for endpoint in app.endpoints:
        if (why := facts.problem_of(endpoint)) is not None and endpoint.state == "active":
            try:
                settings = settings_of(tables, app, endpoint.process, everywhere)
            except UsageProblem:
                continue  # what is set for the host cannot be read, so that nobody checks anything
            if settings is not None and settings.interval is not None:
                found[endpoint.bare] = why
    return found


def serving(app: App, process: str, facts: Facts) -> list[Endpoint]:
    """The endpoints of a process that are not draining; one that fails its checks is down, unless none were left then."""
    found = [e for e in app.of_process(process) if not e.drain]
    if not facts.unhealthy:
        return found
    judged = [replace(e, down=e.down or facts.problem_of(e) is not None) for e in found]
    return found if all(e.down for e in judged) else judged


def is_failing_open(app: App, process: str, facts: Facts) -> bool:
    """Whether endpoints of a process get requests although they fail: none is left that does not."""
    return any(not e.down and facts.problem_of(e) is not None for e in serving(app, process, facts))


def seen(app: App, endpoint: Endpoint, facts: Facts) -> tuple[str, str | None]:
    """The state of an endpoint as nginx has it, and what is wrong with it by its checks."""
    why = facts.problem_of(endpoint)
    if why is None:
        return endpoint.state, None
    state = next((e.state for e in serving(app, endpoint.process, facts) if e.key == endpoint.key), endpoint.state)
    if state == "active":
        return state, f"{why}; it gets requests all the same: no other endpoint of {endpoint.process} is up"
    return state, why


def moves(app: App, before: Facts, after: Facts) -> list[str]:
    """What it comes to that other endpoints fail than before, in words: who is out, in again, or fails and gets requests all the same."""
    found = []
    for endpoint in app.endpoints:
        (was, old), (now, new) = seen(app, endpoint, before), seen(app, endpoint, after)
        was_out, is_out = old is not None and was != "active", new is not None and now != "active"
        if is_out and not was_out:
            found.append(f"{endpoint.bare} is out: {new}")
        elif new is None and old is not None:
            found.append(f"{endpoint.bare} is {'in again' if was_out else 'well again'}")
        elif new is not None and not is_out and before.problem_of(endpoint) is None:
            found.append(f"{endpoint.bare} fails: {new}")
    for process in app.processes:
        if is_failing_open(app, process, after) and not is_failing_open(app, process, before):
            found.append(f"all of {process} fail, and get requests all the same")
    return found


@dataclass(frozen=True)
class Health:
    """What is known of one endpoint: whether it is in, and how many answers in a row speak against that."""

    is_up: bool = True
    streak: int = 0
    relapses: int = 0  # how often it fell soon after it had come back
    since: float | None = None  # when it was taken in or out, of whatever clock; None: it has been in all the time

    def needed(self, settings: Settings) -> int:
        """How many answers in a row change it: an endpoint that comes and goes has to be well for longer each time."""
        return settings.fall if self.is_up else settings.rise * 2**self.relapses

    def after(self, passed: bool, now: float, settings: Settings) -> Health:
        """What it is after one more answer."""
        if passed == self.is_up:
            return replace(self, streak=0) if self.streak else self
        if self.streak + 1 < self.needed(settings):
            return replace(self, streak=self.streak + 1)
        if not self.is_up:
            return Health(True, 0, self.relapses, now)
        calm = MOST_RELAPSES if self.since is None else int((now - self.since) // CALM)
        relapses = self.relapses + 1 if calm == 0 else max(0, self.relapses - calm)
        return Health(False, 0, min(relapses, MOST_RELAPSES), now)
