"""A command that is a fork of a process that has imported all is what a process of its own is."""

from __future__ import annotations

import json
import os
import signal
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from .conftest import Live, Result, Root

#: A plugin's command that says what it finds itself to be.
MANIFEST = """[plugin]
name = "self"
[plugin.commands]
"self:say" = {help = "Say", run = "plugin.py:say", kind = "report", usage = "[--app APP]"}
"""
CODE = """
import atexit, gc, json, locale, os, random, signal, sys, threading, time
from pathlib import Path

SEEN = []

def say(router, app=None):
    atexit.register(print, "at exit", end="")
    SEEN.append(app)
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    streams = {
        name: [s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty(), s.seekable(), s.mode, s.name, s.fileno()]
        for name, s in [("in", sys.stdin), ("out", sys.stdout), ("err", sys.stderr)]
    }
    router.out.data(json.dumps({
        "argv": sys.argv, "orig_argv": sys.orig_argv[1:], "path": sys.path, "flags": str(sys.flags), "executable": sys.executable,
        "environment": dict(os.environ), "directory": os.getcwd(), "umask": status["Umask"], "name": Path("/proc/self/comm").read_text(),
        "signals": [status[key] for key in ("SigBlk", "SigIgn", "SigCgt")],
        "int": str(getattr(on_int := signal.getsignal(signal.SIGINT), "__qualname__", on_int)),
        "child": str(signal.getsignal(signal.SIGCHLD)), "wakeup": signal.set_wakeup_fd(-1), "group": [os.getpgrp(), os.getsid(0)],
        "files": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "streams": streams, "timezone": time.localtime(0).tm_hour, "locale": locale.setlocale(locale.LC_ALL),
        "threads": [threading.active_count(), threading.current_thread() is threading.main_thread()], "seen": SEEN,
        "plugins": sorted(name for name in sys.modules if name.startswith("router_plugins.")),
        "thresholds": gc.get_threshold(), "limits": Path("/proc/self/limits").read_text(),
    }, default=str))
    print("to stderr", file=sys.stderr)
    print(random.random(), file=sys.stderr)
"""


@pytest.fixture(autouse=True)
def forks(request: pytest.FixtureRequest) -> None:
    if request.config.getoption("--own-processes"):
        pytest.skip("every command is a process of its own")


def both(root: Root, *words: str, **environment: str) -> tuple[Result, Result]:
    return root.start(*words, **environment).wait(), root.begin(*words, **environment).wait()


def test_it_finds_itself_to_be_the_same(router: Root) -> None:
    router.write("plugins/self/plugin.toml", MANIFEST)
    router.write("plugins/self/plugin.py", CODE)
    was = os.umask(0o027)
    try:
        fork, own = both(router, "self:say", "--app", "blog", TZ="Asia/Tokyo", FOO="bär")
        again, _ = both(router, "self:say", "--app", "shop", TZ="UTC")
    finally:
        os.umask(was)
    for result in (fork, own, again):
        assert result.code == 0 and result.out.splitlines()[1:] == ["at exit"], result
    said, expected, later = (json.loads(result.out.splitlines()[0]) for result in (fork, own, again))
    assert said == expected
    assert said["environment"]["FOO"] == "bär" and said["timezone"] == 9 and said["name"] == "router\n"
    assert "FOO" not in later["environment"] and later["seen"] == ["shop"] and later["timezone"] == 0, "nothing is left of the one before"
    numbers = [result.err.splitlines() for result in (fork, again)]
    assert numbers[0][0] == "to stderr" and numbers[0][1] != numbers[1][1], "each draws its own lots"


@pytest.mark.parametrize(
    "words",
    [
        ("status",),
        ("status", "--format", "json"),
        ("help",),
        ("apps:report", "blog"),
        ("apps:create", "A b"),
        ("apps:destroy", "none"),
        ("domains:add", "shop", "blog.test"),
        ("nonsense",),
        (),
    ],
    ids=" ".join,
)
def test_it_says_the_same(two_apps: Live, words: tuple[str, ...]) -> None:
    fork, own = both(two_apps, *words)
    assert (fork.code, fork.out, fork.err) == (own.code, own.out, own.err)
    assert fork.out or fork.err


def test_its_end_by_a_signal_is_told(router: Root) -> None:
    router.write("plugins/self/plugin.toml", MANIFEST)
    router.write(
        "plugins/self/plugin.py", "import os, time\n\ndef say(router, app=None):\n    os.kill(os.getpid(), int(app))\n    time.sleep(60)\n"
    )
    for number, code in ((signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGABRT, -6)):
        fork, own = both(router, "self:say", "--app", str(int(number)))
        assert fork.code == own.code == code
        assert fork.err == own.err


def test_one_that_does_not_end_in_time_is_killed(router: Root) -> None:
    router.write("plugins/self/plugin.toml", MANIFEST)
    router.write("plugins/self/plugin.py", "import time\n\ndef say(router, app=None):\n    time.sleep(60)\n")
    with pytest.raises(AssertionError, match="did not end within"):
        router("self:say", seconds=0.5)
    assert router("status").code in (0, 9)
