"""docs/reliability.md claims only what a test shows."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
PAGE = (HERE / "docs/reliability.md").read_text()
ROWS = [line for line in PAGE.split("## Faults")[1].split("## How long")[0].splitlines() if line.startswith("| ")][1:]


def test_each_row_names_a_test_that_there_is_and_what_is_lost() -> None:
    there = {name for file in (HERE / "tests").rglob("test_*.py") for name in re.findall(r"^def (test_\w+)", file.read_text(), re.M)}
    before: list[str] = []
    assert len(ROWS) > 30
    for row in ROWS:
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert len(cells) == 5 and all(cells), row
        named = re.findall(r"`(test_\w+)`", cells[4]) or (before if cells[4].startswith("the same") else [])
        assert named, row
        assert not set(named) - there, row
        before = named
