"""Checks of nginx: whether it runs, serves what it should, would start again, and what it needs of the host."""

from __future__ import annotations

import contextlib
import os
import pwd
import re
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

from . import proxy
from .findings import Finding, Look, ok, problem, some, warning
from .processes import all_pids, children, command_line, is_alive, open_files, started_at

#: The oldest nginx that the templates were made for.
OLDEST = (1, 18)
#: How long a worker may finish what it has before somebody should look.
LONG_DRAIN = 3600.0
#: Files that nginx holds open besides the logs of apps: listeners, its own logs, some connections.
_SPARE = 512
_UNITS = (
    Path("/etc/systemd/system/nginx.service.d"),
    Path("/run/systemd/system/nginx.service.d"),
    Path("/usr/lib/systemd/system/nginx.service.d"),
)
_LISTEN = "0A"  # include/net/tcp_states.h, as /proc/net/tcp prints it


def binary(look: Look) -> Iterator[Finding]:
    """The nginx there is."""
    path = look.plane.binary
    said = subprocess.run([path, "-v"], capture_output=True, text=True, timeout=20, check=False)
    match = re.search(r"nginx/(\d+)\.(\d+)\.(\d+)", said.stderr + said.stdout)
    if match is None:
        yield problem(
            f"{path} does not say which nginx it is: {(said.stderr or said.stdout)[:120]}", "router proxy:set --global nginx-binary PATH"
        )
        return
    version = ".".join(match.groups())
    if (int(match[1]), int(match[2])) < OLDEST:
        yield problem(f"nginx {version} is older than {'.'.join(map(str, OLDEST))}", "sudo apt-get install nginx")
    else:
        yield ok(f"nginx {version} ({path})")


def master(look: Look) -> Iterator[Finding]:
    """Whether it runs, if it should."""
    if look.master is None:
        if not look.is_wanted:
            yield warning("the proxy is stopped: changes are saved, and nothing is served", look.plane.start_line())
        elif look.plane.is_host_mode:
            yield problem("nginx should run and does not", look.plane.start_line())
        else:
            yield problem("nginx should run and does not", look.plane.start_line(), lambda: _start(look))
        return
    yield ok(f"pid {look.master}")
    with contextlib.suppress(OSError):
        if str(Path(f"/proc/{look.master}/exe").readlink()).endswith(" (deleted)"):
            again = "sudo systemctl restart nginx" if look.plane.is_host_mode else "router proxy:stop && router proxy:start"
            yield warning("the program of the running nginx was replaced since it was started (an upgrade)", again)


def workers(look: Look) -> Iterator[Finding]:
    """Whether some serve, and none takes for ever to end."""
    if look.master is None:
        return
    serving_now = [w for w in look.workers if not w.shutting_down]
    if not serving_now:
        yield problem("the master has no worker that serves", f"its log: {look.plane.error_log}")
    leaving = proxy.draining(look.master, look.workers)
    for each in leaving:
        if each["seconds"] > LONG_DRAIN:
            held = "" if each["connections"] is None else f", {each['connections']} connections"
            what = f"worker {each['pid']} has been finishing for {each['seconds'] / 3600:.1f} h{held} (websockets, as a rule)"
            yield warning(what, f"kill -TERM {each['pid']}, which cuts them")
    yield ok(f"{len(serving_now)} serve, {len(leaving)} drain")


def serving(look: Look) -> Iterator[Finding]:
    """Whether nginx answers with the current generation."""
    if look.master is None or look.index is None:
        return
    found = look.router.serving()
    if found == look.index.number:
        yield ok(f"generation {found}")
        return
    what = "nothing of ours" if found is None else f"generation {found}"
    yield problem(
        f"nginx serves {what}, and current is generation {look.index.number}",
        "router proxy:reload",
        lambda: f"nginx serves generation {proxy.reload(look.router)}",
    )


def orphans(look: Look) -> Iterator[Finding]:
    """Workers of an earlier master of this root: they go on to accept with what they know."""
    if look.plane.is_host_mode:
        return
    found = _orphans(look)
    if not found:
        return
    pids = ", ".join(str(pid) for pid, _ in found)
    what = f"nginx processes without a master hold its ports and serve what is old: {pids}"
    yield problem(what, f"kill {pids.replace(',', '')}", lambda: _end_orphans(look))


def sockets(look: Look) -> Iterator[Finding]:
    """Unix sockets below run/ that nobody listens on: one of nginx's keeps it from starting."""
    for path in sorted(look.paths.run.glob("*.sock") if look.paths.run.is_dir() else []):
        if path.is_socket() and _is_dead(path):
            yield problem(f"{path} is a dead socket: nobody listens", f"rm {path}", lambda path=path: _unlink(path))  # type: ignore[misc]  # bound now


def run_files(look: Look) -> Iterator[Finding]:
    """A pid file of a master that is gone: the pid may be another program's by now."""
    path = look.paths.run / "nginx.pid"
    if look.plane.is_host_mode or look.master is not None or not path.exists():
        return
    yield warning(
        f"{path} names {path.read_text().strip() or 'nobody'}, which is no master of this root", f"rm {path}", lambda: _unlink(path)
    )


