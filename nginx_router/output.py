"""The only module that prints: stdout is data, stderr is talk, JSON where it was asked for.

Not on a terminal there is no colour and no layout that a script would have to undo: one line stays one line, byte for byte.
On one, long lines go on below themselves, broken between words, and rich makes the keys of a report stand out (it is imported
then, and only then: it costs as much as everything else together).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, TextIO

from .errors import RouterError, UsageProblem, nearest
from .names import readable, shown

if TYPE_CHECKING:
    from .controller import Outcome

#: What a shell sees of a process whose reader went away (128 + SIGPIPE).
READER_GONE = 141
_NUMBER = re.compile(r"[-+]?[0-9.]+%?")
#: Names that an error may list.
_FEW = 24
#: Of a terminal that does not say how wide it is.
_COLUMNS = 80
#: What is pasted into a shell and would fall apart if it were broken into lines.
_PASTED = re.compile(r"\s*(router|sudo|kill|ln|chmod|chown|systemctl) \S")


class Output:
    """Where a command prints, and in which form it was asked to."""

    def __init__(self, stdout: TextIO | None = None, stderr: TextIO | None = None) -> None:
        self._stdout = sys.stdout if stdout is None else stdout
        self._stderr = sys.stderr if stderr is None else stderr
        #: Set by the common option `--format json`.
        self.is_json = False
        #: Set by the common option `--KEY` of reports.
        self.key: str | None = None
        #: Set by the common option `--dry-run` of changes.
        self.is_dry_run = False
        with contextlib.suppress(AttributeError):
            # file names and hand-edited files may hold any byte: they leave as they came
            self._stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # a plain TextIO in tests

    @property
    def is_terminal(self) -> bool:
        """Whether a person looks at the answer, and not a script."""
        return self._stdout.isatty()

    @property
    def is_watched(self) -> bool:
        """Whether a person looks at the talk."""
        return self._stderr.isatty()

    def data(self, line: object = "", *, hang: int | None = None) -> None:
        """One line of the answer, to stdout; with `hang`, what does not fit on a terminal goes on below, so many columns in."""
        lines = [str(line)] if hang is None else _folded(str(line), _columns(self._stdout), hang)
        self._write("".join(f"{each}\n" for each in lines))

    def text(self, text: str) -> None:
        """Text of several lines as it is, to stdout."""
        if text:
            self._write(text if text.endswith("\n") else text + "\n")

    def binary(self, data: bytes) -> None:
        """Bytes that are no text, to stdout; nothing else is printed there."""
        with self._writing():
            self._stdout.buffer.write(data)

    def json(self, value: object) -> None:
        """The answer as JSON, to stdout."""
        self._write(json.dumps(value, indent=2, ensure_ascii=False) + "\n")

    def say(self, line: str) -> None:
        """One line for the person, to stderr; a reader who went away does not stop a change that is under way."""
        self._talk(_folded(_visible(line), _columns(self._stderr)))

    def error(self, error: RouterError) -> None:
        """One line `router: what`, and one with what to do next."""
        prefix = "router:"
        lines = _folded(f"{prefix} {_visible(_one_line(error.message))}", _columns(self._stderr), len(prefix) + 1)
        if _takes_colour(self._stderr):
            lines[0] = lines[0].replace(prefix, f"\x1b[1;31m{prefix}\x1b[0m", 1)
        self._talk(lines)
        if error.hint:
            self.say(f"  {_one_line(error.hint)}")

    def listing(self, values: Iterable[object]) -> None:
        """Names one a line without a header, or a JSON array.

        Raises:
            UsageProblem: the value of a key was asked for, and names have none.
        """
        if self.key is not None:
            raise UsageProblem(f"no key {shown(f'--{self.key}')} here: these are names", hint="--format json gives them as an array")
        found = list(values)
        if self.is_json:
            self.json(found)
            return
        for value in found:
            self.data(value)

    def report(self, keys: Iterable[str], rows: Iterable[Mapping[str, Any]], *, single: bool) -> None:
        """What is known of one thing (`single`) or of many, as text, as JSON, or the value of one key.

        `rows` is not looked at before the wanted key is known to be one of `keys`.

        Raises:
            UsageProblem: the report has no such key; the nearest is named.
        """
        known = list(keys)
        if self.key not in (None, *known) and str(self.key).replace("-", "_") in known:
            self.key = str(self.key).replace("-", "_")  # options have dashes everywhere else
        if self.key is not None and self.key not in known:
            options = [f"--{key.replace('_', '-')}" for key in known]
            wanted = f"--{self.key}"
            raise UsageProblem(f"no key {shown(wanted)} in this report{nearest(wanted, options)}", hint=_listed(options))
        found: list[Any] = [dict(row) for row in rows]
        if self.key is not None:
            found = [row[self.key] for row in found]
        if self.is_json:
            self.json(found[0] if single else found)
        elif self.key is not None:
            for value in found:
                self._value(value)
        else:
            for number, row in enumerate(found):
                if number:
                    self.data()
                self._row(row)

    def facts(self, rows: Iterable[tuple[str, str]]) -> None:
        """A short word and what there is to say of it, one a line; the word of several lines stands once.

        On a terminal a text that does not fit goes on below itself.
        """
        found = list(rows)
        width = max((len(word) for word, _ in found), default=0)
        columns = _columns(self._stdout)
        before = None
        for word, text in found:
            label = f"{'' if word == before else word:<{width}}"
            first, *more = _folded(text, max(columns - width - 2, 1) if columns else 0, 0)
            self.data(f"{_bold(label) if word != before and _takes_colour(self._stdout) else label}  {first}".rstrip())
            for line in more:
                self.data(f"{'':<{width}}  {line}")
            before = word

    def table(self, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Aligned columns, numbers to the right; on a terminal a line that does not fit is cut."""
        width = _columns(self._stdout)
        for number, line in enumerate(_aligned(columns, rows)):
            line = f"{line[: width - 1]}…" if 0 < width < len(line) else line
            self.data(_bold(line) if number == 0 and _takes_colour(self._stdout) else line)

    def live(self, draw: Callable[[], tuple[str, Sequence[str], Sequence[Sequence[object]]]], interval: float) -> bool:
        """Show a headline and a table that change every `interval` seconds, until q or Ctrl-C; False: this is no terminal.

        It takes one screen and leaves it as it was; what does not fit is left out.
        """
        if not self._stdout.isatty() or not sys.stdin.isatty() or os.environ.get("TERM", "dumb") == "dumb":
            return False
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(file=self._stdout, highlight=False)

        def screen() -> Text:
            head, columns, rows = draw()
            lines = [head, "", *_aligned(columns, rows)][: console.height - 1]
            shown_lines = [Text(line[: console.width], style="bold" if number in (0, 2) else "") for number, line in enumerate(lines)]
            return Text("\n").join([*shown_lines, Text("q ends".rjust(console.width - 1), style="dim")])

        with (
            contextlib.suppress(KeyboardInterrupt),
            _single_keys(sys.stdin) as pressed,
            Live(screen(), console=console, screen=True, auto_refresh=False) as view,
        ):
            while not pressed(interval):
                view.update(screen(), refresh=True)
        return True

    @contextlib.contextmanager
    def progress(self, what: str, total: int) -> Iterator[Callable[[int], None]]:
        """Within it a bar on stderr shows how many of `total` are done; where nobody looks there is none."""
        if not self.is_watched or os.environ.get("TERM", "dumb") == "dumb":
            yield lambda done: None
            return
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

        colour: Literal["auto"] | None = "auto" if _takes_colour(self._stderr) else None
        console = Console(file=self._stderr, highlight=False, color_system=colour)
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False) as bar:
            task = bar.add_task(what, total=total)
            yield lambda done: bar.update(task, completed=done)

    def changed(self, outcomes: Sequence[Outcome], *, single: bool = True, about: Mapping[str, Any] | None = None) -> None:
        """How a change went: one line for each thing that was changed, on stderr, or JSON.

        Events that were left out are named with their errors, and the process ends with the exit code of the first, by name.
        """
        if self.is_json:
            answers = [_answer(outcome) for outcome in outcomes]
            if about is not None:
                self.json({**about, "apps": answers})  # the apps are what followed from something else
            else:
                self.json(answers[0] if single and len(answers) == 1 else answers)
        elif not self.is_dry_run:  # a rehearsal has said it all
            self._say_changed(outcomes)
        failed = sorted((o for o in outcomes if o.error), key=lambda o: o.app or "")
        # what keeps every change from being made is said once
        for error in {(o.error.message, o.error.hint): o.error for o in failed if o.error}.values():
            self.error(error)
        if failed:
            assert failed[0].error is not None
            raise SystemExit(failed[0].error.exit_code)

    def confirm(self, question: str) -> bool | None:
        """Whether the person says yes; None where there is nobody to ask."""
        if not sys.stdin.isatty() or not self._stderr.isatty():
            return None
        with contextlib.suppress(OSError):
            self._stderr.write(f"{question} [y/N] ")
            self._stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def flush(self) -> None:
        """Make sure that the answer has left.

        Raises:
            OSError: it did not, for instance because the disk is full.
        """
        self._write("")

    def _say_changed(self, outcomes: Sequence[Outcome]) -> None:
        changes = [o for o in outcomes if not o.error and o.kind != "nothing"]
        for outcome in changes:
            if outcome.serving is not None:  # a stopped proxy was named already
                self.say(f"{_subject(outcome)}: {outcome.kind}, generation {outcome.generation}, {cost([outcome])}")
        if not changes and not any(o.error or o.notes or o.serving is None for o in outcomes):
            # an app without domains and endpoints was saved all the same
            self.say(f"{_subject(outcomes[0])}: saved, nothing to reload" if len(outcomes) == 1 else "nothing to reload")

    def _talk(self, lines: Sequence[str]) -> None:
        with contextlib.suppress(OSError):
            self._stderr.write("".join(f"{line}\n" for line in lines))
            self._stderr.flush()

    def _write(self, text: str) -> None:
        with self._writing():
            self._stdout.write(text)
            if not text or self._stdout.isatty():
                self._stdout.flush()

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            self._forget_stdout()
            raise SystemExit(READER_GONE) from None
        except OSError as why:
            self._forget_stdout()
            raise OSError(why.errno, why.strerror, "standard output") from None

    def _forget_stdout(self) -> None:
        # else the interpreter tries once more on its way out and spoils the exit code
        with contextlib.suppress(OSError, ValueError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stdout.fileno())
            os.close(nowhere)

    def _value(self, value: object) -> None:
        for line in value if isinstance(value, list | tuple) else [value]:
            self.data(json.dumps(line, ensure_ascii=False) if isinstance(line, dict | list) else _word(line))

    def _row(self, row: Mapping[str, Any]) -> None:
        width = max((len(key) for key in row), default=0) + 1
        lines = [(key, text) for key, value in row.items() for text in [_lines(value)]]
        if self._stdout.isatty():
            self._pretty(lines)
            return
        for key, texts in lines:
            self.data(f"{key + ':':<{width}} {texts[0]}".rstrip())
            for text in texts[1:]:
                self.data(f"{'':<{width}} {text}")

    def _pretty(self, lines: Sequence[tuple[str, Sequence[str]]]) -> None:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        grid = Table.grid(padding=(0, 2))
        grid.add_column(no_wrap=True)
        grid.add_column(overflow="fold")  # a value goes on below itself, and all of it can be copied
        for key, texts in lines:
            grid.add_row(Text(key, style="bold cyan"), Text("\n".join(texts)))
        colour: Literal["auto"] | None = "auto" if _takes_colour(self._stdout) else None
        Console(file=self._stdout, highlight=False, color_system=colour).print(grid)


