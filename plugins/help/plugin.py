"""What can be typed; without typer, so that it is there at once."""

from __future__ import annotations

from typing import TYPE_CHECKING

import nginx_router
from nginx_router.commands import find, nouns, of_noun, usage
from nginx_router.errors import UsageProblem

if TYPE_CHECKING:
    from nginx_router.controller import Router


def show_help(router: Router, *noun: str) -> None:
    """What can be typed: all nouns, the verbs of one, or one command.

    Example: router help domains
    """
    if len(noun) > 1:
        raise UsageProblem("one noun or command at a time", hint="usage: router help [NOUN | COMMAND]")
    word = noun[0] if noun else None
    commands = router.plugins.commands(all=True) if word else router.plugins.commands()
    if word is None:
        router.out.data("usage: router NOUN:VERB [APP] [ARGUMENTS] [OPTIONS]")
        router.out.data()
        for each in nouns(commands):
            verbs = [c.name.rpartition(":")[2] for c in of_noun(each, commands)]
            router.out.data(f"{each:<15} {' '.join(verbs) or commands[each].help}")
        router.out.data()
        router.out.data("router help NOUN explains the verbs, router NOUN:VERB --help one command; apps:X:VERB is X:VERB too")
        return
    found = of_noun(word, commands)
    if found and not (len(found) == 1 and found[0].name == word):
        for command in found:
            router.out.data(f"{usage(command)}\n    {command.help}")
        return
    command = find(word, commands)
    if not command.is_python:
        router.out.data(f"{usage(command)}\n    {command.help}")
        return
    from nginx_router.parsing import parse

    router.out.text(parse(command, router.plugins.function(command), ["--help"]).help or "")


def version(router: Router) -> None:
    """The version of router.

    Example: router version
    """
    if router.out.is_json:
        router.out.json({"version": nginx_router.__version__})
    else:
        router.out.data(nginx_router.__version__)
