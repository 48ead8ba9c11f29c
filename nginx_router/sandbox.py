"""Templates of apps: rendered with a bound on time, memory and size, because one app's loop must not hold up the host.

jinja2's immutable sandbox keeps a template away from Python; it does not keep it from running for ever.  Each is rendered
in a child of its own: what a template makes C do (`x == y` of lists in lists, 40 deep; `sum` of a million of them) looks at no
clock, takes no signal and lets no other thread run.  There the kernel ends it, and there a crash is the child's.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from jinja2 import DictLoader, StrictUndefined, TemplateNotFound, TemplateSyntaxError, UndefinedError
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .files import LARGEST

#: Of CPU time, so that a busy host refuses no template that an idle one takes; asked between two lines of Python.
_SECONDS = 1.0
#: After which the kernel ends the child, whatever it does; whole seconds.
_LAST_SECOND = 2
#: Of the clock on the wall: the child is stopped, or the host does nothing else.
_PATIENCE = 120.0
_MEMORY = 256 << 20
_LARGEST_FACTOR = 1 << 32
_TOO_LONG = f"a template may not take more than {_SECONDS:.0f} s of CPU time"


class Unrendered(Exception):
    """A template does not render: the line, the words, and whether a variable is not there or (`missing`) another template."""

    def __init__(self, line: int, words: str, *, is_undefined: bool = False, missing: str = "") -> None:
        super().__init__(words)
        self.line, self.words, self.is_undefined, self.missing = line, words, is_undefined, missing


class Sandbox(ImmutableSandboxedEnvironment):
    """Renders texts whose author may be anybody."""

    # numbers that grow by squaring are computed in C, where no deadline is looked at
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self, **options: Any) -> None:
        # nginx's configuration is not HTML; the optimizer would compute constants while it compiles, without bounds
        super().__init__(autoescape=False, optimized=False, undefined=StrictUndefined, **options)
        del self.globals["lipsum"]

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """`left * right` and `left ** right`, of small numbers only."""
        if operator == "**" or any(isinstance(side, int) and abs(side) > _LARGEST_FACTOR for side in (left, right)):
            raise SecurityError(f"a template may not compute {operator} with numbers of this size")
        return super().call_binop(context, operator, left, right)

    def render(self, text: str, values: Mapping[str, Any], templates: Mapping[str, str] | None = None) -> str:
        """What the template `text` makes of `values`; it may include `templates`, by name.

        Raises:
            Unrendered: its expressions raise, or it asks for too much.
        """
        reader, writer = os.pipe()
        with warnings.catch_warnings():
            # the threads of `watch` are not in the child, which needs none of them
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            self._answer(reader, writer, text, values, templates or {})
        os.close(writer)
        try:
            answer = _read(reader)
        finally:
            os.close(reader)
            with contextlib.suppress(ProcessLookupError):
                os.kill(child, signal.SIGKILL)  # it has said all that it will, or too much time has passed
            _, status = os.waitpid(child, 0)
        if not answer.endswith(b"\n"):
            number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
            raise Unrendered(0, _TOO_LONG if number in (0, signal.SIGXCPU, signal.SIGKILL) else f"it ended Python by signal {number}")
        found = json.loads(answer)
        if "text" not in found:
            raise Unrendered(**found)
        return str(found["text"])

    def _answer(self, reader: int, writer: int, text: str, values: Mapping[str, Any], templates: Mapping[str, str]) -> NoReturn:
        """In the child: render, tell, and be gone; nothing of the parent's is touched, its locks least of all."""
        try:
            os.close(reader)
            _confine(keep=writer)
            try:
                answer: dict[str, Any] = {"text": self._rendered(text, values, templates)}
            except BaseException as why:  # whatever expression the owner wrote, endless recursion included
                answer = _told(why)
            data = memoryview(json.dumps(answer).encode() + b"\n")
            while data:
                data = data[os.write(writer, data) :]
        finally:
            os._exit(0)

    def _rendered(self, text: str, values: Mapping[str, Any], templates: Mapping[str, str]) -> str:
        size, parts = 0, []
        with _bounded_time():
            for part in self.overlay(loader=DictLoader(templates)).from_string(text).generate(values):
                size += len(part)
                if size > LARGEST:
                    raise SecurityError(f"a template may not make more than {LARGEST} characters")
                parts.append(part)
        return "".join(parts)


def _confine(*, keep: int) -> None:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the parent decides
    # the host lock is held by whoever has its descriptor open: it must be free as soon as the parent is killed
    os.closerange(3, keep)
    os.closerange(keep + 1, 4096)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (_LAST_SECOND, _LAST_SECOND))
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _MEMORY
    if all(kept == resource.RLIM_INFINITY or kept > limit for kept in (soft, hard)):  # else the host is stricter already
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _told(why: BaseException) -> dict[str, Any]:
    if isinstance(why, TemplateSyntaxError):
        return {"line": why.lineno, "words": str(why.message)}
    if isinstance(why, TemplateNotFound):
        return {"line": _line_of(why), "words": str(why.message), "missing": str(why.name)}
    words = str(why) or type(why).__name__
    return {"line": _line_of(why), "words": words, "is_undefined": isinstance(why, UndefinedError)}


def _line_of(why: BaseException) -> int:
    line, trace = 0, why.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == "<template>":
            line = trace.tb_lineno
        trace = trace.tb_next
    return line


def _read(reader: int) -> bytes:
    """All that the child says, up to the newline at its end, while there is patience."""
    deadline, found = time.monotonic() + _PATIENCE, b""
    ready = select.poll()
    ready.register(reader, select.POLLIN)
    while ready.poll(max(0.0, deadline - time.monotonic()) * 1000):
        part = os.read(reader, 1 << 20)
        found += part
        if not part:
            break
    return found


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    deadline = time.thread_time() + _SECONDS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise TimeoutError(_TOO_LONG)
        return trace

    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)
