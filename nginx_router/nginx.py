"""The nginx that serves: start, stop, test, reload, and the proof that it took a generation up.

Nothing here is believed by exit code.  `nginx -t` and `nginx -s reload` both exit 0 when a listen port is taken; the
master gives up after 2.5 s, says so in its error log, and the old configuration goes on serving every app (measured on
1.22.1).  So a reload counts when the probe answers with the new generation **and** every worker from before the signal
is gone or says "shutting down": after the first new answer old workers still accepted connections for 80 to 105 ms.
"""

from __future__ import annotations

import contextlib
import os
import re
import resource
import shlex
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from . import hostconf, sockets
from .errors import ProxyDown, ReloadFailed, UsageProblem
from .hostconf import HostConf
from .model import Globals, HostFacts
from .processes import all_pids, children, command_line, has_our_root, is_alive, open_files, started_at
from .settings import LONGEST_SOCKET, Paths

#: How long a reload may take to be proven; with 10,000 vhosts the parse alone takes 6 s.
PROOF_SECONDS = 30.0
_STOP_SECONDS = 10.0
_MESSAGE = re.compile(r"\[(?P<level>emerg|crit|alert|error|warn)\] (?:(?P<pid>\d+)#\d+: )?(?P<text>.*)")


@dataclass(frozen=True)
class Worker:
    """One worker process of the master."""

    pid: int
    started: int
    shutting_down: bool


@dataclass(frozen=True)
class Reloaded:
    """What a proven reload cost."""

    old_workers: tuple[tuple[int, int], ...] = ()
    closed_connections: int = 0


