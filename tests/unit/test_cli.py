from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nginx_router import cli
from nginx_router.errors import Terminated
from nginx_router.plugins import Plugins

Run = Callable[..., Any]

#: What only some commands need, and what takes long to import.
HEAVY = (
    "asyncio",
    "click",
    "crossplane",
    "importlib.metadata",
    "jinja2",
    "markupsafe",
    "nginx_router.generations",
    "nginx_router.nginx",
    "nginx_router.submitting",
    "pluggy",
    "pydantic",
    "rich",
    "subprocess",
    "tomlkit",
    "typer",
    "watchdog",
)


@pytest.mark.parametrize("argv", [["version"], ["help"], ["apps:list"], ["apps:exists", "blog"]], ids=" ".join)
def test_what_scripts_ask_often_imports_little(argv: list[str], router_root: Path) -> None:
    (router_root / "apps/blog").mkdir(parents=True)
    code = (
        "import sys; from nginx_router.cli import main; code = main(sys.argv[1:]); "
        f"print('imported:', *(m for m in {HEAVY!r} if m in sys.modules)); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *argv], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


def test_a_command_with_arguments_does_not_wait_for_pydantic(router_root: Path) -> None:
    code = "import sys; from nginx_router.cli import main; main(sys.argv[1:]); sys.exit('pydantic' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, "domains:report", "--global"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_no_command_is_a_usage_error(run: Run) -> None:
    got = run()
    assert (got.code, got.out, got.talk) == (2, "", ["router: a command is missing", "  router help"])


@pytest.mark.parametrize(("typed", "nearest"), [("apps:crate", "apps:create"), ("domain:add", "domains:add"), ("create", "apps:create")])
def test_an_unknown_command_names_the_nearest(run: Run, typed: str, nearest: str) -> None:
    got = run(typed, "blog")
    assert (got.code, got.out) == (2, "")
    assert got.talk == [f"router: there is no command '{typed}'; the nearest is {nearest}", "  router help"]


def test_a_word_that_is_near_no_command_names_none_but_an_app_that_is_near(run: Run) -> None:
    for word in ("blog", "blogg", "xyzzy"):
        assert (run(word).code, run(word).talk) == (2, [f"router: there is no command '{word}'", "  router help"])
    for app in ("blog", "create-1"):
        assert run("apps:create", app).code == 0
    assert run("blog").talk[1] == "  blog is an app: router apps:report blog"
    assert run("blogg").talk == ["router: there is no command 'blogg'; the nearest is app blog", "  router apps:report blog"]
    assert run("xyzzy").talk[0] == "router: there is no command 'xyzzy'"
    assert "the nearest is apps:create" in run("creat").err, "a command that is nearer than any app"


def test_a_noun_without_a_verb_names_its_verbs(run: Run) -> None:
    got = run("ports")
    assert got.code == 2
    assert got.talk == ["router: ports needs a verb: add remove set clear list report", "  router help ports"]


def test_every_error_is_one_line_and_one_hint_also_with_json(run: Run) -> None:
    got = run("apps:report", "nope", "--format", "json")
    assert (got.code, got.out) == (3, "")
    assert got.talk == ["router: there is no app 'nope'", "  router apps:list"]


def test_trace_anywhere_prints_the_traceback(run: Run) -> None:
    for argv in (("--trace", "apps:exists", "nope"), ("apps:exists", "nope", "--trace")):
        got = run(*argv)
        assert got.code == 3
        assert got.talk[0].startswith("Traceback")
        assert got.talk[-2:] == ["router: there is no app 'nope'", "  router apps:list"]
    assert "Traceback" not in run("apps:create", "--", "--trace").err


def failing(monkeypatch: pytest.MonkeyPatch, why: BaseException) -> None:
    def function(self: Plugins, command: object) -> Any:
        def fail(router: object) -> None:
            raise why

        return fail

    monkeypatch.setattr(Plugins, "function", function)


def test_what_nobody_foresaw_leaves_its_traceback_in_the_log(run: Run, router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, ZeroDivisionError("by zero"))
    got = run("apps:list")
    log = router_root / "log/router.log"
    assert got.code == 1
    assert got.talk == [f"router: unexpected ZeroDivisionError: by zero; traceback in {log}", "  --trace prints the traceback"]
    assert "Traceback" in log.read_text() and "apps:list" in log.read_text()


def test_a_log_that_cannot_be_written_does_not_hide_the_error(run: Run, router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (router_root / "log").write_text("in the way")
    failing(monkeypatch, ZeroDivisionError("by zero"))
    assert run("apps:list").talk == ["router: unexpected ZeroDivisionError: by zero", "  --trace prints the traceback"]


def test_missing_permission_names_the_sudo_line(run: Run, router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, PermissionError(13, "Permission denied", "/x/apps"))
    got = run("apps:list", "--format", "json")
    assert got.code == 14
    assert got.talk == ["router: /x/apps: not permitted", f"  sudo ROUTER_ROOT={router_root} router apps:list --format json"]
    monkeypatch.delenv("ROUTER_ROOT")
    assert run("apps:list").talk[1] == "  sudo router apps:list"


def test_an_error_of_the_system_is_its_text_and_path(run: Run, monkeypatch: pytest.MonkeyPatch, router_root: Path) -> None:
    failing(monkeypatch, OSError(5, "Input/output error", "/x/apps"))
    got = run("apps:list")
    assert (got.code, got.talk) == (1, ["router: /x/apps: Input/output error"])
    failing(monkeypatch, OSError(28, "No space left on device"))  # a write does not say where
    got = run("apps:list")
    free = "  free some space there (df -h, df -i), then the same command again"
    assert (got.code, got.talk) == (1, [f"router: {router_root}: No space left on device", free])


@pytest.mark.parametrize(("why", "code"), [(KeyboardInterrupt(), 130), (SystemExit(8), 8), (SystemExit(143), 143), (SystemExit(None), 0)])
def test_signals_and_exits_keep_their_codes(run: Run, monkeypatch: pytest.MonkeyPatch, why: BaseException, code: int) -> None:
    failing(monkeypatch, why)
    assert run("apps:list").code == code


def test_term_unwinds_and_exits_143(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    unwound = []

    def function(self: Plugins, command: object) -> Any:
        def wait(router: object) -> None:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
                signal.sigtimedwait([], 10)
            finally:
                unwound.append(True)

        return wait

    monkeypatch.setattr(Plugins, "function", function)
    before = signal.getsignal(signal.SIGTERM)
    assert run("apps:list").code == 143
    assert unwound and signal.getsignal(signal.SIGTERM) is before


def test_a_full_disk_behind_stdout_is_exit_1(router_root: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([sys.executable, "-m", "nginx_router", "version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (1, "router: standard output: No space left on device\n")


def test_a_reader_who_went_away_is_quiet(router_root: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as gone:
        done = subprocess.run([sys.executable, "-m", "nginx_router", "help"], stdout=gone, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (141, "")


def install(root: Path, name: str, manifest: str, **files: str) -> None:
    directory = root / "plugins" / name
    directory.mkdir(parents=True)
    (directory / "plugin.toml").write_text(manifest)
    for file, text in files.items():
        path = directory / file.replace("__", "/").replace("_py", ".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)


def test_a_strangers_command_in_any_language_gets_its_arguments_and_keeps_its_exit_code(router_root: Path) -> None:
    manifest = '[plugin]\nname = "hello"\n[plugin.commands]\n"hello:world" = {help = "Greets", run = "subcommands/world"}\n'
    install(router_root, "hello", manifest, subcommands__world='#!/bin/sh\necho "$ROUTER_PLUGIN $ROUTER_ROOT $*"\nexit 7\n')
    argv = [sys.executable, "-m", "nginx_router", "hello:world", "--loud", "-", "you"]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (7, f"hello {router_root} --loud - you\n")


def test_a_strangers_python_command_may_use_all_of_typer(run: Run, router_root: Path) -> None:
    manifest = '[plugin]\nname = "hi"\n[plugin.commands]\n"hi:all" = {help = "Greets", run = "plugin.py:greet", kind = "change"}\n'
    code = (
        "import enum, pathlib, typer\nfrom typing import Annotated\n"
        "class Tone(enum.Enum):\n    soft = 'soft'\n    loud = 'loud'\n"
        "def greet(router: 'Router', names: list[str], tone: Tone = Tone.soft, twice: bool = False):\n"
        "    router.out.data(f'{names} {tone.value} {twice} {router.request.dry_run}')\n"
    )
    install(router_root, "hi", manifest, plugin_py=code)
    assert run("hi:all", "a", "b", "--tone", "loud", "--twice", "--dry-run").out == "['a', 'b'] loud True True\n"
    got = run("hi:all", "a", "--tone", "shrill")
    assert got.code == 2 and len(got.talk) == 2 and got.talk[0].startswith("router: hi:all: ")
    assert "--tone" in run("hi:all", "--help").out


def test_a_broken_plugin_is_named_and_the_others_work(run: Run, router_root: Path) -> None:
    install(router_root, "bad", "[plugin\n")
    assert run("version").code == 0
    assert "plugin bad" in run("plugins:list").err


def test_the_spellings_of_other_programs(run: Run) -> None:
    assert run("--version").out == run("version").out
    assert run("-h").out == run("--help").out == run("help").out
    assert cli.INTERRUPTED == 130 and Terminated().code == 143


def test_a_key_that_no_report_has_is_refused_by_lists_too(run: Run) -> None:
    assert run("apps:create", "blog").code == 0
    for words in (["apps:list"], ["apps:urls", "blog"], ["ports:list", "blog"], ["version"], ["generations:diff"], ["status"]):
        got = run(*words, "--no-such-key")
        assert (got.code, got.out) == (2, ""), words
        assert "no key '--no-such-key'" in got.talk[0]
    assert run("version", "--version").out == run("version").out


def test_a_configuration_is_shown_in_one_piece(run: Run, router_root: Path) -> None:
    for words in (["apps:create", "blog"], ["domains:add", "blog", "a.example"], ["upstreams:add", "blog", "127.0.0.1:5000"]):
        assert run(*words).code == 0
    text = "client_max_body_size 3m;\nadd_header X-A 'two\nlines';"  # without an end of its last line
    snippet = router_root / "apps/blog/nginx.conf.d/upload.conf"
    snippet.parent.mkdir(exist_ok=True)
    snippet.write_text(text)
    assert run("reconcile", "blog").code == 0
    plain, whole = run("nginx:show-config", "blog").out, run("nginx:show-config", "blog", "--includes").out
    assert "client_max_body_size" not in plain
    source = "apps/blog/nginx.conf.d/upload.conf"
    (include,) = [line for line in plain.splitlines() if line.endswith(f";  # {source}")]
    shown = f"    # {include.strip()}\n{text}\n    # end of {source}"
    assert whole == plain.replace(include, shown)
    assert run("nginx:show-config", "--template", "--includes").code == 2


def test_a_value_that_breaks_a_rule_leads_to_the_help_and_a_file_to_itself(run: Callable[..., Any], router_root: Path) -> None:
    assert run("proxy:set", "--global", "updates", "lvie").talk == [
        "router: updates 'lvie' is not reload or live",
        "  router help proxy:set",
    ]
    run("apps:create", "blog")
    (router_root / "apps/blog/app.toml").write_text("prots = 1\n")
    got = run("apps:lock", "blog")
    assert got.code == 2 and "apps/blog/app.toml:1" in got.talk[0] and "router help apps:lock" not in got.err
