"""What the Python code of plugins prints: a command's stdout holds its answer and nothing else, and scripts read it.

An executable has pipes of its own.  Python code shares the command's stdout, and so does what it starts; both print beside
the talk instead.  All of it is called from one thread.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def beside_the_talk() -> Iterator[None]:
    """Within it stdout is stderr, for processes that are started there too."""
    with contextlib.suppress(AttributeError, OSError, ValueError):  # there is none, or nobody reads it
        sys.stdout.flush()  # what was printed before belongs to the answer
    try:
        answer = os.dup(1)
    except OSError:  # it was closed before we began
        answer = -1
    try:
        with contextlib.redirect_stdout(sys.stderr):
            if answer >= 0:
                with contextlib.suppress(OSError):  # stderr was closed
                    os.dup2(2, 1)
            yield
    finally:
        with contextlib.suppress(AttributeError, OSError, ValueError):
            if sys.__stdout__ is not sys.stdout:
                sys.__stdout__.flush()  # type: ignore[union-attr]  # None: AttributeError; what it holds is no answer either
        if answer >= 0:
            os.dup2(answer, 1)
            os.close(answer)