def configuration(look: Look) -> Iterator[Finding]:
    """Whether nginx would start with what is current: after a reboot it has to."""
    if look.index is None and not look.plane.is_host_mode:
        return
    (look.paths.run / "tmp").mkdir(parents=True, exist_ok=True)
    tested = look.plane.test(look.plane.conf)
    if not tested.ok:
        yield problem(f"nginx would not start: {' / '.join(tested.messages[-3:]) or 'it says nothing'}", f"nginx -t -c {look.plane.conf}")
    for message in tested.messages if tested.ok else ():
        yield warning(f"nginx says {message}")
    if tested.ok:
        yield ok(f"nginx would start with {look.plane.conf}")


def ports(look: Look) -> Iterator[Finding]:
    """Who listens on the ports of apps."""
    if look.index is None:
        return
    ours = _tree(look.master)
    listeners = _listeners()
    missing = False
    bound = look.settings.get("bind-address").split()
    for port in look.ports:
        own = any(inode in ours for _, inode, _ in listeners.get(port, []))
        strangers = [each for each in listeners.get(port, []) if each[1] not in ours and _clashes(each[0], bound)]
        holders = sorted({_holder(inode, uid) for _, inode, uid in strangers})
        if look.master is None:
            for holder in holders:
                missing = True
                yield problem(
                    f"port {port} is taken by {holder}: nginx will not start", "stop it, or: router proxy:set --global http-port N"
                )
        elif ours and not own:
            missing = True
            who = f"{some(holders)} has it" if holders else "nobody does"
            yield problem(f"nginx does not listen on port {port}; {who}", "router proxy:reload")
        elif ours and holders:
            missing = True
            where = some([address for address, _, _ in strangers])
            yield warning(f"{some(holders)} listens on {where} too, and takes connections from nginx", f"sudo ss -ltnp sport = :{port}")
    if not missing:
        free = "nobody has" if look.master is None else "nginx listens on"
        yield ok(f"{free} {some([str(port) for port in look.ports])}")


def main_lines(look: Look, units: tuple[Path, ...] = _UNITS) -> Iterator[Finding]:
    """Host mode: lines at main level of the distribution's nginx.conf that router may not write."""
    host = look.plane.host
    if host is None:
        return
    conf = look.plane.conf
    if not host.includes_router:
        yield problem(f"{conf} does not include {look.paths.current}/router.conf", "sudo router setup")
    has = {name for name, _ in host.main}
    if "worker_shutdown_timeout" not in has:
        yield warning(
            f"{conf} has no worker_shutdown_timeout: after each reload workers stay as long as their last websocket",
            f"put `worker_shutdown_timeout 1h;` at the top of {conf}",
        )
    if "worker_rlimit_nofile" not in has:
        yield warning(
            f"{conf} has no worker_rlimit_nofile: workers may open {_soft_limit(look.master) or 1024} files, two a request",
            f"put `worker_rlimit_nofile 65536;` at the top of {conf}",
        )
    if host.sockets and not any(_removes_sockets(directory) for directory in units):
        yield warning(
            f"nginx listens on {some(host.sockets)}, and a socket that a killed one leaves keeps the next from starting",
            f"a drop-in {units[0]}/router.conf with `[Service]` and `ExecStartPre=/bin/rm -f {host.sockets[0].removeprefix('unix:')}`",
        )


def names_hash(look: Look) -> Iterator[Finding]:
    """Whether the longest name has room in nginx's hash of server names."""
    if look.index is None:
        return
    names = [name.removeprefix("*.") for name in look.index.owners]
    longest = max(names, key=len, default="")
    host = look.plane.host
    size, most = (
        (512, 65536) if host is None else (_hash_setting(host.http, "bucket_size", 512), _hash_setting(host.http, "max_size", 65536))
    )
    # an element is a pointer, a length and the name, rounded up to pointers; a bucket ends with one more pointer
    needed = 8 + (len(longest) + 2 + 7) // 8 * 8 + 8
    if needed > size:
        yield problem(
            f"server_names_hash_bucket_size {size} is too small for {longest} (app {look.index.owners.get(longest, '?')})",
            f"set it to 512 in the http block of {look.plane.conf}",
        )
    elif host is not None and len(names) > most:
        fix = f"set server_names_hash_max_size to 65536 in {look.plane.conf}"
        yield warning(f"server_names_hash_max_size {most} is small for {len(names)} names: each look-up takes longer", fix)
    else:
        yield ok(f"{len(names)} names, the longest of {len(longest)} characters")


