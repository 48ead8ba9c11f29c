"""The exit code of a signal says that nothing was changed: a command that changed something ends with its own, whenever one comes."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from .conftest import ROUTER, until
from .instances import Backend

if TYPE_CHECKING:
    from collections.abc import Callable

    from .conftest import Command, Live, Result

both = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def pelted(command: Command, number: signal.Signals, begins: Callable[[], bool]) -> Result:
    """The end of a command that gets one signal after the other from a moment on."""
    until(lambda: begins() or command.process.poll() is not None, 20)
    while command.process.poll() is None:
        command.send_signal(number)
        time.sleep(0.001)
    return command.wait()


@both
def test_once_a_change_is_served_signals_make_no_other_exit_code(two_apps: Live, number: signal.Signals) -> None:
    live = two_apps
    for name in ("one", "two", "three"):
        command = live.begin("domains:set", "blog", "blog.test", f"{name}.test")
        result = pelted(command, number, lambda: live.get(f"{name}.test").body == "blog")  # noqa: B023 - called at once
        # it is served before it is proven: a signal that comes between the two is no reason to say that nothing was
        assert result.code == 0 and "structure" in result.err and result.err.count("\n") == 1, result
        assert live.journal()[-1]["command"].endswith(f"{name}.test") and live.journal()[-1]["exit"] == 0


@both
def test_a_hook_that_is_told_of_it_is_ended_and_the_command_is_done(two_apps: Live, number: signal.Signals, tmp_path: Path) -> None:
    live = two_apps
    live.plugin("slow", post_domains_update=f"touch {tmp_path}/told; sleep 60")
    began = time.monotonic()
    result = pelted(live.begin("domains:add", "blog", "new.test"), number, (tmp_path / "told").exists)
    assert result.code == 0 and "plugin slow failed post-domains-update" in result.err and "interrupted" in result.err, result
    assert time.monotonic() - began < 30 and live.get("new.test").body == "blog"


@both
def test_a_deploy_that_printed_what_may_be_stopped_says_so_by_its_exit(
    two_apps: Live, number: signal.Signals, backend: Callable[[str], Backend]
) -> None:
    live = two_apps
    for name in ("one", "two", "three"):
        fresh = backend(name)
        result = pelted(live.begin("apps:deploy", "blog", fresh), number, lambda: live.get("blog.test").body == name)  # noqa: B023
        # the wait for the old one may be ended; what is printed is the truth either way
        assert (result.code, result.out != "") in ((0, True), (15, False)), result
        assert live.get("blog.test").body == name


@both
@pytest.mark.parametrize("verb", ["start", "stop", "reload"])
def test_a_proxy_that_was_started_or_stopped_is_said_to_be(two_apps: Live, number: signal.Signals, verb: str) -> None:
    live, old = two_apps, two_apps.master
    workers = live.workers()
    if verb == "start":
        live.done("proxy:stop")

    def is_begun() -> bool:
        return {
            "start": lambda: live.master not in (None, old),
            "stop": lambda: live.master is None,
            "reload": lambda: workers != live.workers(),
        }[verb]()

    result = pelted(live.begin(f"proxy:{verb}"), number, is_begun)
    assert result.code == 0 and "Traceback" not in result.err, result
    assert live.journal()[-1]["command"] == f"proxy:{verb}" and live.journal()[-1]["result"] == "done"


def test_who_has_it_ignored_is_not_ended_by_ctrl_c(two_apps: Live) -> None:
    live = two_apps
    words = f"trap '' INT; exec {ROUTER} domains:add blog quiet.test"
    environment = {**os.environ, "ROUTER_ROOT": str(live.paths.root)}
    with subprocess.Popen(["sh", "-c", words], env=environment, stderr=subprocess.DEVNULL) as waiting:
        with live.locked():
            until(lambda: live.queued() == 1, 20)
            waiting.send_signal(signal.SIGINT)
            time.sleep(0.3)
            assert waiting.poll() is None
        assert waiting.wait(20) == 0
    assert live.get("quiet.test").body == "blog"


def imports(pid: int) -> None:
    """Until Python has begun, whose own start nobody can make quiet, and `router` with it."""
    mask = 1 << signal.SIGINT - 1

    def is_caught() -> bool:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        return any(line.startswith("SigCgt:") and int(line.split()[1], 16) & mask for line in lines)

    for wanted in (True, False):
        until(lambda: is_caught() == wanted, 20)  # noqa: B023 - called at once


@pytest.mark.timeout(120)
def test_one_that_is_ended_before_says_so_in_a_line_at_most_and_changed_nothing(two_apps: Live) -> None:
    live = two_apps
    for n in range(24):
        before = live.generations.current_number()
        command = live.begin("domains:add", "blog", f"n{n}.test")
        imports(command.process.pid)
        time.sleep(n * 0.01)  # until it waits for nginx
        command.send_signal(signal.SIGINT)
        result = command.wait()
        is_served = live.get(f"n{n}.test").body == "blog"
        assert (result.code in (130, -signal.SIGINT), is_served) in ((True, False), (False, True)), (n, result)
        assert result.err in ("", "router: interrupted\n") or result.code == 0, (n, result)
        assert is_served == (live.generations.current_number() != before)
