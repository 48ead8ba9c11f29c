"""The nginx that serves, as the operator sees it: start, stop, reload, and what is going on."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from . import canaries, health, interrupts, journal, live, sockets
from .entries import values_of
from .errors import RouterError
from .files import FileLock
from .model import parse_app
from .orphans import counted
from .times import stamp

if TYPE_CHECKING:
    from .controller import Router
    from .dataplane import Reloaded, Worker
    from .index import Index
    from .orphans import Orphan

#: How many changes `status` shows.
CHANGES = 5
_TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True)
class Started:
    """What a start did."""

    master: int | None
    workers: int
    ended: tuple[Orphan, ...] = ()

    def lines(self) -> list[str]:
        """In words."""
        return [*_ended(self.ended), f"proxy started: master {self.master}, {_count(self.workers, 'worker')}"]


@dataclass(frozen=True)
class Stopped:
    """What a stop did."""

    master: int | None  # None: none ran
    workers: int = 0
    ended: tuple[Orphan, ...] = ()

    def lines(self) -> list[str]:
        """In words."""
        ran = f"proxy stopped: master {self.master}, {_count(self.workers, 'worker')}"
        return [*_ended(self.ended), ran if self.master else "the proxy is stopped already"]


def start(router: Router) -> Started | None:
    """Start the managed nginx and see it answer; None: it runs already.

    Raises:
        ProxyDown: it does not come up; nginx's words are in the message.
    """
    with _recorded(router) as done:
        started = bring_up(router)
        done.generation = router.generations.current_number()
        return started


def bring_up(router: Router) -> Started | None:
    """The same without a journal line.

    Raises:
        ProxyDown: it does not come up; nginx's words are in the message.
    """
    router.plane().refuse_in_host_mode("start")
    if router.index() is None:
        router.reconcile()  # the first generation holds what the directories hold
    with router.locked() as transaction:
        plane = router.plane()
        wanted = plane.wanted()
        index = transaction.first_generation()
        router.paths.wanted.touch()
        if plane.master() is not None:
            if not plane.is_mute(index.facts):
                return None
            plane.stop()
        ended = plane.orphans()
        transaction.serving.remake(index)
        try:
            for line in transaction.start(index):
                router.request.say(line)
        except RouterError:
            if not wanted:
                router.paths.wanted.unlink(missing_ok=True)
            raise
        interrupts.hold()
        return Started(plane.master(), len(plane.workers()), tuple(ended))


def stop(router: Router) -> Stopped:
    """Stop the managed nginx and keep it stopped."""
    with _recorded(router) as done:
        router.store.prepare()
        plane = router.plane()
        plane.refuse_in_host_mode("stop")
        lock = FileLock(router.paths.lock)
        lock.acquire(router.request.lock_timeout, "the host")
        try:
            with interrupts.waiting():
                router.paths.wanted.unlink(missing_ok=True)
                done.generation = router.generations.current_number()
                master = plane.master()
                found = Stopped(master, len(plane.workers(master)) if master else 0, tuple(plane.orphans()))
                plane.stop()
                interrupts.hold()
            return found
        finally:
            lock.release()


def reload(router: Router) -> int:
    """Reload nginx and prove that it serves `current`; the generation's number.

    Raises:
        ProxyDown: it does not run.
        ReloadFailed: it did not take the configuration up.
    """
    with _recorded(router) as done, router.locked() as transaction:
        index: Index = transaction.first_generation()
        transaction.serving.remake(index)
        done.reloaded = router.plane().reload(index.facts, index.probe)
        transaction.serving.send_routes(index)
        done.generation = index.number
        interrupts.hold()
        return index.number


def status(router: Router) -> dict[str, Any]:
    """What the router is doing (the JSON of `router status`); nothing that is broken keeps it from being told.

    Raises:
        StateCorrupt: there is no current generation that could be read.
    """
    index = router.index()
    problems = []
    orphans: list[Orphan] = []
    try:
        plane = router.plane()
        master = plane.master()
        workers = plane.workers(master) if master else []
        orphans = plane.orphans() if master is None else []
        wanted = plane.wanted()
    except RouterError as why:
        problems.append(why.message)
        master, workers, wanted = None, [], router.paths.wanted.exists()
    if wanted and master is None:
        problems.append("nginx should run and does not")
    if orphans:
        what = "still serve: router proxy:start" if wanted else "are left: router proxy:stop"
        problems.append(f"{counted(orphans)} {what} ends them")
    if index and not index.is_of(router.paths.root):
        problems.append(f"this root is a copy of {index.root}, and generation {index.number} names files there: router reconcile --all")
    problems += disk_problems(router)
    if index is not None:
        problems += filter(None, [live.lost(index.facts.modules)])
        problems += failing_endpoints(router, index)
        aborted = {name: each["aborted"] for name, each in values_of(index.apps).items() if each.get("aborted")}
        problems += [f"app {name}: its canary was aborted: {reason}" for name, reason in sorted(aborted.items())]
    under_way = canaries_under_way(router, index) if index is not None else []
    problems += [f"plugin {name}: {why}" for name, why in router.plugins.broken().items()]
    updates, mode = None, "managed"
    try:
        settings = router.settings()
        updates, mode = settings.get("updates"), settings.get("mode")
        if index is not None and router.store.globals() != (index.config, index.global_domains):
            problems.append("router.toml or the global DOMAINS were edited, and the edit is not served: router reconcile --all")
    except RouterError as why:
        problems.append(why.message)
        if index is not None:  # what is served goes on as it was set
            was = index.settings(router.tables())
            updates, mode = was.get("updates"), was.get("mode")
    return {
        "generation": index.number if index else None,
        "serving": router.serving() if master or orphans else None,
        "updates": updates,
        "proxy": {
            "type": "nginx",
            "mode": mode,
            "running": master is not None,
            "pid": master,
            "workers": sum(not w.shutting_down for w in workers),
            "draining_workers": sum(w.shutting_down for w in workers),
        },
        "apps": len(router.store.names()),
        "stale": [{"app": app, "problem": found["problem"]} for app, found in sorted(router.stale().items())],
        "problems": problems,
        "canaries": under_way,
        "draining": draining(master, workers),
        "changes": journal.last(router.paths.journal, CHANGES),
        "wanted": wanted,
    }


def failing_endpoints(router: Router, index: Index) -> list[str]:
    """A line for each app with endpoints that fail their checks."""
    problems = []
    for name, each in sorted(values_of(index.apps).items()):
        if not each.get("unhealthy"):
            continue
        try:
            texts, facts = router.generations.app_state(index.apps[name])
            app = parse_app(name, texts, router.tables())
        except RouterError:
            continue  # what is wrong with it is said elsewhere
        of_all = {process: health.is_failing_open(app, process, facts) for process in app.processes}
        for process in app.processes:
            failing = [f"{e.address} ({facts.problem_of(e)})" for e in app.of_process(process) if facts.problem_of(e)]
            if failing:
                what = "fail, all that are up, and get requests all the same" if of_all[process] else "out"
                number = len(app.of_process(process))
                problems.append(f"app {name}: {len(failing)} of {_count(number, 'endpoint')} of {process} {what}: {'; '.join(failing[:3])}")
    return problems


def canaries_under_way(router: Router, index: Index) -> list[dict[str, Any]]:
    """The canaries that are served: whose, which share of the clients is set, which instances they are, who gets them and since when."""
    found = []
    for name, each in sorted(values_of(index.apps).items()):
        if not each.get("canary"):
            continue
        about: dict[str, Any] = {"endpoints": [], "draining": [], "down": [], "alone": [], "unreached": None}
        since = None
        # a state that is lost hides which they are, and not that they are
        with contextlib.suppress(RouterError):
            texts, facts = router.generations.app_state(index.apps[name])
            app = parse_app(name, texts, router.tables())
            about, since = canaries.seen(app, facts), canaries.since(app)
        found.append({"app": name, "canary": each["canary"], **about, "since": stamp(since) if since else None})
    return found


def disk_problems(router: Router) -> list[str]:
    """Whether the disk of the root has room for a change."""
    root = router.paths.root if router.paths.root.exists() else "/"
    free = os.statvfs(root)
    if free.f_bavail * free.f_frsize < 64 << 20 or (free.f_files and free.f_favail < 1000):
        return [f"the disk of {router.paths.root} is full: {free.f_bavail * free.f_frsize >> 20} MiB, {free.f_favail} inodes left"]
    return []


def draining(master: int | None, workers: Sequence[Worker]) -> list[dict[str, Any]]:
    """The workers that only finish what they have: since how many seconds, and the client connections that they hold.

    `connections` is null where this user may not look.
    """
    leaving = sorted((w for w in workers if w.shutting_down), key=lambda w: w.started)
    if not leaving:
        return []
    ports = sockets.listening_ports(master)
    held = sockets.held_by([w.pid for w in leaving])
    found = []
    for worker in leaving:
        if worker.pid not in held:
            continue  # it ended meanwhile
        open_sockets = held[worker.pid]
        found.append(
            {
                "pid": worker.pid,
                "seconds": round(max(0.0, _uptime() - _left_at(worker, workers) / _TICKS), 1),
                "connections": None if open_sockets is None else sum(s.is_from_client(ports) for s in open_sockets),
            }
        )
    return found


@dataclass
class _Line:
    """What the journal is told of it."""

    generation: int | None = None
    reloaded: Reloaded | None = None


@contextlib.contextmanager
def _recorded(router: Router) -> Iterator[_Line]:
    """What is done inside leaves a journal line, also when it fails."""
    began, line = time.monotonic(), _Line()
    try:
        yield line
    except RouterError as why:
        # a root that cannot be prepared has no journal, and that is what the error says
        with contextlib.suppress(RouterError, OSError):
            router.store.prepare()
            router.record(began, why)
        raise
    router.record(began, generation=line.generation, reloaded=line.reloaded)


def _ended(orphans: Sequence[Orphan]) -> list[str]:
    return [f"ended {counted(orphans)} of an earlier nginx"] if orphans else []


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _left_at(worker: Worker, workers: Sequence[Worker]) -> int:
    """When a worker began to leave, in ticks since boot: its successors were started right before it was told to.

    The workers of one start differ by some ticks, so that the first of its own start is not taken for a successor.
    """
    later = [w.started for w in workers if w.started > worker.started + _TICKS // 2]
    return min(later or [w.started for w in workers if not w.shutting_down and w.started > worker.started] or [worker.started])


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
