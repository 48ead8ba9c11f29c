"""The scripts of docs/deploying.md are run as they stand there, with a systemctl and a docker that start plain processes."""

from __future__ import annotations

import os
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
PAGE = (HERE / "docs/deploying.md").read_text()

#: `start UNIT@PORT`, `stop`, `disable --now`, `is-active`, `enable`: one pid file a unit.
SYSTEMCTL = """#!/bin/sh
set -eu
echo "$*" >>"$HOME/calls"
verb=$1; shift; for unit; do :; done
case $verb in
    is-active) [ -e "$HOME/$unit.pid" ] ;;
    start) python3 "$APP" "${unit%@*}" "${VERSION:-v1}" --port "${unit#*@}" >"$HOME/$unit.log" 2>&1 & echo $! >"$HOME/$unit.pid" ;;
    stop | disable) kill "$(cat "$HOME/$unit.pid")"; rm "$HOME/$unit.pid" ;;
esac
"""

#: `run ... IMAGE`, `port ID 5000/tcp`, `ps -q`, `stop ID`, `rm -f ID`: the id is the port.
DOCKER = """#!/bin/sh
set -eu
echo "$*" >>"$HOME/calls"
verb=$1; shift; for last; do :; done
case $verb in
    run)
        port=$(python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
        python3 "$APP" blog "$last" --port "$port" >"$HOME/$port.log" 2>&1 & echo $! >"$HOME/$port.pid"; echo "$port" ;;
    port) echo "127.0.0.1:$1" ;;
    ps) cd "$HOME"; for file in *.pid; do echo "${file%.pid}"; done ;;
    stop | rm) kill "$(cat "$HOME/$last.pid")"; rm "$HOME/$last.pid" ;;
esac
"""


@pytest.fixture
def host(environment: dict[str, str]) -> Iterator[dict[str, str]]:
    home, root = Path(environment["HOME"]), Path(environment["ROUTER_ROOT"])
    root.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        (root / "router.toml").write_text(f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {probe.getsockname()[1]}\n')
    (root / "DOMAINS").write_text("localhost\n")
    (home / "bin").mkdir()
    scripts = {mark: re.search(rf"<!-- {mark} -->\n```sh\n(.*?)```", PAGE, re.S) for mark in ("deploy-unit", "deploy-image")}
    for name, text in {"systemctl": SYSTEMCTL, "docker": DOCKER, **{mark: found[1] for mark, found in scripts.items() if found}}.items():
        (home / "bin" / name).write_text(text)
        (home / "bin" / name).chmod(0o755)
    env = environment | {"PATH": f"{home}/bin:{environment['PATH']}", "APP": str(HERE / "script/demo_app.py")}
    run(env, "router", "proxy:start")
    try:
        yield env
    finally:
        for file in home.glob("*.pid"):
            os.kill(int(file.read_text()), 15)
            file.unlink()


def run(env: dict[str, str], *words: str, code: int = 0) -> str:
    done = subprocess.run(words, env=env, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == code, f"{words}: exit {done.returncode}: {done.stdout}{done.stderr}"
    return done.stdout


def running(env: dict[str, str]) -> list[str]:
    return sorted(file.stem for file in Path(env["HOME"]).glob("*.pid"))


def endpoints(env: dict[str, str]) -> list[str]:
    return run(env, "router", "apps:upstreams:report", "blog", "--upstreams").splitlines()


def test_two_units_take_turns(host: dict[str, str]) -> None:
    ports = []
    for _ in range(2):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ports.append(str(probe.getsockname()[1]))
    for turn in (0, 1, 0):
        run(host, "deploy-unit", "blog", *ports)
        assert running(host) == [f"blog@{ports[turn]}"]
        assert f"enable --quiet blog@{ports[turn]}" in (Path(host["HOME"]) / "calls").read_text()
        assert f"127.0.0.1:{ports[turn]}" in endpoints(host)[0]


def test_a_container_replaces_another_and_a_refused_one_is_removed(host: dict[str, str]) -> None:
    run(host, "deploy-image", "blog", "v1")
    first = running(host)
    run(host, "deploy-image", "blog", "v2")
    second = running(host)
    assert len(first) == len(second) == 1 and first != second
    run(host, "router", "apps:lock", "blog")
    run(host, "deploy-image", "blog", "v3", code=4)
    assert running(host) == second
    assert f"127.0.0.1:{second[0]}" in endpoints(host)[0]
