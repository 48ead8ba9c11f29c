"""A plugin to begin with: one hook, one command, one key, a test that passes and a README."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router.errors import Conflict, UsageProblem
from nginx_router.names import shown

if TYPE_CHECKING:
    from nginx_router.controller import Router

_SKELETONS = Path(__file__).with_name("skeleton")


def new(
    router: Router,
    name: Annotated[str, typer.Argument(metavar="NAME", help="Its name, and that of the new directory here.")],
    lang: Annotated[str, typer.Option("--lang", metavar="sh|python", help="The language.")] = "sh",
) -> None:
    """Begin a plugin: write ./NAME with a hook that adds a header, a command, a test and a README. Its directory is printed.

    Example: router plugins:new hello --lang python
    """
    known = sorted(path.name for path in _SKELETONS.iterdir() if path.is_dir())
    if lang not in known:
        raise UsageProblem(f"there is no skeleton in {shown(lang)}: {' or '.join(known)}", hint="any language will do: see docs/plugins.md")
    if not re.fullmatch(r"[a-z][a-z0-9-]{0,62}", name):
        raise UsageProblem(f"{shown(name)} is no name to begin with: a-z 0-9 -, a letter first")
    if name in router.plugins.names():
        raise Conflict(f"there is a plugin {name} already", hint=f"router plugins:report {name}")
    directory = Path.cwd() / name
    if directory.exists():
        raise Conflict(f"{directory} exists already")
    words = {"__NAME__": name, "__HEADER__": f"X-{name.title()}"}
    for source in sorted(path for path in (_SKELETONS / lang).rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        target = directory / source.relative_to(_SKELETONS / lang)
        target.parent.mkdir(parents=True, exist_ok=True)
        text = source.read_text()
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        target.write_text(text)
        # not the mode of the source: archives, and those who check out or unpack, lose it
        target.chmod(0o755 if text.startswith("#!") else 0o644)
    router.out.data(directory)
    router.out.say(f"test it: {_test(directory)}; then: router plugins:install {directory}")


def _test(directory: Path) -> str:
    script = directory / "test.sh"
    return str(script) if script.is_file() else f"python3 {directory / 'test_plugin.py'}"
