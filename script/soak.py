"""A host under everything at once: random changes, kills, hand edits and traffic; at the end a table of what must be zero.

Three operators change apps of their own at the same time (so their changes share transactions), and each knows what its apps
must answer after every change that was acknowledged.  Clients ask all apps meanwhile, each request over a connection of its
own.  A reaper kills workers of nginx with -9, operators kill their own commands, and edits are taken up by `router watch`.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
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
from collections.abc import Callable, Iterator
from pathlib import Path

from soak_host import PER_APP, App, Host, Tally
from soak_operator import Operator

from nginx_router import journal
from nginx_router.generations import Generations
from nginx_router.index import objects_in
from nginx_router.processes import is_alive

OPERATORS, CLIENTS = 3, 3
#: How `updates` is set, one after the other, each for the same part of the time: to leave a mode under load is a change like any other.
MODES = {"reload": ["reload"], "live": ["live"], "both": ["live", "reload", "live", "reload"]}
#: How far the journal is filled before the run, so that it is put aside in the middle of it.
ROOM = 4_000


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
