"""The soak holds: SOAK_MINUTES (4) of random changes, kills and hand edits on a hundred apps under traffic, and nothing is lost."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
MINUTES = float(os.environ.get("SOAK_MINUTES", "4"))


@pytest.mark.slow
@pytest.mark.timeout(MINUTES * 60 + 600)
def test_nothing_is_lost_whatever_happens_at_once() -> None:
    done = subprocess.run(
        [HERE / "script/soak", "--minutes", f"{MINUTES:g}"], capture_output=True, text=True, timeout=MINUTES * 60 + 500, check=False
    )
    print(done.stdout)  # the table and the seed, for the log
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
