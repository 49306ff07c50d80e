"""A sandbox without network, and the few places that its programs may reach."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import anyio.abc
import pytest

from toolgym.errors import ConfigError
from toolgym.sandboxes import ProgramError, SandboxSpec, SandboxUnavailable, open_sandbox
from toolgym.sandboxes.provider import choose_provider
from toolgym.sandboxes.tunnel import allowed, check_allow_list, resolve

CLIENT = """
import socket
def fetch(target, data=b'', proxy=('127.0.0.1', 3128)):
    with socket.create_connection(proxy, 10) as s:
        s.sendall(f'CONNECT {target} HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n'.encode())
        status = s.recv(1000)
        if b' 200 ' not in status:
            return status.split(b'\\r\\n')[0].decode()
        s.sendall(data)
        got = b''
        while len(got) < 600_000 and (piece := s.recv(1 << 16)):
            got += piece
        return len(got), got[:5], got[-5:]
"""


def test_allow_list_matches_host_and_port():
    hosts = ("pypi.org:443", "*.pythonhosted.org:443")
    assert allowed("pypi.org:443", hosts)
    assert allowed("PyPI.org:443", hosts)
    assert allowed("files.pythonhosted.org:443", hosts)
    for target in (
        "pypi.org:80",
        "evil.org:443",
        "pypi.org.evil.org:443",
        "pythonhosted.org:443",
        "pypi.org",
        ":443",
        "",
    ):
        assert not allowed(target, hosts)


def test_allow_list_entries_are_host_and_port():
    check_allow_list(("a.b:1",))
    with pytest.raises(ConfigError, match="host:port"):
        check_allow_list(("pypi.org",))


async def test_names_that_lead_home_are_refused():
    assert await resolve("localhost:80", ("localhost:80",)) is None
    assert await resolve("localhost:80", ("*:80",)) is None
    assert await resolve("127.0.0.1:80", ("*:80",)) is None
    assert await resolve("127.0.0.1:80", ("127.0.0.1:80",)) == ("127.0.0.1", 80)
    assert await resolve("169.254.169.254:80", ("*:80",)) is None


@asynccontextmanager
async def serving() -> AsyncIterator[int]:
    """A server on this machine that answers a line with half a megabyte; its port."""

    async def serve(stream: anyio.abc.SocketStream) -> None:
        async with stream:
            line = await stream.receive()
            await stream.send(line + b"x" * 500_000 + b"." + line)

    async with (
        await anyio.create_tcp_listener(local_host="127.0.0.1") as listener,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(listener.serve, serve)
        yield listener.extra(anyio.abc.SocketAttribute.local_port)
        tasks.cancel_scope.cancel()


@pytest.mark.slow
@pytest.mark.parametrize("provider", ["bubblewrap", pytest.param("docker", marks=pytest.mark.docker)])
async def test_programs_reach_what_is_allowed_and_nothing_else(provider: str):
    async with serving() as server:
        await reach(provider, server)


async def reach(provider: str, server: int) -> None:
    """Reach the server from a sandbox that may, and fail to reach everything else."""
    spec = SandboxSpec(allow_hosts=(f"127.0.0.1:{server}",))
    try:
        await choose_provider(provider, spec)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    async with open_sandbox(provider, spec) as sandbox:
        for _ in range(2):
            result = await sandbox.run_code(CLIENT + f"fetch('127.0.0.1:{server}', b'hello')")
            assert result.result == "(500011, b'hello', b'hello')"
        refused = await sandbox.run_code(CLIENT + f"fetch('127.0.0.1:{server + 1}'), fetch('example.org:443')")
        assert refused.result == "('HTTP/1.1 403 Not on the allow-list', 'HTTP/1.1 403 Not on the allow-list')"
        direct = await sandbox.run_code(f"import socket\nsocket.create_connection(('127.0.0.1', {server}), 2)")
        assert direct.error is not None
        assert direct.error.name == "ConnectionRefusedError"
        assert (await sandbox.run_code("import os; os.environ['HTTPS_PROXY']")).result == "'http://127.0.0.1:3128'"
        ended = await sandbox.run_code("while True: pass", timeout_s=0.1)
        assert ended.timed_out
        with pytest.raises(ProgramError, match="no context"):
            await sandbox.run_code("1", context="7")
        with pytest.raises(ZeroDivisionError):
            await sandbox.run_code("print(1)", on_output=lambda *_: 1 / 0)  # type: ignore[arg-type, return-value]
