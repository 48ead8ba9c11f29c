"""What the README shows is what happens: its tour is typed, its deploy script and its git hook are run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[2]
README = (HERE / "README.md").read_text()


def block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, mark
    return found[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _serving(port: int, host: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


@pytest.fixture
def environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    root = Path(subprocess.run(["mktemp", "-d", "/tmp/readme.XXXXXX"], capture_output=True, text=True, check=True).stdout.strip())
    root.chmod(0o755)
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("ROUTER_", "XDG_"))}
    env = {**clean, "ROUTER_ROOT": str(root / "root"), "HOME": str(root), "PATH": f"{HERE}/.venv/bin:{os.environ['PATH']}"}
    try:
        yield env
    finally:
        subprocess.run([HERE / ".venv/bin/router", "proxy:stop"], env=env, check=False, capture_output=True, timeout=60)
        for pid in root.rglob("*.pid"):
            if pid.name != "nginx.pid":
                with contextlib.suppress(ProcessLookupError, ValueError):
                    os.killpg(int(pid.read_text()), signal.SIGTERM)
        shutil.rmtree(root, ignore_errors=True)


def test_the_tour_shows_what_happens(environment: dict[str, str]) -> None:
    http, first, second = free_port(), free_port(), free_port()
    tour = block("tour").replace("5001", str(first)).replace("5002", str(second)).replace("8080", str(http))
    tour = tour.replace("/tmp/router-tour", environment["ROUTER_ROOT"])
    settings = [f"router proxy:set --global {key} {value}" for key, value in (("bind-address", "127.0.0.1"), ("http-port", http))]
    for line in settings:
        subprocess.run(line.split(), env=environment, check=True, capture_output=True, timeout=60)
    steps: list[tuple[str, list[str]]] = []
    for line in tour.splitlines():
        if line.startswith("$ "):
            steps.append((line[2:], []))
        else:
            steps[-1][1].append(line)
    children = []
    try:
        for command, shown in steps[2:]:
            plain = command.partition("  #")[0].rstrip()
            if plain.endswith("&"):
                words = plain.rstrip("& ").split()
                child = subprocess.Popen(words, cwd=HERE, env=environment, stdout=subprocess.PIPE, text=True)
                children.append(child)
                assert child.stdout is not None
                child.stdout.readline()  # it says where it listens when it does
                continue
            if plain.startswith("curl -s "):
                # a browser and curl take *.localhost for this machine; the C library does not everywhere
                url = plain.split()[-1]
                assert _serving(http, url.split("/")[2].partition(":")[0]).splitlines() == shown, command
                continue
            done = subprocess.run(["sh", "-c", plain], cwd=HERE, env=environment, capture_output=True, text=True, timeout=60, check=False)
            assert done.returncode == 0, f"{command}: {done.stderr}"
            if shown and "generation" not in shown[0]:
                assert done.stdout.splitlines() == shown, command
    finally:
        for child in children:
            child.terminate()
            child.wait(10)
            assert child.stdout is not None
            child.stdout.close()


def test_a_git_push_deploys_and_the_next_one_replaces_it(environment: dict[str, str]) -> None:
    base = Path(environment["HOME"])
    port = free_port()
    bin_, releases, repo, work = base / "bin", base / "releases", base / "blog.git", base / "work"
    for directory in (bin_, releases):
        directory.mkdir()
    (bin_ / "deploy").write_text(block("deploy-script"))
    (bin_ / "deploy").chmod(0o755)
    env = environment | {
        "PATH": f"{bin_}:{environment['PATH']}",
        "RELEASES": str(releases),
        "PIDS": str(base / "pids"),
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
    }

    def run(*words: str, cwd: Path = base) -> str:
        done = subprocess.run(words, cwd=cwd, env=env, capture_output=True, text=True, timeout=90, check=False)
        assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
        return done.stdout + done.stderr

    run("router", "proxy:set", "--global", "bind-address", "127.0.0.1")
    run("router", "proxy:set", "--global", "http-port", str(port))
    run("router", "domains:add-global", "localhost")
    run("router", "proxy:start")
    run("git", "init", "-q", "--bare", "-b", "main", str(repo))
    (repo / "hooks/post-receive").write_text(block("post-receive"))
    (repo / "hooks/post-receive").chmod(0o755)
    run("git", "clone", "-q", str(repo), str(work))
    app = "import os,http.server as h\nclass H(h.SimpleHTTPRequestHandler):\n    def log_message(self, *a): pass\n"
    app += 'h.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()\n'
    for version in ("one", "two"):
        (work / "index.html").write_text(version)
        (work / "app.py").write_text(app)
        (work / "run").write_text("#!/bin/sh\nexec python3 app.py\n")
        (work / "run").chmod(0o755)
        run("git", "add", "-A", cwd=work)
        run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", version, cwd=work)
        said = run("git", "push", "-q", "origin", "HEAD:main", cwd=work)
        assert f"http://blog.localhost:{port}" in said
        assert _serving(port, "blog.localhost") == version
    deadline = time.monotonic() + 10
    while len(list((base / "pids/blog").glob("*.pid"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list((base / "pids/blog").glob("*.pid"))) == 1  # the first instance was stopped
