from __future__ import annotations

from typing import Annotated, Any

import pytest
import typer

from nginx_router import parsing
from nginx_router.discovery import Command
from nginx_router.errors import UsageProblem
from nginx_router.parsing import Call, parse

CHANGE = Command("apps:x:do", "x", "Do it", "plugin.py:do", "change", "APP NAME...")
REPORT = Command("apps:x:report", "x", "Report it", "plugin.py:report", "report", "[APP]")


def do(
    router: object,
    app: Annotated[str, typer.Argument(metavar="APP", help="The app.")],
    names: Annotated[list[str], typer.Argument(metavar="NAME", help="Names.")],
    weight: Annotated[str, typer.Option("--weight", metavar="N", help="A weight.")] = "1",
    count: Annotated[int, typer.Option("--count", "-c", min=1, help="How often.")] = 1,
    drain: Annotated[float, typer.Option("--drain", help="Seconds.")] = 30.0,
    check: Annotated[str | None, typer.Option("--check", help="A path.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Do not ask.")] = False,
    tags: Annotated[list[str] | None, typer.Option("--tag", help="As often as wanted.")] = None,
) -> None:
    """Do it."""


def report(router: object, app: Annotated[str | None, typer.Argument(metavar="APP")] = None) -> None:
    """Report it."""


def exists(router: object, app: str) -> None:
    """Without any declaration."""


def rest(router: object, *words: str) -> None:
    """With all the words there are."""


LINES = [
    ["blog", "a"],
    ["blog", "a", "b", "--weight", "3"],
    ["--weight=3", "blog", "a", "--force", "b"],
    ["blog", "a", "--count", "2", "--drain", "0.5", "--check", "/health"],
    ["blog", "a", "-c", "2"],
    ["blog", "a", "--check="],
    ["blog", "a", "--check", "--force"],
    ["blog", "--", "--weight", "-x"],
    ["--weight", "3", "--weight", "4", "blog", "a"],
    ["blog", "a", "--dry-run", "--lock-timeout", "5", "--format", "json"],
    ["blog", ""],
    ["blog"],
    [],
    ["blog", "a", "--nope"],
    ["blog", "a", "--weight"],
    ["blog", "a", "--count", "two"],
    ["blog", "a", "--count", "0"],
    ["blog", "a", "--lock-timeout", "-1"],
    ["blog", "a", "--force=yes"],
    ["blog", "a", "--tag", "x", "--tag=y"],
]


def outcome(args: list[str], monkeypatch: pytest.MonkeyPatch, *, by_typer: bool) -> Any:
    with monkeypatch.context() as patched:
        if by_typer:
            patched.setattr(parsing, "_plain", lambda parameter: None)
        try:
            return parse(CHANGE, do, args)
        except UsageProblem as why:
            return why.exit_code


