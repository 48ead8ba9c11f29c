"""What was served when, how it came about, and the way back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nginx_router import interrupts
from nginx_router.errors import NotFound, UsageProblem
from nginx_router.names import shown
from nginx_router.properties import lookup

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.index import Index

KEYS = ("generation", "parent", "time", "command", "apps", "serving")
DIFF_KEYS = ("from", "to", "files")
#: What a person sees; the command stands last, where a line that is too long is cut.
COLUMNS = ("generation", "serving", "time (UTC)", "apps", "command")
#: Columns for the names of apps.
APPS_WIDTH = 16

Number = Annotated[str, typer.Argument(metavar="N", help="The generation.")]


def list_generations(router: Router) -> None:
    """The generations that are kept, oldest first: on a terminal with time, apps and command; else their numbers, one a line.

    Example: router generations:list --format json
    """
    numbers = router.generations.numbers()
    rows = (_row(router, number, serving) for serving in [router.serving()] for number in numbers)
    if router.out.is_json or router.out.key is not None:
        router.out.report(KEYS, rows, single=False)
    elif router.out.is_terminal:
        router.out.table(COLUMNS, map(_short, rows))
    else:
        router.out.listing(numbers)


def show(
    router: Router, number: Annotated[str | None, typer.Argument(metavar="N", help="The generation; without it the current one.")] = None
) -> None:
    """How a generation came about, and the apps that changed in it.

    Example: router generations:show 42 --command
    """
    router.out.report(KEYS, (_row(router, n, router.serving()) for n in [_number(router, number)]), single=True)


def diff(
    router: Router,
    number: Annotated[str | None, typer.Argument(metavar="N", help="The older one; without it the parent of the newer.")] = None,
    other: Annotated[str | None, typer.Argument(metavar="M", help="The newer one; without it the current one.")] = None,
) -> None:
    """What changed between two generations: the files of apps and the server blocks made of them, as a unified diff.

    Example: router generations:diff 41 42
    """
    newer = _number(router, other)
    older = router.generations.manifest(newer).parent if number is None else _number(router, number)
    before = {} if older is None else _files(router, router.generations.index(older))
    after = _files(router, router.generations.index(newer))
    names = [name for name in sorted({*before, *after}) if before.get(name, "") != after.get(name, "")]
    texts = {name: _unified(name, before.get(name, ""), after.get(name, ""), older, newer) for name in names}
    if router.out.is_json or router.out.key is not None:
        files = [{"file": name, "diff": text} for name, text in texts.items()]
        router.out.report(DIFF_KEYS, [{"from": older, "to": newer, "files": files}], single=True)
        return
    for text in texts.values():
        router.out.text(text)


def roll_back(
    router: Router,
    number: Number,
    apps: Annotated[list[str] | None, typer.Argument(metavar="APP", help="These apps; if none is named, all that still exist.")] = None,
    is_all: Annotated[bool, typer.Option("--all", help="All apps of that generation that still exist.")] = False,
    endpoints: Annotated[bool, typer.Option("--endpoints", help="The endpoints that they had, too; these are checked first.")] = False,
    check: Annotated[
        str | None, typer.Option("--check", metavar="/PATH", help="Check them by HTTP GET. Without it: as apps:checks:set said then.")
    ] = None,
    check_timeout: Annotated[float, typer.Option("--check-timeout", metavar="S", help="Seconds for all checks together (30).")] = 30.0,
) -> None:
    """Give apps the domains, properties and snippets they had in generation N, as a new generation; endpoints stay.

    Example: router generations:rollback 41 blog
    """
    from nginx_router.handover import Options
    from nginx_router.rollback import rollback

    if apps and is_all:
        raise UsageProblem("APP... or --all, one of them")
    if check is not None and not endpoints:
        raise UsageProblem("--check checks endpoints, and those stay as they are", hint="add --endpoints")
    options = Options(check, check_timeout) if endpoints else None
    names = list(dict.fromkeys(apps)) if apps else None
    router.out.changed(rollback(router, _number(router, number), names, endpoints=endpoints, options=options), single=bool(names))


def prune(
    router: Router,
    keep: Annotated[str | None, typer.Option("--keep", metavar="N", help="How many stay; without it the setting generations-keep.")] = None,
) -> None:
    """Remove all but the last generations, and what only they need; never the current one and its parent.

    Example: router generations:prune --keep 10
    """
    count = int(router.settings().get("generations-keep") if keep is None else lookup("proxy", "generations-keep").parse(keep))
    if router.request.dry_run:
        router.out.say(f"would keep the last {count} of {len(router.generations.numbers())} generations")
        return
    with router.locked():
        gone = router.generations.prune(count)
        interrupts.hold()
    router.out.listing(gone)
    if not gone:
        router.out.say("nothing to remove")


def _number(router: Router, text: str | None) -> int:
    if text is None:
        current = router.generations.current_number()
        if current is None:
            raise NotFound("there is no generation yet", hint="router apps:create APP")
        return current
    if not re.fullmatch(r"[0-9]{1,18}", text):
        raise UsageProblem(f"{shown(text)} is not the number of a generation", hint="router generations:list")
    number = int(text)
    if number not in router.generations.numbers():
        raise NotFound(f"there is no generation {number}", hint="router generations:list")
    return number


def _row(router: Router, number: int, serving: int | None) -> dict[str, Any]:
    found = router.generations.manifest(number)
    return {
        "generation": found.generation,
        "parent": found.parent,
        "time": found.time,
        "command": found.command,
        "apps": list(found.apps),
        "serving": number == serving,
    }


def _short(row: Mapping[str, Any]) -> tuple[object, ...]:
    """A line of the table."""
    time = str(row["time"])[:19].replace("T", " ")
    command = "".join(c if c.isprintable() else "?" for c in str(row["command"]))  # it may hold anything that was typed
    return row["generation"], "yes" if row["serving"] else "", time, _some(row["apps"]), command


def _some(names: Sequence[str]) -> str:
    """As many names as there is room for, and how many more there are."""
    for count in range(len(names), 0, -1):
        more = f" and {len(names) - count} more" if count < len(names) else ""
        if len(text := ", ".join(names[:count]) + more) <= APPS_WIDTH:
            return text
    return f"{names[0][: APPS_WIDTH - 1]}…" if len(names) == 1 else f"{len(names)} apps" if names else "-"


def _files(router: Router, index: Index) -> Mapping[str, str]:
    """What a generation is made of, by name."""
    files = {"router.toml": index.config, "DOMAINS": index.global_domains}
    for name, entry in index.apps.items():
        texts, _ = router.generations.app_state(entry)
        files |= {f"apps/{name}/{path}": text for path, text in texts.items()}
        if entry.vhost:
            files[f"vhost of {name}"] = router.generations.object(entry.vhost).decode(errors="surrogateescape")
    return files


def _unified(name: str, before: str, after: str, older: int | None, newer: int) -> str:
    import difflib

    sides = (f"{older or 0:06d}/{name}", f"{newer:06d}/{name}")
    return "\n".join(difflib.unified_diff(before.splitlines(), after.splitlines(), *sides, lineterm=""))
