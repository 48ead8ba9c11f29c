"""`router doctor`: every check by name, what is wrong, and the command that mends it.

A check that cannot be made is a problem of its own and keeps none of the others from being made.  What is mended (`--fix`)
is what no person would have to think about: leftovers of crashed commands, orphans, dead sockets, modes, and whatever can
be made again byte for byte.  Files that people edit are never touched, apart from their modes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping

from . import doctor_host, doctor_nginx, doctor_objects, doctor_root
from .controller import Router
from .errors import RouterError, StateCorrupt
from .failures import Failure
from .findings import Check, Finding, Look, Result, State

#: Every check, in the order in which it is made and shown: what others need comes first.
CHECKS: Mapping[str, Check] = {
    "current": doctor_root.current,
    "leftovers": doctor_root.leftovers,
    "settings": doctor_root.settings,
    "generations": doctor_objects.generations,
    "objects": doctor_objects.objects,
    "binary": doctor_nginx.binary,
    "run-files": doctor_nginx.run_files,
    "orphans": doctor_nginx.orphans,
    "sockets": doctor_nginx.sockets,
    "configuration": doctor_nginx.configuration,
    "master": doctor_nginx.master,
    "workers": doctor_nginx.workers,
    "serving": doctor_nginx.serving,
    "ports": doctor_nginx.ports,
    "main-lines": doctor_nginx.main_lines,
    "names-hash": doctor_nginx.names_hash,
    "open-files": doctor_nginx.open_files_limit,
    "disk": doctor_host.disk,
    "ipv6": doctor_host.ipv6,
    "clock": doctor_host.clock,
    "names": doctor_host.names,
    "endpoints": doctor_host.endpoints,
    "checks": doctor_host.checks,
    "domains": doctor_host.domains,
    "unnamed": doctor_objects.unnamed,
    "stale": doctor_root.stale,
    "hand-edits": doctor_root.hand_edits,
    "modes": doctor_root.modes,
    "owners": doctor_root.owners,
    "plugins": doctor_root.plugins,
}


def examine(look: Look, *, fix: bool = False, confirm: Callable[[str], bool | None] = lambda question: None) -> Iterator[Result]:
    """Make every check, those of plugins last; `fix`: mend what can be, `confirm` asks a person about the rest."""
    for name, check in CHECKS.items():
        yield from _results(name, check, look, fix, confirm)
    yield from of_plugins(look.router)


def of_plugins(router: Router) -> Iterator[Result]:
    """The checks that plugins add by the hook `doctor-checks`, as `PLUGIN:NAME`: a plugin that fails is one that has a problem."""
    if not router.plugins.has("doctor-checks"):
        return
    for plugin, answer in router.plugins.survey("doctor-checks", {"action": "doctor", "command": router.request.command}):
        if isinstance(answer, Failure):
            yield Result(plugin, "problem", f"its checks failed: {answer.reason}", f"router plugins:disable {plugin}")
            continue
        for line in filter(str.strip, answer.splitlines()):
            yield _of_line(plugin, line)


def _of_line(plugin: str, line: str) -> Result:
    try:
        raw = json.loads(line)
        name, is_ok, what, fix = raw["name"], raw["ok"], raw.get("problem") or "", raw.get("fix") or ""
        if not all(isinstance(text, str) for text in (name, what, fix)) or not isinstance(is_ok, bool):
            raise TypeError
    except (ValueError, KeyError, TypeError, AttributeError):
        return Result(plugin, "problem", f"a line of its checks is not {{name, ok, problem, fix}}: {line[:80]!r}")
    state: State = "ok" if is_ok else "warning" if raw.get("warning") is True else "problem"
    return Result(f"{plugin}:{name}", state, _plain(what) or ("" if is_ok else "it does not say what is wrong"), _plain(fix))


def _results(name: str, check: Check, look: Look, fix: bool, confirm: Callable[[str], bool | None]) -> Iterator[Result]:
    try:
        findings = list(check(look))
    except (RouterError, OSError) as why:
        yield Result(name, "problem", f"it could not be looked at: {_words(why)}", why.hint if isinstance(why, RouterError) else "")
        return
    for finding in findings or [Finding("ok", "")]:
        yield _mended(name, finding, look, fix, confirm)


def _mended(name: str, finding: Finding, look: Look, fix: bool, confirm: Callable[[str], bool | None]) -> Result:
    what, command = _plain(finding.what), finding.fix or ("router doctor --fix" if finding.mend else "")
    plain = Result(name, finding.state, what, command, is_fixable=finding.mend is not None)
    if finding.mend is None or not (fix or (finding.asks and confirm(finding.asks))):
        return plain
    try:
        did = finding.mend()
    except (RouterError, OSError) as why:
        return Result(name, "problem", f"{what}; it could not be mended: {_words(why)}", _hint(why) or command)
    _forget(look)
    return Result(name, finding.state, what, command, fixed=_plain(did))


def _forget(look: Look) -> None:
    """What was read before something was mended is read again."""
    for key in ("index", "settings", "plane", "master", "workers", "orphans", "is_wanted", "ports"):
        vars(look).pop(key, None)


def _words(why: RouterError | OSError) -> str:
    if isinstance(why, RouterError):
        return _plain(why.message)
    return f"{why.strerror} ({why.filename})" if why.filename else str(why)


def _hint(why: RouterError | OSError) -> str:
    return why.hint if isinstance(why, StateCorrupt) else ""


def _plain(text: str) -> str:
    """One line that does nothing to a terminal."""
    return "".join(c if c.isprintable() else " " for c in " ".join(text.split()))
