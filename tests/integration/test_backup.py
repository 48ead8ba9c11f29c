"""Backups: an archive comes back byte for byte and all or nothing, and a root that is copied while commands run can be used."""

from __future__ import annotations

import io
import os
import re
import shutil
import socket
import subprocess
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from nginx_router.faults import STEPS

from .conftest import Live, Root, until
from .instances import Backend

HERE = Path(__file__).resolve().parents[2]
BIN = HERE / ".venv/bin"


def vhosts(root: Root) -> dict[str, str]:
    """The server blocks of each app, the root's own path aside."""
    index = root.generations.current()
    assert index is not None
    texts = {name: root.generations.object(entry.vhost).decode() for name, entry in index.apps.items() if entry.vhost}
    return {name: text.replace(str(root.paths.root), "/ROOT") for name, text in texts.items()}


@pytest.fixture
def furnished(live: Live, backend: Callable[..., Backend]) -> Live:
    """Apps of every kind."""
    live.write("DOMAINS", "# ours\nexample.test\n")
    live.app("blog", ["blog.test  # main", "*.blog.test"], [backend("blog"), "127.0.0.1:1 backup"])
    live.app("shop", ["shop.test"], [backend("shop"), f"api {backend('api')}"])
    live.write(
        "apps/shop/app.toml", f'ports = ["http", "http:{live.port + 1}:api"]\n[count]\nweb = 1\n[nginx]\nclient-max-body-size = "2m"\n'
    )
    live.snippet("blog", 'add_header X-From "blog";\n')
    live.app("empty", [], [])
    live.write("apps/blog/tls/server.key", "key").chmod(0o600)
    live.done("reconcile", "--all")
    return live


@pytest.fixture
def other(isolated: Path) -> Iterator[Live]:
    """A second root; it has no settings, and its nginx does not run."""
    root = isolated / "o"
    root.mkdir()
    found = Live(root, 0)
    yield found
    found.end()


def export(root: Root, path: Path) -> Path:
    root.done("export", "--output", path)
    return path


def test_an_import_into_an_empty_root_is_the_same_host(furnished: Live, other: Live, isolated: Path) -> None:
    path = export(furnished, isolated / "h.tar")
    furnished.done("proxy:stop")
    with furnished.unchanged():
        other.port = furnished.port
        other.done("import", path)
        other.done("proxy:start")
    assert vhosts(other) == vhosts(furnished)
    assert other.files() == furnished.files()
    assert (other.get("blog.test").body, other.get("x.blog.test").body, other.get("shop.test").body) == ("blog", "blog", "shop")
    assert other.get("shop.test", port=other.port + 1).body == "api"
    assert other.get("blog.test").headers["x-from"] == "blog"
    assert (other.paths.app("blog") / "tls/server.key").stat().st_mode & 0o777 == 0o600
    other.is_consistent()
    other.serves_current()
    # and once more: nothing is to be done
    again = other.done("import", path, "--format", "json").json
    assert {app["kind"] for app in again["apps"]} == {"nothing"} and other.generations.current_number() == again["apps"][0]["generation"]


def test_what_nginx_does_not_take_changes_nothing(furnished: Live, isolated: Path) -> None:
    path = export(furnished, isolated / "h.tar")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        furnished.done("domains:set", "blog", "new.test")
        text = (furnished.paths.app("shop") / "app.toml").read_bytes().replace(str(furnished.port + 1).encode(), str(port).encode())
        altered = repacked(path, {"apps/shop/app.toml": text})
        with furnished.unchanged():
            failed = furnished("import", altered)
            assert failed.code == 9 and str(port) in failed.err, failed
    assert furnished.get("new.test").body == "blog"
    furnished.serves_current()


@pytest.mark.parametrize("step", [step for step in STEPS if step not in ("queued", "taken", "reloaded")])
def test_an_import_that_is_killed_is_whole_or_never_was(furnished: Live, isolated: Path, step: str) -> None:
    path = export(furnished, isolated / "h.tar")
    furnished.write("apps/blog/DOMAINS", "new.test\n")
    furnished.write("apps/shop/DOMAINS", "other.test\n")
    furnished.done("reconcile", "blog", "shop")
    before = furnished.files()
    assert furnished("import", path, ROUTER_KILL_AT=step).code == -9
    furnished.done("reconcile", "empty")  # any command: the next one repairs
    came = furnished.get("blog.test").body == "blog"
    assert came == (furnished.get("shop.test").body == "shop") == (furnished.get("new.test").body != "blog")
    assert came == (step in STEPS[STEPS.index("committed") :])
    assert came or furnished.files() == before
    furnished.is_consistent()
    furnished.done("import", path)  # which clears away what the other left too
    assert not list(furnished.paths.run.glob("import-*"))
    assert furnished.get("blog.test").body == "blog"


