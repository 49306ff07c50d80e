"""The warm pool: who gets what, when, and that nothing is left."""

import anyio
import pytest

from toolgym.errors import ConfigError
from toolgym.sandboxes import (
    Execution,
    FakeProvider,
    FakeSandbox,
    ProgramError,
    SandboxClosed,
    SandboxLost,
    SandboxPool,
    SandboxSpec,
    SandboxTimeout,
)
from toolgym.sandboxes.pool import percentile

STATELESS = SandboxSpec(stateless=True)


def echo(text: str) -> Execution:
    """A script that answers with the question."""
    return Execution(stdout=text)


async def settle() -> None:
    """Let all tasks run until they wait."""
    for _ in range(20):
        await anyio.lowlevel.checkpoint()


async def test_pool_gives_each_episode_a_sandbox_of_its_own_and_kills_it():
    provider = FakeProvider(echo)
    async with SandboxPool(provider, size=2) as pool:
        async with pool.acquire() as first, pool.acquire() as second:
            assert first is not second
            assert (await first.run_code("a")).stdout == "a"
        await settle()
        assert provider.opened[0].killed
        assert provider.opened[1].killed
        async with pool.acquire() as third:
            assert third not in (first, second)
    assert all(sandbox.killed for sandbox in provider.opened)


async def test_pool_keeps_its_size_ready_and_its_limit():
    provider = FakeProvider()
    async with SandboxPool(provider, size=2, limit=3) as pool:
        await settle()
        assert (pool.stats().ready, pool.stats().in_use) == (2, 0)
        async with pool.acquire(), pool.acquire():
            await settle()
            assert (pool.stats().ready, pool.stats().in_use) == (1, 2)  # a fourth would be past the limit
            assert len(provider.opened) == 3


async def test_pool_serves_first_come_first():
    order: list[int] = []
    async with SandboxPool(FakeProvider(), size=1, limit=1) as pool, anyio.create_task_group() as tasks:

        async def episode(i: int) -> None:
            async with pool.acquire():
                order.append(i)
                await settle()

        for i in range(6):
            tasks.start_soon(episode, i)
            await anyio.lowlevel.checkpoint()
    assert order == list(range(6))


async def test_pool_gives_up_at_the_deadline():
    async with SandboxPool(FakeProvider(), size=1, limit=1) as pool, pool.acquire():
        with pytest.raises(SandboxTimeout, match="1 in use of 1"):
            async with pool.acquire(timeout_s=0.01):
                pass
        assert pool.stats().waiting == 0


async def test_pool_loses_nothing_to_a_cancelled_waiter():
    async with SandboxPool(FakeProvider(), size=1, limit=1) as pool:
        async with pool.acquire():
            with anyio.move_on_after(0.01):
                await pool.take()
            assert pool.stats().waiting == 0
        async with pool.acquire(timeout_s=5):
            pass


async def test_pool_passes_on_what_a_cancelled_waiter_was_just_given():
    async with SandboxPool(FakeProvider(), STATELESS, size=1, limit=1) as pool:
        held = await pool.take()
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(pool.take)
                await settle()
                scope.cancel()
                pool.give_back(held, reuse=True)  # handed to the waiter, whose cancellation is on its way already
        with anyio.fail_after(5):
            assert await pool.take() is held


async def test_pool_skips_what_died_while_it_waited():
    provider = FakeProvider()
    async with SandboxPool(provider, size=2) as pool:
        await settle()
        for sandbox in provider.opened:
            sandbox.killed = True
        async with pool.acquire(timeout_s=5) as sandbox:
            assert not sandbox.ended


async def test_pool_raises_on_entering_what_its_provider_raises():
    with pytest.raises(SandboxLost, match="no engine"):
        async with SandboxPool(FakeProvider(failure=SandboxLost("no engine"))):
            pass


async def test_pool_names_the_engine_when_that_is_why():
    provider = FakeProvider()
    async with SandboxPool(provider, size=1, limit=2) as pool, pool.acquire():
        provider.failure = SandboxLost("the engine went away")
        with pytest.raises(SandboxLost, match="the engine went away"):
            await pool.take(timeout_s=0.05)


@pytest.mark.slow
async def test_pool_survives_an_engine_that_comes_back():
    provider = FakeProvider()
    async with SandboxPool(provider, size=1, limit=1) as pool:
        provider.failure = SandboxLost("restarting")
        async with pool.acquire():
            pass
        await settle()
        assert pool.stats().failed_starts == 1
        provider.failure = None
        async with pool.acquire(timeout_s=5) as sandbox:
            assert not sandbox.ended


