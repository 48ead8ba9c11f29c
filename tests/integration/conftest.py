"""A root with a real nginx, real backends and `router` processes (see `preloaded`): what the tests of the promises stand on."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from nginx_router.generations import Generations
from nginx_router.processes import all_pids, children, command_line, is_alive, open_files
from nginx_router.settings import Paths
from nginx_router.store import Store

from .instances import Backend, Half, Slow
from .preloaded import Fork, Preloaded
from .updating import started

NGINX = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin")
ROUTER = Path(sys.executable).with_name("router")


def until(said: Callable[[], object], seconds: float = 10.0, what: str = "it") -> None:
    """Wait until `said` is true."""
    deadline = time.monotonic() + seconds
    while not said():
        assert time.monotonic() < deadline, f"{what} did not come about within {seconds:g} s"
        time.sleep(0.005)


@dataclass(frozen=True)
class Result:
    """What a command left."""

    code: int
    out: str
    err: str
    seconds: float = 0.0

    @property
    def json(self) -> Any:
        return json.loads(self.out)

    def __str__(self) -> str:
        return f"exit {self.code}\n{self.out}{self.err}"


@dataclass(frozen=True)
class Answer:
    """What a request came to; status 0: the connection was closed without an answer."""

    status: int
    body: str = ""
    headers: Mapping[str, str] = ()  # type: ignore[assignment]  # only read by name, in lower case


class Command:
    """A `router` process that runs."""

    def __init__(self, argv: Iterable[str], environment: Mapping[str, str]) -> None:
        self.argv = [str(word) for word in argv]
        self._began = time.monotonic()
        self.process = subprocess.Popen(
            [str(ROUTER), *self.argv],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **environment},
            cwd="/",
        )

    def wait(self, seconds: float = 60.0) -> Result:
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            out, err = self.process.communicate()
            raise AssertionError(f"router {' '.join(self.argv)} did not end within {seconds:g} s\n{out}{err}") from None
        return Result(self.process.returncode, out, err, time.monotonic() - self._began)

    def send_signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        for pipe in (self.process.stdout, self.process.stderr):
            assert pipe
            pipe.close()
        self.process.wait(10)


class Forked:
    """A command that is a fork of a process that has imported all."""

    def __init__(self, argv: list[str], fork: Fork) -> None:
        self.argv, self._fork = argv, fork
        self._began = time.monotonic()
        self.send_signal, self.end = fork.send_signal, fork.end

    def wait(self, seconds: float = 60.0) -> Result:
        try:
            return Result(*self._fork.wait(seconds), time.monotonic() - self._began)
        except TimeoutError as late:
            self.end()
            raise AssertionError(f"router {' '.join(self.argv)} did not end within {seconds:g} s\n{late}") from None


class Root:
    """One ROUTER_ROOT and the commands that are given on it."""

    preloaded: ClassVar[Preloaded | None] = None

    def __init__(self, root: Path) -> None:
        self.paths = Paths(root)
        self.store, self.generations = Store(self.paths), Generations(self.paths)
        self.commands: list[Command | Forked] = []

    def begin(self, *argv: object, **environment: str) -> Command:
        """Start a command in a process of its own and do not wait for it; `environment` is added to ours."""
        command = Command(map(str, argv), {"ROUTER_ROOT": str(self.paths.root), **environment})
        self.commands.append(command)
        return command

    def start(self, *argv: object, **environment: str) -> Command | Forked:
        """The same in a fork of a process that has imported all, where nobody could tell."""
        words, whole = list(map(str, argv)), {**os.environ, "ROUTER_ROOT": str(self.paths.root), **environment}
        if self.preloaded is None or "ROUTER_KILL_AT" in whole or not self.preloaded.takes(words, whole):
            return self.begin(*argv, **environment)
        command = Forked(words, self.preloaded.begin(words, whole))
        self.commands.append(command)
        return command

    def __call__(self, *argv: object, seconds: float = 60.0, **environment: str) -> Result:
        """Run a command."""
        return self.start(*argv, **environment).wait(seconds)

    def done(self, *argv: object, **environment: str) -> Result:
        """Run a command that must succeed."""
        result = self(*argv, **environment)
        assert result.code == 0, f"router {' '.join(map(str, argv))}: {result}"
        return result

    def write(self, path: str, text: str) -> Path:
        """Write a file of the root by hand."""
        file = self.paths.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def app(self, name: str, domains: Iterable[str] = (), endpoints: Iterable[object] = (), **files: str) -> None:
        """Make an app by hand; `reconcile` takes it up."""
        self.write(f"apps/{name}/DOMAINS", "".join(f"{d}\n" for d in domains))
        self.write(f"apps/{name}/UPSTREAMS", "".join(f"{e}\n" for e in endpoints))
        for path, text in files.items():
            self.write(f"apps/{name}/{path}", text)

    def snippet(self, app: str, text: str) -> Path:
        """Write a snippet of an app by hand."""
        return self.write(f"apps/{app}/nginx.conf.d/own.conf", text)

    def plugin(self, name: str, manifest: str = "", **hooks: str) -> Path:
        """Install a plugin of executables; `nginx_server_snippet="text of a shell script"`."""
        directory = self.paths.plugins / name
        self.write(f"plugins/{name}/plugin.toml", f'[plugin]\nname = "{name}"\n{manifest}')
        for hook, script in hooks.items():
            file = self.write(f"plugins/{name}/{hook.replace('_', '-')}", f"#!/bin/sh\n{script}\n")
            file.chmod(0o755)
        return directory

    def journal(self) -> list[dict[str, Any]]:
        """Every line of the journal; each must be whole."""
        return [json.loads(line) for line in self.paths.journal.read_text().splitlines()]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the host lock, as `flock ROOT/run/lock CMD` does."""
        with self.paths.lock.open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield

    def queued(self) -> int:
        """How many commands wait for the host lock."""
        return len(list(self.paths.queue.glob("[!.]*.json")))

    def files(self) -> dict[str, bytes]:
        """What scripts and people may edit, byte for byte; a directory ends in /."""
        found = {}
        for top in ("apps", "router.toml", "DOMAINS"):
            start = self.paths.root / top
            for path in [start, *(start.rglob("*") if start.is_dir() else [])]:
                if path.is_symlink() or path.is_file():
                    found[str(path.relative_to(self.paths.root))] = path.read_bytes()
                elif path.is_dir():
                    found[f"{path.relative_to(self.paths.root)}/"] = b""
        return found

    def kept(self) -> tuple[object, ...]:
        """All that a change may leave behind: directories, objects, generations, `current`, the queue, the intent."""
        names = [sorted(p.name for p in top.iterdir()) for top in (self.paths.objects, self.paths.generations, self.paths.queue)]
        left = [p.name for p in self.paths.run.glob("validate-*")]
        return self.files(), *names, str(self.paths.current.readlink()), left, self.paths.intent.exists()

    @contextlib.contextmanager
    def unchanged(self) -> Iterator[None]:
        """What happens meanwhile leaves no trace, save in the journal and in logs."""
        before = self.kept()
        yield
        assert self.kept() == before

    def is_consistent(self) -> None:
        """What the directories say, what `current` says and what is kept are one thing, and nothing is half done."""
        index = self.generations.current()
        assert index is not None
        assert not self.store.is_changing()
        assert not list(self.paths.run.glob("validate-*"))
        assert not [p.name for p in self.paths.queue.iterdir() if p.suffix != ".json"]
        assert self.store.names() == sorted(index.apps), "the directories are the apps of the current generation"
        for name, entry in index.apps.items():
            texts, _ = self.generations.app_state(entry)
            assert self.store.texts(name) == texts, f"the files of {name} are what the current generation was made of"
            for sha in (entry.vhost, *entry.objects):
                assert sha is None or self.generations.object(sha)
        assert self.store.globals() == (index.config, index.global_domains)
        assert max(self.generations.numbers()) == index.number, "no generation was left behind that nothing points to"
        odd = [str(p) for p in self.paths.root.rglob("*.tmp")] + [str(p) for p in self.paths.apps.glob(".*")]
        assert not odd, "nothing temporary is left"
        self.journal()

    def end(self) -> None:
        """End what still runs."""
        for command in self.commands:
            command.end()


