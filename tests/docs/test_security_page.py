"""docs/security.md names tests that are there, and the directives that the code lets through."""

from __future__ import annotations

import re
from pathlib import Path

from nginx_router import confinement

HERE = Path(__file__).resolve().parents[1]
PAGE = (HERE.parent / "docs/security.md").read_text()


def test_each_test_that_is_named_exists() -> None:
    code = "\n".join(file.read_text() for file in HERE.rglob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", PAGE))
    assert len(named) > 20
    assert [name for name in sorted(named) if f"def {name}(" not in code] == []
    assert all((HERE.parent / file).exists() for file in re.findall(r"`(tests/[\w/.]+)`", PAGE))


def test_the_directives_of_a_confined_snippet_are_those_of_the_code() -> None:
    section = PAGE.partition("### The directives of a confined snippet")[2]
    free, sizes = (set(re.findall(r"`(\w+)`", section.split("\n\n")[n])) for n in (2, 4))
    assert free == {*confinement._FREE} and sizes == {*confinement._SIZES}
    also = section.split("\n\n")[5].partition("\n## ")[0]
    for name in {*confinement._SERVER} - free - sizes:
        assert f"`{name}" in also, name
