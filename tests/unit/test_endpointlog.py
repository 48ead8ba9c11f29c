"""What is read of a log: whole changes alone, whatever a crash or the disk made of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nginx_router import endpointlog
from nginx_router.entries import Entries, plain
from nginx_router.model import Entry

ENTRY = {"state": "s", "vhost": None, "generation": 1, "inline": "end x 1\n"}


def change(number: int) -> bytes:
    return endpointlog.change(
        f"1-{number}", {"command": f"c{number}"}, {"blog": {**ENTRY, "generation": number}}, f"route r\tline {number}\n"
    )


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


def test_entries_are_what_was_read_and_what_was_changed() -> None:
    one = Entry("s", "v", 3, ("a.com",), (80,), routes=(("router_a.web", "line"),))
    entries = Entries({"a": plain(one), "b": {"state": "t", "vhost": None, "generation": 1}})
    assert entries["a"] == one and entries["b"].domains == () and sorted(entries) == ["a", "b"]
    changed = entries.changed({"a": None, "c": one})
    assert sorted(changed) == ["b", "c"] and sorted(entries) == ["a", "b"] and changed["c"] == one
    for wrong in ({"state": "s"}, {"state": "s", "vhost": None, "generation": 1, "more": 1}):
        with pytest.raises(ValueError, match="app a"):
            Entries({"a": wrong})
