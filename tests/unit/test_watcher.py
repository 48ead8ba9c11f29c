"""What a watch is made of: when a burst is over, what a path means, what systemd hears, what differs."""

from __future__ import annotations

import os
import queue
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_router.controller import Router
from nginx_router.hostnames import HostNames, names_of
from nginx_router.keeping import Keeping
from nginx_router.names import address
from nginx_router.settings import Paths
from nginx_router.stillness import LONGEST, STILL, Burst
from nginx_router.systemd import Notifier
from nginx_router.watching import CODE, HOST, INTENT, ROOT, trees

# stillness


def test_nothing_touched_is_never_due() -> None:
    assert Burst().due() is None
    assert Burst().take(10.0) == []


def test_one_edit_is_due_when_it_has_been_still_for_100_ms() -> None:
    burst = Burst()
    burst.touch("blog", 10.0)
    assert burst.due() == 10.0 + STILL == 10.1
    assert burst.take(10.05) == []
    assert burst.take(10.1) == ["blog"]
    assert burst.due() is None


def test_a_burst_waits_for_its_last_edit_and_is_taken_up_as_one() -> None:
    burst = Burst()
    for n, app in enumerate(("blog", "shop", "blog", "news")):
        burst.touch(app, 10.0 + n * 0.05)
    assert burst.take(10.2) == []
    assert burst.take(10.26) == ["blog", "news", "shop"]


def test_a_burst_without_an_end_is_taken_up_after_a_second() -> None:
    burst = Burst()
    for n in range(30):
        burst.touch("blog", 10.0 + n * 0.05)
    assert burst.due() == 10.0 + LONGEST == 11.0
    assert burst.take(11.5) == ["blog"]


def test_a_file_in_somebodys_hands_is_left_alone_and_holds_up_nobody_else() -> None:
    burst = Burst()
    burst.touch("shop", 10.0)
    for n in range(100):
        burst.touch("blog", 10.0 + n * 0.05, file="DOMAINS", is_held=True)
        if 10.0 + n * 0.05 < 11.0:
            assert burst.take(10.0 + n * 0.05) == []
        else:
            break
    assert burst.take(11.01) == ["shop"]
    burst.touch("blog", 11.05, file="DOMAINS", is_held=True)
    assert burst.take(11.1) == []
    assert burst.take(11.16) == ["blog"], "whoever holds it writes no more"


def test_a_closed_file_is_whole_however_often_it_is_written() -> None:
    burst = Burst()
    for n in range(20):
        burst.touch("blog", 10.0 + n * 0.05, file="DOMAINS", is_held=True)
        burst.touch("blog", 10.01 + n * 0.05, file="DOMAINS")
    assert burst.due() == 11.0


# what a path means


@pytest.fixture
def meaning(router_root: Path) -> Iterator[object]:
    paths = Paths(router_root)
    (router_root / "plugins").mkdir()

    def of(path: str, *, is_directory: bool = False) -> list[str]:
        found = []
        for tree in trees(paths):
            relative = os.path.relpath(router_root / path, tree.path)
            if relative.startswith("..") or (not tree.is_recursive and "/" in relative):
                continue
            what = tree.meaning(relative, is_directory)
            found += [what] if what else []
        return found

    yield of


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("apps/blog/DOMAINS", ["blog"]),
        ("apps/blog/UPSTREAMS", ["blog"]),
        ("apps/blog/app.toml", ["blog"]),
        ("apps/blog/nginx.conf.j2", ["blog"]),
        ("apps/blog/nginx.conf.d/own.conf", ["blog"]),
        ("apps/blog/tls/blog.test.pem", ["blog"]),
        ("router.toml", [HOST]),
        ("DOMAINS", [HOST]),
        ("run/intent.json", [INTENT]),
        ("plugins/header/nginx-server-snippet", [CODE]),
        ("plugins/.disabled", [CODE]),
        # an editor, git and Python by the way, and what nobody reads
        ("apps/blog/.DOMAINS.swp", []),
        ("apps/blog/DOMAINS~", []),
        ("apps/blog/4913", []),
        ("apps/blog/access.log", []),
        ("apps/blog/nginx.conf.d/own.conf.bak", []),
        ("apps/blog/nginx.conf.d/.own.conf.swp", []),
        ("apps/.trash/blog/DOMAINS", []),
        ("apps/No_App/DOMAINS", []),
        ("plugins/header/__pycache__/plugin.cpython-311.pyc", []),
        ("plugins/header/.git/index", []),
        ("plugins/header/.plugin.py.swp", []),
        # what changes write
        ("current", []),
        ("journal.jsonl", []),
        ("run/stale.json", []),
        ("run/lock", []),
        ("objects/abc", []),
    ],
)
def test_a_path_means_an_app_the_host_a_plugin_or_nothing(meaning: object, path: str, what: list[str]) -> None:
    assert meaning(path) == what  # type: ignore[operator]  # a function


