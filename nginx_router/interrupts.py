"""TERM and INT: they end a command until what it is to do is done, and no longer.

The exit codes of signals (130, 143) say that nothing was changed.  So whoever changed something holds them back from then
on, until the command ends with the code that is true.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

from .errors import Terminated

NUMBERS = (signal.SIGINT, signal.SIGTERM)

_is_held = False
_came = False


def hold() -> None:
    """Something is changed: from now on they end nothing."""
    global _is_held
    _is_held = True


def resume() -> None:
    """What comes next is another command, or the next turn of one that goes on."""
    global _is_held
    _is_held = False


def is_held() -> bool:
    """Whether something was changed, so that they are to end nothing."""
    return _is_held


def came() -> bool:
    """Whether one came: a wait behind a change is given up for it."""
    return _came


@contextlib.contextmanager
def released() -> Iterator[None]:
    """Within it they end what is under way, which is not what was changed: a hook that is told of it."""
    global _is_held
    before, _is_held = _is_held, False
    try:
        yield
    finally:
        _is_held = before


@contextlib.contextmanager
def unwinding(*, is_last: bool) -> Iterator[None]:
    """Within it both unwind the command by an exception, so that locks, queue entries and children are left in order.

    `is_last`: behind it only the interpreter is left to end, and no signal makes another exit code of that.
    """

    global _came
    resume()
    _came = False
    if threading.current_thread() is not threading.main_thread():  # a test or an embedding program has its own ways
        yield
        return
    before = {each: signal.signal(each, _leave) for each in _heeded()}
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, signal.SIG_IGN if is_last else handler)


@contextlib.contextmanager
def waiting() -> Iterator[list[int]]:
    """Those that come meanwhile, which take effect afterwards: a change is not left half done."""
    came: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield came
        return
    before = {each: signal.signal(each, lambda got, _: came.append(got)) for each in _heeded()}
    try:
        yield came
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)
        for got in came[:1]:
            os.kill(os.getpid(), got)


def ended(number: int) -> BaseException:
    """What unwinds a command that a signal ends."""
    return KeyboardInterrupt() if number == signal.SIGINT else Terminated()


def _heeded() -> list[signal.Signals]:
    # who was started with one ignored (nohup, a job in the background of a script) is not ended by it
    return [each for each in NUMBERS if signal.getsignal(each) != signal.SIG_IGN]


def _leave(number: int, _: FrameType | None) -> None:
    global _came
    _came = True
    if not _is_held:
        raise ended(number)
