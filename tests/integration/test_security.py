"""docs/security.md of files: what may not be read leads nowhere, what root writes stays whose it is, and nothing is for others to write."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nginx_router.beneath import Directory
from nginx_router.errors import Conflict, UsageProblem
from nginx_router.events import Event
from nginx_router.owners import Hosts
from nginx_router.queue import Queue
from nginx_router.store import Write

from .conftest import Live, Root, until
from .tenants import ALICE, NOBODY, alice, alice_writes, as_user, goes_on, meanwhile, refused, tenants

__all__ = ["tenants"]  # a fixture

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")


@pytest.fixture
def secret(tenants: Live, isolated: Path) -> Iterator[Path]:
    """A file that only root may read; each of its lines would be a domain."""
    path = isolated / "secret"
    path.write_text("root-password.hunter2\n")
    path.chmod(0o600)
    yield path
    assert path.read_text() == "root-password.hunter2\n" and stat.S_IMODE(path.stat().st_mode) == 0o600 and path.stat().st_uid == 0


def holds(root: Root, text: str) -> list[str]:
    """The files of the root that hold a text."""
    files = (path for path in root.paths.root.rglob("*") if path.is_file() and not path.is_symlink())
    return [str(path.relative_to(root.paths.root)) for path in files if text in path.read_text(errors="replace")]


# another's key, or any file that they may not read

PLACES = ("DOMAINS", "UPSTREAMS", "app.toml", "nginx.conf.j2", "nginx.conf.d/own.conf")


def test_no_link_leads_out_of_an_apps_directory(tenants: Live, secret: Path) -> None:
    (secret.parent / "d").mkdir(mode=0o700)
    shutil.copy2(secret, secret.parent / "d/own.conf")
    for place in (*PLACES, "nginx.conf.d"):
        target = secret.parent / "d" if place == "nginx.conf.d" else secret
        put = "os.path.lexists(p) and os.rename(p, 'aside')\nos.symlink(sys.argv[2], p)"
        alice(tenants, f"p = sys.argv[1]\n{put}", place, target)
        result = refused(tenants, 2, "reconcile", "blog")
        assert "a link or a device" in result.err and "hunter2" not in result.err
        alice(tenants, "p = sys.argv[1]\nos.unlink(p)\nos.path.lexists('aside') and os.rename('aside', p)", place)
    assert holds(tenants, "hunter2") == []
    goes_on(tenants)


@pytest.mark.timeout(400)  # many commands, one after the other
def test_no_second_name_of_a_file_leads_out(tenants: Live, secret: Path) -> None:
    # as alice could make one where fs.protected_hardlinks is 0
    key = tenants.paths.app("shop") / "tls/key.pem"
    for place in PLACES:
        path = tenants.paths.app("blog") / place
        kept = path.read_text() if path.exists() else None
        for other in (secret, key):
            path.unlink(missing_ok=True)
            path.hardlink_to(other)
            assert "may not read this file" in refused(tenants, 2, "reconcile", "blog").err
        # the first name goes, as /etc/shadow's does whenever passwd(1) writes it: nothing tells the second from a file made there
        path.unlink()
        path.write_text("root-password.hunter2\n")
        path.chmod(0o600)
        assert "may not read this file" in refused(tenants, 2, "reconcile", "blog").err
        path.unlink()
        if kept is not None:
            alice_writes(tenants, place, kept)
    assert holds(tenants, "hunter2") == [] and holds(tenants, "the key of shop") == ["apps/shop/tls/key.pem"]
    assert as_user(ALICE, f"open({str(key)!r})").returncode != 0
    goes_on(tenants)


def test_a_file_that_is_exchanged_for_a_link_while_it_is_read(tenants: Live, secret: Path) -> None:
    (secret.parent / "d").mkdir(mode=0o700)
    shutil.copy2(secret, secret.parent / "d/own.conf")
    alice_writes(tenants, "nginx.conf.d/own.conf", "gzip on;")
    exchange = (
        "os.symlink(sys.argv[1], 'l'); os.rename('l', 'DOMAINS'); open('t', 'w').close(); os.rename('t', 'DOMAINS'); "
        "os.rename('nginx.conf.d', 'y'); os.symlink(sys.argv[2], 'nginx.conf.d'); os.unlink('nginx.conf.d'); os.rename('y', 'nginx.conf.d')"
    )
    read, links = set(), 0
    with meanwhile(ALICE, tenants.paths.app("blog"), exchange, secret, secret.parent / "d"):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (links < 50 or "gzip on;" not in read):
            try:
                read |= {*(tenants.store.texts("blog") or {}).values()}
            except UsageProblem:
                links += 1
    assert links >= 50 and "gzip on;" in read, "the race was run"
    assert not any("hunter2" in text for text in read)


# what root writes


def test_a_directory_that_is_exchanged_for_a_link_while_root_writes(tenants: Live, isolated: Path) -> None:
    target = isolated / "cron.d"
    target.mkdir()
    exchange = (
        "import time; os.rename('nginx.conf.d', f'y{time.monotonic_ns()}'); os.symlink(sys.argv[1], 'nginx.conf.d'); "
        "os.unlink('nginx.conf.d'); os.mkdir('nginx.conf.d')"
    )
    written = refusals = 0
    with meanwhile(ALICE, tenants.paths.app("blog"), exchange, target):
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline and (written < 50 or refusals < 50):
            for step in (Write("apps/blog/nginx.conf.d/job.conf", None, "x"), Write("apps/blog/nginx.conf.d/job.conf", "x", None)):
                with contextlib.suppress(Conflict):
                    try:
                        tenants.store.apply([step])
                        written += 1
                    except (UsageProblem, OSError):
                        refusals += 1
    assert written >= 50 and refusals >= 50, "the race was run"
    assert list(target.iterdir()) == []


def test_what_root_makes_in_an_apps_directory_is_its_owners(tenants: Live) -> None:
    blog = tenants.paths.app("blog")
    shutil.rmtree(blog / "nginx.conf.d")
    tenants.done("nginx:set", "blog", "gzip", "on")
    tenants.store.apply([Write("apps/blog/nginx.conf.d/own.conf", None, "gzip_vary on;\n")])
    for path in (blog / "app.toml", blog / "nginx.conf.d", blog / "nginx.conf.d/own.conf"):
        assert path.stat().st_uid == ALICE and not path.stat().st_mode & 0o022
    # a program of root's by a second name: what takes its place is no program that runs as root
    program = blog.parent.parent / "program"
    program.write_text("# one.test\n")
    program.chmod(0o4755)
    (blog / "UPSTREAMS").unlink()
    (blog / "UPSTREAMS").hardlink_to(program)
    tenants.store.apply([Write("apps/blog/UPSTREAMS", "# one.test\n", "# two.test\n")])
    assert (blog / "UPSTREAMS").stat().st_mode & 0o7000 == 0 and program.stat().st_mode & 0o7777 == 0o4755


def test_doctor_mends_no_mode_of_what_an_owner_put_there_instead(tenants: Live, secret: Path) -> None:
    key = tenants.paths.app("blog") / "tls/key.pem"
    key.unlink()
    key.symlink_to(secret.parent / "passwd")
    passwd = secret.parent / "passwd"
    passwd.write_text("everybody reads it")
    passwd.chmod(0o666)
    with Directory.open(tenants.paths.apps, Hosts.of(tenants.paths.root)) as apps, apps.inside("blog") as blog, blog.inside("tls") as tls:
        with pytest.raises(UsageProblem, match="a link"):
            tls.restrict("key.pem", 0o600)
        key.unlink()
        key.hardlink_to(passwd)
        with pytest.raises(UsageProblem, match="another name"):
            tls.restrict("key.pem", 0o600)
    assert stat.S_IMODE(passwd.stat().st_mode) == 0o666


# locks and the queue


def test_nobody_but_its_owner_opens_a_lock(tenants: Live, router_root: Path) -> None:
    tenants.done("apps:deploy", "shop", (tenants.paths.app("shop") / "UPSTREAMS").read_text().strip())
    locks = [tenants.paths.lock, *router_root.glob("run/*.lock"), *router_root.glob("run/deploy/*.lock")]
    for lock in locks:
        for uid in (ALICE, NOBODY):
            assert as_user(uid, f"open({str(lock)!r})").returncode != 0, lock
    # one that flock(1) made, with the mode that everything gets
    tenants.paths.lock.chmod(0o644)
    tenants.done("domains:add", "shop", "two.test")
    assert stat.S_IMODE(tenants.paths.lock.stat().st_mode) == 0o600
    journal = tenants.paths.journal
    assert as_user(NOBODY, f"open({str(journal)!r})").returncode != 0, "it is locked while a line is added"


def test_nobody_asks_by_the_queue(tenants: Live) -> None:
    queue = tenants.paths.queue
    for uid in (ALICE, NOBODY):
        assert as_user(uid, f"open({str(queue / 'x')!r}, 'w')").returncode != 0
        assert as_user(uid, f"import os; os.listdir({str(queue)!r})").returncode != 0
    # and if somebody could, it would not be done
    with tenants.locked():
        command = tenants.begin("reconcile", "shop")
        until(lambda: tenants.queued() == 1, 10, "the submission")
        (asked,) = queue.glob("*.json")
        forged = json.loads(asked.read_text())
        forged["events"] = [Event("destroy", "shop").as_json()]
        name = asked.with_name(f"0{asked.name[1:-10]}abcdef.json")
        name.write_text(json.dumps(forged))
        os.chown(name, ALICE, ALICE)
        link = asked.with_name(f"0{asked.name[1:-10]}fedcba.json")
        link.symlink_to(asked)
    assert command.wait().code == 0
    assert tenants.store.exists("shop") and tenants.get("shop.test").body == "shop"
    assert Queue(queue).take() == [] and list(queue.iterdir()) == []


# modes


def test_nothing_is_for_others_to_write(tenants: Live, router_root: Path) -> None:
    os.umask(0)  # of whoever runs the test; pytest's own files are its own affair
    try:
        tenants.done("apps:create", "new")
        tenants.done("nginx:set", "new", "gzip", "on")
        tenants.done("proxy:set", "--global", "allowed-ports", "1024-65535")
        tenants.done("snippets:list", "new")
        tenants.done("proxy:reload")
    finally:
        os.umask(0o022)
    own = [path for path in router_root.rglob("*") if not path.is_symlink() and not path.is_socket()]
    assert [str(path) for path in own if path.stat().st_mode & 0o002] == []
    for path, mode in (("run/queue", 0o700), ("objects", 0o700), ("run/lock", 0o600)):
        assert stat.S_IMODE((router_root / path).stat().st_mode) == mode, path
    result = tenants("doctor", "--format", "json")
    wrong = [check for check in result.json["checks"] if check["name"] in ("modes", "owners") and not check["ok"]]
    assert wrong == [], wrong


def test_doctor_mends_the_modes_of_what_is_the_hosts(tenants: Live, router_root: Path) -> None:
    (router_root / "run/watch.lock").touch()
    for path, mode in (("run/queue", 0o777), ("objects", 0o755), ("run/watch.lock", 0o644), ("router.toml", 0o666), ("apps", 0o777)):
        (router_root / path).chmod(mode)
    key = router_root / "apps/blog/tls/key.pem"
    key.chmod(0o644)
    os.chown(router_root / "generations", 0, ALICE)
    (router_root / "generations").chmod(0o775)
    found = [c for c in tenants("doctor", "--fix", "--format", "json").json["checks"] if c["name"] == "modes"]
    assert len(found) >= 5 and all(check["fixed"] for check in found), found
    assert stat.S_IMODE((router_root / "run/watch.lock").stat().st_mode) == 0o600
    for path in ("run/queue", "objects", "router.toml", "apps", "generations"):
        assert not (router_root / path).stat().st_mode & 0o002, path
    assert not (router_root / "generations").stat().st_mode & 0o020
    assert stat.S_IMODE(key.stat().st_mode) == 0o600 and key.stat().st_uid == ALICE
    os.chown(router_root / "run/queue", ALICE, ALICE)
    (check,) = [c for c in tenants("doctor", "--format", "json").json["checks"] if c["name"] == "owners" and not c["ok"]][:1]
    assert "run/queue" in check["problem"] and check["fix"].startswith("chown -R root")
