"""The routes that a running nginx has, over the admin socket of `templates/live/`: asked, changed, and counted.

What is written is believed by its answer alone: the version that nginx has then.  Where an answer was lost, or another
version was there than the one that the difference was made for, all routes are sent.
"""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from . import hostconf
from .errors import HostProblem, ReloadFailed, UsageProblem
from .routes import Routes, lines
from .settings import LONGEST_SOCKET

if TYPE_CHECKING:
    from .nginx import Nginx

_SECONDS = 10.0
#: How many addresses a question names: nginx takes a request line of 8 KiB.
_AT_ONCE = 25
_CHANGED = 409

#: What to type where nginx's Lua module is not there: what brings it, and what does without.
WAYS = "sudo apt-get install libnginx-mod-http-lua, or: router proxy:set --global updates reload"


def modules(nginx: Nginx, known: Sequence[str]) -> tuple[str, ...]:
    """The files of nginx's Lua module, in the order in which they are loaded; `known` are those of before.

    Raises:
        UsageProblem: this nginx has none, or it is the service manager's.
    """
    if nginx.is_host_mode:
        raise UsageProblem("updates live is for router's own nginx (mode managed)", hint="router proxy:set --global updates reload")
    if len(str(nginx.routes.path)) > LONGEST_SOCKET:
        raise UsageProblem(f"updates live needs a shorter root: {nginx.routes.path} is too long for a socket")
    if known and all(Path(file).is_file() for file in known):
        return tuple(known)
    directory = Path(hostconf.built_in(nginx.binary).get("modules-path", ""))
    files = [directory / f"{name}_module.so" for name in ("ndk_http", "ngx_http_lua")]
    if missing := [file for file in files if not file.is_file()]:
        raise HostProblem(f"updates live needs nginx's Lua module, and there is no {missing[0]}", hint=WAYS)
    return tuple(map(str, files))


def lost(modules: Sequence[str]) -> str:
    """What is wrong where one of the files that nginx loads as it starts is gone; nothing where all are there."""
    gone = next((file for file in modules if not Path(file).is_file()), None)
    return f"nginx's Lua module {gone} is gone: no change is taken up, and nginx would not start again" if gone else ""


def ways_out(modules: Sequence[str], words: str) -> str:
    """What to type where nginx did not start, in these words, because of its Lua module; nothing where it is not that.

    A module that is there may be of another nginx: an upgrade of one of the two brings that about.
    """
    return WAYS if lost(modules) or any(file in words for file in modules) else ""


@dataclass(frozen=True)
class InFlight:
    """What is under way at some addresses; a websocket, or whatever else asked for an upgrade, is no request here."""

    requests: int = 0
    websockets: int = 0

    @property
    def total(self) -> int:
        """Both."""
        return self.requests + self.websockets

    def __add__(self, other: InFlight) -> InFlight:
        return InFlight(self.requests + other.requests, self.websockets + other.websockets)


class Live:
    """The admin socket of one nginx."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writes = ""  # how often its routes were written, when they were looked at last

    def version(self) -> str:
        """The version of the routes that nginx has; empty: it has none, or nobody answers.

        Raises:
            PermissionError: this user may not ask.
        """
        try:
            status, body = self._ask("GET", "/version")
        except PermissionError:
            raise
        except OSError:
            return ""
        return self._noted(body) if status == 200 else ""

    def take(self, version: str, difference: str | None, whole: Callable[[], Routes]) -> None:
        """Have nginx send requests by the `whole` routes, which are those it has but for the `difference` (None: not known).

        Raises:
            ReloadFailed: it did not take them, its memory is full for one; what it has now is not known.
        """
        why = "it has no answer"
        for text in (*([] if difference is None else [difference]), None, None):
            only = text is None
            try:
                if only:
                    self._noted(self._ask("GET", "/version")[1])
                # what comes so late that something else was written since is refused: nobody waits for it any more
                asked = urlencode({"version": version, "only": int(only), "from": self._writes})
                status, body = self._ask("POST", f"/routes?{asked}", lines({}, whole()) if text is None else text)
            except OSError as problem:
                why = problem.strerror or str(problem)
                continue
            if status == 200 and self._noted(body) == version:
                return
            why = {
                "no memory": "no memory: it has room for some 200,000 endpoints",
                "": f"status {status}",
            }.get(body, "somebody else changes them" if status == _CHANGED else body)
            if only and status != _CHANGED:
                break
        raise ReloadFailed(f"nginx did not take the endpoints up: {why}", hint="router doctor --fix")

    def in_flight(self, workers: Iterable[int], addresses: Iterable[str] | None) -> InFlight:
        """What these workers have under way at these addresses (None: at all).

        Raises:
            ReloadFailed: nobody said.
        """
        return sum(self.in_flight_of(workers, addresses).values(), InFlight())

    def in_flight_of(self, workers: Iterable[int], addresses: Iterable[str] | None) -> dict[int, InFlight]:
        """The same of each worker that has something.

        Raises:
            ReloadFailed: nobody said.
        """
        pids, every, found = list(workers), list(addresses or ()), dict[int, InFlight]()
        for at in range(0, len(every) if addresses is not None else 1, _AT_ONCE):
            asked = urlencode([*(("pid", pid) for pid in pids), *(("address", address) for address in every[at : at + _AT_ONCE])])
            try:
                status, body = self._ask("GET", f"/in-flight?{asked}")
            except OSError as why:
                raise ReloadFailed(f"nginx does not say what is under way: {why.strerror or why}", hint="router doctor") from None
            rows = [tuple(map(int, row.split())) for row in body.splitlines()] if re.fullmatch(r"[0-9 \n]*", body) else []
            if status != 200 or len(rows) != len(pids):
                raise ReloadFailed(f"nginx does not say what is under way: {body or status}", hint="router doctor")
            for pid, requests, websockets in rows:
                if requests or websockets:
                    found[pid] = found.get(pid, InFlight()) + InFlight(requests, websockets)
        return found

    def _noted(self, state: str) -> str:
        """The version of `VERSION WRITES`."""
        version, _, self._writes = state.rpartition(" ")
        # an nginx that was started by an earlier release of the router says the version alone
        return version or ("" if state.isdigit() else state)

    def _ask(self, method: str, target: str, body: str = "") -> tuple[int, str]:
        data = body.encode()
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_SECONDS)
            connection.connect(str(self.path))
            connection.sendall(f"{method} {target} HTTP/1.0\r\nHost: router\r\nContent-Length: {len(data)}\r\n\r\n".encode() + data)
            answer = b""
            while piece := connection.recv(65536):
                answer += piece
        head, _, content = answer.partition(b"\r\n\r\n")
        words = head.split()
        return int(words[1]) if len(words) > 1 and words[1].isdigit() else 0, content.decode(errors="replace").strip()
