"""Where everything lives: the root and its paths, from the environment alone."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

#: The root of a host that was set up for all users.
HOST_ROOT = Path("/var/lib/router")

#: The longest path that bind(2) takes, less the final NUL; a deeper root is probed by a secret server name instead.
LONGEST_SOCKET = 107


@dataclass(frozen=True)
class Paths:
    """The paths below ROUTER_ROOT (absolute, links resolved, so that nginx and the router write the same names)."""

    root: Path

    @cached_property
    def config(self) -> Path:
        """Host-wide properties."""
        return self.root / "router.toml"

    @cached_property
    def global_domains(self) -> Path:
        """Global domains, one a line."""
        return self.root / "DOMAINS"

    @cached_property
    def apps(self) -> Path:
        """One directory an app."""
        return self.root / "apps"

    @cached_property
    def objects(self) -> Path:
        """Rendered files, each under the hash of its bytes."""
        return self.root / "objects"

    @cached_property
    def generations(self) -> Path:
        """The numbered generations."""
        return self.root / "generations"

    @cached_property
    def current(self) -> Path:
        """The link to the current generation."""
        return self.root / "current"

    @cached_property
    def journal(self) -> Path:
        """One line a change."""
        return self.root / "journal.jsonl"

    @cached_property
    def plugins(self) -> Path:
        """Installed plugins."""
        return self.root / "plugins"

    @cached_property
    def run(self) -> Path:
        """Sockets, pids, locks and the queue."""
        return self.root / "run"

    @cached_property
    def log(self) -> Path:
        """Logs of nginx and of unexpected errors."""
        return self.root / "log"

    @cached_property
    def lock(self) -> Path:
        """The host lock; whoever holds it by flock(2) holds back all changes."""
        return self.run / "lock"

    @cached_property
    def queue(self) -> Path:
        """Requested changes and their answers."""
        return self.run / "queue"

    @cached_property
    def intent(self) -> Path:
        """What a change is about to write, so that a crash can be undone."""
        return self.run / "intent.json"

    @cached_property
    def changing(self) -> Path:
        """Exists while a change is under way that needs no intent: one of endpoints, whose log says what is to follow."""
        return self.run / "changing"

    @cached_property
    def reserve(self) -> Path:
        """Room on the disk that is given up when nothing else is left."""
        return self.run / "reserve"

    @cached_property
    def stale(self) -> Path:
        """Apps whose directory cannot be served, and why."""
        return self.run / "stale.json"

    @cached_property
    def wanted(self) -> Path:
        """Exists while the operator wants the proxy to run."""
        return self.run / "wanted"

    def app(self, name: str) -> Path:
        """The directory of one app."""
        return self.apps / name


def paths(environ: Mapping[str, str] | None = None) -> Paths:
    """The root: ROUTER_ROOT, else /var/lib/router if it exists or you are root, else the XDG data directory."""
    env = os.environ if environ is None else environ
    if env.get("ROUTER_ROOT"):
        return Paths(Path(env["ROUTER_ROOT"]).absolute().resolve())
    if HOST_ROOT.is_dir() or os.geteuid() == 0:
        return Paths(HOST_ROOT.resolve())
    data = env.get("XDG_DATA_HOME") or str(Path(env.get("HOME", "~")).expanduser() / ".local/share")
    return Paths((Path(data) / "router").absolute().resolve())
