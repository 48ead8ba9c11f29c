"""Where the requests of a process go: its upstream block, or its line in the routes that change without a reload."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import directives, routes
from .errors import UsageProblem
from .model import App, Facts
from .names import Endpoint


def upstream_name(app: str, process: str) -> str:
    """The name of a process's upstream; app names may hold dots, process names never do, so no two are alike."""
    return f"router_{app}.{process}"


def block(app: App, process: str, facts: Facts, nginx: Mapping[str, str]) -> dict[str, Any] | None:
    """What the upstream block of a process says; None where none of its endpoints is up.

    Raises:
        UsageProblem: a host name was not resolved, or the properties contradict the endpoints.
    """
    serving = [e for e in app.of_process(process) if not e.drain]
    if not any(not e.down for e in serving):
        return None
    only_backups = all(e.backup or e.down for e in serving)
    found = [
        {"address": address, "flags": _flags(e, only_backups, nginx), "named": "" if e.address.is_literal else e.address.host}
        for address, e in servers(app, process, facts).items()
    ]
    return {
        "name": upstream_name(app.name, process),
        "process": process,
        # 64k hold 56 to 64 servers, by the length of their addresses (measured on 1.22.1); later versions keep more of each
        "zone": f"{64 * (1 + len(found) // 32)}k",
        "servers": found,
        **directives.of_upstream(app.name, nginx, serving),
    }


def route(app: App, process: str, facts: Facts, nginx: Mapping[str, str]) -> str:
    """The line of a process in the routes; empty where none of its endpoints is up.

    Raises:
        UsageProblem: a host name was not resolved.
    """
    peers = [
        (address, e.weight, "down" if e.down else "backup" if e.backup else "active") for address, e in servers(app, process, facts).items()
    ]
    return routes.line(nginx, peers) if peers else ""


def pool(values: Mapping[str, str]) -> tuple[str, ...]:
    """How connections to instances are kept: how many, how long, for how many requests."""
    return values["proxy-keepalive"], values["proxy-keepalive-timeout"], values["proxy-keepalive-requests"]


def pool_name(pool: tuple[str, ...]) -> str:
    """The name of the upstream that apps with equal keepalive properties share."""
    return f"router_live_{'_'.join(pool)}"


def servers(app: App, process: str, facts: Facts) -> dict[str, Endpoint]:
    """Where nginx connects to for a process, if one of its endpoints is up; two names of one instance have one share of the rotation."""
    serving = [e for e in app.of_process(process) if not e.drain]
    if all(e.down for e in serving):
        return {}
    found: dict[str, Endpoint] = {}
    for e in sorted(serving):
        for address in addresses_of(app.name, e, facts):
            found.setdefault(address, e)
    return found


def addresses_of(app: str, endpoint: Endpoint, facts: Facts) -> list[str]:
    """Where nginx connects to for an endpoint: resolved at apply time, so that a name can never keep nginx from booting.

    Raises:
        UsageProblem: its host name was not resolved.
    """
    if endpoint.address.is_literal:
        return [endpoint.address.text]
    found = facts.resolved.get(endpoint.address.host)
    if not found:
        raise UsageProblem(
            f"app {app}: the host name of endpoint {endpoint.address} does not resolve",
            hint=f"getent ahosts {endpoint.address.host}",
            app=app,
        )
    return [endpoint.address.at(ip) for ip in sorted(found)]


def _flags(endpoint: Endpoint, only_backups: bool, nginx: Mapping[str, str]) -> str:
    words = [f"weight={endpoint.weight}"] if endpoint.weight != 1 else []
    words += directives.of_endpoint(nginx)
    if endpoint.backup and not only_backups:
        words.append("backup")  # nginx refuses an upstream of backups alone
    if endpoint.down:
        words.append("down")
    return "".join(f" {word}" for word in words)
