"""The pages of docs/ that are made from the code, so that they cannot say anything else."""

from __future__ import annotations

import re
import sys
import tempfile
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path

import nginx_router
from nginx_router.commands import alias, nouns, of_noun, visible
from nginx_router.controller import Router
from nginx_router.discovery import Command
from nginx_router.errors import BY_EXIT_CODE
from nginx_router.helptext import OTHER, Explained, usage_lines
from nginx_router.hookspecs import markdown as hooks
from nginx_router.kinds import LOG_FORMATS, LOG_VARIABLES
from nginx_router.parsing import COMMON, explain
from nginx_router.properties import PROPERTIES, lookup, refused
from nginx_router.settings import Paths

DOCS = Path(__file__).resolve().parents[1] / "docs"

COMMANDS_HEAD = """\
# Commands

<!-- made from the code by script/docs -->

`router NOUN:VERB APP ARGUMENTS OPTIONS`. Every `apps:X:VERB` is also `X:VERB`: `domains:add` is `apps:domains:add`. `router help` shows
this list in the terminal, `router help NOUN` and `router help COMMAND` parts of it, and [completion](#completion) completes it.

stdout is data, stderr is talk. `-` among the arguments stands for the lines of stdin. Names and values are refused, never repaired. Doing
what is done already is quiet: exit 0, one line on stderr, no reload. What the exit codes mean: [exit-codes.md](exit-codes.md).

Every command that **changes** something takes

| option | |
|---|---|
{change}

and every command that **reports** takes

| option | |
|---|---|
{report}

"""

PROPERTIES_TABLES = {
    "proxy": ("Of the host", "`router proxy:set --global KEY [VALUE]`; `router proxy:report` shows them."),
    "nginx": (
        "Of nginx",
        "`router nginx:set APP KEY [VALUE]`, or `--global` for all apps; `router nginx:report` shows them. An app's value counts, else "
        "the global one, else the default.",
    ),
}


def main(argv: list[str]) -> int:
    """Write what is out of date, or (--check) name it."""
    stale = [path for path, text in pages().items() if not path.exists() or path.read_text() != text]
    if "--check" not in argv:
        for path, text in pages().items():
            path.write_text(text)
    for path in stale:
        print(f"docs/{path.name} {'is out of date: run script/docs' if '--check' in argv else 'is written'}")
    return 1 if stale and "--check" in argv else 0


def pages() -> Mapping[Path, str]:
    """Every page that is made, as it should be."""
    every = explained_commands()
    made = {DOCS / "commands.md": commands_page(every), DOCS / "router.1": man_page(every)}
    comparison = DOCS / "comparison.md"
    made[comparison] = re.sub(
        r"(<!-- properties:begin.*?-->\n).*(<!-- properties:end -->)",
        lambda found: found[1] + dokku_properties() + found[2],
        comparison.read_text(),
        flags=re.S,
    )
    parts = {
        "hooks.md": ("<!-- made from nginx_router/hookspecs.py by script/docs -->\n", hooks()),
        "exit-codes.md": ("<!-- made from nginx_router/errors.py by script/docs -->\n", exit_codes()),
        "properties.md": ("<!-- made from the table of properties by script/docs -->\n", properties_part()),
    }
    for name, (mark, text) in parts.items():
        written = (DOCS / name).read_text()
        made[DOCS / name] = written.partition(mark)[0] + mark + text
    return made


def explained_commands() -> dict[str, list[Explained]]:
    """Noun -> its commands; no plugin of this machine is among them."""
    with tempfile.TemporaryDirectory() as root:
        router = Router(Paths(Path(root)))
        commands = visible(router.plugins.commands())

        def explanation(command: Command) -> Explained:
            if not command.is_python:
                return Explained(command, command.help, (), (), ())
            return explain(command, router.plugins.function(command))

        found: dict[str, list[Explained]] = {}
        for noun in nouns(commands):
            own = [commands[noun]] if noun in commands else of_noun(noun, commands)
            found.setdefault(OTHER if noun in commands else noun, []).extend(map(explanation, own))
        found[OTHER] = found.pop(OTHER)
    return found


# -- docs/commands.md


def commands_page(every: Mapping[str, list[Explained]]) -> str:
    """docs/commands.md."""
    page = COMMANDS_HEAD.format(
        change=_rows((f"{p.options[0]} {p.metavar}".rstrip(), p.help) for p in COMMON["change"]),
        report=_rows([("--format json", "Print JSON."), ("--KEY", "Print one value: any key of the JSON form.")]),
    )
    for noun, found in every.items():
        page += f"## {noun}\n\n"
        for this in found:
            page += "\n".join(_command_section(this)) + "\n\n"
    return page.rstrip() + "\n"


