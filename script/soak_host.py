"""The host of a soak: its apps as they must answer, the commands, and what is counted."""

from __future__ import annotations

import http.client
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from nginx_router.processes import children, command_line
from nginx_router.settings import Paths

BIN = Path(sys.executable).parent
PER_APP = 3  # backends


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
