"""What the host has already: its own nginx configuration, IPv6, open files, the user that workers run as."""

from __future__ import annotations

import glob
import os
import pwd
import re
import resource
import secrets
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .errors import UsageProblem
from .model import Globals, HostFacts
from .names import listener
from .vetting import made_variable

#: How many files nginx may hold open, where the host lets it.
MOST_FILES = 65536
_DEPTH = 10


@dataclass
class HostConf:
    """The distribution's nginx.conf with what it includes, router's own files left out."""

    pid: str = ""
    error_log: str = ""
    main: list[tuple[str, list[str]]] = field(default_factory=list)  # directives at main level
    http: list[tuple[str, list[str]]] = field(default_factory=list)  # directives at http level
    sockets: list[str] = field(default_factory=list)  # unix sockets that servers listen on
    default_servers: set[str] = field(default_factory=set)  # listeners that have a default_server
    names: dict[tuple[str, int], str] = field(default_factory=dict)  # server_name and port -> file:line
    includes_router: bool = False


def read(conf: Path, root: Path, binary: str) -> HostConf:
    """The host's configuration as nginx would read it.

    Raises:
        UsageProblem: it cannot be read or is no nginx configuration; file and line are named.
    """
    found = HostConf()
    _walk(conf, conf.parent, root, [], found, 0)
    if not found.pid or not found.error_log:
        paths = built_in(binary)
        found.pid = found.pid or paths.get("pid-path", "/run/nginx.pid")
        found.error_log = found.error_log or paths.get("error-log-path", "/var/log/nginx/error.log")
    return found


def facts(root: Path, settings: Globals, previous: HostFacts | None, host: HostConf | None) -> HostFacts:
    """What a generation must know of this host."""
    nofile = min(resource.getrlimit(resource.RLIMIT_NOFILE)[1], MOST_FILES)
    has = []
    if host is not None:
        for name, args in host.http:
            has += [f"{name} {args[0]}", name] if args else [name]
            if variable := made_variable([name, *args]):
                has.append(f"variable ${variable}")
        has += [f"default_server:{listen}" for listen in host.default_servers]
        has += [f"server_name {name} {port} {place}" for (name, port), place in host.names.items()]
    return HostFacts(
        ipv6=has_ipv6(),
        nofile=nofile,
        user="" if settings.is_host_mode or os.geteuid() != 0 else _worker_user(root),
        probe_name=previous.probe_name if previous and previous.probe_name else f"router-probe-{secrets.token_hex(16)}.invalid",
        host_has=tuple(sorted(set(has))),
    )


def has_ipv6() -> bool:
    """Whether a listener on an IPv6 address can be opened here."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


def _worker_user(root: Path) -> str:
    # workers must reach their temp directories: below a directory that only root may enter they stay root
    for parent in (root, *root.parents):
        if parent.exists() and not parent.stat().st_mode & 0o001:
            return "root"
    for name in ("www-data", "nginx", "nobody"):
        try:
            pwd.getpwnam(name)
        except KeyError:
            continue
        return name
    return "root"


def _walk(path: Path, base: Path, root: Path, context: list[str], found: HostConf, depth: int) -> None:
    import crossplane  # 30 ms, host mode alone needs it here

    if depth > _DEPTH:
        return
    if not path.is_file():
        raise UsageProblem(f"{path}: there is no such nginx configuration", hint="router setup --nginx-conf PATH")
    payload = crossplane.parse(str(path), single=True, strict=False, check_ctx=False, check_args=False)
    for error in payload["errors"]:
        raise UsageProblem(f"{path}:{error.get('line') or 1}: {error['error']}")
    for config in payload["config"]:
        _block(config["parsed"], path, base, root, context, found, depth)


def _block(directives: list[dict[str, Any]], path: Path, base: Path, root: Path, context: list[str], found: HostConf, depth: int) -> None:
    if context == ["http", "server"]:
        _names(directives, path, found)
    for directive in directives:
        name, args = directive["directive"], directive["args"]
        if not context and name != "include":
            found.main.append((name, args))
        if context == ["http", "server"] and name == "listen" and args and args[0].startswith("unix:"):
            found.sockets.append(args[0])
        if name == "include" and args:
            pattern = str(base / args[0])
            if Path(args[0]).is_relative_to(root):
                found.includes_router = True
                continue
            for file in sorted(glob.glob(pattern)):  # noqa: PTH207 - an absolute pattern
                _walk(Path(file), base, root, context, found, depth + 1)
        elif not context and name == "pid" and args:
            found.pid = str(base / args[0])
        elif not context and name == "error_log" and args:
            found.error_log = str(base / args[0])
        elif context == ["http"] and name not in ("server", "upstream"):
            found.http.append((name, args))
        elif context == ["http", "server"] and name == "listen" and {"default_server", "default"} & set(args[1:]):
            found.default_servers.add(listener(args[0]))
        if directive.get("block") and name in ("http", "server"):
            _block(directive["block"], path, base, root, [*context, name], found, depth)


def _names(server: list[dict[str, Any]], path: Path, found: HostConf) -> None:
    listens = [d["args"][0] for d in server if d["directive"] == "listen" and d["args"]] or ["80"]
    ports = {int(word) for listen in listens if (word := listen.rpartition(":")[2]).isdigit()} | ({80} if "80" in listens else set())
    for directive in server:
        if directive["directive"] == "server_name":
            for name in directive["args"]:
                for port in ports:
                    found.names.setdefault((name.lower(), port), f"{path}:{directive['line']}")


def version_of(binary: str, master: int | None, previous: HostFacts | None) -> tuple[tuple[int, ...], str]:
    """The version that both `binary` and the running `master` are at least, and the files that were asked; empty: not known.

    An upgrade replaces the file while the old program serves on: it is what reads a reload, and the new one a start.
    """
    asked: dict[str, str] = {}
    for file in (binary, f"/proc/{master}/exe") if master else (binary,):
        try:
            found = os.stat(file)  # noqa: PTH116 - of a program that was replaced the link leads to no name
        except OSError:
            return (), ""
        asked.setdefault(f"{found.st_dev}:{found.st_ino}:{found.st_mtime_ns}", file)
    program = " ".join(asked)
    if previous is not None and previous.program == program:
        return previous.version, program
    return min(map(_version, asked.values())), program


def _version(program: str) -> tuple[int, ...]:
    try:
        done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    said = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", done.stderr + done.stdout)
    return tuple(map(int, said.groups())) if said else ()


def built_in(binary: str) -> dict[str, str]:
    """The paths that nginx was built with: what it takes where its configuration says nothing."""
    said = subprocess.run([binary, "-V"], capture_output=True, text=True, timeout=20, check=False).stderr
    return dict(re.findall(r"--([a-z-]+-path)=(\S+)", said))
