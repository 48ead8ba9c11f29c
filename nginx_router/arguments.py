"""What the arguments of commands mean: parsed, and held against what there is, before anything is changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from .errors import NotFound, UsageProblem, nearest
from .model import App, Globals, parse_app
from .names import WEB, AppName, app_name, domain, shown
from .properties import lookup

if TYPE_CHECKING:
    from .controller import Router
    from .events import Event

GLOBAL = "--global"


def existing(router: Router, text: str) -> str:
    """The name of an app that exists.

    Raises:
        NotFound: there is none, be it because the name breaks the rule of names; the nearest is named.
    """
    try:
        router.store.require(app_name(text))
    except UsageProblem as why:
        raise NotFound(f"there is no app {shown(text)}{nearest(text, router.store.names())}", hint=why.hint) from None
    return text


def chosen(router: Router, app: str | None) -> list[str]:
    """The app that a report was asked for, or all of them.

    Raises:
        NotFound: there is no such app.
    """
    return router.store.names() if app is None else [existing(router, app)]


def app_or_global(router: Router, app: str | None, *, is_global: bool, usage: str) -> str | None:
    """The app that is meant, or None for the host: one of the two must be said, and not both.

    Raises:
        UsageProblem: neither or both were said.
        NotFound: there is no such app.
    """
    if is_global == (app is not None):
        raise UsageProblem(f"APP or {GLOBAL}, one of them", hint=f"usage: {usage}")
    return None if app is None else existing(router, app)


def domains(texts: Iterable[str]) -> list[str]:
    """Domains in their one spelling, each once.

    Raises:
        UsageProblem: one is none.
    """
    return list(dict.fromkeys(domain(text) for text in texts))


def default_domains(router: Router, app: str) -> list[str]:
    """The domains that an app gets when it is created: `APP.GLOBAL` for each global one, or its own name if that has a dot.

    A plugin may say others (hook app-hostname).
    App names may hold what domains may not (`a..b`): such an app begins without, and is told so.
    """
    everywhere = list(router.settings().domains)
    wanted = [app] if "." in app else [f"{app}.{name}" for name in everywhere]
    if router.plugins.has("app-hostname"):
        answer = router.plugins.first(
            "app-hostname", {"app": app, "action": "create", "command": router.request.command, "domains": everywhere}
        )
        wanted = answer[1].split() if answer else wanted
    found = []
    for name in wanted:
        try:
            found.append(domain(name))
        except UsageProblem as why:
            router.request.say(f"{why.message}: left out")
    return list(dict.fromkeys(found))


def property_event(table: str, app: str | None, key: str, value: str | None) -> Event:
    """The event that sets a property, or (None) unsets it.

    Raises:
        UsageProblem: there is no such property, it is not an app's, or the value breaks its rule.
    """
    from .events import Event  # which scripts that ask whether an app exists do without

    known = lookup(table, key)
    known.require_scope(app)
    return Event("property", app, {"table": table, "key": known.name, "value": None if value is None else known.parse(value)})


def change(router: Router, events: Sequence[Event], **options: Any) -> None:
    """Change, and say how it went."""
    router.out.changed(router.change(events, **options))


def apps_or_all(router: Router, apps: Sequence[str], *, is_all: bool) -> list[str] | None:
    """The apps that are named; None for all of them.  One whose directory is gone and that is still served is one.

    Raises:
        UsageProblem: some were named and all were asked for.
        NotFound: one does not exist.
    """
    if apps and is_all:
        raise UsageProblem("APP... or --all, one of them")
    index = router.index()
    served = index.apps if index else {}
    return [app if app in served else existing(router, app) for app in dict.fromkeys(apps)] if apps else None


def last_good(router: Router, name: str) -> tuple[App, str | None]:
    """An app as its files say it; where they break a rule, as it was last served, and the problem."""
    try:
        return router.app(name), None
    except UsageProblem as why:
        index = router.index()
        entry = index.apps.get(name) if index else None
        if entry is None:
            return App(AppName(name)), why.message
        texts, _ = router.generations.app_state(entry)
        return parse_app(name, texts, router.tables()), why.message


def web_ports(app: App, settings: Globals) -> list[int]:
    """The ports on which the process `web` of an app is served."""
    if not app.ports:
        return [settings.http_port]
    return sorted({port.number or settings.http_port for port in app.ports if port.process == WEB})


def urls_of(app: App, settings: Globals) -> list[str]:
    """Where an app answers: one URL for each served domain and port of `web`."""
    ports = web_ports(app, settings)
    return [f"http://{name}" if port == 80 else f"http://{name}:{port}" for name in app.served_domains for port in ports]
