"""Sandboxes in hardened containers: our supervisor is process 1, its streams are attached, and it dies with us."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping
from typing import Any

import anyio

from toolgym.sandboxes.base import Sandbox, SandboxLost, SandboxSpec, SandboxTimeout, SandboxUnavailable
from toolgym.sandboxes.connection import Connection, ConnectionEnded, boot_command, supervisor_program
from toolgym.sandboxes.engine import Engine, docker_engine
from toolgym.sandboxes.images import DEFAULT, ensure_image, image_reference
from toolgym.sandboxes.local import start_supervisor
from toolgym.sandboxes.owner import owner_is_dead, owner_name
from toolgym.sandboxes.provider import Provider
from toolgym.sandboxes.supervised import SupervisedSandbox, Verdict, supervisor_config
from toolgym.sandboxes.tunnel import check_allow_list

_log = logging.getLogger(__name__)
LABEL = "toolgym.sandbox"
LABEL_RUN, LABEL_OWNER, LABEL_EXPIRES = "toolgym.run", "toolgym.owner", "toolgym.expires"
HOME = "/home/user"
USER = "1000:1000"
PATH = "/usr/local/bin:/usr/bin:/bin"
START_S = 60.0
LATE_S = (
    60.0  # a container this long past its lifetime does not expire by itself any more (it is frozen, or set longer)
)
_EXPIRED, _SIGKILL = "75", "137"  # exit codes of the supervisor
_SYSCTLS = {"kernel.shmmni": "0", "kernel.msgmni": "0", "kernel.sem": "0 0 0 0", "fs.mqueue.queues_max": "0"}


def host_config(spec: SandboxSpec) -> dict[str, Any]:
    """All restrictions of a container, by docker-py's names."""
    memory = spec.memory_mb << 20
    tmpfs = f"rw,nosuid,nodev,size={spec.tmp_mb}m,nr_inodes={spec.files},mode=700,uid=1000,gid=1000"
    return {
        "network_mode": "bridge" if spec.network else "none",
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],  # the engine's default seccomp profile stays in force
        "read_only": True,
        "tmpfs": {HOME: tmpfs, "/tmp": tmpfs, "/dev/shm": tmpfs},
        "ipc_mode": "none",  # no shared memory but the /dev/shm above
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(spec.cpus * 1e9),
        "pids_limit": spec.pids + 1,  # and the supervisor
        "auto_remove": True,
        "init": False,  # process 1 must be the supervisor: nothing inside can stop or kill that
        "log_config": {"type": "none", "config": {}},
        "runtime": spec.runtime,
        "sysctls": {} if spec.runtime else _SYSCTLS,  # System V objects and message queues would outlive an execution
    }


