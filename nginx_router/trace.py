"""Who would answer a request, and why: from the state, and by asking nginx.

The two are found independently: the state says what must happen by nginx's own rules (port, exact name, longest wildcard,
default server; then the location), the access log line of a real request says what did.  A contradiction is a finding.
"""

from __future__ import annotations

import contextlib
import http.client
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import accesslog
from .balancing import upstream_name
from .errors import RouterError, nearest
from .index import Index
from .orphans import counted
from .routing import Expected, Target, expect

if TYPE_CHECKING:
    from .controller import Router

#: How long the request may take, and how long its line in the log.
ANSWER_SECONDS, LOG_SECONDS = 10.0, 2.0
#: How much of the end of each log is searched for it.
_TAIL = 1 << 18


@dataclass(frozen=True)
class Answered:
    """What nginx did."""

    asked: str  # METHOD ADDRESS
    status: int | None = None  # None: there was no answer
    seconds: float = 0.0
    error: str | None = None
    is_refused: bool = False  # nobody listens
    app: str | None = None  # whose log has the request
    tried: tuple[str, ...] = ()  # the addresses that were asked, the last one answered
    request_id: str | None = None
    logged: bool = False


@dataclass(frozen=True)
class Trace:
    """Both, and where they contradict each other."""

    target: Target
    expected: Expected
    serving: int | None
    answered: Answered | None = None  # None: nginx does not run
    down: str = ""  # it should run and does not, and nobody answers in its place: what to type
    mends: str = "router proxy:reload"  # makes it serve what is current
    problems: tuple[str, ...] = ()
    nearest: str = ""
    stale: str | None = None
    notes: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """The JSON of `router trace`."""
        expected, answered = self.expected, self.answered
        return {
            "host": self.target.host,
            "path": self.target.path,
            "port": expected.port,
            "generation": expected.generation,
            "serving": self.serving,
            "app": expected.app,
            "domain": expected.domain,
            "rule": expected.rule,
            "server": expected.server,
            "location": expected.location,
            "process": expected.process,
            "endpoints": [dict(each) for each in expected.endpoints],
            "itself": expected.itself,
            "answer": None
            if answered is None
            else {
                "asked": answered.asked,
                "status": answered.status,
                "seconds": round(answered.seconds, 6),
                "error": answered.error,
                "app": answered.app,
                "upstream_addr": list(answered.tried),
                "request_id": answered.request_id,
            },
            "stale": self.stale,
            "notes": list(self.notes),
            "problems": list(self.problems),
        }


def trace(router: Router, wanted: Target, *, method: str = "HEAD") -> Trace:
    """Find out who answers `wanted`.

    Raises:
        StateCorrupt: the current generation cannot be read.
    """
    for _ in range(3):
        index = router.index()
        expected = expect(router, index, wanted)
        plane = router.plane()
        master = plane.master()
        # without a master its workers may answer all the same
        orphans = plane.orphans() if master is None else []
        is_asked = master is not None or bool(orphans)
        answered = _ask(router, index, expected, wanted, method) if is_asked and index is not None else None
        serving = router.serving() if is_asked else None
        now = router.index()
        if (now and (now.number, now.live)) == (index and (index.number, index.live)):
            break  # else a change came in between, and the two are not about the same state
    is_missed = master is None and plane.wanted()
    start = plane.start_line()
    is_down = is_missed and (answered is None or answered.is_refused)
    found = Trace(wanted, expected, serving, answered, down=start if is_down else "")
    left = ""
    if orphans and not is_down:
        found = replace(found, mends=start)
        left = f"{counted(orphans)} answered, whose master is gone: {start}"
    return replace(
        found,
        problems=tuple(_contradictions(found)),
        nearest="" if expected.app or index is None or wanted.host in index.owners else nearest(wanted.host, index.owners),
        stale=router.stale().get(expected.app or "", {}).get("problem"),
        notes=(*filter(None, [left]), *_notes(found)),
    )


