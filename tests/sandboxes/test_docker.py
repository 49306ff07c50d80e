"""Containers: that every restriction is on, and that nothing is left whatever dies."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import psutil
import pytest

from toolgym.sandboxes import (
    End,
    SandboxClosed,
    SandboxLost,
    SandboxPool,
    SandboxSpec,
    SandboxUnavailable,
    open_sandbox,
)
from toolgym.sandboxes.admin import doctor, list_sandboxes
from toolgym.sandboxes.docker import DockerProvider, DockerSandbox, host_config
from toolgym.sandboxes.engine import docker_engine
from toolgym.sandboxes.images import ensure_image, image_tag

OWNER = """
import anyio, sys
from toolgym.sandboxes import SandboxSpec
from toolgym.sandboxes.docker import DockerProvider

async def open_one(how, run):
    sandbox = await DockerProvider().open(SandboxSpec(memory_mb=64), run_id=run)
    if how == "paused":
        await sandbox.pause()
    print("open", flush=True)
    if how == "busy":
        await sandbox.run_code("import os\\nos.fork()\\nos.setsid()\\nwhile True: pass", timeout_s=600)
    await anyio.sleep_forever()

async def main():
    async with anyio.create_task_group() as tasks:
        for _ in range(int(sys.argv[3])):
            tasks.start_soon(open_one, sys.argv[1], sys.argv[2])

anyio.run(main)
"""

docker = pytest.mark.docker
slow = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def image() -> None:
    """The default image, where there is an engine."""
    try:
        ensure_image()
    except SandboxUnavailable:
        return


async def wait_until_gone(run_id: str, seconds: float) -> list[str]:
    """The states of the run's containers that are left once there are none, or after some seconds."""
    give_up = time.monotonic() + seconds
    while rows := [row.state for row in await list_sandboxes() if row.run == run_id]:
        if time.monotonic() > give_up:
            break
        await anyio.sleep(0.05)
    return rows


def start_owner(how: str, run_id: str, sandboxes: int) -> subprocess.Popen[str]:
    """A process that holds sandboxes, once all of them are open."""
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, how, run_id, str(sandboxes)], stdout=subprocess.PIPE, text=True
    )
    assert owner.stdout is not None
    for _ in range(sandboxes):
        assert owner.stdout.readline() == "open\n"
    return owner


def end_owner(owner: subprocess.Popen[str], number: int) -> None:
    """End the owner by a signal."""
    assert owner.stdout is not None
    owner.send_signal(number)
    owner.wait(30)
    owner.stdout.close()


def test_host_config_has_every_restriction_on():
    config = host_config(SandboxSpec(memory_mb=64, pids=10, cpus=0.5, tmp_mb=8, files=99))
    assert config["network_mode"] == "none"
    assert config["cap_drop"] == ["ALL"]
    assert config["security_opt"] == ["no-new-privileges:true"]
    assert config["read_only"] is True
    assert config["mem_limit"] == config["memswap_limit"] == 64 << 20
    assert config["pids_limit"] == 11
    assert config["nano_cpus"] == 500_000_000
    assert config["ipc_mode"] == "none"
    assert config["auto_remove"] is True
    assert config["init"] is False
    assert set(config["tmpfs"]) == {"/home/user", "/tmp", "/dev/shm"}
    for options in config["tmpfs"].values():
        assert "nosuid,nodev,size=8m,nr_inodes=99" in options


@docker
@slow
async def test_container_is_what_was_asked_for():
    provider = DockerProvider()
    async with await provider.open(SandboxSpec(memory_mb=64, pids=10), run_id="test-inspect") as sandbox:
        assert isinstance(sandbox, DockerSandbox)
        found = await provider.engine.call(provider.engine.request, "inspect_container", sandbox.container)
    host, config = found["HostConfig"], found["Config"]
    assert (host["NetworkMode"], host["ReadonlyRootfs"], host["CapDrop"]) == ("none", True, ["ALL"])
    assert (host["Memory"], host["MemorySwap"], host["PidsLimit"]) == (64 << 20, 64 << 20, 11)
    assert (host["Privileged"], host["AutoRemove"], config["User"]) == (False, True, "1000:1000")
    assert not host["Binds"]
    assert not host["Devices"]
    assert config["Labels"]["toolgym.run"] == "test-inspect"


@docker
@slow
async def test_doctor_finds_every_restriction_held():
    assert [finding for finding in await doctor() if not finding.ok and finding.name != "bubblewrap"] == []


