"""Archives: what an export holds, and what an import refuses before it changes anything."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import pty
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from nginx_router import archive
from nginx_router.archive import File, Manifest, Reading
from nginx_router.errors import UsageProblem

Run = Callable[..., Any]
TIME = "2026-01-02T03:04:05.000Z"


def described(data: bytes, mode: int = 0o644) -> File:
    return File(mode, size=len(data), sha256=hashlib.sha256(data).hexdigest())


def made(
    files: Mapping[str, bytes], *, apps: tuple[str, ...] = ("blog",), is_whole: bool = True, directories: tuple[str, ...] = ()
) -> bytes:
    """An archive as `export` writes it; names are not looked at."""
    manifest = Manifest(
        "0.1.0", TIME, "/r", 1, is_whole, apps, (), dict.fromkeys(directories, File(0o755)), {p: described(d) for p, d in files.items()}
    )
    out = io.BytesIO()
    archive.write(manifest, lambda path: iter([files[path]]), out.write)
    return out.getvalue()


def read(data: bytes) -> dict[str, bytes]:
    reading = Reading(io.BytesIO(data), "a.tar")
    return {path: b"".join(pieces) for path, _, pieces in reading.files()}


GOOD = {"apps/blog/DOMAINS": b"blog.test\n", "apps/blog/UPSTREAMS": b"127.0.0.1:5000\n", "router.toml": b""}


def refused(data: bytes) -> str:
    with pytest.raises(UsageProblem) as why:
        read(data)
    assert why.value.message.endswith("; nothing was changed")
    return why.value.message


# -- the format


def test_what_is_written_is_read_and_is_a_tar_file() -> None:
    files = {**GOOD, "apps/blog/nginx.conf.d/" + "x" * 200 + ".conf": b"# long\n", "data/p/über": bytes(range(256)) * 5000}
    data = made(files, directories=("apps/blog", "apps/blog/tls"))
    assert read(data) == files
    assert len(data) % 10240 == 0
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert tar.getnames()[0] == "manifest.json"
        assert {m.name: tar.extractfile(m).read() for m in tar if m.isfile() and m.name != "manifest.json"} == files  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "path",
    [
        "../x",
        "/etc/passwd",
        "apps/blog/../../x",
        "apps/blog/./x",
        "apps//x",
        "apps/blog/",
        "apps/blog/a\nb",
        "apps/blog/a\0b",
        "apps/other/DOMAINS",
        "apps/DOMAINS",
        "objects/x",
        "current",
        "run/lock",
        "journal.jsonl",
        "plugins/x",
        "manifest.json/x",
        "router.toml/x",
        "apps/blog/" + "x" * 300,
        "apps/blog/" + "/".join("abc" * 20 for _ in range(30)),
    ],
)
def test_a_name_that_is_none_of_the_routers_files_is_refused(path: str) -> None:
    refused(made({**GOOD, path: b"x"}))


@pytest.mark.parametrize("app", ["..", "Blog", "a/b", "", "-x", "blog."])
def test_an_app_whose_name_breaks_the_rule_is_refused(app: str) -> None:
    refused(made(GOOD, apps=("blog", app)))


def test_a_file_through_a_file_and_host_files_among_apps_alone_are_refused() -> None:
    assert "is below it" in refused(made({**GOOD, "apps/blog/DOMAINS/x": b""}))
    assert "apps alone" in refused(made(GOOD, is_whole=False))
    assert "a file and a directory" in refused(made(GOOD, directories=("apps/blog/DOMAINS",)))


def members(data: bytes) -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        for member in tar:
            yield member, tar.extractfile(member).read() if member.isfile() else b""  # type: ignore[union-attr]


def packed(rows: list[tuple[tarfile.TarInfo, bytes]], form: int = tarfile.USTAR_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as tar:
        for member, content in rows:
            tar.addfile(member, io.BytesIO(content))
    return out.getvalue()


def changed(edit: Callable[[list[tuple[tarfile.TarInfo, bytes]]], None], form: int = tarfile.USTAR_FORMAT) -> bytes:
    rows = list(members(made(GOOD)))
    edit(rows)
    return packed(rows, form)


@pytest.mark.parametrize(
    ("kind", "words"),
    [(tarfile.SYMTYPE, "a link"), (tarfile.LNKTYPE, "a hard link"), (tarfile.CHRTYPE, "a device"), (tarfile.FIFOTYPE, "a FIFO")],
)
def test_links_devices_and_fifos_are_refused(kind: bytes, words: str) -> None:
    def edit(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        rows[1][0].type, rows[1][0].linkname = kind, "/etc/shadow"
        rows[1][0].size = 0

    assert f"is {words}" in refused(changed(edit))


def test_what_gnu_tar_or_pax_can_say_beyond_names_is_refused() -> None:
    def sparse(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        rows[1][0].pax_headers = {"GNU.sparse.realsize": "99999999999"}

    def long(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        rows[1][0].name = "apps/blog/" + "x" * 150

    assert "pax header" in refused(changed(sparse, tarfile.PAX_FORMAT))
    refused(changed(long, tarfile.GNU_FORMAT))


def test_twice_missing_unlisted_longer_and_changed_are_refused() -> None:
    assert "twice" in refused(changed(lambda rows: rows.append(rows[1])))
    assert "missing" in refused(changed(lambda rows: rows.pop()))
    assert "not in its manifest.json" in refused(changed(lambda rows: rows.append((tarfile.TarInfo("apps/blog/more"), b""))))

    def longer(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        rows[1][0].size += 1
        rows[1] = (rows[1][0], rows[1][1] + b"x")

    def other(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
        rows[1] = (rows[1][0], rows[1][1].upper())

    assert "bytes, and" in refused(changed(longer))
    assert "digest" in refused(changed(other))


def test_the_list_comes_first_once_and_in_a_format_that_is_known() -> None:
    assert "does not begin with manifest.json" in refused(changed(lambda rows: rows.reverse()))

    def with_list(edit: Callable[[str], str]) -> bytes:
        def change(rows: list[tuple[tarfile.TarInfo, bytes]]) -> None:
            text = edit(rows[0][1].decode()).encode()
            rows[0][0].size = len(text)
            rows[0] = (rows[0][0], text)

        return changed(change)

    assert "format is 2" in refused(with_list(lambda text: text.replace('"format": 1', '"format": 2')))
    assert "twice" in refused(with_list(lambda text: text.replace('"format": 1', '"format": 1, "format": 1')))
    for old, new in [('"mode": 420', '"mode": -1'), ('"size": 10', '"size": true'), ('"size": 10', '"size": 99999999999'), ("{", "[")]:
        refused(with_list(lambda text, old=old, new=new: text.replace(old, new, 1)))  # type: ignore[misc]  # bound now
    for key in json.loads(next(members(made(GOOD)))[1]):
        refused(with_list(lambda text, key=key: text.replace(f'"{key}"', '"x"', 1)))  # type: ignore[misc]  # bound now


def test_more_than_an_archive_may_hold_is_refused_by_its_list_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    data = made(GOOD)
    monkeypatch.setattr(archive, "LARGEST_TOTAL", 20)
    assert "more than 20 bytes" in refused(data)
    monkeypatch.setattr(archive, "MOST", 2)
    assert "more than 2 files" in refused(data)


def test_every_cut_and_every_damaged_header_is_refused() -> None:
    data = made(GOOD, directories=("apps/blog",))
    for end in [0, 1, 100, 511, *range(512, len(data), 512)]:
        if any(data[end:]) or end % 512 or len(data) - end > 10240:
            refused(data[:end])
    for place in range(0, 512, 7):
        damaged = bytearray(data)
        damaged[place] ^= 0x15
        if place < 156 or place >= 257:
            refused(bytes(damaged))
    refused(data + b"x")
    refused(data + b"\0" * 512 + b"x" * 512)


def test_a_compressed_archive_leads_to_the_line_to_type() -> None:
    with pytest.raises(UsageProblem) as why:
        read(gzip.compress(made(GOOD)))
    assert (why.value.message, why.value.hint) == ("a.tar: it is compressed; nothing was changed", "zcat FILE | router import -")


# -- the commands


@pytest.fixture
def blog(run: Run, router_root: Path) -> Path:
    (router_root / "router.toml").write_text('[proxy]\nbind-address = "127.0.0.1"\n')
    assert run("apps:create", "blog").code == 0
    assert run("domains:add", "blog", "blog.test").code == 0
    return router_root


def test_an_export_holds_what_people_edit_and_nothing_that_is_made_of_it(run: Run, blog: Path, tmp_path: Path) -> None:
    (blog / "apps/blog/tls").mkdir()
    (blog / "apps/blog/tls/server.key").write_text("key")
    (blog / "apps/blog/tls/server.key").chmod(0o600)
    (blog / "apps/blog/away").symlink_to("/etc")
    (blog / "apps/blog/passwd").symlink_to("/etc/passwd")
    os.mkfifo(blog / "apps/blog/fifo")
    (blog / "apps/blog/huge").write_bytes(bytes((1 << 20) + 1))
    (blog / "plugins/mine/__pycache__").mkdir(parents=True)
    (blog / "plugins/mine/plugin.toml").write_text('[plugin]\nname = "mine"\nhooks = []\n')
    (blog / "data/mine").mkdir(parents=True)
    (blog / "data/mine/count").write_text("3")
    got = run("export", "--output", str(tmp_path / "h.tar"), "--format", "json")
    assert got.code == 0, got
    assert (tmp_path / "h.tar").stat().st_mode & 0o777 == 0o600
    assert [p.name for p in tmp_path.iterdir()] == ["h.tar"]
    about = got.json()
    assert about["apps"] == ["blog"] and about["bytes"] == (tmp_path / "h.tar").stat().st_size
    assert sorted(line.partition(":")[0] for line in about["left_out"]) == [f"apps/blog/{n}" for n in ("away", "fifo", "huge", "passwd")]
    assert "left out: apps/blog/passwd: a link or a device" in got.talk
    wanted = ["apps/blog/DOMAINS", "apps/blog/UPSTREAMS", "apps/blog/tls/server.key", "data/mine/count", "plugins/mine/plugin.toml"]
    assert sorted(read((tmp_path / "h.tar").read_bytes())) == [*wanted, "router.toml"]


def test_one_app_alone_takes_nothing_of_the_host(run: Run, blog: Path, tmp_path: Path) -> None:
    run("apps:create", "shop")
    assert run("export", "--app", "shop", "--output", str(tmp_path / "h.tar")).code == 0
    assert sorted(read((tmp_path / "h.tar").read_bytes())) == ["apps/shop/DOMAINS", "apps/shop/UPSTREAMS"]
    assert run("export", "--app", "shpo", "--output", "x").code == 3


def test_a_terminal_gets_no_archive_and_json_no_place_beside_one(run: Run, blog: Path) -> None:
    ours, theirs = pty.openpty()
    done = subprocess.run([sys.executable, "-m", "nginx_router", "export"], stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=60)
    os.close(theirs)
    os.close(ours)
    assert done.returncode == 2
    assert "router export >host.tar" in done.stderr
    assert run("export", "--format", "json").code == 2


def test_an_export_to_a_full_disk_says_so(blog: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "nginx_router", "export", "--output", "/dev/full"], capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr
    with open("/dev/full", "wb") as full:  # noqa: PTH123 - a device
        done = subprocess.run([sys.executable, "-m", "nginx_router", "export"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=60)
    assert done.returncode == 1 and "No space left" in done.stderr and "Traceback" not in done.stderr


def test_what_is_refused_changes_nothing_and_leaves_nothing(run: Run, blog: Path, tmp_path: Path) -> None:
    before = {p: p.read_bytes() for p in (blog / "apps").rglob("*") if p.is_file()}
    generation = (blog / "current").readlink()
    archives = {
        "a damaged one": (made({**GOOD, "apps/blog/tls/key": b"k" * 3000})[:-12000], 2),
        "a domain that breaks a rule": (made({**GOOD, "apps/blog/DOMAINS": b"a b\n"}), 2),
        "an unknown key": (made({**GOOD, "apps/blog/app.toml": b"nope = 1\n"}), 2),
        "a snippet that nginx refuses": (made({**GOOD, "apps/blog/nginx.conf.d/x.conf": b"nonsense;\n"}), 8),
        "a NUL byte": (made({**GOOD, "apps/blog/UPSTREAMS": b"\0"}), 2),
        "a text that is too large": (made({**GOOD, "apps/blog/DOMAINS": b"#" * (1 << 21)}), 2),
        "settings that break a rule": (made({**GOOD, "router.toml": b"[proxy]\nhttp-port = 0\n"}), 2),
        "two apps of one domain": (made({**GOOD, "apps/shop/DOMAINS": b"blog.test\n"}, apps=("blog", "shop")), 4),
    }
    for what, (data, code) in archives.items():
        (tmp_path / "h.tar").write_bytes(data)
        got = run("import", str(tmp_path / "h.tar"))
        assert got.code == code, (what, got)
        assert {p: p.read_bytes() for p in (blog / "apps").rglob("*") if p.is_file()} == before, what
        assert (blog / "current").readlink() == generation, what
        assert not list((blog / "run").glob("import-*")), what


def test_a_plugin_of_the_archive_comes_only_when_it_is_asked_for(run: Run, blog: Path, tmp_path: Path) -> None:
    manifest = b'[plugin]\nname = "mine"\nhooks = []\n[plugin.config]\nword = "x"\n'
    files = {**GOOD, "apps/blog/app.toml": b'[mine]\nword = "y"\n', "plugins/mine/plugin.toml": manifest, "data/mine/count": b"3"}
    (tmp_path / "h.tar").write_bytes(made(files))
    got = run("import", str(tmp_path / "h.tar"))
    assert got.code == 2 and "--plugins installs them" in got.err
    got = run("import", str(tmp_path / "h.tar"), "--plugins", "--dry-run")
    assert got.code == 2 and "a dry run installs none" in got.err
    assert not (blog / "plugins/mine").exists()
    broken = made({**files, "plugins/mine/plugin.toml": b"[plugin\n"})
    (tmp_path / "b.tar").write_bytes(broken)
    assert run("import", str(tmp_path / "b.tar"), "--plugins").code in (2, 11)
    assert not (blog / "plugins/mine").exists() and not (blog / "data/mine").exists()
    got = run("import", str(tmp_path / "h.tar"), "--plugins")
    assert got.code == 0, got
    assert (blog / "plugins/mine/plugin.toml").read_bytes() == manifest and (blog / "data/mine/count").read_text() == "3"
    assert run("plugins:list").lines.count("mine") == 1


def test_apps_come_alone_with_or_without_endpoints_and_others_go_only_when_asked(run: Run, blog: Path, tmp_path: Path) -> None:
    files = {
        "router.toml": b'[proxy]\nbind-address = "127.0.0.2"\n',
        "apps/blog/DOMAINS": b"new.test\n",
        "apps/blog/UPSTREAMS": b"127.0.0.1:5001\n",
        "apps/news/UPSTREAMS": b"127.0.0.1:5002\n",
    }
    path = tmp_path / "h.tar"
    path.write_bytes(made(files, apps=("blog", "news")))
    run("upstreams:add", "blog", "127.0.0.1:1")
    run("apps:create", "shop")
    settings = (blog / "router.toml").read_text()
    assert run("import", str(path), "--app", "blog", "--no-endpoints").code == 0
    assert (blog / "apps/blog/DOMAINS").read_text() == "new.test\n"
    assert (blog / "apps/blog/UPSTREAMS").read_text() == "127.0.0.1:1\n", "it keeps those of this host"
    assert not (blog / "apps/news").exists() and (blog / "router.toml").read_text() == settings
    got = run("import", str(path), "--no-settings", "--format", "json")
    assert got.code == 0 and got.json()["stay"] == ["shop"] and "not in the archive, and here to stay: shop" in got.talk
    assert (blog / "apps/blog/UPSTREAMS").read_text() == "127.0.0.1:5001\n"
    assert (blog / "apps/shop").is_dir() and (blog / "router.toml").read_text() == settings
    assert run("import", str(path), "--prune").code == 0
    assert run("apps:list").lines == ["blog", "news"] and "127.0.0.2" in (blog / "router.toml").read_text()
    assert run("import", str(path), "--app", "blog", "--prune").code == 2
    assert run("import", str(path), "--app", "nws").code == 3


def test_a_domain_of_an_app_that_stays_is_a_conflict_and_apps_that_exchange_theirs_are_none(run: Run, blog: Path, tmp_path: Path) -> None:
    run("apps:create", "shop")
    run("domains:add", "shop", "shop.test")
    path = tmp_path / "h.tar"
    path.write_bytes(made({"apps/news/DOMAINS": b"shop.test\n"}, apps=("news",), is_whole=False))
    got = run("import", str(path))
    assert got.code == 4 and "belongs to app shop" in got.err
    assert run("apps:list").lines == ["blog", "shop"]
    swapped = {"apps/blog/DOMAINS": b"shop.test\n", "apps/shop/DOMAINS": b"blog.test\n"}
    path.write_bytes(made(swapped, apps=("blog", "shop"), is_whole=False))
    assert run("import", str(path)).code == 0
    assert (run("domains:report", "blog", "--domains").lines, run("domains:report", "shop", "--domains").lines) == (
        ["shop.test"],
        ["blog.test"],
    )


def test_no_link_leads_a_file_out_of_the_root(run: Run, blog: Path, tmp_path: Path) -> None:
    """An app's owner may put a link where the archive has a directory."""
    (tmp_path / "outside").mkdir()
    (blog / "apps/blog/tls").symlink_to(tmp_path / "outside")
    path = tmp_path / "h.tar"
    path.write_bytes(made({**GOOD, "apps/blog/tls/server.key": b"key"}, directories=("apps/blog", "apps/blog/tls")))
    got = run("import", str(path))
    assert got.code == 1 and "a file is not as it was: apps/blog/tls" in got.err
    assert list((tmp_path / "outside").iterdir()) == []


def test_modes_come_back_and_keys_are_for_their_owner_alone(run: Run, blog: Path, tmp_path: Path) -> None:
    data = made({**GOOD, "apps/blog/tls/server.key": b"key", "apps/blog/notes": b"x"}, directories=("apps/blog/tls",))
    path = tmp_path / "h.tar"
    path.write_bytes(data)
    assert run("import", str(path)).code == 0
    modes = {name: (blog / f"apps/blog/{name}").stat().st_mode & 0o7777 for name in ("tls", "tls/server.key", "notes", "DOMAINS")}
    assert modes == {"tls": 0o700, "tls/server.key": 0o600, "notes": 0o644, "DOMAINS": 0o644}
