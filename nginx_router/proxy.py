"""The nginx that serves, as the operator sees it: start, stop, reload, and what is going on."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import journal, sockets
from .errors import RouterError
from .files import FileLock

if TYPE_CHECKING:
    from .controller import Router
    from .generations import Index
    from .nginx import Worker

#: How many changes `status` shows.
CHANGES = 5
_TICKS = os.sysconf("SC_CLK_TCK")


def start(router: Router) -> bool:
    """Start the managed nginx and see it answer; False: it runs already.

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
        if plane.master() is not None:
            router.paths.wanted.touch()
            return False
        router.paths.wanted.touch()
        try:
            plane.start(index.facts, index.probe)
        except RouterError:
            if not wanted:
                router.paths.wanted.unlink(missing_ok=True)
            raise
    return True


def stop(router: Router) -> bool:
    """Stop the managed nginx and keep it stopped; False: it did not run."""
    router.store.prepare()
    plane = router.plane()
    plane.refuse_in_host_mode("stop")
    lock = FileLock(router.paths.lock)
    lock.acquire(router.request.lock_timeout, "the host")
    try:
        router.paths.wanted.unlink(missing_ok=True)
        return plane.stop()
    finally:
        lock.release()


def reload(router: Router) -> int:
    """Reload nginx and prove that it serves `current`; the generation's number.

    Raises:
        ProxyDown: it does not run.
        ReloadFailed: it did not take the configuration up.
    """
    with router.locked() as transaction:
        index: Index = transaction.first_generation()
        router.plane().reload(index.facts, index.probe)
        return index.number


def status(router: Router) -> dict[str, Any]:
    """What the router is doing (the JSON of `router status`); nothing that is broken keeps it from being told.

    Raises:
        StateCorrupt: there is no current generation that could be read.
    """
    index = router.index()
    problems = []
    try:
        plane = router.plane()
        master = plane.master()
        workers = plane.workers(master) if master else []
        wanted = plane.wanted()
    except RouterError as why:
        problems.append(why.message)
        master, workers, wanted = None, [], router.paths.wanted.exists()
    if wanted and master is None:
        problems.append("nginx should run and does not")
    problems += disk_problems(router)
    problems += [f"plugin {name}: {why}" for name, why in router.plugins.broken().items()]
    updates, mode = None, "managed"
    try:
        settings = router.settings()
        updates, mode = settings.get("updates"), settings.get("mode")
    except RouterError as why:
        problems.append(why.message)
    return {
        "generation": index.number if index else None,
        "serving": router.serving() if master else None,
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
        "draining": draining(master, workers),
        "changes": journal.last(router.paths.journal, CHANGES),
        "wanted": wanted,
    }


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


def _left_at(worker: Worker, workers: Sequence[Worker]) -> int:
    """When a worker began to leave, in ticks since boot: its successors were started right before it was told to.

    The workers of one start differ by some ticks, so that the first of its own start is not taken for a successor.
    """
    later = [w.started for w in workers if w.started > worker.started + _TICKS // 2]
    return min(later or [w.started for w in workers if not w.shutting_down and w.started > worker.started] or [worker.started])


def _uptime() -> float:
    return time.clock_gettime(time.CLOCK_BOOTTIME)