@docker
@slow
async def test_lifetime_ends_a_sandbox_by_itself():
    provider = DockerProvider()
    sandbox = await provider.open(SandboxSpec(lifetime_s=1.0), run_id="test-lifetime")
    result = await sandbox.run_code("print('on')\nwhile True: pass", timeout_s=600)
    assert (result.end, result.stdout) == (End.TIMEOUT, "")
    with pytest.raises(SandboxClosed, match="lifetime is over"):
        await sandbox.run_code("1")
    assert (await sandbox.info()).state == "ended"
    assert await wait_until_gone("test-lifetime", 10) == []


@docker
@slow
async def test_lifetime_can_be_set_again():
    async with open_sandbox("docker", SandboxSpec(lifetime_s=600), run_id="test-lifetime-2") as sandbox:
        await sandbox.set_timeout(0.3)
        assert await wait_until_gone("test-lifetime-2", 10) == []
        assert sandbox.ended


@docker
@slow
@pytest.mark.parametrize("how", ["kill", "remove_container"])
async def test_container_taken_away_is_an_infrastructure_failure(how: str):
    provider = DockerProvider()
    async with await provider.open(SandboxSpec(), run_id="test-taken") as sandbox:
        assert isinstance(sandbox, DockerSandbox)
        options = {"force": True} if how == "remove_container" else {}
        async with anyio.create_task_group() as tasks:

            async def take_away() -> None:
                await anyio.sleep(0.2)  # while it runs
                await provider.engine.call(provider.engine.request, how, sandbox.container, **options)

            tasks.start_soon(take_away)
            with pytest.raises(SandboxLost):
                await sandbox.run_code("while True: pass", timeout_s=60)
        with pytest.raises(SandboxLost):
            await sandbox.run_code("1")


@docker
@slow
async def test_memory_that_files_use_up_is_the_programs_own_doing():
    spec = SandboxSpec(memory_mb=64, tmp_mb=64, file_mb=64)
    fill = "for n in ('/dev/shm/x', '/tmp/x', 'x'):\n    open(n, 'wb').write(b'x' * 40 * 2**20)"
    async with open_sandbox("docker", spec) as sandbox:
        for _ in range(3):
            assert (await sandbox.run_code(fill)).oom


@docker
@slow
async def test_stateless_executions_leave_no_file():
    spec = SandboxSpec(stateless=True, files=400)
    hide = (
        "import os\nfor f in ('/tmp', '/dev/shm', '.'):\n    os.makedirs(f + '/a/b/c')\n    open(f + '/a/b/c/d', 'w')\n"
        "    os.chmod(f + '/a/b', 0)\n    os.chmod(f + '/a', 0)\n    os.chmod(f, 0)"
    )
    look = "import os\n[os.listdir(f) for f in ('/tmp', '/dev/shm', '.')]"
    async with open_sandbox("docker", spec) as sandbox:
        assert (await sandbox.run_code(hide)).error is None
        assert (await sandbox.run_code(look)).result == "[[], [], []]"
        assert sandbox.clean
        await sandbox.run_code("import os\nfor i in range(10000):\n    open(f'/tmp/{i}', 'w')")
        assert (await sandbox.run_code(look)).result == "[[], [], []]"


@docker
@slow
async def test_stateless_sandbox_that_cannot_be_wiped_is_not_used_again():
    deep = "import os\nwhile True:\n    os.mkdir('d')\n    os.chdir('d')"
    async with (
        SandboxPool("docker", SandboxSpec(stateless=True, files=4000), size=1, run_id="test-deep") as pool,
        pool.acquire() as shared,
    ):
        assert (await shared.run_code(deep)).error is not None
        assert (await shared.run_code("import os; os.listdir()")).result == "[]"


@docker
@slow
async def test_no_system_v_object_outlives_an_execution():
    async with open_sandbox("docker") as sandbox:
        made = await sandbox.run_code(
            "import ctypes\nc = ctypes.CDLL(None)\n[c.shmget(1, 9, 950), c.msgget(1, 950), c.semget(1, 1, 950)]"
        )
        assert made.result == "[-1, -1, -1]"


@docker
@slow
@pytest.mark.timeout(180)
@pytest.mark.parametrize(
    ("how", "number"), [("idle", signal.SIGKILL), ("busy", signal.SIGKILL), ("busy", signal.SIGINT)]
)
async def test_nothing_is_left_when_the_owner_dies(how: str, number: int):
    run_id = f"test-owner-{how}-{number}-{os.getpid()}"
    owner = await anyio.to_thread.run_sync(start_owner, how, run_id, 32)
    assert len([row for row in await list_sandboxes() if row.run == run_id]) == 32
    await anyio.to_thread.run_sync(end_owner, owner, number)
    assert await wait_until_gone(run_id, 20) == []