class Live(Root):
    """A root whose nginx runs, on a port of its own."""

    def __init__(self, root: Path, port: int) -> None:
        super().__init__(root)
        self.port = port

    def get(self, host: str, path: str = "/", port: int | None = None, **headers: str) -> Answer:
        """Ask nginx over a connection of its own."""
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=10)
        try:
            connection.request("GET", path, headers={"Host": host, **headers})
            answer = connection.getresponse()
            return Answer(answer.status, answer.read().decode(errors="replace"), {k.lower(): v for k, v in answer.getheaders()})
        except (http.client.RemoteDisconnected, ConnectionResetError):
            return Answer(0)
        finally:
            connection.close()

    @property
    def master(self) -> int | None:
        """The pid of the master, if it runs."""
        try:
            pid = int((self.paths.run / "nginx.pid").read_text())
        except (OSError, ValueError):
            return None
        return pid if is_alive(pid) else None

    def workers(self) -> list[int]:
        """The workers that accept."""
        master = self.master
        found = children(master) if master else []
        # one that had no turn yet bears the title of the master
        return [
            pid for pid in found if (title := command_line(pid)).startswith(("nginx: worker", "nginx: master")) and "shutting" not in title
        ]

    def processes(self) -> list[int]:
        """Every process of this root's nginx, orphans too."""
        found = []
        for pid in all_pids():
            title = command_line(pid)
            if not title.startswith("nginx: "):
                continue
            if str(self.paths.root) in title or any(str(self.paths.root) in file for file in open_files(pid)):
                found.append(pid)
        return found

    def serves_current(self, seconds: float = 0.0) -> None:
        """`status` says that all is well and that nginx answers with the current generation.

        A change that no command waited for (`watch`) may still be under way: it has `seconds` to end.  The first new answer comes
        before it, while an old worker still answers `status`.
        """
        deadline = time.monotonic() + seconds
        while (result := self("status", "--format", "json")).code and time.monotonic() < deadline:
            time.sleep(0.05)
        assert result.code == 0, result
        status = result.json
        assert status["serving"] == status["generation"] == self.generations.current_number(), status
        assert status["problems"] == [] and status["stale"] == [], status

    def end(self) -> None:
        super().end()
        left = self.processes()
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, 15)
        until(lambda: not any(is_alive(pid) for pid in left), 15, "the end of nginx")