def _command_section(this: Explained) -> Iterator[str]:
    name = this.command.name
    yield f"### {name}\n"
    yield "```\n" + "\n".join(usage_lines(this.command)) + "\n```\n"
    yield "\n\n".join(block if block.startswith(" ") else _escaped(block) for block in this.text.split("\n\n")) + "\n"
    short = f"Short: `{alias(name)}`." if alias(name) else ""
    kind = f"A {this.command.kind}." if this.command.kind else ""
    if short or kind:
        yield f"{short} {kind}".strip() + "\n"
    if this.rows:
        yield f"| | |\n|---|---|\n{_rows(this.rows)}\n"
    if this.command.keys:
        yield "Keys: " + " ".join(f"`--{key.replace('_', '-')}`" for key in this.command.keys) + "\n"
    if this.examples:
        yield "```console\n" + "\n".join(f"$ {example}" for example in this.examples) + "\n```"


def _rows(rows: object) -> str:
    return "\n".join(f"| `{left.replace('|', chr(92) + '|')}` | {_escaped(right)} |" for left, right in rows)  # type: ignore[attr-defined]


def _escaped(text: str) -> str:
    return re.sub(r"([*<|])", r"\\\1", text).replace("_", r"\_")


# -- docs/exit-codes.md


def exit_codes() -> str:
    """The table of docs/exit-codes.md."""
    rows = {0: "done, or nothing was to be done", **{code: error.meaning for code, error in sorted(BY_EXIT_CODE.items())}}
    text = "".join(f"| {code} | {_cell(meaning)} |\n" for code, meaning in rows.items())
    return f"| code | means |\n|---|---|\n{text}| 130, 143 | ended by INT or TERM before any change |\n"


# -- docs/properties.md


def properties_part() -> str:
    """The tables of docs/properties.md."""
    text = ""
    for table, (title, intro) in PROPERTIES_TABLES.items():
        text += f"## {title}\n\n{intro}\n\n| property | default | value | |\n|---|---|---|---|\n"
        for each in PROPERTIES[table].values():
            default = f"`{each.default}`" if each.default else ""
            directive = f" (`{each.directive}`)" if each.directive else ""
            alone = f"; the host's alone: {_cell(each.host)}" if each.host else ""
            text += f"| `{each.name}` | {_cell(default)} | {_cell(each.rule)} | {_cell(each.help)}{directive}{alone} |\n"
        text += "\n"
    names = ", ".join(f"`{name}`" for name in LOG_FORMATS)
    text += (
        f"## Log formats\n\n`access-log-format` is a name ({names}) or a text of these variables and of any signs but `'`, `\\` and `$`.\n"
    )
    text += "None of them gives a secret away that a request carries in a header or a cookie.\n\n"
    text += textwrap.fill(" ".join(f"`${name}`" for name in sorted(LOG_VARIABLES)), 138, break_on_hyphens=False) + "\n\n"
    text += "## Not offered\n\n| property | why |\n|---|---|\n"
    text += "".join(f"| `{name}` | {_cell(why)} |\n" for name, why in refused().items())
    return text.rstrip() + "\n"


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


# -- the properties in docs/comparison.md

#: What `nginx:set` of Dokku 0.38 takes.
DOKKU = """
access-log-format access-log-path error-log-path bind-address-ipv4 bind-address-ipv6 client-body-timeout client-header-timeout
client-max-body-size disable-custom-config hsts hsts-include-subdomains hsts-max-age hsts-preload keepalive-timeout lingering-timeout
nginx-conf-sigil-path nginx-service-command proxy-buffer-size proxy-buffering proxy-buffers proxy-busy-buffers-size
proxy-connect-timeout proxy-keepalive proxy-read-timeout proxy-send-timeout send-timeout underscore-in-headers x-forwarded-for-value
x-forwarded-port-value x-forwarded-proto-value x-forwarded-ssl
"""


