"""The asynchronous half of the facade: what differs from the synchronous one."""

from collections.abc import AsyncIterator

import anyio
import anyio.lowlevel
import pytest
import pytest_asyncio

from toolgym.sandboxes.e2b import (
    AsyncSandbox,
    CommandExitException,
    NotFoundException,
    OutputMessage,
    SandboxException,
    SandboxNotFoundException,
    TimeoutException,
)

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def async_sandbox() -> AsyncIterator[AsyncSandbox]:
    """One sandbox for all tests."""
    async with await AsyncSandbox.create(provider="local") as opened:
        yield opened


async def test_async_run_calls_back_and_awaits(async_sandbox: AsyncSandbox):
    seen: list[str] = []

    async def on_stdout(text: str) -> None:
        await anyio.lowlevel.checkpoint()
        seen.append(text)

    result = await async_sandbox.commands.run("echo a", on_stdout=on_stdout)
    assert (result.stdout, seen) == ("a\n", ["a\n"])
    messages: list[str] = []

    async def on_message(message: OutputMessage) -> None:
        messages.append(message.line)

    assert (await async_sandbox.run_code("print('b')\n1", on_stdout=on_message)).text == "1"
    assert messages == ["b\n"]


async def test_async_background_command_is_read_without_being_waited_for(async_sandbox: AsyncSandbox):
    heard = anyio.Event()
    handle = await async_sandbox.commands.run("echo a; sleep 600", background=True, on_stdout=lambda _: heard.set())
    with anyio.fail_after(20):
        await heard.wait()
    assert (handle.stdout, handle.stderr, handle.exit_code) == ("a\n", "", None)
    assert await handle.kill()
    with pytest.raises(CommandExitException):
        await handle.wait()
    assert handle.exit_code == -9


async def test_async_callbacks_error_is_raised_by_wait(async_sandbox: AsyncSandbox):
    handle = await async_sandbox.commands.run("echo a", background=True, on_stdout=lambda text: [][1])
    with pytest.raises(IndexError):
        await handle.wait()


async def test_async_commands_run_at_the_same_time(async_sandbox: AsyncSandbox):
    await async_sandbox.commands.run("mkfifo pipe")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(async_sandbox.commands.run, "echo a > pipe")
        assert (await async_sandbox.commands.run("cat pipe")).stdout == "a\n"


async def test_async_code_at_the_same_time_shares_the_default_context():
    async with await AsyncSandbox.create(provider="local") as sandbox:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sandbox.run_code, "a = 1")
            tasks.start_soon(sandbox.run_code, "b = 2")
        assert (await sandbox.run_code("a + b")).text == "3"
        assert len(await sandbox.list_code_contexts()) == 1


async def test_async_cancelled_command_is_killed(async_sandbox: AsyncSandbox):
    with anyio.move_on_after(0.05):
        await async_sandbox.commands.run("sleep 600")
    assert await async_sandbox.commands.list() == []


async def test_async_files(async_sandbox: AsyncSandbox):
    await async_sandbox.files.write("a", b"x" * 10)
    pieces = await async_sandbox.files.read("a", format="stream")
    assert b"".join([piece async for piece in pieces]) == b"x" * 10
    with pytest.raises(NotFoundException):
        await async_sandbox.files.read("b", format="stream")


async def test_async_connected_handle_has_a_deadline_of_its_own(async_sandbox: AsyncSandbox):
    handle = await async_sandbox.commands.run("sleep 600", background=True)
    other = await async_sandbox.commands.connect(handle.pid, timeout=0.01)
    with pytest.raises(TimeoutException, match="runs on"):
        await other.wait()
    assert await handle.kill()


async def test_async_sandbox_killed_under_a_command():
    sandbox = await AsyncSandbox.create(provider="local")
    handle = await sandbox.commands.run("sleep 600", background=True)
    assert await AsyncSandbox.kill(sandbox.sandbox_id) is True
    with pytest.raises(SandboxException):
        await handle.wait()
    assert await AsyncSandbox.kill(sandbox.sandbox_id) is False
    with pytest.raises(SandboxNotFoundException):
        await AsyncSandbox.connect(sandbox.sandbox_id)
