"""One who changes some apps of a soak at random: every kind of change, hand edits, and kills of its own commands."""

from __future__ import annotations

import contextlib
import json
import random
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

from soak_host import PER_APP, App, Host

from nginx_router.archive import Reading

#: Most changes meet so many of its apps.
HOT = 6
#: Seconds within which a hand edit must be served; on a busy machine a transaction alone takes some.
EDIT_SECONDS = 30.0


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
