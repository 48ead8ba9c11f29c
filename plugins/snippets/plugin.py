"""Snippets: nginx.conf.d/NAME.conf of an app, included in each of its server blocks."""

from __future__ import annotations

import re
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from nginx_router.arguments import change, existing
from nginx_router.errors import NotFound, UsageProblem, nearest
from nginx_router.events import Event
from nginx_router.files import LARGEST
from nginx_router.model import SNIPPETS
from nginx_router.names import shown

if TYPE_CHECKING:
    from nginx_router.controller import Router

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}")
_SUFFIX = ".conf"

AppArgument = Annotated[str, typer.Argument(metavar="APP", help="The app.")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The name, which is that of the file without .conf.")]


def add(router: Router, app: AppArgument, name: Name) -> None:
    """Give an app the snippet that comes on stdin; one of that name is replaced.

    nginx judges it before anything is changed. A snippet holds no server, listen or server_name.

    Example: echo 'add_header X-Frame-Options DENY;' | router snippets:add blog headers
    """
    owner = existing(router, app)
    if name.endswith(_SUFFIX) or not _NAME.fullmatch(name):
        raise UsageProblem(
            f"{shown(name)} is no name of a snippet: letters, digits, . _ - (no . or - first), at most 100, without {_SUFFIX}", app=owner
        )
    change(router, [Event("snippets", owner, {"verb": "add", "name": name, "text": _text(owner, name)})])


def remove(router: Router, app: AppArgument, name: Name) -> None:
    """Take a snippet from an app.

    Example: router snippets:remove blog headers
    """
    owner = existing(router, app)
    bare = name.removesuffix(_SUFFIX)
    if "/" in bare:
        raise UsageProblem(f"{shown(name)} is no name of a snippet", hint=f"router snippets:list {owner}", app=owner)
    change(router, [Event("snippets", owner, {"verb": "remove", "name": bare, "text": None})])


def list_snippets(router: Router, app: AppArgument) -> None:
    """The names of an app's snippets, in the order in which nginx reads them.

    Example: router snippets:list blog
    """
    router.out.listing(_snippets(router, existing(router, app)))


def show(router: Router, app: AppArgument, name: Name) -> None:
    """The text of a snippet, as the directory has it.

    Example: router snippets:show blog headers
    """
    owner = existing(router, app)
    found, bare = _snippets(router, owner), name.removesuffix(_SUFFIX)
    if bare not in found:
        raise NotFound(f"{owner} has no snippet {shown(bare)}{nearest(bare, found)}", hint=f"router snippets:list {owner}", app=owner)
    router.out.text(found[bare])


def _snippets(router: Router, app: str) -> dict[str, str]:
    texts = router.store.texts(app) or {}
    return {path.removeprefix(SNIPPETS).removesuffix(_SUFFIX): text for path, text in sorted(texts.items()) if path.startswith(SNIPPETS)}


def _text(app: str, name: str) -> str:
    if sys.stdin.isatty():
        raise UsageProblem("the snippet comes on stdin", hint=f"router snippets:add {app} {name} < FILE", app=app)
    data = sys.stdin.buffer.read(LARGEST + 1)
    text = data.decode(errors="surrogateescape")
    if not text.strip() or len(data) > LARGEST or "\0" in text:
        raise UsageProblem(f"stdin holds no snippet: a text of at most {LARGEST} bytes", hint=f"router snippets:add {app} {name} < FILE")
    return text if text.endswith("\n") else f"{text}\n"
