"""Where a change can be interrupted: the named steps at which tests kill a command to show that nothing is lost."""

from __future__ import annotations

import os
import signal

#: In the order in which a change passes them; the crash table of `transaction` says what each leaves behind.
STEPS = ("queued", "taken", "validated", "intent", "files", "staged", "committed", "reloaded", "proven", "answered")


def step(name: str) -> None:
    """Pass the step `name`.

    With ROUTER_KILL_AT=name in the environment the process ends here, as by a power cut.  ROUTER_KILL_AT=name:TERM sends it
    that signal instead; with STOP it stands still, so that something else may be killed meanwhile.
    """
    wanted, _, number = os.environ.get("ROUTER_KILL_AT", "").partition(":")
    if wanted == name:
        os.kill(os.getpid(), signal.Signals[f"SIG{number or 'KILL'}"])
