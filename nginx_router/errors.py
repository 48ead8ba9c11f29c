"""Every way a command can fail: one class an exit code, with its words for the person at the terminal.

An error is one line (what, which, who owns it) and, where there is one, a hint: what to type next.
The exit codes are a promise to scripts; `docs/exit-codes.md` is made of them.
"""

from __future__ import annotations

import errno
import os
import signal
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar


class Terminated(SystemExit):
    """SIGTERM came; unlike the `sys.exit()` of a stranger's code it passes through the boundary around plugins."""

    def __init__(self) -> None:
        super().__init__(128 + signal.SIGTERM)


class RouterError(Exception):
    """The root: something went wrong that nobody foresaw (exit 1)."""

    #: What the shell sees.
    exit_code: ClassVar[int] = 1
    #: What it means to a script; docs/exit-codes.md is made of these.
    meaning: ClassVar[str] = (
        "unexpected: the traceback is in `log/router.log`, whose path is in the message (`--trace` prints it); "
        "or the system's own error, such as a full disk, with its path"
    )

    def __init__(self, message: str, *, hint: str = "", app: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.app = app
        self.is_of_the_host = False  # whatever the apps are, no change can be made: no app is stale by it


class UsageProblem(RouterError):
    """A name or a value breaks a rule, or the command was called wrongly; the rule is said."""

    exit_code = 2
    meaning = "called wrongly, or a name or value breaks a rule: the rule is said"


class HostProblem(UsageProblem):
    """Something that the host lacks keeps every change from being made: no app's doing, and in nobody's files."""


class NotFound(RouterError):
    """There is no such app, domain, plugin, hook or generation."""

    exit_code = 3
    meaning = "not found: an app, domain, plugin, hook or generation; the nearest real one is named"


class Conflict(RouterError):
    """Somebody else has it; the owner is named."""

    exit_code = 4
    meaning = "conflict: somebody else has it; the owner is named"


class Busy(RouterError):
    """Somebody else is at it; the holder is named."""

    exit_code = 5
    meaning = "busy: somebody else is at it; the holder is named"


class Refused(RouterError):
    """A plugin said no; which one and why."""

    exit_code = 6
    meaning = "refused by a plugin: which one, and why"


class TemplateError(RouterError):
    """A template does not render; file, line and variable are said."""

    exit_code = 7
    meaning = "a template does not render: file, line and variable are said"


class NginxRejected(RouterError):
    """nginx, or the parse before it, does not accept the configuration."""

    exit_code = 8
    meaning = "nginx rejected it: app, file, line and nginx's words; `status`: an app is stale; `doctor`: there is a problem"


class ReloadFailed(RouterError):
    """nginx did not take the new configuration up; everything was put back."""

    exit_code = 9
    meaning = (
        "nginx did not take the change up: everything was put back, nginx's words are in the message; `status`: what "
        "serves is not what is current; `trace`: nginx does not do what the state says"
    )

    #: Whether nginx said what is wrong with the configuration, or failed for another reason.
    is_of_the_configuration = False


class StateCorrupt(RouterError):
    """What is on disk cannot be what this program wrote."""

    exit_code = 10
    meaning = "what is on disk cannot be what this program wrote: what to restore is said"


class PluginBroken(RouterError):
    """A plugin cannot be loaded or gave an answer that cannot be used."""

    exit_code = 11
    meaning = "a plugin is broken: its answer cannot be used"


class ChecksFailed(RouterError):
    """An endpoint did not answer its check in time; nothing was changed."""

    exit_code = 12
    meaning = "a check failed, of a deploy or of `checks:run`: endpoint, last status or error, start of the body"


class ProxyDown(RouterError):
    """The proxy should run and does not."""

    exit_code = 13
    meaning = "the proxy should run and does not"


class NotPermitted(RouterError):
    """The files belong to somebody else."""

    exit_code = 14
    meaning = "not permitted: the sudo line is said"


class NotDrained(RouterError):
    """Done, or done in part (`--batch`), and old instances still hold requests; they are named."""

    exit_code = 15
    meaning = "deployed, or a part of its batches, but old instances are not drained: stderr names them, or what serves"


#: Every class by its exit code, for errors that travel between processes and for the documentation.
BY_EXIT_CODE: dict[int, type[RouterError]] = {
    cls.exit_code: cls
    for cls in (
        RouterError,
        UsageProblem,
        NotFound,
        Conflict,
        Busy,
        Refused,
        TemplateError,
        NginxRejected,
        ReloadFailed,
        StateCorrupt,
        PluginBroken,
        ChecksFailed,
        ProxyDown,
        NotPermitted,
        NotDrained,
    )
}


def error_as_json(why: RouterError) -> dict[str, Any]:
    """An error as plain values, for the way between processes."""
    return {"exit": why.exit_code, "message": why.message, "hint": why.hint, "app": why.app}


def of_system(why: OSError, place: str = "") -> RouterError:
    """An error of the system itself, such as a full disk: where, which it may not say itself (`place` then), its words and what to do."""
    names = [os.fsdecode(name) for name in (why.filename, why.filename2) if isinstance(name, str | bytes)]
    where = " -> ".join(names) or place or "system"
    if isinstance(why, PermissionError):
        return NotPermitted(f"{where}: not permitted")
    is_full = why.errno in (errno.ENOSPC, errno.EDQUOT) and why.filename != "standard output"
    return RouterError(
        f"{where}: {why.strerror or why}", hint="free some space there (df -h, df -i), then the same command again" if is_full else ""
    )


def as_ours(why: RouterError | OSError) -> RouterError:
    """An error of the system as one of ours; ours as it is."""
    return why if isinstance(why, RouterError) else of_system(why)


def as_error(raw: Mapping[str, Any]) -> RouterError:
    """The reverse of `error_as_json`."""
    return BY_EXIT_CODE[raw["exit"]](raw["message"], hint=raw["hint"], app=raw["app"])


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean X?` for the nearest of `known`, or nothing."""
    import difflib  # only on the way out of a failed command

    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""