def test_changes_wait_while_an_export_reads_and_not_while_somebody_takes_it_slowly(furnished: Live) -> None:
    with furnished.locked():
        assert furnished("export", "--output", "/dev/null", "--lock-timeout", "0.2").code == 5
    (furnished.paths.root / "data/mine").mkdir(parents=True)
    (furnished.paths.root / "data/mine/large").write_bytes(os.urandom(4 << 20))  # more than a pipe has room for
    slow = furnished.begin("export")
    assert slow.process.stdout is not None
    raw = slow.process.stdout.buffer  # type: ignore[attr-defined]  # of a text stream
    first = raw.read(4096)
    furnished.done("domains:add", "blog", "meanwhile.test", "--lock-timeout", "5")
    data = first + raw.read()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        domains = tar.extractfile("apps/blog/DOMAINS")
        assert domains is not None and b"meanwhile" not in domains.read()


def repacked(path: Path, changed: dict[str, bytes]) -> Path:
    """The archive with other files in it."""
    from nginx_router import archive

    from ..unit.test_backup import described

    with path.open("rb") as file:
        reading = archive.Reading(file, "x")
        files = {name: b"".join(pieces) for name, _, pieces in reading.files()} | changed
    manifest = reading.manifest
    listed = {name: manifest.files[name] if name not in changed else described(data) for name, data in files.items()}
    target = path.with_name("altered.tar")
    with target.open("wb") as out:
        archive.write(
            archive.Manifest(**{**vars(manifest), "files": listed}),  # type: ignore[arg-type]
            lambda name: iter([files[name]]),
            out.write,
        )
    return target


# -- copies


def names_only(root: Root, old: Path) -> None:
    """Nothing that nginx reads names the place the root was copied from."""
    index = root.generations.current()
    assert index is not None
    files = [p for p in root.generations.directory(index.number).iterdir() if p.suffix == ".conf"]
    files += [root.generations.object_path(entry.vhost) for entry in index.apps.values() if entry.vhost]
    for file in files:
        assert f"{old}/" not in file.read_text(), file


def test_a_copied_root_is_made_its_own_by_the_next_change_and_leaves_the_first_one_alone(
    furnished: Live, isolated: Path, free_port: Callable[[], int]
) -> None:
    copied(furnished, isolated / "c")
    copy = Live(isolated / "c", free_port())
    master = furnished.master
    status = copy("status", "--format", "json").json
    assert any("is a copy of" in problem for problem in status["problems"]) and status["serving"] is None
    index = copy.generations.current()
    assert index is not None
    copy.generations.object_path(index.apps["shop"].state).unlink()  # one that came while the others were copied
    try:
        port = copy.done("proxy:set", "--global", "http-port", copy.port)
        assert f"this root is a copy of {furnished.paths.root}: taking up 3 app directories" in port.err
        names_only(copy, furnished.paths.root)
        assert not copy.paths.wanted.exists() and furnished.master == master, "nobody fights for the ports"
        (copy.paths.app("shop") / "app.toml").unlink()  # its second port is taken
        copy.done("reconcile", "shop")
        copy.done("proxy:start")
        assert (copy.get("blog.test").body, copy.get("shop.test").body) == ("blog", "shop")
        assert copy.get("blog.test").headers["x-from"] == "blog"
        copy.serves_current()
        copy.is_consistent()
    finally:
        copy.end()
    furnished.serves_current()
    assert furnished.master == master


