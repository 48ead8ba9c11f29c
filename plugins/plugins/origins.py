"""Where installed plugins came from, so that they can be updated: `plugins/.origins.json`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from nginx_router.errors import StateCorrupt, UsageProblem
from nginx_router.files import read_text, write_atomic

_FILE = ".origins.json"


@dataclass(frozen=True)
class Origin:
    """Where a plugin came from."""

    source: str  # an absolute path, or what git clones
    ref: str | None = None  # the branch, tag or commit that was asked for
    commit: str | None = None  # what that was; None: a directory was copied


def origins(plugins: Path) -> dict[str, Origin]:
    """Plugin -> its origin, of those that a command installed.

    Raises:
        StateCorrupt: the file cannot be what this wrote.
    """
    try:
        return {name: Origin(**raw) for name, raw in json.loads(read_text(plugins / _FILE) or "{}").items()}
    except (ValueError, TypeError, AttributeError, UsageProblem) as why:  # UsageProblem: no regular file
        raise StateCorrupt(f"{plugins / _FILE}: {why}", hint="remove it; plugins:update then needs plugins:install again") from None


def remember(plugins: Path, changes: Mapping[str, Origin | None]) -> None:
    """Write down where plugins came from; None: forget it."""
    now = {name: origin for name, origin in {**origins(plugins), **changes}.items() if origin is not None}
    if not now:
        (plugins / _FILE).unlink(missing_ok=True)
        return
    write_atomic(plugins / _FILE, (json.dumps({name: asdict(o) for name, o in sorted(now.items())}, indent=2) + "\n").encode())
