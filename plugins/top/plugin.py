"""What is asked of each app and endpoint at this moment."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router import top as engine
from nginx_router.errors import UsageProblem

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = ("seconds", "apps", "notes")


def top(
    router: Router,
    once: Annotated[bool, typer.Option("--once", help="Watch for one interval, print what came, and end.")] = False,
    interval: Annotated[float, typer.Option("--interval", metavar="S", help="Seconds between two looks (2).")] = 2.0,
) -> None:
    """Requests a second, status classes, and the times within which half (p50) and 99 % (p99) of the requests were
    answered, in milliseconds: of each app and endpoint, from the access logs, over the last ten seconds. q ends it. Where
    there is no terminal, and with --format json, as with --once.

    Example: router top --once --interval 5 --format json
    """
    if not 0.1 <= interval <= 3600:
        raise UsageProblem(f"--interval {interval:g} is not a number of seconds from 0.1 to 3600")
    watched = engine.Top(router, window=max(10.0, interval))

    def draw() -> tuple[str, Sequence[str], Sequence[Sequence[object]]]:
        found = watched.recent().as_json()
        total = sum(app["per_second"] for app in found["apps"])
        notes = "".join(f"; {note}" for note in found["notes"])
        head = f"generation {watched.generation}, {total:.1f} requests/s over {found['seconds']:.0f} s{notes}"
        return head, engine.COLUMNS, list(engine.rows(found))

    try:
        is_plain = once or router.out.is_json or router.out.key is not None
        if not is_plain and router.out.live(draw, interval):
            return
        time.sleep(interval)
        found = watched.look().as_json()
    finally:
        watched.close()
    found["notes"] += [f"{app} writes no access log" for app in watched.unlogged]
    if router.out.is_json or router.out.key is not None:
        router.out.report(KEYS, iter([found]), single=True)
        return
    router.out.table(engine.COLUMNS, engine.rows(found))
    for note in found["notes"]:
        router.out.say(note)
