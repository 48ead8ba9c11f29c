"""What is known of an app: its domains, where it answers, its endpoints, and whether nginx serves what its files say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import canaries, health
from nginx_router.arguments import chosen, existing, last_good, urls_of
from nginx_router.model import Facts

if TYPE_CHECKING:
    from nginx_router.controller import Router

HOOK = "report-rows"
KEYS = ("app", "domains", "urls", "endpoints", "processes", "generation", "serving", "stale", "problem", "locked", "canary", "aborted")


def report(
    router: Router, app: Annotated[str | None, typer.Argument(metavar="APP", help="The app; without it all of them.")] = None
) -> None:
    """What is known of an app, or of all; plugins add what they know of it, each below its name.

    Example: router apps:report blog --urls
    """
    key = (router.out.key or "").replace("-", "_")
    plugins = [] if key in KEYS else [name for name in router.plugins.order(HOOK) if name not in KEYS]
    wanted = [name for name in plugins if router.out.key in (None, name)]
    rows = ({**row, **_of_plugins(router, row["app"], wanted)} for row in _rows(router, app))
    router.out.report([*KEYS, *plugins], rows, single=app is not None)


def urls(router: Router, app: Annotated[str, typer.Argument(metavar="APP", help="The app.")]) -> None:
    """Where an app answers, one URL a line; nothing for an app without domains.

    Example: router apps:urls blog
    """
    found, _ = last_good(router, existing(router, app))
    router.out.listing(urls_of(found, router.settings()))


def _of_plugins(router: Router, app: str, plugins: list[str]) -> dict[str, dict[str, str] | None]:
    """What plugins say of an app, line by line `KEY: VALUE`; None of one that fails: it must not spoil the report."""
    found: dict[str, dict[str, str] | None] = dict.fromkeys(plugins)
    answers = router.plugins.survey(HOOK, {"app": app, "action": "report", "command": router.request.command}, plugins) if plugins else []
    for plugin, answer in answers:
        if not isinstance(answer, str):
            router.out.say(f"warning: plugin {plugin} failed {HOOK} of '{app}': {answer.reason}")
            continue
        parted = [line.partition(":") for line in answer.splitlines() if line.strip()]
        found[plugin] = {key.strip(): value.strip() for key, _, value in parted}
    return found


def _rows(router: Router, app: str | None) -> Iterator[dict[str, Any]]:
    names = chosen(router, app)
    index, stale, settings = router.index(), router.stale(), router.settings()
    entries = index.apps if index else {}
    serving = router.serving()
    for name in names:
        found, problem = last_good(router, name)
        problem = problem or stale.get(name, {}).get("problem")
        is_failing = name in entries and entries[name].unhealthy
        facts = router.generations.app_state(entries[name])[1] if is_failing else Facts()
        generation = entries[name].generation if name in entries else None
        yield {
            "app": name,
            "domains": list(found.domains),
            "urls": urls_of(found, settings),
            "endpoints": [
                {"process": e.process, "address": e.address.text, "weight": e.weight, "state": state, "problem": why, "canary": e.canary}
                for e in found.endpoints
                for state, why in [health.seen(found, e, facts)]
            ],
            "processes": {process: len(found.of_process(process)) for process in sorted({*found.processes, *found.counts})},
            "generation": generation,
            "serving": generation is not None and serving is not None and serving >= generation,
            "stale": problem is not None,
            "problem": problem,
            "locked": found.locked,
            "canary": canaries.share_of(found) if canaries.of_app(found) else None,
            "aborted": canaries.aborted(found),
        }