@contextlib.contextmanager
def _single_keys(stdin: TextIO) -> Iterator[Callable[[float], bool]]:
    """Within it keys come as they are typed; the function waits so many seconds for `q`."""
    import select
    import termios
    import time
    import tty

    def pressed(seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([descriptor], [], [], left)[0] and os.read(descriptor, 64)[:1] in (b"q", b"Q", b"\x04", b""):
                return True
        return False

    descriptor = stdin.fileno()
    before = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield pressed
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _aligned(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """A header and rows as lines; a column of numbers is set to the right, the last column is not filled up."""
    cells = [[_word(cell) for cell in row] for row in rows]
    lines = [[""] * (len(cells) + 1) for _ in columns]
    for number, name in enumerate(columns):
        own = [row[number] for row in cells]
        width = max(map(len, [name, *own]))
        is_number = bool(own) and all(not text or _NUMBER.fullmatch(text) for text in own)
        lines[number] = [text.rjust(width) if is_number else text.ljust(width) for text in [name, *own]]
    return ["  ".join(parts).rstrip() for parts in zip(*lines, strict=True)]


def _bold(text: str) -> str:
    return f"\x1b[1m{text}\x1b[0m"


def _listed(options: Sequence[str]) -> str:
    """What tells which there are: all of them, unless these are too many for an error."""
    return f"there are: {' '.join(options)}" if len(options) <= _FEW else "without it the report shows all"


def _subject(outcome: Outcome) -> str:
    """What was changed: a renamed or cloned app goes by its new name."""
    return outcome.event.args.get("new") or outcome.app or "the host"


def cost(outcomes: Sequence[Outcome]) -> str:
    """How often nginx was reloaded for these changes, and what that did to the connections of clients."""
    reloads, closed, kept, websockets = (
        sum(getattr(o, key) or 0 for o in outcomes) for key in ("reloads", "closed_connections", "kept_connections", "websockets")
    )
    if not reloads:
        return "no reload"
    number = closed + kept
    many = "a reload" if reloads == 1 else f"{reloads} reloads"
    touched = f"{many} touched {number} connection{'' if number == 1 else 's'}"
    among = f", {websockets} of them websockets" if websockets else ""
    return f"{touched} ({closed} idle ones closed, {kept} go on{among})" if kept else touched


def _answer(outcome: Outcome) -> dict[str, Any]:
    keys = ("generation", "serving", "kind", "reloads", "closed_connections", "kept_connections", "websockets", "seconds")
    answer = (
        {"app": outcome.event.args.get("new") or outcome.app}
        | {key: getattr(outcome, key) for key in keys}
        | {"notes": list(outcome.notes)}
    )
    return answer | ({"problem": outcome.error.message, "exit": outcome.error.exit_code} if outcome.error else {})


def _columns(stream: TextIO) -> int:
    """How many columns a terminal has; 0: it is none, and nothing is laid out for it."""
    if not stream.isatty():
        return 0
    said = os.environ.get("COLUMNS", "")
    with contextlib.suppress(OSError):  # of this stream: the other one may go into a pipe
        return int(said) if said.isdecimal() and int(said) else os.get_terminal_size(stream.fileno()).columns or _COLUMNS
    return _COLUMNS


def _folded(line: str, columns: int, hang: int | None = None) -> list[str]:
    """A line as a terminal of so many columns shows it without breaking a word.

    All but the first begin `hang` columns in; without, two deeper than the first.  A word that is longer stays whole, and so
    does a command, so that both can be copied.
    """
    if not columns or len(line) <= columns or _PASTED.match(line):
        return [line]
    import textwrap

    deeper = len(line) - len(line.lstrip(" ")) + 2
    fold = textwrap.TextWrapper(
        columns,
        subsequent_indent=" " * (deeper if hang is None else hang),
        expand_tabs=False,
        replace_whitespace=False,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [each for part in line.split("\n") for each in fold.wrap(part) or [""]]


def _takes_colour(stream: TextIO) -> bool:
    return stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _one_line(text: str) -> str:
    return "; ".join(part.strip() for part in text.splitlines() if part.strip())


def _visible(line: str) -> str:
    """A line for a terminal: names and files may hold what would move its cursor or colour its words."""
    return line if line.isprintable() else "".join(c if c.isprintable() or c in "\n\t" else repr(c)[1:-1] for c in line)


def _word(value: object) -> str:
    """A single value for a shell: nothing for what is unset, true and false as JSON spells them."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    return str(value)


def _lines(value: object) -> list[str]:
    """A value for a person: each element of a list on its own line, a mapping as its words."""
    if isinstance(value, list | tuple):
        return [_phrase(element) for element in value] or [""]
    if isinstance(value, Mapping) and any(isinstance(v, Mapping | list | tuple) for v in value.values()):
        return [f"{key}: {text}" for key, inner in value.items() for text in _lines(inner)] or [""]
    return [_phrase(value)]


def _phrase(value: object) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={_word(inner)}" for key, inner in value.items() if inner not in (None, False))
    return readable(value) if isinstance(value, str) and "/" not in value else _word(value)
