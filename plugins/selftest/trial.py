"""One run: a root and an nginx of its own, apps, clients, operations, and what they came to.

Everything lies below one temporary directory and listens on loopback; the user's own root, nginx and apps are not looked at.

    /tmp/rst.XXXXXX/r      ROUTER_ROOT
    /tmp/rst.XXXXXX/own    the control socket of the process that holds the instances
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nginx_router import interrupts
from nginx_router.errors import BY_EXIT_CODE, RouterError
from nginx_router.processes import children, command_line

from .clients import App, Clients, Ledger, Tally
from .operations import Commands, Operator, Report, argv, ask, environment, plan

#: Operations that may change more than where requests go: nginx is reloaded for them.
STRUCTURAL = ("domain", "bad", "kill")
#: How many operators change apps at the same time.
OPERATORS = 2
#: Seconds for which clients ask before the first operation and after the last.
QUIET = 1.0
#: The longest directory whose sockets' names still fit.
_LONGEST = 40
_SECONDS = 60
#: Seconds between two looks whether a signal came.
_LOOK = 0.1


@dataclass(frozen=True)
class Plan:
    """What is to be done."""

    updates: str
    apps: int
    operations: int
    only: tuple[str, ...]
    seconds: float
    seed: int
    binary: str = ""  # of nginx; empty: the host's
    in_turn: bool = False  # one command at a time


@dataclass(frozen=True)
class Processes:
    """nginx's processes at a moment."""

    master: int
    workers: frozenset[int]


@dataclass
class Result:
    """What one run came to."""

    updates: str
    seconds: float = 0.0
    clients: dict[str, Tally] = field(default_factory=dict)
    report: Report = field(default_factory=Report)
    left: int = 0  # operations that did not fit into the time
    reloads: int = 0
    structural: int = 0  # changes of structure in the journal
    same_master: bool = False
    same_workers: bool = False
    old_workers: int = 0  # the most at any time
    served: list[float] = field(default_factory=list)  # seconds under the host lock of each change of endpoints
    status: int = 0  # exit code of `router status` at the end
    silent: list[str] = field(default_factory=list)  # apps that do not answer at the end

    def broken(self) -> list[str]:
        """The promises that were not kept."""
        found = [*self.report.unexpected, *self.report.unserved]
        for kind, tally in self.clients.items():
            # a client that repeats nothing meets the end of its idle connection at a reload: that is nginx's, and is reported
            allowed = tally.reconnects if kind == "unrepeating" and self.reloads else 0
            for what, words, count in (
                ("failures", "failed", tally.failures - allowed),
                ("stale", "were answered by a retired instance", tally.stale),
                ("wrong_app", "were answered by another app", tally.wrong_app),
                ("cut", "were cut", tally.cut),
            ):
                if count > 0:
                    found.append(f"{kind}: {count} of {tally.requests} {words}: {'; '.join(tally.words.get(what, ()))}")
            if tally.requests == 0:
                found.append(f"{kind}: no request was made")
        if self.updates == "live":
            if self.reloads > self.structural + self.report.killed:
                found.append(f"{self.reloads} reloads for {self.structural} changes that need one")
            if not self.reloads and not self.same_workers:
                found.append("nginx's workers are others than before, and nothing was reloaded")
        if not self.same_master:
            found.append("nginx's master is another than before")
        if self.status:
            found.append(f"router status at the end: exit {self.status}")
        if self.silent:
            found.append(f"at the end nobody answers for {' '.join(self.silent)}")
        return found

    def as_json(self) -> dict[str, Any]:
        """The keys that are promised to scripts."""
        done = self.report.done
        return {
            "updates": self.updates,
            "seconds": round(self.seconds, 1),
            "operations": {kind: done[kind] for kind in sorted(done)},
            "left": self.left,
            "killed": self.report.killed,
            "clients": {kind: asdict(tally) for kind, tally in self.clients.items()},
            "reloads": self.reloads,
            "structure_changes": self.structural,
            "same_master": self.same_master,
            "same_workers": self.same_workers,
            "old_workers": self.old_workers,
            "served": {"count": len(self.served), "p50": _at(self.served, 0.5), "p99": _at(self.served, 0.99)},
            "deploys": {"count": len(self.report.deploys), "p50": _at(self.report.deploys, 0.5), "p95": _at(self.report.deploys, 0.95)},
            "broken": self.broken(),
        }


