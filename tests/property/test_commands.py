"""Random sequences of all commands and hand edits, hostile ones too: refused with a documented exit code, or nginx takes the whole tree.

The slow runs take 20,000 steps and more, and print their seeds; `TEST_SEED=N` repeats one.
"""

from __future__ import annotations

import importlib
import os
import pkgutil
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

import nginx_router
from nginx_router.controller import Router
from nginx_router.properties import PROPERTIES
from nginx_router.settings import Paths

from . import hosts
from .conftest import Slow
from .hosts import NGINX, Host, sequences
from .strategies import ARGUMENTS, NOT_DRAWN, Command, Put, Step, Write, steps
from .words import PROXY_VALUES


def test_every_command_is_drawn_or_named_as_one_that_is_not(router_root: Path) -> None:
    known = {*Router(Paths(router_root)).plugins.commands()}
    drawn = {*ARGUMENTS} | {*NOT_DRAWN}
    assert known == drawn, "a new command needs arguments in strategies.ARGUMENTS, or a reason in NOT_DRAWN"


def test_whatever_is_typed_it_is_refused_or_nginx_takes_the_whole_tree(home: Path, alive: int, ports: list[int]) -> None:
    sequences(Host(home, ports, alive), steps(), count=6, length=40)


def test_the_same_of_a_root_that_is_a_users_who_may_not_read_everything(home: Path, alive: int, ports: list[int]) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to become somebody else")
    for name in (*(f"nginx_router.{each.name}" for each in pkgutil.iter_modules(nginx_router.__path__)), "encodings.punycode", "tomlkit"):
        if not name.endswith("__main__"):
            importlib.import_module(name)  # somebody else may not read where Python lies
    sequences(Host(home, ports, alive, uid=65534), steps(), count=3, length=40)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_twenty_thousand_steps(home: Path, alive: int, ports: list[int], slow: Slow) -> None:
    host = Host(home, ports, alive)
    sequences(host, steps(), count=100, length=50, slow=slow, least=20_000)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_thousand_steps_of_an_nginx_that_runs(live_home: Path, alive: int, ports: list[int], slow: Slow) -> None:
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    host = Host(live_home, ports, alive, running=True)
    try:
        sequences(host, steps(running=True), count=10, length=40, slow=slow, least=1_000)
    finally:
        host.stop()


#: What was found once: why it is here, and the steps.
FOUND: Sequence[tuple[str, Sequence[Step]]] = (
    ("a number of 5,000 digits is no int", [Command(("generations:show", "9" * 5000))]),
    ("an archive that is not there", [Command(("import", "none.tar"))]),
    ("an archive into a directory that is not there", [Command(("export", "--output=none/x.tar"))]),
    ("the file that names switched-off plugins is a link to itself", [Put("plugins/.disabled", "link to itself"), Command(("status",))]),
    ("the file that says where plugins came from is a FIFO", [Put("plugins/.origins.json", "fifo"), Command(("plugins:update",))]),
    ("an export waited for a FIFO in the place of a plugin, under the host lock", [Put("plugins/hello", "fifo"), Command(("export",))]),
    (
        "a plugin was installed in the place of a link to nowhere",
        [Put("plugins/hello", "link to nowhere"), Command(("plugins:install", "new/hello"))],
    ),
    ("an escape sequence in a name reached the terminal", [Command(("plugins:report", "\x1b[2J"))]),
    (
        "an escape sequence in a snippet reached the terminal in nginx's words",
        [Write("apps/blog/nginx.conf.d/own.conf", b"x\x1b[2J;\n"), Command(("domains:add", "blog", "a.test"))],
    ),
    (
        "a control character in a manifest reached the terminal in the words of tomllib",
        [Write("plugins/hello/plugin.toml", b"[plugin]\nx = \x1a\n"), Command(("reconcile",))],
    ),
    (
        "a comparison of lists in lists takes C for ever, whatever the clock says",
        [
            Write(
                "apps/blog/nginx.conf.j2",
                b"{% set n = namespace(a=[1], b=[1]) %}"
                b"{% for i in range(60) %}{% set n.a = [n.a, n.a] %}{% set n.b = [n.b, n.b] %}{% endfor %}{{ n.a == n.b }}",
            ),
            Write("apps/blog/DOMAINS", b"a.test\n"),
            Command(("reconcile",)),
        ],
    ),
)


@pytest.mark.parametrize("steps", [found for _, found in FOUND], ids=[why for why, _ in FOUND])
def test_what_was_found_once_is_refused_or_served(home: Path, alive: int, ports: list[int], steps: Sequence[Step]) -> None:
    host = Host(home, ports, alive)
    host.begin()
    for step in steps:
        host.do(step)
    host.end()


# the invariants see what they are for


def appends(path: str, text: str) -> Callable[[Host], None]:
    def damage(host: Host) -> None:
        file = host.paths.root / path
        with file.open("a") as opened:
            opened.write(text)

    return damage


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (appends("apps/shop/DOMAINS", "x.test\n"), "the files of an untouched app changed"),
        (appends("../outside/secret", "x"), "something outside the root was changed"),
        (appends("../owned", "x"), "owned"),
        (appends("log/router.log", "x"), "what is in router.log"),
        (appends("current/router.conf", "x\n"), "unexpected end of file"),
    ],
)
def test_a_command_that_did_this_would_be_found(
    home: Path, alive: int, ports: list[int], monkeypatch: pytest.MonkeyPatch, damage: Callable[[Host], None], said: str
) -> None:
    host = Host(home, ports, alive)
    host.begin()
    real = hosts.main

    def main(argv: Sequence[str]) -> int:
        code = real(argv)
        damage(host)
        return code

    monkeypatch.setattr(hosts, "main", main)
    with pytest.raises(AssertionError, match=said):
        host.do(Command(("domains:add", "blog", "a.test")))
        host.end()


@pytest.mark.parametrize("code", [1, 16, 130])
def test_an_exit_code_that_is_not_documented_would_be_found(
    home: Path, alive: int, ports: list[int], monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    host = Host(home, ports, alive)
    host.begin()
    monkeypatch.setattr(hosts, "main", lambda argv: code)
    with pytest.raises(AssertionError, match=f"exit {code} "):
        host.do(Command(("apps:list",)))


def test_every_setting_of_the_host_has_values_that_harm_nobody() -> None:
    assert {*PROXY_VALUES} == {*PROPERTIES["proxy"]}, "what they are may be run as a command: name harmless ones in strategies.PROXY_VALUES"
