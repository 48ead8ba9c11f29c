"""A host under everything at once: random changes, kills, hand edits and traffic; at the end a table of what must be zero.

Three operators change apps of their own at the same time (so their changes share transactions), and each knows what its apps
must answer after every change that was acknowledged.  Clients ask all apps meanwhile, each request over a connection of its
own.  A reaper kills workers of nginx with -9, operators kill their own commands, and edits are taken up by `router watch`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import resource
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from nginx_router import journal
from nginx_router.archive import Reading
from nginx_router.generations import Generations, objects_in
from nginx_router.processes import children, command_line, is_alive
from nginx_router.settings import Paths

BIN = Path(sys.executable).parent
OPERATORS, CLIENTS, PER_APP, HOT = 3, 3, 3, 6
#: Seconds within which a hand edit must be served; on a busy machine a transaction alone takes some.
EDIT_SECONDS = 30.0
#: How `updates` is set, one after the other, each for the same part of the time: to leave a mode under load is a change like any other.
MODES = {"reload": ["reload"], "live": ["live"], "both": ["live", "reload", "live", "reload"]}
#: How far the journal is filled before the run, so that it is put aside in the middle of it.
ROOM = 4_000


@dataclass
class App:
    """What an app must answer, after the last change that was acknowledged."""

    name: str
    ports: list[int]  # its backends, that all run all the time
    exists: bool = False
    extra: set[str] = field(default_factory=set)  # domains beside its own
    endpoints: list[int] = field(default_factory=list)
    body: str | None = None  # client-max-body-size
    header: str | None = None  # of its snippet
    epoch: int = 0  # grows when it begins or ends to be served
    served: bool = False
    history: list[tuple[int, frozenset[str], str | None, str | None]] = field(default_factory=list)

    @property
    def domain(self) -> str:
        return f"{self.name}.soak.test"

    def switch(self, served: bool) -> None:
        self.served = served
        self.epoch += 1


class Tally:
    """What happened, and the first words on whatever went wrong."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.words: dict[str, list[str]] = {}
        self._lock = threading.Lock()

    def add(self, what: str, words: str = "", count: int = 1) -> None:
        with self._lock:
            self.counts[what] += count
            if words and len(self.words.setdefault(what, [])) < 5:
                self.words[what].append(words)


@dataclass
class Answer:
    status: int  # 0: none
    text: str
    headers: dict[str, str]
    began: float
    ended: float

    @property
    def app(self) -> str:
        return self.text.split()[0] if self.status == 200 and self.text else ""

    @property
    def backend(self) -> int:
        return int(self.text.split()[1]) if self.app else 0


class Host:
    """The root, its nginx, and the ways to change and to ask it."""

    def __init__(self, root: Path, port: int, tally: Tally) -> None:
        self.paths, self.port, self.tally = Paths(root), port, tally
        self.environment = {**{k: v for k, v in os.environ.items() if not k.startswith("ROUTER_")}, "ROUTER_ROOT": str(root)}
        self.kills: list[tuple[float, float]] = []  # of workers: from, to

    def begin(self, *words: object, stdin: str | None = None) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [BIN / "router", *map(str, words)],
            env=self.environment,
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: object, stdin: str | None = None) -> tuple[int, str, str]:
        with self.begin(*words, stdin=stdin) as child:
            out, err = child.communicate(stdin, timeout=300)
            return child.returncode, out, err

    def ask(self, host: str, port: int | None = None) -> Answer:
        began = time.monotonic()
        connection = http.client.HTTPConnection("127.0.0.1", port or self.port, timeout=20)
        try:
            connection.request("GET", "/", headers={"Host": host, "Connection": "close"})
            found = connection.getresponse()
            return Answer(found.status, found.read().decode(), {k.lower(): v for k, v in found.getheaders()}, began, time.monotonic())
        except (OSError, http.client.HTTPException) as why:
            return Answer(0, f"{type(why).__name__}: {why}", {}, began, time.monotonic())
        finally:
            connection.close()

    def is_excused(self, answer: Answer) -> bool:
        """Whether a worker was killed while this request was under way: it may have been that worker's own."""
        return any(answer.began <= end and answer.ended >= start for start, end in list(self.kills))

    def workers(self) -> list[int]:
        try:
            master = int((self.paths.run / "nginx.pid").read_text())
        except (OSError, ValueError):
            return []
        return [pid for pid in children(master) if command_line(pid).startswith("nginx: worker process")]


