"""What is asked of each app and endpoint, from the access logs: requests a second, status classes, p50 and p99.

Memory is bounded by the number of apps and endpoints, never by that of requests: times are counted in buckets that grow by
5 %, exact below 32 ms, for nginx's clock of a request ticks in milliseconds.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import accesslog
from .accesslog import Log
from .errors import RouterError
from .names import covers

if TYPE_CHECKING:
    from .controller import Router
    from .index import Index

#: How many endpoints of an app are told apart in one look; the others are counted as one.
MOST_ENDPOINTS = 64
OTHERS = "others"
_EXACT = 32
_GROWTH = math.log(1.05)


class Spread:
    """Times in buckets: quantiles to within 2.5 %, in a few kilobytes whatever there is to count."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one time."""
        milliseconds = round(seconds * 1000)
        self._counts[milliseconds if milliseconds < _EXACT else _EXACT + int(math.log(milliseconds / _EXACT) / _GROWTH)] += 1

    def merge(self, other: Spread) -> None:
        """Count what another one counted."""
        self._counts.update(other._counts)

    def quantile(self, share: float) -> float | None:
        """The time, in seconds, within which `share` of all were done; None where there is none."""
        total = self._counts.total()
        wanted, seen = math.ceil(share * total), 0
        for bucket in sorted(self._counts):
            seen += self._counts[bucket]
            if seen >= wanted:
                milliseconds = bucket if bucket < _EXACT else _EXACT * math.exp((bucket - _EXACT + 0.5) * _GROWTH)
                return round(milliseconds / 1000, 4)
        return None


@dataclass
class Tally:
    """What was asked of one app or endpoint."""

    requests: int = 0
    classes: Counter[int] = field(default_factory=Counter)  # first digit of the status -> requests
    passed_on: int = 0  # tries after which nginx asked another endpoint
    spread: Spread = field(default_factory=Spread)

    def merge(self, other: Tally) -> None:
        """Add what another one counted."""
        self.requests += other.requests
        self.passed_on += other.passed_on
        self.classes.update(other.classes)
        self.spread.merge(other.spread)

    def as_json(self, seconds: float) -> dict[str, Any]:
        """What it came to in `seconds`."""
        return {
            "requests": self.requests,
            "per_second": round(self.requests / seconds, 2) if seconds > 0 else 0.0,
            "status": {f"{n}xx": self.classes[n] for n in range(1, 6)},
            "p50": self.spread.quantile(0.5),
            "p99": self.spread.quantile(0.99),
        }


