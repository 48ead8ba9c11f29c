"""Canaries under the eye of `router watch`: one whose instances fail, or whose clients get more errors than the others, is aborted.

What counts is what nginx answered, by the app's access log: each request tells which instances were asked and what came of it.
The abort is a command of its own (`apps:deploy APP --abort`), because it waits until the canary is drained and edits are to be
taken up meanwhile; one that fails is begun again as long as there is reason to.
"""

from __future__ import annotations

import os
import subprocess
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

from . import canaries
from .accesslog import Line, Log, parse, paths_in
from .balancing import addresses_of
from .controller import Router
from .entries import values_of
from .errors import RouterError
from .executables import router_bin
from .index import Index
from .model import App, Facts, parse_app

#: Seconds of requests that count, and between two looks at them.
WINDOW, LOOK = 60.0, 1.0

#: Fewer answers of a canary say nothing yet, unless so many in a row were errors: nginx asks one that has no answer again only after
#: `fail-timeout`, so that a dead one comes to some six a minute, however many clients it has.
LEAST, IN_A_ROW = 20, 5

#: Seconds after which an abort that failed is tried again, and for which one may take.
RETRY, LONGEST = 5.0, 300.0


@dataclass(frozen=True)
class Count:
    """Answers of some instances, and how many of them were errors."""

    answers: int = 0
    errors: int = 0

    @property
    def share(self) -> float:
        """Errors in percent."""
        return 100 * self.errors / self.answers if self.answers else 0.0

    def __add__(self, other: Count) -> Count:
        return Count(self.answers + other.answers, self.errors + other.errors)


@dataclass(frozen=True)
class Aborted:
    """What became of an abort."""

    app: str
    code: int
    out: str
    err: str


def outcomes(line: Line, few: Set[str], others: Set[str]) -> Iterator[tuple[bool, bool]]:
    """Of each instance that a request asked: is it a canary, and was it an error?

    One that had no answer, so that the next was asked, has failed, whatever that one said.
    """
    for place, (address, _) in enumerate(line.tried, 1):
        if address in few or address in others:
            yield address in few, place < len(line.tried) or line.status >= 500


def too_many(canary: Count, most: float, row: int = 0) -> str | None:
    """That a canary has more errors than it may, in words; None: it has not.

    `most` are allowed, in percent; its last `row` answers were errors, however long ago the first of them was.
    """
    if canary.share <= most:
        return None
    if canary.answers >= LEAST:
        return f"{canary.share:.1f}% of {canary.answers} answers of the canary were errors within {WINDOW:.0f} s"
    return f"the last {row} answers of the canary were errors" if row >= IN_A_ROW else None


def verdict(canary: Count, others: Count, most: float, row: int = 0) -> str | None:
    """Why a canary is to be aborted; None: it is not.

    Where the others were asked nothing, what is allowed decides alone.
    """
    if (words := too_many(canary, most, row)) is None or (others.answers and canary.share <= others.share):
        return None
    if canary.answers < LEAST and others.share > most:
        return None  # so few are compared with nobody who fails himself
    return f"{words}, {f'{others.share:.1f}% of {others.answers}' if others.answers else 'and none was asked'} of the others"


@dataclass
class _Trial:
    """One canary and what is known of it."""

    state: str
    few: frozenset[str]
    others: frozenset[str]
    most: float
    logs: list[Log]
    problem: str | None = None  # by its checks
    alone: Sequence[str] = ()  # the processes of which it has the only instances that get requests
    seconds: deque[tuple[int, Count]] = field(default_factory=deque)
    # of the others, up to their last request: at 100% they get none, and what they answered before that is what can be known
    seconds_of_others: deque[tuple[int, Count]] = field(default_factory=deque)
    row: int = 0  # how many of its last answers were errors, without a good one among them
    is_ending: bool = False
    not_before: float = 0.0
    is_unread: bool = False  # its log has requests, and does not say who answered

    def read(self, now: float) -> None:
        """Take in what the logs gained."""
        canary, others, lines, known = Count(), Count(), 0, 0
        for log in self.logs:
            for text in log.lines():
                lines += 1
                if (line := parse(text)) is not None:
                    known += 1
                    for is_canary, is_error in outcomes(line, self.few, self.others):
                        one = Count(1, is_error)
                        canary, others = (canary + one, others) if is_canary else (canary, others + one)
                        if is_canary:
                            self.row = self.row + 1 if is_error else 0
        self.is_unread = self.is_unread or (lines > 0 and known == 0)
        _keep(self.seconds, int(now), canary)
        if others.answers:
            _keep(self.seconds_of_others, int(now), others)

    def reason(self) -> str | None:
        """Why it is to be aborted."""
        return self.problem or verdict(_total(self.seconds), _total(self.seconds_of_others), self.most, self.row)

    def trouble(self) -> str | None:
        """Why it would be, whatever the others did."""
        return self.problem or too_many(_total(self.seconds), self.most, self.row)


