"""The instances of all apps of a selftest: small servers that say who they are, in one process of their own.

Each listens on a loopback port of its own.  Whoever may open the control socket starts and stops them, a line of JSON a
question: `{"start": APP, "count": N}`, `{"stop": [ADDRESS...], "app": APP, "at_once": true|false}`, `{"hang_up": ...}`,
which ends all connections and no listener, and `{"names": ...}`.  An address may come again, a name never does.

    /              its name, after `ms` milliseconds
    /events        `count` server-sent events, one every 100 ms; without: until it is told to end
    /socket        echoes the messages of a websocket
    /upload        the SHA-256 of what was sent
    /download      `pieces` of 4 KiB, one every 100 ms
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qs

import typer

from .wire import CLOSE, GOING_AWAY, PING, PONG, Broken, Closed, Head, accept, chunk, frame, read_body, read_frame, read_head

if TYPE_CHECKING:
    from nginx_router.controller import Router

#: Seconds between two events, and between two pieces of a slow body.
TICK = 0.1
#: Bytes of a piece of a slow body.
PIECE = 4096
#: Seconds that whoever is told to end has for it.
GRACE = 3.0


def serve(router: Router, path: Annotated[str, typer.Argument(metavar="SOCKET", help="The control socket.")]) -> None:
    """Hold instances until stdin ends.

    Example: router selftest:instances /tmp/rst.x/own/instances.sock
    """
    asyncio.run(_serve(Path(path), router.out.data, router.out.flush))


class Instance:
    """One running instance."""

    def __init__(self, app: str, name: str) -> None:
        self.app, self.name = app, name
        self._transports: set[asyncio.WriteTransport] = set()
        self._idle: set[asyncio.WriteTransport] = set()
        self._ending = asyncio.Event()
        self._server: asyncio.Server | None = None
        self.address = ""

    async def start(self) -> None:
        """Listen; the address is known then."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self.address = f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self, *, at_once: bool) -> None:
        """End, at once as by SIGKILL, or by telling the clients of streams first, as by SIGTERM."""
        assert self._server
        self._server.close()
        if not at_once:
            self._ending.set()
            for transport in list(self._idle):
                transport.close()
            deadline = asyncio.get_running_loop().time() + GRACE
            while self._transports and asyncio.get_running_loop().time() < deadline:
                await asyncio.sleep(0.02)
        self.hang_up()

    def hang_up(self) -> None:
        """Cut every connection; new ones are answered."""
        for transport in list(self._transports):
            transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._transports.add(writer.transport)
        try:
            while not self._ending.is_set():
                self._idle.add(writer.transport)
                head = await read_head(reader)
                self._idle.discard(writer.transport)
                await self._answer(head, reader, writer)
                await writer.drain()
                if head.is_last:
                    break
        except (Closed, Broken, OSError, ValueError):
            pass  # whoever asked went away
        finally:
            self._transports.discard(writer.transport)
            self._idle.discard(writer.transport)
            writer.close()

    async def _answer(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        path, _, query = head.words[1].partition("?")
        values = {name: int(found[-1]) for name, found in parse_qs(query).items()}
        if path == "/socket":
            await self._echo(head, reader, writer)
        elif path == "/events":
            await self._tell(values.get("count"), writer)
        elif path == "/upload":
            digest = hashlib.sha256()
            async for piece in read_body(reader, head):
                digest.update(piece)
            self._say(writer, digest.hexdigest().encode())
        elif path == "/download":
            await self._send(values.get("pieces", 10), writer)
        else:
            await asyncio.sleep(values.get("ms", 0) / 1000)
            self._say(writer, f"{self.app} {self.name}\n".encode())

    def _say(self, writer: asyncio.StreamWriter, body: bytes) -> None:
        writer.write(self._head_of(**{"Content-Length": str(len(body))}) + body)

    def _head_of(self, status: str = "200 OK", **headers: str) -> bytes:
        fields = {"X-App": self.app, "X-Instance": self.name} | headers
        return "".join([f"HTTP/1.1 {status}\r\n", *(f"{name}: {value}\r\n" for name, value in fields.items()), "\r\n"]).encode()

    async def _echo(self, head: Head, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        key = accept(head.headers.get("sec-websocket-key", ""))
        upgrade = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Accept": key}
        writer.write(self._head_of("101 Switching Protocols", **upgrade))
        farewell = asyncio.ensure_future(self._farewell(writer))
        try:
            while True:
                kind, payload = await read_frame(reader, masked=True)
                if kind == CLOSE:
                    if not self._ending.is_set():
                        writer.write(frame(CLOSE, payload, masked=False))
                        await writer.drain()
                    raise Closed
                writer.write(frame(PONG if kind == PING else kind, payload, masked=False))
                await writer.drain()
        finally:
            farewell.cancel()

    async def _farewell(self, writer: asyncio.StreamWriter) -> None:
        """What a well-behaved server does when it is told to end; its client answers with a close frame of its own."""
        await self._ending.wait()
        writer.write(frame(CLOSE, GOING_AWAY.to_bytes(2), masked=False))

    async def _tell(self, count: int | None, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head_of(**{"Content-Type": "text/event-stream", "X-Accel-Buffering": "no", "Transfer-Encoding": "chunked"}))
        number = 0
        while number != count and not self._ending.is_set():
            number += 1
            writer.write(chunk(f"id: {number}\ndata: {self.name}\n\n".encode()))
            await writer.drain()
            await asyncio.sleep(TICK)
        writer.write(chunk(b"event: end\ndata: \n\n") + chunk(b""))

    async def _send(self, pieces: int, writer: asyncio.StreamWriter) -> None:
        writer.write(self._head_of(**{"X-Accel-Buffering": "no", "Content-Length": str(PIECE * pieces)}))
        for number in range(pieces):
            writer.write(piece_of(number))
            await writer.drain()
            await asyncio.sleep(TICK)


def piece_of(number: int) -> bytes:
    """A piece of a slow body, which says where it belongs."""
    return f"{number:015d}\n".encode() * (PIECE // 16)


class Instances:
    """All of them, and who had which address."""

    def __init__(self) -> None:
        self._running: dict[str, Instance] = {}
        self._names: dict[tuple[str, str], str] = {}
        self._count = 0

    async def answer(self, question: Mapping[str, Any]) -> object:
        """Do what is asked for."""
        if "start" in question:
            return [await self._start(question["start"]) for _ in range(question["count"])]
        app = question["app"]
        if "names" in question:
            return {address: self._names[app, address] for address in question["names"] if (app, address) in self._names}
        if "hang_up" in question:
            for address in question["hang_up"]:
                if (name := self._names.get((app, address), "")) in self._running:
                    self._running[name].hang_up()
            return None
        named = [self._names.get((app, address), "") for address in question["stop"]]
        ending = [self._running.pop(name) for name in named if name in self._running]
        await asyncio.gather(*(each.stop(at_once=question["at_once"]) for each in ending))
        return [each.name for each in ending]

    async def _start(self, app: str) -> tuple[str, str]:
        self._count += 1
        one = Instance(app, f"{app}-{self._count}")
        await one.start()
        self._running[one.name] = one
        self._names[app, one.address] = one.name
        return one.name, one.address


async def _serve(path: Path, say: Any, flush: Any) -> None:
    instances = Instances()

    async def control(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            answer = await instances.answer(json.loads(await reader.readline()))
            writer.write(json.dumps(answer).encode() + b"\n")
            await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(control, path)
    say("ready")
    flush()
    # whoever started this one ends, or is killed: so does this
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.buffer.read)
    server.close()
