"""What old workers of a real nginx hold after a reload, and when they have let go."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nginx_router import drain, sockets
from nginx_router.names import address
from nginx_router.processes import children, command_line, is_alive, started_at

from .conftest import NGINX
from .holding import Client, Instance, instance

__all__ = ["instance"]  # a fixture

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
def nginx(isolated: Path, free_port: Callable[[], int]) -> Iterator[Nginx]:
    directory = isolated / "n"
    directory.mkdir()
    made = Nginx(directory, free_port())
    yield made
    made.stop()


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
