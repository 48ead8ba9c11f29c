"""Help: every command in a line, with its arguments, and in full; never wider than 80 columns."""

from __future__ import annotations

import contextlib
import fcntl
import inspect
import os
import pty
import re
import shlex
import socket
import struct
import subprocess
import sys
import termios
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nginx_router import helptext
from nginx_router.commands import alias, find, nouns, visible
from nginx_router.controller import Router
from nginx_router.discovery import Command
from nginx_router.parsing import COMMON, explain, parse
from nginx_router.settings import Paths

Run = Callable[..., Any]

USAGE = "APP [PROCESS=]ADDRESS... [--check /PATH] [N [M]] [APP | --all] A|B:C[:D]"
LONG = Command("apps:x:do", "x", "Do it", "plugin.py:do", "change", USAGE)


@pytest.fixture
def router(router_root: Path) -> Router:
    return Router(Paths(router_root))


def commands_of(router: Router) -> dict[str, Command]:
    return visible(router.plugins.commands())


def test_the_overview_has_one_line_for_each_command_below_its_noun(run: Run, router: Router) -> None:
    lines = run("help").lines
    commands = commands_of(router)
    for name, command in commands.items():
        noun = helptext.OTHER if ":" not in name else name.rpartition(":")[0]
        (place,) = [n for n, line in enumerate(lines) if line.split()[:1] == [alias(name) or name] and line.startswith("  ")]
        assert [line for line in lines[:place] if line and line[0] != " "][-1] == noun
        assert lines[place].endswith(f"  {command.help}"), f"{name}: the help line is too long"
    assert len([line for line in lines if line.startswith("  ")]) == len(commands)


def test_no_line_of_help_is_wider_than_80_columns(run: Run, router: Router) -> None:
    commands = commands_of(router)
    for words in [["help"], *(["help", noun] for noun in nouns(commands)), *(["help", name] for name in commands)]:
        assert [line for line in run(*words).lines if len(line) > helptext.WIDTH] == [], words


def test_a_noun_shows_its_commands_with_their_arguments_by_either_name(run: Run) -> None:
    long, short = run("help", "apps:domains"), run("help", "domains")
    assert long.out == short.out
    assert long.lines[:2] == ["router apps:domains:add APP DOMAIN...", "    Add domains to an app"]
    assert run("help", "apps:").out == run("help", "apps").out
    assert re.search(r"^more: .*apps:domains .*apps:upstreams", run("help", "apps").out, re.M | re.S)


def test_help_of_a_command_is_its_help_option(run: Run, router: Router) -> None:
    for name in commands_of(router):
        assert run("help", name).out == run(name, "--help").out != "", name
    assert run("help", "domains:add").out == run("help", "apps:domains:add").out


def test_every_command_has_an_example_whose_words_parse(router: Router) -> None:
    commands = router.plugins.commands()
    for name, command in commands.items():
        function = router.plugins.function(command)
        this = explain(command, function)
        assert this.examples, name
        for example in this.examples:
            parts = re.split(r"\s(?:\|\|?|&&|;|<|>{1,2})\s*", example.removeprefix('eval "$(').removesuffix(')"'))
            words = next(words for part in parts if "router" in (words := shlex.split(part)))
            words = words[words.index("router") + 1 :]  # `sudo router`, `flock LOCK router`
            same = [other for other in commands.values() if (other.plugin, other.run) == (command.plugin, command.run)]
            assert find(words[0], commands) in same, name
            parse(command, function, words[1:], stdin=())


def test_the_usage_names_every_option_and_every_argument_is_explained(router: Router) -> None:
    for name, command in commands_of(router).items():
        this = explain(command, router.plugins.function(command))
        options = [re.findall(r"--?[a-z][a-z-]*", left) for left, _ in this.rows if left.startswith("-")]
        named = set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", command.usage))
        assert named <= {spelling for spellings in options for spelling in spellings}, name
        assert [spellings for spellings in options if spellings != ["--global"] and not named & set(spellings)] == [], name
        function = router.plugins.function(command)
        if "typer" in vars(sys.modules[function.__module__]):  # where it must not be imported, the words have no declaration
            assert len(this.rows) == len(inspect.signature(function).parameters) - 1, name
        assert all(right for _, right in this.rows), name
        assert len(this.common) == len(COMMON[command.kind]) + (2 if command.kind == "report" else 1)