class Operator(threading.Thread):
    """Changes its own apps at random and knows what they must be."""

    def __init__(self, host: Host, apps: list[App], others: list[App], seed: str, over: threading.Event) -> None:
        super().__init__()
        self.host, self.apps, self.others, self.over = host, apps, others, over
        self.random, self.tally = random.Random(seed), host.tally
        self.number = 0
        self.failure: str | None = None

    def run(self) -> None:
        actions: list[tuple[int, Callable[[App], None]]] = [
            (12, self.deploy),
            (10, self.add_domain),
            (7, self.remove_domain),
            (5, self.destroy),
            (8, self.create),
            (6, self.upstreams),
            (7, self.set_property),
            (6, self.snippet),
            (5, self.bad),
            (7, self.roll_back),
            (4, self.port),
            (4, self.lock),
            (2, self.export),
            (14, self.kill),
            (9, self.edit),
            (5, self.bad_edit),
        ]
        weights, functions = zip(*actions, strict=True)
        try:
            while not self.over.is_set():
                action = self.random.choices(functions, weights)[0]
                pool = [app for app in self.apps if app.exists != (action == self.create)]
                # most of what happens happens to few, so that changes of one app follow each other
                hot = [app for app in pool if app in self.apps[:HOT]] if self.random.random() < 0.7 else []
                if pool:
                    action(self.random.choice(hot or pool))
        except Exception as why:  # the table says so, whatever it is
            self.tally.add("operators that failed", f"{type(why).__name__}: {why}")
            self.over.set()
            raise

    # changes

    def change(self, app: App, *words: object, stdin: str | None = None, expect: tuple[int, ...] = (0,)) -> int:
        """Run a command; its exit code, which must be one of `expect`."""
        code, out, err = self.host.run(*words, "--format", "json", stdin=stdin)
        verb = str(words[0])
        self.tally.add(f"command {verb}")
        if code not in expect:
            self.tally.add("unexpected exits", f"{' '.join(map(str, words))}: exit {code}: {err.strip()}")
        if code == 0:
            self.tally.add("acknowledged changes")
            with contextlib.suppress(ValueError, KeyError, TypeError):
                found = json.loads(out)
                found = found[0] if isinstance(found, list) else found
                self.remember(app, found["generation"])
        return code

    def remember(self, app: App, generation: int) -> None:
        app.history = [*app.history[-4:], (generation, frozenset(app.extra), app.body, app.header)]

    def fresh(self, what: str) -> str:
        self.number += 1
        return f"{what}{self.number}"

    def check(self, app: App, *, domain: str = "", port: int | None = None) -> None:
        """What was acknowledged is served, at once."""
        answer = self.host.ask(domain or app.domain, port)
        if self.host.is_excused(answer):
            return
        ok = answer.app == app.name and answer.backend in app.endpoints if app.endpoints else answer.status in (502, 503)
        if ok and app.endpoints and answer.headers.get("x-soak") != app.header:
            ok = False
        self.tally.add("checks of acknowledged changes")
        if not ok:
            words = f"{domain or app.domain}: {answer.status} {answer.text[:60]!r} {answer.headers.get('x-soak')}"
            self.tally.add("acknowledged and not served", f"{words}, wanted {app.name} {app.endpoints} {app.header}")

    def check_gone(self, domain: str) -> None:
        answer = self.host.ask(domain)
        self.tally.add("checks of acknowledged changes")
        if answer.app:
            self.tally.add("acknowledged and not served", f"{domain} is answered by {answer.text}, and nobody has it")

    def create(self, app: App) -> None:
        ports = self.random.sample(app.ports, self.random.randint(1, PER_APP))
        if self.change(app, "apps:create", app.name) == 0:
            app.exists, app.extra, app.body, app.header, app.endpoints, app.history = True, set(), None, None, [], []
            self.deploy(app, ports)

    def destroy(self, app: App) -> None:
        if sum(each.exists for each in self.apps) < len(self.apps) * 2 // 3:
            return
        app.switch(False)
        if self.change(app, "apps:destroy", app.name, "--force") == 0:
            app.exists = False
            for domain in (app.domain, *app.extra):
                self.check_gone(domain)

    def deploy(self, app: App, ports: list[int] | None = None) -> None:
        wanted = ports or self.random.sample(app.ports, self.random.randint(1, PER_APP))
        if self.change(app, "apps:deploy", app.name, *(f"127.0.0.1:{port}" for port in wanted), "--drain", "1") == 0:
            app.endpoints = wanted
            self.check(app)
            if not app.served:
                app.switch(True)

    def add_domain(self, app: App) -> None:
        domain = f"{self.fresh('x')}.{app.domain}"
        if self.change(app, "domains:add", app.name, domain) == 0:
            app.extra.add(domain)
            self.resnap(app)
            self.check(app, domain=domain)

    def remove_domain(self, app: App) -> None:
        if app.extra:
            domain = self.random.choice(sorted(app.extra))
            if self.change(app, "domains:remove", app.name, domain) == 0:
                app.extra.discard(domain)
                self.resnap(app)
                self.check_gone(domain)

    def resnap(self, app: App) -> None:
        """The last line of the history was made before the model followed."""
        if app.history:
            app.history[-1] = (app.history[-1][0], frozenset(app.extra), app.body, app.header)

    def upstreams(self, app: App) -> None:
        spare = [port for port in app.ports if port not in app.endpoints]
        if spare and self.random.random() < 0.5:
            if self.change(app, "upstreams:add", app.name, f"127.0.0.1:{spare[0]}", "--weight", "2") == 0:
                app.endpoints = [*app.endpoints, spare[0]]
        elif len(app.endpoints) > 1 and self.change(app, "upstreams:remove", app.name, f"127.0.0.1:{app.endpoints[0]}") == 0:
            app.endpoints = app.endpoints[1:]
        self.check(app)

    def set_property(self, app: App) -> None:
        size = f"{self.random.randint(1, 9)}m"
        if self.change(app, "nginx:set", app.name, "client-max-body-size", size) == 0:
            app.body = size
            self.resnap(app)
            code, out, _ = self.host.run("nginx:report", app.name, "--client-max-body-size")
            if code != 0 or out.strip() != size:
                self.tally.add("acknowledged and not served", f"{app.name}: client-max-body-size is {out.strip()}, not {size}")

    def snippet(self, app: App) -> None:
        if app.header is not None and self.random.random() < 0.3:
            if self.change(app, "snippets:remove", app.name, "soak") == 0:
                app.header = None
        else:
            word = self.fresh("h")
            if self.change(app, "snippets:add", app.name, "soak", stdin=f'add_header X-Soak "{word}" always;\n') == 0:
                app.header = word
        self.resnap(app)
        self.check(app)

    def bad(self, app: App) -> None:
        """What must be refused, and change nothing."""
        foreign = self.random.choice(self.others)
        code, *words = self.random.choice(
            [
                (8, "snippets:add", app.name, "bad"),
                (2, "domains:add", app.name, "a..b"),
                (2, "nginx:set", app.name, "client-max-body-size", "large;}"),
                (12, "apps:deploy", app.name, "127.0.0.1:1", "--check-timeout", "0.3"),
                (4, "domains:add", app.name, foreign.domain) if foreign.served else (2, "ports:add", app.name, "ftp:1"),
            ]
        )
        epoch = foreign.epoch
        stdin = "nonsense on;\n" if words[0] == "snippets:add" else None
        done, _, err = self.host.run(*words, stdin=stdin)
        if code == 4 and (foreign.epoch != epoch or done == 0):
            if done == 0 and foreign.epoch != epoch:
                self.host.run("domains:remove", app.name, foreign.domain)  # it was free in between
            elif done == 0:
                self.tally.add("unexpected exits", f"{' '.join(map(str, words))}: exit 0")
        elif done != code:
            self.tally.add("unexpected exits", f"{' '.join(map(str, words))}: exit {done}, not {code}: {err.strip()}")
        self.tally.add("refused")
        self.check(app)

    def roll_back(self, app: App) -> None:
        if len(app.history) < 2:
            found = [each for each in self.apps if each.exists and len(each.history) > 1]
            if not found:
                return
            app = self.random.choice(found)
        generation, extra, body, header = self.random.choice(app.history[:-1])
        if self.change(app, "generations:rollback", generation, app.name, expect=(0, 3)) == 0:
            app.extra, app.body, app.header = set(extra), body, header
            self.resnap(app)
            self.check(app)
            for domain in extra:
                self.check(app, domain=domain)

    def port(self, app: App) -> None:
        before = app.history
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            number = probe.getsockname()[1]
        # somebody may take it in between, which is a failed reload that puts everything back
        if self.change(app, "ports:add", app.name, "http", f"http:{number}", expect=(0, 9)) == 0:
            self.check(app, port=number)
        self.change(app, "ports:clear", app.name)
        app.history = before  # the port of then may be somebody's by now
        self.check(app)

    def lock(self, app: App) -> None:
        if self.change(app, "apps:lock", app.name, "soak") == 0:
            self.change(app, "apps:deploy", app.name, f"127.0.0.1:{app.ports[0]}", expect=(4,))
        self.change(app, "apps:unlock", app.name)

    def export(self, app: App) -> None:
        with tempfile.TemporaryDirectory(prefix="soak-x", dir="/tmp") as name:
            path = Path(name) / "x.tar"
            code, _, err = self.host.run("export", "--output", path)
            self.tally.add("command export")
            if code != 0:
                self.tally.add("unexpected exits", f"export: exit {code}: {err.strip()}")
                return
            with path.open("rb") as file:
                reading = Reading(file, "x.tar")
                texts = {path: b"".join(pieces).decode() for path, _, pieces in reading.files() if path.startswith(f"apps/{app.name}/")}
            domains = {line for line in texts[f"apps/{app.name}/DOMAINS"].split() if line}
            if domains != {app.domain, *app.extra}:
                self.tally.add("acknowledged and not served", f"the export has {domains} of {app.name}, not {app.extra}")
            # what is as it was is no change; the archive holds this app as this operator left it
            self.change(app, "import", path, "--app", app.name)
        self.check(app)

    # kills

    def kill(self, app: App) -> None:
        """SIGKILL of a command at a random moment: its change is whole, or was never made."""
        kind = self.random.choice(["add", "deploy", "snippet"])
        domain, word = f"{self.fresh('k')}.{app.domain}", self.fresh("h")
        wanted = self.random.sample(app.ports, self.random.randint(1, PER_APP))
        words: list[object] = {
            "add": ["domains:add", app.name, domain],
            "deploy": ["apps:deploy", app.name, *(f"127.0.0.1:{port}" for port in wanted), "--drain", "1"],
            "snippet": ["snippets:add", app.name, "soak"],
        }[kind]
        stdin = f'add_header X-Soak "{word}" always;\n' if kind == "snippet" else None
        with self.host.begin(*words, stdin=stdin) as child:
            if stdin is not None and child.stdin is not None:
                child.stdin.write(stdin)
                child.stdin.close()
                child.stdin = None
            with contextlib.suppress(subprocess.TimeoutExpired):
                child.wait(self.random.uniform(0.05, 1.5))
            killed = child.poll() is None
            child.kill()
            child.communicate()
        self.tally.add("killed commands" if killed else "commands that were too quick to be killed")
        self.change(app, "reconcile", app.name)  # whoever comes next repairs
        _, out, _ = self.host.run("apps:report", app.name, "--format", "json")
        report = json.loads(out)
        domains, ports = set(report["domains"]) - {app.domain}, [int(e["address"].rpartition(":")[2]) for e in report["endpoints"]]
        while self.host.is_excused(answer := self.host.ask(app.domain)):
            time.sleep(0.05)  # no answer says nothing of the header
        header = answer.headers.get("x-soak")
        states = {"add": ({*app.extra, domain}, app.endpoints, app.header), "deploy": (app.extra, wanted, app.header)}
        new = states.get(kind, (app.extra, app.endpoints, word))
        old = (app.extra, app.endpoints, app.header)

        def is_now(state: tuple[set[str], list[int], str | None]) -> bool:
            return domains == state[0] and sorted(ports) == sorted(state[1]) and header == state[2]

        if is_now(new):
            app.extra, app.endpoints, app.header = set(new[0]), list(new[1]), new[2]
            self.resnap(app)  # else a rollback to it would be thought to bring what was before
        elif not is_now(old):
            self.tally.add("half changes", f"{words}: {domains} {ports} {header}, neither {old} nor {new}")
        self.check(app)

    # edits by hand

    def edit(self, app: App) -> None:
        domain = f"{self.fresh('e')}.{app.domain}"
        file = self.host.paths.app(app.name) / "DOMAINS"
        if self.random.random() < 0.5:
            with file.open("a") as out:
                out.write(f"{domain}\n")
        else:
            fresh = file.with_name("DOMAINS~")
            fresh.write_text(f"{file.read_text()}{domain}\n")
            fresh.rename(file)
        app.extra.add(domain)
        self.tally.add("hand edits")
        self.wait(lambda: self.host.ask(domain).app == app.name, f"{file} with {domain}")

    def bad_edit(self, app: App) -> None:
        """What cannot be served leaves the app as it was; mended, it is taken up again."""
        file = self.host.paths.app(app.name) / "DOMAINS"
        before = file.read_text()
        file.write_text(f"{before}not a domain\n")
        self.wait(lambda: app.name in self.stale(), f"{app.name} to be stale")
        self.tally.add("hand edits that cannot be served")
        self.check(app)
        file.write_text(before)
        self.wait(lambda: app.name not in self.stale(), f"{app.name} to be well again")

    def stale(self) -> str:
        with contextlib.suppress(OSError):
            return self.host.paths.stale.read_text()
        return ""

    def wait(self, said: Callable[[], bool], what: str) -> None:
        deadline = time.monotonic() + EDIT_SECONDS
        while not said():
            if time.monotonic() > deadline:
                self.tally.add("edits that were not taken up", what)
                return
            time.sleep(0.05)


