"""Lines of access logs, and counting without keeping."""

from __future__ import annotations

import random
import time
import tracemalloc
from pathlib import Path

import pytest

from nginx_router.accesslog import Line, Log, parse, paths_in
from nginx_router.top import MOST_ENDPOINTS, OTHERS, Sample, Spread

MAIN = '127.0.0.1 - {user} [24/Nov/2026:10:00:00 +0000] "GET /a HTTP/1.1" 200 5 "-" "{agent}" blog.test {upstream} 0.012 {id}'
ID = "0123456789abcdef0123456789abcdef"


def main(upstream: str, *, user: str = "-", agent: str = "curl/8") -> str:
    return MAIN.format(upstream=upstream, user=user, agent=agent, id=ID)


@pytest.mark.parametrize(
    ("upstream", "tried"),
    [
        ("127.0.0.1:1 0.011", (("127.0.0.1:1", 0.011),)),
        ("127.0.0.1:1, 127.0.0.1:2 0.001, 0.010", (("127.0.0.1:1", 0.001), ("127.0.0.1:2", 0.010))),
        ("127.0.0.1:1 : unix:/run/a.sock 0.001 : 0.002", (("127.0.0.1:1", 0.001), ("unix:/run/a.sock", 0.002))),
        ("[::1]:1 -", (("[::1]:1", None),)),
        ("- -", ()),
    ],
)
def test_a_line_says_which_endpoints_were_asked(upstream: str, tried: object) -> None:
    assert parse(main(upstream)) == Line("blog.test", "GET /a HTTP/1.1", 200, 0.012, tried, "curl/8", ID)  # type: ignore[arg-type]


def test_what_clients_send_does_not_break_a_line() -> None:
    # nginx writes quotes and control characters as \xNN
    found = parse(main("127.0.0.1:1 0.001", user="a [b] - c", agent='\\x22 200 5 \\x22 [x] "'.replace('"', "\\x22")))
    assert found is not None and (found.status, found.host) == (200, "blog.test")


@pytest.mark.parametrize("text", ["", "-", "{}", "{", "[]", '{"status": 200}', "a b c", main("127.0.0.1:1"), main("-"), '"' * 6, "{1"])
def test_a_line_in_another_format_is_none(text: str) -> None:
    assert parse(text) is None


def test_a_json_line_with_nginxs_names() -> None:
    text = '{"status": "502", "request_time": 0.5, "host": "a.b", "upstream_addr": "10.0.0.1:1, 10.0.0.2:1"'
    text += ', "upstream_response_time": "0.1, 0.4"}'
    assert parse(text) == Line("a.b", "", 502, 0.5, (("10.0.0.1:1", 0.1), ("10.0.0.2:1", 0.4)))


def test_the_logs_of_a_vhost() -> None:
    vhost = """server {
        access_log /r/log/a-access.log router_main;
    }
    server {
        access_log "/r/l g/b-access.log" router_main;
        access_log off;
    }
    """
    assert paths_in(vhost) == ("/r/log/a-access.log", "/r/l g/b-access.log"), "a root may have a blank in its name"


def test_quantiles_are_exact_for_small_times_and_near_for_large_ones() -> None:
    times = [random.Random(1).lognormvariate(-4, 1.5) for _ in range(20_000)]
    spread = Spread()
    for seconds in times:
        spread.add(seconds)
    ordered = sorted(times)
    for share in (0.5, 0.9, 0.99):
        assert spread.quantile(share) == pytest.approx(ordered[int(share * len(times)) - 1], rel=0.06, abs=0.001)
    assert Spread().quantile(0.5) is None


def test_memory_does_not_grow_with_requests() -> None:
    sample = Sample()
    generator = random.Random(2)
    lines = [
        Line("blog.test", "", 200, generator.lognormvariate(-3, 3), ((f"10.0.{n % 200}.1:80", generator.lognormvariate(-3, 3)),))
        for n in range(20_000)
    ]
    for line in lines:
        sample.count("blog", line)
    tracemalloc.start()
    try:
        for line in lines * 4:
            sample.count("blog", line)
        grown, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert grown < 300_000
    assert len(sample.endpoints["blog"]) == MOST_ENDPOINTS + 1 and OTHERS in sample.endpoints["blog"]
    assert sample.apps["blog"].requests == 100_000


def test_a_log_that_is_cut_short_is_read_from_its_beginning(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("old\n")
    log = Log(file)
    with file.open("a") as more:
        more.write("one\ntw")
    assert list(log.lines()) == ["one"]
    with file.open("a") as more:
        more.write("o\n")
    assert list(log.lines()) == ["two"]
    file.write_text("3\n")
    assert list(log.lines()) == ["3"]
    log.close()


def test_a_quiet_log_holds_no_file_open_and_what_it_gained_before_a_rotation_is_found(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text("")
    log = Log(file)
    with file.open("a") as more:
        more.write("one\n")
    assert list(log.lines()) == ["one"]
    for _ in range(12):
        assert list(log.lines()) == []
    assert not log._now.is_open
    with file.open("a") as more:
        more.write("two\n")
    file.rename(tmp_path / "a.log.1")
    file.write_text("three\n")
    assert list(log.lines()) == ["two", "three"]
    log.close()


def test_a_log_that_is_not_there_yet_is_read_once(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    log = Log(file)
    found = []
    for number in range(4):
        with file.open("a") as more:
            more.write(f"{number}\n")
        found += log.lines()
    assert found == ["0", "1", "2", "3"]
    log.close()


def test_a_worker_that_reopens_late_is_heard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, moved = tmp_path / "a.log", tmp_path / "a.log.1"
    file.write_text("")
    log = Log(file)
    with file.open("a") as late:
        file.rename(moved)
        file.write_text("new\n")
        for number in range(3):
            late.write(f"late {number}\n")
            late.flush()
            assert f"late {number}" in list(log.lines())
        monkeypatch.setattr(log, "_until", time.monotonic())
        assert list(log.lines()) == []
        assert log._before is None, "not for ever"
    log.close()


def test_a_hundred_thousand_lines_are_read_in_seconds(tmp_path: Path) -> None:
    file = tmp_path / "a.log"
    file.write_text(f"{main('127.0.0.1:1 0.011')}\n" * 100_000)
    log, sample = Log(file, whole=True), Sample()
    began = time.monotonic()
    for text in log.lines():
        line = parse(text)
        assert line is not None
        sample.count("blog", line)
    assert sample.apps["blog"].requests == 100_000
    assert time.monotonic() - began < 10
    log.close()