@docker
@slow
@pytest.mark.timeout(120)
async def test_frozen_containers_of_a_dead_owner_are_swept():
    run_id = f"test-frozen-{os.getpid()}"
    owner = await anyio.to_thread.run_sync(start_owner, "paused", run_id, 2)
    provider = DockerProvider()
    await provider.sweep()
    rows = [row for row in await list_sandboxes() if row.run == run_id]
    assert [(row.state, row.orphan) for row in rows] == [("paused", False)] * 2  # their owner lives
    await anyio.to_thread.run_sync(end_owner, owner, signal.SIGKILL)
    await provider.sweep()
    assert await wait_until_gone(run_id, 10) == []


@docker
@slow
async def test_missing_image_says_what_to_do():
    with pytest.raises(SandboxUnavailable, match="docker pull no-such-image:1"):
        await DockerProvider().open(SandboxSpec(image="no-such-image:1"))


@docker
@slow
async def test_unknown_runtime_is_refused():
    with pytest.raises(SandboxUnavailable, match="no runtime 'no-such'"):
        await DockerProvider().check(SandboxSpec(runtime="no-such"))


async def test_no_engine_is_unavailable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/nothing.sock")
    with pytest.raises(SandboxUnavailable, match="is Docker running"):
        await DockerProvider().check(SandboxSpec())


class OwnDaemon:
    """A second Docker daemon that a test may kill, with the default image in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.host = f"unix://{folder}/docker.sock"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = [f"--data-root={self.folder}/data", f"--exec-root={self.folder}/exec", f"--pidfile={self.folder}/pid"]
        with (self.folder / "log").open("ab") as log:
            self.process = subprocess.Popen(
                ["dockerd", f"--host={self.host}", *options, "--bridge=none", "--iptables=false"],
                stdout=log,
                stderr=log,
            )
        for _ in range(900):  # it waits 10 s and more for a container that was just being made
            if subprocess.run(["docker", "-H", self.host, "version"], capture_output=True).returncode == 0:
                return
            time.sleep(0.1)
        raise AssertionError(f"the second daemon does not answer: {(self.folder / 'log').read_text()[-2000:]}")

    def kill(self) -> None:
        """Kill it, its containerd and its shims, with no chance to clean up."""
        assert self.process is not None
        self.process.kill()
        self.process.wait(30)
        for process in psutil.process_iter(["name", "cmdline"]):
            if str(self.folder) in " ".join(process.info["cmdline"] or []) and process.info["name"] != "python":
                process.kill()
        # The dead containerd may still wait to be reaped, and then the next daemon would take it for a living one.
        (self.folder / "exec" / "containerd" / "containerd.pid").unlink(missing_ok=True)


@pytest.fixture
def daemon() -> Iterator[OwnDaemon]:
    """A daemon of the test's own; skips where none can be started."""
    if os.getuid() != 0 or shutil.which("dockerd") is None:
        pytest.skip("only root can start a second Docker daemon")
    folder = Path(tempfile.mkdtemp(prefix="toolgym-daemon-"))
    own = OwnDaemon(folder)
    own.start()
    saved = subprocess.Popen(["docker", "save", image_tag()], stdout=subprocess.PIPE)
    subprocess.run(["docker", "-H", own.host, "load"], stdin=saved.stdout, capture_output=True, check=True)
    assert saved.stdout is not None
    saved.stdout.close()
    saved.wait()
    yield own
    own.kill()
    mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines() if str(folder) in line]
    for mount in reversed(mounts):
        subprocess.run(["umount", "--lazy", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)


@docker
@slow
@pytest.mark.timeout(240)
async def test_pool_survives_a_daemon_that_is_killed_and_started_again(
    daemon: OwnDaemon, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("DOCKER_HOST", daemon.host)
    provider = DockerProvider()
    outcomes: list[str] = []
    spec = SandboxSpec(memory_mb=64)
    async with SandboxPool(provider, spec, size=1, limit=1, run_id="test-daemon") as pool:

        async def episode() -> None:
            try:
                async with pool.acquire() as sandbox:
                    result = await sandbox.run_code("import time; time.sleep(3); print('done')")
                    outcomes.append(result.stdout)
            except SandboxLost:
                outcomes.append("lost")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(episode)
            await anyio.sleep(1)
            await anyio.to_thread.run_sync(daemon.kill)
        assert outcomes == ["lost"]
        await anyio.to_thread.run_sync(daemon.start)
        async with pool.acquire(timeout_s=60) as sandbox:
            assert (await sandbox.run_code("print('again')")).stdout == "again\n"
    assert await anyio.to_thread.run_sync(docker_engine().containers, "toolgym.sandbox") == []
