"""The shipped templates and plugins: inside the wheel, else in the checkout."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

_PACKAGE = Path(__file__).parent  # importlib.resources says the same and takes 7 ms


def shipped(kind: Literal["templates", "plugins"]) -> Path:
    """Directory of the shipped templates or plugins.

    Raises:
        FileNotFoundError: neither place has it: a broken installation.
    """
    for base in (_PACKAGE / "_shipped", _PACKAGE.parent):
        if (base / kind).is_dir():
            return base / kind
    raise FileNotFoundError(f"no shipped {kind}: broken installation")
