"""Checks of nginx: whether it runs, serves what it should, would start again, and what it needs of the host."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

from . import listening, live, proxy
from .doctor_objects import rewrite
from .errors import RouterError, StateCorrupt
from .findings import Finding, Look, ok, problem, skipped, some, warning
from .orphans import counted
from .processes import open_files

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
            yield problem("nginx should run and does not", *_start_of(look))
        return
    yield ok(f"pid {look.master}")
    with contextlib.suppress(OSError):
        if str(Path(f"/proc/{look.master}/exe").readlink()).endswith(" (deleted)"):
            again = "sudo systemctl restart nginx" if look.plane.is_host_mode else "router proxy:stop && router proxy:start"
            yield warning("the program of the running nginx was replaced since it was started (an upgrade)", again)
    if (before := look.plane.predecessor()) is not None:
        what = f"an upgrade of nginx is under way: its old master, pid {before}, accepts connections too, and no change is taken up"
        yield warning(what, f"kill -QUIT {before}", lambda: _quit(before))


def workers(look: Look) -> Iterator[Finding]:
    """Whether some serve, and none takes for ever to end."""
    if look.master is None:
        yield skipped("there is no master")
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
        yield skipped("there is no master" if look.master is None else "there is no generation yet")
        return
    found = look.router.serving()
    if found == look.index.number:
        yield ok(f"generation {found}")
        return
    if found is None and look.plane.is_mute(look.index.facts):
        what = f"{look.paths.run / 'probe.sock'} is gone: nginx runs and serves, but cannot be asked what, and takes no change up"
        yield problem(what, "router proxy:stop && router proxy:start", lambda: _start_anew(look))
        return
    what = "nothing of ours" if found is None else f"generation {found}"
    yield problem(
        f"nginx serves {what}, and current is generation {look.index.number}",
        "router proxy:reload",
        lambda: f"nginx serves generation {proxy.reload(look.router)}",
    )


def orphans(look: Look) -> Iterator[Finding]:
    """Workers of an earlier master of this root: they go on to accept with what they know."""
    found = look.orphans
    if not found:
        return
    who, pids = counted(found), some([str(each.pid) for each in found])
    if look.is_to_be_started:
        # whoever ends them first leaves nobody that serves; the start does it when it has tried what can be tried before
        answer = look.router.serving()
        does = "hold the ports and do not answer" if answer is None else f"serve generation {answer}"
        yield problem(f"{who} {does}: {pids}", *_start_of(look))
    elif look.master is None:
        yield problem(f"{who} of a stopped nginx: {pids}", "router proxy:stop", lambda: _end_orphans(look))
    else:
        yield problem(f"{who} beside the master, with an old configuration: {pids}", mend=lambda: _end_orphans(look))


def sockets(look: Look) -> Iterator[Finding]:
    """Unix sockets below run/ that nobody listens on: one of nginx's keeps it from starting."""
    for path in sorted(look.paths.run.glob("*.sock") if look.paths.run.is_dir() else []):
        if look.is_to_be_started and path.name == "probe.sock":
            continue  # the start removes it
        if path.is_socket() and _is_dead(path):
            yield problem(f"{path} is a dead socket: nobody listens", f"rm {path}", lambda path=path: _unlink(path))  # type: ignore[misc]  # bound now


def run_files(look: Look) -> Iterator[Finding]:
    """A pid file of a master that is gone: the pid may be another program's by now."""
    path = look.paths.run / "nginx.pid"
    if look.plane.is_host_mode or look.master is not None or look.is_to_be_started or not path.exists():
        return  # a start writes it anew
    yield warning(
        f"{path} names {path.read_text().strip() or 'nobody'}, which is no master of this root", f"rm {path}", lambda: _unlink(path)
    )


def configuration(look: Look) -> Iterator[Finding]:
    """Whether nginx would start with what is current: after a reboot it has to."""
    if look.index is None and not look.plane.is_host_mode:
        return
    tested = look.plane.test(look.plane.conf)
    if not tested.ok:
        what = f"nginx would not start: {' / '.join(tested.messages[-3:]) or 'it says nothing'}"
        if ways := _ways_out(look):
            yield problem(what, ways)  # no file of ours brings it
        else:
            yield problem(what, f"nginx -t -c {look.plane.conf}", None if look.plane.is_host_mode else lambda: _rewrite(look))
    for message in tested.messages if tested.ok else ():
        yield warning(f"nginx says {message}")
    if tested.ok:
        yield ok(f"nginx would start with {look.plane.conf}")


