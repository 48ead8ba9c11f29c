"""The deploy script and the git hook of the README are run as they stand there; its tour is typed by test_console.py."""

from __future__ import annotations

import re
import socket
import subprocess
import time
import urllib.request
from pathlib import Path

HERE = Path(__file__).resolve().parents[2]
README = (HERE / "README.md").read_text()


#: An instance: it serves its directory.
APP = """\
import os, http.server as h
class H(h.SimpleHTTPRequestHandler):
    def log_message(self, *a): pass
h.ThreadingHTTPServer(("127.0.0.1", int(os.environ["PORT"])), H).serve_forever()
"""


def block(mark: str) -> str:
    found = re.search(rf"<!-- {mark} -->\n```\w+\n(.*?)```", README, re.S)
    assert found, mark
    return found[1]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def serving(port: int, host: str) -> str:
    request = urllib.request.Request(f"http://127.0.0.1:{port}/", headers={"Host": host})
    with urllib.request.urlopen(request, timeout=10) as answer:
        return str(answer.read().decode())


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
    for version in ("one", "two"):
        (work / "index.html").write_text(version)
        (work / "app.py").write_text(APP)
        (work / "run").write_text("#!/bin/sh\nexec python3 app.py\n")
        (work / "run").chmod(0o755)
        run("git", "add", "-A", cwd=work)
        run("git", "-c", "user.name=t", "-c", "user.email=t@example.com", "commit", "-qm", version, cwd=work)
        said = run("git", "push", "-q", "origin", "HEAD:main", cwd=work)
        assert f"http://blog.localhost:{port}" in said
        assert serving(port, "blog.localhost") == version
    deadline = time.monotonic() + 10
    while len(list((base / "pids/blog").glob("*.pid"))) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert len(list((base / "pids/blog").glob("*.pid"))) == 1  # the first instance was stopped
