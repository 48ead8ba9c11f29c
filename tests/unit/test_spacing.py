"""How far reloads are apart: the distance, and who waits in the queue for it."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path

import pytest

from nginx_router.dataplane import Worker
from nginx_router.events import Event
from nginx_router.model import Globals
from nginx_router.nginx import Nginx
from nginx_router.queue import Queue
from nginx_router.settings import Paths
from nginx_router.spacing import LONGEST, Spacing, distance

EVENT = [Event("create", "blog", {"domains": []})]


def test_the_distance_grows_from_half_of_the_limit_to_the_limit_and_no_further() -> None:
    assert [distance(n, 32) for n in (0, 1, 16)] == [0, 0, 0]
    assert all(0 < one < other for one, other in pairwise(distance(n, 32) for n in range(17, 33)))
    assert distance(32, 32) == distance(100, 32) == LONGEST == 5
    assert distance(10_000, 0) == 0, "0 is no limit"


def test_it_is_counted_from_the_last_reload(router_root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = Paths(router_root)
    (router_root / "router.toml").write_text("[proxy]\ndraining-workers = 4\n")
    ticks = 100 * int(time.clock_gettime(time.CLOCK_BOOTTIME))  # started just now
    old = [Worker(n, ticks - 50_000, True) for n in range(4)]
    for started, least, most in ((ticks, 3.5, 5.0), (ticks - 200, 1.5, 3.0), (ticks - 600, 0.0, 0.0)):
        monkeypatch.setattr(Nginx, "workers", lambda self, started=started: [*old, Worker(9, started, False)])
        assert least <= Spacing(paths, ()).left() <= most
    assert Spacing(paths, ()).draining() == 4
    (router_root / "router.toml").write_text("[proxy]\ndraining-workers = 0\n")
    assert (Spacing(paths, ()).draining(), Spacing(paths, ()).left()) == (0, 0.0), "without a limit nobody looks"


def test_without_a_value_of_its_own_the_limit_has_room_for_some_reloads() -> None:
    assert int(Globals().get("draining-workers")) >= 32
    assert Globals(proxy={"draining-workers": "7"}).get("draining-workers") == "7"


def test_what_needs_no_reload_is_taken_and_the_others_stay_until_one_of_them_may_wait_no_longer(tmp_path: Path) -> None:
    queue, later = Queue(tmp_path), time.monotonic() + 60
    waiting = [queue.put(EVENT, independent=False, command=f"{n}", patient_until=later) for n in range(2)]
    urgent = queue.put(EVENT, independent=False, command="urgent")
    assert [s.id for s in queue.take(lambda: True)] == [urgent]
    queue.answer(urgent, [{}])
    assert queue.take(lambda: True) == []
    tired = queue.put(EVENT, independent=False, command="tired", patient_until=time.monotonic())
    assert [s.id for s in queue.take(lambda: True)] == [*waiting, tired], "they share its reload"


def test_all_are_taken_where_reloads_are_not_spaced(tmp_path: Path) -> None:
    queue = Queue(tmp_path)
    asked = [queue.put(EVENT, independent=False, command=f"{n}", patient_until=time.monotonic() + 60 * n) for n in range(3)]
    assert [s.id for s in queue.take()] == asked
