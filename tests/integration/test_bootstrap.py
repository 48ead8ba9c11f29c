"""script/bootstrap is quick the second time, and says what to type where it may not install anything."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
TOOLS = ("bash", "cat", "cut", "dirname", "env", "grep", "id", "python3", "sed", "sha256sum", "sleep", "tail", "tee", "tr")


def bootstrap(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run it in this checkout, which is set up."""
    return subprocess.run(
        [PROJECT / "script/bootstrap", *arguments], env={**os.environ, **environment}, capture_output=True, text=True, timeout=100
    )


def test_second_run_is_quiet_and_quick() -> None:
    stamp = PROJECT / ".venv/.bootstrap"
    is_set_up = stamp.exists() and stamp.read_text().endswith(" dev\n")
    if not is_set_up or stamp.stat().st_mtime < (PROJECT / "pyproject.toml").stat().st_mtime:
        pytest.skip("script/test sets this .venv up first; it would be done here, below the running tests")
    began = time.monotonic()
    done = bootstrap("--dev")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 2


def test_unknown_argument_is_refused() -> None:
    done = bootstrap("--nonsense")
    assert done.returncode == 2
    assert "--nonsense" in done.stderr


def test_says_what_to_type_where_nothing_can_be_installed(tmp_path: Path) -> None:
    """A Python without venv, and neither root nor sudo: `id` and PATH say so to the script."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for tool in TOOLS:
        (tools / tool).symlink_to(shutil.which(tool) or pytest.fail(f"no {tool}"))
    for name, text in {"id": "echo 1000", "python-without-venv": "exit 1", "sudo": "exit 1", "apt-get": "echo apt was run; exit 1"}.items():
        (tools / name).unlink(missing_ok=True)
        (tools / name).write_text(f"#!/bin/sh\n{text}\n")
        (tools / name).chmod(0o755)
    done = bootstrap(PATH=str(tools), PYTHON="python-without-venv")
    assert done.returncode == 1
    assert "apt-get install --no-install-recommends" in done.stderr
    assert "python3-venv" in done.stderr
    assert "apt was run" not in done.stdout + done.stderr
