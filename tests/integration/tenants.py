"""Users who own the directory of an app each and have no other rights, and what they do there."""

from __future__ import annotations

import contextlib
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .conftest import Live, Result

ALICE, BOB, NOBODY = 64001, 64002, 64003  # blog's owner, shop's owner, and somebody who owns nothing; no such users need exist


def as_user(uid: int, code: str, *argv: object, seconds: float = 20.0) -> subprocess.CompletedProcess[str]:
    """Run Python as another user, with no rights of ours."""
    return subprocess.run(_argv(uid, code, *argv), capture_output=True, text=True, timeout=seconds, check=False, cwd="/")


@contextlib.contextmanager
def meanwhile(uid: int, directory: Path, code: str, *argv: object) -> Iterator[None]:
    """Another user does this in a loop in a directory meanwhile; it has begun."""
    loop = f"while True:\n    try: {code}\n    except OSError: pass"
    code = f"import os, sys\nos.chdir({str(directory)!r})\nprint('begun', flush=True)\n{loop}"
    with subprocess.Popen(_argv(uid, code, *argv), stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd="/") as process:
        assert process.stdout and process.stderr
        try:
            assert process.stdout.readline() == b"begun\n"
            yield
            assert process.poll() is None, process.stderr.read().decode()
        finally:
            process.kill()


def _argv(uid: int, code: str, *argv: object) -> list[str]:
    return ["setpriv", f"--reuid={uid}", f"--regid={uid}", "--clear-groups", "/usr/bin/python3", "-c", code, *map(str, argv)]


def give(path: Path, uid: int) -> None:
    """As `chown -R`."""
    for each in [path, *path.rglob("*")]:
        os.chown(each, uid, uid, follow_symlinks=False)


@pytest.fixture
def tenants(two_apps: Live) -> Live:
    """blog is ALICE's and shop BOB's: each may write the directory of their app, and nothing else."""
    for name, uid in (("blog", ALICE), ("shop", BOB)):
        directory = two_apps.paths.app(name)
        (directory / "nginx.conf.d").mkdir(exist_ok=True)
        (directory / "tls").mkdir(mode=0o700)
        (directory / "tls/key.pem").write_text(f"the key of {name}\n")
        (directory / "tls/key.pem").chmod(0o600)
        give(directory, uid)
    return two_apps


def alice(root: Live, code: str, *argv: object) -> None:
    """What blog's owner does in their directory, which must succeed."""
    code = f"import os, sys\nos.chdir({str(root.paths.app('blog'))!r})\n{code}"
    done = as_user(ALICE, code, *argv)
    assert done.returncode == 0, done.stderr


def alice_writes(root: Live, path: str, text: str) -> None:
    alice(root, "open(sys.argv[1], 'w').write(sys.argv[2])", path, text)


def refused(root: Live, code: int, *argv: object) -> Result:
    """A command that ends with `code`; shop is served as before."""
    result = root(*argv)
    assert result.code == code, result
    assert root.get("shop.test").body == "shop"
    return result


def goes_on(root: Live) -> None:
    """shop takes a change and is served."""
    name = f"n{time.monotonic_ns()}.test"
    root.done("domains:add", "shop", name)
    assert root.get(name).body == root.get("shop.test").body == "shop"
