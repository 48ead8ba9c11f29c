"""docs/health.md names every key of a check with its default, and no other."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]


def test_every_key_stands_in_the_table_with_its_default() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \| `([^`]+)` \|", (HERE / "docs/health.md").read_text(), re.M)
    declared = tomllib.loads((HERE / "plugins/checks/plugin.toml").read_text())["plugin"]["properties"]
    assert dict(rows) == {name: row["default"] for name, row in declared.items()}
