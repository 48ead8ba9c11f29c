"""The nginx that serves, as the operator sees it: start, stop, reload, and what is going on."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from .errors import RouterError
from .files import FileLock

if TYPE_CHECKING:
    from .controller import Router
    from .generations import Index


def start(router: Router) -> bool:
    """Start the managed nginx and see it answer; False: it runs already.

    Raises:
        ProxyDown: it does not come up; nginx's words are in the message.
    """
    with router.locked() as transaction:
        plane = router.plane()
        plane.refuse_in_host_mode("start")
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
    """What the router is doing (the JSON of `router status`)."""
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
    free = os.statvfs(router.paths.root if router.paths.root.exists() else "/")
    if free.f_bavail * free.f_frsize < 64 << 20 or (free.f_files and free.f_favail < 1000):
        problems.append(f"the disk of {router.paths.root} is full: {free.f_bavail * free.f_frsize >> 20} MiB, {free.f_favail} inodes left")
    if wanted and master is None:
        problems.append("nginx should run and does not")
    problems += [f"plugin {name}: {why}" for name, why in router.plugins.broken().items()]
    settings = router.settings()
    return {
        "generation": index.number if index else None,
        "serving": router.serving() if master else None,
        "updates": settings.get("updates"),
        "proxy": {
            "type": "nginx",
            "mode": settings.get("mode"),
            "running": master is not None,
            "pid": master,
            "workers": sum(not w.shutting_down for w in workers),
            "draining_workers": sum(w.shutting_down for w in workers),
        },
        "apps": len(router.store.names()),
        "stale": [{"app": app, "problem": found["problem"]} for app, found in sorted(router.stale().items())],
        "problems": problems,
        "wanted": wanted,
    }