def open_files_limit(look: Look) -> Iterator[Finding]:
    """Whether nginx may open the logs of all apps, two each."""
    apps = sum(1 for entry in (look.index.apps if look.index else {}).values() if entry.vhost)
    needed = 2 * apps + _SPARE
    limit = _soft_limit(look.master)
    fix = (
        "LimitNOFILE=65536 in a drop-in of nginx.service"
        if look.plane.is_host_mode
        else "ulimit -Hn 65536, then proxy:stop and proxy:start"
    )
    if limit is None:
        limit = look.index.facts.nofile if look.index and not look.plane.is_host_mode else 0
    if limit and limit < needed:
        yield problem(f"nginx may open {limit} files, and {apps} apps with two logs each need {needed}", fix)
        return
    if look.master is not None and limit:
        held = len(open_files(look.master))
        if held > limit * 0.9:
            yield warning(f"nginx's master has {held} of {limit} files open", fix)
            return
    yield ok(f"{limit or 'unknown'}; two logs of each app, and what else there is, need {needed}")


def _start(look: Look) -> str:
    proxy.start(look.router)
    return "nginx was started"


def _orphans(look: Look) -> list[tuple[int, int]]:
    log, conf = str(look.paths.log / "error.log"), str(look.plane.conf)
    family = {look.master, *(children(look.master) if look.master else ())}
    found = []
    for pid in list(all_pids()):
        title = command_line(pid)
        if pid in family or not title.startswith("nginx: "):
            continue
        if (title.startswith("nginx: master") and conf in title) or (title.startswith("nginx: worker") and log in open_files(pid)):
            found.append((pid, started_at(pid)))
    return found


def _end_orphans(look: Look) -> str:
    with look.router.locked():  # nobody starts or reloads meanwhile
        found = _orphans(look)
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid, started in found:
                if is_alive(pid, started):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, number)
            deadline = time.monotonic() + 2
            while any(is_alive(pid, started) for pid, started in found) and time.monotonic() < deadline:
                time.sleep(0.01)
    return f"ended {', '.join(str(pid) for pid, _ in found) or 'nothing: they are gone'}"


def _is_dead(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as probe:
        probe.settimeout(1)
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            return True
        except OSError:
            return False
    return False


def _unlink(path: Path) -> str:
    path.unlink(missing_ok=True)
    return f"removed {path}"


def _tree(pid: int | None) -> set[int]:
    """The inodes of the sockets of the master: its workers have them from it."""
    if pid is None:
        return set()
    return {int(target[8:-1]) for target in open_files(pid) if target.startswith("socket:[")}


def _listeners() -> dict[int, list[tuple[str, int, int]]]:
    """Port -> address, inode and user of every TCP listener of the host."""
    found: dict[int, list[tuple[str, int, int]]] = {}
    for table in (Path("/proc/net/tcp"), Path("/proc/net/tcp6")):
        with contextlib.suppress(FileNotFoundError):  # a kernel without IPv6
            for row in table.read_text().splitlines()[1:]:
                _, local, _, state, _, _, _, uid, _, inode, *_ = row.split()
                if state == _LISTEN:
                    digits, _, port = local.partition(":")
                    found.setdefault(int(port, 16), []).append((_address(digits, int(port, 16)), int(inode), int(uid)))
    return found


def _address(digits: str, port: int) -> str:
    words = b"".join(int(digits[i : i + 8], 16).to_bytes(4, "little") for i in range(0, len(digits), 8))
    if len(words) == 4:
        return f"{socket.inet_ntop(socket.AF_INET, words)}:{port}"
    return f"[{socket.inet_ntop(socket.AF_INET6, words)}]:{port}"


def _clashes(listener: str, bound: list[str]) -> bool:
    """Whether who listens there has what nginx wants: an address of its own, or all of them."""
    ip = listener.rpartition(":")[0].strip("[]")
    return not bound or ip in bound or ip == "::" or (ip == "0.0.0.0" and any("." in each for each in bound))  # noqa: S104 - compared, not bound


def _holder(inode: int, uid: int) -> str:
    for pid in all_pids():
        if f"socket:[{inode}]" in open_files(pid):
            return f"pid {pid} ({command_line(pid)[:80]})"
    try:
        return f"a process of {pwd.getpwuid(uid).pw_name}"
    except KeyError:
        return f"a process of user {uid}"


def _removes_sockets(directory: Path) -> bool:
    for path in directory.glob("*.conf") if directory.is_dir() else []:
        with contextlib.suppress(OSError):
            if re.search(r"^\s*ExecStartPre\s*=.*\brm\b", path.read_text(), re.M):
                return True
    return False


def _hash_setting(http: list[tuple[str, list[str]]], name: str, default: int) -> int:
    value = next((args[0] for directive, args in http if directive == f"server_names_hash_{name}" and args), "")
    return int(value) if value.isdigit() else default


def _soft_limit(pid: int | None) -> int | None:
    """How many files a process may open; None where that is not known."""
    if pid is None:
        return None
    with contextlib.suppress(OSError):
        match = re.search(r"^Max open files\s+(\S+)", Path(f"/proc/{pid}/limits").read_text(), re.M)
        if match:
            return int(match[1]) if match[1].isdigit() else 1 << 30
    return None
