"""Everything that can be wrong with this host, by name, and what mends it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import doctor as engine
from nginx_router.errors import NginxRejected
from nginx_router.findings import Look, Result

if TYPE_CHECKING:
    from nginx_router.controller import Router

KEYS = ("healthy", "problems", "warnings", "checks")


def doctor(
    router: Router,
    fix: Annotated[bool, typer.Option("--fix", help="Mend what is safe to mend; what was done is said.")] = False,
    endpoints: Annotated[bool, typer.Option("--endpoints", help="Connect to every endpoint too.")] = False,
    domains: Annotated[bool, typer.Option("--domains", help="See too whether every domain leads to this host.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Leave out the checks that are well.")] = False,
) -> None:
    """Check the host, nginx and every file of the router: each check by name, what is wrong, and the command that mends it.
    Exit 0 if there is no problem (warnings are none), 8 if there is.

    Example: router doctor --fix
    """
    look = Look(router, endpoints=endpoints, domains=domains)
    is_data = router.out.is_json or router.out.key is not None
    results = []
    for result in engine.examine(look, fix=fix, confirm=lambda question: None if is_data else router.out.confirm(question)):
        results.append(result)
        if not is_data:
            _show(router, result, quiet=quiet)
    problems = [r for r in results if r.state == "problem" and not r.fixed]
    warnings = [r for r in results if r.state == "warning" and not r.fixed]
    if is_data:
        answer: dict[str, Any] = {
            "healthy": not problems,
            "problems": len(problems),
            "warnings": len(warnings),
            "checks": [r.as_json() for r in results],
        }
        router.out.report(KEYS, iter([answer]), single=True)
    line = _last_line(problems, [] if fix else [r for r in (*problems, *warnings) if r.is_fixable])
    if line:
        router.out.say(f"router: {line}")
    if problems:
        raise SystemExit(NginxRejected.exit_code)


def _last_line(problems: Sequence[Result], fixable: Sequence[Result]) -> str:
    """What is a problem, and what `--fix` would mend."""
    words = [f"{len(problems)} {'problem' if len(problems) == 1 else 'problems'}: {_names(problems)}"] if problems else []
    if fixable:
        what = _names(fixable) if {*problems} != {*fixable} else "it" if len(problems) == 1 else "them"
        words.append(f"router doctor --fix mends {what}")
    return "; ".join(words)


def _names(results: Sequence[Result]) -> str:
    return ", ".join(dict.fromkeys(r.name for r in results))


def _show(router: Router, result: Result, *, quiet: bool) -> None:
    """`name  state  what`, and under it what to type."""
    if result.state in ("ok", "skipped") and quiet:
        return
    router.out.data(f"{'fixed' if result.fixed else result.state:<8} {result.name:<14} {result.what}".rstrip(), hang=24)
    if result.fixed:
        router.out.data(f"{'':<23} {result.fixed}", hang=24)
    elif result.fix:
        router.out.data(f"{'':<23} {result.fix}")  # whole: it is to be pasted
