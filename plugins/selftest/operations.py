"""What is done to a host while its clients ask: random operations, by the command as users type it.

What is under way on an instance is cut when the router has named it as retired, and never before: nothing may be.  Every
second one stops at that moment; the others go on listening for a while, so that what still comes to them is seen, and not
hidden by nginx's second try.

A command that is killed is given once more: that one must succeed, whatever the first left.  Where the first had got
past its commit nobody names the instances that it replaced: they run on to the end, and nothing may begin there.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .clients import App, Clients

#: How often each comes in a hundred.
SHARES: Mapping[str, int] = {"deploy": 40, "scale": 18, "domain": 20, "bad": 12, "kill": 10}
#: Seconds that a retired instance goes on where it is not stopped at once.
LINGERS = 2.0
#: Seconds until the drain of an app comes to its deadline whose websockets never end, and of all others.
SHORT_DRAIN, LONG_DRAIN = 1, 60
#: Seconds within which a command must have ended.
PATIENCE = 180.0

#: Of a command that had not.
_NEVER = 124

#: What must be refused: the exit code, the words, what they read.
_BAD: Sequence[tuple[int, Sequence[str], str]] = (
    (8, ("snippets:add", "APP", "bad"), "nonsense on;\n"),
    (8, ("snippets:add", "APP", "bad"), "} server { listen 1;\n"),
    (2, ("domains:add", "APP", "a..b"), ""),
    (4, ("domains:add", "APP", "OTHER.test"), ""),
    (2, ("nginx:set", "APP", "client-max-body-size", "large;}"), ""),
    (12, ("apps:deploy", "APP", "127.0.0.1:1", "--check-timeout", "0.2"), ""),
)
#: Files of an app as a hand edit may leave them: the exit code of `reconcile`, the file, its text.
_BAD_FILES = (
    (8, "nginx.conf.d/bad.conf", "client_max_body_size 1 megabyte;\n"),
    (7, "nginx.conf.j2", "{{ nothing }}\n"),
    (2, "DOMAINS", "APP.test\nnot a domain\n"),
)


@dataclass
class Report:
    """What the operations came to."""

    done: Counter[str] = field(default_factory=Counter)
    deploys: list[float] = field(default_factory=list)  # seconds of each whole command
    killed: int = 0  # commands that a SIGKILL met before they ended
    unexpected: list[str] = field(default_factory=list)  # commands that ended in another way than they had to
    unserved: list[str] = field(default_factory=list)  # what was acknowledged and did not answer, or answered and was gone


@dataclass(frozen=True)
class Ended:
    """How a command ended; code -9: it was killed."""

    code: int
    out: str
    err: str
    seconds: float

    @property
    def answer(self) -> dict[str, Any]:
        """What it printed as JSON; nothing where it did not come to that."""
        with contextlib.suppress(ValueError):
            found = json.loads(self.out)
            return found if isinstance(found, dict) else {}
        return {}


class Commands:
    """The command, on the root of the selftest."""

    def __init__(self, root: Path) -> None:
        self._environment = environment(root)

    async def run(self, *words: str, stdin: str = "", killed_after: float | None = None) -> Ended:
        """Run a command to its end, or kill it after so many seconds."""
        began = time.monotonic()
        child = await asyncio.create_subprocess_exec(
            *argv(words),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
            cwd="/",
        )
        talking = asyncio.ensure_future(child.communicate(stdin.encode()))
        try:
            if killed_after is not None:
                await asyncio.wait({talking}, timeout=killed_after)
                if child.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(child.pid, signal.SIGKILL)  # child.kill() may reap it before its watcher, which says 255 then
            out, err = await asyncio.wait_for(talking, PATIENCE)
        except TimeoutError:
            child.kill()
            await child.wait()
            return Ended(_NEVER, "", f"it did not end within {PATIENCE:g} s", time.monotonic() - began)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()  # whoever watches it tells a loop that is there
            raise
        assert child.returncode is not None
        return Ended(child.returncode, out.decode(errors="replace"), err.decode(errors="replace"), time.monotonic() - began)


class Operator:
    """Changes its own apps, one after the other."""

    def __init__(
        self, commands: Commands, control: Path, clients: Clients, apps: Sequence[App], chance: random.Random, report: Report, root: Path
    ) -> None:
        self._commands, self._control, self._clients, self._apps = commands, control, clients, apps
        self._chance, self._report, self._root = chance, report, root
        self._serial = 0
        self._running: dict[str, dict[str, str]] = {}  # app -> address -> name, of what was started here and not yet retired
        self._lingering: set[asyncio.Task[object]] = set()

    async def begin(self) -> None:
        """Learn who runs."""
        for app in self._apps:
            await self._look(app)

    async def do(self, what: str) -> None:
        """One operation of a kind, on an app of its own."""
        moving = [app for app in self._apps if not app.lasting] or self._apps
        ways: Mapping[str, tuple[Callable[[App], Any], Sequence[App]]] = {
            "deploy": (self._deploy, moving),
            "scale": (self._scale, [app for app in moving if not app.held] or moving),
            "domain": (self._domain, self._apps),
            "bad": (self._bad, self._apps),
            "kill": (self._kill, moving),
        }
        act, among = ways[what]
        await act(self._chance.choice(among))
        self._report.done[what] += 1

    async def end(self) -> None:
        """Wait for what still lingers."""
        await asyncio.gather(*self._lingering, return_exceptions=True)

    async def _deploy(self, app: App, killed_after: float | None = None) -> None:
        started = dict([(address, name) for name, address in await self._ask(start=app.name, count=self._chance.randint(1, 2))])
        words = ("apps:deploy", app.name, *started, "--check", "/", "--drain", str(self._drain(app)), "--format", "json")
        replaced = self._running.get(app.name, {})
        self._running[app.name] = started
        first = ended = await self._commands.run(*words, killed_after=killed_after)
        if ended.code == -signal.SIGKILL:
            self._report.killed += 1
            ended = await self._expect(0, *words)
        elif ended.code != 0:
            self._unexpected(words, 0, ended)
        elif killed_after is None:
            self._report.deploys.append(ended.seconds)
        names = await self._retire(app, [*first.answer.get("retired", ()), *ended.answer.get("retired", ())], ended)
        if first.code == -signal.SIGKILL and ended.code == 0:
            for name in set(replaced.values()) - names:  # nobody has named them, so they are not stopped
                self._clients.ledger.retire(name, asyncio.get_running_loop().time(), forced=True)

    async def _scale(self, app: App) -> None:
        for count in (3, 1):
            words = ("apps:scale", app.name, f"web={count}", "--drain", str(LONG_DRAIN), "--format", "json")
            ended = await self._expect(0, *words)
            if ended.code == 0:
                # the runner stopped them, when it was told to
                await self._retire(app, ended.answer.get("retired", ()), ended, stopped=True)
        await self._look(app)

    async def _domain(self, app: App) -> None:
        if len(app.domains) > 1 and self._chance.random() < 0.5:
            domain = app.domains.pop()  # no client asks for it from now on
            if (await self._expect(0, "domains:remove", app.name, domain)).code == 0 and (who := await self._clients.ask(domain)):
                self._report.unserved.append(f"{domain} was removed, and {who} answers")
        else:
            self._serial += 1
            await self._add(app, f"x{self._serial}.{app.domains[0]}")

    async def _add(self, app: App, domain: str) -> None:
        if (await self._expect(0, "domains:add", app.name, domain)).code == 0:
            if (who := await self._clients.ask(domain)) != app.name:
                self._report.unserved.append(f"{domain} was added, and {who or 'nobody'} answers")
            app.domains.append(domain)

    async def _bad(self, app: App) -> None:
        number = self._chance.randrange(len(_BAD) + len(_BAD_FILES))
        if number < len(_BAD):
            code, words, stdin = _BAD[number]
            other = self._chance.choice([each.name for each in self._clients.apps if each is not app])
            await self._expect(code, *(word.replace("APP", app.name).replace("OTHER", other) for word in words), stdin=stdin)
        else:
            code, path, text = _BAD_FILES[number - len(_BAD)]
            with _edited(self._root / "apps" / app.name / path, text.replace("APP", app.name)):
                await self._expect(code, "reconcile", app.name)
            await self._expect(0, "reconcile", app.name)

    async def _kill(self, app: App) -> None:
        after = self._chance.uniform(0.05, 0.9)
        if self._chance.random() < 0.6:
            await self._deploy(app, after)
            return
        self._serial += 1
        domain = f"x{self._serial}.{app.domains[0]}"
        ended = await self._commands.run("domains:add", app.name, domain, killed_after=after)
        self._report.killed += ended.code == -signal.SIGKILL
        if ended.code not in (0, -signal.SIGKILL):
            self._unexpected(("domains:add", app.name, domain), 0, ended)
        await self._add(app, domain)

    async def _look(self, app: App) -> None:
        """Take what the directory says for what runs."""
        addresses = (self._root / "apps" / app.name / "UPSTREAMS").read_text().split()
        self._running[app.name] = await self._ask(names=addresses, app=app.name)

    async def _expect(self, code: int, *words: str, stdin: str = "") -> Ended:
        ended = await self._commands.run(*words, stdin=stdin)
        if ended.code != code:
            self._unexpected(words, code, ended)
        return ended

    def _unexpected(self, words: Sequence[str], code: int, ended: Ended) -> None:
        said = " ".join(ended.err.split())[-300:]
        self._report.unexpected.append(f"router {' '.join(words)}: exit {ended.code}, not {code}: {said}")

    async def _retire(self, app: App, addresses: Sequence[str], ended: Ended, *, stopped: bool = False) -> set[str]:
        """Note that nothing goes to these any more, and stop them: at once or a while later; their names."""
        at, forced = asyncio.get_running_loop().time(), bool(ended.answer.get("forced"))
        names = (await self._ask(names=list(addresses), app=app.name)) if addresses else {}
        for name in names.values():
            self._clients.ledger.retire(name, at, forced=forced)
        if names and not stopped:
            if not forced:
                await self._ask(hang_up=list(names), app=app.name)
            stopping = asyncio.ensure_future(self._stop(app, list(names), forced, 0.0 if self._chance.random() < 0.5 else LINGERS))
            self._lingering.add(stopping)
            stopping.add_done_callback(self._lingering.discard)
        return set(names.values())

    async def _stop(self, app: App, addresses: Sequence[str], forced: bool, after: float) -> None:
        await asyncio.sleep(after)
        await self._ask(stop=list(addresses), app=app.name, at_once=not forced)

    async def _ask(self, **question: Any) -> Any:
        return await ask(self._control, **question)

    def _drain(self, app: App) -> int:
        return SHORT_DRAIN if app.held else LONG_DRAIN


def plan(count: int, only: Sequence[str], chance: random.Random) -> list[str]:
    """`count` operations of the kinds in `only`, each as often as its share says, in a random order."""
    shares = {kind: share for kind, share in SHARES.items() if kind in only}
    whole = sum(shares.values())
    found = [kind for kind, share in shares.items() for _ in range(round(count * share / whole))]
    found = (found + [max(shares, key=lambda kind: shares[kind])] * count)[:count]
    chance.shuffle(found)
    return found


async def ask(control: Path, **question: Any) -> Any:
    """Ask the process that holds the instances."""
    reader, writer = await asyncio.open_unix_connection(control)
    try:
        writer.write(json.dumps(question).encode() + b"\n")
        return json.loads(await reader.readline())
    finally:
        writer.close()


def argv(words: Sequence[str]) -> list[str]:
    """A command of this very router."""
    return [sys.executable, "-m", "nginx_router", *words]


def environment(root: Path) -> dict[str, str]:
    """Ours, with another root."""
    return {**{name: value for name, value in os.environ.items() if not name.startswith("ROUTER_")}, "ROUTER_ROOT": str(root)}


@contextlib.contextmanager
def _edited(file: Path, text: str) -> Iterator[None]:
    """Within it a file holds something else."""
    before = file.read_text() if file.exists() else None
    file.parent.mkdir(exist_ok=True)
    _put(file, text)
    try:
        yield
    finally:
        if before is None:
            file.unlink()
        else:
            _put(file, before)


def _put(file: Path, text: str) -> None:
    """Replace a file whole: the other operator's command may read it at any moment, and an empty DOMAINS is an edit as well."""
    fresh = file.with_name(f".{file.name}.fresh")
    fresh.write_text(text)
    fresh.rename(file)