class Judging:
    """The canaries of one root; `report` puts the end of an abort on the watch's queue, `tell` and `say` are the watch's."""

    def __init__(
        self, router: Router, report: Callable[[Aborted], None], *, tell: Callable[[str], None], say: Callable[[str], None]
    ) -> None:
        self._router, self._report, self._tell, self._say = router, report, tell, say
        #: When the canaries are looked at next; None: there are none.
        self.due: float | None = None
        self._trials: dict[str, _Trial] = {}
        self._config = ""  # of the host, which says how many errors a canary of an app that says nothing may have
        self._said: dict[str, set[str]] = {}  # app -> what was said of it, which is not said again

    def look(self) -> None:
        """See which canaries there are by now."""
        try:
            index = self._router.index()
        except RouterError:
            return  # whoever takes edits up says what is wrong with it
        under_way = {name: each["state"] for name, each in values_of(index.apps).items() if each.get("canary")} if index else {}
        for app in [app for app in self._trials if app not in under_way]:
            self._end(app)
        for app, state in under_way.items():
            if index and (app not in self._trials or self._trials[app].state != state or self._config != index.config):
                self._look_at(index, app)
        self._config = index.config if index else ""
        self.due = (self.due or time.monotonic() + LOOK) if self._trials else None

    def judge(self) -> None:
        """Abort those that are to be aborted."""
        now = time.monotonic()
        self.due = now + LOOK
        for app, trial in self._trials.items():
            trial.read(now)
            if trial.is_unread:
                self._say_once(app, "log", "its access log does not say which instance answered: errors of its canary are not counted")
            if trial.is_ending or now < trial.not_before or (trouble := trial.trouble()) is None:
                continue
            if trial.alone:
                left = f"without it no {' and no '.join(trial.alone)} instance would get requests"
                self._say_once(app, "alone", f"its canary is not aborted, {left} (router apps:deploy {app} --promote): {trouble}")
            elif (reason := trial.reason()) is not None:
                trial.is_ending = True
                self._tell(f"{app}: its canary is aborted: {reason}")
                threading.Thread(target=self._abort, args=(app, reason), daemon=True).start()

    def ended(self, each: Aborted) -> None:
        """Take in what became of an abort."""
        if each.code in (0, 15):
            retired = " ".join(each.out.split())
            self._tell(f"{each.app}: its canary was aborted{f', retired {retired}' if retired else ''}")
        elif each.code != 3:  # somebody else ended it
            why = _problem(each)
            self._say_once(each.app, why, f"its canary was not aborted: {why}")
        if trial := self._trials.get(each.app):
            trial.is_ending, trial.not_before = False, time.monotonic() + RETRY
        self.look()

    # private

    def _say_once(self, app: str, key: str, words: str) -> None:
        if key not in self._said.setdefault(app, set()):
            self._said[app].add(key)
            self._say(f"{app}: {words}")

    def _look_at(self, index: Index, name: str) -> None:
        entry, before = index.apps[name], self._trials.get(name)
        try:
            texts, facts = self._router.generations.app_state(entry)
            tables = self._router.tables()
            app, settings = parse_app(name, texts, tables), index.settings(tables)
            vhost = self._router.generations.object(entry.vhost).decode(errors="replace") if entry.vhost else ""
        except RouterError:
            return
        few, others = _addresses(app, facts, canary=True), _addresses(app, facts, canary=False)
        failing = next((f"{e.address} fails its check: {why}" for e in canaries.of_app(app) if (why := facts.problem_of(e))), None)
        most = canaries.hundredths(canaries.max_errors_of(app, settings)) / 100
        trial = _Trial(entry.state, few, others, most, [], failing, canaries.alone(app, facts))
        if before and before.few == few:  # another share, or a deploy of another process: what was counted counts
            trial.seconds, trial.seconds_of_others, trial.row = before.seconds, before.seconds_of_others, before.row
            trial.is_ending, trial.not_before = before.is_ending, before.not_before
        known = {log.path: log for log in before.logs} if before else {}
        paths = [Path(path) for path in paths_in(vhost)]
        trial.logs = [known[path] if path in known else Log(path) for path in paths]
        trial.is_unread = not paths and bool(app.served_domains)
        for path in known.keys() - {*paths}:
            known[path].close()
        self._trials[name] = trial

    def _end(self, app: str) -> None:
        for log in self._trials.pop(app).logs:
            log.close()
        self._said.pop(app, None)

    def _abort(self, app: str, reason: str) -> None:
        command = [router_bin(), "apps:deploy", app, "--abort", "--reason", reason]
        environment = {**os.environ, "ROUTER_ROOT": str(self._router.paths.root)}
        try:
            done = subprocess.run(
                command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=LONGEST, check=False
            )
            self._report(Aborted(app, done.returncode, done.stdout, done.stderr))
        except (OSError, subprocess.TimeoutExpired) as why:
            self._report(Aborted(app, 1, "", str(why)))


def _keep(seconds: deque[tuple[int, Count]], now: int, count: Count) -> None:
    """Count one more second; those that are too long ago count no more."""
    seconds.append((now, count))
    while seconds[0][0] < now - WINDOW:
        seconds.popleft()


def _total(seconds: Iterable[tuple[int, Count]]) -> Count:
    return sum((count for _, count in seconds), Count())


def _problem(each: Aborted) -> str:
    """Why an abort failed, and what to type next: the last of what it said, behind notes and waits."""
    lines = each.err.strip().splitlines()
    start = max((number for number, line in enumerate(lines) if line.startswith("router: ")), default=None)
    if start is None:
        return lines[-1].strip() if lines else f"exit {each.code}"
    error, hint = lines[start].removeprefix("router: "), " ".join(line.strip() for line in lines[start + 1 :])
    return f"{error} ({hint})" if hint else error


def _addresses(app: App, facts: Facts, *, canary: bool) -> frozenset[str]:
    found: set[str] = set()
    for endpoint in app.endpoints:
        if endpoint.canary == canary:
            try:
                found |= {*addresses_of(app.name, endpoint, facts)}
            except RouterError:
                continue
    return frozenset(found)
