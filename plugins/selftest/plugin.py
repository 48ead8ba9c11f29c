"""`router selftest`: what changes cost the clients of a busy host, seen on this machine with this machine's nginx."""

from __future__ import annotations

import contextlib
import os
import random
import subprocess
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router.errors import RouterError, UsageProblem, nearest
from nginx_router.names import shown

if TYPE_CHECKING:
    from nginx_router.controller import Router

    from .trial import Plan, Result, Trial

KEYS = ("seed", "apps", "operations", "seconds", "only", "in_turn", "nginx", "cpus", "modes", "broken")
COLUMNS = ("client", "requests", "messages", "failed", "stale", "wrong", "cut", "ended", "reconnects")
MODES = ("live", "reload")


def selftest(
    router: Router,
    updates: Annotated[str, typer.Option("--updates", metavar="HOW", help="reload, live, or both (where nginx has Lua).")] = "both",
    apps: Annotated[int, typer.Option("--apps", metavar="N", min=4, help="How many apps (20).")] = 20,
    operations: Annotated[int, typer.Option("--operations", metavar="N", min=1, help="How many changes for each mode (100).")] = 100,
    only: Annotated[
        list[str] | None, typer.Option("--only", metavar="KIND", help="Changes of this kind alone: deploy scale domain bad kill.")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", metavar="MAX", min=1, help="Seconds for each mode's changes (120).")] = 120.0,
    in_turn: Annotated[bool, typer.Option("--in-turn", help="One command at a time; else two.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", metavar="N", help="The same changes in the same order as that run.")] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Where a promise is broken: leave its directory.")] = False,
) -> None:
    """Deploy, scale, add and remove domains, inject what is broken and kill commands, at random and two at a time, while
    clients of six kinds ask all apps; then say what they lost. It has a root, ports and an nginx of its own and touches
    nothing else. Exit 1 where a promise was broken.

    Example: router selftest --only deploy --operations 200
    """
    from .operations import SHARES
    from .trial import Plan

    if updates not in (*MODES, "both"):
        raise UsageProblem(f"--updates {shown(updates)} is not reload, live or both{nearest(updates, (*MODES, 'both'))}")
    for kind in only or ():
        if kind not in SHARES:
            raise UsageProblem(f"--only {shown(kind)} is not {' or '.join(SHARES)}{nearest(kind, SHARES)}")
    seed = random.randrange(1 << 32) if seed is None else seed  # noqa: S311 - it is printed
    kinds, binary = tuple(only or SHARES), _binary(router)
    plans = [Plan(each, apps, operations, kinds, seconds, seed, binary, in_turn) for each in ((updates,) if updates != "both" else MODES)]
    found: list[Result] = []

    def about() -> Iterator[dict[str, Any]]:
        for plan in plans:
            if (result := _tried(router, plan, keep, is_optional=updates == "both")) is not None:
                found.append(result)
        yield {
            "seed": seed,
            "apps": apps,
            "operations": operations,
            "seconds": seconds,
            "only": list(kinds),
            "in_turn": in_turn,
            "nginx": _version(router),
            "cpus": os.cpu_count(),
            "modes": [each.as_json() for each in found],
            "broken": _broken(found),
        }

    if router.out.is_json or router.out.key is not None:
        router.out.report(KEYS, about(), single=True)
    else:
        (whole,) = about()
        for number, mode in enumerate(whole["modes"]):
            if number:
                router.out.data()
            _show(router, mode)
    if broken := _broken(found):
        for words in broken:
            router.out.say(words)
        again = f"router selftest --updates {updates} --apps {apps} --operations {operations} --seed {seed} --seconds {seconds:g}"
        again += "".join(f" --only {kind}" for kind in only or ()) + (" --in-turn" if in_turn else "")
        raise RouterError(f"{len(broken)} promises were not kept" if len(broken) > 1 else "a promise was not kept", hint=f"{again} --keep")


def _broken(found: Sequence[Result]) -> list[str]:
    return [f"{result.updates}: {words}" for result in found for words in result.broken()]


def _tried(router: Router, plan: Plan, keep: bool, *, is_optional: bool) -> Result | None:
    """What a run came to; None: this nginx cannot do that, and it was not asked for by name."""
    from .trial import Trial

    trial = Trial(plan)
    with _closed(router, trial, keep) as kept:
        try:
            trial.prepare()
        except UsageProblem as why:
            if not is_optional:
                raise
            router.out.say(f"without updates live: {why.message}; {why.hint}")
            return None
        with router.out.progress(f"updates {plan.updates}", plan.operations) as tell:
            result = trial.run(tell)
        kept.append(bool(result.broken()))
        return result


@contextlib.contextmanager
def _closed(router: Router, trial: Trial, keep: bool) -> Iterator[list[bool]]:
    failed: list[bool] = []
    try:
        yield failed
    except BaseException:
        failed.append(True)
        raise
    finally:
        keeps = keep and any(failed)
        trial.close(keep=keeps)
        if keeps:
            router.out.say(f"kept: {trial.directory}; ROUTER_ROOT={trial.root}")


def _show(router: Router, mode: dict[str, Any]) -> None:
    done = ", ".join(f"{count} {kind}" for kind, count in mode["operations"].items()) or "nothing was changed"
    router.out.data(f"updates {mode['updates']}: {done}, in {mode['seconds']:.0f} s{_cut_short(mode)}")
    router.out.data()
    router.out.table(COLUMNS, [_row(kind, tally) for kind, tally in mode["clients"].items()])
    router.out.data()
    router.out.facts(_facts(mode))


def _cut_short(mode: dict[str, Any]) -> str:
    count = sum(mode["operations"].values())
    return f"; ended by --seconds after {count} of {count + mode['left']}" if mode["left"] else ""


def _row(kind: str, tally: dict[str, Any]) -> Sequence[object]:
    return (kind, *(tally[key] for key in ("requests", "messages", "failures", "stale", "wrong_app", "cut", "ended", "reconnects")))


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    served, deploys = found["served"], found["deploys"]
    same = {(True, True): "the same master and workers", (True, False): "the same master, other workers"}
    rows = [
        (
            "reloads",
            f"{found['reloads']} for {found['structure_changes']} changes that need one; at most {found['old_workers']} old workers",
        ),
        *([("killed", f"{found['killed']} command{'' if found['killed'] == 1 else 's'}")] if found["killed"] else []),
        ("nginx", same.get((found["same_master"], found["same_workers"]), "another master")),
    ]
    if served["count"]:
        times = f"p50 {served['p50'] * 1000:.1f} ms, p99 {served['p99'] * 1000:.1f} ms"
        rows.append(("served", f"{times} after the host lock was had ({served['count']} changes of endpoints)"))
    if deploys["count"]:
        rows.append(("apps:deploy", f"median {deploys['p50']:.2f} s, p95 {deploys['p95']:.2f} s, whole commands ({deploys['count']})"))
    return rows


def _binary(router: Router) -> str:
    """The nginx that this host's router uses, where another than the one on PATH was set."""
    try:
        return str(router.settings().proxy.get("nginx-binary") or "")
    except RouterError:  # what is wrong with the user's own root is none of this
        return ""


def _version(router: Router) -> str | None:
    """Such as nginx/1.22.1."""
    try:
        said = subprocess.run([router.plane().binary, "-v"], capture_output=True, text=True, timeout=10).stderr
    except (RouterError, OSError, subprocess.SubprocessError):
        return None
    return said.partition("nginx version: ")[2].strip()
