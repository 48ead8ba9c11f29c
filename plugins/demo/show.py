"""The router's main job on real traffic, typed as a person would type it."""

from __future__ import annotations

import contextlib
import ctypes
import fcntl
import io
import os
import pty
import select
import shlex
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import termios
import textwrap
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from rich.console import Console
from rich.table import Table
from rich.text import Text

from .load import Answer, Load

HERE = Path(__file__).resolve().parent
#: What a person calls the instances, and how the router is called.
PROGRAM = "demo_app.py"
ROUTER = (sys.executable, "-m", "nginx_router")
HOSTS = {"blog.localhost": "blog", "shop.localhost": "shop"}
PR_SET_CHILD_SUBREAPER = 36
#: Of the closing table, and of its picture.
WIDTH = 80
NO_BREAK = "\N{NO-BREAK SPACE}"


class Broken(Exception):
    """A promise was not kept; the demo says which and fails."""


class Interrupted(BaseException):
    """INT, TERM or HUP: past every handler of errors, to the cleaning up."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


@dataclass
class Step:
    """A row of the closing table."""

    title: str
    started: float
    served: float | None = None
    result: str = ""
    answers: list[Answer] = field(default_factory=list)


class Demo:
    """Two apps, their clients and the router, in one directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self.load = Load(self.port, HOSTS)
        self.steps: list[Step] = []
        self._environment = {**os.environ, "ROUTER_ROOT": str(root)}
        self._console = Console(highlight=False)
        self._instances: dict[str, subprocess.Popen[str]] = {}

    def run(self) -> None:
        """Everything, in the order in which a new user would come to it."""
        self._start_proxy()
        blog_v1 = self._create_apps()
        self.load.start()
        try:
            self._deploy(blog_v1)
            self._scale()
            self._break_a_snippet()
            self._roll_back()
        finally:
            self.load.stop()
        self._hold_to_promises()

    def table(self) -> Table:
        """What happened."""
        sent = len(self.load.answers)
        failed = sum(1 for answer in self.load.answers if answer.problem)
        table = Table(
            title="What happened, under load",
            caption=f"{sent:,} requests sent, {failed} failed; kept connections opened again: {self.load.repeated}",
            title_justify="left",
            caption_justify="left",
            box=None,
            pad_edge=False,
        )
        table.add_column("\nstep", no_wrap=True)
        table.add_column("result\nanswered by")
        for column in ("served\nafter", "\nsent", "\nfailed"):
            table.add_column(column, justify="right", no_wrap=True)
        for step in self.steps:
            table.add_row(
                step.title,
                Text.assemble(step.result, "\n", (versions(step.answers), "dim")),
                "" if step.served is None else f"{step.served:.2f} s",
                f"{len(step.answers):,}",
                str(sum(1 for answer in step.answers if answer.problem)),
            )
        return table

    def hints(self) -> str:
        """What to try while it stays up."""
        urls = "\n".join(f"  http://{host}:{self.port}/" for host in HOSTS)
        return f"""
It stays up until Ctrl-C.  In a browser (these names need no DNS):
{urls}

In another terminal:
  export ROUTER_ROOT={self.root}
  PATH={Path(sys.executable).parent}:$PATH
  router status
  router apps:report blog
  router apps:scale blog web=5
  router domains:add shop store.localhost
  router apps:nginx:show-config shop
  router generations:list
  for i in 1 2 3 4 5; do curl -s http://blog.localhost:{self.port}/; done
"""

    def router(self, *words: str, expect: int = 0) -> str:
        """Run a command as a user would, show it, and give its stdout.

        Raises:
            Broken: it ended in another exit code than `expect`.
        """
        self._show(f"$ router {shlex.join(words)}")
        code, out, said = self._run([*ROUTER, *words])
        for line in said.splitlines():
            self._console.print(Text(f"  {line}", "dim"), soft_wrap=True)
        if code != expect:
            raise Broken(f"router {shlex.join(words)}: exit {code}, not {expect}")
        if expect:
            self._show(f"  (exit {expect})", "dim")
        return out

    def _run(self, argv: list[str]) -> tuple[int, str, str]:
        """Exit code, stdout, and all that a command said; on a terminal it gets terminals, a little narrower, and lays out what it says."""
        if not self._console.is_terminal:
            done = subprocess.run(argv, env=self._environment, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)
            return done.returncode, done.stdout, done.stderr + done.stdout
        ours, theirs = zip(pty.openpty(), pty.openpty(), strict=True)
        for terminal in theirs:
            fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", self._console.height, self._console.width - 2, 0, 0))
        environment = {**{k: v for k, v in self._environment.items() if k not in ("COLUMNS", "LINES")}, "NO_COLOR": "1"}
        try:
            child = subprocess.Popen(argv, env=environment, stdin=subprocess.DEVNULL, stdout=theirs[0], stderr=theirs[1])
        finally:
            for terminal in theirs:
                os.close(terminal)
        try:
            said = list(read_all(ours))
            out = "".join(text for terminal, text in said if terminal == ours[0])
            return child.wait(60), out, "".join(text for _, text in said)
        finally:
            for terminal in ours:
                os.close(terminal)

    def _start_proxy(self) -> None:
        self._heading(f"A managed nginx on 127.0.0.1:{self.port}, in {self.root}")
        self._show(f"$ cd {self.root}; export ROUTER_ROOT=$PWD")
        self._install_runner()
        self.router("proxy:set", "--global", "bind-address", "127.0.0.1")
        self.router("proxy:set", "--global", "http-port", str(self.port))
        self.router("proxy:start")

    def _install_runner(self) -> None:
        plugin = self.root / "plugins/demo-runner"
        shutil.copytree(HERE / "runner", plugin)
        shutil.copy(HERE / "app.py", plugin)
        for path in (plugin.parent, plugin, *plugin.iterdir()):
            path.chmod(0o755)  # a clone may be writable for a group, and as root that would be refused

    def _create_apps(self) -> str:
        self._heading("Two apps with their domains")
        addresses = {}
        for host, app in HOSTS.items():
            addresses[app] = self._start(app, "v1")
            self.router("apps:create", app)
            self.router("domains:add", app, host)
            self.router("apps:deploy", app, addresses[app])
        for host, app in HOSTS.items():
            answer = self._request(host)
            if answer.problem or answer.instance != addresses[app]:
                raise Broken(f"{host} is not answered by {app}")
        return addresses["blog"]

    def _deploy(self, old: str) -> None:
        self._heading("A new version of blog, under load")
        new = self._start("blog", "v2")
        step = self._step("deploy blog v2")
        retired = self.router("apps:deploy", "blog", new, "--check", "/").split()
        returned = time.monotonic()
        if retired != [old]:
            raise Broken(f"the deploy retired {retired}, not {[old]}")
        self._end_instance(old)
        step.served = self.load.wait("blog v2", lambda answers: any(answer.version == "v2" for answer in answers), step.started)
        step.result = f"retired v1 after {returned - step.started:.2f} s"
        self._observe(step)
        if any(answer.sent >= returned and answer.version == "v1" for answer in step.answers if HOSTS[answer.host] == "blog"):
            raise Broken("v1 answered a request sent after the deploy")

    def _scale(self) -> None:
        self._heading("Three instances of blog, started by a runner plugin")
        step = self._step("scale blog to 3")
        self.router("apps:scale", "blog", "web=3")
        step.served = self.load.wait("three instances of blog", lambda answers: len(instances(answers, "blog")) == 3, step.started)
        step.result = "3 instances"
        self._observe(step)

    def _break_a_snippet(self) -> None:
        self._heading("A broken snippet in shop: both are still served, blog can still change")
        shown = Path("apps/shop/nginx.conf.d/upload.conf")
        snippet = self.root / shown
        step = self._step("break shop's snippet")
        snippet.parent.mkdir(exist_ok=True)
        self._show(f"$ mkdir -p {shown.parent}; echo 'client_max_body_size 1 megabyte;' >{shown}")
        snippet.write_text("client_max_body_size 1 megabyte;\n")
        self.router("reconcile", "shop", expect=8)
        for host in HOSTS:
            if self._request(host).problem:
                raise Broken(f"{host} suffered from shop's snippet")
        self.router("domains:add", "blog", "www.blog.localhost")
        if self._request("www.blog.localhost").problem:
            raise Broken("www.blog.localhost is not served")
        self.router("status", expect=8)
        step.result = "refused, both apps served"
        self._observe(step)
        step = self._step("mend it")
        self._show(f"$ rm {shown}")
        snippet.unlink()
        self.router("reconcile", "shop")
        self.router("status")
        step.result = "status 0"
        self._observe(step)

    def _roll_back(self) -> None:
        self._heading("blog v3 goes out and is wrong: back to the generation before")
        before = self.router("status", "--generation").strip()
        wrong = self._start("blog", "v3")
        step = self._step("deploy blog v3")
        retired = self.router("apps:deploy", "blog", wrong).split()
        step.served = self.load.wait("blog v3", lambda answers: any(answer.version == "v3" for answer in answers), step.started)
        step.result = f"retired {len(retired)}, kept running"
        self._observe(step)
        step = self._step("roll blog back to v2")
        self.router("generations:rollback", before, "blog", "--endpoints")
        returned = time.monotonic()
        step.served = self.load.wait("blog v2 again", lambda answers: any(answer.version == "v2" for answer in answers), step.started)
        step.result = f"generation {before} again"
        self._observe(step)
        if any(answer.sent >= returned and answer.version == "v3" for answer in step.answers):
            raise Broken("v3 answered a request sent after the rollback")
        self._end_instance(wrong)

    def _hold_to_promises(self) -> None:
        if failed := [answer for answer in self.load.answers if answer.problem]:
            kinds = Counter(f"{answer.host}: {answer.problem}" for answer in failed)
            raise Broken(f"{len(failed)} of {len(self.load.answers)} requests failed: {dict(kinds.most_common(5))}")

    def _step(self, title: str) -> Step:
        step = Step(title, time.monotonic())
        self.steps.append(step)
        return step

    def _observe(self, step: Step, seconds: float = 1.0) -> None:
        """Let the clients go on for a while, then take their answers since the step began."""
        time.sleep(seconds)
        step.answers = self.load.between(step.started, time.monotonic())
        self._show(f"  {len(step.answers)} requests, answered by {spread(step.answers)}", "green")

    def _start(self, app: str, version: str) -> str:
        self._show(f"$ {PROGRAM} {app} {version} &")
        child = subprocess.Popen(
            [sys.executable, HERE / "app.py", app, version], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True
        )
        assert child.stdout is not None
        address = child.stdout.readline().strip()
        self._show(f"  {address}", "dim")
        if not address:
            raise Broken(f"{app} {version} did not start")
        self._instances[address] = child
        return address

    def _end_instance(self, address: str) -> None:
        child = self._instances.pop(address)
        self._show(f"$ kill {child.pid}   # {address}")
        child.terminate()
        child.communicate(timeout=10)

    def _request(self, host: str) -> Answer:
        self._show(f"$ curl -H 'Host: {host}' http://127.0.0.1:{self.port}/")
        answer = self.load.ask(host)
        self._show(f"  {answer.problem or f'{answer.version} from {answer.instance}'}", "dim")
        return answer

    def _heading(self, text: str) -> None:
        self._console.print()
        self._show(text, "bold")

    def _show(self, line: str, style: str = "") -> None:
        width = self._console.width if self._console.is_terminal else sys.maxsize
        for each in textwrap.wrap(line, width, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False):
            self._console.print(Text(each, style), soft_wrap=True)