@dataclass(frozen=True)
class Test:
    """What `nginx -t` said."""

    ok: bool
    messages: tuple[str, ...]  # of level warn and above, as nginx writes them


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
        return hostconf.facts(self.paths.root, self.settings, previous, self.host)

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
            return self.paths.wanted.exists() or self.master() is not None
        return self.host.includes_router and (self.paths.wanted.exists() or self.master() is not None)

    def master(self) -> int | None:
        """The pid of the running master."""
        try:
            pid = int(self.pid_file.read_text())
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def workers(self, master: int | None = None) -> list[Worker]:
        """The workers of the master, those that are shutting down too."""
        pid = master or self.master()
        if pid is None:
            return []
        found = []
        for child in children(pid):
            title = command_line(child)
            if title.startswith("nginx: worker process"):
                found.append(Worker(child, started_at(child), "shutting down" in title))
        return found

    def probe(self, facts: HostFacts) -> str | None:
        """What the generation that serves answers at this moment; None: nobody answers."""
        path = self.paths.run / "probe.sock"
        try:
            if facts.probe_name and (self.is_host_mode or len(str(path)) > LONGEST_SOCKET):
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
        return self._proven() == probe and self.probe(facts) == probe

    def test(self, conf: Path) -> Test:
        """`nginx -t` of a file."""
        done = self._run(["-t", "-q", *self._read_from(conf)], timeout=120)
        if done.returncode < 0:
            raise ReloadFailed(f"nginx -t was ended by signal {-done.returncode}", hint="the same command again")
        return Test(done.returncode == 0, tuple(_messages(done.stderr)))

    def start(self, facts: HostFacts, probe: str) -> None:
        """Start a managed master and see it answer with the generation whose probe is `probe`.

        What an earlier master left is ended first: after kill -9 its workers still hold the ports, and its sockets
        keep a new one from binding.

        Raises:
            UsageProblem: host mode: the service manager starts nginx.
            ProxyDown: it does not come up; its own words are in the message.
        """
        self.refuse_in_host_mode("start")
        self.end_orphans()
        for directory in ("body", "proxy", "fastcgi", "uwsgi", "scgi"):
            (self.paths.run / "tmp" / directory).mkdir(parents=True, exist_ok=True)
        self._write_signal_conf()
        done = self._run(["-c", str(self.conf), "-p", f"{self.paths.run}/", "-g", "daemon on;"], timeout=PROOF_SECONDS)
        if done.returncode != 0:
            said = [m for m in _messages(done.stderr) if m.startswith("[emerg]")] or done.stderr.splitlines()
            raise ProxyDown(f"nginx does not start: {_words(said)}", hint=f"its log: {self.error_log}")
        deadline = time.monotonic() + PROOF_SECONDS
        while self.probe(facts) != probe:
            if time.monotonic() > deadline or (self.pid_file.exists() and self.master() is None):
                raise ProxyDown("nginx was started and does not answer", hint=f"its log: {self.error_log}")
            time.sleep(0.002)
        self._note_proof(probe)

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
        old = [w for w in self.workers(master) if not w.shutting_down]
        touched = self._client_connections(master, old)
        log = _LogTail(self.error_log)
        before = self._proven()
        self._note_proof("")
        command = self.settings.get("reload-command")
        if self.is_host_mode and command:
            done = _run(shlex.split(command), 60, f"the reload-command ({command})")
        else:
            conf = self.conf if self.is_host_mode else self._write_signal_conf()
            done = self._run(["-s", "reload", *self._read_from(conf)], timeout=60)
        if done.returncode != 0:
            log.close()
            self._note_proof(before)
            raise ReloadFailed(f"the reload failed: {_words(done.stderr.splitlines())}", hint=f"its log: {self.error_log}")
        try:
            self._prove(master, old, lambda: self._answers(facts, probe, before), log)
        except _Kept:
            self._note_proof(before)
            raise
        finally:
            log.close()
        self._note_proof(probe or "")
        return Reloaded(tuple((w.pid, w.started) for w in old if is_alive(w.pid, w.started)), touched)

    def start_line(self) -> str:
        """What to type to start it."""
        return "sudo systemctl start nginx" if self.is_host_mode else "router proxy:start"

    def end_orphans(self) -> None:
        """End the processes of an earlier master of this root, and remove their sockets."""
        if self.master() is not None:
            return
        log = str(self.paths.log / "error.log")
        left = []
        for pid in list(all_pids()):
            title = command_line(pid)
            is_ours = self._is_title_of_ours(title) or (title.startswith("nginx: worker") and log in open_files(pid))
            if title.startswith("nginx: ") and is_ours and has_our_root(pid):
                left.append((pid, started_at(pid)))
        for number in (signal.SIGTERM, signal.SIGKILL):
            for pid, started in left:
                if is_alive(pid, started):
                    with contextlib.suppress(ProcessLookupError, PermissionError):
                        os.kill(pid, number)
            deadline = time.monotonic() + 2
            while any(is_alive(pid, started) for pid, started in left) and time.monotonic() < deadline:
                time.sleep(0.005)
        (self.paths.run / "probe.sock").unlink(missing_ok=True)

    def refuse_in_host_mode(self, verb: str) -> None:
        """In host mode the service manager starts and stops nginx.

        Raises:
            UsageProblem: this is host mode; the line to type is said.
        """
        if self.is_host_mode:
            raise UsageProblem(f"systemd owns nginx here (mode host): router does not {verb} it", hint=f"sudo systemctl {verb} nginx")

    def _answers(self, facts: HostFacts, probe: str | None, before: str) -> bool:
        answer = self.probe(facts)
        # without a probe of ours the host's default site may answer in its place
        return answer == probe if probe is not None else answer is None or answer != before

    def _prove(self, master: int, old: Sequence[Worker], answers: Callable[[], bool], log: _LogTail) -> None:
        deadline = time.monotonic() + PROOF_SECONDS
        while True:
            self._raise_on(log.messages(master))
            letting_go = all(not is_alive(w.pid, w.started) or "shutting down" in command_line(w.pid) for w in old)
            if letting_go and answers():
                self._raise_on(log.messages(master))
                return
            if not is_alive(master):
                raise ReloadFailed("nginx ended during the reload", hint=f"its log: {self.error_log}")
            if time.monotonic() > deadline:
                raise ReloadFailed(f"nginx did not take the change up within {PROOF_SECONDS:.0f} s", hint=f"its log: {self.error_log}")
            time.sleep(0.002)

    def _raise_on(self, messages: Sequence[str]) -> None:
        for text in messages:
            # a failed bind is tried five times; only the last word counts, or a port that frees up meanwhile
            if text.startswith("[emerg] ") and " bind() to " not in text:
                said = [m for m in messages if m.startswith("[emerg] ")]
                words = next((m for m in said if "bind()" in m and "still" not in m), text)
                raise _Kept(f"nginx did not take the change up: {words}", hint=f"its log: {self.error_log}")
            if "conflicting server name" in text and not self.is_host_mode:
                raise _Conflicting(f"nginx took the change up with a conflict: {text}", hint=f"its log: {self.error_log}")

    def _proven(self) -> str:
        try:
            return (self.paths.run / "proven").read_text()
        except FileNotFoundError:
            return ""

    def _note_proof(self, probe: str) -> None:
        # on a full disk it is not noted, and the next command proves again
        with contextlib.suppress(OSError):
            (self.paths.run / "proven").write_text(probe)

    def client_connections(self, master: int) -> int:
        """How many client connections the workers that accept hold: a reload closes the idle ones."""
        return self._client_connections(master, [w for w in self.workers(master) if not w.shutting_down])

    def _client_connections(self, master: int, workers: Sequence[Worker]) -> int:
        held = sockets.held_by([master, *(w.pid for w in workers)])
        ports = {s.port for s in held.get(master) or () if s.listens and not s.is_unix}
        return sum(1 for w in workers for s in held.get(w.pid) or () if not s.listens and not s.is_unix and s.port in ports)

    def _is_ours(self, pid: int) -> bool:
        title = command_line(pid)
        return title.startswith("nginx: master process") and (self.is_host_mode or self._is_title_of_ours(title))

    def _is_title_of_ours(self, title: str) -> bool:
        # as a word: another root may lie in a directory whose path ends like ours
        return f" -c {self.conf} " in f"{title} "

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


class _Kept(ReloadFailed):
    """The master said itself that it keeps the old configuration."""

    is_of_the_configuration = True


class _Conflicting(ReloadFailed):
    """The master took it up, but gave one app's name to another."""

    is_of_the_configuration = True


class _LogTail:
    """What an error log gained since now."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb") if path.exists() else None
        if self._file:
            self._file.seek(0, os.SEEK_END)
        self._seen: list[tuple[int, str]] = []
        self._rest = b""

    def close(self) -> None:
        """Let go of the file."""
        if self._file:
            self._file.close()

    def messages(self, pid: int) -> list[str]:
        """`[level] text` of every line that process `pid` wrote."""
        if self._file is None and self.path.exists():
            self._file = self.path.open("rb")
        if self._file is not None:
            *whole, self._rest = (self._rest + self._file.read()).split(b"\n")
            for line in whole:
                match = _MESSAGE.search(line.decode(errors="replace"))
                if match and match["pid"]:
                    self._seen.append((int(match["pid"]), f"[{match['level']}] {match['text']}"))
        return [text for writer, text in self._seen if writer == pid]


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


def _messages(said: str) -> list[str]:
    """`[level] text` of each message, without time and pid."""
    return [f"[{m['level']}] {m['text']}" for line in said.splitlines() if (m := _MESSAGE.search(line))]


def _words(said: Sequence[str]) -> str:
    return " / ".join(line.removeprefix("nginx: ") for line in said[-3:]) or "it said nothing"
