"""What is read of a log: whole changes alone, whatever a crash or the disk made of it."""

from __future__ import annotations

import os
import re
import zlib
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nginx_router import endpointlog
from nginx_router.entries import Entries, plain
from nginx_router.model import Entry

ENTRY = {"state": "s", "vhost": None, "generation": 1, "inline": "end x 1\n"}


def change(number: int, *, behind: str = "") -> bytes:
    entry = {"blog": {**ENTRY, "generation": number}}
    return endpointlog.change(f"1-{number}", {"command": f"c{number}"}, entry, f"route r\tline {number}\n", behind=behind)


WHOLE = endpointlog.begun("1-0").encode()
LOG = WHOLE + b"".join(map(change, range(1, 5)))
#: How long the log is with each change.
ENDS = [len(WHOLE) + sum(len(change(n)) for n in range(1, last + 1)) for last in range(5)]


def read(path: Path, data: bytes) -> endpointlog.Log:
    path.write_bytes(data)
    return endpointlog.read(path, "1-0")


def test_what_was_written_is_read(tmp_path: Path) -> None:
    log = read(tmp_path / "log", LOG)
    assert log.is_whole and (log.size, log.version, log.last) == (len(LOG), "1-4", {"command": "c4"})
    assert Entries(log.apps)["blog"].generation == 4
    assert read(tmp_path / "log", WHOLE) == endpointlog.Log(len(WHOLE), "1-0")


def test_one_that_was_cut_anywhere_holds_the_changes_that_are_whole(tmp_path: Path) -> None:
    for at in range(len(WHOLE), len(LOG)):
        log = read(tmp_path / "log", LOG[:at])
        last = max(n for n, end in enumerate(ENDS) if end <= at)
        assert log.is_whole and (log.size, log.version) == (ENDS[last], f"1-{last}"), at


@given(at=st.integers(len(WHOLE), len(LOG) - 1), byte=st.binary(min_size=1, max_size=3))
def test_one_that_the_disk_garbled_is_never_taken_for_another(tmp_path_factory: pytest.TempPathFactory, at: int, byte: bytes) -> None:
    data = LOG[:at] + byte + LOG[at + len(byte) :]
    log = read(tmp_path_factory.mktemp("log") / "log", data)
    if data == LOG:
        assert log.is_whole
        return
    at = next((n for n in range(at, len(LOG)) if data[n : n + 1] != LOG[n : n + 1]), len(LOG))
    before = max(n for n, end in enumerate(ENDS) if end <= at)
    assert log.version == f"1-{before}", "what lies before the damage is read, nothing behind it"
    if ENDS[before] + len(change(before + 1)) < len(LOG) and at < ENDS[-2] - len(byte):
        assert not log.is_whole, "a change that was acknowledged is lost, and that is known"


@pytest.mark.parametrize("data", [None, b"", b"of 2-0\n", b"\0" * 100])
def test_one_that_is_lost_or_of_another_snapshot_is_known(tmp_path: Path, data: bytes | None) -> None:
    path = tmp_path / "log"
    if data is not None:
        path.write_bytes(data)
    assert endpointlog.read(path, "1-0") == endpointlog.Log(0, "1-0", is_whole=False)


