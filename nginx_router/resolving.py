"""The addresses behind the host names of endpoints: what a plugin says, else what the host's resolver does."""

from __future__ import annotations

import ipaddress
import socket
import threading
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .errors import UsageProblem

if TYPE_CHECKING:
    from .plugins import Plugins

#: How long names may take to resolve, in all.
SECONDS = 5.0

Addresses = dict[str, tuple[str, ...]]


def ask_plugins(plugins: Plugins, names: Sequence[str], told: Mapping[str, Any]) -> Addresses:
    """What the hook `endpoint-resolve` says of `names`; the event it gets is `told` and the name.

    Raises:
        UsageProblem: a plugin answered with something else than addresses.
        PluginBroken: a plugin crashed.
    """
    found: Addresses = {}
    if names and plugins.has("endpoint-resolve"):
        for name in names:
            answer = plugins.first("endpoint-resolve", {**told, "host": name})
            if answer is not None and answer[1].split():
                found[name] = tuple(_ip(word, answer[0]) for word in answer[1].split())
    return found


def look_up(names: Sequence[str]) -> Addresses:
    """What the resolver says of `names`; one that it does not know in time is left out."""
    found: Addresses = {}

    def ask(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found[name] = tuple(sorted({str(a[4][0]) for a in answers}))

    # getaddrinfo has no deadline of its own; a daemon thread that hangs dies with the process
    threads = [threading.Thread(target=ask, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(SECONDS / len(threads))
    return dict(found)


def _ip(word: str, plugin: str) -> str:
    try:
        return str(ipaddress.ip_address(word))
    except ValueError:
        raise UsageProblem(f"plugin {plugin} resolved a name to '{word}', which is no IP address") from None
