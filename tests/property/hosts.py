"""A root on which hostile steps are taken, and what must hold after each of them."""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import random
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tarfile
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

from nginx_router.cli import main
from nginx_router.controller import Request, Router
from nginx_router.errors import BY_EXIT_CODE, Conflict, RouterError
from nginx_router.output import Output
from nginx_router.settings import Paths
from nginx_router.takingup import TakingUp

from .chance import Some
from .conftest import Slow
from .strategies import Command, Put, Remove, Step, Write

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")

#: What a command may exit with: 1 means that nobody foresaw it, and is the failure that is looked for.
DOCUMENTED = {0, *BY_EXIT_CODE} - {1}

#: Seconds after which a step hangs; none of them waits for anything that takes so long.
HANGS = 30.0

#: The whole tree is judged by nginx after so many changes of it, and at the end.
JUDGED_EVERY = 10

#: Commands that change more than the apps that they name, or name what they left out and go on.
_OF_ALL = ("proxy:set", "setup", "doctor", "generations:rollback", "import")
_TAKE_UP = ("reconcile", "proxy:build-config")
_WORDS_OF_CONFLICT = "conflicting server name"


@dataclass(frozen=True)
class Look:
    """What there is to see of a root."""

    number: int | None  # of the current generation
    config: str
    vhosts: Mapping[str, str | None]  # app -> object
    files: Mapping[str, Mapping[str, object]]  # app -> file -> what it is and holds
    others: Mapping[str, object]  # the host's own files