def test_help_tells_of_a_plugins_executable(run: Run, router_root: Path) -> None:
    directory = router_root / "plugins/hello"
    directory.mkdir(parents=True)
    manifest = '[plugin]\nname = "hello"\n[plugin.commands]\n"hello:world" = {help = "Greet", run = "world", usage = "[NAME]"}\n'
    (directory / "plugin.toml").write_text(manifest + '"hello:secret" = {help = "x", run = "world", hidden = true}\n')
    assert run("help", "hello").lines == run("help", "hello:world").lines == ["router hello:world [NAME]", "    Greet"]
    assert "hello:secret" not in run("help").out


def test_a_help_line_that_is_too_long_is_cut_and_one_usage_stays_together() -> None:
    command = Command("x:do", "x", "word " * 30, "plugin.py:do")
    assert helptext.overview({"x:do": command})[2] == "  x:do  " + ("word " * 30)[:71].rstrip() + "…"
    lines = helptext.usage_lines(LONG, "usage: ")
    assert max(map(len, lines)) <= helptext.WIDTH and len(lines) == 2
    assert " ".join(line.strip() for line in lines) == f"usage: router apps:x:do {LONG.usage}"
    words = ["APP", "[PROCESS=]ADDRESS...", "[--check /PATH]", "[N [M]]", "[APP | --all]", "A|B:C[:D]"]
    assert helptext.words_of(LONG.usage) == words


def test_a_long_left_column_does_not_push_the_right_one_out() -> None:
    lines = helptext.table([("x" * 40, "about it " * 20), ("y", "short")])
    assert max(map(len, lines)) <= helptext.WIDTH
    assert lines[0] == "  " + "x" * 40 and lines[-1] == "  y" + " " * 27 + "short"


def test_help_is_there_as_fast_as_the_version(router_root: Path) -> None:
    """What both import is what they cost (`script/bench` has the figures): help nothing more, and neither a library."""

    def imported(*words: str) -> set[str]:
        program = (
            "import contextlib, io, sys\n"
            "from nginx_router.cli import main\n"
            "with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit): main(sys.argv[1:])\n"
            "print(*sys.modules)"
        )
        return set(subprocess.run([sys.executable, "-c", program, *words], capture_output=True, text=True, check=True).stdout.split())

    version = imported("version")
    assert imported("help") <= version
    libraries = "click crossplane cryptography filelock http jinja2 pluggy rich socket tomlkit typer watchdog"
    assert not {*libraries.split()} & version


# -- reports on a terminal of 80 columns


def on_terminal(router_root: Path, *words: str, columns: int = 80, code: int | None = None, **environment: str) -> list[str]:
    """The lines that a command shows on a terminal, without its colours."""
    read, write = pty.openpty()
    fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    env = {**os.environ, "TERM": "xterm", **environment}
    env.pop("COLUMNS", None)
    child = subprocess.Popen([sys.executable, "-m", "nginx_router", *words], stdin=write, stdout=write, stderr=write, env=env)
    os.close(write)
    shown = b""
    with contextlib.suppress(OSError):  # the other end was closed: all was read
        while data := os.read(read, 4096):
            shown += data
    os.close(read)
    assert child.wait(30) in ((0, 8, 9, 13) if code is None else (code,))
    return [re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip() for line in shown.decode().splitlines()]


@pytest.fixture
def wide(router_root: Path) -> Path:
    """An app of which there is much to say."""
    app = router_root / "apps/a-rather-long-name-of-an-app-in-a-large-company"
    app.mkdir(parents=True)
    names = [f"a-name-of-{number}-that-is-as-long-as-names-of-hosts-are-in-practice.staging.example.com" for number in range(3)]
    (app / "DOMAINS").write_text("".join(f"{name}\n" for name in names))
    (app / "UPSTREAMS").write_text("worker unix:/srv/a-rather-long-name/releases/20260101T000000Z/run/sockets/app.sock weight=2 backup\n")
    (app / "app.toml").write_text(f'locked = "{"because the database is moved " * 4}"\n')
    return router_root


