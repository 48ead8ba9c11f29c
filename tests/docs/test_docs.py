"""The pages of docs/ say what the code says."""

from __future__ import annotations

from pathlib import Path

from nginx_router.errors import BY_EXIT_CODE
from nginx_router.hookspecs import markdown
from nginx_router.model import Facts, Globals, HostFacts, parse_app
from nginx_router.render import Renderer

DOCS = Path(__file__).resolve().parents[2] / "docs"


def test_every_exit_code_is_explained() -> None:
    rows = [line.split("|")[1].strip() for line in (DOCS / "exit-codes.md").read_text().splitlines() if line.startswith("| ")]
    assert [str(code) for code in sorted(BY_EXIT_CODE)] == [row for row in rows if row.isdigit() and row != "0"]


def test_the_hook_reference_is_current() -> None:
    assert (DOCS / "hooks.md").read_text().endswith(markdown()), "run script/docs"


def test_every_template_variable_is_explained(tmp_path: Path) -> None:
    app = parse_app("blog", {"DOMAINS": "blog.example.com\n", "UPSTREAMS": "127.0.0.1:5000\n"})
    values = Renderer(tmp_path, Globals(), HostFacts()).values(app, Facts(), [])
    page = (DOCS / "templates.md").read_text()
    for name in [*values, *values["servers"][0], *values["upstreams"][0]]:
        assert f"`{name}`" in page or f" {name}" in page, name