def instances(answers: list[Answer], app: str) -> set[str]:
    """Who answered for an app."""
    return {answer.instance for answer in answers if HOSTS[answer.host] == app and not answer.problem}


def spread(answers: list[Answer]) -> str:
    """How many requests each instance answered."""
    counts = Counter((HOSTS[answer.host], answer.version, answer.instance.rpartition(":")[2]) for answer in answers if not answer.problem)
    # what belongs together is not broken into lines
    return ", ".join(f"{app} {version} :{port} × {count}".replace(" ", NO_BREAK) for (app, version, port), count in sorted(counts.items()))


def versions(answers: list[Answer]) -> str:
    """How many requests each version of each app answered: `blog v1 69, v2 103 · shop v1 170`."""
    counts = Counter((HOSTS[answer.host], answer.version) for answer in answers if not answer.problem)
    apps = sorted({app for app, _ in counts})
    return " · ".join(f"{app} {', '.join(f'{v} {n}' for (a, v), n in sorted(counts.items()) if a == app)}" for app in apps)


def read_all(terminals: Iterable[int], seconds: float = 60) -> Iterator[tuple[int, str]]:
    """What is written to terminals, as it comes, until nobody has them open any more."""
    deadline = time.monotonic() + seconds
    waiting = list(terminals)
    while waiting:
        for terminal in select.select(waiting, [], [], 1)[0]:
            try:
                yield terminal, os.read(terminal, 65536).decode(errors="replace").replace("\r\n", "\n")
            except OSError:  # EIO: that is the end of a terminal
                waiting.remove(terminal)
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: the end of what a command says")