class Host:
    """One root, its proxy stopped unless a step starts it."""

    def __init__(self, home: Path, ports: Sequence[int], alive: int, *, running: bool = False, uid: int | None = None) -> None:
        self.home, self._is_running, self._uid = home, running, uid
        self.paths = Paths(home / "r")
        self.steps = self.judged = 0
        self._names = {f"PORT{n}": str(port) for n, port in enumerate(ports)} | {"ALIVE": str(alive), "HOME": str(home)}
        self._unjudged = 0
        self._pristine = home / "pristine"
        self._make()
        self._outside: Mapping[str, object] = {}

    # one sequence

    def begin(self) -> None:
        """A root with three good apps, and beside it what no step may touch."""
        self.stop()
        for name in ("r", "outside", "new", "host.conf", "hello", "mine", "x.tar"):
            _remove(self.home / name)
        shutil.copytree(self._pristine, self.home, symlinks=True, dirs_exist_ok=True)
        for path in [self.home, self.paths.root, *self.paths.root.rglob("*")] if self._uid is not None else ():
            os.chown(path, self._uid, self._uid, follow_symlinks=False)
        self._outside = _tree(self.home / "outside")
        self._unjudged = 0
        self._kinds = {name: command.kind for name, command in self.router().plugins.commands().items()}
        if self._is_running:
            assert _run(["proxy:start"], b"")[0] == 0

    def end(self) -> None:
        """At the end nginx takes all that there is, and every object is what its name says."""
        if self._unjudged:
            self.judge()
        router = self.router()
        index = router.index()
        for entry in index.apps.values() if index else ():
            for sha in (entry.state, entry.vhost, *entry.objects):
                assert sha is None or router.generations.object(sha) is not None

    def stop(self) -> None:
        """No nginx of this root is left."""
        if self._is_running and self.paths.wanted.exists():
            _run(["proxy:stop"], b"")

    def do(self, step: Step) -> None:
        """Take one step, and see that nothing is wrong."""
        self.steps += 1
        if isinstance(step, Command):
            self.command(step)
        else:
            self.edit(step)

    def command(self, step: Command) -> tuple[int, str, str]:
        """Run a command line; it is refused with a documented exit code, or nothing but what it names is changed."""
        argv = [self._named(word) for word in step.argv]
        before = self.look()
        reach = self._reach(argv, before)
        with _deadline() as took, self._as_the_user():
            code, out, err = _run(argv, self._named_bytes(step.stdin) * step.times)
        about = f"{step!r}\nexit {code} after {took():.2f} s\n{err[-3000:]}"
        assert code in DOCUMENTED, f"{about}\n{self._log()}"
        self._is_calm(err, about)
        after = self.look()
        self._is_kept(before, after, reach, about)
        name = _name_of(argv)
        is_partial = code in (0, 15) or name in (*_OF_ALL, *_TAKE_UP) or name.startswith(("plugins:", "proxy:"))
        is_reading = "--dry-run" in argv or (self._kinds.get(name, "") != "change" and "--fix" not in argv)
        if before.number is not None and (is_reading or not is_partial):
            assert (after.number, after.files) == (before.number, before.files), f"what was not to change was changed\n{about}"
        if after.number != before.number:
            self._changed(about)
        return code, out, err

    def edit(self, step: Write | Put | Remove) -> None:
        """Edit by hand, as far as the file system lets one."""
        path = self.paths.root / step.path
        if any(parent.is_symlink() for parent in path.parents if parent.is_relative_to(self.paths.root)):
            return  # it would lead out of the root
        with contextlib.suppress(OSError, ValueError):
            if isinstance(step, Remove):
                _remove(path)
            elif isinstance(step, Write):
                path.parent.mkdir(parents=True, exist_ok=True)
                if not _is_plain(path):
                    _remove(path)
                path.write_bytes(self._named_bytes(step.data) * step.times)
                if step.path.startswith("plugins/") and step.data.startswith(b"#!"):
                    path.chmod(0o755)
            else:
                path.parent.mkdir(parents=True, exist_ok=True)
                self._put(path, step.kind)

    def judge(self) -> None:
        """Nginx takes the whole tree."""
        self._unjudged = 0
        if NGINX is None or not self.paths.current.exists():
            return
        conf = self.paths.current / "nginx.conf"
        if not conf.exists():  # host mode: what the distribution's nginx would include
            conf = self.home / "whole.conf"
            conf.write_text(f"pid {self.home}/whole.pid;\nevents {{ }}\nhttp {{\n    include {self.paths.current}/router.conf;\n}}\n")
        with self._as_the_user():
            done = subprocess.run([NGINX, "-t", "-q", "-c", str(conf)], capture_output=True, text=True, errors="replace", timeout=60)
        assert done.returncode == 0 and _WORDS_OF_CONFLICT not in done.stderr, done.stderr
        self.judged += 1

    def router(self) -> Router:
        """The router of this root."""
        return Router(self.paths, Request(command="test"))

    def look(self) -> Look:
        """What there is to see now."""
        index = self.router().index()
        names = sorted(path.name for path in self.paths.apps.iterdir()) if self.paths.apps.is_dir() else []
        return Look(
            index.number if index else None,
            index.config if index else "",
            {name: entry.vhost for name, entry in index.apps.items()} if index else {},
            {name: _tree(self.paths.apps / name) for name in names if name != ".trash"},
            {name: _seen(self.paths.root / name) for name in ("router.toml", "DOMAINS")},
        )

    # private

    @contextlib.contextmanager
    def _as_the_user(self) -> Iterator[None]:
        """Within it what is done is done by the owner of the root, if that is not root."""
        if self._uid is None:
            yield
            return
        os.setegid(self._uid)
        os.seteuid(self._uid)
        try:
            yield
        finally:
            os.seteuid(0)
            os.setegid(0)

    def _is_calm(self, said: str, about: str) -> None:
        assert "raceback" not in said, f"{about}\n{self._log()}"
        odd = {c for c in said if not c.isprintable() and c not in "\n\t"}
        assert not odd, f"control characters for the terminal: {odd!r}\n{about}"
        assert not (self.paths.log / "router.log").exists(), f"nobody foresaw what is in router.log\n{about}\n{self._log()}"
        assert not (self.home / "owned").exists(), f"a value was run as a command: owned\n{about}"
        assert _tree(self.home / "outside") == self._outside, f"something outside the root was changed\n{about}"
        if self.paths.queue.is_dir():
            assert not self.paths.intent.exists() and not list(self.paths.queue.iterdir()), about

    def _is_kept(self, before: Look, after: Look, reach: frozenset[str] | None, about: str) -> None:
        """Who was not named is as before: files and vhosts."""
        if reach is None:
            return
        kept = {name: sha for name, sha in before.vhosts.items() if name not in reach}
        assert {name: after.vhosts.get(name) for name in kept} == kept, f"the vhost of an untouched app changed\n{about}"
        files = {name: tree for name, tree in before.files.items() if name not in reach}
        assert {name: after.files.get(name) for name in files} == files, f"the files of an untouched app changed\n{about}"

    def _changed(self, about: str) -> None:
        self._unjudged += 1
        if self._unjudged >= JUDGED_EVERY:
            try:
                self.judge()
            except AssertionError as why:
                raise AssertionError(f"nginx does not take the whole tree:\n{why}\n{about}") from None

    def _reach(self, argv: Sequence[str], before: Look) -> frozenset[str] | None:
        """The apps that a command may change; None: all."""
        name = _name_of(argv)
        words = frozenset(word.removeprefix("--app=") for word in argv[1:])
        is_global = name in _OF_ALL or name.startswith("plugins:") or "--global" in words
        if before.number is None or is_global or self._host_differs(before):
            return None
        if name in _TAKE_UP and not words & {*before.files, *before.vhosts}:
            return None if self._has_plugins() else self.edited()
        return words

    def _host_differs(self, before: Look) -> bool:
        found = before.others["router.toml"]
        return (found[-1] if isinstance(found, tuple) else b"") != before.config.encode(errors="surrogateescape")

    def _has_plugins(self) -> bool:
        return self.paths.plugins.exists()

    def edited(self) -> frozenset[str]:
        """The apps whose directory holds something else than what they are served by."""
        router = self.router()
        index = router.index()
        found = set()
        for name in {*router.store.names(), *(index.apps if index else ())}:
            entry = index.apps.get(name) if index else None
            try:
                same = entry is not None and router.generations.app_state(entry)[0] == router.store.texts(name)
            except (RouterError, OSError):
                same = False
            if not same:
                found.add(name)
        return frozenset(found)

    def _put(self, path: Path, kind: str) -> None:
        outside = self.home / "outside"
        is_directory = path.name in ("nginx.conf.d", "hello") or path.parent == self.paths.apps
        if kind in ("somebody else's", "unreadable"):
            if not path.is_dir() and not _is_plain(path):
                return
            if kind == "unreadable":
                path.chmod(0)
            elif os.geteuid() == 0:
                other = 65534 if self._uid is None else 0
                os.chown(path, other, other, follow_symlinks=False)
                path.chmod(0o700 if path.is_dir() else 0o600)
            return
        _remove(path)
        if kind.endswith("directory"):
            path.mkdir()
            if kind == "full directory":
                (path / "x").write_text("x")
                (path / "own.conf").mkdir()
        elif kind == "fifo":
            os.mkfifo(path)
        elif kind == "socket":
            with socket.socket(socket.AF_UNIX) as made:
                made.bind(str(path))
        elif kind == "device":
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 5))  # /dev/zero; only root may
        elif kind == "hard link":
            os.link(outside / "secret", path)
        else:
            shop = self.paths.app("shop")
            targets = {
                "link to a device": "/dev/zero",
                "link out of the root": outside if is_directory else outside / "secret",
                "link to another app": shop if is_directory else shop / path.name,
                "link to itself": path.name,
                "link to nowhere": "nowhere",
            }
            path.symlink_to(targets[kind])

    def _make(self) -> None:
        outside, new = self.home / "outside", self.home / "new"
        outside.mkdir()
        (outside / "secret").write_text("secret.test\n")
        (outside / "DOMAINS").write_text("secret.test\n")
        (self.home / "host.conf").write_text(f"pid {self.home}/host.pid;\nevents {{ }}\nhttp {{\n}}\n")
        for name, hook, script in (
            ("hello", "nginx-server-snippet", "echo 'add_header X-Hello world;'"),
            ("scaler", "scale", "cat >/dev/null; echo 127.0.0.1:ALIVE"),
        ):
            (new / name).mkdir(parents=True)
            (new / name / "plugin.toml").write_text(f'[plugin]\nname = "{name}"\n[plugin.config]\nx = "y"\n')
            (new / name / hook).write_text(f"#!/bin/sh\n{self._named(script)}\n")
            (new / name / hook).chmod(0o755)
        self.paths.root.mkdir(exist_ok=True)
        self.paths.config.write_text(self._named('[proxy]\nbind-address = "127.0.0.1"\nhttp-port = PORT0\n'))
        for argv in (
            ("domains:add-global", "host.test"),
            ("apps:create", "blog"),
            ("apps:create", "shop"),
            ("apps:create", "my.app"),
            ("domains:add", "shop", "shop.test", "*.shop.test"),
            ("upstreams:add", "shop", "127.0.0.1:1", "api=10.0.0.1:80", "--weight=2"),
            ("nginx:set", "shop", "proxy-read-timeout", "5s"),
        ):
            code, _, err = _run(argv, b"")
            assert code == 0, err
        archives(self.home / "archives")
        self._pristine.mkdir()
        for name in ("r", "outside", "new", "host.conf"):
            (self.home / name).rename(self._pristine / name)

    def _named(self, text: str) -> str:
        for name, value in self._names.items():
            text = text.replace(name, value)
        return text

    def _named_bytes(self, data: bytes) -> bytes:
        for name, value in self._names.items():
            data = data.replace(name.encode(), value.encode())
        return data

    def _log(self) -> str:
        with contextlib.suppress(OSError):
            return (self.paths.log / "router.log").read_text(errors="replace")[-5000:]
        return ""


