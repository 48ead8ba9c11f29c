"""The runner of a selftest: it asks the process that holds the instances, which listens beside the root."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import pluggy

hookimpl = pluggy.HookimplMarker("router")

#: ROOT/plugins/selftest-runner/plugin.py; the socket is beside ROOT.
SOCKET = Path(__file__).parents[3] / "own/instances.sock"


@hookimpl
def scale(event: Any) -> str:
    """The wanted number of instances: of those that run the first, then new ones."""
    kept = list(event["endpoints"])[: event["count"]]
    started = _ask({"start": event["app"], "count": event["count"] - len(kept)})
    return "\n".join([*kept, *(address for _, address in started)])


@hookimpl
def stop(event: Any) -> None:
    """They end at once, as by `docker kill`: they were drained."""
    _ask({"stop": list(event["endpoints"]), "app": event["app"], "at_once": True})


def _ask(question: dict[str, Any]) -> Any:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(SOCKET))
        connection.sendall(json.dumps(question).encode() + b"\n")
        with connection.makefile() as answer:
            return json.loads(answer.readline())
