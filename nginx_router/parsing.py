"""What stands on a command line: the parameters that a command declares, and the options that its kind adds.

Commands declare their parameters with typer.  typer's own parser brings pydantic along, which takes longer than most
commands do (0.1 s, measured with 0.29); so plain parameters (texts, numbers, flags, lists of texts) are read here to the
same effect, and typer parses for commands that use more of it.  A test holds the two against each other.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import helptext
from .commands import usage
from .errors import UsageProblem, nearest
from .names import shown

if TYPE_CHECKING:
    import inspect

    from .discovery import Command

#: Seconds that a change waits for the host lock.
LOCK_TIMEOUT = 60.0

_HELP = ("-h", "--help")
#: In the usage of a command whose `-` is a file, and no lines of arguments.
_RAW = "FILE|-"
#: What of typer is understood here, besides the declarations; `help` and `metavar` change no value
_PLAIN = ("default", "param_decls", "help", "metavar", "show_default", "min", "max", "rich_help_panel", "hidden")
_TYPED = {str: "a text", int: "a whole number", float: "a number"}


@dataclass(frozen=True)
class Call:
    """One command line, parsed."""

    values: Mapping[str, Any] = field(default_factory=dict)  # of the command's own parameters
    rest: Sequence[str] = ()  # of its `*name`
    help: str | None = None  # the text, where it was asked for
    dry_run: bool = False
    lock_timeout: float = LOCK_TIMEOUT
    is_json: bool = False
    key: str | None = None  # the --KEY of a report


@dataclass(frozen=True)
class Parameter:
    """A plain parameter of a command."""

    name: str
    type: type
    options: tuple[str, ...] = ()  # none: an argument
    is_list: bool = False
    is_rest: bool = False  # a `*name`, which typer does not know
    is_required: bool = False
    default: Any = None
    least: float | None = None
    metavar: str = ""
    help: str = ""

    @property
    def label(self) -> str:
        """What a person calls it."""
        return self.options[0] if self.options else self.metavar or self.name.upper()

    @property
    def is_flag(self) -> bool:
        """Whether it is an option without a value."""
        return self.type is bool


def parse(command: Command, function: Callable[..., Any], args: Sequence[str], stdin: Iterable[str] | None = None) -> Call:
    """What `args` mean to `function`, whose parameters behind the first are the command's.

    `-` stands for the lines of `stdin`.

    Raises:
        UsageProblem: they mean nothing; what is wrong, and the usage.
    """
    reader = _reader(command, function)
    if any(arg in _HELP for arg in _before_dashes(args)):
        return Call(help=helptext.page(_explained(command, function, reader)))
    words, key = _take_key(command, args, reader.options)
    try:
        # a command that reads FILE|- takes stdin as it is
        values = reader.read(words if _RAW in command.usage else _with_stdin(words, stdin))
    except _Wrong as why:
        hint = f"usage: {usage(command)}" + ("" if command.usage else ", without arguments")
        raise UsageProblem(f"{command.name}: {why}", hint=hint) from None
    form, dry_run, seconds = values.pop("format_", None), values.pop("dry_run_", False), values.pop("lock_timeout_", LOCK_TIMEOUT)
    if form not in (None, "json"):
        raise UsageProblem(f"there is no format {shown(form)}", hint="--format json is the one there is")
    rest = tuple(values.pop(reader.rest, None) or ())
    return Call(values, rest, None, dry_run, seconds, form == "json", key)


def explain(command: Command, function: Callable[..., Any]) -> helptext.Explained:
    """What there is to say of a command."""
    return _explained(command, function, _reader(command, function))


class _Wrong(Exception):
    """What is wrong with the arguments."""


class _Reader:
    """Reads the arguments of one command."""

    options: frozenset[str]
    rows: list[tuple[str, str]]  # left and right in the help
    rest = ""  # the parameter that is a `*name`

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        """The values by the names of the parameters."""
        raise NotImplementedError


class _Plain(_Reader):
    """Reads plain parameters."""

    def __init__(self, parameters: Sequence[Parameter]) -> None:
        self._parameters = parameters
        self._by_option = {option: p for p in parameters for option in p.options}
        self.options = frozenset(self._by_option)
        self.rows = [(_left(p.options, p.metavar) if p.options else p.label, p.help) for p in parameters]
        self.rest = next((p.name for p in parameters if p.is_rest), "")

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        given, operands = self._sort(args)
        values: dict[str, Any] = {}
        for p in self._parameters:
            if p.options:
                values[p.name] = given.get(p.name, p.default)
            elif p.is_list:
                values[p.name], operands = [_value(p, word) for word in operands] or p.default, []
            else:
                values[p.name] = _value(p, operands.pop(0)) if operands else p.default
            if p.is_required and values[p.name] is None:
                raise _Wrong(f"missing {'option' if p.options else 'argument'} {p.label}")
        if operands:
            raise _Wrong(f"unexpected argument {shown(operands[0])}")
        return values

    def _sort(self, args: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
        given: dict[str, Any] = {}
        operands: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            if word == "--":
                return given, operands + rest
            if not word.startswith("-") or word == "-" or word[1].isdigit():  # -1 is a number, and its rule is what is to be said
                operands.append(word)
                continue
            option, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
            p = self._by_option.get(option)
            if p is None:
                raise _Wrong(f"there is no option {shown(option)}{nearest(option, self.options)}")
            if p.is_flag:
                if equals:
                    raise _Wrong(f"{option} takes no value")
                given[p.name] = True
            else:
                if not equals and not rest:
                    raise _Wrong(f"{option} needs a value")
                found = _value(p, value if equals else rest.pop(0))
                given[p.name] = [*given.get(p.name, ()), found] if p.is_list else found
        return given, operands


class _Typer(_Reader):
    """Lets typer read: for commands that use more of it."""

    def __init__(self, parameters: Sequence[inspect.Parameter], common: Sequence[Parameter]) -> None:
        import inspect
        from typing import Annotated

        import typer

        def capture(**values: Any) -> dict[str, Any]:
            return values

        named = inspect.Parameter.KEYWORD_ONLY
        every = [p.replace(kind=named) for p in parameters]
        for each in common:
            option = typer.Option(*each.options, metavar=each.metavar or None, min=each.least, help=each.help)
            every.append(inspect.Parameter(each.name, named, default=each.default, annotation=Annotated[each.type, option]))
        capture.__signature__ = inspect.Signature(every)  # type: ignore[attr-defined]  # what typer, and inspect, look for
        capture.__annotations__ = {p.name: p.annotation for p in every}
        app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)
        app.command(add_help_option=False)(capture)
        self._command: Any = typer.main.get_command(app)
        found: list[Any] = self._command.params
        self.options = frozenset(option for p in found for option in (*p.opts, *p.secondary_opts) if option.startswith("-"))
        self.rows = [
            (_left(each.opts, each.metavar or "") if each.opts[0].startswith("-") else each.metavar or each.name.upper(), each.help or "")
            for each in found
        ]

    def read(self, args: Sequence[str]) -> dict[str, Any]:
        try:
            return dict(self._command.main(list(args), prog_name="router", standalone_mode=False))
        except Exception as why:
            # a usage error is typer's or, in releases that do not bring their own copy, click's: known by what it can do
            if not hasattr(why, "format_message"):
                raise
            words = str(why.format_message()).strip().rstrip(".").replace("\n", " ")
            raise _Wrong(f"{words[:1].lower()}{words[1:]}") from None


_FORMAT = Parameter("format_", str, ("--format",), metavar="json", help="Print JSON.")
_CHANGE = (
    Parameter("dry_run_", bool, ("--dry-run",), default=False, help="Say what would change, and how; change nothing."),
    Parameter(
        "lock_timeout_",
        float,
        ("--lock-timeout",),
        default=LOCK_TIMEOUT,
        least=0,
        metavar="S",
        help=f"Seconds to wait for another change ({LOCK_TIMEOUT:g}); then exit 5.",
    ),
)
#: The options that every command of a kind has.
COMMON: Mapping[str, tuple[Parameter, ...]] = {"change": (*_CHANGE, _FORMAT), "report": (_FORMAT,), "": ()}


def _reader(command: Command, function: Callable[..., Any]) -> _Reader:
    import inspect
    import typing
    from types import SimpleNamespace

    own = list(inspect.signature(function).parameters.values())[1:]
    # the annotation of the first is not looked at: the name may be imported for the type checker alone
    named = SimpleNamespace(__annotations__={p.name: p.annotation for p in own if p.annotation is not p.empty})
    hints = typing.get_type_hints(named, globalns=getattr(function, "__globals__", {}), include_extras=True)
    own = [p.replace(annotation=hints.get(p.name, str)) for p in own]
    plain = [known for p in own if (known := _plain(p)) is not None]
    if len(plain) == len(own) and _is_simple(plain):
        return _Plain([*plain, *COMMON[command.kind]])
    return _Typer(own, COMMON[command.kind])


def _plain(parameter: inspect.Parameter) -> Parameter | None:
    """The parameter, if it is one that is read here; None: typer must."""
    import typing

    base, *notes = typing.get_args(parameter.annotation) if typing.get_origin(parameter.annotation) is typing.Annotated else (None,)
    if parameter.kind is parameter.VAR_POSITIONAL:
        return Parameter(parameter.name, str, is_list=True, is_rest=True, default=())
    if parameter.annotation in _TYPED and parameter.default is parameter.empty:
        return Parameter(parameter.name, parameter.annotation, is_required=True)
    if len(notes) != 1 or type(notes[0]).__name__ not in ("ArgumentInfo", "OptionInfo"):
        return None
    declared = notes[0]
    is_option = type(declared).__name__ == "OptionInfo"
    # typing.Annotated: the first declaration of an option stands where its default would
    names = [declared.default, *(declared.param_decls or ())] if declared.default is not ... else list(declared.param_decls or ())
    untouched = vars(type(declared)(default=...))
    if any(value != untouched[key] for key, value in vars(declared).items() if key not in _PLAIN):
        return None
    inner = [each for each in typing.get_args(base) if each is not type(None)] if type(None) in typing.get_args(base) else [base]
    is_list = len(inner) == 1 and typing.get_origin(inner[0]) is list
    kind = (typing.get_args(inner[0]) or (None,))[0] if is_list else inner[0]
    if len(inner) != 1 or kind not in (*_TYPED, bool) or declared.max is not None:
        return None
    if is_option and (not names or not all(str(name).startswith("-") and "/" not in str(name) for name in names)):
        return None
    if (kind is bool and (is_list or not is_option)) or (names and not is_option):
        return None
    is_required = parameter.default is parameter.empty
    return Parameter(
        name=parameter.name,
        type=kind,
        options=tuple(str(name) for name in names),
        is_list=is_list,
        is_required=is_required,
        default=None if is_required else parameter.default,
        least=declared.min,
        metavar=declared.metavar or "",
        help=declared.help or "",
    )


def _left(options: Sequence[str], metavar: str) -> str:
    """How an option is explained: `-f, --follow`, `--drain S`."""
    return f"{', '.join(sorted(options, key=len))} {metavar}".rstrip()


def _is_simple(parameters: Sequence[Parameter]) -> bool:
    arguments = [p for p in parameters if not p.options]
    optional = [p.is_required for p in arguments]
    return not any(p.is_list for p in arguments[:-1]) and optional == sorted(optional, reverse=True)


def _value(parameter: Parameter, word: str) -> Any:
    try:
        value = parameter.type(word)
    except ValueError:
        raise _Wrong(f"{parameter.label} {shown(word)} is not {_TYPED[parameter.type]}") from None
    if parameter.least is not None and not value >= parameter.least:
        raise _Wrong(f"{parameter.label} {shown(word)} is less than {parameter.least:g}")
    return value


def _explained(command: Command, function: Callable[..., Any], reader: _Reader) -> helptext.Explained:
    import inspect

    count = len(reader.rows) - len(COMMON[command.kind])
    keys = f"Print one value; KEY is {' '.join(command.keys)}." if command.keys else "Print one value: any key of the JSON form."
    common = [*reader.rows[count:], *([("--KEY", keys)] if command.kind == "report" else [])]
    return helptext.explained(command, inspect.getdoc(function) or "", reader.rows[:count], [*common, (", ".join(_HELP), "Print this.")])


def _before_dashes(args: Sequence[str]) -> Sequence[str]:
    return args[: args.index("--")] if "--" in args else args


def _take_key(command: Command, args: Sequence[str], options: frozenset[str]) -> tuple[list[str], str | None]:
    """`args` without the one `--KEY` of a report, and that key."""
    if command.kind != "report":
        return list(args), None
    plain = len(_before_dashes(args))
    keys = [arg for arg in args[:plain] if arg.startswith("--") and arg.partition("=")[0] not in options]
    if len(keys) > 1:
        raise UsageProblem(f"{keys[0]} and {keys[1]}: one key at a time", hint="--format json gives them all")
    if not keys:
        return list(args), None
    meant = nearest(keys[0], ("--format", *(f"--{key.replace('_', '-')}" for key in command.keys)))
    if "=" in keys[0] or (meant and meant == nearest(keys[0], ("--format",))):
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
