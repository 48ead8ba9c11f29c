"""The deploy script of the README where instances crash and where somebody presses Ctrl-C."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_router.processes import is_alive

from ..integration.conftest import until
from .test_readme import APP, block, free_port, serving


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

    def deploy(self, version: str, code: int = 0) -> str:
        (self.app / "index.html").write_text(version)
        return self.run(self.script, "blog", self.app, code=code)

    def pids(self) -> list[int]:
        return [int(file.read_text()) for file in (self.base / "pids/blog").glob("*.pid")]

    def serves(self, version: str) -> None:
        (self.app / "index.html").write_text(version)  # all instances share the directory: who answers is told by the number of pid files
        assert serving(self.port, "blog.localhost") == version


def test_a_dead_old_instance_is_no_failure_and_keeps_no_other_from_being_stopped(deploying: Deploying) -> None:
    deploying.deploy("one")
    (alone,) = deploying.pids()
    os.kill(alone, signal.SIGKILL)
    deploying.deploy("two")
    (living,) = deploying.pids()
    deploying.serves("two")
    dead = subprocess.run(["sh", "-c", "exec true & echo $!"], capture_output=True, text=True, check=True).stdout
    (deploying.base / "pids/blog/127.0.0.1:9.pid").write_text(dead)
    (address,) = (Path(deploying.env["ROUTER_ROOT"]) / "apps/blog/UPSTREAMS").read_text().split()
    deploying.run("router", "upstreams:set", "blog", "127.0.0.1:9", address)
    deploying.deploy("three")
    assert len(deploying.pids()) == 1 and living not in deploying.pids()
    until(lambda: not is_alive(living), 10)
    deploying.serves("three")


def test_a_number_that_another_process_has_by_now_is_left_alone(deploying: Deploying) -> None:
    deploying.deploy("one")
    (alone,) = deploying.pids()
    os.kill(alone, signal.SIGKILL)
    with subprocess.Popen(["sleep", "60"]) as other:
        (file,) = (deploying.base / "pids/blog").glob("*.pid")
        file.write_text(f"{other.pid}\n")
        deploying.deploy("two")
        assert other.poll() is None
        other.kill()
    deploying.serves("two")


def test_one_that_dies_at_its_start_changes_nothing(deploying: Deploying) -> None:
    deploying.deploy("one")
    before = deploying.pids()
    deploying.instance("exit 3")
    text = block("deploy-script").replace("--check /", "--check / --check-timeout 1")
    deploying.script.write_text(text)
    deploying.deploy("two", code=12)
    assert deploying.pids() == before
    deploying.serves("one")


def test_ctrl_c_during_the_check_stops_the_new_instance(deploying: Deploying) -> None:
    deploying.deploy("one")
    before = deploying.pids()
    deploying.instance("exec sleep 60")
    with subprocess.Popen([deploying.script, "blog", deploying.app], env=deploying.env, start_new_session=True) as running:
        until(lambda: len(deploying.pids()) == 2 and (deploying.base / "root/run/deploy/blog.lock").exists(), 30)
        (new,) = set(deploying.pids()) - set(before)
        time.sleep(1)  # until the router has begun: nothing tells
        os.killpg(running.pid, signal.SIGINT)
        assert running.wait(30) == 130
    assert deploying.pids() == before
    until(lambda: not is_alive(new), 10)
    deploying.serves("one")
