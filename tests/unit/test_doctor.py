"""The checks of `doctor`, each on a root that has what it is about."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from nginx_router import doctor, doctor_host, doctor_nginx, doctor_root, hostconf, listening
from nginx_router.controller import Router
from nginx_router.errors import StateCorrupt
from nginx_router.findings import Finding, Look, ok, problem, some, warning
from nginx_router.model import Entry
from nginx_router.settings import Paths

Run = Callable[..., Any]


@pytest.fixture
def look(router_root: Path) -> Look:
    return Look(Router(Paths(router_root)))


def bad(findings: Any) -> list[Finding]:
    return [finding for finding in findings if finding.state != "ok"]


CONF = """{main}
events {{}}
http {{
    {http}
    server {{ listen {listen}; }}
    include {root}/current/router.conf;
}}
"""


@pytest.fixture
def host(router_root: Path, tmp_path: Path) -> Callable[..., Look]:
    """A root in host mode, with this nginx.conf."""

    def make(main: str = "", http: str = "", listen: str = "80") -> Look:
        conf = tmp_path / "nginx.conf"
        conf.write_text(CONF.format(main=main, http=http, listen=listen, root=router_root))
        (router_root / "router.toml").write_text(f'[proxy]\nmode = "host"\nnginx-conf = "{conf}"\n')
        return Look(Router(Paths(router_root)))

    return make


def test_lines_that_the_distributions_nginx_conf_lacks_are_named(host: Callable[..., Look], tmp_path: Path) -> None:
    units = (tmp_path / "nginx.service.d",)
    found = bad(doctor_nginx.main_lines(host(), units))
    assert [f.state for f in found] == ["warning", "warning"]
    assert "no worker_shutdown_timeout" in found[0].what and "worker_shutdown_timeout 1h;" in found[0].fix
    assert "no worker_rlimit_nofile" in found[1].what
    assert not bad(doctor_nginx.main_lines(host("worker_shutdown_timeout 1h;\nworker_rlimit_nofile 9999;"), units))


def test_a_shutdown_timeout_that_is_the_hosts_to_set_is_shown_as_its_line(host: Callable[..., Look], tmp_path: Path) -> None:
    look = host()
    with (look.paths.root / "router.toml").open("a") as file:
        file.write('worker-shutdown-timeout = "8h"\n')
    found = bad(doctor_nginx.main_lines(look, (tmp_path / "nginx.service.d",)))
    assert "worker-shutdown-timeout is 8h" in found[0].what and "`worker_shutdown_timeout 8h;` at the top" in found[0].fix


def test_a_unix_listener_needs_a_drop_in_that_removes_it(host: Callable[..., Look], tmp_path: Path) -> None:
    units = (tmp_path / "nginx.service.d",)
    lines = "worker_shutdown_timeout 1h;\nworker_rlimit_nofile 9999;"
    (found,) = bad(doctor_nginx.main_lines(host(lines, listen="unix:/run/own.sock"), units))
    assert "unix:/run/own.sock" in found.what and "ExecStartPre=/bin/rm -f /run/own.sock" in found.fix
    units[0].mkdir()
    (units[0] / "own.conf").write_text("[Service]\nExecStartPre=/bin/rm -f /run/own.sock\n")
    assert not bad(doctor_nginx.main_lines(host(lines, listen="unix:/run/own.sock"), units))


def test_a_configuration_that_does_not_include_us(host: Callable[..., Look]) -> None:
    look = host("worker_shutdown_timeout 1h;\nworker_rlimit_nofile 9999;")
    conf = look.plane.conf
    conf.write_text("".join(line for line in conf.read_text().splitlines(keepends=True) if "include" not in line))
    (found,) = bad(doctor_nginx.main_lines(look))
    assert found.state == "problem" and found.fix == "sudo router setup"


def index_of(look: Look, **apps: Entry) -> None:
    """A generation of these apps, as far as the checks look."""
    from nginx_router.index import Index
    from nginx_router.model import HostFacts

    vars(look)["index"] = Index(1, "1-a", "", "", HostFacts(nofile=1024), apps)


@pytest.mark.parametrize(
    ("length", "size", "fits"), [(46, 64, True), (47, 64, False), (110, 128, True), (111, 128, False), (253, 512, True)]
)
def test_the_longest_name_and_nginxs_hash(host: Callable[..., Look], length: int, size: int, fits: bool, tmp_path: Path) -> None:
    look = host(http=f"server_names_hash_bucket_size {size};")
    name = ".".join(["a" * 40] * 10)[: length - 5].rstrip(".").ljust(length - 5, "b") + ".test"
    index_of(look, blog=Entry("s", "v", 1, (name,)))
    assert bad(doctor_nginx.names_hash(look)) is not fits
    # and nginx says the same of it
    binary = look.plane.binary
    conf = tmp_path / "hash.conf"
    conf.write_text(
        f"pid {tmp_path}/pid;\nerror_log stderr;\nevents {{}}\nhttp {{ access_log off; server_names_hash_bucket_size {size};\n"
        + "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi"))
        + f"server {{ listen unix:{tmp_path}/s; server_name {name}; }} server {{ listen unix:{tmp_path}/s; server_name other.test; }} }}\n"
    )
    import subprocess

    done = subprocess.run([binary, "-t", "-q", "-c", conf, "-e", "stderr"], capture_output=True, text=True, timeout=20)
    assert ("server_names_hash_bucket_size" not in done.stderr) is fits, done.stderr


def test_open_files_against_the_number_of_apps(look: Look) -> None:
    index_of(look, **{f"app{n}": Entry("s", "v", 1, (f"a{n}.test",)) for n in range(300)})
    (found,) = bad(doctor_nginx.open_files_limit(look))
    assert found.state == "problem" and "1024 files, and 300 apps with two logs each need 1112" in found.what
    index_of(look, **{f"app{n}": Entry("s", "v", 1, (f"a{n}.test",)) for n in range(200)})
    assert not bad(doctor_nginx.open_files_limit(look))


@pytest.mark.parametrize(
    ("free", "total", "inodes", "state"),
    [
        (100 << 30, 200 << 30, 10**6, None),
        (500 << 20, 200 << 30, 10**6, "warning"),
        (500 << 20, 1 << 30, 10**6, None),
        (10 << 20, 200 << 30, 10**6, "problem"),
        (100 << 30, 200 << 30, 10, "problem"),
        (100 << 30, 200 << 30, 20_000, "warning"),
    ],
)
def test_disk_and_inodes(look: Look, monkeypatch: pytest.MonkeyPatch, free: int, total: int, inodes: int, state: str | None) -> None:
    real = os.statvfs(look.paths.root)

    class Fake:
        f_bavail, f_frsize, f_blocks, f_files, f_favail = free, 1, total, 10**6, inodes

    assert real
    monkeypatch.setattr("os.statvfs", lambda path: Fake)
    assert [f.state for f in bad(doctor_host.disk(look))] == ([state] if state else [])


def test_a_clock_that_went_back(run: Run, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    run("apps:create", "blog.io")
    monkeypatch.setattr("shutil.which", lambda name: None)
    assert not bad(doctor_host.clock(look))
    behind = (datetime.now(UTC) - timedelta(days=1)).timestamp()
    monkeypatch.setattr("time.time", lambda: behind)
    (found,) = bad(doctor_host.clock(look))
    assert found.state == "problem" and "the clock is behind" in found.what


def test_ipv6_that_came_or_went(run: Run, look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    run("apps:create", "blog.io")
    index = look.index
    assert index is not None
    for listens, has, state in ((True, False, "problem"), (False, True, "warning"), (True, True, None), (False, False, None)):
        vars(look)["index"] = replace(index, facts=replace(index.facts, ipv6=listens))
        monkeypatch.setattr(hostconf, "has_ipv6", lambda has=has: has)
        assert [f.state for f in bad(doctor_host.ipv6(look))] == ([state] if state else [])


def test_host_names_of_endpoints(run: Run, look: Look, router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run("apps:create", "blog.io")
    assert run("upstreams:add", "blog.io", "localhost:5000").code == 0
    assert not bad(doctor_host.names(look))
    monkeypatch.setattr(doctor_host, "_resolve", lambda host: {"10.9.9.9"})
    (found,) = bad(doctor_host.names(look))
    assert found.state == "warning" and "localhost, an endpoint of blog.io, is 10.9.9.9 now" in found.what
    assert found.fix == "router reconcile blog.io"
    monkeypatch.setattr(doctor_host, "_resolve", lambda host: set())
    (found,) = bad(doctor_host.names(look))
    assert found.state == "problem" and "does not resolve" in found.what


def test_questions_are_asked_at_once_and_what_is_late_has_no_answer() -> None:
    never = threading.Event()
    began = time.monotonic()
    found = doctor_host._at_once([1, 2, 3], lambda n: never.wait(60) if n == 2 else True, 0.5, False)
    assert found == {1: True, 2: False, 3: True} and time.monotonic() - began < 5
    never.set()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_files_that_belong_to_somebody_else(run: Run, look: Look, router_root: Path) -> None:
    run("apps:create", "blog.io")
    assert not bad(doctor_root.owners(look))
    os.chown(router_root / "apps/blog.io/DOMAINS", 65534, 65534)
    (found,) = bad(doctor_root.owners(look))
    assert found.state == "warning" and found.what.startswith("others than root may write files of blog.io, which are held to")
    assert "any port" in found.what
    run("proxy:set", "--global", "allowed-ports", "8000-8999")
    look.__dict__.pop("settings", None)
    assert not bad(doctor_root.owners(look))
    os.chown(router_root / "run/queue", 65534, 65534)
    (found,) = bad(doctor_root.owners(look))
    assert found.state == "problem" and "run/queue belong to nobody, who so may do what root may" in found.what


def test_a_person_is_asked_before_current_is_changed(look: Look) -> None:
    asked: list[str] = []
    mended: list[int] = []

    def mend() -> str:
        mended.append(1)
        return "done"

    def say(answer: bool | None) -> Callable[[str], bool | None]:
        return lambda question: (asked.append(question), answer)[1]

    finding = Finding("problem", "it is wrong", "type this", mend, "Shall I?")
    for answer, times in ((None, 0), (False, 0), (True, 1)):
        result = doctor._mended("current", finding, look, False, say(answer))
        assert (len(mended), bool(result.fixed)) == (times, times == 1)
    assert asked == ["Shall I?"] * 3
    doctor._mended("x", problem("y", mend=mend), look, False, say(True))
    assert len(asked) == 3 and len(mended) == 1, "what asks nothing is mended by --fix alone"


def test_what_cannot_be_mended_stays_a_problem(look: Look) -> None:
    def mend() -> str:
        raise StateCorrupt("no way", hint="restore it")

    result = doctor._mended("objects", warning("it is wrong", mend=mend), look, True, lambda q: None)
    assert (result.state, result.what, result.fix) == ("problem", "it is wrong; it could not be mended: no way", "restore it")
    assert result.as_json()["ok"] is False


def test_a_check_that_fails_is_a_problem_and_the_others_are_made(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(look: Look) -> Any:
        raise PermissionError(13, "Permission denied", "/x")
        yield

    monkeypatch.setattr(doctor, "CHECKS", {"one": broken, "two": lambda look: iter([ok("fine")])})
    found = list(doctor.examine(look))
    assert [(r.name, r.state, r.what) for r in found] == [
        ("one", "problem", "it could not be looked at: Permission denied (/x)"),
        ("two", "ok", "fine"),
    ]


@pytest.mark.parametrize(
    "line", ["x", "[]", "{}", '{"name": 1, "ok": true}', '{"name": "a", "ok": "yes"}', '{"name": "a", "ok": true, "fix": 1}']
)
def test_a_line_of_a_plugin_that_is_no_check(line: str) -> None:
    assert "is not {name, ok, problem, fix}" in doctor._of_line("mine", line).what


def test_what_a_plugin_says_does_nothing_to_a_terminal() -> None:
    found = doctor._of_line("mine", json.dumps({"name": "a", "ok": False, "problem": "\x1b[31mred\nline"}))
    assert found.what == " [31mred line" and found.name == "mine:a"


def test_a_port_clashes_where_it_is_the_same_address() -> None:
    assert listening.clashes("127.0.0.1:80", []) and listening.clashes("0.0.0.0:80", ["10.0.0.1"])
    assert listening.clashes("[::]:80", ["10.0.0.1"]) and listening.clashes("10.0.0.1:80", ["10.0.0.1"])
    assert not listening.clashes("127.0.0.1:80", ["10.0.0.1"]) and not listening.clashes("0.0.0.0:80", ["::1"])


def test_a_port_that_is_taken_is_said_once_with_who_has_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        bind = f"[emerg] bind() to 127.0.0.1:{port} failed (98: Address already in use)"
        said = [*5 * [bind], "[emerg] still could not bind()"]
        assert listening.is_taken(said)
        (line,) = listening.named(said)
        assert line.startswith(f"{bind}: pid {os.getpid()} (") and line.endswith(") has it")
    (line,) = listening.named(said)
    assert line == f"{bind}: it is free by now"
    other = '[emerg] unknown directive "x" in /a:1'
    assert listening.named([other]) == [other] and not listening.is_taken([other])


def test_long_lists_are_cut() -> None:
    assert some(list("abc")) == "a, b, c" and some(list("abcdefg")) == "a, b, c, d, e and 2 more"


def test_without_any_root_there_is_no_problem(run: Run) -> None:
    result = run("doctor", "--format", "json")
    assert result.code == 0 and result.json()["healthy"] is True
    assert run("doctor", "--problems").out == "0\n"
