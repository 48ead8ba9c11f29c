"""The deploy script of the README where instances crash and where somebody presses Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_router.processes import is_alive

from ..integration.conftest import until
from .test_readme import block, free_port, serving

#: An instance: it says its pid, and what begins with /slow is not answered.
APP = """\
import os, time, http.server as h
class H(h.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/slow":
            open("asked", "w").close()
            time.sleep(60)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(str(os.getpid()).encode())
    def log_message(self, *a): pass
h.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""
#: It writes over its environment, as servers do that give themselves a title (puma; gunicorn with setproctitle).
TITLED = """\
import ctypes, os
start, end = map(int, open("/proc/self/stat").read().rpartition(")")[2].split()[47:49])
port = os.environ["PORT"]
ctypes.memset(start, 0, end - start)
"""


class Deploying:
    """An app that is deployed by the script."""

    def __init__(self, environment: dict[str, str], port: int) -> None:
        self.base, self.port = Path(environment["HOME"]), port
        self.env = environment | {"PIDS": str(self.base / "pids")}
        self.script, self.app = self.base / "deploy", self.base / "app"
        self.script.write_text(block("deploy-script"))
        self.script.chmod(0o755)
        self.app.mkdir()
        (self.app / "app.py").write_text(APP)
        self.instance("exec python3 app.py")

    def instance(self, line: str) -> None:
        (self.app / "run").write_text(f"#!/bin/sh\n{line}\n")
        (self.app / "run").chmod(0o755)

    def run(self, *words: object, code: int = 0) -> str:
        done = subprocess.run(list(map(str, words)), env=self.env, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == code, f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    def deploy(self, code: int = 0) -> str:
        return self.run(self.script, "blog", self.app, code=code)

    @contextlib.contextmanager
    def begun(self) -> Iterator[subprocess.Popen[bytes]]:
        """A deploy under way, in a process group of its own as at a terminal."""
        with subprocess.Popen([self.script, "blog", self.app], env=self.env, start_new_session=True) as running:
            try:
                yield running
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(running.pid, signal.SIGKILL)

    def files(self) -> list[Path]:
        return list((self.base / "pids/blog").glob("*.pid"))

    def pids(self) -> list[int]:
        return [int(text.split()[0]) for text in (file.read_text() for file in self.files()) if text]

    def address(self) -> str:
        (address,) = (Path(self.env["ROUTER_ROOT"]) / "apps/blog/UPSTREAMS").read_text().split()
        return address

    def add(self, address: str) -> None:
        """An old instance more that does not listen."""
        self.run("router", "upstreams:set", "blog", address, self.address())

    def serves(self) -> int:
        """The pid of who answers, which is the only one that has a pid file."""
        (pid,) = self.pids()
        assert serving(self.port, "blog.localhost") == str(pid)
        return pid

    def wait_for_check(self, before: int) -> int:
        """Until the router checks a new instance; its pid."""
        until(lambda: len(self.pids()) == 2 and (Path(self.env["ROUTER_ROOT"]) / "run/deploy/blog.lock").exists(), 30)
        time.sleep(1)  # until the router has begun: nothing tells
        (new,) = set(self.pids()) - {before}
        assert is_alive(new)
        return new


@pytest.fixture
def deploying(environment: dict[str, str]) -> Iterator[Deploying]:
    """The deploy script of the README beside a proxy that runs."""
    port = free_port()
    config = Path(environment["ROUTER_ROOT"]) / "router.toml"
    config.parent.mkdir(parents=True)
    config.write_text(f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {port}\n')
    found = Deploying(environment, port)
    found.run("router", "domains:add-global", "localhost")
    found.run("router", "proxy:start")
    yield found
    for pid in found.pids():
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def test_the_only_old_instance_may_be_dead(deploying: Deploying) -> None:
    deploying.deploy()
    os.kill(alone := deploying.serves(), signal.SIGKILL)
    with subprocess.Popen(["true"]) as gone:  # the killed one is a zombie where init reaps nobody, and can be killed again
        (file,) = deploying.files()
    file.write_text(file.read_text().replace(str(alone), str(gone.pid), 1))
    deploying.deploy()
    deploying.serves()


def test_a_dead_old_instance_keeps_no_other_from_being_stopped(deploying: Deploying) -> None:
    deploying.deploy()
    living = deploying.serves()
    with subprocess.Popen(["true"]) as dead:
        (deploying.base / "pids/blog/127.0.0.1:9.pid").write_text(f"{dead.pid} 1\n")
    deploying.add("127.0.0.1:9")
    deploying.deploy()
    assert deploying.serves() != living
    until(lambda: not is_alive(living), 10)


def test_an_old_instance_that_the_script_did_not_start_is_named_and_left(deploying: Deploying) -> None:
    deploying.deploy()
    living = deploying.serves()
    deploying.add("127.0.0.1:9")
    assert "127.0.0.1:9 was not started here: left running" in deploying.deploy()
    assert deploying.serves() != living
    until(lambda: not is_alive(living), 10)


def test_a_number_that_another_process_has_by_now_is_left_alone(deploying: Deploying) -> None:
    deploying.deploy()
    alone = deploying.serves()
    os.kill(alone, signal.SIGKILL)
    # a leader of a group too, and with the same environment: only the time tells
    with subprocess.Popen(
        ["sleep", "60"], env=os.environ | {"PORT": deploying.address().partition(":")[2]}, start_new_session=True
    ) as other:
        (file,) = deploying.files()
        file.write_text(file.read_text().replace(str(alone), str(other.pid), 1))
        deploying.deploy()
        deploying.serves()
        time.sleep(0.2)
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize("kind", ["titled", "child"])
def test_an_old_instance_is_stopped_whatever_title_it_has_and_with_its_children(deploying: Deploying, kind: str) -> None:
    if kind == "titled":
        (deploying.app / "app.py").write_text(TITLED + APP.replace('os.environ["PORT"]', "port"))
    else:
        deploying.instance("python3 app.py; true")
    deploying.deploy()
    old = int(serving(deploying.port, "blog.localhost"))
    deploying.deploy()
    assert len(deploying.pids()) == 1 and serving(deploying.port, "blog.localhost") != str(old)
    until(lambda: not is_alive(old), 10)


def test_one_that_dies_at_its_start_changes_nothing(deploying: Deploying) -> None:
    deploying.deploy()
    before = deploying.serves()
    deploying.instance("exit 3")
    deploying.script.write_text(block("deploy-script").replace("--check /", "--check / --check-timeout 1"))
    deploying.deploy(code=12)
    assert deploying.serves() == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_during_the_check_stops_the_new_instance(deploying: Deploying, number: signal.Signals) -> None:
    deploying.deploy()
    before = deploying.serves()
    deploying.instance("exec sleep 60")
    with deploying.begun() as running:
        new = deploying.wait_for_check(before)
        os.killpg(running.pid, number)
        assert running.wait(30) == 128 + number
    until(lambda: not is_alive(new), 10)
    assert deploying.serves() == before


def test_ctrl_c_while_old_requests_are_waited_for_leaves_the_new_instance(deploying: Deploying) -> None:
    deploying.deploy()
    before = deploying.serves()
    with socket.create_connection(("127.0.0.1", deploying.port)) as client:
        client.sendall(b"GET /slow HTTP/1.1\r\nHost: blog.localhost\r\n\r\n")
        until((deploying.app / "asked").exists)
        with deploying.begun() as running:
            until(lambda: serving(deploying.port, "blog.localhost") != str(before), 30)
            time.sleep(1)  # until it has proven that, and waits: nothing tells
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(30) == 0
    (new,) = set(deploying.pids()) - {before}
    assert serving(deploying.port, "blog.localhost") == str(new)
    assert is_alive(before)


def test_where_the_router_was_killed_the_new_instance_is_left(deploying: Deploying) -> None:
    deploying.deploy()
    before = deploying.serves()
    deploying.instance("exec sleep 60")
    with deploying.begun() as running:
        new = deploying.wait_for_check(before)
        (router,) = map(int, Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text().replace(str(new), "").split())
        os.kill(router, signal.SIGKILL)
        assert running.wait(30) == 137
    assert is_alive(new) and is_alive(before)
