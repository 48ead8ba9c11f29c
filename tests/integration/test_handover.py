"""Deploy, retire and scale on real nginx: an old instance is printed or stopped when its connections are let go of, or at the deadline."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .conftest import NGINX
from .holding import Client, Instance, instance

__all__ = ["instance"]  # a fixture

pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")


class Site:
    """A root with its own nginx and the app blog, and the command line."""

    def __init__(self, root: Path, port: int) -> None:
        self.root, self.port = root, port

    def router(self, *words: str, seconds: float = 40) -> subprocess.CompletedProcess[str]:
        done = subprocess.run([sys.executable, "-m", "nginx_router", *words], capture_output=True, text=True, timeout=seconds)
        return done

    def begin(self, *words: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "nginx_router", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def add_runner(self, scale: str, stop: str = "") -> None:
        directory = self.root / "plugins/runner"
        directory.mkdir(parents=True)
        (directory / "plugin.toml").write_text('[plugin]\nname = "runner"\n')
        for hook, script in (("scale", scale), ("stop", stop)):
            (directory / hook).write_text(f"#!/bin/sh\n{script}\n")
            (directory / hook).chmod(0o755)

    def lines(self) -> list[str]:
        return (self.root / "apps/blog/UPSTREAMS").read_text().splitlines()


@pytest.fixture
def site(router_root: Path, free_port: Callable[[], int], instance: Callable[..., Instance]) -> Iterator[Site]:
    port = free_port()
    (router_root / "router.toml").write_text(f'[proxy]\nhttp-port = {port}\nbind-address = "127.0.0.1"\n')
    for name in ("blog", "chat"):
        (router_root / "apps" / name).mkdir(parents=True)
        (router_root / "apps" / name / "DOMAINS").write_text(f"{name}\n")
    made = Site(router_root, port)
    try:
        for words in (("proxy:start",), ("reconcile",)):
            done = made.router(*words)
            assert done.returncode == 0, done.stderr
        yield made
    finally:
        assert made.router("proxy:stop").returncode == 0


def test_deploy_prints_the_old_only_when_a_half_sent_post_is_answered(site: Site, instance: Callable[..., Instance]) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    assert site.router("apps:deploy", "blog", old.where).returncode == 0
    assert site.router("apps:deploy", "chat", chat.where).returncode == 0
    with contextlib.ExitStack() as opened:
        idle, ws, upload = (Client(site.port, app) for app in ("blog", "chat", "blog"))
        for one in (idle, ws, upload):
            opened.enter_context(one.connection)
        assert idle.get().endswith("old")
        ws.websocket()
        upload.post_half()
        command = opened.enter_context(site.begin("apps:deploy", "blog", new.where, "--check", "/"))
        assert command.stdout and command.stderr
        # the wait has begun, with the new instance serving
        assert any("waiting for 1 connection to old instances" in line for line in iter(command.stderr.readline, ""))
        with Client(site.port, "blog").connection as fresh:
            fresh.sendall(b"GET / HTTP/1.1\r\nHost: blog\r\n\r\n")
            assert fresh.recv(4096).endswith(b"new")
        second = site.router("apps:deploy", "blog", old.where)
        assert second.returncode == 5 and f"pid {command.pid}" in second.stderr
        assert command.poll() is None
        upload.send("after")
        assert upload.answer().endswith("old")
        began = time.monotonic()
        out, _ = command.communicate(timeout=20)
        assert time.monotonic() - began < 2
        assert (out, command.returncode) == (f"{old.where}\n", 0)
        ws.send("still here?")
        assert ws.answer() == "still here?"


def test_a_retired_host_name_is_known_by_what_it_resolved_to(site: Site, instance: Callable[..., Instance]) -> None:
    old, new = instance("old"), instance("new")
    name = old.where.replace("127.0.0.1", "localhost")
    site.router("apps:deploy", "blog", name)
    slow = Client(site.port, "blog")
    with slow.connection:
        old.may_answer.clear()
        slow.send("GET / HTTP/1.1\r\nHost: blog\r\n\r\n")
        assert old.asked.acquire(timeout=5)
        done = site.router("apps:deploy", "blog", new.where, "--drain", "0.3", "--format", "json")
        assert json.loads(done.stdout) | {"forced": 1, "retired": [name]} == json.loads(done.stdout)
        old.may_answer.set()
        assert slow.answer().endswith("old")


def test_a_signal_before_the_swap_changes_nothing(site: Site, free_port: Callable[[], int]) -> None:
    with site.begin("apps:deploy", "blog", f"127.0.0.1:{free_port()}") as command:
        assert command.stderr
        assert any("not yet: Connection refused" in line for line in iter(command.stderr.readline, ""))
        command.terminate()
        out, _ = command.communicate(timeout=10)
        assert (out, command.returncode) == ("", 143)
    assert not (site.root / "apps/blog/UPSTREAMS").exists()


def test_idle_clients_and_another_apps_websocket_do_not_delay_the_print(site: Site, instance: Callable[..., Instance]) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    site.router("apps:deploy", "blog", old.where)
    site.router("apps:deploy", "chat", chat.where)
    idle, ws = Client(site.port, "blog"), Client(site.port, "chat")
    with idle.connection, ws.connection:
        idle.get()
        ws.websocket()
        done = site.router("apps:deploy", "blog", new.where, "--format", "json")
        answer = json.loads(done.stdout)
        assert answer["retired"] == [old.where] and answer["forced"] == 0 and answer["kind"] == "endpoints"
        assert answer["seconds"] < 1.5


def test_at_the_deadline_it_is_printed_all_the_same_or_strictly_not(site: Site, instance: Callable[..., Instance]) -> None:
    first, second, third = instance("first"), instance("second"), instance("third")
    site.router("apps:deploy", "blog", first.where)
    upload = Client(site.port, "blog")
    with upload.connection:
        upload.post_half()
        done = site.router("apps:deploy", "blog", second.where, "--drain", "0.3", "--format", "json")
        assert (json.loads(done.stdout)["forced"], done.returncode) == (1, 0)
        assert f"1 connection left after 0.3 s on {first.where}" in done.stderr
        # the worker of the first reload is waited for by the second deploy, too
        strict = site.router("apps:deploy", "blog", third.where, "--drain", "0.3", "--drain-strict")
        assert (strict.stdout, strict.returncode) == ("", 15)
        assert re.search(rf"deployed as generation \d+, not drained: {second.where}$", strict.stderr, re.MULTILINE)
        assert site.lines() == [third.where]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_after_the_swap_ends_only_the_wait(site: Site, instance: Callable[..., Instance], number: int) -> None:
    old, new = instance("old"), instance("new")
    site.router("apps:deploy", "blog", old.where)
    upload = Client(site.port, "blog")
    upload.post_half()
    with upload.connection, site.begin("apps:deploy", "blog", new.where) as command:
        assert command.stderr
        assert any("waiting for" in line for line in iter(command.stderr.readline, ""))
        command.send_signal(number)
        out, err = command.communicate(timeout=10)
        assert (out, command.returncode) == ("", 15)
        assert re.search(rf"deployed as generation \d+, not drained: {old.where}$", err, re.MULTILINE)
    assert json.loads((site.root / "journal.jsonl").read_text().splitlines()[-1])["exit"] == 15
    assert site.router("apps:deploy", "blog", new.where).returncode == 0, "its lock is free"


def test_retire_waits_as_deploy_does_then_removes_and_prints(site: Site, instance: Callable[..., Instance]) -> None:
    one, two = instance("one"), instance("two")
    site.router("apps:deploy", "blog", one.where, two.where)
    assert site.router("apps:upstreams:drain", "blog", one.where).stdout == ""
    assert site.lines() == [f"{one.where} drain", two.where]
    done = site.router("apps:retire", "blog", one.where, two.where)
    assert (done.stdout, done.returncode) == (f"{one.where}\n{two.where}\n", 0)
    assert site.lines() == []


def test_scale_asks_the_runner_and_stops_what_is_too_many(site: Site, instance: Callable[..., Instance]) -> None:
    one, two = instance("one"), instance("two")
    told = site.root / "told"
    site.add_runner(
        f'echo "scale $*" >>{told}; [ "$3" = 2 ] && echo {one.where}; echo {two.where}',
        f'echo "stop $*" >>{told}; [ -e {site.root}/stuck ] && {{ echo it hangs >&2; exit 1; }}; exit 0',
    )
    assert site.router("apps:scale", "blog", "web=2").stdout == ""
    assert site.lines() == [one.where, two.where]
    done = site.router("apps:scale", "blog", "web=1")
    assert (done.stdout, done.returncode, site.lines()) == ("", 0, [two.where])
    assert told.read_text() == f"scale blog web 2\nscale blog web 1\nstop blog {one.where}\n"
    assert "web = 1" in (site.root / "apps/blog/app.toml").read_text()
    site.router("apps:scale", "blog", "web=2")
    (site.root / "stuck").touch()
    done = site.router("apps:scale", "blog", "web=1")
    assert (done.stdout, done.returncode) == (f"{one.where}\n", 0)
    assert f"it hangs; still running: {one.where}" in done.stderr


def test_what_the_runner_started_in_vain_is_stopped(site: Site, instance: Callable[..., Instance], free_port: Callable[[], int]) -> None:
    one, dead = instance("one"), f"127.0.0.1:{free_port()}"
    site.router("apps:deploy", "blog", one.where)
    told = site.root / "told"
    site.add_runner(f"echo {one.where}; echo {dead}", f'echo "$*" >>{told}')
    done = site.router("apps:scale", "blog", "web=2", "--check-timeout", "0.2")
    assert done.returncode == 12 and dead in done.stderr and "Connection refused" in done.stderr
    assert told.read_text() == f"blog {dead}\n"
    assert site.lines() == [one.where]
    assert "count" not in ((site.root / "apps/blog/app.toml").read_text() if (site.root / "apps/blog/app.toml").exists() else "")