class Client(threading.Thread):
    """Asks every app, over and over, each time by a connection of its own."""

    def __init__(self, host: Host, apps: list[App], seed: str, over: threading.Event) -> None:
        super().__init__()
        self.host, self.apps, self.over, self.random = host, apps, over, random.Random(seed)

    def run(self) -> None:
        while not self.over.is_set():
            app = self.random.choice(self.apps)
            epoch, served = app.epoch, app.served
            answer = self.host.ask(app.domain)
            self.host.tally.add("requests")
            if answer.app and answer.app != app.name:
                self.host.tally.add("wrong-app answers", f"{app.domain}: {answer.text}")
            if served and app.served and app.epoch == epoch and answer.app != app.name:
                time.sleep(0.2)  # the kill of a worker is noted when it is over
                if self.host.is_excused(answer):
                    self.host.tally.add("failed while a worker was killed")
                else:
                    self.host.tally.add("failed fresh requests", f"{app.domain}: {answer.status} {answer.text[:80]!r}")
            time.sleep(0.005)


class Reaper(threading.Thread):
    """Kills workers of nginx with -9, and looks how `watch` is."""

    def __init__(self, host: Host, watch: int, seed: str, over: threading.Event) -> None:
        super().__init__()
        self.host, self.watch, self.over, self.random = host, watch, over, random.Random(seed)
        self.samples: list[tuple[int, int]] = []  # KiB, descriptors

    def run(self) -> None:
        turn = 0
        while not self.over.wait(2.0):
            turn += 1
            with contextlib.suppress(OSError):
                rows = dict(line.split(":", 1) for line in Path(f"/proc/{self.watch}/status").read_text().splitlines())
                self.samples.append((int(rows["VmRSS"].split()[0]), len(list(Path(f"/proc/{self.watch}/fd").iterdir()))))
            if turn % 4 == 0 and (workers := self.host.workers()):
                self.kill(self.random.choice(workers))

    def kill(self, pid: int) -> None:
        start = time.monotonic()
        self.host.kills.append((start, start + 5.0))
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        while is_alive(pid) and time.monotonic() < start + 5:
            time.sleep(0.001)
        self.host.kills[-1] = (start, time.monotonic() + 0.02)
        self.host.tally.add("killed workers")


