"""Checks of the host: disk, IPv6, clock, name servers, instances."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

from . import health, hostconf
from .entries import values_of
from .errors import NotFound, RouterError, StateCorrupt
from .files import FileLock
from .findings import Finding, Look, ok, problem, some, warning
from .model import App, Facts, parse_app
from .names import Address
from .proxy import failing_endpoints

if TYPE_CHECKING:
    from .model import Entry

#: How long name servers and instances may take, all together.
SECONDS = 5.0
_THREADS = 64
_NOTHING: set[str] = set()
_DATE = "%Y-%m-%d %H:%M:%S"
T = TypeVar("T")
R = TypeVar("R")


def disk(look: Look) -> Iterator[Finding]:
    """Room for changes and logs."""
    seen = set()
    for path in (look.paths.root, look.paths.log):
        if not path.exists() or path.stat().st_dev in seen:
            continue
        seen.add(path.stat().st_dev)
        found = os.statvfs(path)
        free = found.f_bavail * found.f_frsize
        share = 100 * found.f_bavail // max(1, found.f_blocks)
        fix = f"du -xh {look.paths.root} | sort -h | tail, then router generations:prune, or rotate {look.paths.log}"
        if free < 64 << 20:
            yield problem(f"the disk of {path} is full: {free >> 20} MiB left", fix)
        elif free < 1 << 30 and share < 5:
            yield warning(f"the disk of {path} is nearly full: {free >> 20} MiB left, {share} %", fix)
        else:
            yield ok(f"{path}: {_size(free)} free")
        if found.f_files and found.f_favail < 1000:
            yield problem(f"the disk of {path} has no inodes left ({found.f_favail})", "df -i, and remove small files")
        elif found.f_files and 100 * found.f_favail // found.f_files < 5 and found.f_favail < 100_000:
            yield warning(f"the disk of {path} has {found.f_favail} inodes left", "df -i, and remove small files")


def ipv6(look: Look) -> Iterator[Finding]:
    """Whether the host has what the configuration was made for: a listener on a family that is gone keeps nginx from starting."""
    has = hostconf.has_ipv6()
    if look.index is None or look.settings.get("bind-address"):
        yield ok("there is IPv6" if has else "there is no IPv6")
    elif look.index.facts.ipv6 and not has:
        yield problem("nginx is to listen on IPv6, and this host has it no more: it will not start", "router reconcile --all")
    elif has and not look.index.facts.ipv6:
        yield warning("this host has IPv6 now, and nginx does not listen on it", "router reconcile --all")
    else:
        yield ok("nginx listens on IPv6 too" if has else "this host has no IPv6, and nginx does not listen on it")


def clock(look: Look) -> Iterator[Finding]:
    """Whether it is later than it was: certificates, logs and the journal need that."""
    now = time.time()
    latest = _latest_change(look)
    if latest is not None and latest > now + 60:
        seen = datetime.fromtimestamp(latest, UTC)
        yield problem(
            f"the clock is behind: it says {datetime.fromtimestamp(now, UTC):{_DATE}} UTC, and the current generation is of {seen:{_DATE}}",
            "timedatectl set-ntp true",
        )
    elif _is_synchronized() is False:
        yield warning("the clock is not set by the network (NTP)", "timedatectl set-ntp true")
    else:
        yield ok(f"{datetime.fromtimestamp(now, UTC):{_DATE}} UTC")


def names(look: Look) -> Iterator[Finding]:
    """Whether the host names of endpoints resolve, and to what nginx was told."""
    known: dict[str, tuple[str, set[str]]] = {}  # host -> an app, its addresses
    for app, facts in _apps(look):
        for endpoint in app.endpoints:
            if not endpoint.address.is_literal:
                known.setdefault(endpoint.address.host, (str(app.name), set(facts.resolved.get(endpoint.address.host, ()))))
    if not known:
        yield ok("no endpoint has a host name")
        return
    for host, addresses in _at_once(list(known), _resolve, SECONDS, _NOTHING).items():
        app_name, was = known[host]
        if not addresses:
            yield problem(
                f"{host}, an endpoint of {app_name}, does not resolve; its last addresses are still served", f"getent ahosts {host}"
            )
        elif addresses != was:
            yield warning(
                f"{host}, an endpoint of {app_name}, is {some(sorted(addresses))} now, and nginx has {some(sorted(was)) or 'nothing'}",
                f"router reconcile {app_name}",
            )


def endpoints(look: Look) -> Iterator[Finding]:
    """Whether instances accept connections (--endpoints)."""
    if not look.asks_endpoints:
        yield ok("not asked: router doctor --endpoints")
        return
    owners: dict[Address, list[str]] = {}
    for app, facts in _apps(look):
        for endpoint in app.endpoints:
            if endpoint.state == "active":
                ips = facts.resolved.get(endpoint.address.host, ()) if not endpoint.address.is_literal else ()
                for address in [Address(endpoint.address.at(ip)) for ip in ips] or [endpoint.address]:
                    owners.setdefault(address, []).append(str(app.name))
    refused = {a: why for a, why in _at_once(list(owners), _connects, SECONDS, "no answer").items() if why}
    for address, why in sorted(refused.items(), key=lambda item: (owners[item[0]], item[0])):
        app_name = owners[address][0]
        yield problem(
            f"endpoint {address} of {some(owners[address])} does not accept: {why}",
            f"start it, or: router apps:upstreams:remove {app_name} {address}",
        )
    if not refused:
        yield ok(f"{len(owners)} accept connections")


def checks(look: Look) -> Iterator[Finding]:
    """Whether somebody asks the endpoints that are to be checked, and takes those in again that are out."""
    if look.index is None:
        return
    values = values_of(look.index.apps)
    out = [name for name, each in values.items() if each.get("unhealthy")]
    is_watched = FileLock(look.paths.run / "watch.lock").is_held()
    for line in failing_endpoints(look.router, look.index):
        more = "" if is_watched else "; no watch runs, so that nobody takes it in again"
        yield warning(f"{line}{more}", f"router checks:run {line.split()[1].rstrip(':')}" if is_watched else "router watch")
    if out or is_watched:
        return
    everywhere, tables = look.settings.plugins, look.router.tables()
    if health.TABLE not in everywhere and not any(each.get("checked") for each in values.values()):
        return
    for app, _ in _apps(look):
        found = [health.settings_of(tables, app, process, everywhere) for process in app.processes]
        if any(settings is not None and settings.interval is not None for settings in found):
            yield warning(f"the endpoints of {app.name} are to be checked, and no watch runs that would do it", "router watch")
            return


def domains(look: Look) -> Iterator[Finding]:
    """Whether domains lead to this host (--domains); behind address translation or a load balancer they need not."""
    if not look.asks_domains:
        yield ok("not asked: router doctor --domains")
        return
    owners = {d: app for d, app in (look.index.owners if look.index else {}).items() if not d.startswith("*.")}
    strange = 0
    for name, addresses in sorted(_at_once(list(owners), _resolve, 2 * SECONDS, _NOTHING).items()):
        if not addresses:
            strange += 1
            yield warning(f"domain {name} of {owners[name]} does not resolve", f"getent ahosts {name}")
        elif not any(_is_ours(ip) for ip in addresses):
            strange += 1
            yield warning(f"domain {name} of {owners[name]} leads to {some(sorted(addresses))}, not to this host", f"getent ahosts {name}")
    if not strange:
        yield ok(f"{len(owners)} lead here")


def _apps(look: Look) -> Iterator[tuple[App, Facts]]:
    entries: dict[str, Entry] = dict(look.index.apps) if look.index else {}
    for name, entry in entries.items():
        try:
            texts, facts = look.router.generations.app_state(entry)
            if texts.get("UPSTREAMS"):
                yield parse_app(name, texts, look.router.tables()), facts
        except RouterError:
            continue  # the check of objects says it


def _latest_change(look: Look) -> float | None:
    if look.index is None:
        return None
    try:
        return datetime.fromisoformat(look.router.generations.manifest(look.index.number).time).timestamp()
    except (NotFound, StateCorrupt, ValueError):
        return None


def _is_synchronized() -> bool | None:
    if shutil.which("timedatectl") is None:
        return None
    try:
        done = subprocess.run(
            ["timedatectl", "show", "-p", "NTPSynchronized", "--value"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return {"yes": True, "no": False}.get(done.stdout.strip())


def _at_once(what: Sequence[T], ask: Callable[[T], R], seconds: float, late: R | None = None) -> dict[T, R]:
    """The answers of `ask`, many at a time; what is not answered in time is left out, or (`late`) has that for an answer."""
    answers: dict[T, R] = {}
    todo = list(reversed(what))
    deadline = time.monotonic() + seconds
    lock = threading.Lock()

    def work() -> None:
        while time.monotonic() < deadline:
            with lock:
                if not todo:
                    return
                one = todo.pop()
            answer = ask(one)
            with lock:
                answers[one] = answer

    # daemon: getaddrinfo cannot be interrupted, and must not keep the command from ending
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_THREADS, len(what)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    with lock:
        return {**({one: late for one in what} if late is not None else {}), **answers}


def _resolve(host: str) -> set[str]:
    try:
        return {str(found[4][0]) for found in socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)}
    except (OSError, UnicodeError):
        return set()


def _connects(address: Address) -> str:
    """Nothing, or why it does not."""
    try:
        if address.is_unix:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(SECONDS / 2)
                connection.connect(address.text.removeprefix("unix:"))
        else:
            socket.create_connection((address.host, address.port), SECONDS / 2).close()
    except TimeoutError:
        return "no answer"
    except OSError as why:
        return why.strerror or str(why)
    return ""


def _is_ours(ip: str) -> bool:
    # what can be bound is an address of this host
    try:
        with socket.socket(socket.AF_INET6 if ":" in ip else socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.bind((ip, 0))
    except OSError:
        return False
    return True


def _size(amount: int) -> str:
    return f"{amount / (1 << 30):.1f} GiB" if amount >= 1 << 30 else f"{amount >> 20} MiB"
