"""A proxy for the programs of a sandbox without network: CONNECT requests go to the owner, who decides and connects.

Standard library only, Python 3.8 or later. The sandbox itself gets no interface: bytes travel as frames over the
supervisor's own streams. At most ``WINDOW`` bytes of a connection wait here for a program that does not read.
"""

import select
import socket

ADDRESS = ("127.0.0.1", 3128)
MAX_CONNECTIONS = 32
MAX_HEAD = 8192
PIECE = 1 << 16
BACKLOG = 1 << 20  # bytes waiting for the owner before programs are no longer read


class Tunnel:
    """One connection of a program, and what waits to be written to it."""

    def __init__(self, number, sock):
        self.number, self.sock = number, sock
        self.head = bytearray()
        self.asked = False
        self.pending = bytearray()
        self.ending = False


class Proxy:
    """Listens on the loopback interface; driven by the supervisor's event loop."""

    def __init__(self, poll, send, backlog):
        self.poll, self.send, self.backlog = poll, send, backlog
        self.listener = socket.create_server(ADDRESS, backlog=MAX_CONNECTIONS)
        self.listener.setblocking(False)
        self.poll.register(self.listener.fileno(), select.EPOLLIN)
        self.tunnels = {}  # descriptor -> tunnel
        self.made = 0

    def owns(self, fd):
        """Whether a descriptor is one of the proxy's."""
        return fd == self.listener.fileno() or fd in self.tunnels

    def on_event(self, fd):
        """Something can be read from, or written to, a program's connection."""
        if fd == self.listener.fileno():
            self.accept()
            return
        tunnel = self.tunnels[fd]
        self.write(tunnel)
        if fd in self.tunnels and self.backlog() < BACKLOG:
            self.read(tunnel)

    def accept(self):
        """Take a new connection, or drop it where there are too many."""
        try:
            sock, _ = self.listener.accept()
        except OSError:
            return
        if len(self.tunnels) >= MAX_CONNECTIONS:
            sock.close()
            return
        sock.setblocking(False)
        self.made += 1
        self.tunnels[sock.fileno()] = Tunnel(self.made, sock)
        self.poll.register(sock.fileno(), select.EPOLLIN)

    def read(self, tunnel):
        """Pass on what a program wrote; its first lines say where it wants to go."""
        try:
            data = tunnel.sock.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            if tunnel.asked:
                self.send({"ev": "eof", "conn": tunnel.number})
            self.close(tunnel)
        elif tunnel.asked:
            self.send({"ev": "data", "conn": tunnel.number}, data)
        else:
            tunnel.head += data
            self.ask(tunnel)

    def ask(self, tunnel):
        """Ask the owner for a connection once the request's head is complete."""
        head, blank, rest = bytes(tunnel.head).partition(b"\r\n\r\n")
        if not blank:
            if len(head) > MAX_HEAD:
                self.close(tunnel)
            return
        words = head.split(b"\r\n")[0].split()
        if len(words) != 3 or words[0] != b"CONNECT":
            self.end(tunnel, b"HTTP/1.1 405 Only CONNECT\r\nContent-Length: 0\r\n\r\n")
            return
        tunnel.asked = True
        self.send({"ev": "connect", "conn": tunnel.number, "to": words[1].decode("ascii", "replace")})
        if rest:
            self.send({"ev": "data", "conn": tunnel.number}, rest)

    def answer(self, number, state, data):
        """The owner says what became of a connection (open, refused, closed), or sends what came from afar (data)."""
        tunnel = next((t for t in self.tunnels.values() if t.number == number), None)
        if tunnel is None:
            return
        if state == "open":
            tunnel.pending += b"HTTP/1.1 200 Connection established\r\n\r\n"
        elif state == "refused":
            self.end(tunnel, b"HTTP/1.1 403 Not on the allow-list\r\nContent-Length: 0\r\n\r\n")
            return
        elif state == "closed":
            self.end(tunnel, b"")
            return
        tunnel.pending += data
        self.write(tunnel)

    def end(self, tunnel, last):
        """Close a connection once all is written."""
        tunnel.pending += last
        tunnel.ending = True
        self.write(tunnel)

    def write(self, tunnel):
        """Write what the program takes now, and tell the owner how much that was."""
        sent = 0
        try:
            while tunnel.pending:
                count = tunnel.sock.send(bytes(tunnel.pending[:PIECE]))
                del tunnel.pending[:count]
                sent += count
        except BlockingIOError:
            pass
        except OSError:
            tunnel.pending.clear()
            tunnel.ending = True
        if sent and tunnel.asked:
            self.send({"ev": "taken", "conn": tunnel.number, "n": sent})
        if tunnel.ending and not tunnel.pending:
            self.close(tunnel)
        else:
            self.poll.modify(tunnel.sock.fileno(), select.EPOLLIN | (select.EPOLLOUT if tunnel.pending else 0))

    def close(self, tunnel):
        """Forget a connection."""
        del self.tunnels[tunnel.sock.fileno()]
        self.poll.unregister(tunnel.sock.fileno())
        tunnel.sock.close()
