"""What every test stands on: a root of its own, an environment without the developer's, ports that nobody else gets."""

from __future__ import annotations

import contextlib
import fcntl
import os
import random
import shutil
import signal
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router.events import Edit, Event, reduce
from nginx_router.model import App, Texts, parse_app

#: Below the ports that the kernel gives to outgoing connections, which may take any of those at any moment.
PORTS = range(20000, 32000)
_CLAIMS = Path(tempfile.gettempdir()) / "router-test-ports"


class World:
    """Apps as texts, and nothing else: what `reduce` looks at."""

    def __init__(self, apps: Mapping[str, Texts], config: str = "", global_domains: str = "") -> None:
        self.apps, self.config, self.global_domains = dict(apps), config, global_domains

    def texts(self, app: str) -> Texts | None:
        return self.apps.get(app)

    def parse(self, app: str, texts: Texts) -> App:
        return parse_app(app, texts)

    def names(self) -> list[str]:
        return sorted(self.apps)

    def unhealthy(self, app: str) -> Mapping[str, str]:
        return {}

    @property
    def owners(self) -> dict[str, str]:
        return {d: name for name, texts in self.apps.items() for d in parse_app(name, texts).domains}

    def take(self, edit: Edit) -> None:
        """Become what `edit` makes of it."""
        for name, texts in edit.apps.items():
            if texts is None:
                self.apps.pop(name, None)
            else:
                parse_app(name, texts)
                self.apps[name] = texts
        self.config = self.config if edit.config is None else edit.config
        self.global_domains = self.global_domains if edit.global_domains is None else edit.global_domains

    def apply(self, action: str, app: str | None, **args: Any) -> Edit:
        edit = reduce(Event(action, app, args), self)
        self.take(edit)
        return edit

    def seen(self) -> tuple[object, ...]:
        return {name: dict(texts) for name, texts in self.apps.items()}, self.config, self.global_domains


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write what is rendered into the golden files instead of comparing")
    parser.addoption("--own-processes", action="store_true", help="start every `router` anew, none as a fork of one that has imported all")


def pytest_configure(config: pytest.Config) -> None:
    """In the background of a script SIGINT is ignored, and every process that a test starts would ignore it too."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, lambda number, frame: None)  # not passed on, as `ignored` is


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What takes minutes begins first: begun last it would run on alone."""
    items.sort(key=lambda item: item.get_closest_marker("slow") is None)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """The seeds and the counts of the runs that have them, those of other processes too."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            said = dict(getattr(report, "user_properties", ()))
            if getattr(report, "when", "") == "call" and "seed" in said:
                terminalreporter.write_line(f"{report.nodeid}: {said['seed']}: {said.get('steps', 'not ended')}")


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