class Watched(Host):
    """The same under what `router watch` does with each edit."""

    def begin(self) -> None:
        super().begin()
        self._said = io.StringIO()
        router = self.router()
        router.out = Output(io.StringIO(), self._said)
        router.request.say = router.out.say
        self._taking_up = TakingUp(router, tell=router.out.say, say=router.out.say)

    def edit(self, step: Write | Put | Remove) -> None:
        super().edit(step)
        before = self.look()
        app = step.path.split("/")[1] if step.path.startswith("apps/") else None
        reach = None if app is None or self._has_plugins() or self._host_differs(before) else self._freed() | {app}
        self._said.truncate(self._said.seek(0))
        with _deadline():
            if step.path.startswith("plugins/"):
                self._taking_up._router.rediscover()  # a watch starts anew
                self._taking_up.all()
            else:
                self._taking_up.touched([app] if app else [], is_host=app is None)
        after = self.look()
        said = self._said.getvalue()
        about = f"{step!r}\n{said[-3000:]}"
        self._is_calm(said, about)
        assert "(exit 1)" not in said, about
        self._is_kept(before, after, reach, about)
        assert after.files == before.files and after.others == before.others, f"a watch wrote into a directory\n{about}"
        stale = {name for name in self.router().stale() if name in before.vhosts and name in after.vhosts}
        if reach is not None:
            assert {n: after.vhosts[n] for n in stale} == {n: before.vhosts[n] for n in stale}, (
                f"a stale app is not served as it was\n{about}"
            )
        if after.number != before.number:
            self._changed(about)

    def _freed(self) -> frozenset[str]:
        # an app that lacks a domain gets it when its owner lets go
        return frozenset(app for app, found in self.router().stale().items() if found["exit"] == Conflict.exit_code)


