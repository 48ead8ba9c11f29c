"""The built wheel, installed and run from `/`, is the same product: with its templates, its plugins and their executable bits."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]
SHIPPED = "nginx_router/_shipped"

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


def run(*argv: str | Path, cwd: Path = Path("/"), **env: str) -> subprocess.CompletedProcess[str]:
    """Run a command that must succeed."""
    done = subprocess.run(argv, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"{argv}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def fresh_venv(directory: Path) -> Path:
    """An environment that holds nothing but pip."""
    run(sys.executable, "-m", "venv", directory)
    return directory / "bin"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project with one more shipped plugin, an executable, so that its bits can be seen to survive."""
    copy = tmp_path_factory.mktemp("source") / "project"
    ignored = shutil.ignore_patterns(".git", ".venv", "*_cache", "__pycache__", "dist", "build")
    shutil.copytree(PROJECT, copy, ignore=ignored, symlinks=True)
    plugin = copy / "plugins/wheel-witness"
    plugin.mkdir()
    (plugin / "plugin.toml").write_text('[plugin]\nname = "wheel-witness"\n')
    hook = plugin / "post-domains-update"
    hook.write_text('#!/bin/sh\necho "$*" >"$ROUTER_ROOT/witness"\n')
    hook.chmod(0o755)
    # what a run from the checkout leaves there, and nobody wants to install
    (plugin / "__pycache__").mkdir()
    (plugin / "__pycache__/plugin.cpython-311.pyc").write_bytes(b"")
    return copy


@pytest.fixture(scope="module")
def wheels(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The wheel built from the checkout, and the one built from the source distribution."""
    work = tmp_path_factory.mktemp("build")
    tools = fresh_venv(work / "tools")
    run(tools / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "from-checkout", source)
    run(tools / "pip", "install", "--quiet", "hatchling>=1.26")
    run(tools / "python", "-m", "hatchling", "build", "-t", "sdist", "-d", work, cwd=source)
    (sdist,) = work.glob("nginx_router-*.tar.gz")
    run(tools / "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", work / "from-sdist", sdist)
    (from_checkout,), (from_sdist,) = (work / "from-checkout").glob("*.whl"), (work / "from-sdist").glob("*.whl")
    return from_checkout, from_sdist


def contents(wheel: Path) -> dict[str, tuple[int, int]]:
    """Name -> mode and checksum of everything in a wheel but its own list of files."""
    with zipfile.ZipFile(wheel) as archive:
        return {each.filename: (each.external_attr >> 16, each.CRC) for each in archive.infolist() if not each.filename.endswith("/RECORD")}


def test_both_ways_of_building_give_the_same_wheel(wheels: tuple[Path, Path], source: Path) -> None:
    from_checkout, from_sdist = map(contents, wheels)
    assert from_checkout == from_sdist
    for kind in ("templates", "plugins"):
        shipped = {
            str(path.relative_to(source)): os.access(path, os.X_OK)
            for path in (source / kind).rglob("*")
            if path.is_file() and path.parent.name != "__pycache__"
        }
        assert shipped
        assert {
            name.removeprefix(f"{SHIPPED}/"): bool(mode & 0o100)
            for name, (mode, _) in from_checkout.items()
            if name.startswith(f"{SHIPPED}/{kind}/")
        } == shipped
    assert "nginx_router/py.typed" in from_checkout


def test_the_installed_wheel_is_the_same_product(wheels: tuple[Path, Path], tmp_path: Path) -> None:
    binaries = fresh_venv(tmp_path / "venv")
    run(binaries / "pip", "install", "--quiet", wheels[1])
    root = tmp_path / "root"

    def router(*words: str) -> subprocess.CompletedProcess[str]:
        return run(binaries / "router", *words, ROUTER_ROOT=str(root), PYTHONPATH="")

    assert router("version").stdout.strip() == router("version").stdout.strip() != ""
    assert ".TH ROUTER 1" in (tmp_path / "venv/share/man/man1/router.1").read_text()
    assert run(binaries / "python", "-c", "import nginx_router; print(nginx_router.__file__)").stdout.startswith(str(tmp_path))
    router("apps:create", "blog")
    assert "saved, proxy is stopped" in router("apps:domains:add", "blog", "blog.example.com").stderr
    router("apps:upstreams:add", "blog", "127.0.0.1:5000")
    assert "server_name blog.example.com;" in router("apps:nginx:show-config", "blog").stdout
    assert (root / "witness").read_text() == "blog add blog.example.com\n"