def test_directories_that_come_and_go_are_named(meaning: object) -> None:
    assert meaning("apps/blog", is_directory=True) == ["blog"]  # type: ignore[operator]  # a function
    assert meaning("apps/blog/nginx.conf.d", is_directory=True) == ["blog"]  # type: ignore[operator]  # a function
    assert ROOT in meaning("apps", is_directory=True)  # type: ignore[operator]  # a function
    assert meaning(".", is_directory=True) == [ROOT]  # type: ignore[operator]  # a function


# systemd


@pytest.fixture
def manager(isolated: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(str(isolated / "notify"))
        listener.settimeout(5)
        yield listener


def test_systemd_hears_of_each_state(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    notifier.ready("2 apps")
    assert manager.recv(500) == b"READY=1\nSTATUS=2 apps"
    before = time.monotonic_ns() // 1000
    notifier.reloading("again")
    lines = dict(line.split("=") for line in manager.recv(500).decode().splitlines())
    assert lines["RELOADING"] == "1" and lines["STATUS"] == "again"
    assert before <= int(lines["MONOTONIC_USEC"]) <= time.monotonic_ns() // 1000
    notifier.status("one\nline")
    assert manager.recv(500) == b"STATUS=one line"
    notifier.stopping("bye")
    assert manager.recv(500) == b"STOPPING=1\nSTATUS=bye"


def test_systemd_may_listen_in_the_abstract_namespace() -> None:
    name = f"router-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.bind(f"\0{name}")
        listener.settimeout(5)
        Notifier({"NOTIFY_SOCKET": f"@{name}"}).ready("here")
        assert listener.recv(500) == b"READY=1\nSTATUS=here"


def test_the_watchdog_is_fed_only_where_systemd_asked(manager: socket.socket) -> None:
    address = manager.getsockname()
    for environ in ({}, {"WATCHDOG_USEC": "200000", "WATCHDOG_PID": "1"}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "soon"}):
        notifier = Notifier({"NOTIFY_SOCKET": address, **environ})
        notifier.lives()
        assert notifier.watchdog == 0.0
    assert Notifier({"WATCHDOG_USEC": "200000"}).watchdog == 0.0, "nobody listens"
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000", "WATCHDOG_PID": str(os.getpid())})
    notifier.lives()
    assert [manager.recv(500) for _ in range(3)] == [b"WATCHDOG=1"] * 3
    notifier.stopping("bye")
    while (said := manager.recv(500)) == b"WATCHDOG=1":
        pass
    assert said.startswith(b"STOPPING=1")


@pytest.mark.parametrize("address", ["", "/nowhere/at/all", "@nobody-listens-here", "vsock:2:1234"])
def test_a_service_manager_that_is_not_there_is_no_trouble(address: str) -> None:
    Notifier({"NOTIFY_SOCKET": address} if address else {}).ready("alone")


# names


def test_only_endpoints_with_names_are_resolved_again(router_root: Path) -> None:
    app = router_root / "apps/blog"
    app.mkdir(parents=True)
    router = Router(Paths(router_root))
    assert names_of(router, "blog") == ()
    (app / "UPSTREAMS").write_text("10.0.0.1:80\napi db.lan:5000 # the old one\nweb.lan:80 backup\nunix:/x\n[::1]:80\nnonsense\n")
    assert names_of(router, "blog") == ("db.lan", "web.lan")
    assert address("db.lan:5000").is_literal is False
    assert names_of(router, "gone") == ()


def test_no_answer_changes_nothing_and_another_one_does(router_root: Path) -> None:
    app = router_root / "apps/blog"
    app.mkdir(parents=True)
    (app / "DOMAINS").write_text("blog.test\n")
    (app / "UPSTREAMS").write_text("localhost:80\n")
    router = Router(Paths(router_root))
    router.reconcile()
    index = router.index()
    assert index
    known = router.generations.app_state(index.apps["blog"])[1].resolved["localhost"]
    names = HostNames(router)
    names.note_all()
    assert names.changed({}) == []
    assert names.changed({"localhost": known}) == []
    assert names.changed({"localhost": ("127.0.0.9",)}) == ["blog"]
    told: queue.SimpleQueue[dict[str, tuple[str, ...]]] = queue.SimpleQueue()
    names.ask(told.put)
    assert told.get(timeout=10) == {"localhost": known}
    (app / "UPSTREAMS").write_text("127.0.0.1:80\n")
    names.note(["blog"])
    assert not names


# nginx


def test_in_host_mode_the_line_to_type_is_said_once(router_root: Path, tmp_path: Path) -> None:
    conf = tmp_path / "nginx.conf"
    conf.write_text(f"events {{}}\nhttp {{ include {router_root}/current/router.conf; }}\npid {tmp_path}/nginx.pid;\n")
    (router_root / "router.toml").write_text(f'[proxy]\nmode = "host"\nnginx-conf = "{conf}"\n')
    router, told, said = Router(Paths(router_root)), list[str](), list[str]()
    router.store.prepare()
    keeping = Keeping(router, tell=told.append, say=said.append)
    assert keeping.look() is False and said == [], "nobody wants it to run"
    router.paths.wanted.touch()
    assert keeping.look() is False and said == ["nginx should run and does not: sudo systemctl start nginx"]
    assert keeping.look() is False and len(said) == 1 and told == []
    assert not router.paths.journal.exists()
