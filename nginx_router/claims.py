"""What the files of a confined app may claim by themselves, and what takes a command of the host's own people.

A file that somebody else may write asks for names and for places of the host.  What is the app's already stays its own,
and a name that is nobody's is there for the asking, as it is for everybody.  But a part of what another app has, what
another had until a moment ago (an editor that empties a file before it writes it frees its names for a moment), a unix
socket of the host and a log file by a name that others may use go to whom a command gives them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .errors import Conflict, UsageProblem
from .events import Event
from .model import APP_TOML, DOMAINS, UPSTREAMS, App
from .names import covers, endpoint_line
from .owners import Confined

#: How long a name that an app let go of is kept from the files of others, in seconds.
RESTS = 3600.0

_LOGS = ("access-log-path", "error-log-path")

#: Domain -> who let go of it, and when (seconds since the epoch).
Released = Mapping[str, tuple[str, float]]


@dataclass(frozen=True)
class Claims:
    """Names and places that an app asks for."""

    domains: frozenset[str] = frozenset()
    sockets: frozenset[str] = frozenset()
    logs: frozenset[str] = frozenset()

    @classmethod
    def of(cls, app: App) -> Claims:
        """All that an app asks for."""
        return cls(
            frozenset(app.domains),
            frozenset(e.address.text for e in app.endpoints if e.address.is_unix),
            frozenset(app.nginx[key] for key in _LOGS if app.nginx.get(key, "default") not in ("default", "off")),
        )

    def __sub__(self, other: Claims) -> Claims:
        return Claims(self.domains - other.domains, self.sockets - other.sockets, self.logs - other.logs)

    def __bool__(self) -> bool:
        return bool(self.domains or self.sockets or self.logs)


def named_by(event: Event) -> Claims | None:
    """What a change names itself, so that it is the word of whoever asked; None: all that comes of it is."""
    args = event.args
    if event.action in ("restore", "import", "create", "clone"):
        return None
    domains = {*args.get("names", ()), *(args.get("reset") or ()), *args.get("domains", ())} if event.action != "rename" else set()
    if event.action == "rename":
        domains = {f"{args['new']}.{g}" for g in args["globals"]}
    addresses = [endpoint_line(line).address.text for line in args.get("endpoints") or ()] if event.action == "upstreams" else []
    addresses += [text for each in args.get("processes", {}).values() for text in each]
    logs = {str(args["value"])} if event.action == "property" and args.get("key") in _LOGS else set()
    return Claims(frozenset(domains), frozenset(addresses), frozenset(logs))


def refuse(app: str, new: Claims, confined: Confined, others: Mapping[str, str], released: Released, now: float) -> None:
    """Make sure that the files of `app` claim for themselves nothing that only a command may give: `new` is what no command named.

    Raises:
        Conflict: a domain is a part of what another app has (`others`), or was another's until a moment ago.
        UsageProblem: a unix socket, or a log file whose name is not the app's.
    """
    if DOMAINS in confined and new.domains:
        _refuse_domains(app, new.domains, others, {d: was for d, was in released.items() if was[0] != app and now - was[1] < RESTS})
    if UPSTREAMS in confined and new.sockets:
        socket = min(new.sockets)
        raise UsageProblem(
            f"apps/{app}/{UPSTREAMS}: {socket}: a unix socket may be anybody's, and others than the host's own people may write this file",
            hint=f"router upstreams:add {app} {socket}",
            app=app,
        )
    strange = sorted(log for log in new.logs if not log.startswith(f"{app}_"))
    if APP_TOML in confined and strange:
        raise UsageProblem(
            f"apps/{app}/{APP_TOML}: log file {strange[0]}: others than the host's own people may write apps/{app}, "
            f"so its name begins with {app}_",
            hint=f"{app}_{strange[0]}",
            app=app,
        )


def _refuse_domains(app: str, new: frozenset[str], others: Mapping[str, str], resting: Released) -> None:
    taken = {**{domain: was for domain, (was, _) in resting.items()}, **others}
    above = {domain.partition(".")[2] for domain in taken}
    for domain in sorted(new):
        hint = f"router domains:add {app} {domain}"
        if domain in resting:
            raise Conflict(
                f"domain {domain} of app {app} was app {resting[domain][0]}'s until a moment ago, and others than the host's own people "
                f"may write apps/{app}/{DOMAINS}: within an hour a command gives it to another app",
                hint=hint,
                app=app,
            )
        parent = next((name for name in _wildcards_over(domain) if name in taken), None)
        if parent is None and domain.startswith("*.") and any(suffix == domain[2:] or suffix.endswith(domain[1:]) for suffix in above):
            parent = next((name for name in taken if name != domain and covers(domain, name)), None)
        if parent is not None:
            raise Conflict(
                f"domain {domain} of app {app} and {parent} of app {taken[parent]} overlap, and others than the host's own people "
                f"may write apps/{app}/{DOMAINS}",
                hint=hint,
                app=app,
            )


def _wildcards_over(domain: str) -> list[str]:
    labels = domain.removeprefix("*.").split(".")
    return [
        wildcard for n in range(0 if domain.startswith("*.") else 1, len(labels)) if (wildcard := f"*.{'.'.join(labels[n:])}") != domain
    ]
