"""The selftest counts: each kind of client against servers that cut, garble and mistake, and against one that does not."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import importlib
import io
import os
import pty
import random
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from nginx_router.controller import Router
from nginx_router.output import Output
from nginx_router.settings import Paths

#: What a server does with one request.
Answer = Callable[[Any, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@pytest.fixture(scope="module")
def parts() -> dict[str, Any]:
    """The modules of the plugin."""
    plugins = Router(Paths(Path("/nowhere"))).plugins
    plugins.function(plugins.commands()["selftest"])
    return {name: importlib.import_module(f"nginx_router_plugins.selftest.{name}") for name in ("clients", "operations", "trial", "wire")}


@pytest.fixture
def see(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """What a client of a kind counts against a server that answers by `answer`, until it has asked or failed some times."""
    clients, wire = parts["clients"], parts["wire"]
    monkeypatch.setattr(clients, "TICK", 0.005)
    monkeypatch.setattr(clients, "PAUSE", 0.005)
    monkeypatch.setattr(clients, "PATIENCE", 0.3)

    async def run(kind: str, answer: Answer, retired: str, arguments: tuple[Any, ...]) -> Any:
        open_: list[asyncio.StreamWriter] = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            open_.append(writer)
            with contextlib.suppress(wire.Closed, wire.Broken, OSError):
                while not writer.is_closing():
                    await answer(await wire.read_head(reader), reader, writer)
                    await writer.drain()
            writer.close()

        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        ledger = clients.Ledger()
        if retired:
            ledger.retire(retired, asyncio.get_running_loop().time(), forced=False)
        app = clients.App("blog", ["blog.test"])
        found = clients.Clients(server.sockets[0].getsockname()[1], [app], ledger, random.Random(1))
        asking = asyncio.ensure_future(getattr(found, kind)(*((app, *arguments) if arguments else ())))
        while found.tallies[kind].requests < 7 and sum(wrong(found.tallies[kind], most=9).values()) < 3:
            await asyncio.sleep(0.001)
        found.over.set()
        await asking
        server.close()
        for writer in open_:
            writer.transport.abort()
        await asyncio.sleep(0.02)  # until the last connections have noticed
        return found.tallies[kind]

    return lambda kind, answer, *arguments, retired="": asyncio.run(run(kind, answer, retired, arguments))


def reply(
    body: bytes = b"blog blog-1\n", *, app: str = "blog", name: str = "blog-1", status: str = "200 OK", length: int | None = None
) -> bytes:
    head = f"HTTP/1.1 {status}\r\nX-App: {app}\r\nX-Instance: {name}\r\nContent-Length: {len(body) if length is None else length}\r\n\r\n"
    return head.encode() + body


def always(data: bytes, *, close: bool = False) -> Answer:
    async def answer(head: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        if close:
            writer.close()

    return answer


def wrong(tally: Any, most: int = 1) -> dict[str, int]:
    """What is not zero of what must be, counted up to `most`."""
    counts = {name: getattr(tally, name) for name in ("failures", "stale", "wrong_app", "cut", "ended", "reconnects")}
    return {name: min(count, most) for name, count in counts.items() if count}


PLAIN = ("fresh", "repeating", "unrepeating")


@pytest.mark.parametrize("kind", PLAIN)
def test_good_answers_are_no_failures(see: Callable[..., Any], kind: str) -> None:
    tally = see(kind, always(reply()))
    assert tally.requests > 5 and wrong(tally) == {}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize(
    ("data", "what"),
    [
        (reply(status="502 Bad Gateway"), "failures"),
        (reply(b"something else\n"), "failures"),
        (b"no HTTP\r\n\r\n", "failures"),
        (reply(app="shop"), "wrong_app"),
        (reply(app=""), "wrong_app"),
        (reply(name="blog-0"), "stale"),
    ],
)
def test_wrong_answers_are_counted_as_what_they_are(see: Callable[..., Any], kind: str, data: bytes, what: str) -> None:
    assert wrong(see(kind, always(data), retired="blog-0")) == {what: 1}


@pytest.mark.parametrize("kind", PLAIN)
@pytest.mark.parametrize("data", [reply(length=100), b"HTTP/1.1 200 OK\r\nX-"])
def test_an_answer_that_is_cut_short_is_a_failure_for_whoever_repeats_too(see: Callable[..., Any], kind: str, data: bytes) -> None:
    assert wrong(see(kind, always(data, close=True))) == {"failures": 1}


@pytest.mark.parametrize("kind", PLAIN)
def test_no_answer_on_a_new_connection_is_a_failure(see: Callable[..., Any], kind: str) -> None:
    assert wrong(see(kind, always(b"", close=True))) == {"failures": 1}


@pytest.mark.parametrize("kind", PLAIN)
def test_no_answer_at_all_is_a_failure(see: Callable[..., Any], kind: str) -> None:
    assert wrong(see(kind, always(b""))) == {"failures": 1}


def test_an_idle_connection_that_the_server_closes_is_one_reconnect_and_a_failure_for_whoever_never_repeats(
    see: Callable[..., Any],
) -> None:
    tally = see("repeating", always(reply(), close=True))
    assert wrong(tally) == {"reconnects": 1} and tally.requests > 2
    tally = see("unrepeating", always(reply(), close=True))
    assert tally.failures == tally.reconnects >= 2
    assert wrong(see("fresh", always(reply(), close=True))) == {}


def test_a_close_that_the_server_announced_is_none(see: Callable[..., Any]) -> None:
    announced = reply().replace(b"X-App", b"Connection: close\r\nX-App")
    for kind in PLAIN:
        assert wrong(see(kind, always(announced, close=True))) == {}


def upgrading(parts: dict[str, Any], what: Callable[[int, bytes, asyncio.StreamWriter], None], key: str = "") -> Answer:
    """A websocket server that does `what` with each message."""
    wire = parts["wire"]

    async def answer(head: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted = key or wire.accept(head.headers["sec-websocket-key"])
        writer.write(f"HTTP/1.1 101 OK\r\nX-App: blog\r\nX-Instance: blog-1\r\nSec-WebSocket-Accept: {accepted}\r\n\r\n".encode())
        while True:
            what(*await wire.read_frame(reader, masked=True), writer)

    return answer


def test_a_websocket_whose_messages_come_back(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    tally = see("websocket", upgrading(parts, lambda kind, data, out: out.write(parts["wire"].frame(kind, data, masked=False))), 3)
    assert tally.requests > 2 and tally.messages >= 3 * (tally.requests - 1) and wrong(tally) == {}


def test_a_websocket_that_is_closed_without_a_word_is_cut(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: out.close()), 3)) == {"cut": 1}
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: out.transport.abort()), None)) == {"cut": 1}


@pytest.mark.parametrize(("code", "what"), [(1001, "ended"), (1011, "cut")])
def test_a_websocket_whose_instance_goes_away_has_ended(see: Callable[..., Any], parts: dict[str, Any], code: int, what: str) -> None:
    farewell = parts["wire"].frame(8, code.to_bytes(2), masked=False)
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: out.write(farewell)), None)) == {what: 1}


def test_another_message_is_a_failure_and_silence_a_cut(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    other = parts["wire"].frame(1, b"other", masked=False)
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: out.write(other)), 3)) == {"failures": 1}
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: None), 3)) == {"cut": 1}


def test_a_handshake_that_is_none_is_a_failure(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    assert wrong(see("websocket", upgrading(parts, lambda kind, data, out: None, key="other"), 3)) == {"failures": 1}
    assert wrong(see("websocket", always(reply()), 3)) == {"failures": 1}
    assert wrong(see("websocket", always(b"", close=True), 3)) == {"failures": 1}


def events(parts: dict[str, Any], *numbers: int, end: bool = True, whole: bool = True) -> bytes:
    chunk = parts["wire"].chunk
    head = b"HTTP/1.1 200 OK\r\nX-App: blog\r\nX-Instance: blog-1\r\nTransfer-Encoding: chunked\r\n\r\n"
    told = b"".join(chunk(f"id: {n}\ndata: blog-1\n\n".encode()) for n in numbers)
    return head + told + (chunk(b"event: end\ndata: \n\n") if end else b"") + (chunk(b"") if whole else b"")


def test_events_are_counted_and_none_may_be_missing(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    tally = see("events", always(events(parts, 1, 2, 3)), 3)
    assert tally.messages > 3 * (tally.requests - 2) > 3 and wrong(tally) == {}
    assert wrong(see("events", always(events(parts, 1, 3)), 3)) == {"failures": 1}
    assert wrong(see("events", always(events(parts, 1, end=False)), 3)) == {"failures": 1}
    assert wrong(see("events", always(events(parts, 1, 2)), None)) == {"ended": 1}
    assert wrong(see("events", always(events(parts, 1, end=False, whole=False), close=True), 3)) == {"cut": 1}
    assert wrong(see("events", always(reply(status="503 No"), close=True), 3)) == {"failures": 1}


def transferring(parts: dict[str, Any], *, cut: bool = False, garble: bool = False) -> Answer:
    clients, wire = parts["clients"], parts["wire"]

    async def answer(head: Any, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if head.words[0] == "POST":
            digest = hashlib.sha256(b"x" if garble else b"")
            async for piece in wire.read_body(reader, head):
                digest.update(piece)
                if cut:
                    raise wire.Closed
            writer.write(reply(digest.hexdigest().encode()))
        else:
            body = clients.piece_of(0) + clients.piece_of(2 if garble else 1)
            writer.write(reply(body[:-1] if cut else body, length=len(body)))
            if cut:
                writer.close()

    return answer


def test_slow_bodies_come_whole_or_are_counted(see: Callable[..., Any], parts: dict[str, Any]) -> None:
    tally = see("slow", transferring(parts), 2, 2)
    assert tally.requests > 3 and wrong(tally) == {}
    assert wrong(see("slow", transferring(parts, garble=True), 2, 2)) == {"failures": 1}
    assert set(wrong(see("slow", transferring(parts, cut=True), 2, 2))) <= {"cut", "failures"}
    assert wrong(see("slow", always(reply(status="502 No"), close=True), 2, 2))["failures"] == 1


def test_a_request_that_began_before_its_instance_was_retired(parts: dict[str, Any]) -> None:
    ledger = parts["clients"].Ledger()
    ledger.retire("drained", 10.0, forced=False)
    ledger.retire("forced", 10.0, forced=True)
    assert not ledger.is_stale("drained", 9.0, 9.5) and not ledger.is_stale("other", 11.0, 11.0)
    assert ledger.is_stale("drained", 9.0, 10.5), "it was sent in full when nothing went there any more"
    assert not ledger.is_stale("forced", 9.0, 10.5) and ledger.is_stale("forced", 10.1, 10.2)


def test_a_seed_is_a_plan_and_every_kind_has_its_share(parts: dict[str, Any]) -> None:
    operations = parts["operations"]
    kinds = tuple(operations.SHARES)
    first = operations.plan(100, kinds, random.Random(7))
    assert first == operations.plan(100, kinds, random.Random(7)) != operations.plan(100, kinds, random.Random(8))
    assert {kind: first.count(kind) for kind in kinds} == operations.SHARES
    assert operations.plan(200, ("deploy",), random.Random(7)) == ["deploy"] * 200
    assert len(operations.plan(7, kinds, random.Random(7))) == 7


def result(parts: dict[str, Any], updates: str, **counts: Any) -> Any:
    """A run in which all is well, save what `counts` say."""
    trial, clients = parts["trial"], parts["clients"]
    found = trial.Result(updates, clients={kind: clients.Tally(requests=9) for kind in clients.KINDS}, same_master=True, same_workers=True)
    for name, value in counts.items():
        kind, _, what = name.partition("__")
        if what:
            setattr(found.clients[kind], what, value)
        else:
            setattr(found, name, value)
    return found


def test_a_run_in_which_all_is_well_breaks_no_promise(parts: dict[str, Any]) -> None:
    assert result(parts, "live").broken() == result(parts, "reload").broken() == []
    assert result(parts, "reload", reloads=5, same_workers=False).broken() == []
    assert result(parts, "live", reloads=2, structural=2, same_workers=False).broken() == []
    closed = {"unrepeating__failures": 3, "unrepeating__reconnects": 3}
    assert result(parts, "reload", reloads=3, **closed).broken() == [], "nginx closes idle connections at a reload: reported, not judged"
    assert len(result(parts, "reload", **closed).broken()) == 1, "nothing was reloaded"
    assert len(result(parts, "reload", reloads=3, unrepeating__failures=4, unrepeating__reconnects=3).broken()) == 1


@pytest.mark.parametrize("what", ["failures", "stale", "wrong_app", "cut"])
def test_each_kind_has_its_promises(parts: dict[str, Any], what: str) -> None:
    for kind in parts["clients"].KINDS:
        (said,) = result(parts, "live", **{f"{kind}__{what}": 1}).broken()
        assert said.startswith(f"{kind}: 1 of 9 ")


@pytest.mark.parametrize(
    "counts",
    [
        {"reloads": 3, "structural": 2},
        {"same_workers": False},
        {"same_master": False},
        {"status": 9},
        {"silent": ["blog"]},
        {"fresh__requests": 0},
    ],
)
def test_nginx_has_its_promises(parts: dict[str, Any], counts: dict[str, Any]) -> None:
    assert len(result(parts, "live", **counts).broken()) == 1


def test_what_ended_in_another_way_than_it_had_to_breaks_a_promise(parts: dict[str, Any]) -> None:
    report = parts["operations"].Report(unexpected=["router x: exit 1, not 0: y"], unserved=["a.test was added, and nobody answers"])
    assert result(parts, "live", report=report).broken() == ["router x: exit 1, not 0: y", "a.test was added, and nobody answers"]


@pytest.mark.parametrize("is_terminal", [True, False])
def test_a_bar_is_shown_on_a_terminal_alone(monkeypatch: pytest.MonkeyPatch, is_terminal: bool) -> None:
    monkeypatch.setenv("TERM", "xterm")
    ours, theirs = pty.openpty() if is_terminal else os.pipe()
    with os.fdopen(ours, "rb", buffering=0) as reader, os.fdopen(theirs, "w") as writer:
        with Output(stderr=writer).progress("updates live", 7) as tell:
            tell(3)
        writer.write("over")
        writer.flush()
        said = b""
        while b"over" not in said:
            said += reader.read(65536)
    assert (b"updates live" in said and b"3/7" in said) == is_terminal
    assert is_terminal or said == b"over"


def test_what_did_not_fit_into_the_time_is_said(parts: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    plugin = importlib.import_module("nginx_router_plugins.selftest.plugin")
    monkeypatch.setattr(plugin, "_facts", lambda mode: [])
    for left, ending in ((95, "; ended by --seconds after 5 of 100"), (0, "")):
        router = Router(Paths(Path("/nowhere")))
        with io.StringIO() as said:
            router.out = Output(stdout=said)
            report = parts["operations"].Report(done=Counter({"deploy": 3, "bad": 1, "scale": 1}))
            mode = result(parts, "live", left=left, report=report, seconds=3.2).as_json()
            assert mode["left"] == left and mode["broken"] == []
            plugin._show(router, mode)
            assert said.getvalue().splitlines()[0] == f"updates live: 1 bad, 3 deploy, 1 scale, in 3 s{ending}"


def test_its_table_fits_into_80_columns(parts: dict[str, Any]) -> None:
    plugin = importlib.import_module("nginx_router_plugins.selftest.plugin")
    row = plugin._row(
        "unrepeating",
        {
            **dict.fromkeys(("wrong_app", "stale", "cut", "ended"), 0),
            "requests": 123456,
            "messages": 123456,
            "failures": 1234,
            "reconnects": 1234,
        },
    )
    widths = [max(len(column), len(str(value))) for column, value in zip(plugin.COLUMNS, row, strict=True)]
    assert sum(widths) + 2 * (len(widths) - 1) <= 80
