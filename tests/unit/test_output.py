from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest

from nginx_router.controller import Outcome
from nginx_router.errors import Conflict, UsageProblem
from nginx_router.events import Event
from nginx_router.output import READER_GONE, Output

KEYS = ("app", "domains", "locked", "stale")
ROW = {"app": "blog", "domains": ["a.com", "xn--bcher-kva.example"], "locked": None, "stale": False}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


class Full(io.StringIO):
    def write(self, text: str) -> int:
        raise OSError(28, "No space left on device")


class Gone(io.StringIO):
    def write(self, text: str) -> int:
        raise BrokenPipeError(32, "Broken pipe")


def made(stdout: io.StringIO | None = None) -> tuple[Output, io.StringIO, io.StringIO]:
    streams = (stdout or io.StringIO(), io.StringIO())
    return Output(*streams), *streams


def test_a_report_is_keys_and_values_without_colour() -> None:
    out, stdout, _ = made()
    out.report(KEYS, [ROW], single=True)
    assert stdout.getvalue() == (
        "app:     blog\ndomains: a.com\n         bücher.example (xn--bcher-kva.example)\nlocked:\nstale:   false\n"
    )


def test_reports_of_several_are_apart_by_an_empty_line() -> None:
    out, stdout, _ = made()
    out.report(KEYS, [ROW, {**ROW, "app": "shop"}], single=False)
    assert stdout.getvalue().count("\n\n") == 1


def test_json_of_one_is_an_object_and_of_many_an_array() -> None:
    for single in (True, False):
        out, stdout, _ = made()
        out.is_json = True
        out.report(KEYS, [ROW], single=single)
        assert json.loads(stdout.getvalue()) == (ROW if single else [ROW])


@pytest.mark.parametrize(
    ("key", "printed"), [("app", "blog\n"), ("domains", "a.com\nxn--bcher-kva.example\n"), ("locked", "\n"), ("stale", "false\n")]
)
def test_one_value_is_printed_for_a_shell(key: str, printed: str) -> None:
    out, stdout, _ = made()
    out.key = key
    out.report(KEYS, [ROW], single=True)
    assert stdout.getvalue() == printed


def test_an_unknown_key_is_refused_before_anything_is_read() -> None:
    out, _, _ = made()
    out.key = "domain"

    def rows():  # type: ignore[no-untyped-def]
        raise AssertionError("was read")
        yield

    with pytest.raises(UsageProblem, match=r"no key '--domain' in this report; did you mean --domains\?") as caught:
        out.report(KEYS, rows(), single=True)
    assert "--locked" in caught.value.hint


def test_elements_that_are_objects_are_one_json_object_a_line() -> None:
    out, stdout, _ = made()
    out.key = "endpoints"
    out.report(("endpoints",), [{"endpoints": [{"address": "a:1"}, {"address": "b:1"}]}], single=True)
    assert [json.loads(line)["address"] for line in stdout.getvalue().splitlines()] == ["a:1", "b:1"]


def test_an_error_is_one_line_and_one_hint() -> None:
    out, stdout, stderr = made()
    out.error(Conflict("a.com belongs\nto app shop", hint="router apps:domains:remove shop a.com"))
    assert stderr.getvalue() == "router: a.com belongs; to app shop\n  router apps:domains:remove shop a.com\n"
    assert stdout.getvalue() == ""


def test_colour_is_for_terminals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    Output(terminal, terminal).error(Conflict("no"))
    Output(terminal, terminal).report(KEYS, [ROW], single=True)
    assert "\x1b[1;31mrouter:\x1b[0m no" in terminal.getvalue()
    assert "blog" in terminal.getvalue()
    monkeypatch.setenv("NO_COLOR", "1")
    plain = Terminal()
    Output(plain, plain).error(Conflict("no"))
    assert plain.getvalue() == "router: no\n"


@pytest.fixture
def narrow(monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setenv("NO_COLOR", "1")
    return 40


LONG = "app blog: nginx rejected apps/blog/nginx.conf.d/upload.conf:1: [emerg] invalid number of arguments"


def test_talk_on_a_terminal_breaks_between_words_and_hangs(narrow: int) -> None:
    screen = Terminal()
    out = Output(io.StringIO(), screen)
    out.error(Conflict(LONG, hint="there are: --app --domains --urls --endpoints --processes"))
    out.say(LONG)
    assert screen.getvalue().splitlines() == [
        "router: app blog: nginx rejected",
        "        apps/blog/nginx.conf.d/upload.conf:1:",
        "        [emerg] invalid number of",
        "        arguments",
        "  there are: --app --domains --urls",
        "    --endpoints --processes",
        "app blog: nginx rejected",
        "  apps/blog/nginx.conf.d/upload.conf:1:",
        "  [emerg] invalid number of arguments",
    ]


def test_talk_that_is_no_terminals_stays_one_line_byte_for_byte(narrow: int) -> None:
    out, stdout, stderr = made()
    out.error(Conflict(LONG, hint=LONG))
    out.say(f"  {LONG}  two  blanks\tand a tab ")
    out.facts([("stale", LONG)])
    assert stderr.getvalue() == f"router: {LONG}\n  {LONG}\n  {LONG}  two  blanks\tand a tab \n"
    assert stdout.getvalue() == f"stale  {LONG}\n"


@pytest.mark.parametrize(
    "line",
    [
        "x" * 40,  # it fits
        "/a/path-that-is/longer/than-the/terminal-is-wide/and-has-hyphens.conf",
        "  sudo ROUTER_ROOT=/srv/a/root router apps:list --format json",  # it is copied into a shell
        "  router generations:rollback 42 blog --endpoints --check /",
    ],
)
def test_what_fits_or_is_copied_in_one_piece_stays_whole(narrow: int, line: str) -> None:
    screen = Terminal()
    Output(io.StringIO(), screen).say(line)
    assert screen.getvalue() == f"{line}\n"


def test_a_long_word_stays_whole_among_others_and_colour_takes_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "30")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    screen = Terminal()
    Output(io.StringIO(), screen).error(Conflict(f"this fits into 30 col. {'y' * 35} no"))
    assert screen.getvalue() == f"\x1b[1;31mrouter:\x1b[0m this fits into 30 col.\n        {'y' * 35}\n        no\n"


