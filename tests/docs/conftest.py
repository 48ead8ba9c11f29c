"""A root of its own for what a page shows, and the command on PATH."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    root = Path(subprocess.run(["mktemp", "-d", "/tmp/readme.XXXXXX"], capture_output=True, text=True, check=True).stdout.strip())
    root.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "XDG_"))}
    env = {**clean, "ROUTER_ROOT": str(root / "root"), "HOME": str(root), "PATH": f"{HERE}/.venv/bin:{os.environ['PATH']}"}
    try:
        yield env
    finally:
        subprocess.run([HERE / ".venv/bin/router", "proxy:stop"], env=env, check=False, capture_output=True, timeout=60)
        for pid in root.rglob("*.pid"):
            if pid.name != "nginx.pid":
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.killpg(int(pid.read_text().partition(" ")[0]), signal.SIGTERM)
        shutil.rmtree(root, ignore_errors=True)
