"""Startup checks: does each new instance answer, before a request is sent to it?

All endpoints are asked at the same time, again and again, until each has answered or the time for all is over.  One
thread an endpoint: a name that is being looked up, or an instance that accepts and is silent, holds up no other.
"""

from __future__ import annotations

import contextlib
import math
import queue
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from .errors import ChecksFailed, UsageProblem
from .names import Address, shown
from .reach import closed_to
from .times import stamp

#: How much of an answer's body is read for the person at the terminal.
_BODY = 500
_FIRST_PAUSE, _LONGEST_PAUSE = 0.05, 1.0
# a name that does not exist does not begin to exist by asking again; a name server that is silent (EAI_AGAIN) may answer
_NO_SUCH_NAME = (socket.EAI_NONAME, socket.EAI_NODATA)


@dataclass(frozen=True)
class Check:
    """How an endpoint is asked: by a TCP connect, or (`path`) by an HTTP GET that must answer with one of `statuses`."""

    path: str | None = None
    host: str = ""  # the Host header; empty: the address
    timeout: float = 30.0  # for all endpoints together
    each: float | None = None  # for one try; None: a third of that
    statuses: tuple[tuple[int, int], ...] = ((200, 399),)  # that pass
    user: str = ""  # whom nginx's workers run as, if not as whoever asks: a unix socket must be open to it

    def __post_init__(self) -> None:
        if self.path is not None and (
            not self.path.startswith("/") or not self.path.isascii() or not self.path.isprintable() or " " in self.path
        ):
            raise UsageProblem(f"--check {shown(self.path)} is not a path", hint="such as /health")
        if not math.isfinite(self.timeout) or self.timeout <= 0:
            raise UsageProblem(f"--check-timeout {self.timeout:g} is not a number of seconds above 0")

    def __str__(self) -> str:
        return "a TCP connection" if self.path is None else f"GET {self.path}"


#: An endpoint, and how it is asked; the endpoints of two processes may have one address.
Asked = tuple[Address, Check]


@dataclass(frozen=True)
class _Word:
    """What a thread found: `done` ends its part, `text` is why an attempt failed or what answered."""

    asked: Asked
    done: bool
    text: str
    passed: bool = False


def run(
    app: str,
    asked: Iterable[Asked],
    say: Callable[[str], None],
    resolved: Mapping[str, Sequence[str]] = MappingProxyType({}),
) -> None:
    """See every endpoint answer to its own check, and to one that is named twice only once; what each does is told by `say`.

    `resolved`: IP addresses of host names that DNS need not know.

    Raises:
        ChecksFailed: one did not; the endpoint, its last status or errno, and the beginning of its answer are said.
    """
    began = stamp()
    words: queue.SimpleQueue[_Word] = queue.SimpleQueue()
    names = _names(asked)
    seconds = max((check.timeout for _, check in names), default=0.0)
    deadline = time.monotonic() + seconds
    over = threading.Event()
    for each in names:
        address = each[0]
        places = [Address(address.at(ip)) for ip in resolved.get(address.host, ())] or [address]
        # daemon: getaddrinfo cannot be interrupted, and must not keep the command from ending
        threading.Thread(target=_keep_asking, args=(each, places, deadline, over, words.put), daemon=True).start()
    try:
        failed = _listen(names, seconds, deadline, words, say)
    finally:
        over.set()
    if failed:
        (address, check), *others = [each for each in names if each in failed]
        reasons = [(str(address), failed[address, check]), *((names[each], failed[each]) for each in others)]
        what = verdict(app, str(check), [(name, f"{why}, since {began}") for name, why in reasons])
        raise ChecksFailed(what, hint="nothing was changed: see the instance's own log", app=app)


def verdict(app: str, check: str, reasons: Sequence[tuple[str, str]]) -> str:
    """What is told of endpoints that failed, and why; `check` is how the first was asked."""
    (address, reason), *others = reasons
    also = f"; failed too: {', '.join(f'{other} ({why})' for other, why in others)}" if others else ""
    return f"app {app}: endpoint {address} failed its check ({check}): {reason}{also}"


def _names(asked: Iterable[Asked]) -> dict[Asked, str]:
    """What they are called: by their addresses, and where one is asked in several ways by these too."""
    once = dict.fromkeys(asked)
    ways = Counter(address for address, _ in once)
    return {each: str(each[0]) if ways[each[0]] == 1 else f"{each[0]} ({each[1]})" for each in once}


