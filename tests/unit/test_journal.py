"""The journal keeps whole lines, and itself within bounds."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path

from nginx_router import journal
from nginx_router.queue import Queue


def numbers(path: Path) -> list[int]:
    return [json.loads(line)["number"] for line in path.read_text().splitlines()] if path.exists() else []


def test_the_journal_gets_whole_lines(tmp_path: Path) -> None:
    for number in range(3):
        journal.append(tmp_path / "journal.jsonl", {"number": number, "command": "apps:domains:add blog bücher.example"})
    assert numbers(tmp_path / "journal.jsonl") == [0, 1, 2]
    assert (tmp_path / "journal.jsonl").stat().st_mode & 0o002 == 0


def test_a_journal_that_is_full_is_put_aside_once_and_read_on(tmp_path: Path) -> None:
    path, before = tmp_path / "journal.jsonl", tmp_path / "journal.jsonl.1"
    for number in range(100):
        journal.append(path, {"number": number}, largest=400)
    assert path.stat().st_size < 400 + 20 and before.stat().st_size < 400 + 20
    assert numbers(before) + numbers(path) == list(range(numbers(before)[0], 100))
    kept = len(numbers(before)) + len(numbers(path))
    assert [row["number"] for row in journal.last(path, kept)] == list(range(99, 99 - kept, -1)), "over the seam, newest first"
    assert len(journal.last(path, 1000)) == kept
    assert sorted(p.name for p in tmp_path.iterdir()) == ["journal.jsonl", "journal.jsonl.1"]


def write(path: Path, first: int) -> None:
    for number in range(first, first + 200):
        journal.append(path, {"number": number}, largest=60_000)


def test_of_many_writers_none_loses_a_line_when_it_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for _ in range(3500):  # full in the middle of what follows
        journal.append(path, {"number": -1}, largest=60_000)
    writers = [multiprocessing.get_context("spawn").Process(target=write, args=(path, first)) for first in range(0, 800, 200)]
    for each in writers:
        each.start()
    for each in writers:
        each.join(60)
        assert each.exitcode == 0
    found = [number for number in numbers(path.with_name("journal.jsonl.1")) + numbers(path) if number >= 0]
    assert sorted(found) == list(range(800))


def test_one_that_cannot_be_put_aside_grows_on(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    (tmp_path / "journal.jsonl.1").mkdir()
    for number in range(100):
        journal.append(path, {"number": number}, largest=400)
    assert numbers(path) == list(range(100))


def test_the_lines_from_a_moment_on_are_found_however_many_they_are(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    for number in range(250):
        journal.append(path, {"number": number, "time": f"2026-01-01T00:{number // 60:02}:{number % 60:02}Z"}, largest=6_000)
    for first in (249, 160, 100, 3):
        moment = f"2026-01-01T00:{first // 60:02}:{first % 60:02}Z"
        found = [row["number"] for row in journal.since(path, moment)]
        kept = [row["number"] for row in journal.last(path, 1000)]
        assert found == [number for number in kept if number >= first]
    assert journal.since(path, "2026-01-02") == [] and journal.since(tmp_path / "none", "") == []


class Waiting(Queue):
    """A queue whose asker writes its line and ends when it is looked for."""

    def __init__(self, directory: Path, journal: Path) -> None:
        super().__init__(directory)
        self._journal = journal

    def is_waited_for(self, ident: str) -> bool:
        journal.append(self._journal, {"time": "2026-01-02", "command": ident, "generation": 7})
        return False


def test_an_asker_that_ends_while_it_is_looked_for_is_not_told_twice(tmp_path: Path) -> None:
    path, generation = tmp_path / "journal.jsonl", tmp_path / "000007"
    generation.mkdir()
    answers = {"0": {"app": "blog", "kind": "structure", "command": "domains:add"}}
    told = {"time": "2026-01-01", "command": "", "submissions": {"domains:add": answers}}
    assert [*journal.of_killed(path, told, generation, Waiting(tmp_path, path), reloads=1)] == []
    (line,) = journal.of_killed(tmp_path / "empty", told, generation, Waiting(tmp_path, path), reloads=1)
    assert line["command"] == "domains:add" and line["reloads"] == 1
