"""The pages of docs/ say what the code says."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from nginx_router.errors import BY_EXIT_CODE
from nginx_router.model import Facts, Globals, HostFacts, parse_app
from nginx_router.render import Renderer

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_exit_code_is_explained() -> None:
    rows = [line.split("|")[1].strip() for line in (DOCS / "exit-codes.md").read_text().splitlines() if line.startswith("| ")]
    assert [str(code) for code in sorted(BY_EXIT_CODE)] == [row for row in rows if row.isdigit() and row != "0"]


def test_the_pages_made_from_the_code_are_current() -> None:
    done = subprocess.run([DOCS.parent / "script/docs", "--check"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_the_manual_page_is_one() -> None:
    text = (DOCS / "router.1").read_text()
    assert text.count(".SH NAME") == text.count(".SH EXIT STATUS") == 1
    if not shutil.which("man"):
        pytest.skip("man is not installed: apt-get install man-db")
    done = subprocess.run(
        ["man", "--warnings", "-l", DOCS / "router.1"],
        env={**os.environ, "MANWIDTH": "80", "LC_ALL": "C.UTF-8", "PAGER": "cat", "MAN_KEEP_FORMATTING": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (done.returncode, done.stderr) == (0, "")
    for words in ("ROUTER(1)", "apps:domains:add APP DOMAIN...", "Example: router apps:create blog", "EXIT STATUS"):
        assert words in done.stdout
    assert max(len(line) for line in done.stdout.splitlines()) <= 80


def test_every_template_variable_is_explained(tmp_path: Path) -> None:
    app = parse_app("blog", {"DOMAINS": "blog.example.com\n", "UPSTREAMS": "127.0.0.1:5000\n"})
    values = Renderer(tmp_path, Globals(), HostFacts()).values(app, Facts(), [])
    page = (DOCS / "templates.md").read_text()
    for name in [*values, *values["servers"][0], *values["upstreams"][0]]:
        assert f"`{name}`" in page or f" {name}" in page, name
