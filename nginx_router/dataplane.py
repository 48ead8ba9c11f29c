"""The data plane: what sends requests to endpoints, as the rest of the router sees it.

Whoever changes something asks for it by `data_plane` and knows it by this protocol alone: validate apart, start, reload and
prove.  Checks of `doctor` and the set-up of host mode know which program it is, because they are about that program.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from .live import InFlight, Live
from .model import Globals, HostFacts
from .orphans import Orphan
from .settings import Paths


@dataclass(frozen=True)
class Worker:
    """One worker process of the master."""

    pid: int
    started: int  # with the pid, its identity: ticks since boot
    shutting_down: bool


@dataclass(frozen=True)
class Reloaded:
    """What a proven reload cost."""

    old_workers: tuple[tuple[int, int], ...] = ()  # pid and start of those that still finish what they have
    closed_connections: int = 0  # idle ones of clients, and those whose request ended meanwhile
    kept_connections: int = 0  # those that old workers go on to serve: requests and websockets
    websockets: int | None = 0  # that were open; None: not known


@dataclass(frozen=True)
class Clients:
    """The client connections that a reload would touch: it closes the idle ones, and old workers finish the others."""

    connections: int
    idle: int  # at least: an idle connection to an instance may hide one
    websockets: int | None  # None: not known

    def text(self) -> str:
        """In words."""
        known = "" if self.websockets is None else f", {self.websockets} websocket{'' if self.websockets == 1 else 's'}"
        what = f"{self.connections} client connection{'' if self.connections == 1 else 's'}"
        return f"{what} (at least {self.idle} idle{known})" if self.connections else what


@dataclass(frozen=True)
class Verdict:
    """What the program said of a configuration that it was asked to read."""

    ok: bool
    messages: tuple[str, ...]  # of level warn and above, in its own words


class DataPlane(Protocol):
    """A program that serves generations, under the settings of one of them."""

    settings: Globals

    @property
    def is_host_mode(self) -> bool:
        """Whether a service manager starts and stops it."""

    @property
    def conf(self) -> Path:
        """The file that it reads at start."""

    @property
    def error_log(self) -> Path:
        """Where it says why it did not take a configuration up."""

    @property
    def pid_file(self) -> Path:
        """Where it leaves its pid."""

    def facts(self, previous: HostFacts | None) -> HostFacts:
        """What a generation must know of this host.

        Raises:
            UsageProblem: what the host has cannot be read.
        """

    def wanted(self) -> bool:
        """Whether the operator wants it to run."""

    def master(self) -> int | None:
        """The pid of the one that runs."""

    def adopt(self) -> None:
        """Take one that runs, and that the router lost sight of, for the one that runs."""

    def is_mute(self, facts: HostFacts) -> bool:
        """Whether it runs and cannot be asked what it serves, now and after any reload."""

    def workers(self, master: int | None = None) -> list[Worker]:
        """Its workers, those that are shutting down too."""

    def clients(self, master: int) -> Clients:
        """The client connections of the workers that accept."""

    def probe(self, facts: HostFacts) -> str | None:
        """What the generation that serves answers at this moment; None: nobody answers."""

    def serves(self, facts: HostFacts, probe: str) -> bool:
        """Whether everything that accepts is known to serve the generation whose probe is `probe`."""

    @property
    def routes(self) -> Live:
        """The routes that it has, of those that change without a reload."""

    def in_flight(self, addresses: Iterable[str]) -> Mapping[int, InFlight]:
        """What each worker has under way at these addresses, of routes that change without a reload."""

    def test(self, conf: Path) -> Verdict:
        """What it says of a configuration; nothing changes."""

    def start(self, facts: HostFacts, probe: str) -> None:
        """Start it and see it answer with the generation whose probe is `probe`.

        Raises:
            UsageProblem: the service manager starts it.
            ProxyDown: it does not come up; its own words are in the message.
        """

    def stop(self) -> bool:
        """End it, requests that run may finish for some seconds; False: it did not run.

        Raises:
            UsageProblem: the service manager stops it.
        """

    def reload(self, facts: HostFacts, probe: str | None) -> Reloaded:
        """Take up what `current` holds, and see everything that accepts serve it.

        Raises:
            ProxyDown: it does not run.
            ReloadFailed: the old configuration still serves; its words are in the message.
        """

    def start_line(self) -> str:
        """What to type to start it."""

    def refuse_in_host_mode(self, verb: str) -> None:
        """Where a service manager starts and stops it, that is the one to ask.

        Raises:
            UsageProblem: it is so here; the line to type is said.
        """

    def orphans(self) -> list[Orphan]:
        """What an earlier one that was killed left running."""


#: What this process found last: of which root, when, for what it was asked.
_found: dict[Paths, tuple[float, tuple[Globals, HostFacts | None], HostFacts]] = {}


def host_facts(paths: Paths, settings: Globals, previous: HostFacts | None, *, age: float = 0.0) -> HostFacts:
    """What a generation must know of this host, as it was `age` seconds ago at most.

    Who asks under the host lock has asked a moment before it, and everybody waits.

    Raises:
        UsageProblem: what the host has cannot be read.
    """
    asked, now = (settings, previous), time.monotonic()
    known = _found.get(paths)
    if known and now - known[0] < age and known[1] == asked and not settings.is_host_mode:
        return known[2]
    found = data_plane(paths, settings).facts(previous)
    _found.clear()
    _found[paths] = now, asked, found
    return found


def data_plane(paths: Paths, settings: Globals) -> DataPlane:
    """What serves the root under these settings."""
    from .nginx import Nginx  # with what it starts and asks, 10 ms

    return Nginx(paths, settings)
