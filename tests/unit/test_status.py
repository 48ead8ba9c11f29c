"""What `status` is made of: the end of the journal, and how long a worker has been leaving."""

from __future__ import annotations

import json
from pathlib import Path

from nginx_router import journal
from nginx_router.dataplane import Worker
from nginx_router.proxy import _TICKS, _left_at


def test_the_last_lines_of_the_journal_newest_first(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    assert journal.last(file, 5) == []
    file.write_text("".join(json.dumps({"n": n, "pad": "x" * 5000}) + "\n" for n in range(100)))
    assert [line["n"] for line in journal.last(file, 5)] == [99, 98, 97, 96, 95]
    assert [line["n"] for line in journal.last(file, 1000)] == list(reversed(range(100)))


def test_a_line_that_was_cut_is_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "journal.jsonl"
    file.write_text('{"n": 1}\n{"n": 2}\n{"n"')
    assert [line["n"] for line in journal.last(file, 5)] == [2, 1]


def test_a_worker_leaves_when_its_successors_start() -> None:
    first, twin = Worker(1, 1000, True), Worker(2, 1003, True)
    second, third = Worker(3, 1000 + 10 * _TICKS, True), Worker(4, 1000 + 60 * _TICKS, False)
    everyone = [first, twin, second, third]
    assert _left_at(first, everyone) == _left_at(twin, everyone) == second.started, "its twin is no successor"
    assert _left_at(second, everyone) == third.started
    assert _left_at(Worker(1, 1000, True), [Worker(1, 1000, True)]) == 1000, "nobody followed: the master ends"
