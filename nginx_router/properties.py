"""Every property in one table: it drives `set`, `report`, rendering and the documentation.

Those of the host (`proxy`) stand here; those of nginx are declared by the built-in plugin that has their commands, in the
properties.toml beside its plugin.toml:

    [proxy-read-timeout]
    type = "time"                       # a kind of `kinds`, with what that takes: words, min and max, ...
    default = "60s"
    help = "how long an instance may be silent"
    directive = "proxy_read_timeout"    # optional: rendered into each server block of an app
    nginx = "60s"                       # optional: nginx's own default, where it is another; only what differs is rendered
    needs = "gzip"                      # optional: rendered where that property is on
    host = "why"                        # optional: it is the host's alone (--global)
    also = ["read-timeout"]             # optional: other names of it

    [nginx-service-command]
    refused = "why it is not offered"
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from . import kinds
from .errors import UsageProblem, nearest
from .names import shown
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
    nginx: str = ""  # nginx's own default of the directive
    needs: str = ""  # the property that must be on for the directive to be rendered
    host: str = ""  # why an app cannot have its own

    def parse(self, value: object) -> str:
        """The value in its one spelling, from a command or a TOML file.

        Raises:
            UsageProblem: the value breaks the property's rule.
        """
        if isinstance(value, bool):
            text = "on" if value else "off"
        elif isinstance(value, int | float | str):
            text = str(value)
        else:
            raise UsageProblem(f"{self.name}: {type(value).__name__} is not {self.rule}")
        try:
            return self.check(text)
        except ValueError:
            raise UsageProblem(f"{self.name} {shown(text)} is not {self.rule}") from None

    def require_scope(self, app: str | None) -> None:
        """Make sure that `app` (None: the host) may have it.

        Raises:
            UsageProblem: it is the host's alone; why, and the command that sets it.
        """
        if app is not None and self.host:
            raise UsageProblem(
                f"{self.name} is the host's alone: {self.host}", hint=f"router nginx:set --global {self.name} VALUE", app=app
            )


def _proxy(name: str, default: str, rule: str, help: str, check: Callable[[str], str]) -> Property:
    return Property(name, "proxy", default, rule, help, check)


_PROXY = (
    _proxy("mode", "managed", "managed or host", "whose nginx serves: router's own, or the distribution's", kinds.matching("managed|host")),
    _proxy("http-port", "", "a port from 1 to 65535", "the port of apps without ports of their own (8080; host mode: 80)", kinds.port),
    _proxy(
        "https-port", "", "a port from 1 to 65535", "the same for apps with a certificate (8443; host mode: 443); not used yet", kinds.port
    ),
    _proxy(
        "allowed-ports",
        "",
        "ports and ranges such as 8000-8999 9443",
        "the ports that apps may have besides http-port and https-port; unset: any",
        kinds.ports,
    ),
    _proxy("bind-address", "", "IP addresses", "where nginx listens; unset: everywhere, IPv6 too where the host has it", kinds.addresses),
    _proxy("nginx-binary", "nginx", "a command or an absolute path", "the nginx to run", kinds.matching(r"[A-Za-z0-9._/+-]+")),
    _proxy("nginx-conf", "/etc/nginx/nginx.conf", "an absolute path", "host mode: the distribution's configuration", kinds.PATH),
    _proxy("reload-command", "", "a command with its arguments", "host mode: what reloads nginx", kinds.command),
    _proxy(
        "updates",
        "reload",
        "reload or live",
        "how endpoint changes reach nginx: by a reload, or (live) without one, by its Lua module",
        kinds.matching("reload|live"),
    ),
    _proxy(
        "draining-workers",
        "",
        "a number from 0 to 100000",
        "with half as many old workers reloads begin to keep a distance, up to 5 s; 0: none; unset: 32, or 4 for each CPU if that is more",
        kinds.whole(0, 100000),
    ),
    _proxy(
        "worker-shutdown-timeout",
        "",
        kinds.KINDS["time"]({})[0],
        "after it an old worker is ended, which cuts its websockets and long streams; unset: never",
        kinds.KINDS["time"]({})[1],
    ),
    _proxy("generations-keep", "50", "a number from 2 to 10000", "how many generations are kept", kinds.whole(2, 10000)),
    _proxy("default-site", "444", "444, 404, 421 or a URL", "what a host name that no app owns is answered", kinds.SITE),
)


#: What prints the properties of a table: there are dozens, too many for an error.
_LISTED = {"nginx": "router nginx:report --global", "proxy": "router proxy:report"}


class _Tables(Mapping[str, Mapping[str, Property]]):
    """The tables by name; that of nginx is read when it is first asked for, which `version` or `apps:list` never do."""

    def __getitem__(self, table: str) -> Mapping[str, Property]:
        if table not in ("nginx", "proxy"):
            raise KeyError(table)
        return _declared()[0] if table == "nginx" else _host()

    def __iter__(self) -> Iterator[str]:
        return iter(("nginx", "proxy"))

    def __len__(self) -> int:
        return 2


PROPERTIES: Mapping[str, Mapping[str, Property]] = _Tables()


def lookup(table: str, name: str) -> Property:
    """The property `name` of `table`, by its own name or another one of it.

    Raises:
        UsageProblem: there is none (the nearest is named), or it is refused (why is said).
    """
    known = PROPERTIES[table]
    if name not in known and table == "nginx":
        _, refused, also = _declared()
        if name in refused:
            raise UsageProblem(f"nginx property {name} is refused: {refused[name]}")
        name = also.get(name, name)
    found = known.get(name)
    if found is None:
        raise UsageProblem(f"no {table} property {shown(name)}{nearest(name, known)}", hint=_LISTED[table])
    return found


def refused() -> Mapping[str, str]:
    """The properties of other routers that are not offered: name -> why."""
    return _declared()[1]


def of_directive(directive: str) -> Property | None:
    """The nginx property that a directive is rendered for."""
    return next((p for p in PROPERTIES["nginx"].values() if p.directive == directive), None)


def declared(name: str, row: Mapping[str, Any]) -> Property:
    """The property that a row of properties.toml, or `[plugin.properties.NAME]` of a stranger's plugin.toml, describes.

    Raises:
        KeyError: `row` lacks what its type needs.
    """
    rule, check = kinds.KINDS[row["type"]](row)
    return Property(
        name, "nginx", row["default"], rule, row["help"], check, *(row.get(key, "") for key in ("directive", "nginx", "needs", "host"))
    )


@cache
def _host() -> Mapping[str, Property]:
    return {row.name: row for row in _PROXY}


@cache
def _declared() -> tuple[Mapping[str, Property], Mapping[str, str], Mapping[str, str]]:
    import tomllib

    found: dict[str, Property] = {}
    refused: dict[str, str] = {}
    also: dict[str, str] = {}
    # a file of its own: every command reads the plugin.toml files, and few ask for a property
    for manifest in sorted(shipped("plugins").glob("*/properties.toml")):
        for name, row in tomllib.loads(manifest.read_text()).items():
            if "refused" in row:
                refused[name] = row["refused"]
            else:
                found[name] = declared(name, row)
                also |= dict.fromkeys(row.get("also", ()), name)
    return found, refused, also
