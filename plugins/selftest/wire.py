"""HTTP/1.1 and websockets (RFC 6455) as far as the clients and the instances of the selftest speak them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass

TEXT, CLOSE, PING, PONG = 1, 8, 9, 10
#: The reason of a close frame: the session is over, and the instance ends.
DONE, GOING_AWAY = 1000, 1001

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


class Closed(Exception):
    """The connection was closed before the first byte of an answer: the request may be repeated (RFC 9112, 9.3.1)."""


class Broken(Exception):
    """What came is cut short, or is not what it has to be."""


@dataclass(frozen=True)
class Head:
    """The first line of a request or an answer, in words, and the headers by their names in lower case."""

    words: tuple[str, ...]
    headers: Mapping[str, str]

    @property
    def status(self) -> int:
        """Of an answer."""
        return int(self.words[1]) if len(self.words) > 1 and self.words[1].isdigit() else 0

    @property
    def is_last(self) -> bool:
        """Whether whoever sent it closes the connection behind it."""
        return self.headers.get("connection", "").lower() == "close"


async def read_head(reader: asyncio.StreamReader) -> Head:
    """The head of the next request or answer.

    Raises:
        Closed: the connection was closed before its first byte.
        Broken: it was closed behind that, or this is no head.
    """
    try:
        first = await reader.read(1)
    except ConnectionError:
        raise Closed from None
    if not first:
        raise Closed
    try:
        lines = (first + await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError):
        raise Broken("closed in the middle of the headers") from None
    fields = (line.partition(":") for line in lines[1:] if line)
    return Head(tuple(lines[0].split(" ")), {name.strip().lower(): value.strip() for name, _, value in fields})


async def read_body(reader: asyncio.StreamReader, head: Head) -> AsyncIterator[bytes]:
    """The body behind `head` as it comes.

    Raises:
        Broken: it is cut short.
    """
    try:
        if head.headers.get("transfer-encoding") == "chunked":
            while length := int(await reader.readuntil(b"\r\n"), 16):
                yield await reader.readexactly(length)
                await reader.readexactly(2)
            await reader.readexactly(2)
            return
        left = int(head.headers.get("content-length", "0"))
        while left:
            piece = await reader.read(min(left, 65536))
            if not piece:
                raise Broken(f"closed {left} bytes before its end")
            left -= len(piece)
            yield piece
    except (asyncio.IncompleteReadError, asyncio.LimitOverrunError, ConnectionError, ValueError):
        raise Broken("closed in the middle of the body") from None


def chunk(data: bytes) -> bytes:
    """A piece of a chunked body; an empty one ends it."""
    return b"%x\r\n%s\r\n" % (len(data), data)


def new_key() -> str:
    """What a client sends as Sec-WebSocket-Key."""
    return base64.b64encode(os.urandom(16)).decode()


def accept(key: str) -> str:
    """What a server answers to a key."""
    return base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()


def frame(kind: int, payload: bytes, *, masked: bool) -> bytes:
    """One whole message; what a client sends is masked."""
    size = len(payload)
    length = bytes([size]) if size < 126 else b"\x7e" + size.to_bytes(2) if size < 1 << 16 else b"\x7f" + size.to_bytes(8)
    if not masked:
        return bytes([0x80 | kind]) + length + payload
    mask = os.urandom(4)
    return bytes([0x80 | kind, 0x80 | length[0]]) + length[1:] + mask + _masked(payload, mask)


async def read_frame(reader: asyncio.StreamReader, *, masked: bool) -> tuple[int, bytes]:
    """The kind and the payload of the next message.

    Raises:
        Broken: the connection was closed, or the frame breaks the protocol.
    """
    try:
        first, second = await reader.readexactly(2)
        if first & 0xF0 != 0x80 or bool(second & 0x80) != masked:
            raise Broken("a frame that breaks the protocol")
        size = second & 0x7F
        if size > 125:
            size = int.from_bytes(await reader.readexactly(2 if size == 126 else 8))
        mask = await reader.readexactly(4) if masked else b""
        payload = await reader.readexactly(size)
    except (asyncio.IncompleteReadError, ConnectionError):
        raise Broken("closed without a close frame") from None
    return first & 0x0F, _masked(payload, mask) if masked else payload


def _masked(payload: bytes, mask: bytes) -> bytes:
    repeated = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload) ^ int.from_bytes(repeated)).to_bytes(len(payload))
