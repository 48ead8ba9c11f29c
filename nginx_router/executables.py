"""Hooks in any language: one executable run with arguments, the event on stdin and a deadline.

The end of the process ends the call, not the end of its output: a runner leaves instances behind that hold the pipe open.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from .failures import Failure
from .files import LARGEST

#: Seconds between TERM and KILL.
GRACE = 2.0

_CHUNK = 1 << 16


@dataclass(frozen=True)
class Answer:
    """What an executable that exited with 0 printed."""

    out: str
    talk: tuple[str, ...]  # the lines of its stderr


def run(argv: Sequence[str], *, stdin: bytes, env: Mapping[str, str], directory: Path, timeout: float, grace: float = GRACE) -> Answer:
    """Run `argv` in `directory`, in a session of its own, and give what it printed.

    An executable that does not read its stdin is fine.  At the deadline its process group gets TERM, then KILL.

    Raises:
        Failure: it could not be started, exited with another code than 0, was killed, took too long, or printed more than
            1 MiB or what is not text; the reason is its last line on stderr where it has one.
    """
    try:
        # a new session: no terminal to ask at, and a process group to end as a whole
        process = subprocess.Popen(
            argv,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=dict(env),
            cwd=directory,
            start_new_session=True,
            bufsize=0,
        )
    except (OSError, ValueError) as why:
        words = f"{why.strerror}{' (no #! line?)' if why.errno == 8 else ''}" if isinstance(why, OSError) else str(why)
        raise Failure(f"cannot be run: {words}", crashed=True) from None
    try:
        conversation = _Conversation(process, stdin)
        problem = conversation.hold(timeout)
        if problem:
            end_group(process, grace)
    except BaseException:  # Ctrl-C too: nothing is left running
        end_group(process, grace=0.0)
        raise
    finally:
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe:
                pipe.close()
    return _answer(process.wait(), problem, bytes(conversation.out), bytes(conversation.err))


def end_group(process: subprocess.Popen[bytes], grace: float) -> None:
    """TERM to the process group of `process`, then KILL for whatever of it is left after `grace` seconds."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    deadline = time.monotonic() + grace
    while time.monotonic() < deadline and not _has_exited(process.pid):
        time.sleep(0.01)
    # the leader is not yet waited for, so that its number cannot have gone to somebody else
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def router_bin() -> str:
    """What a hook calls as ROUTER_BIN: this very router.

    Started as `router` it is that file; else (`python -m`, a test) the one installed beside the interpreter, or on PATH.
    """
    called = Path(sys.argv[0])
    if called.name == "router" and called.is_file() and os.access(called, os.X_OK):
        return str(called.resolve())
    beside = Path(sys.executable).with_name("router")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("router") or f"{sys.executable} -m nginx_router"


class _Conversation:
    """The three pipes of one process."""

    def __init__(self, process: subprocess.Popen[bytes], stdin: bytes) -> None:
        self.process = process
        self.out, self.err = bytearray(), bytearray()
        self.unsent = memoryview(stdin)
        self.selector = selectors.DefaultSelector()

    def hold(self, timeout: float) -> str:
        """Send and receive until the process is gone; what is wrong with it, or nothing."""
        process = self.process
        assert process.stdin and process.stdout and process.stderr
        deadline = time.monotonic() + timeout
        exited = os.pidfd_open(process.pid)
        with contextlib.ExitStack() as cleanup:
            cleanup.callback(os.close, exited)
            cleanup.callback(self.selector.close)
            self.selector.register(exited, selectors.EVENT_READ)
            for pipe, way in (
                (process.stdin, selectors.EVENT_WRITE),
                (process.stdout, selectors.EVENT_READ),
                (process.stderr, selectors.EVENT_READ),
            ):
                os.set_blocking(pipe.fileno(), False)
                self.selector.register(pipe, way)
            while True:
                left = deadline - time.monotonic()
                if left <= 0:
                    return f"no answer within {timeout:g} s"
                ready = {key.fileobj for key, _ in self.selector.select(left)}
                if process.stdin in ready:
                    self._send()
                # at most what a pipe holds: a child left behind may go on printing for ever
                rounds = 32 if exited in ready else 1
                self._receive(process.stdout.fileno(), self.out, rounds)
                self._receive(process.stderr.fileno(), self.err, rounds)
                del self.err[:-_CHUNK]  # the end counts
                if len(self.out) > LARGEST:
                    return f"printed more than {LARGEST} bytes"
                if exited in ready:
                    return ""

    def _send(self) -> None:
        assert self.process.stdin
        try:
            self.unsent = self.unsent[os.write(self.process.stdin.fileno(), self.unsent[:_CHUNK]) :]
        except BlockingIOError:
            return
        except BrokenPipeError:  # it does not want to know more
            self.unsent = self.unsent[:0]
        if not self.unsent:
            self.selector.unregister(self.process.stdin)
            self.process.stdin.close()

    def _receive(self, fd: int, into: bytearray, rounds: int) -> None:
        for _ in range(rounds):
            try:
                data = os.read(fd, _CHUNK)
            except BlockingIOError:
                return
            if not data:
                with contextlib.suppress(KeyError):
                    self.selector.unregister(fd)
                return
            into += data


def _has_exited(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:
        return True


def _answer(code: int, problem: str, out: bytes, err: bytes) -> Answer:
    talk = tuple(line for line in err.decode(errors="replace").splitlines() if line.strip())
    last = "".join(c if c.isprintable() else " " for c in talk[-1]).strip()[:400] if talk else ""
    printed = out.decode(errors="replace")  # a runner says what it started, also when it fails half way
    if code < 0 and not problem:
        problem = f"killed by {signal.Signals(-code).name if -code in set(signal.Signals) else f'signal {-code}'}"
    if problem:
        raise Failure(problem + (f": {last}" if last else ""), crashed=True, out=printed)
    if code:
        raise Failure(last or f"exit {code}", crashed=False, out=printed, spoke=bool(last))
    try:
        text = out.decode()
    except UnicodeDecodeError:
        raise Failure("printed what is not UTF-8 text", crashed=True, out=printed) from None
    return Answer(text, talk)
