"""What old workers of a real nginx hold after a reload, and when they have let go."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nginx_router import drain, sockets
from nginx_router.names import address
from nginx_router.processes import children, command_line, is_alive, started_at

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
pytestmark = pytest.mark.skipif(NGINX is None, reason="no nginx on this machine")

CONF = """
pid {dir}/pid;
error_log {dir}/error.log info;
worker_processes 1;
events {{ worker_connections 64; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/f;
    uwsgi_temp_path {dir}/u;
    scgi_temp_path {dir}/s;
    upstream blog {{ server {blog}; keepalive 4; }}
    upstream chat {{ server {chat}; keepalive 4; }}
    server {{
        listen 127.0.0.1:{port};
        server_name blog;
        location / {{ proxy_pass http://blog; proxy_http_version 1.1; proxy_set_header Connection ""; }}
    }}
    server {{
        listen 127.0.0.1:{port};
        server_name chat;
        location / {{
            proxy_pass http://chat; proxy_http_version 1.1;
            proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection upgrade;
        }}
    }}
}}
"""


def until(said: Callable[[], object], seconds: float = 5.0) -> None:
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, "it did not come about in time"
        time.sleep(0.005)


class Instance:
    """A small HTTP server that answers with its name, holds a request until told, and accepts websockets."""

    def __init__(self, where: str, name: str) -> None:
        self.where, self.name = where, name
        self.may_answer = threading.Event()
        self.may_answer.set()
        self.asked = threading.Semaphore(0)
        if where.startswith("unix:"):
            self.listener = socket.socket(socket.AF_UNIX)
            self.listener.bind(where.removeprefix("unix:"))
            Path(where.removeprefix("unix:")).chmod(0o666)
        else:
            self.listener = socket.create_server(("127.0.0.1", int(where.rpartition(":")[2])))
        self.listener.listen()
        self.connections: list[socket.socket] = []
        self.threads = [threading.Thread(target=self._accept)]
        self.threads[0].start()

    def close(self) -> None:
        self.may_answer.set()
        for one in (self.listener, *self.connections):
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        for thread in self.threads:
            thread.join(5)
        for one in (self.listener, *self.connections):
            one.close()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self.listener.accept()
            except OSError:
                return
            self.connections.append(connection)
            self.threads.append(threading.Thread(target=self._serve, args=(connection,)))
            self.threads[-1].start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection.makefile("rb") as lines:
            while head := b"".join(iter(lines.readline, b"\r\n")).lower() if lines.peek(1) else b"":
                length = next((int(h.split(b":")[1]) for h in head.splitlines() if h.startswith(b"content-length")), 0)
                lines.read(length)
                self.asked.release()
                self.may_answer.wait(30)
                if b"upgrade: websocket" in head:
                    connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n")
                    while data := lines.read1(100):
                        connection.sendall(data)
                    return
                body = self.name.encode()
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))


class Nginx:
    """A private nginx."""

    def __init__(self, directory: Path, port: int) -> None:
        assert NGINX
        self.directory, self.port = directory, port
        self.conf = directory / "nginx.conf"

    def _run(self, *arguments: str) -> None:
        done = subprocess.run([str(NGINX), "-e", "stderr", "-c", self.conf, *arguments], capture_output=True, text=True, timeout=20)
        assert done.returncode == 0, done.stderr

    def start(self, blog: str, chat: str) -> None:
        self.write(blog, chat)
        self._run("-g", "daemon on;")
        until(lambda: self.workers())

    def write(self, blog: str, chat: str) -> None:
        where = {"blog": blog, "chat": chat}
        self.conf.write_text(CONF.format(dir=self.directory, port=self.port, **where))

    @property
    def master(self) -> int:
        return int((self.directory / "pid").read_text() or 0) if (self.directory / "pid").exists() else 0

    def workers(self, *, old: bool = False) -> list[tuple[int, int]]:
        found = [(pid, started_at(pid), command_line(pid)) for pid in children(self.master) if self.master]
        return [(pid, started) for pid, started, title in found if "worker process" in title and ("shutting down" in title) == old]

    def reload(self, blog: str, chat: str) -> list[tuple[int, int]]:
        """The workers from before, all of which are shutting down or gone."""
        before = self.workers()
        self.write(blog, chat)
        self._run("-s", "reload")
        until(lambda: self.workers() and not set(before) & set(self.workers()))
        return before

    def stop(self) -> None:
        master = self.master
        if master:
            with contextlib.suppress(ProcessLookupError):
                os.kill(master, signal.SIGTERM)
            until(lambda: not is_alive(master))


@pytest.fixture
def instance(free_port: Callable[[], int]) -> Iterator[Callable[..., Instance]]:
    with contextlib.ExitStack() as opened:

        def make(name: str, where: str | None = None) -> Instance:
            made = Instance(where or f"127.0.0.1:{free_port()}", name)
            opened.callback(made.close)
            return made

        yield make


@pytest.fixture
def nginx(isolated: Path, free_port: Callable[[], int]) -> Iterator[Nginx]:
    directory = isolated / "n"
    directory.mkdir()
    made = Nginx(directory, free_port())
    yield made
    made.stop()


class Client:
    """One connection to nginx."""

    def __init__(self, port: int, app: str) -> None:
        self.app = app
        self.connection = socket.create_connection(("127.0.0.1", port), 10)

    def send(self, text: str) -> None:
        self.connection.sendall(text.encode())

    def get(self, *headers: str) -> str:
        self.send("\r\n".join([f"GET / HTTP/1.1\r\nHost: {self.app}", *headers, "\r\n"]))
        return self.answer()

    def post_half(self) -> None:
        self.send(f"POST / HTTP/1.1\r\nHost: {self.app}\r\nContent-Length: 10\r\n\r\nfirst")

    def answer(self) -> str:
        return self.connection.recv(4096).decode()

    def websocket(self) -> None:
        assert " 101 " in self.get("Upgrade: websocket", "Connection: Upgrade")


@pytest.fixture
def client(nginx: Nginx) -> Iterator[Callable[[str], Client]]:
    with contextlib.ExitStack() as opened:

        def make(app: str) -> Client:
            made = Client(nginx.port, app)
            opened.enter_context(made.connection)
            return made

        yield make


def held(workers: list[tuple[int, int]], nginx: Nginx, *retired: Instance) -> int:
    targets = drain.targets([address(r.where) for r in retired], {})
    return drain.still_held(workers, targets, sockets.listening_ports(nginx.master))


def waited(workers: list[tuple[int, int]], nginx: Nginx, *retired: Instance, seconds: float = 5.0) -> tuple[int, float]:
    began = time.monotonic()
    targets = drain.targets([address(r.where) for r in retired], {})
    done = drain.wait(workers, targets, sockets.listening_ports(nginx.master), seconds)
    return done.left, time.monotonic() - began


def test_an_idle_keepalive_client_holds_nothing_up(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    nginx.start(old.where, chat.where)
    idle = client("blog")
    assert idle.get().endswith("old")
    workers = nginx.reload(new.where, chat.where)
    left, seconds = waited(workers, nginx, old)
    assert left == 0 and seconds < 1
    assert idle.answer() == "", "nginx closes it"


def test_a_half_sent_post_is_waited_for_and_answered(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    nginx.start(old.where, chat.where)
    upload = client("blog")
    upload.post_half()
    until(lambda: sockets_of_clients(nginx))
    workers = nginx.reload(new.where, chat.where)
    assert held(workers, nginx, old) == 1
    assert waited(workers, nginx, old, seconds=0.3)[0] == 1

    old.may_answer.clear()
    upload.send("after")
    assert old.asked.acquire(timeout=5), "the old instance gets what began before"
    # the request is at the old instance: one connection there, and its client has a partner
    assert held(workers, nginx, old) == 1
    old.may_answer.set()
    assert upload.answer().endswith("old")
    assert waited(workers, nginx, old)[0] == 0


def test_a_client_that_has_sent_nothing_yet_is_waited_for_and_served(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    nginx.start(old.where, chat.where)
    early = client("blog")
    until(lambda: sockets_of_clients(nginx))
    workers = nginx.reload(new.where, chat.where)
    assert waited(workers, nginx, old, seconds=0.3)[0] == 1
    assert early.get().endswith("old")
    assert waited(workers, nginx, old)[0] == 0


def test_another_apps_websocket_holds_nothing_up_and_lives_on(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    nginx.start(old.where, chat.where)
    ws = client("chat")
    ws.websocket()
    workers = nginx.reload(new.where, chat.where)
    left, seconds = waited(workers, nginx, old)
    assert left == 0 and seconds < 1
    assert all(is_alive(*worker) for worker in workers), "it is let go of before it is gone"
    ws.send("still here?")
    assert ws.answer() == "still here?"


def test_a_websocket_does_not_hide_a_half_sent_post(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    old, new, chat = instance("old"), instance("new"), instance("chat")
    nginx.start(old.where, chat.where)
    client("chat").websocket()
    client("blog").get()
    upload = client("blog")
    upload.post_half()
    until(lambda: sockets_of_clients(nginx) == 3)
    workers = nginx.reload(new.where, chat.where)
    assert waited(workers, nginx, old, seconds=0.5)[0] == 1


def test_the_retired_apps_own_websocket_is_counted_at_the_deadline(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client]
) -> None:
    chat, new, blog = instance("chat"), instance("new"), instance("blog")
    nginx.start(blog.where, chat.where)
    client("chat").websocket()
    client("chat").websocket()
    workers = nginx.reload(blog.where, new.where)
    left, seconds = waited(workers, nginx, chat, seconds=0.4)
    assert left == 2
    assert 0.4 <= seconds < 1


@pytest.mark.parametrize("is_relative", [False, True])
def test_a_unix_instance_is_known_by_its_path(
    nginx: Nginx,
    instance: Callable[..., Instance],
    client: Callable[[str], Client],
    isolated: Path,
    is_relative: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(isolated)
    chat = instance("chat", "unix:c.sock" if is_relative else f"unix:{isolated}/c.sock")
    chat.where = f"unix:{isolated}/c.sock"
    new, blog = instance("new"), instance("blog")
    nginx.start(blog.where, chat.where)
    client("chat").websocket()
    workers = nginx.reload(blog.where, new.where)
    assert held(workers, nginx, chat) == 1
    assert held(workers, nginx, blog) == 0, "to others it is a client with a partner"


def test_a_connection_that_a_unix_instance_has_not_accepted_counts(
    nginx: Nginx, instance: Callable[..., Instance], client: Callable[[str], Client], isolated: Path
) -> None:
    blog, new = instance("blog"), instance("new")
    with socket.socket(socket.AF_UNIX) as busy:
        busy.bind(f"{isolated}/b.sock")
        (isolated / "b.sock").chmod(0o666)
        busy.listen()
        nginx.start(blog.where, f"unix:{isolated}/b.sock")
        waiting = client("chat")
        waiting.send("GET / HTTP/1.1\r\nHost: chat\r\n\r\n")
        targets = drain.targets([address(f"unix:{isolated}/b.sock")], {})
        ports = sockets.listening_ports(nginx.master)
        until(lambda: drain.still_held(nginx.workers(), targets, ports) == 1)
        workers = nginx.reload(blog.where, new.where)
        assert drain.still_held(workers, targets, ports) == 1


def test_a_worker_that_is_gone_or_another_process_holds_nothing(nginx: Nginx, instance: Callable[..., Instance]) -> None:
    old, chat = instance("old"), instance("chat")
    nginx.start(old.where, chat.where)
    (pid, started), *_ = nginx.workers()
    assert held([(pid, started + 1)], nginx, old) == 0
    assert waited([], nginx, old) == (0, pytest.approx(0, abs=0.1))


def test_the_kernels_two_tables_of_tcp_say_the_same() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as four,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as six,
        socket.create_connection(four.getsockname()),
        socket.create_connection(six.getsockname()[:2]),
    ):
        own = set(sockets._inodes(os.getpid()))
        found = sockets._tcp(own)
        assert found == sockets._tcp_from_proc(own)
        assert f"127.0.0.1:{four.getsockname()[1]}" in {s.remote for s in found.values()}
        assert f"[::1]:{six.getsockname()[1]}" in {s.local for s in found.values() if s.listens}


def sockets_of_clients(nginx: Nginx) -> int:
    ports = sockets.listening_ports(nginx.master)
    found = sockets.held_by([pid for pid, _ in nginx.workers()])
    return sum(s.is_from_client(ports) for held in found.values() for s in held or ())


# the commands, on router's own nginx


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