@pytest.mark.parametrize("args", LINES, ids=" ".join)
def test_plain_parameters_mean_what_typer_makes_of_them(args: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert outcome(args, monkeypatch, by_typer=False) == outcome(args, monkeypatch, by_typer=True)


def test_the_values_of_a_change_and_of_its_common_options() -> None:
    call = parse(CHANGE, do, ["blog", "a", "b", "--dry-run", "--lock-timeout", "5", "--format", "json", "--force"])
    assert call == Call(
        {"app": "blog", "names": ["a", "b"], "weight": "1", "count": 1, "drain": 30.0, "check": None, "force": True, "tags": None},
        dry_run=True,
        lock_timeout=5.0,
        is_json=True,
    )


def test_a_number_below_zero_is_a_value_and_no_option() -> None:
    plain = Command("apps:exists", "apps", "", "look.py:exists")
    assert parse(plain, rest, ["blog", "-1%"]) == Call(rest=("blog", "-1%"))


def test_parameters_without_a_declaration_are_arguments() -> None:
    plain = Command("apps:exists", "apps", "", "look.py:exists")
    assert parse(plain, exists, ["blog"]).values == {"app": "blog"}
    assert parse(plain, rest, ["a", "b"]) == Call(rest=("a", "b"))
    assert parse(plain, rest, []) == Call()


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "apps:x:do: missing argument APP"),
        (["blog"], "apps:x:do: missing argument NAME"),
        (["blog", "a", "--froce"], "apps:x:do: there is no option '--froce'; did you mean --force?"),
        (["blog", "a", "--weight"], "apps:x:do: --weight needs a value"),
        (["blog", "a", "--count", "two"], "apps:x:do: --count 'two' is not a whole number"),
        (["blog", "a", "--drain", "x"], "apps:x:do: --drain 'x' is not a number"),
        (["blog", "a", "--lock-timeout", "-1"], "apps:x:do: --lock-timeout '-1' is less than 0"),
        (["blog", "a", "--force=1"], "apps:x:do: --force takes no value"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_usage_errors_say_what_is_wrong_and_the_usage(args: list[str], says: str) -> None:
    with pytest.raises(UsageProblem) as caught:
        parse(CHANGE, do, args)
    assert caught.value.message == says
    assert caught.value.hint == "usage: router apps:x:do APP NAME..."


def test_a_format_other_than_json_is_refused() -> None:
    with pytest.raises(UsageProblem, match="there is no format 'xml'"):
        parse(REPORT, report, ["--format", "xml"])


def test_dash_stands_for_the_lines_of_stdin() -> None:
    assert parse(CHANGE, do, ["blog", "-"], ["a.com\n", "\n", "b.com"]).values["names"] == ["a.com", "b.com"]
    assert parse(CHANGE, do, ["-"], ["blog\n", "a.com\n"]).values["app"] == "blog"
    # nothing is repaired on the way: the rule of names speaks
    assert parse(CHANGE, do, ["blog", "-"], [" a.com\r\n"]).values["names"] == [" a.com\r"]
    assert parse(CHANGE, do, ["blog", "--", "-"], ["--force\n"]).values["names"] == ["--force"]


@pytest.mark.parametrize(
    ("args", "lines", "says"),
    [
        (["blog", "-"], [], "missing argument NAME"),
        (["blog", "-", "-"], ["a"], "stands twice"),
        (["blog", "-"], ["--force"], "not an argument"),
    ],
)
def test_stdin_cannot_say_everything(args: list[str], lines: list[str], says: str) -> None:
    with pytest.raises(UsageProblem, match=says):
        parse(CHANGE, do, args, lines)


def test_a_report_takes_one_key() -> None:
    assert parse(REPORT, report, ["blog", "--domains"]) == Call({"app": "blog"}, key="domains")
    assert parse(REPORT, report, ["--domains", "--format", "json"]) == Call({"app": None}, is_json=True, key="domains")
    with pytest.raises(UsageProblem, match="one key at a time"):
        parse(REPORT, report, ["--domains", "--urls"])
    with pytest.raises(UsageProblem, match="did you mean --format"):
        parse(REPORT, report, ["--formt", "json"])
    with pytest.raises(UsageProblem, match="has no option '--domains=x'"):
        parse(REPORT, report, ["--domains=x"])


def test_help_shows_usage_aliases_and_the_common_options() -> None:
    text = parse(CHANGE, do, ["blog", "--help"]).help
    assert text is not None
    assert text.startswith("usage: router apps:x:do APP NAME...\n       router x:do APP NAME...\n\nDo it.\n")
    for word in ("APP ", "NAME ", "--weight N", "--dry-run", "--lock-timeout S", "--format json", "-h, --help"):
        assert f"\n  {word}" in text
    assert "--KEY" in (parse(REPORT, report, ["-h"]).help or "")
    declared = Command("apps:x:report", "x", "Report it", "plugin.py:report", "report", "[APP]", keys=("app", "domains"))
    assert "--KEY          Print one value; KEY is app domains." in (parse(declared, report, ["-h"]).help or "")
    assert parse(CHANGE, do, ["blog", "--", "-h"]).help is None
