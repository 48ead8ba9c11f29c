"""Plugins to be installed, and what is seen of them then."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import Result

Run = Callable[..., Result]

HEADER = 'echo "add_header X-Tag \\"$CONFIG_WORD $1\\";"'
TOML = '[plugin.config]\nword = "hi"\nlevel = 3\nloud = false\ndays = ["mon"]\n'


def make(directory: Path, name: str | None = None, toml: str = TOML, **files: str) -> Path:
    """A plugin to be installed; `nginx_server_snippet="text of a shell script"`."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "plugin.toml").write_text(f'[plugin]\nname = "{name or directory.name}"\n{toml}')
    for file, text in files.items():
        path = directory / ("plugin.py" if file == "plugin_py" else file.replace("__", "/").replace("_", "-"))
        path.parent.mkdir(exist_ok=True)
        path.write_text(text if file == "plugin_py" else f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
    return directory


def done(result: Result) -> Result:
    assert result.code == 0, result
    return result


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return make(tmp_path / "tag", nginx_server_snippet=HEADER)


@pytest.fixture
def blog(run: Run) -> None:
    for line in ("apps:create blog", "domains:add blog blog.test", "upstreams:add blog 127.0.0.1:5000"):
        done(run(*line.split()))


def config(run: Run, app: str = "blog") -> str:
    """The vhost of an app and all that is included there."""
    text = done(run("nginx:show-config", app)).out
    included = [line.split()[1].rstrip(";") for line in text.splitlines() if line.strip().startswith("include /") and "/objects/" in line]
    return text + "".join(Path(path).read_text() for path in included)


def about(run: Run, name: str) -> dict[str, object]:
    found: dict[str, object] = done(run("plugins:report", name, "--format", "json")).json()
    return found
