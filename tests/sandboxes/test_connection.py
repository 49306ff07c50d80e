"""The owner's end of the framed connection, against a peer that may say anything."""

import json
import socket
import struct
from collections.abc import Iterator

import anyio
import pytest

from toolgym.sandboxes import SandboxLost
from toolgym.sandboxes.connection import Connection, ConnectionEnded


def frame(header: object, body: bytes = b"") -> bytes:
    """The bytes of a frame."""
    head = json.dumps(header).encode()
    return struct.pack(">II", len(head), len(body)) + head + body


def mux(stream: int, data: bytes) -> bytes:
    """A piece of an attached Docker stream."""
    return struct.pack(">BxxxI", stream, len(data)) + data


@pytest.fixture
def pair() -> Iterator[tuple[Connection, socket.socket]]:
    """A connection and its peer."""
    ours, theirs = socket.socketpair()
    connection = Connection(ours)
    with theirs:
        yield connection, theirs
        connection.close()


async def test_frames_go_to_their_boxes(pair: tuple[Connection, socket.socket]):
    connection, peer = pair
    first, second = connection.open_box(), connection.open_box()
    data = frame({"id": second, "n": 1}, b"body") + frame({"id": 99}) + frame({"id": first}, b"\x00" * 300000)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(anyio.to_thread.run_sync, peer.sendall, data)
        assert (await connection.receive(first))[1] == b"\x00" * 300000
    assert await connection.receive(second) == ({"id": second, "n": 1}, b"body")


async def test_frames_may_come_byte_by_byte_and_multiplexed():
    ours, theirs = socket.socketpair()
    connection = Connection(ours, multiplexed=True)
    box = connection.open_box()
    data = frame({"id": box}, b"abc")
    pieces = mux(1, data[:3]) + mux(2, b"complaint") + mux(1, data[3:])
    with theirs:
        async with anyio.create_task_group() as tasks:

            async def send() -> None:
                for byte in pieces:
                    theirs.sendall(bytes([byte]))
                    await anyio.lowlevel.checkpoint()

            tasks.start_soon(send)
            assert await connection.receive(box) == ({"id": box}, b"abc")
        assert connection.stderr == b"complaint"
        connection.close()


async def test_several_wait_at_once_and_a_cancelled_one_loses_nothing(pair: tuple[Connection, socket.socket]):
    connection, peer = pair
    boxes = [connection.open_box() for _ in range(5)]
    got: list[int] = []

    async def wait(box: int) -> None:
        got.append((await connection.receive(box))[0]["id"])

    async with anyio.create_task_group() as tasks:
        with anyio.move_on_after(0.01):
            await connection.receive(boxes[0])  # the reader is cancelled in the middle of a frame
            peer.sendall(frame({"id": boxes[0]})[:5])
        for box in boxes:
            tasks.start_soon(wait, box)
        await anyio.lowlevel.checkpoint()
        for box in reversed(boxes):
            peer.sendall(frame({"id": box}))
    assert sorted(got) == boxes


async def test_the_end_of_the_stream_is_told_to_all(pair: tuple[Connection, socket.socket]):
    connection, peer = pair
    box = connection.open_box()
    assert not connection.hung_up()
    peer.close()
    assert connection.hung_up()
    for _ in range(2):
        with pytest.raises(ConnectionEnded):
            await connection.receive(box)


@pytest.mark.parametrize(
    "data", [b"\xff" * 64, struct.pack(">II", 2, 1 << 31) + b"{}", frame([1]) + frame({"id": None})]
)
async def test_junk_is_refused_or_dropped(pair: tuple[Connection, socket.socket], data: bytes):
    connection, peer = pair
    box = connection.open_box()
    peer.sendall(data)
    peer.close()
    with pytest.raises((SandboxLost, ConnectionEnded)):
        await connection.receive(box)


async def test_sending_to_nobody_raises(pair: tuple[Connection, socket.socket]):
    connection, peer = pair
    peer.close()
    with pytest.raises(ConnectionEnded):
        await connection.send({"id": 1}, b"x" * 1_000_000)