@pytest.mark.parametrize("plain", [{}, {"NO_COLOR": "1"}], ids=["colour", "no colour"])
@pytest.mark.parametrize("columns", [80, 60])
def test_a_report_wraps_values_below_themselves(wide: Path, columns: int, plain: dict[str, str]) -> None:
    for words in (["apps:report"], ["domains:report"], ["upstreams:report"], ["status"], ["proxy:report"], ["nginx:report", "--global"]):
        lines = on_terminal(wide, *words, columns=columns, **plain)
        assert [line for line in lines if len(line) > columns] == [], words
    lines = on_terminal(wide, "apps:report", columns=columns, **plain)
    keys = [line.split()[0] for line in lines if line[:1].strip()]
    state = ["generation", "serving", "stale", "problem", "locked", "canary", "aborted"]
    assert keys == ["app", "domains", "urls", "endpoints", "processes", *state]
    column = len("generation") + 2
    assert all(line[:column].strip() == "" for line in lines if not line[:1].strip())
    # nothing is lost: what was folded can be put together again
    joined = "".join(line[column:] for line in lines)
    assert "a-name-of-2-that-is-as-long-as-names-of-hosts-are-in-practice.staging.example.com" in joined


def test_an_error_goes_on_below_itself(router_root: Path) -> None:
    lines = on_terminal(router_root, "apps:create", "a_name_that_breaks_a_rule", columns=60, code=2)
    assert lines == [
        "router: 'a_name_that_breaks_a_rule' is not an app name",
        "  1 to 63 of a-z 0-9 . - beginning with a letter or digit",
        "    and not ending in . or -",
    ]


def test_generations_are_a_table_for_people_and_numbers_for_scripts(run: Run, router_root: Path) -> None:
    for name in ("blog", "a-rather-long-name-of-an-app-in-a-large-company"):
        assert run("apps:create", name).code == 0
    numbers = ["1", "2"]
    assert run("generations:list").lines == numbers
    head, *rows = on_terminal(router_root, "generations:list")
    assert head.split() == ["generation", "serving", "time", "(UTC)", "apps", "command"]
    assert [row.split()[0] for row in rows] == numbers
    assert re.search(r" blog +apps:create blog$", rows[0])
    assert rows[1].endswith(" a-rather-long-n…  apps:create a-rathe…") and max(map(len, rows)) == 80
    assert on_terminal(router_root, "generations:list", "--command")[0] == "apps:create blog"


def test_a_property_is_one_line_for_people(run: Run, router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    for words in (["blog", "gzip", "on"], ["--global", "gzip", "off"], ["--global", "client-max-body-size", "3m"]):
        assert run("nginx:set", *words).code == 0
    lines = on_terminal(router_root, "nginx:report", "blog")
    shown = {line.split()[0]: line.split(maxsplit=1)[1:] for line in lines if line[:1].strip()}
    assert (shown["app"], shown["gzip"]) == (["blog"], ["on (set; global: off)"])
    assert (shown["client-max-body-size"], shown["proxy-read-timeout"]) == (["3m (global)"], ["60s"])
    assert not [name for name in shown if name.startswith(("global-", "computed-"))]
    assert "computed-gzip:" in run("nginx:report", "blog").out


def test_a_deploy_ends_with_a_line_on_stderr_and_stdout_stays_data(run: Run, router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    with socket.create_server(("127.0.0.1", 0)) as old, socket.create_server(("127.0.0.1", 0)) as new:
        addresses = [f"127.0.0.1:{each.getsockname()[1]}" for each in (old, new)]
        assert run("apps:deploy", "blog", addresses[0]).code == 0
        lines = on_terminal(router_root, "apps:deploy", "blog", addresses[1])
        assert lines[-2] == addresses[0]
        assert re.fullmatch(r"blog: saved as generation 3, \d\.\d\d s, retired 1", lines[-1])
        assert "generation" not in on_terminal(router_root, "apps:deploy", "blog", addresses[0], "--dry-run")[-1]
        got = run("apps:deploy", "blog", addresses[0])
        assert got.lines == [addresses[1]]
        assert re.search(r"^blog: saved as generation 4, \d\.\d\d s, retired 1$", got.err, re.MULTILINE), "a script's log has it, too"


def test_what_a_script_reads_is_never_wrapped(run: Run, wide: Path) -> None:
    assert max(map(len, run("apps:report").lines)) > 100
    assert "\x1b" not in run("apps:report").out


def test_help_on_a_terminal_is_the_same_text(run: Run, router_root: Path) -> None:
    assert on_terminal(router_root, "help", "domains:add") == [line.rstrip() for line in run("help", "domains:add").lines]
