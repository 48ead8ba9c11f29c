"""Commands as forks of a process that has imported everything: most of what a command takes is the start of Python.

A fork is made what a fresh `router` process is: arguments, environment, directory, umask, streams, signals; plugins are found and
loaded by each anew.  What a claim about the process itself is tested by (its start, signals, a terminal, a kill) is a process of
its own: `Command`.  `test_preloaded` holds the two beside each other; `--own-processes` makes every command one of its own.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import pkgutil
import select
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

#: One message; what is longer gets a process of its own.
_LONGEST = 100_000

#: What Python itself looks at when it starts; a command for which it differs gets a process of its own.
_OF_PYTHON = ("PYTHON", "LC_", "LANG")

#: Imported by commands and by the shipped plugins, beside the package itself.
_OTHERS = ("crossplane", "difflib", "idna", "jinja2.sandbox", "pluggy", "rich.console", "tomlkit", "typer", "watchdog.observers")


class Fork:
    """A command that runs; its process is the child of another, who tells of its end."""

    def __init__(self, tells: socket.socket, out: int, err: int) -> None:
        self._tells, self._out, self._err = tells, os.fdopen(out, "rb", buffering=0), os.fdopen(err, "rb", buffering=0)
        self._told = tells.recv(100)
        assert self._told, "the process that forks has ended"
        self.pid = int(self._told.split()[0])

    def wait(self, seconds: float) -> tuple[int, str, str]:
        """(exit code, stdout, stderr).

        Raises:
            TimeoutError: it did not end in time.
        """
        deadline = time.monotonic() + seconds
        said: dict[Any, bytes] = {self._tells: self._told, self._out: b"", self._err: b""}
        with selectors.DefaultSelector() as waiting:
            for each in said:
                waiting.register(each, selectors.EVENT_READ)
            while waiting.get_map():
                ready = waiting.select(max(0.0, deadline - time.monotonic()))
                if not ready:
                    raise TimeoutError(f"{said[self._out]!r} {said[self._err]!r}")
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    said[key.fileobj] += data
                    if not data:
                        waiting.unregister(key.fileobj)
        self._told = said[self._tells]
        self.end()
        out, err = (io.TextIOWrapper(io.BytesIO(said[each])).read() for each in (self._out, self._err))
        return os.waitstatus_to_exitcode(int(self._told.split()[1])), out, err

    def send_signal(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self._tells.fileno() >= 0 and not select.select([self._tells], [], [], 0)[0]:
            os.kill(self.pid, number)

    def end(self) -> None:
        """End it, if it runs."""
        self.send_signal(signal.SIGKILL)
        for each in (self._tells, self._out, self._err):
            each.close()


class Preloaded:
    """Runs commands of `router` in forks of one process; several threads may ask at once."""

    def __init__(self, router: Path) -> None:
        self._looks_at = _of_python(os.environ)
        self._ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4 * _LONGEST)
        with theirs:
            self._process = subprocess.Popen(
                [_interpreter(router), __file__, str(theirs.fileno()), str(router)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,  # the forks' streams are pipes, and Python has looked at what they are
                stderr=subprocess.PIPE,
                env={k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "XDG_", "CONFIG_"))},
                cwd="/",
                pass_fds=[theirs.fileno()],
            )

    def takes(self, argv: Sequence[str], environment: Mapping[str, str]) -> bool:
        """Whether a fork would be what a process of its own is."""
        return _of_python(environment) == self._looks_at and len(_message(argv, environment)) <= _LONGEST

    def begin(self, argv: Sequence[str], environment: Mapping[str, str]) -> Fork:
        """Start a command."""
        ours, theirs = socket.socketpair()
        pipes = [os.pipe(), os.pipe()]
        with theirs, Path(os.devnull).open("rb") as nothing:
            socket.send_fds(self._ours, [_message(argv, environment)], [theirs.fileno(), nothing.fileno(), *(w for _, w in pipes)])
        for _, w in pipes:
            os.close(w)
        return Fork(ours, *(r for r, _ in pipes))

    def end(self) -> None:
        """No more commands."""
        self._ours.close()
        with self._process:
            self._process.wait(30)


def _interpreter(router: Path) -> str:
    """The Python of the first line of the script, which may be another name of ours."""
    first = router.read_text().partition("\n")[0].removeprefix("#!").strip()
    return first if Path(first).name.startswith("python") else sys.executable


def _message(argv: Sequence[str], environment: Mapping[str, str]) -> bytes:
    umask = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("Umask:"))  # without setting it
    return json.dumps({"argv": list(argv), "environment": dict(environment), "umask": int(umask.split()[1], 8)}).encode()


def _of_python(environment: Mapping[str, str]) -> dict[str, str]:
    return {key: value for key, value in environment.items() if key.startswith(_OF_PYTHON)}


# the process that forks


def _import_all() -> None:
    import nginx_router

    for module in pkgutil.iter_modules(nginx_router.__path__):
        if module.name != "__main__":
            importlib.import_module(f"nginx_router.{module.name}")
    for name in _OTHERS:
        importlib.import_module(name)


def _become_commands(control: socket.socket, router: str) -> None:
    """Fork for each message until nobody is left who sends one; returns in the forks alone, each the process that was asked for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is pytest's and the commands'
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    woken, wakes = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakes, warn_on_full_buffer=False)
    running: dict[int, int] = {}
    waiting = select.poll()
    waiting.register(control, select.POLLIN)
    waiting.register(woken, select.POLLIN)
    while True:
        ready = {fd for fd, _ in waiting.poll()}
        if woken in ready:
            os.read(woken, 65536)
            for pid, asking in list(running.items()):
                ended, status = os.waitpid(pid, os.WNOHANG)
                if ended:
                    del running[pid]
                    with suppress(OSError):  # who asked did not wait
                        os.write(asking, f"{status}\n".encode())
                    os.close(asking)
        if control.fileno() in ready:
            message, fds, _, _ = socket.recv_fds(control, 4 * _LONGEST, 4)
            if not message:
                os._exit(0)
            pid = os.fork()
            if pid == 0:
                control.detach()
                _become(json.loads(message), fds[1:], router)
                return
            os.write(fds[0], f"{pid}\n".encode())
            running[pid] = fds[0]
            for fd in fds[1:]:
                os.close(fd)


def _become(asked: Mapping[str, Any], streams: Sequence[int], router: str) -> None:
    signal.set_wakeup_fd(-1)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, fd in enumerate(streams):
        os.dup2(fd, number)
    os.closerange(3, 1024)
    os.umask(asked["umask"])
    os.environ.clear()
    os.environ.update(asked["environment"])
    time.tzset()
    Path("/proc/self/comm").write_text("router")
    sys.argv = [router, *asked["argv"]]
    sys.orig_argv = [sys.executable, *sys.argv]


def _leave(code: int) -> NoReturn:
    """End as Python does, but free nothing: to take apart what was imported copies each page of it, 15 ms of a command."""
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):
        sys.exit(code)  # what Python says of it is its own affair
    os._exit(code)


if __name__ == "__main__":
    _, number, path = sys.argv
    sys.path[0] = str(Path(path).parent)
    _import_all()
    gc.collect()
    gc.freeze()
    _become_commands(socket.socket(fileno=int(number)), path)
    from nginx_router.cli import main

    _leave(main())
