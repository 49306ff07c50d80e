"""Many executions: nothing of them is left, and nothing grows."""

import gc
import os

import anyio
import psutil
import pytest

from toolgym.sandboxes import End, SandboxSpec, open_sandbox
from toolgym.sandboxes.docker import DockerProvider, DockerSandbox

pytestmark = [pytest.mark.docker, pytest.mark.slow]

PAST_DEADLINE = [
    "while True: pass",
    "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "import time, os\nfor _ in range(5):\n    if os.fork() == 0:\n        os.setsid()\n        os.fork()\n"
    "        time.sleep(600)\ntime.sleep(600)",
    "import os, signal, time\nsignal.signal(15, signal.SIG_IGN)\nos.kill(1, 19)\nos.kill(1, 9)\ntime.sleep(600)",
    "import threading, time\nfor _ in range(9): threading.Thread(target=time.sleep, args=(600,)).start()",
    "import subprocess\nsubprocess.run('trap \"\" TERM INT HUP; (sleep 600 &) ; sleep 600', shell=True)",
    "import os, time\nos.kill(os.getpid(), 19)",
    "import os, time\nif os.fork() == 0:\n    os.close(1)\n    while True: time.sleep(1)\nos.waitpid(-1, 0)",
    "import sys\nwhile True: sys.stdin.read()\n",
    "import os\nos.mkfifo('f') if not os.path.exists('f') else None\nopen('f')",
]


@pytest.mark.timeout(300)
async def test_no_process_lives_past_its_deadline():
    provider = DockerProvider()
    spec = SandboxSpec(memory_mb=128, pids=24)
    ends: list[End] = []
    leftovers: list[int] = []

    async def spoil(start: int) -> None:
        async with await provider.open(spec, run_id="test-soak") as sandbox:
            assert isinstance(sandbox, DockerSandbox)
            for i in range(start, start + 50):
                ends.append((await sandbox.run_code(PAST_DEADLINE[i % len(PAST_DEADLINE)], timeout_s=0.15)).end)
            top = await provider.engine.call(provider.engine.request, "top", sandbox.container)
            at = [top["Titles"].index(title) for title in ("PID", "PPID")]
            parents = {int(row[at[0]]): int(row[at[1]]) for row in top["Processes"]}
            supervisor = next(pid for pid, parent in parents.items() if parent not in parents)
            leftovers.extend(pid for pid in parents if pid != supervisor and parents[pid] != supervisor)
            assert len(parents) <= 2  # the supervisor, and the interpreter that it has forked for the next execution
            assert (await sandbox.run_code("print('well')")).stdout == "well\n"

    async with anyio.create_task_group() as tasks:
        for start in range(0, 200, 50):
            tasks.start_soon(spoil, start)
    assert len(ends) == 200
    assert set(ends) <= {End.TIMEOUT, End.OUT_OF_MEMORY}
    assert leftovers == []


@pytest.mark.timeout(600)
async def test_ten_thousand_executions_grow_nothing():
    process = psutil.Process()
    async with open_sandbox("docker", SandboxSpec(stateless=True), run_id="test-soak") as sandbox:

        async def execute(count: int) -> tuple[float, int, int]:
            async def some() -> None:
                for _ in range(count // 4):
                    assert (await sandbox.run_code("print(1+1)")).stdout == "2\n"

            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(some)
            gc.collect()
            inside = (await sandbox.metrics()).memory_bytes
            return process.memory_info().rss / 2**20, len(os.listdir("/proc/self/fd")), inside

        early, early_fds, early_inside = await execute(1000)
        late, late_fds, late_inside = await execute(9000)
    print(f"host {early:.1f} -> {late:.1f} MB, container {early_inside >> 10} -> {late_inside >> 10} KB")
    assert late - early < 2.0
    assert late_fds == early_fds
    assert late_inside - early_inside < 4 << 20
