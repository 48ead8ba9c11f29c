"""Templates of apps: rendered with a bound on time, memory and size, because one app's loop must not hold up the host.

jinja2's immutable sandbox keeps a template away from Python; it does not keep it from running for ever.
"""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from jinja2 import DictLoader, StrictUndefined
from jinja2.exceptions import SecurityError
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from .files import LARGEST

_SECONDS = 1.0  # of CPU time, so that a busy host refuses no template that an idle one takes
_MEMORY = 256 << 20
_LARGEST_FACTOR = 1 << 32


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
            Exception: whatever its expressions raise; TimeoutError, MemoryError and SecurityError for what is too much.
        """
        size, parts = 0, []
        with _bounded_memory(), _bounded_time():
            for part in self.overlay(loader=DictLoader(templates or {})).from_string(text).generate(values):
                size += len(part)
                if size > LARGEST:
                    raise SecurityError(f"a template may not make more than {LARGEST} characters")
                parts.append(part)
        return "".join(parts)


@contextlib.contextmanager
def _bounded_time() -> Iterator[None]:
    deadline = time.thread_time() + _SECONDS

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if time.thread_time() > deadline:
            raise TimeoutError(f"a template may not take more than {_SECONDS:.0f} s of CPU time")
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


@contextlib.contextmanager
def _bounded_memory() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _MEMORY
    if any(kept != resource.RLIM_INFINITY and kept < limit for kept in (soft, hard)):
        yield  # the host is stricter already
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
