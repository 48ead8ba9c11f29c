"""Becoming a new process of what is installed now: Python has loaded what was there when this one began."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterable
from typing import NoReturn


def problem() -> str:
    """Why what is installed does not run; empty: it does.  Nothing may be loaded of a program that is half installed."""
    words = len(sys.argv) - 1
    argv = _argv()
    try:
        done = subprocess.run([*argv[: len(argv) - words], "version"], capture_output=True, text=True, timeout=30, check=False)
    except (OSError, subprocess.SubprocessError) as why:
        return str(why)
    last = done.stderr.strip().rpartition("\n")[2]
    return (last or f"exit {done.returncode}") if done.returncode else ""


def become(held_back: Iterable[signal.Signals]) -> NoReturn:
    """Start the same command line anew in this process; signals that are `held_back` come when the new one lets them.

    Raises:
        OSError: the interpreter is gone.
    """
    signals = tuple(held_back)
    signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        os.execv(sys.executable, _argv())  # noqa: S606 - no shell is meant
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, signals)


def _argv() -> list[str]:
    return [sys.executable, *sys.orig_argv[1:]]
