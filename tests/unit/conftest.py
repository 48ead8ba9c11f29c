"""The command line as a function, and the keys that its plugins bring."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nginx_router.cli import main
from nginx_router.controller import Router
from nginx_router.settings import Paths


@dataclass(frozen=True)
class Result:
    """What a command line came to."""

    code: int
    out: str
    err: str

    @property
    def lines(self) -> list[str]:
        return self.out.splitlines()

    @property
    def talk(self) -> list[str]:
        return self.err.splitlines()

    def json(self) -> Any:
        return json.loads(self.out)


@pytest.fixture
def run(router_root: object, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run one command line in a root of its own, whose proxy was never started."""

    def call(*argv: str, stdin: str = "") -> Result:
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        capsys.readouterr()
        code = main(argv)
        said = capsys.readouterr()
        return Result(code, said.out, said.err)

    return call


@pytest.fixture
def keys(router_root: Path) -> Mapping[str, Any]:
    """The tables of app.toml that plugins bring, by their names."""
    tables = Router(Paths(router_root)).tables()
    assert isinstance(tables, Mapping)
    return tables
