"""Compiled templates that are kept: what is run of them, and that a broken one costs nothing but time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import jinja2
import pytest
from jinja2 import Environment, FileSystemLoader

from nginx_router import render
from nginx_router.compiled import Compiled

TEXT = "{% for name in names %}\nserver_name {{ name }};\n{% endfor %}\n"
OPTIONS = {"trim_blocks": True}
NOBODY = 65534

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Templates of an installation whose owner lets Python keep what it compiled."""
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(sys, "pycache_prefix", None)
    (tmp_path / "vhost.j2").write_text(TEXT)
    return tmp_path


def environment(directory: Path) -> Environment:
    """That of another process."""
    return Environment(loader=FileSystemLoader(directory), bytecode_cache=Compiled(directory, OPTIONS), autoescape=False, trim_blocks=True)


def rendered(directory: Path) -> str:
    return environment(directory).get_template("vhost.j2").render(names=["a.test"])


def kept(directory: Path) -> Path:
    (found,) = (directory / "__pycache__").iterdir()
    return found


def poison(directory: Path) -> Path:
    """Code of another text in the place of the template's, kept as well as can be."""
    other = environment(directory)
    path = str(directory / "vhost.j2")
    assert other.bytecode_cache is not None
    bucket = other.bytecode_cache.get_bucket(other, "vhost.j2", path, TEXT)
    bucket.code = other.compile("poisoned", "vhost.j2", path)
    other.bytecode_cache.set_bucket(bucket)
    return kept(directory)


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The templates that were compiled."""
    names: list[str] = []
    whole = Environment.compile

    def compile_it(self: Environment, source: str, name: str | None = None, *rest: object, **more: object) -> object:
        names.append(str(name))
        return whole(self, source, name, *rest, **more)  # type: ignore[call-overload]  # passed on as it came

    monkeypatch.setattr(Environment, "compile", compile_it)
    return names


def test_a_template_is_compiled_once(directory: Path, compiles: list[str]) -> None:
    assert [rendered(directory) for _ in range(3)] == ["server_name a.test;\n"] * 3
    assert compiles == ["vhost.j2"]


def test_a_changed_template_is_taken_up(directory: Path, compiles: list[str]) -> None:
    rendered(directory)
    (directory / "vhost.j2").write_text("listen {{ names[0] }};\n")
    assert [rendered(directory) for _ in range(2)] == ["listen a.test;"] * 2
    assert compiles == ["vhost.j2"] * 2
    assert kept(directory), "the new one lies where the old one did"


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[:20]),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(path.read_bytes().replace(b"server_name", b"server_fame")),
        lambda path: path.write_bytes(os.urandom(5000)),
    ],
    ids=["empty", "within the digest", "torn", "changed", "garbage"],
)
def test_a_broken_one_is_no_error_and_made_again(directory: Path, compiles: list[str], damage: Callable[[Path], object]) -> None:
    rendered(directory)
    whole = kept(directory).read_bytes()
    damage(kept(directory))
    assert rendered(directory) == "server_name a.test;\n"
    assert kept(directory).read_bytes() == whole
    rendered(directory)
    assert compiles == ["vhost.j2"] * 2


@pytest.mark.parametrize("what", ["a directory", "a file in the way", "no room", "not wanted", "elsewhere"])
def test_what_cannot_be_kept_is_no_error(directory: Path, monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    if what == "a directory":
        rendered(directory)
        path = kept(directory)
        path.unlink()
        path.mkdir()
    elif what == "a file in the way":
        (directory / "__pycache__").write_text("")
    elif what == "no room":

        def full(*_: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fdopen", full)
    elif what == "not wanted":
        monkeypatch.setattr(sys, "dont_write_bytecode", True)
    else:
        monkeypatch.setattr(sys, "pycache_prefix", "/nowhere")
    assert [rendered(directory) for _ in range(2)] == ["server_name a.test;\n"] * 2
    assert not [path for path in directory.rglob("*") if path.is_file() and path.name not in ("vhost.j2", "__pycache__")], "nothing is left"


def test_the_poison_of_these_tests_would_work(directory: Path) -> None:
    poison(directory)
    assert rendered(directory) == "poisoned"


@pytest.mark.parametrize("mode", [0o664, 0o646])
def test_code_that_others_may_write_is_not_run(directory: Path, mode: int) -> None:
    poison(directory).chmod(mode)
    assert rendered(directory) == "server_name a.test;\n"
    assert kept(directory).stat().st_mode & 0o777 == 0o644, "made again by who may"
    assert rendered(directory) == "server_name a.test;\n"


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_code_in_a_directory_that_others_may_write_is_neither_run_nor_kept(directory: Path, mode: int) -> None:
    path = poison(directory)
    before = path.read_bytes()
    path.parent.chmod(mode)
    assert rendered(directory) == "server_name a.test;\n"
    assert path.read_bytes() == before


@as_root
def test_root_runs_no_compiled_template_that_others_may_write(directory: Path) -> None:
    os.chown(poison(directory), NOBODY, NOBODY)
    assert rendered(directory) == "server_name a.test;\n"
    assert kept(directory).stat().st_uid == 0, "made again"
    path = poison(directory)
    os.chown(path.parent, NOBODY, NOBODY)
    assert rendered(directory) == "server_name a.test;\n"


def test_code_of_other_versions_is_not_run(directory: Path, compiles: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    rendered(directory)
    for place, name in ((jinja2, "__version__"), (sys, "version")):
        with monkeypatch.context() as other:
            other.setattr(place, name, "99.1")
            rendered(directory)
            rendered(directory)
    assert len(compiles) == 3
    loader = FileSystemLoader(directory)
    plain = Environment(loader=loader, bytecode_cache=Compiled(directory, {"trim_blocks": False}), autoescape=False, trim_blocks=False)
    assert plain.get_template("vhost.j2").render(names=["a"]) == "\nserver_name a;\n", "its options made other code of the same text"


def test_what_is_kept_is_for_nobody_else_to_write(directory: Path) -> None:
    before = os.umask(0)
    try:
        rendered(directory)
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (kept(directory).parent, kept(directory))] == [0o755, 0o644]


def test_of_templates_of_apps_nothing_is_kept() -> None:
    shipped, sandbox = render._environments()
    assert isinstance(shipped.bytecode_cache, Compiled)
    assert sandbox.bytecode_cache is None