class Trial:
    """A place to run in; `close` ends and removes it."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        top = tempfile.gettempdir()
        self.directory = Path(tempfile.mkdtemp(prefix="rst.", dir=top if len(top) <= _LONGEST else "/tmp"))  # noqa: S108 - a short one
        self.root = self.directory / "r"
        self._control = self.directory / "own/instances.sock"
        self._instances: subprocess.Popen[bytes] | None = None
        self._port = 0

    def prepare(self) -> None:
        """Start the instances, their apps and nginx.

        Raises:
            RouterError: a command failed: there is no nginx, or not its Lua module, in that command's own words.
        """
        self.directory.chmod(0o755)  # workers of a root nginx must reach what lies in it
        for path, mode in ((self.root, 0o755), (self._control.parent, 0o700)):
            path.mkdir(mode)
        runner = self.root / "plugins/selftest-runner"
        shutil.copytree(Path(__file__).parent / "runner", runner, ignore=shutil.ignore_patterns("__pycache__"))
        for path in (runner.parent, runner, *runner.iterdir()):
            path.chmod(0o755)  # a clone may be writable for a group, and as root that would be refused
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self._port = probe.getsockname()[1]
        binary = f'nginx-binary = "{self.plan.binary}"\n' if self.plan.binary else ""
        (self.root / "router.toml").write_text(f'[proxy]\nbind-address = "127.0.0.1"\nhttp-port = {self._port}\n{binary}')
        self._instances = subprocess.Popen(
            argv(["selftest:instances", str(self._control)]),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(self.root),
            start_new_session=True,  # Ctrl-C is for us
        )
        assert self._instances.stdout is not None
        if not self._instances.stdout.readline():
            raise RouterError("the instances did not start")
        self.command("proxy:set", "--global", "updates", self.plan.updates)
        self.command("proxy:start")

    def run(self, tell: Callable[[int], None]) -> Result:
        """Let clients ask while operations change; `tell` how many are done.  TERM and INT end it when all of that is put away."""
        # raised among the tasks, it would leave some of them, and commands that run, behind a loop that is closed
        with interrupts.waiting() as came:
            return asyncio.run(self._run_until(came, tell))

    def close(self, *, keep: bool = False) -> None:
        """Stop nginx and the instances, and remove everything unless it is to be kept."""
        with contextlib.suppress(RouterError, OSError):
            self.command("proxy:stop")
        if self._instances is not None:
            self._instances.kill()
            self._instances.communicate()
        if not keep:
            shutil.rmtree(self.directory, ignore_errors=True)

    def command(self, *words: str) -> str:
        """Run a command that must succeed; its stdout.

        Raises:
            RouterError: it did not, in its own words.
        """
        try:
            done = subprocess.run(
                argv(words), env=environment(self.root), cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_SECONDS
            )
        except subprocess.TimeoutExpired:
            raise RouterError(f"router {' '.join(words)} did not end within {_SECONDS} s") from None
        if done.returncode:
            said, *more = [*done.stderr.strip().splitlines(), f"exit {done.returncode}"]
            error = BY_EXIT_CODE.get(done.returncode, RouterError)
            raise error(f"router {' '.join(words)}: {said.removeprefix('router: ')}", hint=" ".join(more[:-1]).strip())
        return done.stdout

    async def _run_until(self, came: Sequence[int], tell: Callable[[int], None]) -> Result:
        """The same, or its end by the first signal that came."""
        running = asyncio.ensure_future(self._run(tell))
        while not came and not running.done():
            await asyncio.wait({running}, timeout=_LOOK)
        if came:
            running.cancel()
        return await running

    async def _run(self, tell: Callable[[int], None]) -> Result:
        chance = random.Random(self.plan.seed)  # noqa: S311 - a seed must give the same run
        result = Result(self.plan.updates)
        apps = await self._apps()
        clients = Clients(self._port, apps, Ledger(), chance)
        commands = Commands(self.root)
        if (ended := await commands.run("reconcile")).code:
            raise RouterError(f"router reconcile: exit {ended.code}: {ended.err.strip()}")
        before, lines = self._processes(), len(self._journal())
        began = time.monotonic()
        async with _running(clients), self._watched(before.master, result):
            await asyncio.sleep(QUIET)
            result.left = await self._operate(commands, clients, apps, chance, result.report, tell)
            await asyncio.sleep(QUIET)
        result.seconds = time.monotonic() - began
        result.clients = clients.tallies
        result.silent = [app.name for app in apps if await clients.ask(app.domains[0]) != app.name]
        result.status = (await commands.run("status", "--quiet")).code
        after = self._processes()
        result.same_master, result.same_workers = after.master == before.master, after == before
        self._read(self._journal()[lines:], result)
        return result

    async def _apps(self) -> list[App]:
        found = []
        for number in range(self.plan.apps):
            name = f"app{number:02d}"
            part = number % 8
            # of few apps it would be the only one that its operator may scale, and the stop of a scale tells nobody to end
            held = number == 1 and self.plan.apps >= 8
            app = App(name, [f"{name}.test"], lasting=part in (0, 4), held=held, streams=part == 2)
            directory = self.root / "apps" / name
            directory.mkdir(parents=True)
            ((_, address),) = await ask(self._control, start=name, count=1)
            (directory / "DOMAINS").write_text(f"{name}.test\n")
            (directory / "UPSTREAMS").write_text(f"{address}\n")
            found.append(app)
        return found

    async def _operate(
        self, commands: Commands, clients: Clients, apps: Sequence[App], chance: random.Random, report: Report, tell: Callable[[int], None]
    ) -> int:
        """Do what is planned, or what of it fits into the time; how many operations do not."""
        left = plan(self.plan.operations, self.plan.only, chance)
        deadline = time.monotonic() + self.plan.seconds

        async def operate(operator: Operator) -> None:
            while left and time.monotonic() < deadline:
                await operator.do(left.pop())
                tell(sum(report.done.values()))
            await operator.end()

        # app 0 of each part is one that is never deployed, so parts are neighbours and not every second app
        count = 1 if self.plan.in_turn else OPERATORS
        size = (len(apps) + 1) // count
        parts = [apps[n * size : (n + 1) * size] for n in range(count)]
        operators = [
            Operator(commands, self._control, clients, part, random.Random(f"{self.plan.seed}-{n}"), report, self.root)  # noqa: S311 - the same
            for n, part in enumerate(parts)
            if part
        ]
        for operator in operators:
            await operator.begin()
        tasks = [asyncio.ensure_future(operate(each)) for each in operators]
        try:
            await asyncio.gather(*tasks)
        finally:
            # with the first that ends so gather is over, and the others may still wait for commands that they ended
            for task in tasks:
                if not task.cancelling():
                    task.cancel()
            await asyncio.wait(tasks)
        return len(left)

    @contextlib.asynccontextmanager
    async def _watched(self, master: int, result: Result) -> AsyncIterator[None]:
        """Within it the most workers that only finish what they have are counted."""

        async def look() -> None:
            while True:
                workers = await asyncio.to_thread(lambda: [pid for pid in children(master) if "shutting down" in command_line(pid)])
                result.old_workers = max(result.old_workers, len(workers))
                await asyncio.sleep(0.25)

        looking = asyncio.ensure_future(look())
        try:
            yield
        finally:
            looking.cancel()

    def _processes(self) -> Processes:
        try:
            master = int((self.root / "run/nginx.pid").read_text())
        except (OSError, ValueError):
            return Processes(0, frozenset())
        titles = {pid: command_line(pid) for pid in children(master)}
        return Processes(
            master, frozenset(pid for pid, title in titles.items() if title.startswith("nginx: worker process") and "shutting" not in title)
        )

    def _journal(self) -> list[dict[str, Any]]:
        try:
            return [json.loads(line) for line in (self.root / "journal.jsonl").read_text().splitlines()]
        except OSError:
            return []

    @staticmethod
    def _read(rows: Sequence[dict[str, Any]], result: Result) -> None:
        result.reloads = sum(row["reloads"] for row in rows)
        result.structural = sum(row["kind"] == "structure" for row in rows)
        result.served = [row["served_seconds"] for row in rows if row["kind"] == "endpoints" and row.get("served_seconds")]


@contextlib.asynccontextmanager
async def _running(clients: Clients) -> AsyncIterator[None]:
    """Within it all clients ask; one that fails in a way that it does not count ends the run."""
    tasks = [asyncio.ensure_future(each) for each in clients.all()]
    body = asyncio.current_task()
    failed: list[BaseException] = []

    def ended(task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (why := task.exception()) is not None and body is not None:
            failed.append(why)
            body.cancel()

    for task in tasks:
        task.add_done_callback(ended)
    try:
        yield
        clients.over.set()
        await asyncio.gather(*tasks)
    except asyncio.CancelledError:
        if failed:
            raise failed[0] from None
        raise
    finally:
        for task in tasks:
            task.cancel()


def _at(values: Sequence[float], share: float) -> float | None:
    """The value that this share of `values` does not exceed; None where there are none."""
    if not values:
        return None
    return round(sorted(values)[min(len(values) - 1, int(len(values) * share))], 6)