def test_facts_on_a_terminal_go_on_below_themselves(narrow: int) -> None:
    screen = Terminal()
    Output(screen, io.StringIO()).facts([("serving", "generation 7"), ("stale", LONG), ("stale", "shop: no")])
    assert screen.getvalue().splitlines() == [
        "serving  generation 7",
        "stale    app blog: nginx rejected",
        "         apps/blog/nginx.conf.d/upload.conf:1:",
        "         [emerg] invalid number of",
        "         arguments",
        "         shop: no",
    ]


def test_a_line_of_columns_goes_on_below_its_last(narrow: int) -> None:
    for stdout, shown in ((Terminal(), "ok  disk  there is room enough for all\n          of it\n"), (io.StringIO(), None)):
        line = "ok  disk  there is room enough for all of it"
        Output(stdout, io.StringIO()).data(line, hang=10)
        assert stdout.getvalue() == (shown or f"{line}\n")


def test_a_terminal_that_does_not_say_its_width_has_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    screen = Terminal()
    Output(io.StringIO(), screen).say("word " * 20)
    assert [len(line) for line in screen.getvalue().splitlines()] == [79, 21]


def test_names_have_no_keys() -> None:
    out, stdout, _ = made()
    out.key = "name"
    with pytest.raises(UsageProblem, match="no key '--name' here"):
        out.listing(["blog"])
    assert stdout.getvalue() == ""


def test_a_full_disk_is_an_error_that_says_where() -> None:
    out, _, _ = made(Full())
    with pytest.raises(OSError, match="No space left on device: 'standard output'"):
        out.data("x")


def test_a_reader_who_went_away_ends_the_answer_as_sigpipe_would() -> None:
    out, _, _ = made(Gone())
    with pytest.raises(SystemExit) as ended:
        out.data("x")
    assert ended.value.code == READER_GONE


def test_talk_to_nobody_does_not_stop_a_change() -> None:
    Output(io.StringIO(), Gone()).say("deploying")


def test_nobody_is_asked_where_there_is_no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    out, _, _ = made()
    assert out.confirm("Destroy?") is None
    for answer, meant in (("y\n", True), ("YES\n", True), ("n\n", False), ("", False)):
        monkeypatch.setattr("sys.stdin", Terminal(answer))
        assert Output(io.StringIO(), Terminal()).confirm("Destroy?") is meant


def outcome(app: str, kind: str = "structure", error: Conflict | None = None) -> Outcome:
    return Outcome(Event("domains", app), app, generation=7, serving=7, kind=kind, reloads=1, closed_connections=2, error=error)


def test_a_change_says_how_it_went() -> None:
    out, stdout, stderr = made()
    out.changed([outcome("blog"), replace(outcome("shop", "endpoints"), closed_connections=1), replace(outcome("wiki"), reloads=0)])
    assert stderr.getvalue().splitlines() == [
        "blog: structure, generation 7, a reload touched 2 connections",
        "shop: endpoints, generation 7, a reload touched 1 connection",
        "wiki: structure, generation 7, no reload",
    ]
    assert stdout.getvalue() == ""


def test_a_change_in_json_has_what_the_line_says() -> None:
    out, stdout, stderr = made()
    out.is_json = True
    out.changed([outcome("blog")])
    answer = json.loads(stdout.getvalue())
    assert (answer["app"], answer["generation"], answer["kind"], answer["closed_connections"]) == ("blog", 7, "structure", 2)
    assert stderr.getvalue() == ""


def test_apps_left_out_are_named_and_the_first_by_name_gives_the_exit_code() -> None:
    out, _, stderr = made()
    outcomes = [outcome("zoo", error=Conflict("zoo cannot")), outcome("blog"), outcome("alpha", error=Conflict("alpha cannot"))]
    with pytest.raises(SystemExit) as ended:
        out.changed(outcomes, single=False)
    assert ended.value.code == 4
    assert stderr.getvalue().splitlines()[1:] == ["router: alpha cannot", "router: zoo cannot"]


@pytest.mark.parametrize(
    ("text", "shown"), [("a\x1b[2J", "a\\x1b[2J"), ("\u202eb", "\\u202eb"), ("\udcff", "\\udcff"), ("\x9b", "\\x9b"), ("é\t", "é\t")]
)
def test_nothing_that_is_told_can_move_its_cursor_or_colour_its_words(text: str, shown: str) -> None:
    err = io.StringIO()
    out = Output(io.StringIO(), err)
    out.say(f"{text}.")
    out.error(UsageProblem(f"no {text}.", hint=f"hint {text}."))
    assert err.getvalue() == f"{shown}.\nrouter: no {shown}.\n  hint {shown}.\n"
