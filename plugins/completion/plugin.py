"""What a word on the command line can become: asked by the shell at each TAB, so it looks at names and starts nothing.

What goes where is read from the usage lines of the command table: an `APP` is an app, a `[--check /PATH]` an option.  So the
commands of every plugin complete, and none of them is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nginx_router.commands import alias, find, nouns, visible
from nginx_router.errors import RouterError, UsageProblem, nearest
from nginx_router.helptext import words_of

if TYPE_CHECKING:
    from nginx_router.controller import Router
    from nginx_router.discovery import Command

SHELLS = ("bash", "zsh", "fish")

#: The options of every command of a kind, and what their values look like.
COMMON: Mapping[str, Mapping[str, str]] = {
    "change": {"--dry-run": "", "--lock-timeout": "S", "--format": "json"},
    "report": {"--format": "json"},
    "": {},
}

#: Verbs whose arguments are things that the app has already.
_TAKING = ("remove", "drain", "retire", "show")


def completion(router: Router, shell: str) -> None:
    """The script that completes router's commands in a shell; each TAB asks `router complete`.

    For bash put the line of the example into ~/.bashrc; for zsh the same with zsh into ~/.zshrc, behind compinit; for fish:

        router completion fish >~/.config/fish/completions/router.fish

    Example: eval "$(router completion bash)"
    """
    if shell not in SHELLS:
        raise UsageProblem(f"there is no completion for '{shell}'{nearest(shell, SHELLS)}", hint=f"there are: {' '.join(SHELLS)}")
    router.out.text((Path(__file__).parent / f"router.{shell}").read_text())


def complete(router: Router, *words: str) -> None:
    """What the last of WORDS can become, one candidate a line; one that ends in a colon goes on.

    Example: router complete -- domains:add bl
    """
    try:
        found = _candidates(router, words or ("",))
    except (RouterError, OSError):  # the person is in the middle of typing: what is wrong is said when the line is run
        return
    router.out.listing(sorted(set(found)))


def _candidates(router: Router, words: Sequence[str]) -> list[str]:
    *before, word = words
    commands = router.plugins.commands()
    if not before:
        return _names(visible(commands), word)
    command = find(before[0], commands)
    options = _options(command)
    option, equals, value = word.partition("=")
    if equals and options.get(option):  # --format=json
        return [f"{option}={each}" for each in _starting(_of_place(router, command, options[option], (), value), value)]
    if len(before) > 1 and options.get(before[-1]):
        return _starting(_of_place(router, command, options[before[-1]], (), word), word)
    if word.startswith("-") and "--" not in before:
        keys = _keys(router, command)
        return _starting([*options, *([] if any(each in keys for each in before) else keys), "--help"], word)
    arguments = [each for n, each in enumerate(before[1:], 1) if not each.startswith("-") and not options.get(before[n - 1])]
    place = _place(command, len(arguments), is_global="--global" in before)
    return _starting(_of_place(router, command, place, arguments, word), word)


def _names(commands: Mapping[str, Command], word: str) -> list[str]:
    """Commands, segment by segment: `apps:`, then `apps:domains:`, then `apps:domains:add`."""
    found = []
    for name in commands:
        for spelling in filter(None, (name, alias(name))):
            if spelling.startswith(word):
                head, colon, _ = spelling[len(word) :].partition(":")
                found.append(word + head + colon)
    return found


def _options(command: Command) -> dict[str, str]:
    """Option -> what its value looks like; empty: it takes none."""
    options = {}
    for part in words_of(command.usage):
        for choice in part.strip("[]").split(" | "):
            words = choice.split()
            for option in (each for each in words[0].split("|") if each.startswith("-") and each not in ("--", "--KEY")) if words else ():
                options[option] = words[1] if len(words) > 1 else ""
    return options | COMMON[command.kind]


def _keys(router: Router, command: Command) -> list[str]:
    """`--KEY` of each value that a report prints alone; one of them at a time is asked for."""
    properties = list(_properties(router, command)) if any("PROPERTY" in key for key in command.keys) else []
    found = [key.replace("PROPERTY", each) for key in command.keys for each in (properties if "PROPERTY" in key else [""])]
    return [f"--{key.replace('_', '-')}" for key in found]


def _place(command: Command, number: int, *, is_global: bool) -> str:
    """What stands at an argument's place in the usage, as it is written there: `APP`, `DOMAIN...`."""
    places = [place for place in _places(command.usage) if not (is_global and place == "APP")]
    if not places:
        return ""
    return places[min(number, len(places) - 1)] if places[-1].endswith("...") or number < len(places) else ""


