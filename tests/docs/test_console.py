"""What README and docs/ show is what happens: commands are typed, scripts are parsed, links are followed.

A ```console block behind `<!-- run -->` is typed into a shell, line by line, all of a page in one fresh root; what stands below a
command must be what it prints (`…` is anything), `# exit N` what it exits with.  In all others, and in ```sh blocks and `code`,
each command must exist and each option be one of its.
"""

from __future__ import annotations

import json
import re
import shlex
import socket
import subprocess
import tomllib
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from nginx_router.commands import alias, find
from nginx_router.controller import Router
from nginx_router.errors import UsageProblem
from nginx_router.parsing import explain, parse
from nginx_router.settings import Paths

HERE = Path(__file__).resolve().parents[2]
PAGES = sorted([HERE / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + list((HERE / "docs").glob("*.md")))
NAMES = [page.relative_to(HERE).as_posix() for page in PAGES]

#: What sets up the machine has tests of its own.
ELSEWHERE = ("script/bootstrap",)

_BLOCK = re.compile(r"(?P<mark>^<!-- run -->\n+)?^```(?P<language>\w*)\n(?P<text>.*?)^```$", re.S | re.M)
_PORT = re.compile(r"(?<![\w.])(80[48]\d|84\d\d|50\d\d|90\d\d)(?!\w)")


@dataclass
class Step:
    """One command, and what the page shows below it."""

    command: str
    shown: list[str] = field(default_factory=list)

    @property
    def plain(self) -> str:
        return re.split(r"\s+#\s", self.command)[0].rstrip()

    @property
    def exit_code(self) -> int:
        found = re.search(r"#.*\bexit (\d+)", self.command)
        return int(found[1]) if found else 0


def blocks(page: str) -> Iterator[tuple[bool, str, str]]:
    """Whether it is run, its language and its text, of each block of a page."""
    for found in _BLOCK.finditer((HERE / page).read_text()):
        yield bool(found["mark"]), found["language"], found["text"]


def steps(text: str) -> list[Step]:
    found: list[Step] = []
    for line in text.splitlines():
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        elif line.startswith("> ") and found and not found[-1].shown:
            found[-1].command += f"\n{line[2:]}"
        elif found:
            found[-1].shown.append(line)
    return found


# -- typed


class Typist:
    """Types the commands of a page into a shell whose directory and variables last."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._home = Path(environment["HOME"])
        self._environment = environment
        self._ports: dict[str, str] = {}
        self._children: list[subprocess.Popen[str]] = []
        root = Path(environment["ROUTER_ROOT"])
        root.mkdir()
        # by hand, so that the generations have the numbers that the page shows
        (root / "router.toml").write_text(f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {self.port("8080")}\n')

    def port(self, shown: str) -> str:
        """The free port that stands for a shown one."""
        if shown not in self._ports:
            with socket.socket() as probe:
                probe.bind(("127.0.0.1", 0))
                self._ports[shown] = str(probe.getsockname()[1])
        return self._ports[shown]

    def does(self, step: Step) -> None:
        command, shown = self._here(step.plain), [self._here(line) for line in step.shown]
        if command.startswith(ELSEWHERE):
            return
        if command.endswith("&"):
            self._starts(command)
        elif command.startswith("curl -s "):
            assert self._asks(command.split()[-1]).splitlines() == shown, step.command
        else:
            dump = self._home / ".variables"
            script = f"{command}\nstatus=$?\nenv -0 >{dump}\nexit $status\n"
            done = subprocess.run(["bash", "-c", script], cwd=HERE, env=self._environment, capture_output=True, text=True, timeout=90)
            assert done.returncode == step.exit_code, f"{command}: {done.stdout}{done.stderr}"
            self._environment = dict(pair.split("=", 1) for pair in dump.read_text().split("\0") if pair)
            out, talk = done.stdout.splitlines(), done.stderr.splitlines()
            if shown:
                assert any(_matches(shown, printed) for printed in (out, talk, talk + out)), f"{command}: {done.stdout}{done.stderr}"

    def ends(self) -> None:
        for child in self._children:
            child.terminate()
            child.wait(10)
            assert child.stdout is not None
            child.stdout.close()

    def _here(self, text: str) -> str:
        text = text.replace("/tmp/router-tour", self._environment["ROUTER_ROOT"]).replace("/tmp/docs", str(self._home))
        return _PORT.sub(lambda found: self.port(found[1]), text)

    def _starts(self, command: str) -> None:
        words = shlex.split(command.rstrip("& "))
        child = subprocess.Popen(words, cwd=HERE, env=self._environment, stdout=subprocess.PIPE, text=True)
        self._children.append(child)
        assert child.stdout is not None
        child.stdout.readline()  # it says where it listens when it does

    def _asks(self, url: str) -> str:
        # a browser and curl take *.localhost for this machine; the C library does not everywhere
        host, _, port = url.split("/")[2].partition(":")
        path = "/" + url.split("/", 3)[3] if url.count("/") > 2 else "/"
        request = urllib.request.Request(f"http://127.0.0.1:{port or self.port('8080')}{path}", headers={"Host": host})
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return str(answer.read().decode())
        except urllib.error.HTTPError as why:
            with why:
                return str(why.read().decode())


def _matches(shown: list[str], printed: list[str]) -> bool:
    patterns = [".*".join(map(re.escape, line.rstrip().split("…"))) for line in shown]
    return re.fullmatch("\n".join(patterns), "\n".join(line.rstrip() for line in printed), re.S) is not None


@pytest.mark.parametrize("page", [page for page in NAMES if any(is_run for is_run, _, _ in blocks(page))])
def test_what_a_page_shows_happens(page: str, environment: dict[str, str]) -> None:
    typist = Typist(environment)
    try:
        for is_run, language, text in blocks(page):
            if is_run:
                assert language == "console", page
                for step in steps(text):
                    typist.does(step)
    finally:
        typist.ends()


# -- parsed


@pytest.fixture
def router(router_root: Path) -> Router:
    return Router(Paths(router_root))


def calls(line: str) -> Iterator[list[str]]:
    """The words of each `router` that a line of shell runs."""
    lexer = shlex.shlex(line.replace("$(", " ( ").replace("`", " "), posix=True, punctuation_chars=True)
    lexer.whitespace_split = True
    lexer.commenters = "#"
    words: list[str] = []
    for word in [*lexer, ";"]:
        if set(word) <= set("();<>|&"):
            if "router" in words:
                yield words[words.index("router") + 1 :]
            words = ["(redirected)"] if set(word) & set("<>") else []
        else:
            words.append(word)


@pytest.mark.parametrize("page", NAMES)
def test_every_console_command_parses(page: str, router: Router) -> None:
    for _, language, text in blocks(page):
        for step in steps(text) if language == "console" else ():
            for words in calls(step.command):
                assert not (problem := _problem(router, words)), f"{page}: {step.command}: {problem}"


@pytest.mark.parametrize("page", NAMES)
def test_every_script_parses_and_calls_commands_that_there_are(page: str, router: Router) -> None:
    for _, language, text in blocks(page):
        if language in ("sh", "bash"):
            checked = subprocess.run([language, "-n"], input=text, capture_output=True, text=True, timeout=10)
            assert checked.returncode == 0, f"{page}: {checked.stderr}"
            for line in text.replace("\\\n", " ").splitlines():
                _known(router, page, line)
        elif language == "toml":
            tomllib.loads(text)
        elif language == "json":
            json.loads(text)


@pytest.mark.parametrize("page", [name for name in NAMES if name != "docs/comparison.md"])  # that one tells of Dokku's
def test_every_command_in_the_text_exists(page: str, router: Router) -> None:
    commands = router.plugins.commands()
    heads = {spelling.partition(":")[0] for name in commands for spelling in (name, alias(name)) if spelling and ":" in spelling}
    text = _BLOCK.sub("", (HERE / page).read_text())
    for code in re.findall(r"`([^`\n]+)`", text):
        _known(router, page, code)
        word = code.split()[0]
        if re.fullmatch(r"[a-z-]+(:[a-z-]+)+", word) and word.partition(":")[0] in heads and not _is_noun(word, commands):
            find(word, commands)


def _known(router: Router, page: str, line: str) -> None:
    """Each command of a line of shell exists, and so does each of its options; values may be placeholders."""
    for word, rest in re.findall(r"(?:^|[\s(\"'])router ((?:[a-z-]+:)*[a-z][a-z-]*)(?![\w/.])([^|;&)<>#\"]*)", line):
        commands = router.plugins.commands()
        if _is_noun(word, commands):
            continue
        command = find(word, commands)
        if command.is_python:
            this = explain(command, router.plugins.function(command))
            options = {option.rstrip(",") for left, _ in (*this.rows, *this.common) for option in left.split() if option.startswith("-")}
            given = set(re.findall(r"(?<!\S)--[a-z][a-z-]*", rest))
            assert "--KEY" in options or given <= options | {"--trace"}, f"{page}: {line}: {given - options}"


def _is_noun(word: str, commands: object) -> bool:
    return any(name.startswith((f"{word}:", f"apps:{word}:")) for name in commands)  # type: ignore[attr-defined]


def _problem(router: Router, words: list[str]) -> str | None:
    try:
        command = find({"-h": "help", "--help": "help", "--version": "version"}.get(words[0], words[0]), router.plugins.commands())
        if command.is_python:
            parse(command, router.plugins.function(command), words[1:], stdin=())
    except UsageProblem as why:
        return why.message
    return None


# -- followed


def anchors(page: Path) -> set[str]:
    """What `#name` can lead to, by GitHub's rule."""
    titles = re.findall(r"^#+ (.+)$", re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.S | re.M), re.M)
    return {re.sub(r"[^\w\- ]", "", title.replace("`", "").lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", NAMES)
def test_every_link_leads_somewhere(page: str) -> None:
    text = _BLOCK.sub("", (HERE / page).read_text())
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"https?:|mailto:", target):
            continue
        file, _, anchor = target.partition("#")
        path = ((HERE / page).parent / file).resolve() if file else HERE / page
        assert path.exists(), f"{page}: {target}"
        assert not anchor or anchor in anchors(path), f"{page}: {target}"


def test_every_page_is_reached_from_the_readme() -> None:
    reached, waiting = set(), [HERE / "README.md"]
    while waiting:
        page = waiting.pop()
        reached.add(page)
        for target in re.findall(r"\]\(([^)#\s]+\.md)", page.read_text()):
            path = (page.parent / target).resolve()
            if path.is_file() and path not in reached:
                waiting.append(path)
    assert set(PAGES) <= reached, [page.name for page in set(PAGES) - reached]
