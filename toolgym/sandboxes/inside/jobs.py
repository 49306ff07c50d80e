"""What a supervisor works with: the frames to its owner, and the jobs that it has forked.

Standard library only, Python 3.8 or later.
"""

import json
import os
import time

from toolgym.sandboxes.inside.child import HEADER

PIECE = 1 << 16


class Channel:
    """Frames over two non-blocking descriptors."""

    def __init__(self, fd_in, fd_out):
        self.fd_in, self.fd_out = fd_in, fd_out
        os.set_blocking(fd_in, False)
        os.set_blocking(fd_out, False)
        self.received, self.pending = bytearray(), bytearray()

    def read(self):
        """All complete frames that have come. Raises EOFError once the input has ended."""
        while True:
            try:
                data = os.read(self.fd_in, 1 << 18)
            except BlockingIOError:
                break
            if not data:
                raise EOFError
            self.received += data
        frames = []
        while len(self.received) >= HEADER.size:
            head, body = HEADER.unpack_from(self.received)
            end = HEADER.size + head + body
            if len(self.received) < end:
                break
            header = json.loads(bytes(self.received[HEADER.size : HEADER.size + head]))
            frames.append((header, bytes(self.received[HEADER.size + head : end])))
            del self.received[:end]
        return frames

    def send(self, header, body=b""):
        """Queue a frame and send as much as the owner takes now."""
        head = json.dumps(header, separators=(",", ":")).encode()
        self.pending += HEADER.pack(len(head), len(body)) + head + body
        self.flush()

    def flush(self):
        """Send what is queued, as far as that goes without waiting."""
        while self.pending:
            try:
                sent = os.write(self.fd_out, memoryview(self.pending)[:PIECE].tobytes())
            except BlockingIOError:
                return
            del self.pending[:sent]


class Job:
    """A forked child, its pipes, and what came out of them so far."""

    def __init__(self, request):
        self.id = request["id"]
        self.kind = request["op"]
        self.request = request
        self.background = bool(request.get("background")) or self.kind in ("context", "file")
        self.stream = bool(request.get("stream"))
        self.pid = 0
        self.status = 1
        self.fds = {}  # descriptor -> name: "out", "err", "report"
        self.got = {"out": bytearray(), "err": bytearray(), "report": bytearray()}
        self.size = 0
        self.start()
        self.end = None  # why it was killed, where it was
        self.stdin = None  # write end, of a background command
        self.to_stdin, self.stdin_eof = bytearray(), False
        self.turn = None  # of a context: the request that it is busy with

    def start(self):
        """Let its time begin now."""
        limit = self.request.get("timeout_s")
        self.started = time.monotonic()
        self.deadline = self.started + limit if limit else float("inf")
