"""A root with plugins that a test makes."""

import os
import sys
import textwrap
from types import SimpleNamespace

import pytest

from nginx_router.plugins import Plugins
from nginx_router.settings import Paths

PYTHON = f"#!{sys.executable}\n"
HOOKIMPL = "import pluggy\nhookimpl = pluggy.HookimplMarker('router')\n"


@pytest.fixture
def world(tmp_path, monkeypatch):
    """A root without plugins; `add` makes one, `plugins()` opens them."""
    for name in [n for n in os.environ if n.startswith(("ROUTER_", "CONFIG_"))]:
        monkeypatch.delenv(name)
    root, built_in = tmp_path / "root", tmp_path / "built-in"
    (root / "plugins").mkdir(parents=True)
    built_in.mkdir()
    said: list[str] = []
    settings: dict[str, dict[str, object]] = {}

    def add(name, toml="", *, parent=None, **files):
        directory = (parent or root / "plugins") / name
        directory.mkdir()
        (directory / "plugin.toml").write_text(f'[plugin]\nname = "{name}"\n{toml}')
        for file, text in files.items():
            path = directory / ("plugin.py" if file == "plugin_py" else file.replace("_", "-"))
            path.write_text(textwrap.dedent(text) if "\n" in text else f"#!/bin/sh\n{text}\n")
            path.chmod(0o755)
        return directory

    def open_plugins():
        return Plugins(Paths(root), said.append, lambda: settings, built_in=built_in)

    return SimpleNamespace(root=root, built_in=built_in, said=said, settings=settings, add=add, plugins=open_plugins)


def python(text):
    return PYTHON + textwrap.dedent(text) + "\n"


def blog(**keys):
    return {"app": "blog", **keys}
