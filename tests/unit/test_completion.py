"""Completion: the candidates, and the three shells that ask for them."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from nginx_router.plugins import Plugins
from nginx_router.settings import Paths

Run = Callable[..., Any]

BIN = Path(sys.executable).parent


@pytest.fixture
def apps(router_root: Path) -> Path:
    """Two apps and two generations, as names on disk alone."""
    for app in ("blog", "shop"):
        (router_root / "apps" / app).mkdir(parents=True)
    (router_root / "apps/blog/DOMAINS").write_text("# mine\nblog.example.com\n*.blog.example.com  # all\n\n")
    (router_root / "apps/blog/UPSTREAMS").write_text("10.0.0.3:5000 weight=2\napi unix:/run/api.sock\n")
    (router_root / "DOMAINS").write_text("example.com\n")
    for number in (41, 42):
        (router_root / f"generations/{number:06}").mkdir(parents=True)
        (router_root / f"generations/{number:06}/state.json").write_text("{}")
    return router_root


CASES = [
    ("ap", ["apps:"]),
    ("apps:dom", ["apps:domains:"]),
    ("domains:rem", ["domains:remove", "domains:remove-global"]),
    ("complet", ["completion"]),  # and not what only scripts call
    ("apps:report ", ["blog", "shop"]),
    ("apps:report b", ["blog"]),
    ("apps:rename s", ["shop"]),
    ("apps:rename shop ", []),
    ("apps:create ", None),
    ("domains:remove blog ", ["*.blog.example.com", "blog.example.com"]),
    ("domains:remove blog blog.example.com ", ["*.blog.example.com"]),
    ("domains:remove nope ", []),
    ("domains:add blog ", []),
    ("domains:remove-global ", ["example.com"]),
    ("upstreams:remove blog 1", ["10.0.0.3:5000"]),
    ("apps:retire blog ", ["10.0.0.3:5000", "unix:/run/api.sock"]),
    ("apps:deploy blog ", []),
    ("apps:deploy blog --check", ["--check", "--check-timeout"]),
    ("apps:deploy blog --check ", []),
    ("apps:deploy blog x:1 --d", ["--drain", "--drain-strict", "--dry-run"]),
    ("apps:report --format ", ["json"]),
    ("apps:report --format=", ["--format=json"]),
    ("apps:report --format json b", ["blog"]),
    ("status --s", ["--serving", "--stale"]),
    ("apps:report blog --d", ["--domains"]),
    ("apps:report --domains --", ["--format", "--help"]),  # one key at a time
    ("apps:report -- --", []),
    ("domains:report --glob", ["--global", "--global-domains"]),
    ("nginx:report blog --computed-client-max", ["--computed-client-max-body-size"]),
    ("proxy:report --http", ["--http-port", "--https-port"]),
    ("apps:list --", ["--format", "--help"]),
    ("nginx:set blog client-max", ["client-max-body-size"]),
    ("nginx:set --global client-max", ["client-max-body-size"]),
    ("proxy:set --global http-p", ["http-port"]),
    ("generations:show ", ["41", "42"]),
    ("generations:diff 41 4", ["41", "42"]),
    ("generations:rollback 41 ", ["blog", "shop"]),
    ("generations:rollback 41 blog ", ["shop"]),
    ("plugins:hooks pre-cr", ["pre-create"]),
    ("help domains:remove-", ["domains:remove-global"]),
    ("help apps:por", ["apps:ports", *(f"apps:ports:{verb}" for verb in ("add", "clear", "list", "remove", "report", "set"))]),
    ("completion ", ["bash", "fish", "zsh"]),
    ("reconcile shop ", ["blog"]),
    ("nope ", []),
    ("apps ", []),
    ("apps:list -- ", []),
]


@pytest.mark.parametrize(("line", "candidates"), CASES, ids=[line for line, _ in CASES])
def test_what_a_word_can_become(run: Run, apps: Path, line: str, candidates: list[str] | None) -> None:
    got = run("complete", "--", *line.split(" "))
    assert (got.code, got.err) == (0, "")
    if candidates is not None:
        assert got.lines == candidates


def test_the_keys_of_a_report_are_those_that_it_prints(run: Run, router_root: Path) -> None:
    assert run("apps:create", "blog").code == 0
    commands = Plugins(Paths(router_root), print, dict).commands()
    reports = [command for command in commands.values() if "--KEY" in command.usage]
    assert {"status", "apps:report", "plugins:list"} <= {command.name for command in reports}
    for command in reports:
        words = {"trace": ["blog.localhost"], "top": ["--once"], "apps:checks:run": ["blog"]}.get(command.name, [])
        got = run(command.name, *words, "--no-such-key")
        assert (got.code, got.out) == (2, ""), command.name
        completed = set(run("complete", "--", command.name, "--").lines)
        # of a report of a hundred keys the error names the nearest alone
        printed = set(got.talk[-1].partition("there are: ")[2].split()) or completed
        declared = {f"--{key.replace('_', '-')}" for key in command.keys if "PROPERTY" not in key}
        assert declared <= printed <= completed, command.name


def test_an_archive_is_completed_as_a_file(run: Run, apps: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(apps)
    (apps / "a b.tar").touch()
    (apps / "host.tar").touch()
    assert run("complete", "--", "import", "h").lines == ["host.tar"]
    assert run("complete", "--", "import", "ap").lines == ["apps/"]
    assert run("complete", "--", "export", "--output", "apps/b").lines == ["apps/blog/"]
    assert run("complete", "--", "export", "--output=apps/b").lines == ["--output=apps/blog/"]
    assert run("complete", "--", "import", "a").lines == ["apps/"]
    assert run("complete", "--", "export", "--app", "s").lines == ["shop"]
    assert run("complete", "--", "import", "nope/x").lines == []


def test_the_first_word_is_completed_noun_by_noun(run: Run, router_root: Path) -> None:
    found = run("complete", "--", "").lines
    assert {"apps:", "domains:", "proxy:", "status", "help"} <= set(found)
    assert "complete" not in found and not [each for each in found if ":" in each[:-1]]


def test_commands_of_installed_plugins_complete_and_are_not_imported(run: Run, apps: Path) -> None:
    directory = apps / "plugins/hello"
    directory.mkdir(parents=True)
    manifest = '[plugin]\nname = "hello"\n[plugin.commands]\n'
    manifest += '"hello:app" = {help = "x", run = "plugin.py:f", usage = "APP soft|loud [--tone low|high] [--to APP]"}\n'
    (directory / "plugin.toml").write_text(manifest)
    (directory / "plugin.py").write_text("raise SystemExit('imported')\n")
    assert run("complete", "--", "hel").lines == ["hello:", "help"]
    assert run("complete", "--", "hello:app", "b").lines == ["blog"]
    assert run("complete", "--", "hello:app", "blog", "").lines == ["loud", "soft"]
    assert run("complete", "--", "hello:app", "--tone", "").lines == ["high", "low"]
    assert run("complete", "--", "hello:app", "--to", "").lines == ["blog", "shop"]
    assert run("complete", "--", "hello:app", "--to=s").lines == ["--to=shop"]


def test_nothing_slow_is_imported(apps: Path) -> None:
    code = (
        "import sys; from nginx_router.cli import main; code = main(['complete', '--', *sys.argv[1:]]); "
        "slow = {'typer', 'rich', 'jinja2', 'pluggy', 'crossplane', 'tomlkit', 'importlib.metadata', 'nginx_router.nginx'}; "
        "print('imported:', *sorted(slow & set(sys.modules))); sys.exit(code)"
    )
    for words in (["apps:report", "b"], ["domains:remove", "blog", ""], ["nginx:set", "blog", ""], ["apps:"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, check=True)
        assert done.stdout.splitlines()[-1] == "imported:", words


def test_an_unknown_shell_names_the_three(run: Run) -> None:
    got = run("completion", "tcsh")
    assert (got.code, got.talk[1]) == (2, "  there are: bash zsh fish")


# -- the shells


@pytest.fixture
def environment(apps: Path) -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}:{os.environ['PATH']}", "TERM": "dumb", "PS1": "$ "}


def bash(environment: dict[str, str], *words: str, line: str = "") -> list[str]:
    """COMPREPLY after a TAB behind `words`, which are cut as bash cuts them."""
    line = line or " ".join(words)
    script = (
        'eval "$(router completion bash)"; COMP_LINE=$1; COMP_POINT=${#1}; shift; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); '
        'function=$(complete -p router | sed "s/.*-F \\([^ ]*\\).*/\\1/"); "$function" router "${COMP_WORDS[-1]}" "${COMP_WORDS[-2]}"; '
        '[[ ${#COMPREPLY[@]} -eq 0 ]] || printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(["bash", "-c", script, "bash", line, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_bash_takes_colons_for_breaks_and_still_completes(environment: dict[str, str]) -> None:
    assert bash(environment, "router", "ap") == ["apps:"]
    assert bash(environment, "router", "apps", ":", "rep", line="router apps:rep") == ["report"]
    assert bash(environment, "router", "apps", ":", line="router apps:")[:3] == ["checks:", "clone", "create"]
    assert bash(environment, "router", "apps", ":", "report", "b", line="router apps:report b") == ["blog"]
    assert bash(environment, "router", "apps", ":", "report", "--format", "=", "j", line="router apps:report --format=j") == ["json"]
    assert bash(environment, "router", "apps", ":", "report", "--f", line="router apps:report --f") == ["--format"]
    words = ("router", "apps", ":", "report", "blog", "--u")
    assert bash(environment, *words, line="router apps:report blog --u") == ["--urls"]
    assert bash(environment, "router", "nope", "") == []


def test_bash_quotes_a_wildcard(environment: dict[str, str]) -> None:
    words = ("router", "domains", ":", "remove", "blog", "\\*")
    assert bash(environment, *words, line="router domains:remove blog \\*") == ["\\*.blog.example.com"]


def test_fish(environment: dict[str, str]) -> None:
    if not shutil.which("fish"):
        pytest.skip("fish is not installed: apt-get install fish")
    lines = ("router apps:rep", "router domains:remove blog b", "router x ", "router status --ser", "router apps:report blog --u")
    script = "; ".join(["router completion fish | source", *(f'complete -C "{line}"' for line in lines)])
    done = subprocess.run(["fish", "--no-config", "-c", script], env=environment, capture_output=True, text=True, timeout=60)
    assert (done.stdout.split(), done.stderr) == (["apps:report", "blog.example.com", "--serving", "--urls"], "")


class Shell:
    """An interactive shell on a terminal of its own."""

    def __init__(self, argv: list[str], environment: dict[str, str]) -> None:
        self.pid, self._terminal = pty.fork()
        if self.pid == 0:
            os.execvpe(argv[0], argv, environment)
        self.seen = ""

    def types(self, keys: str, until: str) -> None:
        """Type, and wait until the terminal shows something."""
        self.seen = ""
        os.write(self._terminal, keys.encode())
        deadline = time.monotonic() + 20
        while until not in self.seen:
            assert time.monotonic() < deadline, f"{until!r} did not come: {self.seen!r}"
            if select.select([self._terminal], [], [], 0.1)[0]:
                self.seen += os.read(self._terminal, 4096).decode(errors="replace")

    def close(self) -> None:
        os.close(self._terminal)
        os.waitpid(self.pid, 0)


@pytest.fixture(params=[["bash", "--norc", "--noprofile", "-i"], ["zsh", "-f", "-i"]], ids=["bash", "zsh"])
def shell(request: pytest.FixtureRequest, environment: dict[str, str]) -> Iterator[Shell]:
    if not shutil.which(request.param[0]):
        pytest.skip(f"{request.param[0]} is not installed: apt-get install {request.param[0]}")
    shell = Shell(request.param, environment)
    begin = "autoload -Uz compinit; compinit -u -D; " if request.param[0] == "zsh" else ""
    try:
        shell.types(f'{begin}eval "$(router completion {request.param[0]})"; echo re""ady\r', "ready")
        yield shell
    finally:
        shell.close()


def test_tab_on_a_terminal(shell: Shell) -> None:
    for typed, becomes in (
        ("router apps:rep\t", "apps:report "),
        ("router apps:report bl\t", "report blog "),
        ("router apps:dom\t", "apps:domains:"),
        ("router domains:remove blog \\*\t", "\\*.blog.example.com "),
        ("router nginx:set shop proxy-read-t\t", "proxy-read-timeout "),
        ("router status --ser\t", "--serving "),
        ("router apps:report blog --u\t", "--urls "),
    ):
        shell.types(typed, becomes)
        shell.types("\x15\x0becho re''ady\r", "ready\r\n")
