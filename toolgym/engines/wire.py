"""Frames between an engine and its worker: four bytes of length, little-endian, then one msgpack array."""

from __future__ import annotations

import struct
from typing import Any

import msgpack

_LENGTH = struct.Struct("<I")


def frame(message: list[Any]) -> bytes:
    """One message as bytes. Arrays travel as raw little-endian bytes."""
    body: bytes = msgpack.packb(message, use_bin_type=True)  # pyright: ignore[reportAssignmentType]
    return _LENGTH.pack(len(body)) + body


class Frames:
    """Cuts a stream of bytes back into messages."""

    def __init__(self) -> None:
        self._buffer = bytearray()

    def feed(self, data: bytes) -> list[list[Any]]:
        """Take the next bytes of the stream and return the messages that they complete."""
        self._buffer += data
        messages: list[list[Any]] = []
        start = 0
        while len(self._buffer) - start >= _LENGTH.size:
            (length,) = _LENGTH.unpack_from(self._buffer, start)
            end = start + _LENGTH.size + length
            if len(self._buffer) < end:
                break
            messages.append(msgpack.unpackb(memoryview(self._buffer)[start + _LENGTH.size : end], raw=False))
            start = end
        del self._buffer[:start]
        return messages
