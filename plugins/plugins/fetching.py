"""Plugins from elsewhere: copied or cloned beside the installed ones, so that one rename puts them in their place.

What comes is a plain directory: no `.git`, no links that lead out of it, nothing that others than its owner may write.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from nginx_router.discovery import MANIFEST
from nginx_router.errors import NotFound, RouterError, UsageProblem
from nginx_router.names import shown
from nginx_router.processes import is_alive

from .origins import Origin

#: Beside the plugins, and no plugin: the names of those do not begin with a dot.
_STAGING = ".new-"

#: Seconds that git may take.
_GIT_SECONDS = 300
_SCHEME = re.compile(r"([a-z][a-z0-9+.-]*)(://|::)")
_SCP = re.compile(r"[A-Za-z0-9._-]+@[A-Za-z0-9._-]+:.+")
_RENAME_EXCHANGE = 2


@dataclass(frozen=True)
class Staged:
    """A copy of a plugin, not yet in its place."""

    directory: Path
    origin: Origin

    def named(self, words: str) -> str:
        """Words about this copy, said of where it comes from: that is what its author has before them."""
        if self.origin.commit is None:
            return words.replace(str(self.directory), self.origin.source)
        inside = words.replace(f"{self.directory}/", "")
        return f"{inside} (in {self.origin.source})" if inside != words else words


@contextlib.contextmanager
def staged(plugins: Path, source: str, ref: str | None) -> Iterator[Staged]:
    """Within it there is a copy of the plugin that `source` names, below `plugins`.

    Raises:
        NotFound: there is no such directory, repository or ref.
        UsageProblem: it is no plugin, or no kind of source that is taken.
    """
    plugins.mkdir(parents=True, exist_ok=True)
    _sweep(plugins)
    base = Path(tempfile.mkdtemp(prefix=f"{_STAGING}{os.getpid()}-", dir=plugins))
    try:
        base.chmod(0o755)
        yield _fetched(base / "plugin", source, ref)
    finally:
        shutil.rmtree(base, ignore_errors=True)


def exchange(one: Path, other: Path) -> None:
    """Let two directories change places in one step, so that nobody ever looks where neither is."""
    library = ctypes.CDLL(None, use_errno=True)
    here = ctypes.c_int(-100)  # AT_FDCWD
    if library.renameat2(here, os.fsencode(one), here, os.fsencode(other), ctypes.c_uint(_RENAME_EXCHANGE)) == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS):
        raise OSError(number, os.strerror(number), str(one))
    between = one.with_name(f"{one.name}.old")  # a file system that cannot: a moment with neither
    other.rename(between)
    one.rename(other)
    between.rename(one)


def digest(directory: Path) -> str:
    """The same for directories with the same files, bytes and executable bits."""
    sha = hashlib.sha256()
    for path in sorted(directory.rglob("*")):
        if "__pycache__" in path.parts:
            continue
        about = path.lstat()
        kind = "l" if path.is_symlink() else "d" if path.is_dir() else "x" if about.st_mode & stat.S_IXUSR else "f"
        data = os.fsencode(path.readlink()) if kind == "l" else path.read_bytes() if kind in "xf" else b""
        sha.update(f"{kind} {os.fsencode(path.relative_to(directory))!r} {hashlib.sha256(data).hexdigest()}\n".encode())
    return sha.hexdigest()


def _fetched(target: Path, source: str, ref: str | None) -> Staged:
    scheme = _SCHEME.match(source)
    if scheme and (scheme[2] == "::" or scheme[1] not in ("https", "ssh", "file")):
        raise UsageProblem(
            f"{shown(source)}: a plugin comes from a directory, or by git over https, ssh or file", hint="https://HOST/REPOSITORY"
        )
    if scheme or (_SCP.fullmatch(source) and not Path(source).exists()):
        origin = _cloned(target, source, ref)
    else:
        path = Path(source).absolute()
        if not path.is_dir():
            raise NotFound(f"there is no directory {shown(str(path))}", hint="a git repository is https://..., ssh://... or USER@HOST:PATH")
        is_bare = (path / "HEAD").is_file() and (path / "objects").is_dir()
        origin = _cloned(target, str(path), ref) if ref or is_bare else _copied(target, path)
    if not (target / MANIFEST).is_file():
        raise UsageProblem(f"{source} is no plugin: there is no {MANIFEST} at its top", hint="router plugins:new NAME begins one")
    _tame(target)
    return Staged(target, origin)


def _copied(target: Path, path: Path) -> Origin:
    if not (path / MANIFEST).is_file():
        raise UsageProblem(f"{path} is no plugin: there is no {MANIFEST} at its top", hint="router plugins:new NAME begins one")
    if target.resolve().is_relative_to(path.resolve()):
        raise UsageProblem(f"{path} holds the plugins of this root")
    try:
        shutil.copytree(path, target, symlinks=True, ignore=shutil.ignore_patterns(".git", "__pycache__"))
    except shutil.Error as why:
        raise UsageProblem(f"{path} cannot be copied: {why.args[0][0][2]}") from None
    return Origin(str(path))


def _cloned(target: Path, source: str, ref: str | None) -> Origin:
    if shutil.which("git") is None:
        raise NotFound("there is no git on this host", hint="sudo apt-get install git")
    if ref is not None and (ref.startswith("-") or not ref.isprintable() or not ref):
        raise UsageProblem(f"{shown(ref)} is no branch, tag or commit")
    _git("clone", "--quiet", "--no-checkout", "--template=", "--", source, str(target), what=f"cannot clone {source}")
    commit = ""
    for name in [f"refs/remotes/origin/{ref}", f"refs/tags/{ref}", ref] if ref else ["HEAD"]:
        with contextlib.suppress(NotFound):
            commit = _git("-C", str(target), "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}", what="").strip()
            break
    if not commit:
        raise NotFound(f"{source} has no branch, tag or commit {shown(ref or 'HEAD')}")
    _git("-C", str(target), "checkout", "--quiet", "--detach", commit, what=f"cannot check out {commit} of {source}")
    shutil.rmtree(target / ".git")
    return Origin(source, ref, commit)


def _git(*args: str, what: str) -> str:
    # a git hook that calls us has told its own repository by these; and no remote helper runs commands
    env = {
        k: v
        for k, v in os.environ.items()
        if not (k.startswith("GIT_") and k.endswith(("_DIR", "_TREE", "_FILE", "_DIRECTORY", "_PREFIX")))
    }
    env |= {"GIT_ALLOW_PROTOCOL": "file:https:ssh", "LC_ALL": "C"}
    if not sys.stdin.isatty():
        env |= {"GIT_TERMINAL_PROMPT": "0"} | ({} if "GIT_SSH_COMMAND" in env else {"GIT_SSH_COMMAND": "ssh -o BatchMode=yes"})
    argv = ["git", "-c", "core.hooksPath=/dev/null", "-c", "advice.detachedHead=false", *args]
    try:
        done = subprocess.run(argv, env=env, capture_output=True, text=True, errors="replace", timeout=_GIT_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        raise RouterError(f"{what}: git did not end within {_GIT_SECONDS} s") from None
    if done.returncode:
        words = [line.removeprefix("fatal: ").removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
        raise NotFound(f"{what}: {words[0] if words else f'git ended with {done.returncode}'}")
    return done.stdout


def _tame(directory: Path) -> None:
    """Links stay within it, and only its owner writes: the umask of whoever made it is not ours."""
    for path in (directory, *directory.rglob("*")):
        about = path.lstat()
        if stat.S_ISLNK(about.st_mode):
            if path.readlink().is_absolute() or not path.resolve().is_relative_to(directory.resolve()):
                raise UsageProblem(f"{path.relative_to(directory)} is a link that leads out of the plugin")
        elif stat.S_ISDIR(about.st_mode):
            path.chmod(0o755)
        elif stat.S_ISREG(about.st_mode):
            path.chmod(0o755 if about.st_mode & stat.S_IXUSR else 0o644)
        else:
            raise UsageProblem(f"{path.relative_to(directory)} is neither a file nor a directory")


def _sweep(plugins: Path) -> None:
    """Remove what killed commands left."""
    for path in plugins.glob(f"{_STAGING}*"):
        pid = path.name.removeprefix(_STAGING).partition("-")[0]
        if pid.isdigit() and not is_alive(int(pid)):
            shutil.rmtree(path, ignore_errors=True)
