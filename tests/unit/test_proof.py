"""Whose doing it is that nginx keeps the old configuration, and when it is done with an earlier signal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from nginx_router import proof
from nginx_router.errors import ReloadFailed
from nginx_router.model import Globals
from nginx_router.nginx import Nginx
from nginx_router.processes import command_line
from nginx_router.settings import Paths


@dataclass
class Said:
    """An error log with one line."""

    words: str
    path: Path = Path("/log")

    def messages(self, _: int) -> list[str]:
        return [self.words]


@pytest.mark.parametrize(
    ("words", "is_of_the_configuration"),
    [
        ('[emerg] open() "/r/log/app994-access.log" failed (24: Too many open files)', False),
        ("[emerg] mmap(MAP_ANON|MAP_SHARED, 16777216) failed (12: Cannot allocate memory)", False),
        ('[emerg] open() "/r/log/blog-access.log" failed (28: No space left on device)', False),
        ('[emerg] host not found in upstream "x" in /r/objects/00:12', True),
        ('[emerg] invalid value "24" in /r/objects/00:24', True),
    ],
)
def test_what_the_host_ran_out_of_is_no_apps_doing(words: str, is_of_the_configuration: bool) -> None:
    with pytest.raises(ReloadFailed) as why:
        proof.prove(os.getpid(), [], lambda: False, Said(words), minds_conflicts=True)  # type: ignore[arg-type]
    assert words in why.value.message and why.value.is_of_the_configuration == is_of_the_configuration


BUSY_LATER = """
import signal, sys, time
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
signal.signal(signal.SIGHUP, lambda *_: None)
print(flush=True); input()
signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
end = time.process_time() + 0.6
while time.process_time() < end: pass
print(flush=True); input()
"""


def test_a_master_with_a_signal_left_does_not_stand_still() -> None:
    with subprocess.Popen([sys.executable, "-c", BUSY_LATER], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdin is not None and child.stdout is not None
        child.stdout.readline()
        child.send_signal(signal.SIGHUP)
        waiting = threading.Thread(target=proof.until_still, args=(child.pid, Path("/signal.conf")))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive(), "it has not taken the signal"
        child.stdin.write(b"\n")
        child.stdin.flush()
        child.stdout.readline()
        assert waiting.is_alive(), "it is at work"
        waiting.join(10)
        assert not waiting.is_alive() and child.poll() is None
        child.kill()


def test_a_master_that_is_about_to_be_told_does_not_stand_still() -> None:
    with (
        subprocess.Popen(["sleep", "60"]) as master,
        subprocess.Popen(
            ["sh", "-c", "read go; true", "nginx", "-s", "reload", "-c", "/r/signal.conf", "-p", "/r/"], stdin=subprocess.PIPE
        ) as late,
    ):
        waiting = threading.Thread(target=proof.until_still, args=(master.pid, Path("/r/signal.conf")))
        proof.until_still(master.pid, Path("/another/signal.conf"))
        waiting.start()
        waiting.join(1)
        assert waiting.is_alive(), "nginx -s reload has not sent its signal"
        late.kill()
        waiting.join(10)
        assert not waiting.is_alive()
        master.kill()


MASTER = """
import os, sys, time
pids = []
for title in ("", "nginx: worker process", "nginx: worker process is shutting down", "nginx: cache manager process"):
    if not (pid := os.fork()):
        if title:
            os.execv("/bin/sleep", [title, "60"])
        time.sleep(60)
    pids.append(pid)
print(*pids, flush=True); input()
"""


def has_title(pid: int) -> bool:
    return command_line(pid).startswith(("nginx: worker", "nginx: cache"))


def test_a_worker_that_had_no_turn_yet_is_one_of_the_old(tmp_path: Path) -> None:
    (tmp_path / "master.py").write_text(MASTER)
    words = ["nginx: master process /usr/sbin/nginx", str(tmp_path / "master.py")]
    with subprocess.Popen(words, executable=sys.executable, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as master:
        assert master.stdout is not None
        unborn, worker, leaving, manager = pids = [int(pid) for pid in master.stdout.readline().split()]
        plane = Nginx(Paths(tmp_path), Globals())
        until_titled = time.monotonic() + 10
        while not all(map(has_title, (worker, leaving, manager))) and time.monotonic() < until_titled:
            time.sleep(0.01)
        found = [(w.pid, w.shutting_down) for w in plane.workers(master.pid)]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        master.kill()
    assert found == [(unborn, False), (worker, False), (leaving, True)]
