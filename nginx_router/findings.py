"""What an examination of the host finds, and what it looks at."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal

from .errors import RouterError
from .index import Index
from .model import Globals

if TYPE_CHECKING:
    from .controller import Router
    from .dataplane import Worker
    from .nginx import Nginx
    from .orphans import Orphan

#: `skipped`: it cannot be looked at, for something that is a problem of another check.
State = Literal["ok", "warning", "problem", "skipped"]


@dataclass(frozen=True)
class Finding:
    """One thing that a check found; `mend` puts it right where that is safe, and says what it did."""

    state: State
    what: str
    fix: str = ""  # the command that mends it
    mend: Callable[[], str] | None = None
    asks: str = ""  # what a person is asked before it is mended, on a terminal and without --fix


def ok(what: str) -> Finding:
    """All is well; what was seen."""
    return Finding("ok", what)


def skipped(what: str) -> Finding:
    """There is nothing to look at; why."""
    return Finding("skipped", what)


def warning(what: str, fix: str = "", mend: Callable[[], str] | None = None) -> Finding:
    """It works, and may not for long."""
    return Finding("warning", what, fix, mend)


def problem(what: str, fix: str = "", mend: Callable[[], str] | None = None, asks: str = "") -> Finding:
    """Something does not work, or will not at the next start."""
    return Finding("problem", what, fix, mend, asks)


@dataclass(frozen=True)
class Result:
    """What one check came to in one respect."""

    name: str
    state: State
    what: str
    fix: str = ""
    fixed: str = ""  # what --fix did
    is_fixable: bool = False  # by --fix

    def as_json(self) -> dict[str, Any]:
        """An element of `checks` in the JSON of `router doctor`."""
        is_ok = self.state == "ok" or bool(self.fixed)
        is_note = self.state in ("ok", "skipped")
        return {
            "name": self.name,
            "state": "ok" if is_ok else self.state,
            "ok": is_ok,
            "note": self.what if is_note else None,
            "problem": None if is_note else self.what,
            "fix": self.fix or None,
            "fixed": self.fixed or None,
        }


class Look:
    """What the checks share: read once, and None where it cannot be read (the check of that very thing says why)."""

    def __init__(self, router: Router, *, endpoints: bool = False, domains: bool = False) -> None:
        self.router, self.paths = router, router.paths
        self.asks_endpoints, self.asks_domains = endpoints, domains

    @cached_property
    def index(self) -> Index | None:
        """The current generation."""
        with contextlib.suppress(RouterError):
            return self.router.index()
        return None

    @cached_property
    def settings(self) -> Globals:
        """The host-wide settings as served; where those cannot be read, the defaults."""
        with contextlib.suppress(RouterError):
            return self.router.plane().settings
        return Globals()

    @cached_property
    def plane(self) -> Nginx:
        """The nginx that serves."""
        from .nginx import Nginx

        return Nginx(self.paths, self.settings)

    @cached_property
    def master(self) -> int | None:
        """The pid of the running master."""
        with contextlib.suppress(RouterError):
            return self.plane.master()
        return None

    @cached_property
    def workers(self) -> list[Worker]:
        """Its workers."""
        return self.plane.workers(self.master) if self.master else []

    @cached_property
    def orphans(self) -> list[Orphan]:
        """What an earlier master left."""
        with contextlib.suppress(RouterError):
            return self.plane.orphans()
        return []

    @property
    def is_to_be_started(self) -> bool:
        """Whether a start of the managed nginx is due; it puts right whatever a killed one left."""
        return self.is_wanted and self.master is None and not self.plane.is_host_mode

    @cached_property
    def is_wanted(self) -> bool:
        """Whether nginx is to run."""
        with contextlib.suppress(RouterError):
            return self.plane.wanted()
        return self.paths.wanted.exists()

    @cached_property
    def ports(self) -> list[int]:
        """The ports on which the current generation listens."""
        return sorted(
            {self.settings.http_port, *(port for entry in (self.index.apps if self.index else {}).values() for port in entry.ports)}
        )


Check = Callable[[Look], Iterator[Finding]]


def some(names: list[str], most: int = 5) -> str:
    """Names for a line: the first ones, and how many more there are."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
