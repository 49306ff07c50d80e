"""What an execution and a sandbox cost, in the same hardened container as the usual way of running code in one.

The baseline is ``docker exec`` of ``python3 -c`` through docker-py. Both run ``print(1+1)`` at the same concurrency (1,
then 8 callers of one container); ours includes its limits, and killing and wiping what is left. Then: waits for a
sandbox from a warm pool at a steady rate, and many episodes at once.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from toolgym.errors import SandboxError
from toolgym.sandboxes import SandboxPool, SandboxSpec
from toolgym.sandboxes.docker import DockerProvider, DockerSandbox
from toolgym.sandboxes.images import ensure_image
from toolgym.sandboxes.pool import percentile

CODE = "print(1+1)"
SPEC = SandboxSpec(cpus=float(os.cpu_count() or 1), timeout_s=20, stateless=True)


def run(
    *,
    seconds: float = 6.0,
    acquires: int = 200,
    per_s: float = 5.0,
    pool: int = 16,
    episodes: int = 64,
    rounds: int = 2,
) -> dict[str, Any]:
    """Executions per second against docker exec; the ratio is the smaller of the two concurrencies'.

    Args:
        seconds: how long each way runs at each concurrency in a round; the ways take turns.
        acquires: sandboxes taken from the pool; 0 leaves that out.
        per_s: how many a second.
        pool: how many are kept ready.
        episodes: episodes at once, with 10 executions each; 0 leaves that out.
        rounds: how often the ways take turns; the best round of each counts.
    """
    ensure_image()
    return anyio.run(_measure, seconds, acquires, per_s, pool, episodes, rounds)


async def _measure(
    seconds: float, acquires: int, per_s: float, pool: int, episodes: int, rounds: int
) -> dict[str, Any]:
    rates = await _rates(seconds, rounds)
    ratios = {n: rates["ours", n] / rates["docker exec", n] for n in (1, 8)}
    worst = min(ratios, key=lambda n: ratios[n])
    details: dict[str, Any] = {f"{way} per s, {n} at once": rate for (way, n), rate in rates.items()}
    details |= {f"ratio, {n} at once": ratio for n, ratio in ratios.items()}
    if acquires:
        details |= await _acquire_steadily(acquires, per_s, pool)
    if episodes:
        details |= await _episodes(episodes)
    return {
        "name": "sandbox",
        "ours": rates["ours", worst],
        "baseline": rates["docker exec", worst],
        "ratio": ratios[worst],
        "unit": "executions per second",
        "details": details,
    }


async def _rates(seconds: float, rounds: int) -> dict[tuple[str, int], float]:
    provider = DockerProvider()
    rates: dict[tuple[str, int], float] = {}
    async with await provider.open(SPEC, run_id="bench") as sandbox:
        assert isinstance(sandbox, DockerSandbox)

        async def ours() -> None:
            result = await sandbox.run_code(CODE)
            assert result.stdout == "2\n", result

        async def docker_exec() -> None:
            output = await provider.engine.call(_docker_exec, provider, sandbox.container)
            assert output == b"2\n", output

        for _ in range(rounds):
            for n in (1, 8):
                for way, once in (("docker exec", docker_exec), ("ours", ours)):
                    rates[way, n] = max(rates.get((way, n), 0.0), await _rate(once, n, seconds))
    return rates


def _docker_exec(provider: DockerProvider, container: str) -> bytes:
    request = provider.engine.request
    made = request("exec_create", container, ["python3", "-c", CODE])
    return request("exec_start", made["Id"])


async def _rate(once: Callable[[], Awaitable[None]], callers: int, seconds: float) -> float:
    """Calls per second of ``callers`` that each call again as soon as their call is done."""
    done = 0
    await once()
    began = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - began < seconds:
            await once()
            done += 1

    async with anyio.create_task_group() as tasks:
        for _ in range(callers):
            tasks.start_soon(caller)
    return done / (time.perf_counter() - began)


async def _acquire_steadily(acquires: int, per_s: float, size: int) -> dict[str, Any]:
    """Waits for a sandbox when one is taken every ``1 / per_s`` seconds, used for one execution, and given back."""
    spec = SandboxSpec(memory_mb=128)
    failures = 0
    async with SandboxPool("docker", spec, size, run_id="bench") as pool:
        while pool.stats().ready < size:  # noqa: ASYNC110 - a benchmark may poll
            await anyio.sleep(0.05)
        started, began = pool.stats().started, time.perf_counter()

        async def episode() -> None:
            nonlocal failures
            try:
                async with pool.acquire() as sandbox:
                    failures += (await sandbox.run_code(CODE)).stdout != "2\n"
            except SandboxError:
                failures += 1

        async with anyio.create_task_group() as tasks:
            for i in range(acquires):
                await anyio.sleep(max(0.0, began + i / per_s - time.perf_counter()))
                tasks.start_soon(episode)
        spent = time.perf_counter() - began
        stats = pool.stats()
    waits = stats.waits_s[-acquires:]
    return {
        f"acquire of {size}, {per_s:g} per s: median ms": 1e3 * statistics.median(waits),
        "acquire p99 ms": 1e3 * percentile(waits, 0.99),
        "refill per s": (stats.started - started) / spent,
        "acquire failures": failures,
    }


async def _episodes(episodes: int) -> dict[str, Any]:
    """All episodes at once, a container each (at most 32 alive), 10 executions in each."""
    failures = 0
    began = time.perf_counter()
    async with SandboxPool("docker", SandboxSpec(memory_mb=128), 8, limit=32, run_id="bench") as pool:

        async def episode() -> None:
            nonlocal failures
            try:
                async with pool.acquire() as sandbox:
                    for i in range(10):
                        failures += (await sandbox.run_code(f"print({i} + 1)")).stdout != f"{i + 1}\n"
            except SandboxError:
                failures += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(episodes):
                tasks.start_soon(episode)
        spent = time.perf_counter() - began
    return {f"{episodes} episodes × 10 executions: s": spent, "episode failures": failures}