def _listen(
    names: Mapping[Asked, str], seconds: float, deadline: float, words: queue.SimpleQueue[_Word], say: Callable[[str], None]
) -> dict[Asked, str]:
    """What failed, once every endpoint has passed or failed or the time is over."""
    waited_for = dict.fromkeys(names, "no answer")
    said: dict[Asked, str] = {}
    failed: dict[Asked, str] = {}
    while waited_for:
        try:
            # a little longer than the threads: their last words say more than ours
            word = words.get(timeout=max(0.0, deadline + 0.2 - time.monotonic()))
        except queue.Empty:
            late = {a: f"{why} within {seconds:g} s" if why == "no answer" else why for a, why in waited_for.items()}
            return failed | late
        name = names[word.asked]
        if word.done and word.passed:
            del waited_for[word.asked]
            say(f"{name}: {word.text}")
        elif word.done:
            del waited_for[word.asked]
            failed[word.asked] = word.text
            say(f"{name}: failed: {word.text}")
        else:
            waited_for[word.asked] = word.text
            if said.get(word.asked) != word.text:
                said[word.asked] = word.text
                say(f"{name}: not yet: {word.text}")
    return failed


def _keep_asking(asked: Asked, places: Sequence[Address], deadline: float, over: threading.Event, tell: Callable[[_Word], None]) -> None:
    address, check = asked
    began = time.monotonic()
    pause = _FIRST_PAUSE
    # an instance that is still starting may take a first connection and never answer it: there is a second try
    usual = check.each or max(check.timeout / 3, 0.05)
    problem = ""
    while True:
        is_final = False
        patience = min(max(deadline - time.monotonic(), 0.05), usual)
        try:
            answer = _ask(address, places, check, patience)
            tell(_Word(asked, True, f"{answer} after {time.monotonic() - began:.1f} s", passed=True))
            return
        except socket.gaierror as why:
            is_final = why.errno in _NO_SUCH_NAME
            problem = f"the host name does not resolve ({why.strerror})"
        except TimeoutError:
            if patience == usual or not problem:  # else the deadline left no time to answer in, and says less than the answer before
                problem = "no answer"
        except OSError as why:
            problem = why.strerror or str(why)
        except _NotGood as why:
            problem = str(why)
        left = deadline - time.monotonic()
        if is_final or left <= 0:
            tell(_Word(asked, True, problem))
            return
        tell(_Word(asked, False, problem))
        if over.wait(min(pause, left)):
            return
        pause = min(pause * 1.5, _LONGEST_PAUSE)


class _NotGood(Exception):
    """An answer that does not count as one."""


def _ask(address: Address, places: Sequence[Address], check: Check, timeout: float) -> str:
    for place in places[:-1]:
        with contextlib.suppress(OSError):
            return _ask(address, [place], check, timeout)
    if address.is_unix and check.user and (why := closed_to(Path(address.text.removeprefix("unix:")), check.user)):
        raise _NotGood(why)
    with _connect(places[-1], timeout) as connection:
        return "accepts connections" if check.path is None else _get(connection, address, check)


def _connect(place: Address, timeout: float) -> socket.socket:
    if not place.is_unix:
        return socket.create_connection((place.host, place.port), timeout)
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(place.text.removeprefix("unix:"))
    except BaseException:
        connection.close()
        raise
    return connection


def _get(connection: socket.socket, address: Address, check: Check) -> str:
    from http.client import HTTPConnection, HTTPException  # 15 ms that a TCP check does not need

    assert check.path is not None
    http = HTTPConnection("localhost")
    http.sock = connection
    host = check.host or ("localhost" if address.is_unix else address.text)
    try:
        http.request("GET", check.path, headers={"Host": host, "User-Agent": "router-check", "Accept": "*/*", "Connection": "close"})
        with http.getresponse() as response:
            if any(low <= response.status <= high for low, high in check.statuses):
                return f"answers {response.status}"
            body = b""
            with contextlib.suppress(OSError, HTTPException):  # the status says enough
                body = response.read(_BODY)
            words = " ".join(body.decode(errors="replace").split())
            raise _NotGood(f"HTTP {response.status}" + (f": {shown(words)}" if words else ""))
    except HTTPException as why:
        raise _NotGood(f"no HTTP answer ({type(why).__name__}: {shown(str(why))})") from None
