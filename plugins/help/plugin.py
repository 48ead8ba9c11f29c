"""What can be typed; from the plugin.toml files alone, so that it is there at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nginx_router
from nginx_router import helptext
from nginx_router.commands import find, nouns, of_noun, visible
from nginx_router.errors import UsageProblem

if TYPE_CHECKING:
    from nginx_router.controller import Router

HEAD = "usage: router NOUN:VERB [APP] [ARGUMENTS] [OPTIONS]"
FOOT = """
router help NOUN        the commands of a noun, with their arguments
router help COMMAND     one command, with its options and an example
Long names work too: domains:add is apps:domains:add.  Every change takes
--dry-run; every report --format json, and --KEY for one value."""


def show_help(router: Router, *word: str) -> None:
    """What can be typed: every command in a line, those of one noun with their arguments, or one command with its options.

    Example: router help domains
    """
    if len(word) > 1:
        raise UsageProblem("one noun or command at a time", hint="usage: router help [NOUN | COMMAND]")
    if word:
        _one(router, word[0])
    else:
        router.out.text("\n".join([HEAD, *helptext.overview(router.plugins.commands()), FOOT]))


def version(router: Router) -> None:
    """The version of router.

    Example: router version
    """
    if router.out.is_json or router.out.key is not None:
        router.out.report(("version",), [{"version": nginx_router.__version__}], single=True)
    else:
        router.out.data(nginx_router.__version__)


def _one(router: Router, word: str) -> None:
    commands = visible(router.plugins.commands(all=True))
    noun = word.removesuffix(":")
    found = of_noun(noun, commands)
    if found:
        own = [noun] if noun in commands else []  # `plugins` may be a command and a noun
        below = [each for each in nouns(commands) if each.startswith((f"{noun}:", f"apps:{noun}:"))]
        router.out.text("\n".join(helptext.of_one_noun([*(commands[name] for name in own), *found], below)))
        return
    command = find(word, router.plugins.commands(all=True))
    if command.is_python:
        from nginx_router.parsing import explain

        router.out.text(helptext.page(explain(command, router.plugins.function(command))))
    else:
        router.out.text("\n".join(helptext.of_one_noun([command])))
