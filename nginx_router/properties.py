"""Every property in one table: it drives `set`, `report`, rendering and the documentation.

Those of the host (`proxy`) stand here; those of nginx are declared by the plugin that has their commands, in its plugin.toml:

    [plugin.properties.proxy-read-timeout]
    type = "time"                       # size, time, number (with min and max) or word (with words)
    default = "60s"
    help = "how long an instance may be silent"
    directive = "proxy_read_timeout"    # optional: rendered into each server block of an app
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from .errors import UsageProblem, nearest
from .names import ip_address, port_number, shown
from .resources import shipped

Table = Literal["nginx", "proxy"]


@dataclass(frozen=True)
class Property:
    """A named setting of an app or of the host."""

    name: str
    table: Table
    default: str
    rule: str
    help: str
    check: Callable[[str], str]
    directive: str = ""

    def parse(self, value: object) -> str:
        """The value in its one spelling, from a command or a TOML file.

        Raises:
            UsageProblem: the value breaks the property's rule.
        """
        if isinstance(value, bool):
            text = "on" if value else "off"
        elif isinstance(value, int | str):
            text = str(value)
        else:
            raise UsageProblem(f"{self.name}: {type(value).__name__} is not {self.rule}")
        try:
            return self.check(text)
        except ValueError:
            raise UsageProblem(f"{self.name} {shown(text)} is not {self.rule}") from None


def _matching(pattern: str) -> Callable[[str], str]:
    compiled = re.compile(pattern)

    def check(text: str) -> str:
        if not compiled.fullmatch(text):
            raise ValueError(text)
        return text

    return check


def _port(text: str) -> str:
    try:
        return str(port_number(text))
    except UsageProblem:
        raise ValueError(text) from None


def _whole(low: int, high: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if not re.fullmatch(r"[0-9]{1,9}", text) or not low <= int(text) <= high:
            raise ValueError(text)
        return str(int(text))

    return check


def _addresses(text: str) -> str:
    # a second listen on the same address is refused by nginx
    return " ".join(dict.fromkeys(ip_address(word.removeprefix("[").removesuffix("]")) for word in text.split()))


def _command(text: str) -> str:
    # it is run without a shell: what only a shell understands would not do what it says
    if not re.fullmatch(r"[^\n;&|<>$`]+", text) or not shlex.split(text):
        raise ValueError(text)
    return text


_PATH = _matching(r"/[^\s;{}'\"\\$#]+")
_SITE = _matching(r"444|404|421|https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[A-Za-z0-9._~/?&=%-]*)?")

_PROXY = (
    Property(
        "mode", "proxy", "managed", "managed or host", "whose nginx serves: router's own, or the distribution's", _matching("managed|host")
    ),
    Property(
        "http-port", "proxy", "", "a port from 1 to 65535", "the port of apps without ports of their own (8080; host mode: 80)", _port
    ),
    Property("https-port", "proxy", "", "a port from 1 to 65535", "the same for apps with a certificate (8443; host mode: 443)", _port),
    Property(
        "bind-address", "proxy", "", "IP addresses", "where nginx listens; unset: everywhere, IPv6 too where the host has it", _addresses
    ),
    Property("nginx-binary", "proxy", "nginx", "a command or an absolute path", "the nginx to run", _matching(r"[A-Za-z0-9._/+-]+")),
    Property("nginx-conf", "proxy", "/etc/nginx/nginx.conf", "an absolute path", "host mode: the distribution's configuration", _PATH),
    Property("reload-command", "proxy", "", "a command with its arguments", "host mode: what reloads nginx", _command),
    Property("updates", "proxy", "reload", "reload", "how endpoint changes reach nginx", _matching("reload")),
    Property("generations-keep", "proxy", "50", "a number from 2 to 10000", "how many generations are kept", _whole(2, 10000)),
    Property("default-site", "proxy", "444", "444, 404, 421 or a URL", "what a host name that no app owns is answered", _SITE),
)

#: Type -> rule and check, of a property that a plugin declares.
_TYPES: Mapping[str, Callable[[Mapping[str, Any]], tuple[str, Callable[[str], str]]]] = {
    "size": lambda row: ("a size such as 2m, 0 for no limit", _matching(r"[0-9]{1,9}[kKmMgG]?")),
    "time": lambda row: ("a time such as 60s", _matching(r"[1-9][0-9]{0,7}(ms|s|m|h|d)?")),
    "number": lambda row: (f"a number from {row['min']} to {row['max']}", _whole(row["min"], row["max"])),
    "word": lambda row: (" or ".join(row["words"]), _matching("|".join(map(re.escape, row["words"])))),
}


class _Tables(Mapping[str, Mapping[str, Property]]):
    """The tables by name; the plugins' are read when one is first asked for, which `version` or `apps:list` never do."""

    def __getitem__(self, table: str) -> Mapping[str, Property]:
        return {"nginx": _declared, "proxy": _host}[table]()

    def __iter__(self) -> Iterator[str]:
        return iter(("nginx", "proxy"))

    def __len__(self) -> int:
        return 2


PROPERTIES: Mapping[str, Mapping[str, Property]] = _Tables()


def lookup(table: str, name: str) -> Property:
    """The property `name` of `table`.

    Raises:
        UsageProblem: there is none; the nearest is named.
    """
    found = PROPERTIES[table].get(name)
    if found is None:
        known = PROPERTIES[table]
        raise UsageProblem(f"no {table} property {shown(name)}{nearest(name, known)}", hint=f"there are: {' '.join(known)}")
    return found


def declared(name: str, row: Mapping[str, Any]) -> Property:
    """The nginx property that `[plugin.properties.NAME]` of a plugin.toml describes.

    Raises:
        KeyError: `row` lacks what its type needs.
    """
    rule, check = _TYPES[row["type"]](row)
    return Property(name, "nginx", row["default"], rule, row["help"], check, row.get("directive", ""))


@cache
def _host() -> Mapping[str, Property]:
    return {row.name: row for row in _PROXY}


@cache
def _declared() -> Mapping[str, Property]:
    import tomllib

    found = {}
    for manifest in sorted(shipped("plugins").glob("*/plugin.toml")):
        text = manifest.read_text()
        if "[plugin.properties." in text:  # to parse them all would take longer than all the rest of a small command
            rows = tomllib.loads(text)["plugin"]["properties"]
            found.update({name: declared(name, row) for name, row in rows.items()})
    return found
