"""What nginx serves in one turn of the host lock: found out, and brought to what a generation says."""

from __future__ import annotations

import contextlib
import time

from . import faults, journal, live, routes
from .candidate import Candidate
from .dataplane import DataPlane, Reloaded, data_plane, host_facts
from .errors import ProxyDown, ReloadFailed, RouterError
from .generations import Generations
from .hookspecs import who
from .index import Index
from .model import Globals, HostFacts, Tables, parse_globals
from .remaking import remake
from .settings import Paths
from .store import Store

#: For how long what the asker found of the host is taken for found under the lock (seconds).
_MOMENT = 1.0


class Serving:
    """The nginx of one root, for the holder of the host lock."""

    def __init__(self, paths: Paths, tables: Tables) -> None:
        self._paths, self._tables = paths, tables
        self._store, self._generations = Store(paths), Generations(paths)
        self._seen: str | None = None  # the version of the routes that nginx, which serves `current`, was seen to have in this turn
        self._planes: list[DataPlane] = []
        self._is_start_due = False

    def candidate(self, base: Index | None) -> Candidate:
        """The generation behind `base` in the making.

        Raises:
            RouterError: the host's own files cannot be read.
        """
        return Candidate(self._store, self._generations, base, self._tables, self._host_facts)

    def send_routes(self, index: Index, base: Index | None = None) -> None:
        """See nginx, which serves `index`, send requests where that says, of what changes without a reload.

        As it starts it reads them itself; where it could not, or has those of another generation, it is sent what is
        not as in `base`, or all of them.

        Raises:
            ReloadFailed: it did not take them.
        """
        if not index.live or index.is_lost:
            return  # lost: it has newer ones than the disk
        plane = self.plane(index)
        have = plane.routes.version()
        if have != index.live:
            difference = routes.lines(*index.moved(base)) if base and base.live == have else None
            plane.routes.take(index.live, difference, lambda: index.routes)
            faults.step("reloaded")

    def remake(self, index: Index) -> None:
        """Make what nginx is about to read again where the disk lost it, or somebody changed it."""
        if damaged := self._generations.damaged(index, is_read_by_nginx=True):
            with contextlib.suppress(RouterError):  # what is left is named by nginx itself, and by `doctor`
                remake(self.candidate(index), damaged)

    def serve(self, index: Index, base: Index | None = None) -> Reloaded:
        """Make nginx serve `current`, if it is to run, and prove it; `base` is what it served before."""
        plane = self.plane(index)
        if not plane.wanted():
            return Reloaded()
        self._seen = None
        if plane.serves(index.facts, index.probe):
            self.send_routes(index, base)
            self._seen = None if index.is_lost else index.live
            return Reloaded()
        self.remake(index)
        if plane.master() is None:
            return Reloaded()
        reloaded = plane.reload(index.facts, index.probe)
        if index.live:
            # it read them as it was reloaded; what an old worker may still ask for, of a slow upload, stays until the next time
            plane.routes.take(index.live, None, lambda: {**(base.routes if base else {}), **index.routes})
            self._seen = index.live
        faults.step("reloaded")
        return reloaded

    def serve_on(self, index: Index, base: Index | None) -> Reloaded:
        """The same of an nginx that ran when the change began: one that was killed since is started, and proven as well.

        Raises:
            ProxyDown: it was killed, and cannot be started.
        """
        plane = self.plane(index)
        try:
            reloaded = self.serve(index, base)
        except ReloadFailed:
            if plane.is_host_mode or plane.master() is not None:
                raise
        else:
            if plane.master() is not None:
                return reloaded
        if plane.is_host_mode:
            raise ProxyDown("nginx ended during the change", hint=plane.start_line())
        plane.start(index.facts, index.probe)
        self.send_routes(index)
        return Reloaded()

    def send(self, index: Index, base: Index, difference: str) -> None:
        """See nginx send requests where `index` says: it has `base` and serves the rest of it, else that comes first.

        Raises:
            RouterError: it did not take them.
        """
        plane = self.plane(index)
        if self._seen == base.live:
            self._seen = None
            try:
                plane.routes.take(index.live, difference, lambda: index.routes)
            except ReloadFailed:
                if plane.is_host_mode or plane.master() is not None:
                    raise
            else:
                self._seen = index.live  # an answer proves that it runs, too
                return
        self.serve_on(index, base)

    def bring_up(self, candidate: Candidate, command: str) -> tuple[str, ...]:
        """Start a managed nginx that should run and does not, once, for `command`; what is to be said of it.

        Where it does not start with what is current, and the candidate has other settings, these may be what mends it (a
        module that is gone, a port that is taken): it is started with the candidate, when that is current (`takes_start`).

        Raises:
            ProxyDown: it should run and cannot be started.
        """
        self._is_start_due = False
        base = candidate.base
        plane = self.plane(base)
        if base is None or not plane.wanted() or plane.master() is not None:
            return ()
        if plane.is_host_mode:
            raise ProxyDown("nginx should run and does not", hint=plane.start_line())
        self._paths.wanted.touch()
        began = time.monotonic()
        try:
            plane.start(base.facts, base.probe)
            self.send_routes(base)
        except ProxyDown as why:
            if candidate.settings != plane.settings and not candidate.settings.is_host_mode:
                self._is_start_due = True
                return ("nginx should have run and did not: started with this change",)
            ways = live.ways_out(base.facts.modules, why.message)
            raise ProxyDown(why.message, hint=f"{f'{ways};' if ways else 'mend that,'} then: {plane.start_line()}") from None
        self._note_start(command, base, began)
        return (f"nginx should have run and did not: started, master {plane.master()}",)

    def takes_start(self) -> bool:
        """Whether nginx is to be started with the generation that is made now; whoever makes it is told once."""
        is_due, self._is_start_due = self._is_start_due, False
        return is_due

    def start_on(self, index: Index, base: Index | None, command: str) -> None:
        """Start nginx with a generation that is current, for `command`.

        Raises:
            RouterError: it does not come up.
        """
        began = time.monotonic()
        self.serve_on(index, base)
        self._note_start(command, index, began)

    def _note_start(self, command: str, index: Index, began: float) -> None:
        with contextlib.suppress(OSError):
            journal.append(self._paths.journal, journal.of_start(command, *who(), index.number, time.monotonic() - began))

    def plane(self, index: Index | None) -> DataPlane:
        """The data plane under the settings of a generation; None: of the files as they are."""
        config, domains = (index.config, index.global_domains) if index else self._store.globals()
        return self.plane_under(parse_globals(config, domains, self._tables))

    def plane_under(self, settings: Globals) -> DataPlane:
        """The data plane under these settings: one for a whole turn, with what it knows of nginx."""
        if (known := next((plane for plane in self._planes if plane.settings == settings), None)) is not None:
            return known
        plane = data_plane(self._paths, settings)
        if not plane.is_host_mode:  # the host's own files may be edited at any time
            self._planes.append(plane)
        return plane

    def _host_facts(self, settings: Globals, previous: HostFacts | None) -> HostFacts:
        return host_facts(self._paths, settings, previous, age=_MOMENT)