# the backends: a process of their own


async def serve(names: list[str]) -> None:
    """A backend for each name on a port of its own; they answer `NAME PORT`."""

    def answering(name: str) -> Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]:
        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            text = f"{name} {writer.get_extra_info('sockname')[1]}".encode()
            with contextlib.suppress(OSError, asyncio.IncompleteReadError):
                while await reader.readuntil(b"\r\n\r\n"):
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))
                    await writer.drain()
            writer.close()

        return answer

    servers = [await asyncio.start_server(answering(name), "127.0.0.1", 0, backlog=256) for name in names]
    print(json.dumps([server.sockets[0].getsockname()[1] for server in servers]), flush=True)
    await asyncio.Event().wait()


@contextlib.contextmanager
def backends(names: list[str]) -> Iterator[list[int]]:
    child = subprocess.Popen([sys.executable, __file__, "--serve", *names], stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        yield json.loads(child.stdout.readline())
    finally:
        child.terminate()
        child.wait(10)


# the run


def soak(minutes: float, count: int, seed: int, updates: str) -> int:
    modes = MODES[updates]
    tally = Tally()
    chance = random.Random(seed)
    names = [f"app{number:03d}" for number in range(count + count // 4)]
    with (
        tempfile.TemporaryDirectory(prefix="soak", dir="/tmp", ignore_cleanup_errors=True) as name,
        backends([each for each in names for _ in range(PER_APP)]) as ports,
    ):
        Path(name).chmod(0o755)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            host = Host(Path(name) / "r", probe.getsockname()[1], tally)
        apps = [App(each, ports[PER_APP * n : PER_APP * (n + 1)]) for n, each in enumerate(names)]
        furnish(host, apps[:count], chance, modes[0])
        watching = host.begin("watch")
        try:
            until(lambda: watch_is_ready(host), "router watch")
            reaper = live(host, apps, watching.pid, minutes * 60, seed, modes)
            broken = judge(host, apps, reaper, watching)
        finally:
            watching.terminate()
            watching.communicate()
            host.run("proxy:stop")
    return report(tally, reaper, broken, minutes, count, seed, modes)


def furnish(host: Host, apps: list[App], chance: random.Random, updates: str) -> None:
    root = host.paths.root
    root.mkdir()
    host.paths.config.write_text(f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {host.port}\nupdates = "{updates}"\n')
    host.paths.global_domains.write_text("soak.test\n")
    for app in apps:
        app.exists, app.endpoints = True, chance.sample(app.ports, chance.randint(1, PER_APP))
        host.paths.app(app.name).mkdir(parents=True)
        (host.paths.app(app.name) / "DOMAINS").write_text(f"{app.domain}\n")
        (host.paths.app(app.name) / "UPSTREAMS").write_text("".join(f"127.0.0.1:{port}\n" for port in app.endpoints))
    line = json.dumps({"command": "before", "result": "done", "filler": "x" * 200}) + "\n"
    host.paths.journal.write_text(line * ((journal.LARGEST - ROOM) // len(line)))
    code, _, err = host.run("proxy:start")
    if code:
        raise SystemExit(f"router proxy:start: exit {code}\n{err}")
    for app in apps:
        app.switch(True)


def watch_is_ready(host: Host) -> bool:
    return (host.paths.run / "watch.lock").exists()


def live(host: Host, apps: list[App], watch: int, seconds: float, seed: int, modes: list[str]) -> Reaper:
    over, silence = threading.Event(), threading.Event()
    parts = [apps[n::OPERATORS] for n in range(OPERATORS)]
    operators = [Operator(host, part, [app for app in apps if app not in part], f"{seed}-{n}", over) for n, part in enumerate(parts)]
    clients = [Client(host, apps, f"{seed}-c{n}", silence) for n in range(CLIENTS)]
    reaper = Reaper(host, watch, f"{seed}-r", over)
    threads = [*clients, reaper, *operators]
    for each in threads:
        each.start()
    began = time.monotonic()
    try:
        for turn, mode in enumerate([*modes[1:], None], 1):
            if over.wait(max(0.0, began + seconds * turn / len(modes) - time.monotonic())) or mode is None:
                break
            switch(host, mode)
    finally:
        over.set()
        for each in (*operators, reaper):
            each.join()
        silence.set()  # they ask until the last change is done
        for each in clients:
            each.join()
    return reaper


def switch(host: Host, mode: str) -> None:
    code, _, err = host.run("proxy:set", "--global", "updates", mode)
    host.tally.add("switches of updates")
    if code:
        host.tally.add("unexpected exits", f"proxy:set --global updates {mode}: exit {code}: {err.strip()}")


def judge(host: Host, apps: list[App], reaper: Reaper, watching: subprocess.Popen[str]) -> list[str]:
    """Every invariant that is broken."""
    tally = host.tally
    host.kills.clear()
    for app in apps:
        for domain in (app.domain, *app.extra):
            answer = host.ask(domain)
            good = (answer.app == app.name and answer.backend in app.endpoints) if app.exists else not answer.app
            if not good:
                tally.add(
                    "not served at the end", f"{domain}: {answer.status} {answer.text[:60]}, wanted {app if app.exists else 'nobody'}"
                )
    zero = (
        "wrong-app answers",
        "failed fresh requests",
        "acknowledged and not served",
        "not served at the end",
        "half changes",
        "edits that were not taken up",
        "unexpected exits",
        "operators that failed",
    )
    broken = [f"{tally.counts[what]} {what}" for what in zero if tally.counts[what]]
    for words in (("reconcile", "--all"), ("status", "--quiet"), ("doctor", "--fix", "--quiet")):
        code, out, err = host.run(*words)
        if code:
            broken.append(f"router {' '.join(words)}: exit {code}: {out.strip()} {err.strip()}")
    if watching.poll() is not None:
        broken.append(f"router watch ended with exit {watching.returncode}")
    broken += [*kept(host, tally), *journalled(host, tally), *flat(reaper)]
    return broken


def kept(host: Host, tally: Tally) -> list[str]:
    generations = Generations(host.paths)
    numbers = generations.numbers()
    named = {sha for number in numbers for sha in objects_in(generations.index(number))}
    there = {path.name for path in host.paths.objects.iterdir() if len(path.name) == 64}
    tally.add("generations made", count=numbers[-1])
    tally.add("generations kept", count=len(numbers))
    tally.add("objects kept", count=len(there))
    broken = [f"{len(numbers)} generations are kept"] if len(numbers) > 52 else []
    # what a killed command left is younger than a minute, or `doctor --fix` has removed it
    old = [sha for sha in there - named if time.time() - (host.paths.objects / sha).stat().st_mtime > 90]
    return (
        broken
        + ([f"{len(old)} objects belong to no generation"] if old else [])
        + ([f"{len(named - there)} objects are lost"] if named - there else [])
    )


def journalled(host: Host, tally: Tally) -> list[str]:
    before = host.paths.journal.with_name("journal.jsonl.1")
    if not before.exists():
        return ["the journal was not put aside"]
    try:
        rows = [json.loads(line) for path in (before, host.paths.journal) for line in path.read_text().splitlines()]
    except ValueError as why:
        return [f"the journal holds a line that is none: {why}"]
    done = sum(row["result"] == "done" and row["command"] != "before" for row in rows)
    tally.add("lines of the journal", count=done)
    acknowledged = tally.counts["acknowledged changes"]
    broken = [f"{acknowledged} changes were acknowledged, and the journal has {done}"] if done < acknowledged else []
    sizes = [path.stat().st_size for path in (before, host.paths.journal)]
    return broken + ([f"the journal has {sizes} bytes"] if max(sizes) > journal.LARGEST + 10_000 else [])


def flat(reaper: Reaper) -> list[str]:
    if len(reaper.samples) < 12:
        return []
    third = len(reaper.samples) // 3
    (memory, files), (memory_then, files_then) = middle(reaper.samples[-third:]), middle(reaper.samples[third : 2 * third])
    broken = [f"watch grew from {memory_then} to {memory} KiB"] if memory > memory_then * 1.1 + 2048 else []
    return broken + ([f"watch held {files_then} descriptors, and holds {files}"] if files > files_then + 8 else [])


def middle(samples: list[tuple[int, int]]) -> tuple[float, float]:
    return statistics.median(each[0] for each in samples), statistics.median(each[1] for each in samples)


def report(tally: Tally, reaper: Reaper, broken: list[str], minutes: float, count: int, seed: int, modes: list[str]) -> int:
    counts = tally.counts
    third = max(1, len(reaper.samples) // 3)
    first, last = (middle(part) for part in (reaper.samples[third : 2 * third] or reaper.samples, reaper.samples[-third:]))
    commands = {what.removeprefix("command "): n for what, n in counts.items() if what.startswith("command ")}
    rows = [
        ("`updates`, one after the other", ", ".join(modes)),
        ("wrong-app answers", f"{counts['wrong-app answers']} of {counts['requests']} requests"),
        ("failed fresh requests", counts["failed fresh requests"]),
        (
            "requests that failed while a worker was killed",
            f"{counts['failed while a worker was killed']} ({counts['killed workers']} killed workers)",
        ),
        (
            "acknowledged changes, and those not served at once",
            f"{counts['acknowledged changes']}, {counts['acknowledged and not served']}",
        ),
        ("not served at the end", counts["not served at the end"]),
        ("changes that must be refused, and other exits than wanted", f"{counts['refused']}, {counts['unexpected exits']}"),
        ("killed commands, and changes left half done", f"{counts['killed commands']}, {counts['half changes']}"),
        ("hand edits, and those not taken up", f"{counts['hand edits']}, {counts['edits that were not taken up']}"),
        ("hand edits that cannot be served", counts["hand edits that cannot be served"]),
        ("generations made, kept", f"{counts['generations made']}, {counts['generations kept']}"),
        ("objects kept", counts["objects kept"]),
        ("lines of the journal, which was put aside once", counts["lines of the journal"]),
        ("memory of `watch`, middle and last third", f"{first[0] / 1024:.1f}, {last[0] / 1024:.1f} MiB"),
        ("descriptors of `watch`, middle and last third", f"{first[1]:.0f}, {last[1]:.0f}"),
    ]
    print(f"{minutes:g} minutes, {count} apps, seed {seed}\n\n| | |\n|---|---|")
    for what, value in rows:
        print(f"| {what} | {value} |")
    print(f"\ncommands: {', '.join(f'{name} {n}' for name, n in sorted(commands.items()))}")
    for what in broken:
        print(f"BROKEN: {what}")
        for words in tally.words.get(what.partition(" ")[2], []):
            print(f"    {words}")
    return 1 if broken else 0


def until(said: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not said():
        if time.monotonic() > deadline:
            raise SystemExit(f"{what} did not come about")
        time.sleep(0.02)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--apps", type=int, default=100)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32))
    parser.add_argument("--updates", choices=sorted(MODES), default="both")
    parser.add_argument("--serve", nargs="+", help=argparse.SUPPRESS)
    given = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is ended
    if given.serve:
        most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        asyncio.run(serve(given.serve))
    if not shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin:/sbin"):
        raise SystemExit("there is no nginx on this machine")
    return soak(given.minutes, given.apps, given.seed, given.updates)


if __name__ == "__main__":
    sys.exit(main())