@pytest.fixture(scope="session", autouse=True)
def preloaded(request: pytest.FixtureRequest) -> Iterator[Preloaded | None]:
    """What runs the commands that are waited for; None: each is a process of its own."""
    if not request.config.getoption("--own-processes"):
        Root.preloaded = Preloaded(ROUTER)
    yield Root.preloaded
    if Root.preloaded is not None:
        Root.preloaded.end()
        Root.preloaded = None


@pytest.fixture
def router(router_root: Path) -> Iterator[Root]:
    """Run commands; nothing is started."""
    root = Root(router_root)
    yield root
    root.end()


@pytest.fixture
def unstarted(router_root: Path, free_port: Callable[[], int]) -> Iterator[Live]:
    """A root whose nginx was not started yet: what is written now is there from its start on; at the end nothing of it is left."""
    if NGINX is None:
        pytest.skip("no nginx on this machine")
    root = Live(router_root, free_port())
    root.write("router.toml", f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {root.port}\n')
    yield root
    root.end()


@pytest.fixture
def live(unstarted: Live) -> Live:
    """A root whose managed nginx runs."""
    unstarted.done("proxy:start")
    return unstarted


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    """Start backends that answer with their names."""
    started: list[Backend] = []

    def start(name: str) -> Backend:
        started.append(Backend(name))
        return started[-1]

    yield start
    for each in started:
        each.close()


@pytest.fixture
def two_apps(unstarted: Live, backend: Callable[..., Backend]) -> Live:
    """blog and shop, each with a domain and an instance that answers with the app's name."""
    unstarted.app("blog", ["blog.test"], [backend("blog")])
    unstarted.app("shop", ["shop.test"], [backend("shop")])
    unstarted.done("proxy:start")
    assert (unstarted.get("blog.test").body, unstarted.get("shop.test").body) == ("blog", "shop")
    return unstarted


@pytest.fixture(params=["reload", "live"])
def both(unstarted: Live, request: pytest.FixtureRequest) -> Live:
    """A root whose nginx runs, in the one way of updating and in the other."""
    return started(unstarted, request.param)


@pytest.fixture
def lively(unstarted: Live) -> Live:
    """A root whose nginx takes endpoint changes up without a reload."""
    return started(unstarted, "live")


@pytest.fixture
def three(backend: Callable[..., Backend]) -> list[Backend]:
    """Three instances, with names of their own."""
    return [backend(name) for name in ("one", "two", "three")]


@pytest.fixture
def half() -> Iterator[Half]:
    """An instance that takes a request and hangs up without an answer."""
    one = Half()
    yield one
    one.close()


@pytest.fixture
def slow_half() -> Iterator[Half]:
    """The same, which hangs up when it may."""
    one = Half(waits=True)
    yield one
    one.close()


@pytest.fixture
def slow() -> Iterator[Slow]:
    """An instance whose answers to /slow wait."""
    one = Slow()
    yield one
    one.close()
