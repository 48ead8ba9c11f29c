"""Taking edits up: one reconcile of what was touched, and what is said of it.

What is not an edit's fault (the host is locked, nginx is down, the disk is full) is tried again, less and less often.
"""

from __future__ import annotations

import contextlib
import time
import traceback
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from .controller import Outcome, Router
from .errors import Busy, Conflict, NotFound, NotPermitted, ProxyDown, RouterError, as_ours
from .hostnames import HostNames
from .resolving import Addresses
from .watching import HOST

if TYPE_CHECKING:
    from .index import Index

#: Failures that end without anybody editing the app.
_PASSING = (RouterError.exit_code, Busy.exit_code, ProxyDown.exit_code, NotPermitted.exit_code)
_RETRY_FIRST, _RETRY_LAST = 5.0, 300.0  # seconds

#: Everything; no app has such a name.
ALL = "/all"


class TakingUp:
    """Makes serving equal to the directories of one root; `tell` is called with what was done, `say` with what is wrong."""

    def __init__(self, router: Router, *, tell: Callable[[str], None], say: Callable[[str], None]) -> None:
        self.names = HostNames(router)
        #: When what was left is to be tried again; None: nothing was.
        self.due: float | None = None
        self._router, self._tell, self._say = router, tell, say
        self._said: dict[str, str] = {}  # app -> the problem that was said last
        self._left: set[str] = set()  # what could not be taken up, for no fault of its own
        self._retry = _RETRY_FIRST

    def all(self) -> None:
        """Take everything up."""
        self._take_up(None)

    def touched(self, apps: Iterable[str], *, is_host: bool) -> None:
        """Take up those of `apps`, and of the host's own files, that hold something else than what is current.

        Raises:
            StateCorrupt: the current generation cannot be read.
        """
        index = self._router.index()
        apps = list(apps)
        if is_host and (self._left or self._host_differs(index)):
            self._take_up(None)
        elif changed := [app for app in apps if self._differs(app, index)]:
            self._take_up(changed)
        self.names.note(apps)

    def resolved(self, answers: Addresses) -> None:
        """Take up the apps whose names lead elsewhere by now.

        Raises:
            StateCorrupt: the current generation cannot be read.
        """
        if changed := self.names.changed(answers):
            self._take_up(changed, quietly=True)

    def again(self) -> None:
        """Try again what was left."""
        self.due = None
        left, self._left = self._left, set()
        self._take_up(None if any(what.startswith("/") for what in left) else left, quietly=True)
        if not self._left:
            self._retry = _RETRY_FIRST

    def left_out(self, why: RouterError | OSError, what: Iterable[str] = (ALL,)) -> None:
        """Say why nothing of `what` could be taken up, and try again later."""
        message = as_ours(why).message
        if self._said.get("") != message:
            self._say(f"nothing was taken up: {message}")
        self._said[""] = message
        self._retry_later(what)

    def status(self) -> str:
        """One line of what is served."""
        apps, stale = len([*filter(None, self._known())]), sorted(self._router.stale())
        with contextlib.suppress(RouterError):
            words = f"{apps} apps, generation {self._router.generations.current_number()}"
            return f"{words}, stale: {' '.join(stale)}" if stale else words
        return f"{apps} apps"

    # private

    def _take_up(self, apps: Iterable[str] | None, *, quietly: bool = False) -> None:
        """Reconcile `apps` (None: everything) in one transaction; what is wrong is said (`quietly`: if it is new)."""
        before = self._known()
        names = None if apps is None else sorted({*apps} & {*before, *self._router.store.names()})
        try:
            outcomes = self._router.reconcile(names) if names != [] else []
        except NotFound:
            # one went between the look and the change
            self._left.update(names or ())
            self.due = time.monotonic()
            return
        except (RouterError, OSError) as why:
            self.left_out(why, names or [ALL])
            return
        except Exception as why:  # whatever one app makes of us, the others are to be watched on
            for line in "".join(traceback.format_exception(why)).splitlines():
                self._say(line)
            self._retry_later(names or [ALL])
            return
        self._said.pop("", None)
        after = self._known()
        for outcome in outcomes:
            # comments, an app without domains, global domains: a new generation, and nginx has nothing to do
            self._report(outcome, is_saved=before.get(outcome.app) != after.get(outcome.app), quietly=quietly)
        if names is None:
            self.names.note_all()
        else:
            self.names.note(names)
        if not quietly and any(outcome.kind != "nothing" for outcome in outcomes):
            self._take_up_freed({outcome.app for outcome in outcomes})

    def _take_up_freed(self, done: set[str | None]) -> None:
        # an app that is stale because its domain had an owner: the owner may have let go of it
        freed = [app for app, found in self._router.stale().items() if found["exit"] == Conflict.exit_code and app not in done]
        if freed:
            self._take_up(freed, quietly=True)

    def _report(self, outcome: Outcome, *, is_saved: bool, quietly: bool) -> None:
        name = outcome.app or "the host's own files"
        if outcome.error is None:
            was_wrong = self._said.pop(name, None)
            self._left.discard(outcome.app or HOST)
            if outcome.kind != "nothing" or is_saved:
                reloads = f", {outcome.reloads} reload in {outcome.seconds:.2f} s" if outcome.reloads else ""
                self._tell(f"{name}: {outcome.kind}, generation {outcome.generation}{reloads}")
            elif was_wrong:
                self._tell(f"{name}: mended, and as it was served")
            return
        problem = f"{name}: {outcome.error.message} (exit {outcome.error.exit_code}); what was served last stays"
        if not quietly or self._said.get(name) != problem:
            self._say(problem)
        self._said[name] = problem
        if outcome.error.exit_code in _PASSING:
            self._retry_later([outcome.app or HOST])

    def _retry_later(self, what: Iterable[str]) -> None:
        self._left.update(what)
        if self.due is None:
            self.due = time.monotonic() + self._retry
            self._retry = min(2 * self._retry, _RETRY_LAST)

    def _differs(self, app: str, index: Index | None) -> bool:
        """Whether an app's directory holds something else than what its current vhost was made of."""
        store, entry = self._router.store, index.apps.get(app) if index else None
        try:
            texts = store.texts(app)
        except (RouterError, OSError):
            return True  # what is wrong with it, the change says
        if entry is None or texts is None or app in store.stale():
            return entry is not None or texts is not None
        return self._router.generations.app_state(entry)[0] != texts

    def _host_differs(self, index: Index | None) -> bool:
        try:
            return index is None or self._router.store.globals() != (index.config, index.global_domains)
        except RouterError:
            return True

    def _known(self) -> dict[str | None, object]:
        """What the current generation was made of, by app; None: the host's own files."""
        with contextlib.suppress(RouterError):
            index = self._router.index()
            if index is not None:
                return {None: (index.config, index.global_domains), **{name: entry.state for name, entry in index.apps.items()}}
        return {}
