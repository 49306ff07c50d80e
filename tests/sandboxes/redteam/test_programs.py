"""Exploits as programs in a real container: contained, nothing left, and scored as not solved.

Each exploit runs twice. In a shared sandbox, which must serve on afterwards with no process of it alive; and as a
candidate for a function, where whatever it does at import and then claims must not pass.
"""

from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from tests.sandboxes.redteam.exploits import ESCAPES, RESOURCES, SUPERVISOR, Exploit, attempts
from toolgym.sandboxes import Sandbox, SandboxSpec, open_sandbox
from toolgym.sandboxes.grading import Case, grade_function

pytestmark = [pytest.mark.docker, pytest.mark.slow, pytest.mark.asyncio(loop_scope="module")]

SPEC = SandboxSpec(memory_mb=128, pids=32, tmp_mb=24, files=512, file_mb=4, output_kb=32, timeout_s=10)
EXPLOITS = {**RESOURCES, **SUPERVISOR, **ESCAPES}
CASES = [Case(args=[2, 3], expected=5)]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def cell() -> AsyncIterator[Sandbox]:
    """A hardened container, the same for all exploits."""
    async with open_sandbox("docker", SPEC, run_id="redteam") as opened:
        yield opened


@pytest.mark.parametrize("name", EXPLOITS)
async def test_exploit_is_contained(cell: Sandbox, name: str):
    exploit: Exploit = EXPLOITS[name]
    done = await cell.run_code(exploit.code, timeout_s=exploit.timeout_s)
    assert exploit.contained(done), done
    assert done.duration_s < exploit.timeout_s + 10
    assert (await cell.metrics()).processes == 0
    await cell.run("rm -rf ./* /tmp/* /dev/shm/*")
    well = await cell.run_code("print('well')\n1 + 1")
    assert (well.stdout, well.result, well.error) == ("well\n", "2", None)


@pytest.mark.parametrize("name", EXPLOITS)
async def test_exploit_is_not_scored(name: str):
    exploit: Exploit = EXPLOITS[name]
    source = f"def add(a, b):\n    exec({exploit.code!r}, {{}})\n    return True\n"
    grade = await grade_function(
        lambda: open_sandbox("docker", SPEC, run_id="redteam"),
        {"solution.py": source.encode()},
        "solution:add",
        CASES,
        timeout_s=min(exploit.timeout_s, 3.0),
    )
    assert not grade.passed
    assert grade.share == 0


async def test_honest_program_is_scored():
    grade = await grade_function(
        lambda: open_sandbox("docker", SPEC, run_id="redteam"),
        {"solution.py": b"def add(a, b):\n    return a + b\n"},
        "solution:add",
        CASES,
    )
    assert grade.passed


async def test_attempt_that_succeeds_is_noticed(cell: Sandbox):
    exploit = attempts("attempt('listing', lambda: os.listdir('/'))\nattempt('nothing', lambda: None)")
    done = await cell.run_code(exploit.code)
    assert done.stdout == "['listing']\n"
    assert not exploit.contained(done)