async def test_pool_kills_what_is_still_held():
    provider = FakeProvider()
    async with SandboxPool(provider, size=1) as pool:
        held = await pool.take()
    assert held.ended
    assert all(sandbox.killed for sandbox in provider.opened)


async def test_pool_kills_all_when_its_body_raises():
    provider = FakeProvider()

    async def body() -> None:
        async with SandboxPool(provider, size=3):
            await settle()
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await body()
    assert [sandbox.killed for sandbox in provider.opened] == [True] * 3


async def test_stateless_pool_shares_its_sandboxes():
    provider = FakeProvider(echo)
    async with SandboxPool(provider, STATELESS, size=2) as pool, anyio.create_task_group() as tasks:

        async def episode(i: int) -> None:
            async with pool.acquire() as sandbox:
                for turn in range(3):
                    assert (await sandbox.run_code(f"{i} {turn}")).stdout == f"{i} {turn}"
                assert (await sandbox.run("true")).stdout == "true"

        for i in range(50):
            tasks.start_soon(episode, i)
    assert len(provider.opened) == 2
    assert sum(len(sandbox.asked) for sandbox in provider.opened) == 200


@pytest.mark.parametrize("flaw", ["unclean", "ended", "lost"])
async def test_stateless_pool_replaces_a_flawed_sandbox(flaw: str):
    provider = FakeProvider(echo)
    async with SandboxPool(provider, STATELESS, size=1) as pool, pool.acquire() as shared:
        first = provider.opened[0]

        def spoil(text: str) -> Execution:
            if flaw == "lost":
                raise SandboxLost("gone")
            if flaw == "unclean":
                first.clean = False
            else:
                first.killed = True
            return Execution(stdout="spoilt")

        first._script = spoil
        if flaw == "lost":
            with pytest.raises(SandboxLost):
                await shared.run_code("x")
        else:
            assert (await shared.run_code("x")).stdout == "spoilt"
        assert (await shared.run_code("y")).stdout == "y"
        assert len(provider.opened) == 2
        assert first.killed


async def test_stateless_pool_keeps_a_sandbox_whose_program_failed():
    provider = FakeProvider(lambda text: ProgramError("no such language"))
    async with SandboxPool(provider, STATELESS, size=1) as pool, pool.acquire() as shared:
        for _ in range(3):
            with pytest.raises(ProgramError):
                await shared.run_code("x")
        assert len(provider.opened) == 1


async def test_shared_sandbox_refuses_what_would_have_to_stay():
    async with SandboxPool(FakeProvider(), STATELESS, size=1) as pool, pool.acquire() as shared:
        for call in (shared.create_context(), shared.write("a", "b"), shared.start("sleep 1"), shared.pause()):
            with pytest.raises(ProgramError, match="keeps nothing between executions"):
                await call
        assert (await shared.info()).state == "running"
        await shared.kill()
        with pytest.raises(SandboxClosed):
            await shared.run_code("x")


async def test_pool_describes_what_is_isolated():
    pool = SandboxPool(FakeProvider())
    with pytest.raises(RuntimeError, match="async with"):
        pool.describe()
    async with pool:
        assert pool.describe().startswith("fake: isolates network, files; DOES NOT ISOLATE processes")


def test_pool_refuses_impossible_sizes():
    with pytest.raises(ConfigError, match="1 <= size <= limit"):
        SandboxPool("local", size=0)
    with pytest.raises(ConfigError):
        SandboxPool("local", size=5, limit=4)


def test_percentile_is_the_nearest_rank():
    values = tuple(float(i) for i in range(1, 101))
    assert percentile(values, 0.99) == 99.0
    assert percentile(values, 0.5) == 50.0
    assert percentile((3.0,), 0.99) == 3.0


async def test_fake_sandbox_answers_in_order_and_keeps_files():
    sandbox = FakeSandbox([Execution(stdout="1"), ValueError("two")])
    assert (await sandbox.run_code("a")).stdout == "1"
    with pytest.raises(ValueError, match="two"):
        await sandbox.run(["b", "c"])
    assert sandbox.asked == ["a", "b c"]
    with pytest.raises(AssertionError, match="question 3"):
        await sandbox.run_code("d")
    await sandbox.write("x/y.txt", "z")
    assert [info.path for info in await sandbox.list_dir(depth=2)] == ["/home/user/x", "/home/user/x/y.txt"]
    await sandbox.rename("x/y.txt", "w")
    assert await sandbox.read_text("w") == "z"
    await sandbox.remove("w")
    assert not await sandbox.exists("w")
