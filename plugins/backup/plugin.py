"""Export and import: the directories of a host as one archive, and an archive as one change."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from nginx_router.arguments import existing
from nginx_router.errors import NotFound, UsageProblem
from nginx_router.names import shown

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.exporting import Export
    from nginx_router.importing import Imported

#: How many names a line of talk has room for.
_NAMES = 5

Apps = Annotated[list[str] | None, typer.Option("--app", metavar="APP", help="This app alone; may stand several times.")]


def export(
    router: Router,
    apps: Apps = None,
    output: Annotated[str | None, typer.Option("--output", metavar="FILE", help="Write FILE (0600), whole or not at all.")] = None,
    form: Annotated[str | None, typer.Option("--format", metavar="json", help="With --output: print JSON.")] = None,
    lock_timeout: Annotated[float, typer.Option("--lock-timeout", metavar="S", min=0, help="Seconds to wait for a change (60).")] = 60.0,
) -> None:
    """Write everything, or some apps, as one tar archive to stdout: apps, settings, plugins, their data, and the keys in tls/.

    Changes wait while the directories are read, and not while the archive is written. Whoever has it has the keys.

    Example: router export >host.tar
    """
    from nginx_router.exporting import exported

    if form not in (None, "json"):
        raise UsageProblem(f"there is no format {shown(form)}", hint="--format json is the one there is")
    if form and output is None:
        raise UsageProblem("the archive goes to stdout: JSON has no place there", hint="router export --output FILE --format json")
    if output is None and router.out.is_terminal:
        raise UsageProblem("an archive is nothing for a terminal", hint="router export >host.tar")
    router.request.lock_timeout = lock_timeout
    names = [existing(router, app) for app in dict.fromkeys(apps or ())]
    with exported(router, names) as found:
        size = found.write(router.out.binary) if output is None else _write(found, Path(output))
        _tell(router, found)
        if form:
            router.out.json(_about(found, output, size))
        else:
            router.out.say(f"{_apps(len(found.manifest.apps))}, {len(found.manifest.files)} files, {size} bytes")


def import_archive(
    router: Router,
    file: Annotated[str, typer.Argument(metavar="FILE|-", help="The archive; - is stdin.")],
    apps: Apps = None,
    no_endpoints: Annotated[
        bool, typer.Option("--no-endpoints", help="Apps keep the endpoints that they have here, or have none.")
    ] = False,
    no_settings: Annotated[bool, typer.Option("--no-settings", help="router.toml and the global domains stay as they are.")] = False,
    plugins: Annotated[
        bool, typer.Option("--plugins", help="Install its plugins that are not here, with their data: their code runs.")
    ] = False,
    prune: Annotated[bool, typer.Option("--prune", help="Destroy the apps that it does not hold; else they stay.")] = False,
) -> None:
    """Serve what an archive of `router export` holds, as one change: all of it or nothing.

    Everything in it is checked, and judged by nginx, before anything is replaced. Apps of this host that it does not hold stay.

    Example: router import host.tar --dry-run
    """
    from nginx_router.importing import Wanted, bring_in

    if apps and (no_settings or plugins or prune):
        raise UsageProblem("--app takes apps alone: --no-settings, --plugins and --prune are for the whole archive")
    wanted = Wanted(tuple(dict.fromkeys(apps or ())), not no_endpoints, not no_settings, plugins, prune)
    if file == "-":
        if sys.stdin.isatty():
            raise UsageProblem("an archive cannot be typed", hint="router import - <host.tar")
        done = bring_in(router, sys.stdin.buffer, "stdin", wanted)
    else:
        with _opened(file) as stream:
            done = bring_in(router, stream, file, wanted)
    _say_the_rest(router, done, wanted.plugins)
    if router.out.is_json:
        router.out.changed(done.outcomes, about=_came(router, done))
    elif not router.out.is_dry_run:
        router.out.say(_summary(done))


def _opened(file: str) -> BinaryIO:
    path = Path(file)
    if path.is_dir():
        raise UsageProblem(f"{file}: a directory", hint="router export writes archives")
    try:
        return path.open("rb")
    except FileNotFoundError:
        raise NotFound(f"there is no archive {shown(file)}", hint="router export writes archives") from None


def _write(found: Export, path: Path) -> int:
    """The archive as a file that nobody else may read, whole or not at all."""
    if path.is_dir():
        raise UsageProblem(f"{path}: a directory")
    if not path.parent.is_dir():
        raise NotFound(f"there is no directory {shown(str(path.parent))}", hint=f"mkdir -p {path.parent}")
    if path.exists() and not path.is_file():
        with path.open("wb") as device:  # /dev/stdout, a FIFO
            return found.write(lambda data: _all(device, data))
    fresh = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        fd = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "wb") as file:
            size = found.write(lambda data: _all(file, data))
            file.flush()
            os.fsync(fd)
        fresh.rename(path)
    finally:
        fresh.unlink(missing_ok=True)
    return size


def _all(file: Any, data: bytes) -> None:
    file.write(data)


def _tell(router: Router, found: Export) -> None:
    for what in found.manifest.left_out:
        router.out.say(f"left out: {what}")
    for app in sorted(set(router.stale()) & set(found.manifest.apps)):
        router.out.say(f"{app} is stale: its directory is in the archive as it is, and an import will refuse it")


def _about(found: Export, output: str | None, size: int) -> dict[str, Any]:
    manifest = found.manifest
    return {
        "file": output,
        "bytes": size,
        "apps": list(manifest.apps),
        "files": len(manifest.files),
        "left_out": list(manifest.left_out),
        "generation": manifest.generation,
        "time": manifest.time,
        "locked_seconds": round(found.locked, 4),
    }


def _say_the_rest(router: Router, done: Imported, with_plugins: bool) -> None:
    would = "would be " if router.out.is_dry_run else ""
    if done.plugins:
        router.out.say(f"plugins {would}installed: {' '.join(done.plugins)}")
    others = sorted({path.split("/")[1] for path in done.manifest.files if path.startswith("plugins/")} - set(router.plugins.names()))
    if others and not with_plugins and any(o.app is None for o in done.outcomes):
        router.out.say(f"plugins of the archive that are not here: {_some(others)}; --plugins installs them")
    if done.stay:
        router.out.say(f"not in the archive, and here to stay: {_some(done.stay)}")


def _summary(done: Imported) -> str:
    """What an import came to, in one line: an archive may hold hundreds of apps."""
    changed = [o for o in done.outcomes if o.kind != "nothing"]
    apps = sum(o.event.action == "import" for o in done.outcomes)
    gone = sum(o.event.action == "destroy" for o in done.outcomes)
    words = f"{_apps(apps)} imported" + (f", {gone} destroyed" if gone else "") + f": generation {done.outcomes[0].generation}"
    if not changed:
        return f"{words}, nothing to reload"
    touched = max(o.closed_connections + o.kept_connections for o in done.outcomes)
    return words if done.outcomes[0].serving is None else f"{words}, a reload touched {touched} connections"


def _came(router: Router, done: Imported) -> dict[str, Any]:
    manifest = done.manifest
    return {
        "router": manifest.router,
        "time": manifest.time,
        "root": manifest.root,
        "dry_run": router.out.is_dry_run,
        "plugins": list(done.plugins),
        "stay": list(done.stay),
    }


def _apps(count: int) -> str:
    return "1 app" if count == 1 else f"{count} apps"


def _some(names: Any) -> str:
    found = list(names)
    return " ".join(found[:_NAMES]) + (f" and {len(found) - _NAMES} more" if found[_NAMES:] else "")
