"""The command table and what stands on a command line: names and aliases, common options, typed arguments.

The table is made of `plugin.toml` files alone.  typer, and the one plugin that has the command, are imported when the
command is known.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .errors import UsageProblem, nearest
from .names import shown

if TYPE_CHECKING:
    from .discovery import Command

#: Every `apps:X:VERB` answers to `X:VERB` too.
_PREFIX = "apps:"
_HELP = ("-h", "--help")
#: Seconds that a change waits for the host lock.
LOCK_TIMEOUT = 60.0


@dataclass(frozen=True)
class Call:
    """One command line, parsed."""

    values: Mapping[str, Any] = field(default_factory=dict)  # of the command's own parameters
    help: str | None = None  # the text, where it was asked for
    dry_run: bool = False
    lock_timeout: float = LOCK_TIMEOUT
    is_json: bool = False
    key: str | None = None  # the --KEY of a report


def alias(name: str) -> str | None:
    """The short name of a command: `domains:add` for `apps:domains:add`."""
    short = name.removeprefix(_PREFIX)
    return short if short != name and ":" in short else None


def find(word: str, commands: Mapping[str, Command]) -> Command:
    """The command that `word` names, by its own name or by its alias.

    Raises:
        UsageProblem: there is none; the nearest is named.
    """
    found = commands.get(word) or commands.get(_PREFIX + word if ":" in word else "")
    if found:
        return found
    verbs = [name.rpartition(":")[2] for name in commands if name.rpartition(":")[0] in (word, _PREFIX + word)]
    if verbs:
        raise UsageProblem(f"{word} needs a verb: {' '.join(f'{word}:{verb}' for verb in verbs)}", hint=f"router help {word}")
    raise UsageProblem(f"there is no command {shown(word)}; the nearest is {_nearest(word, commands)}", hint="router help")


def of_noun(noun: str, commands: Mapping[str, Command]) -> list[Command]:
    """The commands of a noun (`apps`, `domains`, `apps:domains`), in the order of the table."""
    return [c for name, c in commands.items() if name.rpartition(":")[0] in (noun, _PREFIX + noun) or name == noun]


def nouns(commands: Iterable[str]) -> list[str]:
    """Every noun; commands without one (`status`) are nouns of their own."""
    return sorted({name.rpartition(":")[0] or name for name in commands})


def parse(command: Command, function: Callable[..., Any], args: Sequence[str], stdin: Iterable[str] | None = None) -> Call:
    """What `args` mean to `function`, whose parameters behind the first are the command's.

    `-` stands for the lines of `stdin`.

    Raises:
        UsageProblem: they mean nothing; what is wrong, and the usage.
    """
    import typer

    app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
    app.command(add_help_option=False)(_signature(command, function))
    parser: Any = typer.main.get_command(app)
    if any(arg in _HELP for arg in _before_dashes(args)):
        return Call(help=_help_text(command, function, parser.params))
    options = {*_HELP, *(option for p in parser.params for option in (*p.opts, *p.secondary_opts))}
    words, key = _take_key(command, args, options)
    try:
        values = dict(parser.main(_with_stdin(words, stdin), prog_name=f"router {command.name}", standalone_mode=False))
    except Exception as why:
        # a usage error is typer's or, in releases that do not bring their own copy, click's: known by what it can do
        if not hasattr(why, "format_message"):
            raise
        raise _problem(why, command, options) from None
    form, dry_run, seconds = values.pop("format_", None), values.pop("dry_run_", False), values.pop("lock_timeout_", LOCK_TIMEOUT)
    if form not in (None, "json"):
        raise UsageProblem(f"there is no format {shown(form)}", hint="--format json is the one there is")
    return Call(values, None, dry_run, seconds, form == "json", key)


def usage(command: Command) -> str:
    """`router noun:verb ARGS`."""
    return f"router {command.name} {command.usage}".rstrip()


class _Signature(Protocol):
    def __call__(self, **values: Any) -> dict[str, Any]: ...


def _signature(command: Command, function: Callable[..., Any]) -> _Signature:
    """A function that gives back what it is called with, and has the parameters of the command and those of its kind."""
    import inspect
    import typing
    from types import SimpleNamespace

    import typer

    own = list(inspect.signature(function).parameters.values())[1:]
    # the annotation of the first is not looked at: the name may be imported for the type checker alone
    named = SimpleNamespace(__annotations__={p.name: p.annotation for p in own if p.annotation is not p.empty})
    hints = typing.get_type_hints(named, globalns=getattr(function, "__globals__", {}), include_extras=True)
    parameters = [p.replace(kind=p.KEYWORD_ONLY, annotation=hints.get(p.name, str)) for p in own]

    def add(name: str, annotation: Any, default: Any) -> None:
        parameters.append(inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=annotation, default=default))

    if command.kind == "change":
        add("dry_run_", typing.Annotated[bool, typer.Option("--dry-run", help="Say what would change, and how; change nothing.")], False)
        waits = typer.Option("--lock-timeout", metavar="S", min=0, help="Seconds to wait for another change; then exit 5.")
        add("lock_timeout_", typing.Annotated[float, waits], LOCK_TIMEOUT)
    if command.kind in ("change", "report"):
        add("format_", typing.Annotated[str | None, typer.Option("--format", metavar="json", help="Print JSON.")], None)

    def capture(**values: Any) -> dict[str, Any]:
        return values

    capture.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what typer, and inspect, look for
    capture.__annotations__ = {p.name: p.annotation for p in parameters}
    return capture


def _help_text(command: Command, function: Callable[..., Any], parameters: Iterable[Any]) -> str:
    import inspect

    short = alias(command.name)
    text = [f"usage: {usage(command)}", *([f"       router {short} {command.usage}".rstrip()] if short else []), ""]
    text += [inspect.getdoc(function) or command.help, ""]
    rows = [(f"{p.opts[0]} {p.metavar or ''}" if p.param_type_name == "option" else p.metavar or p.name, p.help or "") for p in parameters]
    if command.kind == "report":
        rows.append(("--KEY", "Print one value: any key of the JSON form."))
    rows.append((", ".join(_HELP), "Print this."))
    width = max(len(left) for left, _ in rows)
    return "\n".join([*text, *(f"  {left:<{width}}  {right}".rstrip() for left, right in rows)])


def _before_dashes(args: Sequence[str]) -> Sequence[str]:
    return args[: args.index("--")] if "--" in args else args


def _take_key(command: Command, args: Sequence[str], options: Iterable[str]) -> tuple[list[str], str | None]:
    """`args` without the one `--KEY` of a report, and that key."""
    if command.kind != "report":
        return list(args), None
    plain = len(_before_dashes(args))
    keys = [arg for arg in args[:plain] if arg.startswith("--") and arg.partition("=")[0] not in options]
    if len(keys) > 1:
        raise UsageProblem(f"{keys[0]} and {keys[1]}: one key at a time", hint="--format json gives them all")
    if not keys:
        return list(args), None
    if "=" in keys[0] or nearest(keys[0], ("--format",)):
        raise UsageProblem(f"{command.name} has no option {shown(keys[0])}{nearest(keys[0], options)}", hint=f"usage: {usage(command)}")
    return [arg for n, arg in enumerate(args) if n >= plain or arg != keys[0]], keys[0].removeprefix("--")


def _with_stdin(args: Sequence[str], stdin: Iterable[str] | None) -> list[str]:
    """`args` with `-` replaced by the lines of stdin: as they are, for an argument is refused and never repaired."""
    if "-" not in args:
        return list(args)
    if args.count("-") > 1:
        raise UsageProblem("- stands twice: stdin can be read once")
    lines = [line.removesuffix("\n") for line in (sys.stdin if stdin is None else stdin)]
    lines = [line for line in lines if line.strip()]
    place = args.index("-")
    dashed = next((line for line in lines if line.startswith("-")), None)
    if dashed is not None and "--" not in args[:place]:
        raise UsageProblem(f"{shown(dashed)} on stdin is not an argument", hint="options stand on the command line")
    return [*args[:place], *lines, *args[place + 1 :]]


def _problem(why: Exception, command: Command, options: Iterable[str]) -> UsageProblem:
    hint = f"usage: {usage(command)}" + ("" if command.usage else ", without arguments")
    unknown = getattr(why, "option_name", None)
    if unknown and type(why).__name__ == "NoSuchOption":
        return UsageProblem(f"{command.name} has no option {shown(unknown)}{nearest(unknown, options)}", hint=hint)
    words = str(why.format_message()).strip().rstrip(".").replace("\n", " ")  # type: ignore[attr-defined]  # asked for above
    return UsageProblem(f"{command.name}: {words[:1].lower()}{words[1:]}", hint=hint)


def _nearest(word: str, commands: Mapping[str, Command]) -> str:
    import difflib  # only on the way out of a failed command

    known = {spelling: spelling for name in commands for spelling in (name, alias(name)) if spelling}
    # `create` is meant for `apps:create`: the verb alone counts too, behind the whole
    for name in commands:
        known.setdefault(name.rpartition(":")[2], name)
    return known[difflib.get_close_matches(word, known, n=1, cutoff=0.0)[0]] if known else "help"