def _places(usage: str) -> list[str]:
    places = []
    for part in words_of(usage.replace(" | ", "|")):
        if part.startswith("[") and part.endswith("]"):  # [N [M]]: what may be left out has its place too
            places += _places(part[1:-1]) if not part.startswith("[-") else []
        else:
            choices = [each for each in part.split("|") if not each.startswith("-")]
            places += ["|".join(choices)] if choices else []
    return places


def _of_place(router: Router, command: Command, place: str, arguments: Sequence[str], word: str) -> Iterable[str]:
    """What can stand there, apart from what stands on the line already."""
    is_list = place.endswith("...")
    name = place.removesuffix("...")
    known: Mapping[str, Callable[[], Iterable[str]]] = {
        "APP": router.store.names,
        "OLD": router.store.names,
        "N": lambda: map(str, router.generations.numbers()),
        "M": lambda: map(str, router.generations.numbers()),
        "PLUGIN": router.plugins.names,
        "HOOK": _hooks,
        "KEY": lambda: _properties(router, command),
        "DOMAIN": lambda: _own(router, command, arguments, "DOMAINS", 0),
        "ADDRESS": lambda: _own(router, command, arguments, "UPSTREAMS", 1),
        "[PROCESS=]ADDRESS": lambda: _own(router, command, arguments, "UPSTREAMS", 1),
        "NAME": lambda: _named(router, command, arguments),
        "SCHEME[:PORT[:PROCESS]]": lambda: ("http",),
        "FILE": lambda: _files(word),
        "FILE|-": lambda: _files(word),
        "NOUN": lambda: (),
        "NOUN|COMMAND": lambda: _helped(router),
    }
    # not a kind of thing: the words themselves, bash|zsh|fish
    found = known[name]() if name in known else [word for word in name.split("|") if word.islower()]
    return (each for each in found if not (is_list and each in arguments))


def _own(router: Router, command: Command, arguments: Sequence[str], file: str, column: int) -> Iterable[str]:
    """What the app's DOMAINS or UPSTREAMS has; nothing where the verb wants new ones."""
    from nginx_router.files import read_text

    verb = command.name.rpartition(":")[2]
    if verb.removesuffix("-global") not in _TAKING:
        return
    path = router.paths.global_domains if verb.endswith("-global") else router.paths.app(arguments[0]) / file if arguments else None
    for line in (read_text(path) or "").splitlines() if path else ():
        words = line.partition("#")[0].split()
        if words:
            # [process] ADDRESS: an address has a colon, a process has none
            yield words[0] if column == 0 or ":" in words[0] else words[min(column, len(words) - 1)]


def _files(word: str) -> Iterable[str]:
    """Files, and directories with a / that goes on; a name that a shell would have to quote is left to the person."""
    import shlex

    head = word[: word.rfind("/") + 1]
    for path in Path(head or ".").iterdir():
        if not path.name.startswith(".") and shlex.quote(path.name) == path.name:
            yield f"{head}{path.name}/" if path.is_dir() else f"{head}{path.name}"


def _named(router: Router, command: Command, arguments: Sequence[str]) -> Iterable[str]:
    """A plugin, or a snippet of the app."""
    noun, _, verb = command.name.rpartition(":")
    if noun == "plugins" and verb not in ("new", "install"):
        return router.plugins.names()
    if noun == "apps:snippets" and arguments:
        return (path.name.removesuffix(".conf") for path in (router.paths.app(arguments[0]) / "nginx.conf.d").glob("*.conf"))
    return ()


def _properties(router: Router, command: Command) -> Iterable[str]:
    """The properties of the command's noun; those of another plugin are the keys that it declares."""
    from nginx_router.properties import PROPERTIES

    table = {"apps:nginx": "nginx", "proxy": "proxy"}.get(command.name.rpartition(":")[0])
    if table:
        return PROPERTIES[table]
    tables = router.tables()
    return tables.get(command.plugin, ()) if isinstance(tables, Mapping) else ()


def _hooks() -> Iterable[str]:
    from nginx_router.hookspecs import HOOKS

    return HOOKS


def _helped(router: Router) -> Iterable[str]:
    commands = visible(router.plugins.commands())
    return (spelling for name in (*nouns(commands), *commands) for spelling in (name, alias(name)) if spelling)


def _starting(values: Iterable[str], word: str) -> list[str]:
    return [value for value in values if value.startswith(word)]