def free_port() -> int:
    """8080 if nobody has it, else one that nobody has, below those that the kernel gives to clients."""
    for port in range(8080, 32000, 97):
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections of an earlier demo may linger
            probe.bind(("127.0.0.1", port))
            return port
    raise Broken("no free port")


def adopt_orphans() -> None:
    """Make every process that anything below us leaves behind our child, so that none can be missed at the end."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> list[int]:
    """The pids of our children."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            # pid (name, which may hold anything) state parent ...
            if int(stat.read_text().rpartition(")")[2].split()[1]) == os.getpid():
                found.append(int(stat.parent.name))
    return found


def end_children(seconds: float = 5) -> None:
    """End all that is left: TERM, then KILL; the orphans of the ended come to us and are ended too."""
    deadline = time.monotonic() + seconds
    asked: set[int] = set()
    while left := children():
        overdue = time.monotonic() > deadline
        for pid in left:
            if overdue or pid not in asked:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL if overdue else signal.SIGTERM)
                asked.add(pid)
        with contextlib.suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        time.sleep(0.02)


def clean_up(root: Path) -> None:
    """Leave nothing: no process and no file; deaf to a second Ctrl-C."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    with contextlib.suppress(OSError, subprocess.TimeoutExpired):
        subprocess.run([*ROUTER, "proxy:stop"], env={**os.environ, "ROUTER_ROOT": str(root)}, capture_output=True, timeout=20)
    end_children()
    shutil.rmtree(root, ignore_errors=True)


def save(table: Table, path: Path) -> None:
    """The table as a picture."""
    console = Console(record=True, width=WIDTH, file=io.StringIO(), force_terminal=True)
    console.print(table)
    console.save_svg(str(path), title="router demo")


def show(*, keep: bool, svg: Path | None) -> int:
    """Run the demo, and stay up afterwards (`keep`), or save its table as a picture; 0: every promise was kept."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise Interrupted(number)

    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, interrupt)
    adopt_orphans()
    # /tmp, whatever TMPDIR says: the path of a unix socket ends at 107 bytes
    root = Path(tempfile.mkdtemp(prefix="router-demo-", dir="/tmp"))
    kept_up = False
    try:
        root.chmod(0o755)  # nginx's workers are another user when we are root
        began = time.monotonic()
        demo = Demo(root)
        demo.run()
        console = Console()
        console.print()
        console.print(demo.table())
        if svg:
            save(demo.table(), svg)
        console.print(f"done in {time.monotonic() - began:.0f} s")
        if keep:
            kept_up = True  # before the words that tell how to end it
            print(demo.hints(), flush=True)
            while True:
                signal.pause()
    except (Broken, TimeoutError, subprocess.TimeoutExpired) as why:
        print(f"demo: {why}", file=sys.stderr)
        # the directory will be gone: what nginx said goes with the complaint
        for log in sorted(each for each in (root / "log").glob("*.log") if "access" not in each.name):
            for line in log.read_text(errors="replace").splitlines()[-10:]:
                print(f"  {log.name}: {line}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        return 0 if kept_up and interrupted.number == signal.SIGINT else 128 + interrupted.number
    finally:
        clean_up(root)
    return 0
