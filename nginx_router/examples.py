"""The states that a template is tried on when it changes: those that every app comes to sooner or later.

A template that only knows the state of today breaks with the next deploy, scale or drain, when nobody thinks of it.
"""

from __future__ import annotations

from collections.abc import Iterator

from .model import APP_TOML, DOMAINS, UPSTREAMS, App, Texts
from .names import WEB
from .tomltext import set_key

#: A domain for apps that have none: a template is tried with server blocks too.
_DOMAIN = "example.invalid"
_OTHER = "api"


def served(app: App, texts: Texts) -> dict[str, str]:
    """The texts of an app as if it had a domain that is served."""
    there = {**texts, DOMAINS: texts.get(DOMAINS, "") if app.domains else f"{_DOMAIN}\n"}
    there[APP_TOML] = set_key(there.get(APP_TOML, ""), "", "domains", None)
    return there


def examples(app: App, texts: Texts) -> Iterator[tuple[str, dict[str, str]]]:
    """What the state is, and the texts of an app in it: without endpoints, with one, and with several processes and ports."""
    there = served(app, texts)
    yield "no endpoints", {**there, UPSTREAMS: ""}
    yield "one endpoint", {**there, UPSTREAMS: f"{WEB} 127.0.0.1:5000\n"}
    taken = {port.number for port in app.ports}
    free = next(number for number in range(9001, 9100) if number not in taken)
    ports = [*(str(port) for port in app.ports or ()), *([] if app.ports else ["http"]), f"http:{free}:{_OTHER}"]
    several = "".join(f"{process} 127.0.0.1:{5000 + n}\n" for n, process in enumerate((WEB, WEB, _OTHER)))
    yield (
        f"the processes {WEB} and {_OTHER}, and a port of each",
        {**there, UPSTREAMS: several, APP_TOML: set_key(there[APP_TOML], "", "ports", ports)},
    )
