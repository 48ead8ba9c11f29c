"""The nginx that serves: start, stop, test, reload, and the proof that it took a generation up.

Nothing here is believed by exit code.  `nginx -t` and `nginx -s reload` both exit 0 when a listen port is taken; the
master gives up after 2.5 s, says so in its error log, and the old configuration goes on serving every app (measured on
1.22.1).  So a reload counts when the probe answers with the new generation **and** every worker from before the signal
is gone or says "shutting down": after the first new answer old workers still accepted connections for 80 to 105 ms.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from . import errorlog, hostconf, listening, live, orphans, proof, sockets
from .dataplane import Clients, Reloaded, Verdict, Worker
from .errors import ProxyDown, ReloadFailed, UsageProblem
from .files import make_directory
from .hostconf import HostConf
from .model import Globals, HostFacts
from .orphans import Orphan
from .processes import children, command_line, is_alive, is_listened_on, parent_of, started_at
from .settings import LONGEST_SOCKET, Paths

_STOP_SECONDS = 10.0
#: How long a reload waits for the end of an upgrade of nginx; the distribution's takes a second or two.
_UPGRADE_SECONDS = 5.0


class Nginx:
    """The nginx of one root: router's own (managed) or the distribution's (host)."""

    def __init__(self, paths: Paths, settings: Globals) -> None:
        self.paths, self.settings = paths, settings

    @property
    def is_host_mode(self) -> bool:
        """Whether the distribution's nginx serves."""
        return self.settings.is_host_mode

    @property
    def conf(self) -> Path:
        """The file that the master parses."""
        return Path(self.settings.get("nginx-conf")) if self.is_host_mode else self.paths.current / "nginx.conf"

    @cached_property
    def binary(self) -> str:
        """The nginx to run.

        Raises:
            ProxyDown: there is none.
        """
        name = self.settings.get("nginx-binary")
        # a plain user's PATH lacks the sbin directories, where Debian puts it
        found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin")
        if found is None:
            raise ProxyDown(f"there is no {name} on this host", hint="sudo apt-get install nginx")
        return found

    @cached_property
    def host(self) -> HostConf | None:
        """The distribution's configuration; None in managed mode.

        Raises:
            UsageProblem: it cannot be read.
        """
        return hostconf.read(self.conf, self.paths.root, self.binary) if self.is_host_mode else None

    def facts(self, previous: HostFacts | None) -> HostFacts:
        """What a generation must know of this host.

        Raises:
            UsageProblem: the distribution's configuration cannot be read.
        """
        found = hostconf.facts(self.paths.root, self.settings, previous, self.host)
        version: tuple[int, ...] = ()
        program = ""
        if not self.is_host_mode:
            with contextlib.suppress(ProxyDown):  # without a binary nothing is taken up, and who tests it says so
                version, program = hostconf.version_of(self.binary, self.master(), previous)
        modules = live.modules(self, previous.modules if previous else ()) if self.settings.is_live else ()
        return replace(found, modules=modules, version=version, program=program)

    @property
    def error_log(self) -> Path:
        """Where the master says why it did not take a configuration up."""
        return Path(self.host.error_log) if self.host else self.paths.log / "error.log"

    @property
    def pid_file(self) -> Path:
        """Where the master leaves its pid."""
        return Path(self.host.pid) if self.host else self.paths.run / "nginx.pid"

    def wanted(self) -> bool:
        """Whether the operator wants it to run; in host mode: it includes router, and runs or was seen to."""
        if self.host is None:
            return self.paths.wanted.exists() or self.master() is not None or bool(self._lost())
        return self.host.includes_router and (self.paths.wanted.exists() or self.master() is not None)

    def master(self) -> int | None:
        """The pid of the running master."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def adopt(self) -> None:
        """Give a master that runs its pid file back, which somebody removed: without it no reload reaches it.

        One whose socket is gone too cannot be asked what it serves: it is an orphan, and a start ends it.
        """
        lost = self._lost()
        if len(lost) == 1 and (self.paths.run / "probe.sock").is_socket():
            self.pid_file.write_text(f"{lost[0]}\n")

    def is_mute(self, facts: HostFacts) -> bool:
        """Whether its socket was removed while it listens on it: no reload makes another."""
        if self.settings.is_live and not self.routes.path.is_socket() and is_listened_on(self.routes.path):
            return True
        return not self._is_asked_by_name(facts) and not (self.paths.run / "probe.sock").is_socket()

    def predecessor(self) -> int | None:
        """The pid of the master that started the present one, in an upgrade of nginx (USR2), while its workers accept."""
        try:
            pid = int(Path(f"{self.pid_file}.oldbin").read_text())
        except (OSError, ValueError):
            return None
        is_accepting = self._is_ours(pid) and pid != self.master() and any(not w.shutting_down for w in self.workers(pid))
        return pid if is_accepting else None

    def workers(self, master: int | None = None) -> list[Worker]:
        """The workers of the master, those that are shutting down too."""
        pid = master or self.master()
        if pid is None:
            return []
        found = []
        # one that was forked and had no turn yet bears the title of its master; in an upgrade (USR2) so does the next master
        unborn, next_master = command_line(pid), self.master()
        for child in children(pid):
            title = command_line(child)
            if title.startswith("nginx: worker process") or (title == unborn and child != next_master):
                found.append(Worker(child, started_at(child), "shutting down" in title))
        return found

    def probe(self, facts: HostFacts) -> str | None:
        """What the generation that serves answers at this moment; None: nobody answers."""
        path = self.paths.run / "probe.sock"
        try:
            if self._is_asked_by_name(facts):
                ip = (self.settings.get("bind-address").split() or ["127.0.0.1"])[0]
                return _ask(socket.AF_INET6 if ":" in ip else socket.AF_INET, (ip, self.settings.http_port), facts.probe_name)
            return _ask(socket.AF_UNIX, str(path), "router")
        except OSError:
            return None

    def serves(self, facts: HostFacts, probe: str) -> bool:
        """Whether every worker that accepts is known to serve the generation whose probe is `probe`.

        The answer alone proves nothing while old workers accept: the last proof is kept in run/proven and forgotten
        before each signal, so that after a crash in between the next one proves again.
        """
        return proof.last(self.paths.run) == probe and self.probe(facts) == probe

    @cached_property
    def routes(self) -> live.Live:
        """What it knows of routes that change without a reload."""
        return live.Live(self.paths.run / "live/admin.sock")

    def in_flight(self, addresses: Iterable[str]) -> Mapping[int, live.InFlight]:
        """What each worker has under way at these addresses, of routes that change without a reload."""
        if not self.settings.is_live or self.master() is None:
            return {}
        try:
            return self.routes.in_flight_of([w.pid for w in self.workers()], addresses)
        except ReloadFailed:
            return {0: live.InFlight(1)}  # who does not say may have some: the deadline decides

    def test(self, conf: Path) -> Verdict:
        """`nginx -t` of a file."""
        self._make_directories()
        done = self._run(["-t", "-q", *self._read_from(conf)], timeout=120)
        if done.returncode < 0:
            raise ReloadFailed(f"nginx -t was ended by signal {-done.returncode}", hint="the same command again")
        return Verdict(done.returncode == 0, tuple(errorlog.messages(done.stderr)))

    def start(self, facts: HostFacts, probe: str) -> None:
        """Start a managed master and see it answer with the generation whose probe is `probe`.

        What an earlier master left is ended first: after kill -9 its workers still hold the ports, and its sockets
        keep a new one from binding.  They go on serving where it is known that a new one would not start.

        Raises:
            UsageProblem: host mode: the service manager starts nginx.
            ProxyDown: it does not come up; its own words are in the message, and who has its port.
        """
        self.refuse_in_host_mode("start")
        self._make_directories()
        if (left := self.orphans()) and not (tested := self.test(self.conf)).ok:
            words = f"nginx would not start: {errorlog.words(tested.messages)}; {orphans.counted(left)} still serve"
            raise ProxyDown(words, hint="router doctor")
        self.end_orphans()
        self._write_signal_conf()
        done = self._run(["-c", str(self.conf), "-p", f"{self.paths.run}/", "-g", "daemon on;"], timeout=proof.SECONDS)
        if done.returncode != 0:
            said = [m for m in errorlog.messages(done.stderr) if m.startswith("[emerg]")] or done.stderr.splitlines()
            hint = "stop it, or: router proxy:set --global http-port N" if listening.is_taken(said) else f"its log: {self.error_log}"
            raise ProxyDown(f"nginx does not start: {errorlog.words(listening.named(said))}", hint=hint)
        deadline = time.monotonic() + proof.SECONDS
        while self.probe(facts) != probe:
            if time.monotonic() > deadline or (self.pid_file.exists() and self.master() is None):
                raise ProxyDown("nginx was started and does not answer", hint=f"its log: {self.error_log}")
            time.sleep(0.002)
        proof.note(self.paths.run, probe)

    def stop(self) -> bool:
        """End the managed master: requests that run may finish for 10 s; False: it did not run.

        Raises:
            UsageProblem: host mode: the service manager stops nginx.
        """
        self.refuse_in_host_mode("stop")
        master = self.master()
        if master is None:
            self.end_orphans()
            return False
        for number in (signal.SIGQUIT, signal.SIGTERM, signal.SIGKILL):
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, number)
            deadline = time.monotonic() + _STOP_SECONDS
            while is_alive(master) and time.monotonic() < deadline:
                time.sleep(0.005)
            if not is_alive(master):
                break
        self.end_orphans()
        return True

    def reload(self, facts: HostFacts, probe: str | None) -> Reloaded:
        """`nginx -s reload`, and see every worker serve the generation whose probe is `probe` (None: one without a probe).

        Raises:
            ProxyDown: no master runs.
            ReloadFailed: the old configuration still serves; the log's words are in the message.
        """
        master = self.master()
        if master is None:
            raise ProxyDown("nginx is not running", hint=self.start_line())
        self._refuse_what_cannot_be_proven(facts)
        self._make_directories()
        conf = self.conf if self.is_host_mode else self._write_signal_conf()
        if not (before := proof.last(self.paths.run)):
            proof.until_still(master, conf)
        old = [w for w in self.workers(master) if not w.shutting_down]
        # who accepts has the listeners of the master, and the descriptors of a thousand apps take 10 ms a process
        held = sockets.held_by(w.pid for w in old)
        ports = sockets.ports_of(held)
        touched, websockets = sum(_client_connections(held, ports)), self._websockets(old)
        log = errorlog.Tail(self.error_log)
        proof.note(self.paths.run, "")
        command = self.settings.get("reload-command")
        if self.is_host_mode and command:
            done = _run(shlex.split(command), 60, f"the reload-command ({command})")
        else:
            done = self._run(["-s", "reload", *self._read_from(conf)], timeout=60)
        if done.returncode != 0:
            log.close()
            proof.note(self.paths.run, before)
            # in host mode the whole is parsed first, and a service manager keeps nginx's words to itself
            verdict = self.test(self.conf)
            if not verdict.ok and (said := next((m for m in verdict.messages if m.startswith("[emerg]")), "")):
                raise proof.Kept(f"nginx did not take the change up: {said}", hint=f"its log: {self.error_log}")
            raise ReloadFailed(f"the reload failed: {errorlog.words(done.stderr.splitlines())}", hint=f"its log: {self.error_log}")
        try:
            proof.prove(master, old, lambda: self._answers(facts, probe, before), log, minds_conflicts=not self.is_host_mode)
        except proof.Kept as why:
            proof.note(self.paths.run, before)
            if listening.is_taken([why.message]):
                why.message = listening.named([why.message])[0]
                # on some addresses it has the port already, and no reload changes which
                is_own = f": pid {master} (" in why.message
                ways = "router proxy:stop, then this again, then router proxy:start" if is_own else "stop it, or take another port"
                why.hint = f"{ways}; its log: {self.error_log}"
            raise
        finally:
            log.close()
        proof.note(self.paths.run, probe or "")
        left = [w for w in old if is_alive(w.pid, w.started)]
        kept = min(touched, sum(_client_connections(sockets.held_by(w.pid for w in left), ports)))
        return Reloaded(tuple((w.pid, w.started) for w in left), touched - kept, kept, websockets)

    def start_line(self) -> str:
        """What to type to start it."""
        return "sudo systemctl start nginx" if self.is_host_mode else "router proxy:start"

    def orphans(self) -> list[Orphan]:
        """The processes of an earlier master of this root; in host mode none: the service manager sees to them."""
        if self.is_host_mode:
            return []
        master, before = self.master(), self.predecessor()
        found = orphans.find(self.paths.log / "error.log", self.conf, master)
        # in an upgrade the old master serves too, until somebody ends it
        return [each for each in found if before is None or (each.pid != before and parent_of(each.pid) != before)]

    def end_orphans(self) -> list[Orphan]:
        """End the processes of an earlier master of this root, and remove their sockets; those that were ended."""
        found = self.orphans()
        orphans.end(found)
        if self.master() is None:
            (self.paths.run / "probe.sock").unlink(missing_ok=True)
            self.routes.path.unlink(missing_ok=True)
        return found

    def refuse_in_host_mode(self, verb: str) -> None:
        """In host mode the service manager starts and stops nginx.

        Raises:
            UsageProblem: this is host mode; the line to type is said.
        """
        if self.is_host_mode:
            raise UsageProblem(f"systemd owns nginx here (mode host): router does not {verb} it", hint=f"sudo systemctl {verb} nginx")

    def _refuse_what_cannot_be_proven(self, facts: HostFacts) -> None:
        deadline = time.monotonic() + _UPGRADE_SECONDS
        while (before := self.predecessor()) is not None:
            if time.monotonic() > deadline:
                what = f"an upgrade of nginx is under way: the workers of its old master, pid {before}, accept too"
                raise ReloadFailed(what, hint=f"kill -QUIT {before} ends them when they have finished what they do")
            time.sleep(0.02)
        if self.is_mute(facts):
            path = self.paths.run / "probe.sock"
            raise ReloadFailed(f"{path} is gone: nginx cannot be asked what it serves", hint="router doctor --fix starts it anew")

    def _lost(self) -> list[int]:
        """Masters of this root that no pid file names."""
        if self.is_host_mode or self.pid_file.exists():
            return []
        return [each.pid for each in self.orphans() if not each.is_worker]

    def _is_asked_by_name(self, facts: HostFacts) -> bool:
        """Whether the probe is a server name: host mode has no socket, and bind(2) takes no long path."""
        return bool(facts.probe_name) and (self.is_host_mode or len(str(self.paths.run / "probe.sock")) > LONGEST_SOCKET)

    def _answers(self, facts: HostFacts, probe: str | None, before: str) -> bool:
        answer = self.probe(facts)
        # without a probe of ours the host's default site may answer in its place
        return answer == probe if probe is not None else answer is None or answer != before

    def clients(self, master: int) -> Clients:
        """The client connections of the workers that accept."""
        workers = [w for w in self.workers(master) if not w.shutting_down]
        held = sockets.held_by(w.pid for w in workers)
        busy, idle = _client_connections(held, sockets.ports_of(held))
        return Clients(busy + idle, idle, self._websockets(workers))

    def _websockets(self, workers: Sequence[Worker]) -> int | None:
        if not self.settings.is_live:
            return None  # from outside a websocket looks like a slow request
        try:
            return self.routes.in_flight([w.pid for w in workers], None).websockets
        except ReloadFailed:
            return None

    def _make_directories(self) -> None:
        if self.is_host_mode:
            return
        for directory in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            make_directory(self.paths.run / "tmp" / directory)
        # nginx lets everybody connect to its unix sockets: the directory is what keeps them out
        make_directory(self.routes.path.parent, mode=0o700)

    def _is_ours(self, pid: int) -> bool:
        title = command_line(pid)
        return title.startswith("nginx: master process") and (self.is_host_mode or orphans.is_title_of(title, self.conf))

    def _write_signal_conf(self) -> Path:
        from .render import quoted  # with jinja2, which a look at the proxy does without

        # `nginx -s` parses the file it is given for the pid alone: 4 ms here, 75 with 1,000 vhosts
        path = self.paths.run / "signal.conf"
        text = f"pid {quoted(self.pid_file)};\nevents {{}}\n"
        if not path.exists() or path.read_text() != text:
            fresh = path.with_name(f".signal.conf.{os.getpid()}")
            fresh.write_text(text)
            fresh.rename(path)
        return path

    def _read_from(self, conf: Path) -> list[str]:
        # the distribution's configuration is read under its own prefix: its load_module lines are relative to that
        prefix = ["-p", f"{conf.parent}/"] if conf.is_relative_to(self.paths.root) else []
        return ["-c", str(conf), *prefix]

    def _run(self, arguments: Sequence[str], timeout: float) -> subprocess.CompletedProcess[str]:
        # the master opens two logs an app before it sets any limit of its own, and the usual soft limit is 1024
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, hostconf.MOST_FILES), hard))
        # -e: before the configuration is read, messages would go to the built-in log, which a plain user cannot open
        return _run([self.binary, "-e", "stderr", *arguments], timeout, f"nginx {arguments[0]}")


def _client_connections(held: Mapping[int, list[sockets.Socket] | None], ports: frozenset[int]) -> tuple[int, int]:
    """How many client connections have one to an instance beside them in their worker, and how many have not."""
    busy = idle = 0
    for found in held.values():
        open_now = [s for s in found or () if not s.listens]
        clients = sum(not s.is_unix and s.port in ports for s in open_now)
        # the probe and the admin socket have a name at this end, a connection to an instance has none
        instances = sum(not s.is_from_client(ports) for s in open_now)
        busy += min(clients, instances)
        idle += max(0, clients - instances)
    return busy, idle


def _run(words: Sequence[str], timeout: float, what: str) -> subprocess.CompletedProcess[str]:
    # a process group of its own: Ctrl-C is for the command, and must not become a verdict of nginx
    try:
        return subprocess.run(
            words,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout,
            check=False,
            stdin=subprocess.DEVNULL,
            process_group=0,
        )
    except subprocess.TimeoutExpired:
        raise ReloadFailed(f"{what} did not end within {timeout:.0f} s", hint="router status") from None
    except OSError as why:
        raise ReloadFailed(f"{what} cannot be run: {why.strerror}") from None


def _ask(family: int, address: object, name: str) -> str | None:
    with socket.socket(family, socket.SOCK_STREAM) as connection:
        connection.settimeout(2)
        connection.connect(address)  # type: ignore[arg-type]  # a path or a host and a port, by family
        connection.sendall(f"GET / HTTP/1.0\r\nHost: {name}\r\n\r\n".encode())
        answer = b""
        while piece := connection.recv(4096):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    return body.decode(errors="replace").strip() if b" 200 " in head.split(b"\r\n")[0] else None