def _ask(router: Router, index: Index, expected: Expected, wanted: Target, method: str) -> Answered:
    """Send a real request, and find its line: the user agent says which one is ours."""
    token = secrets.token_hex(8)
    ip = (router.plane().settings.get("bind-address").split() or ["127.0.0.1"])[0]
    shown_ip = f"[{ip}]" if ":" in ip else ip
    asked = f"{method} {shown_ip}:{expected.port}"
    host = wanted.host if expected.port == 80 else f"{wanted.host}:{expected.port}"
    began, since = time.monotonic(), time.time()
    connection = http.client.HTTPConnection(ip, expected.port, timeout=ANSWER_SECONDS)
    status, error, is_refused = None, None, False
    try:
        headers = {"Host": host, "User-Agent": f"router-trace/{token}", "X-Router-Trace": token, "Accept": "*/*", "Connection": "close"}
        connection.request(method, wanted.path, headers=headers)
        status = connection.getresponse().status
    except (http.client.RemoteDisconnected, ConnectionResetError):
        error = "closed without an answer"
    except TimeoutError:
        error = f"no answer within {ANSWER_SECONDS:g} s"
    except (OSError, http.client.HTTPException) as why:
        is_refused = isinstance(why, ConnectionRefusedError)
        error = getattr(why, "strerror", None) or f"{type(why).__name__}"
    finally:
        connection.close()
    answered = Answered(asked, status, time.monotonic() - began, error, is_refused)
    if status is None and not expected.app and error == "closed without an answer":
        wait = 0.05  # the default site writes no log: it is looked into all the same, for somebody else's would be a finding
    else:
        wait = LOG_SECONDS if status is not None else 0.2
    return _with_line(router, index, expected, answered, f"router-trace/{token}", since, wait)


def _with_line(router: Router, index: Index, expected: Expected, answered: Answered, token: str, since: float, wait: float) -> Answered:
    if wait == LOG_SECONDS and expected.app and not expected.logs:
        wait = 0.2
    logs = {path: expected.app for path in expected.logs}
    others: dict[str, str | None] | None = None
    deadline = time.monotonic() + (wait if expected.app else min(wait, 0.3))
    while True:
        for path, app in logs.items():
            if (line := _line_with(Path(path), token)) is not None:
                return _told(answered, app, line)
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    others = {path: app for app in index.apps for path in _logs_of(router, index, app) if path not in logs}
    for path, app in others.items():
        with contextlib.suppress(OSError):
            if Path(path).stat().st_mtime >= since - 1 and (line := _line_with(Path(path), token)) is not None:
                return _told(answered, app, line)
    return answered


def _told(answered: Answered, app: str | None, line: str) -> Answered:
    parsed = accesslog.parse(line)
    if parsed is None:
        return replace(answered, app=app, logged=True)
    tried = tuple(address for address, _ in parsed.tried)
    return replace(answered, app=app, logged=True, tried=tried, request_id=parsed.request_id or None)


def _line_with(path: Path, token: str) -> str | None:
    try:
        with path.open("rb") as file:
            file.seek(max(0, file.seek(0, 2) - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return None
    return next((line for line in reversed(lines) if token in line), None)


def _logs_of(router: Router, index: Index, app: str) -> tuple[str, ...]:
    vhost = index.apps[app].vhost
    with contextlib.suppress(RouterError, OSError):
        return accesslog.paths_in(router.generations.object(vhost).decode(errors="replace")) if vhost else ()
    return ()


def _contradictions(found: Trace) -> Iterator[str]:
    expected, answered = found.expected, found.answered
    if answered is None or found.down:
        return
    if found.serving != expected.generation:
        serves = "nothing of ours" if found.serving is None else f"generation {found.serving}"
        yield f"nginx serves {serves}, and current is generation {expected.generation}: {found.mends}"
    if answered.app != expected.app and answered.logged:
        meant = f"app {expected.app}" if expected.app else "the default site"
        yield f"nginx gave the request to app {answered.app}, the state says {meant}"
        return
    if expected.app is None:
        return
    if answered.status is None:
        yield f"app {expected.app} should answer, and {answered.error}: router doctor"
        return
    if not answered.logged and expected.logs:
        yield f"the request is not in the log of app {expected.app}: another server answered it"
        return
    # where nobody is up nginx logs the name of the upstream
    nobody = (upstream_name(expected.app, expected.process or ""), "router_live_")
    strange = [a for a in answered.tried if a not in expected.addresses and not a.startswith(nobody)]
    if strange:
        there = ", ".join(sorted(expected.addresses)) or "no endpoint"
        yield f"nginx asked {', '.join(strange)}, and the state has {there}"


def _notes(found: Trace) -> Iterator[str]:
    expected, answered = found.expected, found.answered
    if answered is None:
        yield "nginx does not run: only the state was looked at"
    elif found.down:
        return
    elif expected.app and not expected.logs:
        yield f"app {expected.app} writes no access log: which endpoint answered is not known"
    elif answered.logged and not answered.tried and answered.request_id is None:
        yield "the access log is in a format of its own: which endpoint answered is not known"
    elif answered.logged and expected.endpoints and not answered.tried:
        yield "nginx answered itself, and asked no endpoint"
