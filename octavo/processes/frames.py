"""Messages on a stream socket: each is its length in four bytes, little-endian, and its bytes.

Invariant: a length that no message may have ends the stream before anything is kept for it.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Generator

HEADER = struct.Struct("<I")


class BrokenStream(Exception):
    """What came cannot be a message, so nothing behind it can be read."""


def frame(payload: bytes) -> bytes:
    return HEADER.pack(len(payload)) + payload


def send(connection: socket.socket, payload: bytes) -> None:
    """On a blocking socket."""
    connection.sendall(frame(payload))


def receive(connection: socket.socket) -> bytes:
    """The next message of a blocking socket. Raises EOFError at its end."""
    (size,) = HEADER.unpack(_read(connection, HEADER.size))
    return _read(connection, size)


async def ask(connection: socket.socket, payload: bytes) -> bytes:
    """Send a message on a non-blocking socket and wait for the next one that comes. Raises EOFError, OSError."""
    await asyncio.get_running_loop().sock_sendall(connection, frame(payload))
    return await next_of(connection)


async def next_of(connection: socket.socket) -> bytes:
    """The next message of a non-blocking socket. Raises EOFError, OSError."""
    (size,) = HEADER.unpack(await _read_async(connection, HEADER.size))
    return await _read_async(connection, size)


def take(inbox: bytearray, most: int) -> Generator[bytes, None, None]:
    """The whole messages at the front of `inbox`, which are taken out of it. Raises BrokenStream at one of more
    than `most` bytes."""
    at = 0
    try:
        while len(inbox) - at >= HEADER.size:
            (size,) = HEADER.unpack_from(inbox, at)
            if size > most:
                raise BrokenStream(f"a peer announced {size} bytes; messages have at most {most}")
            end = at + HEADER.size + size
            if len(inbox) < end:
                return
            payload = bytes(inbox[at + HEADER.size : end])
            at = end
            yield payload
    finally:
        del inbox[:at]


def _read(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = connection.recv(count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)


async def _read_async(connection: socket.socket, count: int) -> bytes:
    data = bytearray()
    while len(data) < count:
        part = await asyncio.get_running_loop().sock_recv(connection, count - len(data))
        if not part:
            raise EOFError
        data += part
    return bytes(data)
