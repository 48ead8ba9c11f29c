"""The `router` command: find the command in the table, run it, and say in one place what went wrong.

What a command does stands in its plugin; what stands here is true of all of them.  Every error leaves as one line, a hint
and the exit code of its class; what nobody foresaw leaves its traceback in ROOT/log/router.log.
"""

from __future__ import annotations

import gc
import os
import re
import shlex
import signal
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from . import interrupts
from .commands import find, nearest_of
from .errors import NotPermitted, RouterError, UsageProblem, of_system
from .names import shown
from .output import Output
from .parsing import parse

if TYPE_CHECKING:
    from .controller import Router
    from .discovery import Command

#: What a shell sees of a process that a signal ended.
INTERRUPTED = 128 + signal.SIGINT

#: How many new objects are looked through for garbage at a time: with Python's 700 a command spends 6 % of its time on that, and
#: finds nothing.
_OBJECTS = 20_000

#: A message that names a file and a line: the command was right.
_OF_A_FILE = re.compile(r"\S:[0-9]+: |^/|/\S+: ")

#: What other programs call these.
_SPELLINGS = {"-h": "help", "--help": "help", "--version": "version"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; the exit code."""
    words, is_traced = _take_trace(list(sys.argv[1:] if argv is None else argv))
    gc.set_threshold(_OBJECTS)
    os.umask(os.umask(0o022) | 0o022)  # of what is made here, by nginx and by plugins too, nothing is for others to write
    out = Output()
    with interrupts.unwinding(is_last=argv is None):
        try:
            _run(words, out)
            out.flush()
            interrupts.hold()
            code = 0
        except BaseException as why:  # the one error boundary
            interrupts.hold()
            if is_traced:
                _print_traceback(why, out)
            code = _explain(why, words, out)
    return code


def _run(words: Sequence[str], out: Output) -> None:
    if not words:
        raise UsageProblem("a command is missing", hint="router help")
    router = _open(words, out)
    command = _find(router, _SPELLINGS.get(words[0], words[0]))
    args = words[1:]
    if not command.is_python:
        _execute(router, command, args)
    function = router.plugins.function(command)
    call = parse(command, function, args)
    if call.help is not None:
        out.text(call.help)
        return
    out.is_json, out.key, out.is_dry_run = call.is_json, call.key, call.dry_run
    router.request.dry_run, router.request.lock_timeout = call.dry_run, call.lock_timeout
    router.request.show = out.say if call.is_json else out.data
    function(router, *call.rest, **call.values)


def _open(words: Sequence[str], out: Output) -> Router:
    from .controller import Request, Router

    router = Router.open(Request(command=shlex.join(words), say=out.say))
    router.out = out
    return router


def _find(router: Router, word: str) -> Command:
    try:
        return find(word, router.plugins.commands())
    except UsageProblem:
        pass
    try:
        # those of installed Python packages cost more to find, so they are looked for second
        return find(word, router.plugins.commands(all=True))
    except UsageProblem as why:
        _propose_app(router, word, why)
        raise


def _propose_app(router: Router, word: str, why: UsageProblem) -> None:
    """An app's name where a command belongs: say what it is, or which app's is nearer than every command's."""
    import difflib  # only on the way out of a failed command

    names = router.store.names()
    if word in names:
        why.hint = f"{word} is an app: router apps:report {word}"
        return
    app = next(iter(difflib.get_close_matches(word, names, n=1)), None)
    command = nearest_of(word, router.plugins.commands())
    if app and (command is None or difflib.get_close_matches(word, [app, command.rpartition(":")[2], command], n=1) == [app]):
        why.message = f"there is no command {shown(word)}; the nearest is app {app}"
        why.hint = f"router apps:report {app}"


def _execute(router: Router, command: Command, args: Sequence[str]) -> NoReturn:
    """Become the executable of a plugin: the terminal, the signals and the exit code are its own."""
    path, environment = router.plugins.executable(command)
    os.execve(path, [str(path), *args], environment)  # noqa: S606 - no shell is meant


def _take_trace(words: list[str]) -> tuple[list[str], bool]:
    plain = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:plain] if word != "--trace"] + words[plain:]
    return kept, len(kept) < len(words)


def _explain(why: BaseException, words: Sequence[str], out: Output) -> int:
    if isinstance(why, SystemExit):
        return _exit_code(why, out)
    if isinstance(why, KeyboardInterrupt):
        out.say("router: interrupted")
        return INTERRUPTED
    error = why if isinstance(why, RouterError) else _as_error(why, words)
    if isinstance(error, NotPermitted) and not error.hint:
        error.hint = _with_sudo(words)
    if isinstance(error, UsageProblem) and not error.hint and words and not _OF_A_FILE.search(error.message):
        error.hint = f"router help {words[0]}"
    out.error(error)
    return error.exit_code


def _exit_code(why: SystemExit, out: Output) -> int:
    try:
        out.flush()
    except OSError as broken:
        out.error(_as_error(broken, ()))
        return 1
    if isinstance(why.code, int):
        return why.code
    if why.code:
        out.say(f"router: {why.code}")
    return 1 if why.code else 0


def _with_sudo(words: Sequence[str]) -> str:
    # sudo clears the environment, and the root with it
    root = os.environ.get("ROUTER_ROOT")
    return shlex.join(["sudo", *([f"ROUTER_ROOT={root}"] if root else []), "router", *words])


def _as_error(why: BaseException, words: Sequence[str]) -> RouterError:
    if isinstance(why, OSError):
        from .settings import paths

        error = of_system(why, str(paths().root))
        if isinstance(error, NotPermitted):
            error.hint = _with_sudo(words)
        return error
    log = _log_traceback(why, words)
    what = f"unexpected {type(why).__name__}: {why}"
    return RouterError(f"{what}; traceback in {log}" if log else what, hint="--trace prints the traceback")


def _log_traceback(why: BaseException, words: Sequence[str]) -> str | None:
    """Keep the traceback; the path of the log, or None where nothing can be written."""
    import traceback
    from datetime import UTC, datetime

    from .settings import paths

    try:
        log = paths().log / "router.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a", errors="backslashreplace") as file:
            file.write(f"{datetime.now(UTC).isoformat(timespec='seconds')} pid {os.getpid()}: router {shlex.join(words)}\n")
            file.write("".join(traceback.format_exception(why)))
    except OSError:
        return None
    return str(log)


def _print_traceback(why: BaseException, out: Output) -> None:
    import traceback

    for line in "".join(traceback.format_exception(why)).splitlines():
        out.say(line)
