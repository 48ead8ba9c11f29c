"""The power goes at each step of a change: what the disk has kept by then is served again, old or new, and never half."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from nginx_router.faults import STEPS
from nginx_router.processes import is_alive

from .conftest import until

if TYPE_CHECKING:
    from .conftest import Live
    from .instances import Backend

RECORDER = Path(__file__).with_name("durable.py")
COMMIT = STEPS.index("committed")
#: Behind the last step: the command has ended.
ALL = (*STEPS, "told")


def cut_power(live: Live, step: str, kept: str, *words: str) -> None:
    """Give a command, lose the power at `step`, and come up again with what the disk has kept."""
    target = live.paths.root.parent / "left"
    environment = {**os.environ, "ROUTER_ROOT": str(live.paths.root)}
    argv = [sys.executable, str(RECORDER), str(live.paths.root), step, kept, str(target), *words]
    done = subprocess.run(argv, capture_output=True, text=True, env=environment, timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL, f"{step} was not passed: {done.returncode} {done.stderr}"
    for pid in (left := live.processes()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    until(lambda: not any(is_alive(pid) for pid in left), what="the end of nginx")
    shutil.rmtree(live.paths.root)
    target.rename(live.paths.root)


def comes_back(live: Live) -> float:
    """Start the proxy, as a unit does at boot; the seconds until it serves."""
    began = time.monotonic()
    live.done("proxy:start")
    return time.monotonic() - began


def lost_nothing(live: Live, *hosts: str) -> None:
    """What was acknowledged before is served, the root is whole, and `doctor` has nothing to mend."""
    for host in hosts:
        assert live.get(host).body in host.split("."), host
    live.is_consistent()
    live.serves_current()
    report = live("doctor", "--format", "json")
    assert report.code == 0, report


def add(live: Live, step: str, kept: str) -> None:
    new = f"{step}.blog.test"
    cut_power(live, step, kept, "domains:add", "blog", new)
    seconds = comes_back(live)
    is_new = ALL.index(step) >= COMMIT
    assert live.get(new).body == ("blog" if is_new else ""), step
    assert (new in (live.paths.app("blog") / "DOMAINS").read_text().split()) == is_new, step
    lost_nothing(live, "blog.test", "shop.test", "kept.blog.test")
    assert seconds < 20, f"{step}: {seconds:.1f} s"


@pytest.mark.timeout(120)
def test_a_power_cut_around_the_commit_leaves_old_or_new(two_apps: Live) -> None:
    two_apps.done("domains:add", "blog", "kept.blog.test")
    for step in ("staged", "committed", "told"):
        add(two_apps, step, "ALL")


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kept", ["ALL", "NAMES"], ids=["only what was synced", "all names"])
def test_a_power_cut_at_each_step_leaves_old_or_new(two_apps: Live, kept: str) -> None:
    two_apps.done("domains:add", "blog", "kept.blog.test")
    for step in ALL:
        add(two_apps, step, kept)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kept", ["ALL", "NAMES"], ids=["only what was synced", "all names"])
def test_a_power_cut_in_a_rename_a_create_or_a_destroy_leaves_old_or_new(
    two_apps: Live, backend: Callable[[str], Backend], kept: str
) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet kept;\n")
    live.done("reconcile")
    for step in ("intent", "files", "staged", "committed", "told"):
        is_new = ALL.index(step) >= COMMIT
        cut_power(live, step, kept, "apps:rename", "blog", "news")
        comes_back(live)
        name = "news" if is_new else "blog"
        assert live.store.names() == sorted([name, "shop"]), step
        answer = live.get("blog.test")
        assert (answer.body, answer.headers["x-snippet"]) == ("blog", "kept")
        lost_nothing(live, "blog.test", "shop.test")
        if is_new:
            live.done("apps:rename", "news", "blog")
        cut_power(live, step, kept, "apps:clone", "blog", "copy")
        comes_back(live)
        assert live.store.exists("copy") == is_new, step
        lost_nothing(live, "blog.test", "shop.test")
        if not is_new:
            live.done("apps:clone", "blog", "copy")
        cut_power(live, step, kept, "apps:destroy", "copy", "--force")
        comes_back(live)
        assert live.store.exists("copy") != is_new, step
        lost_nothing(live, "blog.test", "shop.test")
        if not is_new:
            live.done("apps:destroy", "copy", "--force")


@pytest.mark.slow
@pytest.mark.timeout(60)
def test_a_file_that_a_change_removed_stays_removed_behind_a_power_cut(two_apps: Live) -> None:
    live = two_apps
    live.snippet("blog", "add_header X-Snippet yes;\n")
    live.done("reconcile", "blog")
    assert live.get("blog.test").headers["x-snippet"] == "yes"
    cut_power(live, "told", "ALL", "snippets:remove", "blog", "own")
    comes_back(live)
    assert "x-snippet" not in live.get("blog.test").headers
    assert not (live.paths.app("blog") / "nginx.conf.d/own.conf").exists()
    lost_nothing(live, "blog.test", "shop.test")