class DockerProvider(Provider):
    """Opens hardened containers on the Docker engine that the docker command would use."""

    name = "docker"

    @property
    def engine(self) -> Engine:
        """The engine that the environment names now."""
        return docker_engine()

    async def prepare(self, spec: SandboxSpec) -> None:
        """Build the default image where the engine lacks it."""
        if spec.image == DEFAULT:
            await self.engine.call(ensure_image, self.engine, report=_log.warning)

    async def check(self, spec: SandboxSpec) -> None:
        check_allow_list(spec.allow_hosts)
        info = await self.engine.call(self.engine.info)
        if spec.runtime is not None and spec.runtime not in info["Runtimes"]:
            raise SandboxUnavailable(
                f"Docker has no runtime {spec.runtime!r}; it has {', '.join(sorted(info['Runtimes']))}"
            )
        await self.engine.call(image_reference, self.engine, spec.image)

    def isolation(self, spec: SandboxSpec) -> Mapping[str, str]:
        return {
            "network": ""
            if spec.network
            else "none"
            if not spec.allow_hosts
            else f"only {', '.join(spec.allow_hosts)}",
            "files": "a read-only image and temporary folders of its own",
            "processes": "a process namespace",
            "memory": f"{spec.memory_mb} MB, no swap",
            "cpu": f"{spec.cpus:g} cores",
            "pids": f"{spec.pids}",
            "disk": f"{spec.tmp_mb} MB and {spec.files} files a folder, {spec.file_mb} MB a file",
            "privileges": "no capabilities, no-new-privileges",
            "user": USER,
            "system calls": spec.runtime or "the engine's seccomp profile",
        }

    async def open(self, spec: SandboxSpec, *, run_id: str = "") -> Sandbox:
        """Start a container and its supervisor.

        Shielded while the engine works, so that none is lost by a cancellation.
        """
        image = await self.engine.call(image_reference, self.engine, spec.image)
        program = supervisor_program()
        name = f"toolgym-{run_id[:40] + '-' if run_id else ''}{uuid.uuid4().hex[:12]}"
        began = time.time()
        labels = {
            LABEL: "1",
            LABEL_RUN: run_id,
            LABEL_OWNER: owner_name(),
            LABEL_EXPIRES: str(int(began + spec.lifetime_s)),
        }
        with anyio.CancelScope(shield=True):
            container, sock = await self.engine.call(
                self.engine.start, image, boot_command("python3", program), host=host_config(spec), name=name,
                user=USER, working_dir="/", hostname="sandbox", labels=labels, stdin_open=True, stop_signal="SIGKILL",
                environment={"PATH": PATH, "PYTHONHASHSEED": "0", "LANG": "C.UTF-8"},
            )  # fmt: skip
        connection = Connection(sock, multiplexed=True)
        sandbox = DockerSandbox(spec, connection, engine=self.engine, container=container, began=began, run_id=run_id)
        config = supervisor_config(spec, home=HOME, tmp=["/tmp", "/dev/shm"], env={"PATH": PATH})
        await sandbox.greet(config)
        return sandbox

    async def sweep(self) -> int:
        """Remove containers whose owner on this machine is dead, or whose time is long over."""
        return await self.engine.call(self._sweep)

    def _sweep(self) -> int:
        removed = 0
        for container in self.engine.containers(LABEL):
            labels = container["Labels"]
            late = time.time() > float(labels.get(LABEL_EXPIRES, "0")) + LATE_S and container["State"] == "paused"
            if late or owner_is_dead(labels.get(LABEL_OWNER, "")):
                self.engine.remove(container["Id"])
                removed += 1
        return removed


class DockerSandbox(SupervisedSandbox):
    """A sandbox in a container."""

    def __init__(
        self, spec: SandboxSpec, connection: Connection, *, engine: Engine, container: str, began: float, run_id: str
    ) -> None:
        super().__init__(spec, connection, id=container[:12], provider="docker", run_id=run_id)
        self.container = container
        self._engine = engine
        self._began = began

    async def greet(self, config: dict[str, Any]) -> None:
        """Wait until the supervisor serves. Kills the sandbox where that fails."""
        try:
            with anyio.fail_after(START_S):
                await start_supervisor(self._connection, config)
        except ConnectionEnded:
            words = bytes(self._connection.stderr).decode("utf-8", "replace").strip()
            await self.kill()
            raise SandboxLost(f"the container ended at its start; has {self.spec.image} a python3? {words}") from None
        except TimeoutError:
            await self.kill()
            raise SandboxTimeout(f"the container did not start within {START_S:.0f} s") from None
        except BaseException:
            await self.kill()
            raise

    async def _judge(self) -> Verdict:
        for _ in range(20):
            try:
                verdict = await self._engine.call(self._read_events)
            except SandboxLost:
                return Verdict.LOST
            if verdict is not None:
                return verdict
            await anyio.sleep(0.1)
        return Verdict.PROGRAM  # it runs, its engine answers, and its supervisor does not: starved by what it runs

    def _read_events(self) -> Verdict | None:
        """What the engine's record says; None where the container has not died."""
        seen: dict[str, dict[str, str]] = {}
        for event in self._engine.events(self.container, self._began):
            seen[event["Action"].split(":")[0]] = event["Actor"]["Attributes"]
        if "die" not in seen:
            if not seen:
                return Verdict.LOST  # the engine that started it would remember: this is another, or it was restarted
            return None
        code = seen["die"].get("exitCode")
        if code == _EXPIRED:
            return Verdict.EXPIRED
        if "kill" in seen or "stop" in seen:
            return Verdict.LOST  # by somebody with access to the engine, which no program has
        if code == _SIGKILL and "oom" in seen:
            return Verdict.OUT_OF_MEMORY
        return Verdict.PROGRAM

    async def _destroy(self) -> None:
        await self._engine.call(self._engine.remove, self.container)

    async def _freeze(self, frozen: bool) -> None:
        await self._engine.call(self._engine.request, "pause" if frozen else "unpause", self.container)
