"""Plugins that are Python packages: a look at names tells whether there may be any, and never hides one; they bring hooks and commands."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from importlib.metadata import DistributionFinder, entry_points
from pathlib import Path

import pytest

from nginx_router.registry import may_have_entry_points

from .plugged import HOOKIMPL, blog, world

__all__ = ["world"]  # a fixture

GROUP = "router_test_group"
SECTION = f"[console_scripts]\nx = x:main\n\n[{GROUP}]\nstranger = stranger_pkg\n"
METADATA = "Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n"


def put(directory: Path, text: str = SECTION) -> None:
    directory.mkdir(parents=True)
    for name in ("METADATA", "PKG-INFO"):
        (directory / name).write_text(METADATA)
    (directory / "entry_points.txt").write_text(text)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that Python looks for packages in."""
    made = tmp_path / "site"
    made.mkdir()
    monkeypatch.syspath_prepend(str(made))
    assert not may_have_entry_points(GROUP)
    return made


def found() -> bool:
    """What importlib.metadata says; the look at names must say the same, or at least that there may be one."""
    there = bool(entry_points(group=GROUP))
    assert may_have_entry_points(GROUP) >= there
    return there


@pytest.mark.parametrize("name", ["stranger-1.0.dist-info", "stranger.egg-info", "Stranger-1.0.DIST-INFO"])
def test_a_package_is_seen_however_it_is_installed(site: Path, name: str) -> None:
    put(site / name)
    assert found()
    assert may_have_entry_points(GROUP)


def test_a_package_in_an_egg_is_seen(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site / "stranger.egg/EGG-INFO")
    monkeypatch.syspath_prepend(str(site / "stranger.egg"))
    assert found()


def test_a_package_in_an_archive_is_seen(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with zipfile.ZipFile(site / "archive.zip", "w") as archive:
        archive.writestr("stranger-1.0.dist-info/METADATA", METADATA)
        archive.writestr("stranger-1.0.dist-info/entry_points.txt", SECTION)
    monkeypatch.syspath_prepend(str(site / "archive.zip"))
    assert found()


def test_a_package_of_the_working_directory_is_seen(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site / "here/stranger-1.0.dist-info")
    monkeypatch.chdir(site / "here")
    monkeypatch.syspath_prepend("")
    assert found()


def test_a_package_that_only_another_finder_knows_is_asked_for(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Finder(DistributionFinder):
        def find_distributions(self, context: object = None) -> list[object]:
            return []

        def find_spec(self, *_: object) -> None:
            return None

    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path, Finder()])
    assert may_have_entry_points(GROUP)


def test_other_packages_are_none(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(site / "other-1.0.dist-info", f"[console_scripts]\nx = {GROUP}:main\n")
    (site / "bare-1.0.dist-info").mkdir()
    (site / "flat.egg-info").write_text(METADATA)
    monkeypatch.syspath_prepend(str(site / "nowhere"))
    assert not found()
    assert not may_have_entry_points(GROUP)


def test_a_change_does_not_wait_for_what_no_package_brings(router_root: Path) -> None:
    code = (
        "import sys; from nginx_router.cli import main; "
        "code = main(['apps:create', 'blog']) or main(['domains:add', 'blog', 'blog.test']); "
        "print('imported:', *sorted({'importlib.metadata', 'crossplane', 'rich', 'tomlkit'} & set(sys.modules))); sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "imported:"


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed Python package with an entry point; gives its directory."""
    site = tmp_path / "site"
    about = site / "stranger-1.0.dist-info"
    about.mkdir(parents=True)
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: stranger\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[nginx_router]\nstranger = stranger_pkg\n")
    directory = site / "stranger_pkg"
    directory.mkdir()
    (directory / "__init__.py").write_text(HOOKIMPL + "@hookimpl\ndef post_deploy(event):\n    return 'stranger'\n")
    monkeypatch.syspath_prepend(str(site))
    yield directory
    for name in [name for name in sys.modules if name.partition(".")[0] == "stranger_pkg"]:
        del sys.modules[name]


def test_a_package_brings_hooks(world, package):
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said == ["a", "stranger"]
    assert opened.commands(all=True) == {}


def test_a_package_may_describe_itself(world, package):
    (package / "plugin.toml").write_text(
        '[plugin]\nname = "stranger"\npriority = 1\n[plugin.commands]\n"stranger:hi" = {help = "Hi", run = "talk.py:hi"}\n'
    )
    (package / "talk.py").write_text("def hi(router):\n    return 'hi'\n")
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    assert opened.commands() == {}
    assert opened.function(opened.commands(all=True)["stranger:hi"])(None) == "hi"
    opened.notify("post-deploy", blog())
    assert world.said == ["stranger", "a"]


def test_a_broken_package_is_named_and_the_others_work(world, package):
    (package / "__init__.py").write_text("raise RuntimeError('broken package')\n")
    world.add("a", post_deploy="echo a")
    opened = world.plugins()
    opened.notify("post-deploy", blog())
    assert world.said[0].startswith("warning: plugin stranger is broken and left out: ")
    assert "broken package" in world.said[0]
    assert world.said[1:] == ["a"]