def test_what_is_appended_can_be_cut_off_again(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(LOG)
    endpointlog.append(path, path.stat().st_size, change(5))
    assert endpointlog.read(path, "1-0").version == "1-5"
    endpointlog.cut(path, len(LOG))
    assert path.read_bytes() == LOG
    endpointlog.cut(path, len(LOG) + 100)
    assert path.read_bytes() == LOG, "a shorter one, of a root that was restored, is not made longer"


def nginx_reads(data: bytes) -> str:
    """The version that `templates/live/taking.lua` makes of a log: it counts a change from the end of the one before."""
    version, start = "1-0", len(WHOLE)
    for found in re.finditer(rb"^end (\S+) (\d+)\n", data, re.MULTILINE):
        if zlib.crc32(data[start : found.start(2)]) != int(found[2]):
            break
        version, start = found[1].decode(), found.end()
    return version


def test_a_change_is_unfinished_until_it_is_done(tmp_path: Path) -> None:
    path = tmp_path / "log"
    assert read(path, WHOLE).is_done
    log = read(path, WHOLE + change(1))
    assert not log.is_done and (log.begins, log.size) == (len(WHOLE), ENDS[1])
    endpointlog.append(path, log.size, endpointlog.done("1-1"))
    log = endpointlog.read(path, "1-0")
    assert log.is_done and (log.size, log.version, log.last) == (path.stat().st_size, "1-1", {"command": "c1"})
    before = log.size
    endpointlog.append(path, log.size, change(2, behind="1-1"))
    log = endpointlog.read(path, "1-0")
    assert not log.is_done and log.is_whole and (log.begins, log.version) == (before, "1-2")
    assert nginx_reads(path.read_bytes()) == "1-2"
    endpointlog.cut(path, log.begins)
    assert endpointlog.read(path, "1-0").is_done, "what is put back leaves the one before as it was"


def test_what_says_that_a_change_is_done_counts_behind_that_change_alone(tmp_path: Path) -> None:
    for odd in (endpointlog.done("1-2"), b"done 1-1", b"done \n"):
        log = read(tmp_path / "log", WHOLE + change(1) + odd)
        assert not log.is_done and log.is_whole and log.size == ENDS[1]
    other = WHOLE + change(1) + endpointlog.done("1-3") + change(2, behind="1-1")
    assert not read(tmp_path / "log", other).is_whole, "the next change says what is behind it"


@settings(deadline=None)  # each of these waits for the disk
@given(st.lists(st.tuples(st.sampled_from(["change", "done", "cut", "half"]), st.integers(0, 5)), max_size=12))
def test_what_is_known_of_a_log_is_what_one_finds_who_knows_nothing(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    path = tmp_path_factory.mktemp("log") / "log"
    path.write_bytes(WHOLE)
    for number, (what, other) in enumerate(steps):
        log = endpointlog.read(path, "1-0")
        if what == "change":
            endpointlog.append(path, log.size, change(number, behind=log.version if log.last and log.is_done else ""))
        elif what == "done" and log.last and not log.is_done:
            endpointlog.append(path, log.size, endpointlog.done(log.version))
        elif what == "cut":
            endpointlog.cut(path, log.begins or log.size)
        elif what == "half":
            path.write_bytes(path.read_bytes()[: log.size] + change(100 + other)[:40])
        log = endpointlog.read(path, "1-0")
        endpointlog._read.clear()
        assert endpointlog.read(path, "1-0") == log
        assert log.is_whole and nginx_reads(path.read_bytes()) == log.version


def test_nginx_is_told_when_the_change_is_written_and_before_the_disk_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, order = tmp_path / "log", list[str]()
    path.write_bytes(WHOLE)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (order.append("disk"), fsync(fd))[1])

    def told() -> None:
        order.append(endpointlog.read(path, "1-0").version)

    endpointlog.append(path, len(WHOLE), change(1), told)
    assert order == ["1-1", "disk"]


def test_entries_are_what_was_read_and_what_was_changed() -> None:
    one = Entry("s", "v", 3, ("a.com",), (80,), routes=(("router_a.web", "line"),))
    entries = Entries({"a": plain(one), "b": {"state": "t", "vhost": None, "generation": 1}})
    assert entries["a"] == one and entries["b"].domains == () and sorted(entries) == ["a", "b"]
    changed = entries.changed({"a": None, "c": one})
    assert sorted(changed) == ["b", "c"] and sorted(entries) == ["a", "b"] and changed["c"] == one
    for wrong in ({"state": "s"}, {"state": "s", "vhost": None, "generation": 1, "more": 1}):
        with pytest.raises(ValueError, match="app a"):
            Entries({"a": wrong})


def test_whose_a_domain_is_follows_the_entries() -> None:
    one, two = {"state": "s", "vhost": None, "generation": 1, "domains": ["a.com"]}, {"state": "t", "vhost": None, "generation": 1}
    entries = Entries({"a": one, "b": two})
    owners = entries.owners
    owners["other.com"] = "b"
    assert entries.owners == {"a.com": "a"}, "what was given is the asker's own"
    assert entries.overlaid({"a": {**one, "generation": 2}}).owners == {"a.com": "a"}
    assert entries.overlaid({"b": {**two, "domains": ["b.com"]}}).owners == {"a.com": "a", "b.com": "b"}
    assert entries.changed({"a": None}).owners == {}
    assert entries.changed({"c": Entry("s", None, 1, ("c.com",))}).owners == {"a.com": "a", "c.com": "c"}
    assert entries.owners == {"a.com": "a"}
