"""The owner's side of a sandbox's allow-list: decides where its programs may connect, connects, carries the bytes.

Names are resolved here. A name that leads to this machine or its networks is refused, unless the list names the
address itself.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any

import anyio
import anyio.abc

from toolgym.errors import ConfigError
from toolgym.sandboxes.connection import Connection, ConnectionEnded

PROXY_BOX = -1  # the id of all frames about connections
PROXY_VARIABLES = {name: "http://127.0.0.1:3128" for name in ("HTTPS_PROXY", "https_proxy")}
WINDOW = 1 << 18  # bytes that may wait in the sandbox for a program to read them
CONNECT_S = 20.0


def check_allow_list(hosts: tuple[str, ...]) -> None:
    """Raise ConfigError where an entry is not ``host:port``."""
    for entry in hosts:
        host, _, port = entry.rpartition(":")
        if not host or not port.isdigit():
            raise ConfigError(
                f"allow_hosts entries are host:port, such as 'pypi.org:443' or '*.pypi.org:443', got {entry!r}"
            )


def allowed(target: str, hosts: tuple[str, ...]) -> bool:
    """Whether ``host:port`` is on the list; ``*`` in an entry's host stands for any characters."""
    host, _, port = target.lower().rpartition(":")
    return any(
        fnmatchcase(host, entry.lower().rpartition(":")[0]) and port == entry.rpartition(":")[2] for entry in hosts
    )


async def resolve(target: str, hosts: tuple[str, ...]) -> tuple[str, int] | None:
    """The address and port to connect to, or None where that is not allowed or there is none."""
    if not allowed(target, hosts):
        return None
    host, _, port = target.rpartition(":")
    try:
        found = await anyio.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    named = target.lower() in {entry.lower() for entry in hosts} and _is_address(host)
    for *_, address in found:
        if named or ipaddress.ip_address(address[0]).is_global:
            return str(address[0]), int(address[1])
    return None


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


class _Link:
    """One connection: the stream to the far end and how much of it the program has still to read."""

    def __init__(self) -> None:
        self.stream: anyio.abc.SocketStream | None = None
        self.waiting = 0
        self.room = anyio.Event()
        self.connected = anyio.Event()

    def taken(self, count: int) -> None:
        """The program has read this many bytes."""
        self.waiting -= count
        self.room.set()


class Tunnels:
    """All connections of one sandbox, while something runs in it."""

    def __init__(self, connection: Connection, hosts: tuple[str, ...]) -> None:
        self._connection = connection
        self._hosts = hosts
        self._lock = anyio.Lock()
        self._links: dict[int, _Link] = {}

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Carry bytes while the block runs; one block at a time."""
        async with self._lock:
            self._connection.open_box(PROXY_BOX)
            self._links = {}
            failure: Exception | None = None
            try:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._serve, tasks)
                    try:
                        yield
                    except Exception as error:
                        failure = error  # raised below, outside the task group, which would wrap it
                    tasks.cancel_scope.cancel()
            finally:
                self._connection.close_box(PROXY_BOX)
            if failure is not None:
                raise failure

    async def _serve(self, tasks: anyio.abc.TaskGroup) -> None:
        while True:
            try:
                header, body = await self._connection.receive(PROXY_BOX)
            except ConnectionEnded:
                return  # whoever waits for the execution finds out why
            number, event = int(header["conn"]), header["ev"]
            if event == "connect":
                self._links[number] = _Link()
                tasks.start_soon(self._carry, number, str(header["to"]))
            elif number in self._links:
                await self._on_event(self._links[number], event, header, body)

    async def _on_event(self, link: _Link, event: str, header: dict[str, Any], body: bytes) -> None:
        if event == "taken":
            link.taken(int(header["n"]))
            return
        with anyio.move_on_after(CONNECT_S):
            await link.connected.wait()
        if link.stream is None:
            return
        try:
            if event == "data":
                await link.stream.send(body)
            elif event == "eof":
                await link.stream.aclose()
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            return

    async def _carry(self, number: int, target: str) -> None:
        """Connect where that is allowed, and send the sandbox what comes from there."""
        link = self._links[number]
        try:
            with anyio.fail_after(CONNECT_S):
                address = await resolve(target, self._hosts)
                link.stream = await anyio.connect_tcp(*address) if address is not None else None
        except (OSError, TimeoutError):
            link.stream = None
        link.connected.set()
        if link.stream is None:
            await self._answer(number, "refused")
            return
        await self._answer(number, "open")
        async with link.stream as stream:
            try:
                async for data in stream:
                    link.waiting += len(data)
                    await self._answer(number, "data", data)
                    while link.waiting > WINDOW:
                        link.room = anyio.Event()
                        await link.room.wait()
            except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                pass
        await self._answer(number, "closed")

    async def _answer(self, number: int, state: str, data: bytes = b"") -> None:
        with suppress(ConnectionEnded):
            await self._connection.send({"op": "proxy", "id": PROXY_BOX, "conn": number, "state": state}, data)
