"""The clients of a selftest: six kinds, each of which counts what it asked and what it did not get.

    fresh       a connection for each request
    repeating   keeps its connection, and repeats once a request whose connection was closed before the first byte of an
                answer, as browsers and most libraries do (RFC 9112, 9.3.1)
    unrepeating keeps its connection, does not look whether it is still open, and repeats nothing
    websocket   a message every 100 ms, which must come back as it was
    slow        uploads and downloads of seconds, of which the other end knows the checksum
    events      server-sent events, one every 100 ms, none of which may be missing

Some websockets, streams and slow bodies last as long as the run, on apps that are not deployed: whatever else changes must
not touch them.  Those on apps that are deployed last a second: a deploy waits for them before it names what may be
stopped.  One app's websockets never end by themselves: its deploys come to their deadline, and its instances tell their
clients to come again (close frame 1001) when they are stopped.  Any other end of a websocket or a stream is a cut.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

from .instances import PIECE, TICK, piece_of
from .wire import CLOSE, DONE, GOING_AWAY, TEXT, Broken, Closed, Head, accept, frame, new_key, read_body, read_frame, read_head

KINDS = ("fresh", "repeating", "unrepeating", "websocket", "slow", "events")
#: Seconds between two requests of a client, in the mean.
PAUSE = 0.04
#: Seconds within which an answer must have come.
PATIENCE = 15.0
#: How many different words are kept on what went wrong.
_WORDS = 3
_WRONG = (Broken, OSError, TimeoutError, ValueError)


@dataclass
class Tally:
    """What one kind of client saw."""

    requests: int = 0
    messages: int = 0  # of websockets and events
    failures: int = 0  # no answer, an error, or one that is not what it has to be
    stale: int = 0  # by an instance that was said to be retired before
    wrong_app: int = 0
    cut: int = 0  # websockets, streams and bodies that ended in the middle
    ended: int = 0  # websockets and streams whose instance was stopped at the deadline of a drain, and said so
    reconnects: int = 0  # a kept connection was closed by the server between two requests
    words: dict[str, list[str]] = field(default_factory=dict)

    def note(self, what: str, words: str) -> None:
        """Count one of `what`, and keep the first words on it."""
        setattr(self, what, getattr(self, what) + 1)
        kept = self.words.setdefault(what, [])
        if words not in kept and len(kept) < _WORDS:
            kept.append(words)


class Ledger:
    """Which instances were said to be retired, and when."""

    def __init__(self) -> None:
        self._retired: dict[str, tuple[float, bool]] = {}

    def retire(self, name: str, at: float, *, forced: bool) -> None:
        """From `at` nothing goes to `name`; `forced`: a drain came to its deadline, and what was under way may still."""
        self._retired.setdefault(name, (at, forced))

    def is_stale(self, name: str, began: float, asked: float) -> bool:
        """Whether a request that began then, and was sent in full at `asked`, must not have come to `name`."""
        at, forced = self._retired.get(name, (float("inf"), False))
        return (began if forced else asked) > at


@dataclass
class App:
    """An app that clients ask for."""

    name: str
    domains: list[str]  # that are served, its own first; operations change the others
    lasting: bool = False  # is never deployed: its websockets, streams and slow bodies last
    held: bool = False  # its websockets never end by themselves
    streams: bool = False  # has websockets, streams and slow bodies of a second


class Clients:
    """All clients of one nginx, until `over`."""

    def __init__(self, port: int, apps: Sequence[App], ledger: Ledger, chance: random.Random) -> None:
        self.port, self.apps, self.ledger, self.chance = port, apps, ledger, chance
        self.over = asyncio.Event()
        self.tallies: dict[str, Tally] = {kind: Tally() for kind in KINDS}

    def all(self) -> list[Coroutine[Any, Any, None]]:
        """What is to run at the same time."""
        found = [each() for each in (self.fresh, self.repeating, self.unrepeating) for _ in range(4)]
        for app in self.apps:
            lasts = app.lasting or app.held
            if lasts or app.streams:
                found.append(self.websocket(app, None if lasts else 8))
            if app.lasting or app.streams:
                found.append(self.events(app, None if lasts else 8))
                # a reload's old workers keep a half-received request, and every deploy waits for those
                found.append(self.slow(app, *((20, 40) if lasts else (8, 8))))
        return found

    async def fresh(self) -> None:
        """A connection for each request."""
        tally = self.tallies["fresh"]
        while await self._goes_on(PAUSE):
            app = self.chance.choice(self.apps)
            connection = Connection(self.port)
            try:
                await self._get(tally, connection, app, "Connection: close\r\n")
            except Closed:
                tally.note("failures", f"{app.name}: closed without an answer")
            except _WRONG as why:
                tally.note("failures", f"{app.name}: {_said(why)}")
            finally:
                connection.close()

    async def repeating(self) -> None:
        """A kept connection; a request is repeated once where it was closed before the first byte of an answer."""
        tally = self.tallies["repeating"]
        connection = Connection(self.port)
        while await self._goes_on(PAUSE):
            app = self.chance.choice(self.apps)
            try:
                try:
                    await self._get(tally, connection, app)
                except Closed:
                    if not connection.is_used:
                        raise
                    tally.reconnects += 1
                    connection.close()
                    tally.requests -= 1
                    await self._get(tally, connection, app)
            except Closed:
                tally.note("failures", f"{app.name}: a new connection was closed without an answer")
                connection.close()
            except _WRONG as why:
                tally.note("failures", f"{app.name}: {_said(why)}")
                connection.close()
        connection.close()

    async def unrepeating(self) -> None:
        """A kept connection, and nothing is repeated: each close that the server did not announce is a failure."""
        tally = self.tallies["unrepeating"]
        connection = Connection(self.port)
        while await self._goes_on(PAUSE):
            app = self.chance.choice(self.apps)
            try:
                await self._get(tally, connection, app)
            except Closed:
                tally.note("failures", f"{app.name}: its connection was closed between two requests")
                tally.reconnects += connection.is_used
                connection.close()
            except _WRONG as why:
                tally.note("failures", f"{app.name}: {_said(why)}")
                connection.close()
        connection.close()

    async def websocket(self, app: App, messages: int | None) -> None:
        """Sessions of so many messages; None: as long as nobody ends them."""
        tally = self.tallies["websocket"]
        while await self._goes_on(TICK):
            connection = Connection(self.port)
            key = new_key()
            headers = f"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n"
            tally.requests += 1
            try:
                async with asyncio.timeout(PATIENCE):
                    head, began, asked = await connection.ask(app.domains[0], "/socket", headers)
                if not self._judge(tally, app, head, began, asked, status=101):
                    continue
                if head.headers.get("sec-websocket-accept") != accept(key):
                    tally.note("failures", f"{app.name}: the answer to another key")
                    continue
            except Closed:
                tally.note("failures", f"{app.name}: no handshake")
                continue
            except _WRONG as why:
                tally.note("failures", f"{app.name}: {_said(why)}")
                continue
            else:
                await self._session(tally, app, head, connection, messages)
            finally:
                connection.close()

    async def events(self, app: App, count: int | None) -> None:
        """Streams of so many events; None: as long as nobody ends them."""
        tally = self.tallies["events"]
        while await self._goes_on(TICK):
            connection = Connection(self.port)
            tally.requests += 1
            is_begun = False
            try:
                async with asyncio.timeout(PATIENCE):
                    head, began, asked = await connection.ask(app.domains[0], "/events" + (f"?count={count}" if count else ""))
                if self._judge(tally, app, head, began, asked):
                    is_begun = True
                    await self._listen(tally, app, head, connection, count)
            except Closed:
                tally.note("failures", f"{app.name}: closed without an answer")
            except _WRONG as why:
                tally.note("cut" if is_begun else "failures", f"{app.name}: {_said(why)}")
            finally:
                connection.close()

    async def slow(self, app: App, up: int, down: int) -> None:
        """Uploads and downloads in turn, of so many pieces each, one every 100 ms."""
        tally = self.tallies["slow"]
        is_upload = self.chance.random() < 0.5
        while await self._goes_on(TICK):
            connection = Connection(self.port)
            is_upload = not is_upload
            name, move, pieces = ("an upload", self._upload, up) if is_upload else ("a download", self._download, down)
            tally.requests += 1
            try:
                async with asyncio.timeout(PATIENCE + 2 * pieces * TICK):
                    await move(tally, app, connection, pieces)
            except Closed:
                tally.note("cut", f"{app.name}: {name} was closed without an answer")
            except Broken as why:
                tally.note("cut", f"{app.name}: {name}: {_said(why)}")
            except _WRONG as why:
                tally.note("failures", f"{app.name}: {name}: {_said(why)}")
            finally:
                connection.close()

    async def ask(self, domain: str) -> str:
        """The app that answers to `domain` over a connection of its own; empty: none."""
        connection = Connection(self.port)
        try:
            async with asyncio.timeout(PATIENCE):
                head, _, _ = await connection.ask(domain, "/")
                return head.headers.get("x-app", "") if head.status == 200 else ""
        except (Closed, *_WRONG):
            return ""
        finally:
            connection.close()

    async def _goes_on(self, pause: float) -> bool:
        """Wait a while, by chance longer or shorter; whether the run goes on."""
        await asyncio.sleep(pause * self.chance.uniform(0.5, 1.5))
        return not self.over.is_set()

    async def _get(self, tally: Tally, connection: Connection, app: App, headers: str = "") -> None:
        tally.requests += 1
        path = f"/?ms={self.chance.randint(1, 30)}" if self.chance.random() < 0.25 else "/"
        async with asyncio.timeout(PATIENCE):
            head, began, asked = await connection.ask(self.chance.choice(app.domains), path, headers)
            body = b"".join([piece async for piece in read_body(connection.reader, head)])
        connection.is_used = True
        if self._judge(tally, app, head, began, asked):
            wanted = f"{app.name} {head.headers.get('x-instance')}\n".encode()
            if body != wanted:
                tally.note("failures", f"{app.name}: the body {body[:40]!r}")
        if head.is_last:
            connection.close()  # as the server announced

    def _judge(self, tally: Tally, app: App, head: Head, began: float, asked: float, status: int = 200) -> bool:
        """Count what is wrong with an answer; whether nothing is."""
        who, instance = head.headers.get("x-app", ""), head.headers.get("x-instance", "")
        if head.status != status:
            tally.note("failures", f"{app.name}: status {head.status}")
        elif who != app.name:
            tally.note("wrong_app", f"{app.name}: answered by {who or 'nobody'}")
        elif self.ledger.is_stale(instance, began, asked):
            tally.note("stale", f"{app.name}: answered by {instance}, which was retired")
        else:
            return True
        return False

    async def _session(self, tally: Tally, app: App, head: Head, connection: Connection, messages: int | None) -> None:
        number = 0
        try:
            async with asyncio.timeout(None) as limit:
                while number != messages and not self.over.is_set():
                    number += 1
                    text = f"{app.name} {number} {self.chance.random()}".encode()
                    limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
                    await connection.send(frame(TEXT, text, masked=True))
                    kind, payload = await read_frame(connection.reader, masked=False)
                    if kind == CLOSE and payload[:2] == GOING_AWAY.to_bytes(2):
                        tally.ended += 1
                        await connection.send(frame(CLOSE, payload, masked=True))
                        return
                    if kind == CLOSE:
                        raise Broken(f"close frame {int.from_bytes(payload[:2])}")
                    if (kind, payload) != (TEXT, text):
                        tally.note("failures", f"{app.name}: another message came back from {head.headers.get('x-instance')}")
                        return
                    tally.messages += 1
                    await asyncio.sleep(TICK)
                limit.reschedule(asyncio.get_running_loop().time() + PATIENCE)
                await connection.send(frame(CLOSE, DONE.to_bytes(2), masked=True))
                while (await read_frame(connection.reader, masked=False))[0] != CLOSE:
                    pass
        except _WRONG as why:
            tally.note("cut", f"{app.name}: message {number} to {head.headers.get('x-instance')}: {_said(why)}")

    async def _listen(self, tally: Tally, app: App, head: Head, connection: Connection, count: int | None) -> None:
        text, number = "", 0
        pieces = aiter(read_body(connection.reader, head))
        while not self.over.is_set():
            try:
                async with asyncio.timeout(PATIENCE):
                    text += (await anext(pieces)).decode()
            except StopAsyncIteration:
                if count and number != count:
                    tally.note("failures", f"{app.name}: {number} events of {count}")
                return
            *whole, text = text.split("\n\n")
            for each in whole:
                if each.startswith("event: end"):
                    tally.ended += number != count
                    count = number
                    continue
                number += 1
                tally.messages += 1
                if each != f"id: {number}\ndata: {head.headers.get('x-instance')}":
                    tally.note("failures", f"{app.name}: {each!r} instead of event {number}")
                    return

    async def _upload(self, tally: Tally, app: App, connection: Connection, pieces: int) -> None:
        began = asked = asyncio.get_running_loop().time()
        digest = hashlib.sha256()
        await connection.send(f"POST /upload HTTP/1.1\r\nHost: {app.domains[0]}\r\nContent-Length: {PIECE * pieces}\r\n\r\n".encode())
        for number in range(pieces):
            digest.update(piece_of(number))
            await connection.send(piece_of(number))
            asked = asyncio.get_running_loop().time()
            if self.over.is_set():
                return
            await asyncio.sleep(TICK)
        head = await read_head(connection.reader)
        body = b"".join([piece async for piece in read_body(connection.reader, head)])
        if self._judge(tally, app, head, began, asked) and body != digest.hexdigest().encode():
            tally.note("failures", f"{app.name}: an upload came as something else")

    async def _download(self, tally: Tally, app: App, connection: Connection, pieces: int) -> None:
        head, began, asked = await connection.ask(app.domains[0], f"/download?pieces={pieces}")
        found, wanted = hashlib.sha256(), hashlib.sha256()
        async for piece in read_body(connection.reader, head):
            found.update(piece)
            if self.over.is_set():
                return
        for number in range(pieces):
            wanted.update(piece_of(number))
        if self._judge(tally, app, head, began, asked) and found.digest() != wanted.digest():
            tally.note("failures", f"{app.name}: a download came as something else")


class Connection:
    """One client connection, made when it is used."""

    reader: asyncio.StreamReader

    def __init__(self, port: int) -> None:
        self._port = port
        self._writer: asyncio.StreamWriter | None = None
        self.is_used = False  # an answer came over it

    async def ask(self, host: str, path: str, headers: str = "") -> tuple[Head, float, float]:
        """Send a GET; the head of its answer, when it began and when it was sent.

        Raises:
            Closed: the connection was closed before the first byte of an answer.
            Broken: it was closed in the middle of the head.
        """
        now = asyncio.get_running_loop().time
        began = now()
        try:
            await self.send(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{headers}\r\n".encode())
        except ConnectionError:
            raise Closed from None
        asked = now()
        return await read_head(self.reader), began, asked

    async def send(self, data: bytes) -> None:
        """Send bytes, over a new connection if there is none."""
        if self._writer is None:
            self.reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        self._writer.write(data)
        await self._writer.drain()

    def close(self) -> None:
        """The next request has a connection of its own."""
        if self._writer is not None:
            self._writer.close()
        self._writer, self.is_used = None, False


def _said(why: BaseException) -> str:
    return str(why) or type(why).__name__