@dataclass
class Sample:
    """What came in some seconds."""

    seconds: float = 0.0
    apps: dict[str, Tally] = field(default_factory=dict)
    endpoints: dict[str, dict[str, Tally]] = field(default_factory=dict)
    strange: Counter[str] = field(default_factory=Counter)  # app -> lines in a format that is not known
    skipped: int = 0  # bytes that came too fast

    def count(self, app: str, line: accesslog.Line) -> None:
        """Count one request."""
        tally = self.apps.setdefault(app, Tally())
        tally.requests += 1
        tally.classes[line.status // 100] += 1
        tally.spread.add(line.seconds)
        known = self.endpoints.setdefault(app, {})
        for number, (address, seconds) in enumerate(line.tried):
            own = known.setdefault(address if address in known or len(known) < MOST_ENDPOINTS else OTHERS, Tally())
            own.requests += 1
            if number == len(line.tried) - 1:
                own.classes[line.status // 100] += 1
            else:
                own.passed_on += 1
            if seconds is not None:
                own.spread.add(seconds)

    def merge(self, other: Sample) -> None:
        """Add what another one counted."""
        self.seconds += other.seconds
        self.skipped += other.skipped
        self.strange.update(other.strange)
        for app, tally in other.apps.items():
            self.apps.setdefault(app, Tally()).merge(tally)
        for app, known in other.endpoints.items():
            own = self.endpoints.setdefault(app, {})
            for address, tally in known.items():
                own.setdefault(address if address in own or len(own) < MOST_ENDPOINTS else OTHERS, Tally()).merge(tally)

    def as_json(self) -> dict[str, Any]:
        """The JSON of `router top --once`: apps that were asked something, the busiest first."""
        return {
            "seconds": round(self.seconds, 3),
            "apps": [
                {
                    "app": app,
                    **tally.as_json(self.seconds),
                    "endpoints": [
                        {"address": address, **own.as_json(self.seconds), "passed_on": own.passed_on}
                        for address, own in sorted(self.endpoints.get(app, {}).items(), key=lambda item: (-item[1].requests, item[0]))
                    ],
                }
                for app, tally in sorted(self.apps.items(), key=lambda item: (-item[1].requests, item[0]))
            ],
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What could not be counted."""
        notes = [f"{app}: {count} lines of its access log are in a format of its own" for app, count in sorted(self.strange.items())]
        return notes + ([f"{self.skipped >> 20} MiB of logs came faster than they could be read"] if self.skipped else [])


class Top:
    """Follows the access logs of all apps of a router, those that come meanwhile too; a look sums up the last `window` seconds."""

    def __init__(self, router: Router, *, window: float = 10.0) -> None:
        self._router, self._window = router, window
        self._logs: dict[str, Log] = {}
        self._writers: dict[str, list[str]] = {}  # path -> apps
        self._known: dict[str, tuple[str, ...]] = {}  # vhost object -> its logs
        self._index: Index | None = None
        self._samples: deque[Sample] = deque()
        self._there: set[str] = set()  # the logs that there were when they were looked for
        self._find_logs(first=True)
        self._at = time.monotonic()

    def look(self) -> Sample:
        """What came since the last look."""
        self._find_logs(first=False)
        sample = Sample()
        for path, log in self._logs.items():
            skipped = log.skipped
            for text in log.lines():
                line = accesslog.parse(text)
                app = self._app_of(path, line)
                if line is None:
                    sample.strange[app] += 1
                else:
                    sample.count(app, line)
            sample.skipped += log.skipped - skipped
        now = time.monotonic()
        sample.seconds, self._at = now - self._at, now
        return sample

    def recent(self) -> Sample:
        """What came within the window, up to now."""
        self._samples.append(self.look())
        while len(self._samples) > 1 and sum(s.seconds for s in self._samples) - self._samples[0].seconds >= self._window:
            self._samples.popleft()
        recent = Sample()
        for sample in self._samples:
            recent.merge(sample)
        return recent

    def close(self) -> None:
        """Let go of the logs."""
        for log in self._logs.values():
            log.close()

    @property
    def generation(self) -> int | None:
        """The generation whose apps are followed."""
        return self._index.number if self._index else None

    @property
    def unlogged(self) -> list[str]:
        """The apps that write no access log."""
        if self._index is None:
            return []
        return sorted(app for app, entry in self._index.apps.items() if entry.vhost and entry.ports and not self._known.get(entry.vhost))

    def _find_logs(self, *, first: bool) -> None:
        if self._index is not None and self._router.generations.current_number() == self._index.number:
            return
        self._index = self._router.index()
        vhosts = {app: entry.vhost for app, entry in (self._index.apps if self._index else {}).items() if entry.vhost}
        known = {sha: self._known[sha] if sha in self._known else self._paths(sha) for sha in vhosts.values()}
        self._known, self._writers = known, {}
        for app, sha in vhosts.items():
            for path in known[sha]:
                self._writers.setdefault(path, []).append(app)
        for path in [path for path in self._logs if path not in self._writers]:
            self._logs.pop(path).close()
        for path in self._writers:
            if path not in self._logs:
                # what an app that came meanwhile has logged is all new, unless it goes on where an earlier one of its name ended
                self._logs[path] = Log(Path(path), whole=not first and path not in self._there)
        self._there = _files(self._router.paths.log)

    def _paths(self, sha: str) -> tuple[str, ...]:
        try:
            return accesslog.paths_in(self._router.generations.object(sha).decode(errors="replace"))
        except RouterError:
            return ()  # `doctor` says what is wrong with it

    def _app_of(self, path: str, line: accesslog.Line | None) -> str:
        writers = self._writers[path]
        if len(writers) == 1 or line is None or self._index is None:
            return writers[0]
        # a log of several apps: the name says whose
        return next((app for app in writers if _owns(self._index, app, line.host)), writers[0])


def _files(directory: Path) -> set[str]:
    try:
        return {str(path) for path in directory.iterdir()}
    except FileNotFoundError:
        return set()


def rows(sample: Mapping[str, Any]) -> Iterator[tuple[object, ...]]:
    """A sample's JSON as rows of a table of `COLUMNS`: each app, and its endpoints under it."""
    for app in sample["apps"]:
        yield _row(app["app"], app)
        for endpoint in app["endpoints"]:
            yield _row(f"  {endpoint['address']}", endpoint)


#: The columns of `rows`; times in milliseconds.
COLUMNS = ("app", "req/s", "2xx", "3xx", "4xx", "5xx", "p50", "p99")


def _row(name: str, found: Mapping[str, Any]) -> tuple[object, ...]:
    status = found["status"]
    times = [f"{found[q] * 1000:.0f}" if found[q] is not None else "" for q in ("p50", "p99")]
    return (name, f"{found['per_second']:.1f}", *(status[f"{n}xx"] for n in range(2, 6)), *times)


def _owns(index: Index, app: str, host: str) -> bool:
    return any(name == host or covers(name, host) for name in index.apps[app].domains)
