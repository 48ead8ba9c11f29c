"""script/demo keeps what the README says of it: the whole main job on real traffic, and nothing left behind."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import pty
import re
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

PROJECT = Path(__file__).parents[2]

pytestmark = pytest.mark.timeout(180)

# Everything that the demo starts and forgets becomes a child of this little parent, which tells when the demo is over.
WATCHER = """
import ctypes, json, os, pathlib, signal, subprocess, sys
ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
demo = subprocess.Popen(sys.argv[1:])
signal.signal(signal.SIGTERM, lambda number, frame: demo.send_signal(signal.SIGTERM))
signal.signal(signal.SIGINT, lambda number, frame: demo.send_signal(signal.SIGINT))
code = demo.wait()
left = []
for stat in pathlib.Path("/proc").glob("[0-9]*/stat"):
    try:
        name, _, rest = stat.read_text().rpartition(")")
    except OSError:
        continue
    if int(rest.split()[1]) == os.getpid():
        left.append(name)
print("WATCHER", json.dumps({"code": code, "left": left}), flush=True)
"""


class Watched:
    """A demo under way, on a terminal of so many columns or (0) in a pipe."""

    def __init__(self, *arguments: str, columns: int = 0) -> None:
        self.lines: list[str] = []
        read, write = pty.openpty() if columns else os.pipe()
        if columns:
            fcntl.ioctl(write, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
        self._said = os.fdopen(read)
        self._process = subprocess.Popen(
            [sys.executable, "-c", WATCHER, PROJECT / "script/demo", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=write,
            stderr=write,
            env={**{k: v for k, v in os.environ.items() if k != "COLUMNS"}, "TERM": "xterm"},
        )
        os.close(write)

    def until(self, pattern: str) -> str:
        """Read on to the line that matches."""
        with contextlib.suppress(OSError):  # EIO: that is the end of a terminal
            for line in self._said:
                self.lines.append(re.sub(r"\x1b\[[0-9;]*m", "", line).rstrip())
                if found := re.search(pattern, self.lines[-1]):
                    return found[0]
        raise AssertionError("\n".join([*self.lines, f"no line matches {pattern}"]))

    def signal(self, number: int) -> None:
        """What a person or a shell sends to it."""
        self._process.send_signal(number)

    def end(self) -> tuple[int, list[str]]:
        """Its exit code, and the processes that it left behind."""
        said = json.loads(self.until(r"^WATCHER .*").removeprefix("WATCHER "))
        assert self._process.wait(10) == 0
        return said["code"], said["left"]

    def close(self) -> None:
        """End it in any case."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
        self._said.close()


@pytest.fixture
def demos() -> Iterator[list[Watched]]:
    """Demos that are ended with the test."""
    started: list[Watched] = []
    yield started
    for demo in started:
        demo.close()


def test_demo_does_the_main_job_and_leaves_nothing(demos: list[Watched], tmp_path: Path) -> None:
    began = time.monotonic()
    demo = Watched("--svg", str(tmp_path / "demo.svg"), columns=80)
    demos.append(demo)
    root = Path(demo.until(r"/tmp/router-demo-\w+"))
    code, left = demo.end()
    text = "\n".join(demo.lines)
    assert code == 0, text
    assert left == []
    assert not root.exists()
    for row in ("deploy blog v2", "scale blog to 3", "break shop's snippet", "roll blog back to v2", "answered by"):
        assert row in text
    sent = re.search(r"([\d,]+) requests sent, 0 failed", text)
    assert sent and int(sent[1].replace(",", "")) > 500, text
    assert "client_max_body_size" in text, "the operator's error is shown"
    assert "</svg>" in (tmp_path / "demo.svg").read_text()
    # what a person sees at 80 columns: nothing is broken within a word, and no command fills more than a screen
    assert [line for line in demo.lines if len(line) > 80 and not line.startswith("WATCHER")] == []
    assert "blog: deployed as generation" in text, "commands see a terminal"
    screens = re.split(r"^\$ ", text, flags=re.M)
    assert max(screen.rstrip().count("\n") for screen in screens[:-1]) < 24
    table = text.partition("What happened, under load\n")[2].partition(" requests sent")[0]
    assert len(table.splitlines()) == 2 + 2 * 6 + 1, "two lines of head, two a step, the caption"
    # 40 s alone on two cores; other tests run beside it
    assert time.monotonic() - began < 60


@pytest.mark.parametrize(("moment", "number", "code"), [(r"router proxy:start", signal.SIGTERM, 143), (r"deploy blog", signal.SIGINT, 130)])
def test_interrupted_demo_leaves_nothing(demos: list[Watched], moment: str, number: int, code: int) -> None:
    demo = Watched()
    demos.append(demo)
    root = Path(demo.until(r"/tmp/router-demo-\w+"))
    demo.until(moment)
    demo.signal(number)
    assert demo.end() == (code, []), "\n".join(demo.lines)
    assert not root.exists()


def test_keep_stays_up_until_ctrl_c(demos: list[Watched]) -> None:
    demo = Watched("--keep")
    demos.append(demo)
    url = demo.until(r"http://blog\.localhost:\d+/")
    demo.until(r"router generations:list")
    port = re.search(r":(\d+)/", url)
    assert port
    from http.client import HTTPConnection

    connection = HTTPConnection("127.0.0.1", int(port[1]), timeout=5)
    connection.request("GET", "/", headers={"Host": "blog.localhost"})
    assert b"blog v2" in connection.getresponse().read()
    connection.close()
    demo.signal(signal.SIGINT)
    assert demo.end() == (0, [])
