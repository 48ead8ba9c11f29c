"""Active checks in `router watch`: endpoints that fail are taken out, and taken in again when they are well.

    the thread of `Prober` -> the watch's queue -> one change for all that came together

What is asked follows from what is served, not from what a directory holds that was not taken up.  Which endpoints are out is
part of what is served too (`Facts.unhealthy`), so that a restart of nginx, of the watch or of the host keeps it; the watch asks
them anew and takes them in when they are well.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

from . import health
from .controller import Outcome, Request, Router
from .entries import values_of
from .errors import RouterError, UsageProblem, as_ours
from .events import Event
from .index import Index
from .model import App, Facts, parse_app
from .prober import Prober, Verdict
from .probing import Target, places

#: Seconds for which verdicts are gathered before nginx is reloaded for them, and between two such reloads.
GATHER, PAUSE = 0.5, 3.0

#: Seconds after which a change that could not be made is tried again.
RETRY = 5.0


class Checking:
    """The checks of one root; `report` puts a verdict on the watch's queue, `tell` and `say` are the watch's."""

    def __init__(
        self, router: Router, report: Callable[[Verdict], None], *, tell: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        # who holds the host lock for long is not waited for: edits are to be taken up meanwhile
        self._router = Router(router.paths, Request(command="checks (by watch)", lock_timeout=5.0, say=say))
        self._tell, self._say = tell, say
        self._prober = Prober(report)
        #: When what was found out is to be told to nginx; None: nothing is to be told.
        self.due: float | None = None
        self._seen: dict[str, str] = {}  # app -> the state that its targets were made of
        self._everywhere: Mapping[str, Any] | None = None
        self._targets: dict[str, dict[str, Target]] = {}
        self._out: dict[str, dict[str, str]] = {}  # app -> endpoint -> why it is out
        self._served_out: dict[str, frozenset[str]] = {}  # app -> the endpoints that were out by what was served when we looked last
        self._is_live = False
        self._last = 0.0
        self._said = ""

    def look(self) -> None:
        """See what is served by now, and ask its endpoints."""
        try:
            index = self._router.index()
            if index is None:
                return
            settings = index.settings(self._router.tables())
        except RouterError:
            return  # whoever takes edits up says what is wrong with it
        self._is_live = settings.is_live
        everywhere = settings.plugins.get(health.TABLE, {})
        if everywhere != self._everywhere:
            self._seen.clear()
        self._everywhere = everywhere
        values = values_of(index.apps)
        for app in [app for app in self._seen if app not in values]:
            self._forget(app)
        for app, each in values.items():
            if not (each.get("checked") or each.get("unhealthy") or everywhere):
                if app in self._seen:
                    self._forget(app)
            elif self._seen.get(app) != each["state"]:
                self._look_at(app, index, settings.plugins)

    def found(self, verdict: Verdict) -> None:
        """Take in what was found out about an endpoint."""
        app, line = verdict.key
        if line not in self._targets.get(app, {}):
            return  # it is gone, or checked no more
        out = self._out.setdefault(app, {})
        if self._prober.is_up(verdict.key):  # as it is by now: it may have been removed and come back since
            out.pop(line, None)
        elif verdict.problem is not None:
            since = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
            out[line] = f"{verdict.problem}, since {since}"
        self._is_due(0.0 if self._is_live else max(GATHER, self._last + PAUSE - time.monotonic()))

    def flush(self) -> None:
        """Have nginx served what was found out, all of it by one change."""
        self.due = None
        index = self._router.index()
        if index is None:
            return
        served = {}
        for app in self._targets:
            with contextlib.suppress(RouterError):  # as above
                if app in index.apps:
                    served[app] = self._served(index, app)
        changed = {app: dict(out) for app, (_, facts) in served.items() if (out := self._out.get(app, {})) != dict(facts.unhealthy)}
        if not changed:
            return
        events = [Event("health", app, {"endpoints": out}) for app, out in sorted(changed.items())]
        try:
            outcomes = self._router.change(events, independent=True)
        except (RouterError, OSError) as why:
            self._fail(as_ours(why).message)
            return
        except Exception as why:  # whatever a change makes of us, edits are to be taken up on
            self._fail("".join(traceback.format_exception(why)))
            return
        self._said = ""
        self._last = time.monotonic()
        for outcome in outcomes:
            assert outcome.app is not None
            if outcome.error is not None:
                self._fail(f"{outcome.app}: {outcome.error.message}")
            else:
                self._tell_of(outcome, *served[outcome.app], changed[outcome.app])
        self.look()

    def stop(self) -> None:
        """Ask no more; what is out stays out."""
        self._prober.stop()

    # private

    def _look_at(self, name: str, index: Index, everywhere: Mapping[str, Mapping[str, Any]]) -> None:
        self._seen[name] = index.apps[name].state
        try:
            app, facts = self._served(index, name)
        except RouterError:
            return  # its object is lost, or of another version: the next change of the app makes it anew
        targets: dict[str, Target] = {}
        for process in app.processes:
            try:
                settings = health.settings_of(self._router.tables(), app, process, everywhere)
            except UsageProblem as why:
                if why.message != self._said:
                    self._say(f"nothing is checked: {why.message}")
                self._said = why.message
                continue
            if settings is None or settings.interval is None:
                continue
            for endpoint in app.of_process(process):
                if endpoint.state == "active":
                    targets[endpoint.bare] = Target((name, endpoint.bare), endpoint.address, places(endpoint, facts), settings)
        self._targets[name] = targets
        # only a deploy that saw them answer takes in whom we hold for out
        taken_in = {line for line in self._served_out.get(name, ()) if line not in facts.unhealthy and line in self._out.get(name, {})}
        self._served_out[name] = frozenset(facts.unhealthy)
        # who asked for whatever else has kept what was known; what only the watch knows is not served yet
        known = self._out.get(name, {}) if name in self._out else dict(facts.unhealthy)
        self._out[name] = {line: why for line, why in known.items() if line in targets and line not in taken_in}
        self._prober.watch(name, targets, self._out[name])
        self._prober.take_in(name, taken_in)
        if self._out[name] != dict(facts.unhealthy):
            self._is_due(0.0)
        if not targets and not facts.unhealthy:
            self._targets.pop(name)
            self._out.pop(name)

    def _forget(self, app: str) -> None:
        for known in (self._seen, self._targets, self._out, self._served_out):
            known.pop(app, None)
        self._prober.watch(app, {}, ())

    def _served(self, index: Index, name: str) -> tuple[App, Facts]:
        texts, facts = self._router.generations.app_state(index.apps[name])
        return parse_app(name, texts, self._router.tables()), facts

    def _is_due(self, seconds: float) -> None:
        when = time.monotonic() + seconds
        self.due = when if self.due is None else min(self.due, when)

    def _fail(self, problem: str) -> None:
        if problem != self._said:
            for line in f"checks: nothing was changed: {problem}".splitlines():
                self._say(line)
        self._said = problem
        self._is_due(RETRY)

    def _tell_of(self, outcome: Outcome, app: App, before: Facts, after: Mapping[str, str]) -> None:
        how = f" (generation {outcome.generation}{', 1 reload' if outcome.reloads else ''})"
        for words in health.moves(app, before, Facts(unhealthy=after)):
            self._tell(f"{app.name}: {words}{how}")
