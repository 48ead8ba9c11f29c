"""A root in memory, and a machine that answers the same on every host: what makes 20,000 steps a matter of minutes."""

from __future__ import annotations

import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nginx_router import discovery, orphans

from .strategies import SEED

_MEMORY = Path("/dev/shm")


@pytest.fixture
def live_home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory for a root, ROUTER_ROOT below it; nothing is synced, no name server asked, no program become."""
    made = Path(tempfile.mkdtemp(prefix="rp", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else "/tmp"))
    made.chmod(0o755)  # workers of a root nginx must reach what lies in it
    monkeypatch.setenv("ROUTER_ROOT", str(made / "r"))
    monkeypatch.chdir(made)
    monkeypatch.setattr(os, "fsync", lambda fd: None)  # no power is cut here
    monkeypatch.setattr(os, "execve", _refuse)
    monkeypatch.setattr(socket, "getaddrinfo", _asking(socket.getaddrinfo))
    monkeypatch.setattr(discovery, "read", _reading(discovery.read))
    yield made
    shutil.rmtree(made, ignore_errors=True)


@pytest.fixture
def home(live_home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same for a root whose nginx never runs: /proc need not be looked through for what it left."""
    monkeypatch.setattr(orphans, "find", lambda *_: [])
    return live_home


@pytest.fixture
def ports(free_port: Callable[[], int]) -> list[int]:
    """Ports that are free on this host."""
    return [free_port() for _ in range(4)]


@pytest.fixture
def alive() -> Iterator[int]:
    """The port of something that accepts connections."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        yield listener.getsockname()[1]


def _refuse(*_: object) -> None:
    raise AssertionError("the test would become another program")


def _asking(real: Callable[..., Any]) -> Callable[..., Any]:
    def ask(host: Any, *args: Any, **options: Any) -> Any:
        if host == "localhost" or (isinstance(host, str) and host and not host.strip("0123456789abcdef.:")):
            return real("127.0.0.1" if host == "localhost" else host, *args, **options)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    return ask


def _reading(real: Callable[..., Any]) -> Callable[..., Any]:
    known: dict[Path, Any] = {}

    def read(directory: Path, *, is_built_in: bool = False, package: str = "") -> Any:
        if not is_built_in:
            return real(directory, package=package)
        if directory not in known:
            known[directory] = real(directory, is_built_in=True)
        return known[directory]

    return read


class Slow:
    """A slow run: its seed, and how far it came; the last words of pytest say both."""

    def __init__(self, number: int, record: Callable[[str, object], None]) -> None:
        self.number, self._record = number, record
        record("seed", f"TEST_SEED={number}")

    def came(self, steps: int, judged: int) -> None:
        """Say so many steps, after which nginx judged the whole tree so many times."""
        self._record("steps", f"{steps} steps, the whole tree judged by nginx {judged} times")


@pytest.fixture
def slow(record_property: Callable[[str, object], None]) -> Slow:
    """A slow run with a seed of its own, or that of `TEST_SEED`."""
    return Slow(int(SEED or random.randrange(10**6)), record_property)
