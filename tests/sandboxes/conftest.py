"""Sandboxes of every provider that works here."""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from toolgym.sandboxes import Sandbox, SandboxSpec, SandboxUnavailable, open_sandbox
from toolgym.sandboxes.provider import choose_provider

PROVIDERS = [
    "local",
    pytest.param("bubblewrap", marks=pytest.mark.slow),
    pytest.param("docker", marks=pytest.mark.docker),
]
SPEC = SandboxSpec(memory_mb=192, pids=32, tmp_mb=24, files=512, file_mb=4, output_kb=32, timeout_s=20)


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=PROVIDERS)
async def sandbox(request: pytest.FixtureRequest) -> AsyncIterator[Sandbox]:
    """One sandbox for all tests of a module, by every provider."""
    try:
        await choose_provider(request.param, SPEC)
    except SandboxUnavailable as error:
        pytest.skip(str(error))
    async with open_sandbox(request.param, SPEC, run_id="tests") as opened:
        yield opened
