"""What is known of the program that nginx is: the version that its file and its running master both understand."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from nginx_router import hostconf, transaction
from nginx_router.controller import Router
from nginx_router.model import Globals, HostFacts
from nginx_router.nginx import Nginx
from nginx_router.render import Renderer
from nginx_router.settings import Paths


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], str]:
    """A file that says that it is nginx of some version, and counts how often it was asked."""

    def make(name: str, said: str) -> str:
        file = tmp_path / name
        file.write_text(f"#!/bin/sh\necho asked >>{tmp_path}/asked\necho '{said}' >&2\n")
        file.chmod(0o755)
        return str(file)

    return make


@pytest.fixture
def master() -> Iterator[int]:
    """A process of another program."""
    with ExitStack() as cleanup:
        process = cleanup.enter_context(subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE))
        cleanup.callback(process.terminate)
        yield process.pid


def test_a_program_says_its_version_once(program: Callable[[str, str], str], tmp_path: Path) -> None:
    binary = program("nginx", "nginx version: nginx/1.28.0 (Ubuntu)")
    version, stamp = hostconf.version_of(binary, None, None)
    assert version == (1, 28, 0)
    assert hostconf.version_of(binary, None, HostFacts(version=version, program=stamp)) == (version, stamp)
    assert (tmp_path / "asked").read_text() == "asked\n", "nobody asks again as long as it is the same file"
    program("nginx", "nginx version: nginx/1.22.1")
    assert hostconf.version_of(binary, None, HostFacts(version=version, program=stamp))[0] == (1, 22, 1)


def test_a_running_master_that_is_another_program_counts_too(program: Callable[[str, str], str], master: int) -> None:
    assert hostconf.version_of(program("nginx", "nginx version: nginx/1.29.1"), master, None)[0] == (), "Python is no nginx"
    assert hostconf.version_of(sys.executable, master, None)[0] == ()


@pytest.mark.parametrize("said", ["nginx version: openresty/1.27.1.2", ""])
def test_what_says_something_else_is_not_known(program: Callable[[str, str], str], said: str) -> None:
    assert hostconf.version_of(program("nginx", said), None, None)[0] == ()


def test_what_is_not_there_is_not_known() -> None:
    assert hostconf.version_of("/nowhere/nginx", None, None) == ((), "")


@pytest.mark.parametrize(
    ("version", "mode", "expected"),
    [
        ((1, 27, 4), "managed", True),
        ((1, 31, 0), "managed", True),
        ((1, 27, 3), "managed", False),
        ((), "managed", False),
        ((1, 31, 0), "host", False),
    ],
)
def test_connections_outlive_a_reload_for_a_moment_where_nginx_can(version: tuple[int, ...], mode: str, expected: bool) -> None:
    renderer = Renderer(Path("/r"), Globals(proxy={"mode": mode}), HostFacts(version=version))
    assert ("keepalive_min_timeout 1s;" in renderer.http(1, "1-a", [8080], {})) == expected


def test_what_an_earlier_version_wrote_says_nothing_of_it() -> None:
    facts = HostFacts(version=(1, 28, 0), program="1:2:3")
    assert HostFacts.from_json(facts.as_json()) == facts
    earlier = {key: value for key, value in facts.as_json().items() if key not in ("version", "program")}
    assert HostFacts.from_json(earlier).version == ()


def test_an_older_nginx_is_started_with_what_it_knows(router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    router, started = Router(Paths(router_root)), list[str]()
    monkeypatch.setattr(transaction, "validate", lambda *_: None)
    monkeypatch.setattr(transaction.starting, "check", lambda *_: None)
    monkeypatch.setattr(Nginx, "start", lambda self, facts, probe: started.append((self.paths.current / "router.conf").read_text()))
    for version, expected in (((1, 31, 0), True), ((1, 31, 0), True), ((1, 22, 1), False), ((1, 22, 1), False)):
        monkeypatch.setattr(hostconf, "version_of", lambda *_, version=version: (version, f"{version}"))
        with router.locked() as turn:
            turn.start(turn.first_generation())
        assert ("keepalive_min_timeout" in started[-1]) == expected, version
    assert router.generations.current_number() == 2, "one more generation, for the older one"
