"""docs/comparison.md claims only what a test shows."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
PAGE = (HERE / "docs/comparison.md").read_text()
DOKKU = PAGE.partition("## Other routers")[0]
MARKS = ("has", "better", "left out", "not yet")

#: What Dokku 0.38 has: the commands and triggers of its domains, ports, proxy and nginx-vhosts plugins.
COMMANDS = [
    "domains:add",
    "domains:set",
    "domains:remove",
    "domains:clear",
    "domains:reset",
    "domains:setup",
    "domains:enable",
    "domains:disable",
    "domains:add-global",
    "domains:set-global",
    "domains:remove-global",
    "domains:clear-global",
    "domains:report",
    "url",
    "urls",
    "ports:list",
    "ports:add",
    "ports:set",
    "ports:remove",
    "ports:clear",
    "ports:report",
    "proxy:build-config",
    "proxy:clear-config",
    "proxy:enable",
    "proxy:disable",
    "proxy:set",
    "proxy:report",
    "nginx:access-logs",
    "nginx:error-logs",
    "nginx:show-config",
    "nginx:validate-config",
    "nginx:reload",
    "nginx:start",
    "nginx:stop",
    "nginx:report",
    "nginx:set",
    "nginx-hostname",
]


def rows() -> list[list[str]]:
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in DOKKU.splitlines() if line.startswith("| ")]
    return [row for row in cells if len(row) == 3 and row[1] in MARKS]


def test_every_command_of_dokku_has_its_row() -> None:
    named = {code for first, *_ in rows() for code in re.findall(r"`([^`]+)`", first)}
    assert [command for command in COMMANDS if command not in named] == []
    assert len(rows()) > 80


def test_every_row_has_a_mark_and_what_is_left_out_a_reason() -> None:
    lines = [line for line in DOKKU.partition("### A change")[0].splitlines() if line.startswith("| ") and "| | router |" not in line]
    assert [line for line in lines if line.split("|")[2].strip() not in MARKS] == []
    assert [first for first, mark, text in rows() if mark == "left out" and not text] == []


@pytest.mark.parametrize("row", [row for row in rows() if row[1] in ("has", "better")], ids=lambda row: row[0][:40])
def test_what_it_has_is_shown_by_a_test(row: list[str]) -> None:
    tests = re.findall(r"`([\w/]+)::(\w+)`", row[2]) or (re.findall(r"`([\w/]+)::(\w+)`", PAGE) if "default" in row[2] else [])
    assert tests, row
    for file, name in tests:
        assert re.search(rf"^ *def {name}\(", (HERE / f"tests/{file}.py").read_text(), re.M), f"{file}::{name}"


def test_every_test_that_is_named_exists() -> None:
    named = re.findall(r"`([\w/]+)::(\w+)`", PAGE)
    assert [each for each in named if not re.search(rf"^ *def {each[1]}\(", (HERE / f"tests/{each[0]}.py").read_text(), re.M)] == []
