from __future__ import annotations

import fcntl
import os
import resource
import subprocess
from pathlib import Path

import pytest

from nginx_router.errors import Busy, UsageProblem
from nginx_router.files import LARGEST, FileLock, encoded, read_text, replace_link, write_atomic


def names_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.iterdir())


def test_a_file_is_written_whole_and_leaves_nothing_beside_it(router_root: Path) -> None:
    path = router_root / "DOMAINS"
    write_atomic(path, b"a.com\n")
    write_atomic(path, b"b.com\n")
    assert path.read_bytes() == b"b.com\n"
    assert names_in(router_root) == ["DOMAINS"]


def test_an_existing_file_keeps_its_mode_and_a_new_one_gets_the_asked_one(router_root: Path) -> None:
    old, new = router_root / "old", router_root / "new"
    old.write_text("x")
    old.chmod(0o640)
    write_atomic(old, b"y", mode=0o600)
    write_atomic(new, b"y", mode=0o444)
    assert (old.stat().st_mode & 0o777, new.stat().st_mode & 0o777) == (0o640, 0o444)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may give files away")
def test_an_existing_file_keeps_its_owner(router_root: Path) -> None:
    path = router_root / "DOMAINS"
    path.write_text("x")
    os.chown(path, 1234, 4321)
    write_atomic(path, b"y")
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 4321)


def test_a_failed_write_leaves_the_old_bytes_and_no_rest(router_root: Path) -> None:
    path = router_root / "full"
    path.write_text("old")

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            write_atomic(path, b"x" * 8192)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_text() == "old"
    assert names_in(router_root) == ["full"]


def test_a_link_is_exchanged_by_one_rename(router_root: Path) -> None:
    link = router_root / "current"
    replace_link(link, "generations/1")
    replace_link(link, "generations/2")
    assert str(link.readlink()) == "generations/2"
    assert names_in(router_root) == ["current"]


def test_any_bytes_survive_reading_and_writing(router_root: Path) -> None:
    path = router_root / "DOMAINS"
    path.write_bytes(b"# caf\xe9\r\na.com\n")
    text = read_text(path)
    assert text is not None
    write_atomic(path, encoded(text))
    assert path.read_bytes() == b"# caf\xe9\r\na.com\n"


def test_what_is_not_there_is_none(router_root: Path) -> None:
    assert read_text(router_root / "DOMAINS") is None


def test_links_fifos_directories_and_large_or_binary_files_are_refused(router_root: Path) -> None:
    target = router_root / "target"
    target.write_text("secret")
    (router_root / "link").symlink_to(target)
    (router_root / "dangling").symlink_to(router_root / "nowhere")
    os.mkfifo(router_root / "fifo")
    (router_root / "directory").mkdir()
    (router_root / "large").write_bytes(b"x" * (LARGEST + 1))
    (router_root / "binary").write_bytes(b"a\0b")
    for name in ("link", "dangling", "fifo", "directory", "large", "binary"):
        with pytest.raises(UsageProblem) as refused:
            read_text(router_root / name)
        assert str(router_root / name) in refused.value.message


def test_the_lock_excludes_another_and_names_its_holder(router_root: Path) -> None:
    one, two = FileLock(router_root / "lock"), FileLock(router_root / "lock")
    assert one.try_acquire()
    assert not two.try_acquire()
    with pytest.raises(Busy) as busy:
        two.acquire(0.05, "the host")
    assert f"the host is locked by pid {os.getpid()} (" in busy.value.message
    one.release()
    two.acquire(0.05, "the host")
    two.release()
    two.release()


def test_flock_of_a_shell_holds_the_lock_too(router_root: Path) -> None:
    path = router_root / "lock"
    with subprocess.Popen(["flock", str(path), "sh", "-c", "echo held; read wait"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as shell:
        assert shell.stdin and shell.stdout
        assert shell.stdout.readline() == b"held\n"
        lock = FileLock(path)
        assert not lock.try_acquire()
        assert "flock" in lock.holder()
        shell.stdin.close()
        shell.wait(5)
        lock.acquire(5, "the host")
        lock.release()


def test_the_lock_is_not_inherited_by_what_is_started_under_it(router_root: Path) -> None:
    lock = FileLock(router_root / "lock")
    lock.acquire(1, "the host")
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        lock.release()
        with (router_root / "lock").open() as other:
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
        assert child.stdin
        child.stdin.close()


def test_whether_a_lock_is_held_is_seen_without_taking_it(isolated: Path) -> None:
    path = isolated / "lock"
    assert not FileLock(path).is_held()
    lock = FileLock(path)
    assert lock.try_acquire() and FileLock(path).is_held()
    lock.release()
    assert not FileLock(path).is_held()
