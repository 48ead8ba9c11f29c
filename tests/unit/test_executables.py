"""Hooks that are programs of any language: what they are given, when they are ended, and what of them is left."""

import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from nginx_router import executables
from nginx_router.errors import Refused
from nginx_router.failures import Failure

from .plugged import blog, python, world

__all__ = ["world"]  # a fixture


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def wait_until(condition, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.01)


# the contract


def test_arguments_stdin_and_environment_are_exactly_the_contract(world, monkeypatch):
    monkeypatch.setenv("CONFIG_LEAKED", "from an outer hook")
    world.add(
        "audit",
        '[plugin.config]\nlog-file = "/tmp/log"\nlevel = 3\nquiet = true\nkept = "yes"\n',
        pre_domains_update=python("""
            import json, os, sys
            data = os.environ["ROUTER_PLUGIN_DATA"]
            seen = {"argv": sys.argv, "stdin": sys.stdin.read(), "env": dict(os.environ), "mode": os.stat(data).st_mode & 0o777}
            seen["session"] = os.getsid(0) == os.getpid()
            json.dump(seen, open(os.path.join(data, "seen"), "w"))
        """),
    )
    world.settings["audit"] = {"level": 5, "new-key": "x"}
    sent = blog(action="add", domains=["a.com", "*.b.com"], command="domains:add blog a.com *.b.com", user="ann", uid=7, time="now")
    world.plugins().gate("pre-domains-update", sent)
    seen = json.loads((world.root / "data/audit/seen").read_text())
    assert seen["argv"] == [str(world.root / "plugins/audit/pre-domains-update"), "blog", "add", "a.com", "*.b.com"]
    assert seen["stdin"].endswith("}\n")
    assert json.loads(seen["stdin"]) == {"api": 1, "hook": "pre-domains-update", **sent}
    assert seen["mode"] == 0o700
    assert seen["session"]
    env = seen["env"]
    assert {k: v for k, v in env.items() if k.startswith(("ROUTER_", "CONFIG_"))} == {
        "ROUTER_API": "1",
        "ROUTER_HOOK": "pre-domains-update",
        "ROUTER_ROOT": str(world.root),
        "ROUTER_BIN": executables.router_bin(),
        "ROUTER_PLUGIN": "audit",
        "ROUTER_PLUGIN_DATA": str(world.root / "data/audit"),
        "ROUTER_INSIDE": "gate:blog",
        "CONFIG_LOG_FILE": "/tmp/log",
        "CONFIG_LEVEL": "5",
        "CONFIG_QUIET": "true",
        "CONFIG_KEPT": "yes",
        "CONFIG_NEW_KEY": "x",
    }
    assert env["PATH"] == os.environ["PATH"]


def test_router_bin_is_this_router(tmp_path, monkeypatch):
    program = tmp_path / "bin/router"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    link = tmp_path / "router"
    link.symlink_to(program)
    monkeypatch.setattr(sys, "argv", [str(link), "apps:list"])
    assert executables.router_bin() == str(program)
    monkeypatch.setattr(sys, "argv", ["/usr/bin/pytest"])
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    assert executables.router_bin() == str(link)  # installed beside the interpreter
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere/python"))
    monkeypatch.setenv("PATH", str(program.parent))
    assert executables.router_bin() == str(program)
    monkeypatch.setenv("PATH", "/nowhere")
    assert executables.router_bin() == f"{tmp_path}/elsewhere/python -m nginx_router"


def test_an_answer_of_exactly_one_mebibyte_is_taken(world):
    world.add("a", nginx_server_snippet="head -c 1048576 /dev/zero | tr '\\0' x")
    ((_, text),) = world.plugins().collect("nginx-server-snippet", blog())
    assert len(text) == 1 << 20


def test_a_file_without_an_interpreter_line_cannot_be_run(world):
    directory = world.add("a", pre_deploy="exit 0")
    (directory / "pre-deploy").write_text("exit 0\n")
    with pytest.raises(Refused, match=r"cannot be run: Exec format error \(no #! line\?\)"):
        world.plugins().gate("pre-deploy", blog())