def dokku_properties() -> str:
    """Each of them: whether it is here, and with which default; else why not."""
    text = "| Dokku's property | | router |\n|---|---|---|\n"
    for name in DOKKU.split():
        if why := refused().get(name):
            mark, what = "not yet" if why.endswith("yet") else "left out", why
        else:
            found = lookup("nginx", name)
            mark, what = "has", f"default `{found.default}`" if found.default else "default: none"
        text += f"| `{name}` | {mark} | {_cell(what)} |\n"
    tests = (
        "integration/test_properties::test_every_property_has_a_sample_and_each_is_served_and_unset",
        "unit/test_golden::test_nginx_takes_each",
    )
    shown = ", ".join(f"`{name}`" for name in tests)
    return f"{text}\nEach that is here: {shown}. All there are: [properties.md](properties.md).\n"


# -- docs/router.1


def man_page(every: Mapping[str, list[Explained]]) -> str:
    """The manual page."""
    lines = [
        '.\\" made from the code by script/docs',
        f'.TH ROUTER 1 "" "nginx-router {nginx_router.__version__}" "User Commands"',
        ".SH NAME",
        "router \\- decide, on a PaaS host, which running instance of which app answers a request",
        ".SH SYNOPSIS",
        ".nf",
        "\\fBrouter\\fR \\fINOUN\\fR:\\fIVERB\\fR [\\fIAPP\\fR] [\\fIARGUMENTS\\fR] [\\fIOPTIONS\\fR]",
        "\\fBrouter help\\fR [\\fINOUN\\fR | \\fICOMMAND\\fR]",
        ".fi",
        ".SH DESCRIPTION",
        "Each deploy, scale or domain change regenerates the nginx server blocks of its app, lets nginx check them, reloads nginx and",
        "proves that the new configuration serves before the command ends.",
        ".PP",
        "What the directories below ROUTER_ROOT say is the truth; commands edit them, and so may you.",
        "Every \\fBapps:X:VERB\\fR is also \\fBX:VERB\\fR.",
        "Stdout is data, stderr is talk; \\fB\\-\\fR among the arguments stands for the lines of stdin.",
        ".SH OPTIONS",
        "Of everything that changes:",
    ]
    for each in COMMON["change"]:
        lines += [".TP", _bold(f"{each.options[0]} {each.metavar}".rstrip()), _roff(each.help)]
    lines += [".PP", "Of everything that reports:", ".TP", _bold("--format json"), "Print JSON.", ".TP", _bold("--KEY")]
    lines += ["Print one value: any key of the JSON form.", ".PP", "Of all:", ".TP", _bold("-h, --help"), "Print usage, options, example."]
    lines += [".TP", _bold("--trace"), "Print the traceback of an error."]
    for noun, found in every.items():
        lines.append(f".SH {_roff(noun.upper())}")
        for this in found:
            lines += [".TP", f"{_bold(this.command.name)} {_roff(this.command.usage)}".rstrip()]
            for number, block in enumerate(this.text.split("\n\n")):
                lines += [".IP"] if number else []
                lines += [_roff(line) for line in textwrap.wrap(" ".join(block.split()), 100, break_on_hyphens=False)]
            for example in this.examples:
                lines += [".IP", f"Example: {_roff(example)}"]
    lines.append(".SH EXIT STATUS")
    for row in (DOCS / "exit-codes.md").read_text().splitlines():
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        if row.startswith("| ") and cells[0][0].isdigit():
            lines += [".TP", _bold(cells[0]), _roff(cells[1].replace("`", ""))]
    lines += [
        ".SH ENVIRONMENT",
        ".TP",
        "\\fBROUTER_ROOT\\fR",
        "Where everything is; else /var/lib/router if it exists or you are root, else ~/.local/share/router.",
        ".TP",
        "\\fBNO_COLOR\\fR",
        "No colour on terminals either.",
        ".SH FILES",
    ]
    for path, what in (
        ("router.toml, DOMAINS", "properties and domains of the host"),
        ("apps/APP/DOMAINS, UPSTREAMS, app.toml, nginx.conf.d/, nginx.conf.j2", "an app"),
        ("generations/, objects/, current", "what was made of them"),
        ("journal.jsonl", "one line a change"),
        ("log/", "logs of nginx and of unexpected errors"),
    ):
        lines += [".TP", f"\\fI{_roff('ROUTER_ROOT/' + path)}\\fR", _roff(what)]
    lines += [".SH SEE ALSO", "\\fBnginx\\fR(8)"]
    return "\n".join(lines) + "\n"


def _roff(text: str) -> str:
    text = text.replace("\\", "\\e").replace("-", "\\-").replace("…", "...")
    return f"\\&{text}" if text.startswith((".", "'")) else text


def _bold(text: str) -> str:
    return f"\\fB{_roff(text)}\\fR"


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