@pytest.mark.timeout(600)
def test_a_root_that_is_copied_while_commands_run_can_be_used(
    live: Live, backend: Callable[..., Backend], isolated: Path, free_port: Callable[[], int]
) -> None:
    one = backend("one")
    for number in range(30):
        live.app(f"app{number}", [f"app{number}.test"], [one])
    live.done("reconcile", "--all")
    over = threading.Event()
    done: list[str] = []

    def change() -> None:
        number = 0
        while not over.is_set():
            app = f"app{number % 30}"
            words = [
                ("domains:add", app, f"x{number}.{app}.test"),
                ("apps:create", f"new{number}"),
                ("upstreams:add", app, f"127.0.0.1:{2000 + number}", "--down"),
                ("nginx:set", app, "client-max-body-size", f"{number + 1}m"),
            ][number % 4]
            live.done(*words)
            done.append(words[0])
            number += 1

    changing = threading.Thread(target=change)
    changing.start()
    copies = []
    try:
        for number in range(2):
            happen(lambda: len(done), 3)
            copies.append(Live(isolated / f"c{number}", free_port()))
            # file by file and slowly, as a large root is; what cp says of files that went meanwhile is no matter
            slowly(live.paths.root, copies[-1].paths.root, lambda: len(done))
    finally:
        over.set()
        changing.join(60)
    for copy in copies:
        try:
            config = copy.paths.config.read_text()
            copy.paths.config.write_text(re.sub(r"http-port = \S+", f"http-port = {copy.port}", config))
            mended = copy("doctor", "--fix")
            assert mended.code == 0, mended
            copy.done("reconcile", "--all")
            names_only(copy, live.paths.root)
            copy.done("proxy:start")
            assert [name for name in copy.store.names() if name.startswith("app")] == sorted(f"app{n}" for n in range(30))
            assert {copy.get(f"app{number}.test").body for number in range(30)} == {"one"}
            copy.serves_current()
        finally:
            copy.end()
    live.serves_current()


def copied(root: Root, target: Path) -> None:
    subprocess.run(["cp", "-a", root.paths.root, target], check=True, timeout=60)


def slowly(source: Path, target: Path, count: Callable[[], int]) -> None:
    """`cp -a`, one entry of the root after the other, with changes between any two."""
    target.mkdir()
    for entry in sorted(source.iterdir(), key=lambda path: path.name, reverse=target.name.endswith("1")):
        subprocess.run(["cp", "-a", entry, target], check=False, timeout=60, capture_output=True)
        happen(count, 1)


def happen(count: Callable[[], int], more: int) -> None:
    """Wait for changes."""
    seen = count()
    until(lambda: count() >= seen + more, 60, "changes")


# -- the recipes of docs/backup.md


def recipe(title: str) -> list[str]:
    """The scripts below a heading of the page: to back up, and to restore."""
    page = (HERE / "docs/backup.md").read_text()
    section = re.split(r"^## ", page, flags=re.M)
    (text,) = [part for part in section if part.startswith(f"{title}\n")]
    return re.findall(r"^```sh\n(.*?)^```$", text, re.S | re.M)


@pytest.mark.parametrize("tool", ["cp", "tar", "rsync", "restic", "restic and an export"])
def test_a_recipe_brings_everything_back(furnished: Live, isolated: Path, tool: str) -> None:
    if shutil.which(tool.split()[0]) is None:
        pytest.skip(f"no {tool.split()[0]} on this machine: apt-get install {tool.split()[0]}")
    save, restore = recipe(tool)
    (isolated / "password").write_text("x")
    environment = {
        **os.environ,
        "PATH": f"{BIN}:{os.environ['PATH']}",
        "ROUTER_ROOT": str(furnished.paths.root),
        "BACKUP": str(isolated / "backup"),
        "RESTIC_REPOSITORY": str(isolated / "repository"),
        "RESTIC_PASSWORD_FILE": str(isolated / "password"),
        "RESTIC_CACHE_DIR": str(isolated / "cache"),
    }

    def run(script: str) -> None:
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", script], env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, f"{script}\n{done.stdout}{done.stderr}"

    files, was = furnished.files(), vhosts(furnished)
    run(save)
    furnished.done("domains:set", "blog", "lost.test")
    furnished.done("apps:destroy", "shop", "--force")
    run(restore)
    assert furnished.files() == files and vhosts(furnished) == was
    assert (furnished.get("blog.test").body, furnished.get("shop.test").body) == ("blog", "shop")
    assert (furnished.paths.app("blog") / "tls/server.key").stat().st_mode & 0o777 == 0o600
    furnished.serves_current()
