"""What every test stands on: a root of its own, an environment without the developer's, ports that nobody else gets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

#: Below the ports that the kernel gives to outgoing connections, which may take any of those at any moment.
PORTS = range(20000, 32000)
_CLAIMS = Path(tempfile.gettempdir()) / "router-test-ports"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what is rendered into the golden files instead of comparing")


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def isolated(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """No test sees the developer's HOME, configuration, root or plugins; the directory is short, for unix sockets."""
    home = Path(tempfile.mkdtemp(prefix="rt", dir="/tmp"))
    home.chmod(0o755)  # workers of a root nginx must reach what lies in it
    for name in list(os.environ):
        if name.startswith(("ROUTER_", "XDG_", "CONFIG_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ROUTER_ROOT", str(home / "r"))
    yield home
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def router_root(isolated: Path) -> Path:
    """ROUTER_ROOT: an empty directory."""
    root = isolated / "r"
    root.mkdir()
    return root


@pytest.fixture(scope="session")
def free_port() -> Iterator[Callable[[], int]]:
    """A port that nothing listens on and that no other test run on this machine is given before this one ends."""
    _CLAIMS.mkdir(exist_ok=True)
    with contextlib.ExitStack() as claims:

        def claim() -> int:
            for port in random.sample(PORTS, 1000):
                file = claims.enter_context((_CLAIMS / str(port)).open("w"))
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    continue
                if _is_free(port):
                    return port
            raise AssertionError("no free port in a thousand tries")

        yield claim


def _is_free(port: int) -> bool:
    for family, host in ((socket.AF_INET, "0.0.0.0"), (socket.AF_INET6, "::")):
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            try:
                probe.bind((host, port))
            except OSError:
                return False
    return True
