"""The proof that a running nginx took a reload up, and the note of the last one.

nginx's exit code proves nothing, and neither does the first new answer: old workers go on accepting for some 100 ms behind it.
"""

from __future__ import annotations

import contextlib
import re
import signal
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from .dataplane import Worker
from .errorlog import Tail
from .errors import ReloadFailed
from .processes import all_pids, children, command_line, has_pending, is_alive, ticks

#: How long a reload may take to be proven; with 10,000 vhosts the parse alone takes 6 s.
SECONDS = 30.0


#: What a host ran out of (ENOMEM, ENFILE, EMFILE, ENOSPC): no app's doing, and each further try parses everything again.
_OF_THE_HOST = re.compile(r"\((12|23|24|28): ")


#: How long a master has to stand still to be out of a reload that nobody proved: it has 10 ms at most between what it does.
_STILL = 0.3
#: For how long that is waited for: with 10,000 vhosts a reload takes 6 s, and old workers that end one by one are no reason to wait longer.
_STILL_WITHIN = 10.0


class Kept(ReloadFailed):
    """The master said itself that it keeps the old configuration."""

    is_of_the_configuration = True


class Conflicting(ReloadFailed):
    """The master took it up, but gave one app's name to another."""

    is_of_the_configuration = True


def until_still(master: int, conf: Path) -> None:
    """Wait until nginx is done with the reload of a command that was killed before it was proven.

    A second reload would be proven by what the first began while the second is still to come, and that one reads what the next change
    has not written yet.  The master is done when no `nginx -s reload` for it is left (`conf` is what that reads), and when it has no
    HUP left, uses no CPU time and has the same children for a while.
    """
    deadline = time.monotonic() + _STILL_WITHIN
    before, since = None, time.monotonic()
    while (now := time.monotonic()) < deadline:
        is_told = has_pending(master, signal.SIGHUP) or any(f" -s reload -c {conf} " in f"{command_line(pid)} " for pid in all_pids())
        state = is_told, ticks(master), frozenset(children(master))
        if state != before or state[0]:
            before, since = state, now
        elif now - since > _STILL:
            return
        time.sleep(0.02)


def prove(master: int, old: Sequence[Worker], answers: Callable[[], bool], log: Tail, *, minds_conflicts: bool) -> None:
    """Wait until the new configuration `answers` and none of the `old` workers accepts any more.

    `minds_conflicts`: a server name that two servers have is a failure, not the host's affair.

    Raises:
        Kept: the master says in its log that the old configuration stays.
        Conflicting: it says that one name has two servers.
        ReloadFailed: it ended, or was not done in time.
    """
    deadline = time.monotonic() + SECONDS
    while True:
        _raise_on(log, master, minds_conflicts)
        letting_go = all(not is_alive(w.pid, w.started) or "shutting down" in command_line(w.pid) for w in old)
        if letting_go and answers():
            _raise_on(log, master, minds_conflicts)
            return
        if not is_alive(master):
            raise ReloadFailed("nginx ended during the reload", hint=f"its log: {log.path}")
        if time.monotonic() > deadline:
            raise ReloadFailed(f"nginx did not take the change up within {SECONDS:.0f} s", hint=f"its log: {log.path}")
        time.sleep(0.002)


def last(run: Path) -> str:
    """What was proven last; empty where nothing is known."""
    try:
        return (run / "proven").read_text()
    except FileNotFoundError:
        return ""


def note(run: Path, probe: str) -> None:
    """Write down what was proven; on a full disk it is not, and the next command proves again."""
    with contextlib.suppress(OSError):
        (run / "proven").write_text(probe)


def _raise_on(log: Tail, master: int, minds_conflicts: bool) -> None:
    messages = log.messages(master)
    for text in messages:
        # a failed bind is tried five times; only the last word counts, or a port that frees up meanwhile
        if text.startswith("[emerg] ") and " bind() to " not in text:
            said = [m for m in messages if m.startswith("[emerg] ")]
            words = next((m for m in said if "bind()" in m and "still" not in m), text)
            if _OF_THE_HOST.search(words):
                raise ReloadFailed(f"nginx did not take the change up: {words}", hint="router doctor")
            raise Kept(f"nginx did not take the change up: {words}", hint=f"its log: {log.path}")
        if "conflicting server name" in text and minds_conflicts:
            raise Conflicting(f"nginx took the change up with a conflict: {text}", hint=f"its log: {log.path}")
