"""The host names that endpoints have, and whether they lead elsewhere by now."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from . import lines
from .errors import RouterError, UsageProblem
from .model import UPSTREAMS
from .names import endpoint_line
from .resolving import Addresses, ask_plugins, look_up

if TYPE_CHECKING:
    from .controller import Router


class HostNames:
    """The names of each app that has some."""

    def __init__(self, router: Router) -> None:
        self._router = router
        self._names: dict[str, tuple[str, ...]] = {}

    def __bool__(self) -> bool:
        return bool(self._names)

    def note(self, apps: Iterable[str]) -> None:
        """Look again which names `apps` have."""
        for app in apps:
            names = names_of(self._router, app)
            if names:
                self._names[app] = names
            else:
                self._names.pop(app, None)

    def note_all(self) -> None:
        """Look again which names all apps have."""
        self._names = {app: names for app in self._router.store.names() if (names := names_of(self._router, app))}

    def ask(self, report: Callable[[Addresses], None]) -> None:
        """Ask for the addresses of all of them; `report` is called with those that answered, from another thread.

        Raises:
            RouterError: a plugin that resolves names is broken.
        """
        answers: Addresses = {}
        for app, names in self._names.items():
            told = self._router.signed({"app": app, "action": "take-up"})
            answers |= ask_plugins(self._router.plugins, [name for name in names if name not in answers], told)
        rest = sorted({name for names in self._names.values() for name in names} - {*answers})
        # DNS may take its time, and edits are not to wait for it
        threading.Thread(target=lambda: report({**answers, **look_up(rest)}), daemon=True).start()

    def changed(self, answers: Addresses) -> list[str]:
        """The apps to whose names something else was answered than what they are served with; no answer changes nothing."""
        index = self._router.index()
        found = []
        for app, names in self._names.items():
            entry = index.apps.get(app) if index else None
            known = self._router.generations.app_state(entry)[1].resolved if entry else {}
            if any(name in answers and answers[name] != known.get(name) for name in names):
                found.append(app)
        return found


def names_of(router: Router, app: str) -> tuple[str, ...]:
    """The host names of an app's endpoints, as far as its file can be read."""
    try:
        text = (router.store.texts(app) or {}).get(UPSTREAMS, "")
    except (RouterError, OSError):
        return ()
    found = set()
    for _, line in lines.entries(text):
        with contextlib.suppress(UsageProblem):
            address = endpoint_line(line).address
            if not address.is_literal:
                found.add(address.host)
    return tuple(sorted(found))