@pytest.mark.skipif(not shutil.which("perl"), reason="no perl on this host")
def test_perl(world):
    world.add(
        "p",
        nginx_server_snippet=f"#!{shutil.which('perl')}\n"
        + 'local $/; my $event = <STDIN>; print "# $ARGV[0] ", ($event =~ /"hook": "nginx-server-snippet"/ ? "ok" : "bad"), "\\n";\n',
        pre_deploy=f'#!{shutil.which("perl")}\ndie "not now\\n";\n',
    )
    opened = world.plugins()
    assert opened.collect("nginx-server-snippet", blog()) == [("p", "# blog ok\n")]
    with pytest.raises(Refused, match="not now"):
        opened.gate("pre-deploy", blog())


# time, processes and pipes


def test_a_hook_that_hangs_is_ended_with_its_children(world):
    world.add(
        "slow",
        "timeout = 0.4\n",
        pre_deploy="sleep 60 & echo $! >$ROUTER_PLUGIN_DATA/child; echo still waiting >&2; wait",
    )
    began = time.monotonic()
    with pytest.raises(Refused, match=r"no answer within 0\.4 s: still waiting"):
        world.plugins().gate("pre-deploy", blog())
    assert time.monotonic() - began < 2
    child = int((world.root / "data/slow/child").read_text())
    wait_until(lambda: not is_alive(child))


def test_what_ignores_term_is_killed_with_its_children(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\ntrap '' TERM\nsleep 60 &\necho $$ $! >pids\nwhile :; do sleep 1; done\n")
    script.chmod(0o755)
    with pytest.raises(Failure) as failed:
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=0.3, grace=0.3)
    assert failed.value.crashed
    for pid in map(int, (tmp_path / "pids").read_text().split()):
        wait_until(lambda pid=pid: not is_alive(pid))


def test_term_comes_first_so_that_a_hook_can_clean_up(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\ntrap 'echo cleaned >trace; exit 0' TERM\nwhile :; do sleep 0.05; done\n")
    script.chmod(0o755)
    with pytest.raises(Failure, match="no answer within"):
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=0.3)
    assert (tmp_path / "trace").read_text() == "cleaned\n"


def test_an_interrupted_wait_leaves_no_process(tmp_path):
    script = tmp_path / "hook"
    script.write_text("#!/bin/sh\necho $$ >pid\nsleep 0.2\nkill -INT $PPID\nexec sleep 60\n")
    script.chmod(0o755)
    with pytest.raises(KeyboardInterrupt):
        executables.run([str(script)], stdin=b"", env=os.environ, directory=tmp_path, timeout=20)
    assert not is_alive(int((tmp_path / "pid").read_text()))


def test_a_runner_may_leave_instances_behind_that_hold_its_pipes(world):
    world.add(
        "runner",
        scale="sleep 60 & echo $! >$ROUTER_PLUGIN_DATA/child; echo 10.0.0.1:80",
    )
    began = time.monotonic()
    assert world.plugins().run("scale", blog(process="web", count=1)) == ("runner", "10.0.0.1:80\n")
    assert time.monotonic() - began < 2
    child = int((world.root / "data/runner/child").read_text())
    assert is_alive(child)
    os.kill(child, signal.SIGKILL)


def test_a_hook_need_not_read_its_stdin(world):
    world.add("deaf", nginx_server_snippet="exec <&-; sleep 0.1; echo '# fine'")
    world.add("early", nginx_server_snippet="echo '# early'")
    big = blog(command="x" * 3_000_000)
    assert world.plugins().collect("nginx-server-snippet", big) == [("deaf", "# fine\n"), ("early", "# early\n")]


def test_a_large_event_and_a_large_answer_do_not_wait_for_each_other(world):
    world.add("echo", nginx_server_snippet="exec cat")
    ((_, text),) = world.plugins().collect("nginx-server-snippet", blog(command="x" * 900_000))
    assert json.loads(text)["command"] == "x" * 900_000
