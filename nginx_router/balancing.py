"""Where the requests of a process go: its upstream block, or its line in the routes that change without a reload."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from . import canaries, directives, health, routes
from .errors import UsageProblem
from .model import App, Facts
from .names import Endpoint


def upstream_name(app: str, process: str) -> str:
    """The name of a process's upstream; app names may hold dots, process names never do, so no two are alike."""
    return f"router_{app}.{process}"


def canary_name(app: str, process: str) -> str:
    """The name of the upstream of a process's canaries; no app's name begins with `canary_`."""
    return f"router_canary_{app}.{process}"


def blocks(app: App, process: str, facts: Facts, nginx: Mapping[str, str]) -> list[dict[str, Any]]:
    """What the upstream blocks of a process say, that of its canaries behind its own; none where none of its endpoints is up.

    Raises:
        UsageProblem: a host name was not resolved, or the properties contradict the endpoints.
    """
    serving = health.serving(app, process, facts)
    if all(e.down for e in serving):
        return []
    stable, few = canaries.parted(serving)
    found = [_block(app, process, upstream_name(app.name, process), stable, facts, nginx)]
    if few:
        # whoever was to go to a canary goes to the others where no canary answers
        spare = [replace(e, backup=True, canary=False) for e in stable if not e.down]
        found.append(_block(app, process, canary_name(app.name, process), few, facts, nginx, spare))
    return found


def _block(
    app: App, process: str, name: str, serving: Sequence[Endpoint], facts: Facts, nginx: Mapping[str, str], spare: Sequence[Endpoint] = ()
) -> dict[str, Any]:
    only_backups = all(e.backup or e.down for e in serving)
    method = directives.of_upstream(app.name, nginx, serving)
    found = [
        {"address": address, "flags": _flags(e, each, nginx), "named": "" if e.address.is_literal else e.address.host}
        for group, each in ((serving, only_backups), (spare, False))
        for address, e in _servers(app, group, facts).items()
    ]
    return {
        "name": name,
        "process": process,
        # 64k hold 56 to 64 servers, by the length of their addresses (measured on 1.22.1); later versions keep more of each
        "zone": f"{64 * (1 + len(found) // 32)}k",
        "servers": found,
        # The ways of choosing that know no backups refuse them where they are named first.  Named behind the servers they take
        # them, and ask them as the others do: when all else has failed.
        "method_last": method["method"] if spare else "",
        **method,
        **({"method": ""} if spare else {}),
    }


def split(app: App, process: str, facts: Facts) -> dict[str, Any] | None:
    """The block at http level that says which clients of a process get its canaries; None where it has none that are up.

    The canaries come first, so that whoever got them at 10% gets them at 20% too.
    """
    if not canaries.parted(health.serving(app, process, facts))[1]:
        return None
    share = canaries.share_of(app)
    tag = hashlib.sha256(f"{app.name} {process}".encode()).hexdigest()[:12]
    rows = [(share, canary_name(app.name, process))] if share != "0%" else []  # which nginx does not take
    rows.append(("*", upstream_name(app.name, process)))
    return {"kind": "split_clients", "source": "$router_client", "variable": f"$router_canary_{tag}", "rows": rows}


def route(app: App, process: str, facts: Facts, nginx: Mapping[str, str]) -> str:
    """The line of a process in the routes; empty where none of its endpoints is up.

    Raises:
        UsageProblem: a host name was not resolved.
    """
    serving = health.serving(app, process, facts)
    if all(e.down for e in serving):
        return ""
    stable, few = canaries.parted(serving)
    peers = [
        (address, e.weight, "down" if e.down else "canary" if e in few else "backup" if e.backup else "active")
        for address, e in _servers(app, [*stable, *few], facts).items()
    ]
    return routes.line(nginx, peers, canaries.hundredths(canaries.share_of(app)) if few else None)


def pool(values: Mapping[str, str]) -> tuple[str, ...]:
    """How connections to instances are kept: how many, how long, for how many requests."""
    return values["proxy-keepalive"], values["proxy-keepalive-timeout"], values["proxy-keepalive-requests"]


def pool_name(pool: tuple[str, ...]) -> str:
    """The name of the upstream that apps with equal keepalive properties share."""
    return f"router_live_{'_'.join(pool)}"


def _servers(app: App, serving: Sequence[Endpoint], facts: Facts) -> dict[str, Endpoint]:
    """Where nginx connects to for some endpoints; two names of one instance have one share of the rotation."""
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
    words = directives.of_endpoint(nginx, endpoint.weight)
    if endpoint.backup and not only_backups:
        words.append("backup")  # nginx refuses an upstream of backups alone
    if endpoint.down:
        words.append("down")
    return "".join(f" {word}" for word in words)