def ports(look: Look) -> Iterator[Finding]:
    """Who listens on the ports of apps."""
    if look.index is None:
        return
    ours = listening.inodes([look.master] if look.master else [each.pid for each in look.orphans])
    listeners = listening.listeners()
    missing = False
    bound = look.settings.get("bind-address").split()
    for port in look.ports:
        own = any(each.inode in ours for each in listeners.get(port, ()))
        strangers = [each for each in listeners.get(port, ()) if each.inode not in ours and listening.clashes(each.address, bound)]
        holders = listening.holders(strangers)
        if look.master is None:
            for holder in holders:
                missing = True
                what, fix = _at_a_start(look, port)
                yield problem(f"port {port} is taken by {holder}: {what}", f"stop it, or: {fix}")
        elif ours and not own:
            missing = True
            who = f"{some(holders)} has it" if holders else "nobody does"
            yield problem(f"nginx does not listen on port {port}; {who}", "router proxy:reload")
        elif ours and holders:
            missing = True
            where = some([each.address for each in strangers])
            yield warning(f"{some(holders)} listens on {where} too, and takes connections from nginx", f"sudo ss -ltnp sport = :{port}")
    if not missing:
        who = "nginx listens on" if look.master else "nobody but its orphans has" if look.orphans else "nobody has"
        yield ok(f"{who} {some([str(port) for port in look.ports])}")


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
        set_to = look.settings.get("worker-shutdown-timeout")
        what = f"worker-shutdown-timeout is {set_to}, and" if set_to else "after each reload workers stay as long as their last websocket:"
        line = f"`worker_shutdown_timeout {set_to or '1h'};`"
        yield warning(f"{what} {conf} has no worker_shutdown_timeout", f"put {line} at the top of {conf}")
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


def _rewrite(look: Look) -> str:
    did = rewrite(look)
    if not (tested := look.plane.test(look.plane.conf)).ok:
        raise StateCorrupt(f"that is not what is wrong: {' / '.join(tested.messages[-1:])}", hint=f"nginx -t -c {look.plane.conf}")
    return did


def _start_anew(look: Look) -> str:
    proxy.stop(look.router)
    return f"nginx was ended, and {_start(look)}"


def _at_a_start(look: Look, port: int) -> tuple[str, str]:
    """What becomes of a port that is taken, and what to type if that is to stay so."""
    apps = look.index.apps if look.index else {}
    app = next((name for name, entry in sorted(apps.items()) if port in entry.ports), None)
    if port == look.settings.http_port or app is None:
        return "nginx will not start", "router proxy:set --global http-port N"
    return f"a start leaves app {app} out", f"router ports:remove {app} http:{port}"


def _start_of(look: Look) -> tuple[str, Callable[[], str] | None]:
    """What to type so that nginx runs, and what does it; nothing does while the module that it loads is not the right one."""
    ways = _ways_out(look)
    return (ways, None) if ways else (look.plane.start_line(), lambda: _start(look))


def _ways_out(look: Look) -> str:
    """What to type where nginx would not start because of its Lua module; nothing where it is not that."""
    modules = look.index.facts.modules if look.index else ()
    if not modules or not (live.lost(modules) or live.ways_out(modules, _words(look))):
        return ""
    return f"{live.WAYS}; then: {look.plane.start_line()}" if look.is_to_be_started else live.WAYS


def _words(look: Look) -> str:
    """What nginx says of what is current; nothing where there is no nginx to ask."""
    with contextlib.suppress(RouterError):
        return " ".join(look.plane.test(look.plane.conf).messages)
    return ""


def _start(look: Look) -> str:
    started = proxy.start(look.router)
    return "; ".join(started.lines()) if started else "nginx was started meanwhile"


def _quit(pid: int) -> str:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGQUIT)
    return f"the old master, pid {pid}, ends when its workers have finished what they do"


def _end_orphans(look: Look) -> str:
    with look.router.locked():  # nobody starts or reloads meanwhile
        found = look.plane.end_orphans()
    return f"ended {counted(found)}" if found else "they are gone"


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
