"""The owner's end of the framed connection to a supervisor.

No background task reads: whoever waits for an answer reads frames for everybody until its own has come, so a connection
needs no task group and loses nothing when a waiter is cancelled. All that comes in is untrusted: sizes are bounded,
JSON is checked to be an object, and frames for nobody are dropped.
"""

from __future__ import annotations

import base64
import json
import marshal
import socket
import struct
from collections import deque
from functools import cache
from importlib.util import MAGIC_NUMBER
from pathlib import Path
from typing import Any

import anyio

from toolgym.sandboxes.base import SandboxLost

Frame = tuple[dict[str, Any], bytes]

_HEADER = struct.Struct(">II")
_MUX = struct.Struct(">BxxxI")  # Docker's header before each piece of an attached stream: stream, size
_MAX_HEAD = 4 << 20
_PIECE = 1 << 18
_INSIDE = Path(__file__).parent / "inside"
_MODULES = ("child", "processes", "jobs", "proxy", "supervisor")  # in the order of their imports

# The interpreter is told how many bytes of program follow on its input. It must not import from its working directory.
# Compiling takes a third of a start's time, so each module comes as text and as code for interpreters of our version.
_BOOT = (
    "import sys,os\n"
    "sys.path[:]=[p for p in sys.path if p]\n"
    "n,b=int(sys.argv[1]),b''\n"
    "while len(b)<n:\n"
    " d=os.read(0,n-len(b))\n"
    " if not d: os._exit(0)\n"
    " b+=d\n"
    "import json,types,marshal,binascii,_frozen_importlib_external as f\n"
    "g,p=json.loads(b)\n"
    "for k,s,c in p:\n"
    " m=sys.modules[k]=types.ModuleType(k)\n"
    " exec(marshal.loads(binascii.a2b_base64(c)) if g==f.MAGIC_NUMBER.hex() else compile(s,k,'exec'),m.__dict__)\n"
    "m.main()\n"
)


class ConnectionEnded(Exception):
    """The supervisor's stream has ended; why, its provider finds out."""


@cache
def supervisor_program() -> bytes:
    """The supervisor's modules in the form that `boot_command` waits for."""
    modules: list[tuple[str, str, str]] = []
    for module in _MODULES:
        name, source = f"toolgym.sandboxes.inside.{module}", (_INSIDE / f"{module}.py").read_text(encoding="utf-8")
        code = marshal.dumps(compile(source, name, "exec"))
        modules.append((name, source, base64.b64encode(code).decode()))
    return json.dumps([MAGIC_NUMBER.hex(), modules]).encode()


def boot_command(python: str, program: bytes) -> list[str]:
    """The command that starts a supervisor whose text then comes on its standard input."""
    return [python, "-s", "-B", "-u", "-c", _BOOT, str(len(program))]


class Connection:
    """Frames to and from one supervisor over a socket; ``multiplexed`` where Docker's stream headers are in between."""

    def __init__(self, sock: socket.socket, *, multiplexed: bool = False, max_body: int = 64 << 20) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._multiplexed = multiplexed
        self._max_body = max_body
        self._raw = bytearray()  # as received, where multiplexed
        self._frames = bytearray()  # standard output only
        self._boxes: dict[int, deque[Frame]] = {}
        self._reading = anyio.Lock(fast_acquire=True)
        self._writing = anyio.Lock(fast_acquire=True)
        self._next_id = 0
        self.stderr = bytearray()  # the last 8 KiB of the supervisor's own complaints
        self.ended = False

    def open_box(self, box: int | None = None) -> int:
        """A new id (or the one given) whose frames are kept until they are received or the box is closed."""
        if box is None:
            self._next_id += 1
            box = self._next_id
        self._boxes[box] = deque()
        return box

    def close_box(self, box: int) -> None:
        """Drop what has come, and will come, for this id."""
        self._boxes.pop(box, None)

    async def send(self, header: dict[str, Any], body: bytes = b"") -> None:
        """Send one frame. Raises ConnectionEnded."""
        head = json.dumps(header, separators=(",", ":")).encode()
        await self.send_raw(_HEADER.pack(len(head), len(body)) + head + body)

    async def send_raw(self, data: bytes) -> None:
        """Send bytes as they are; once begun, a frame is finished even if the sender is cancelled."""
        async with self._writing:
            view = memoryview(data)
            while view:
                try:
                    view = view[self._sock.send(view[:_PIECE]) :]
                except BlockingIOError:
                    with anyio.CancelScope(shield=len(view) < len(data)), anyio.fail_after(30):
                        await anyio.wait_writable(self._sock)
                except OSError as error:
                    self.ended = True
                    raise ConnectionEnded(str(error)) from error

    async def receive(self, box: int) -> Frame:
        """The next frame for this id. Raises ConnectionEnded; bound it with a deadline."""
        frames = self._boxes[box]
        while not frames:
            async with self._reading:
                if not frames:
                    await self._read_some()
        return frames.popleft()

    def hung_up(self) -> bool:
        """Whether the stream has ended, as far as can be seen without waiting and without reading."""
        if self.ended:
            return True
        try:
            return self._sock.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True

    def close(self) -> None:
        """Close the socket: the supervisor sees its input end, and goes."""
        self.ended = True
        self._sock.close()

    async def _read_some(self) -> None:
        """Wait for bytes and hand out the frames that they complete."""
        if self.ended:
            raise ConnectionEnded("closed")
        try:
            data = self._sock.recv(_PIECE)
        except BlockingIOError:
            try:
                await anyio.wait_readable(self._sock)
            except (anyio.ClosedResourceError, OSError, ValueError) as error:
                raise ConnectionEnded("closed") from error
            return
        except OSError as error:
            self.ended = True
            raise ConnectionEnded(str(error)) from error
        if not data:
            self.ended = True
            raise ConnectionEnded("the stream ended")
        if self._multiplexed:
            self._raw += data
            self._demultiplex()
        else:
            self._frames += data
        self._hand_out()

    def _demultiplex(self) -> None:
        raw, start = self._raw, 0
        while len(raw) - start >= _MUX.size:
            stream, size = _MUX.unpack_from(raw, start)
            end = start + _MUX.size + size
            if len(raw) < end:
                break
            piece = raw[start + _MUX.size : end]
            if stream == 1:
                self._frames += piece
            else:
                self.stderr = (self.stderr + piece)[-8192:]
            start = end
        del raw[:start]

    def _hand_out(self) -> None:
        frames, start = self._frames, 0
        while len(frames) - start >= _HEADER.size:
            head, body = _HEADER.unpack_from(frames, start)
            if head > _MAX_HEAD or body > self._max_body:
                self.ended = True
                raise SandboxLost(f"the supervisor sent a frame of {head} + {body} bytes: not one of ours")
            middle, end = start + _HEADER.size + head, start + _HEADER.size + head + body
            if len(frames) < end:
                break
            header = json.loads(frames[start + _HEADER.size : middle])
            if isinstance(header, dict):
                box = self._boxes.get(header.get("id", 0))  # type: ignore[arg-type]
                if box is not None:
                    box.append((header, bytes(frames[middle:end])))
            start = end
        del frames[:start]