def archives(directory: Path) -> None:
    """A good archive of the root, and others that were made of it."""
    directory.mkdir()
    code, _, err = _run(["export", f"--output={directory}/good.tar"], b"")
    assert code == 0, err
    good = (directory / "good.tar").read_bytes()
    for name, data in (("empty", b""), ("cut", good[: len(good) // 2]), ("text", b"blog.test\n"), ("twice", good[:-10240] + good)):
        (directory / f"{name}.tar").write_bytes(data)
    for name, path, kind, data in (
        ("upwards", "../outside/secret", tarfile.REGTYPE, b"x"),
        ("absolute", "/tmp/router-was-here", tarfile.REGTYPE, b"x"),
        ("link", "apps/blog/DOMAINS", tarfile.SYMTYPE, b""),
        ("device", "apps/blog/nginx.conf.j2", tarfile.CHRTYPE, b""),
        ("not-utf-8", "apps/blog/nginx.conf.d/\udcff.conf", tarfile.REGTYPE, b"\xff\n"),
        ("bad-names", "apps/../x\n/DOMAINS", tarfile.REGTYPE, b"a.test\n"),
        ("large", "apps/blog/UPSTREAMS", tarfile.REGTYPE, b"x" * (3 << 20)),
    ):
        with tarfile.open(directory / "good.tar") as source, tarfile.open(directory / f"{name}.tar", "w") as target:
            for member in source:
                if member.name != path:
                    target.addfile(member, source.extractfile(member) if member.isreg() else None)
            added = tarfile.TarInfo(path)
            added.type, added.size, added.linkname = kind, len(data), "/etc/passwd" if kind == tarfile.SYMTYPE else ""
            target.addfile(added, io.BytesIO(data))


def sequences(host: Host, drawn: Some[Any], *, count: int, length: int, slow: Slow | None = None, least: int = 0) -> None:
    """Take `count` sequences of up to `length` steps: always the same, or (`slow`) by its seed, until there were `least` steps.

    Hypothesis repeats steps and whole sequences with one step changed, and shrinks one that fails.
    """

    class Sequence(RuleBasedStateMachine):
        @initialize()
        def begin(self) -> None:
            host.begin()

        @rule(step=st.integers(0, 2**32).map(lambda number: drawn.draw(random.Random(number))))
        def do(self, step: Step) -> None:
            host.do(step)

        def teardown(self) -> None:
            host.end()

    how = settings(
        max_examples=count,
        stateful_step_count=length,
        derandomize=slow is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
    )
    if slow is None:
        run_state_machine_as_test(Sequence, settings=how)
        return
    number = slow.number
    try:
        while host.steps == 0 or host.steps < least:
            run_state_machine_as_test(seed(number)(Sequence), settings=how)
            number += 1
    finally:
        slow.came(host.steps, host.judged)


def _name_of(argv: Sequence[str]) -> str:
    name = argv[0] if argv else ""
    return f"apps:{name}" if name.startswith(("domains:", "upstreams:", "ports:", "nginx:", "snippets:")) else name


def _run(argv: Iterable[str], stdin: bytes) -> tuple[int, str, str]:
    before = sys.stdin, sys.stdout, sys.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", errors="backslashreplace") for _ in range(2))
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin), "utf-8", errors="surrogateescape")
    sys.stdout, sys.stderr = out, err
    try:
        code = main(list(argv))
    finally:
        sys.stdin, sys.stdout, sys.stderr = before
    found = []
    for each in (out, err):
        each.flush()
        raw: Any = each.buffer
        found.append(raw.getvalue().decode(errors="replace"))
    return code, found[0], found[1]


class _Hangs(BaseException):
    """A step took too long."""


@contextlib.contextmanager
def _deadline() -> Iterator[Any]:
    """A step that hangs ends with an exception; the function that it gives says how long it took."""

    def end(number: int, frame: object) -> None:
        raise _Hangs(f"a step takes more than {HANGS:g} s")

    began = time.monotonic()
    before = signal.signal(signal.SIGUSR1, end)
    timer = threading.Timer(HANGS, signal.pthread_kill, (threading.main_thread().ident, signal.SIGUSR1))
    timer.daemon = True
    timer.start()
    try:
        yield lambda: time.monotonic() - began
    finally:
        timer.cancel()
        signal.signal(signal.SIGUSR1, before)


def _tree(directory: Path) -> dict[str, object]:
    """Every file below a directory, or the thing itself: what it is and holds."""
    found: dict[str, object] = {"": _seen(directory)}
    if directory.is_dir() and not directory.is_symlink():
        with os.scandir(directory) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    found |= {f"{entry.name}/{name}": each for name, each in _tree(Path(entry.path)).items()}
                else:
                    found[entry.name] = _seen(Path(entry.path))
    return found


def _seen(path: Path) -> object:
    try:
        about = path.lstat()
    except OSError:
        return None
    who = stat.S_IFMT(about.st_mode), about.st_uid
    if stat.S_ISLNK(about.st_mode):
        return (*who, str(path.readlink()))
    if stat.S_ISREG(about.st_mode):
        data = path.read_bytes()
        return (*who, data if len(data) < 4096 else hashlib.sha256(data).digest())
    return who


def _is_plain(path: Path) -> bool:
    """Whether a write there reaches nothing else."""
    return not path.is_symlink() and path.is_file() and path.stat().st_nlink == 1


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
