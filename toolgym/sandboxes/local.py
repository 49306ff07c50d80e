"""Plain processes of this user with resource limits: quick, everywhere to be had, and isolating next to nothing."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread

from toolgym.sandboxes.base import Sandbox, SandboxLost, SandboxSpec, SandboxTimeout, SandboxUnavailable
from toolgym.sandboxes.connection import Connection, ConnectionEnded, boot_command, supervisor_program
from toolgym.sandboxes.owner import owner_is_dead, owner_name
from toolgym.sandboxes.provider import Provider
from toolgym.sandboxes.supervised import SupervisedSandbox, Verdict, supervisor_config

PREFIX = "toolgym-sandbox-"
START_S = 60.0
_EXPIRED = 75  # the supervisor's exit code when its lifetime is over


class LocalProvider(Provider):
    """Opens sandboxes that are a supervisor's children in a temporary folder of this machine."""

    name = "local"

    async def check(self, spec: SandboxSpec) -> None:
        if sys.platform != "linux":
            raise SandboxUnavailable(f"local sandboxes need Linux, this is {sys.platform}; use Docker")
        if spec.allow_hosts:
            raise SandboxUnavailable("local sandboxes cannot restrict the network to allow_hosts; use Docker")

    def isolation(self, spec: SandboxSpec) -> Mapping[str, str]:
        return {"memory": "RLIMIT_DATA of each process"}

    async def open(self, spec: SandboxSpec, *, run_id: str = "") -> Sandbox:
        root = Path(tempfile.mkdtemp(prefix=f"{PREFIX}{owner_name()}-"))
        try:
            config = supervisor_config(
                spec, home=f"{root}/home", tmp=[f"{root}/tmp"], env={"PATH": os.environ.get("PATH", "/usr/bin:/bin")}
            )
            config["roots"] = [str(root)]
            process, sock = spawn(boot_command(sys.executable, supervisor_program()), cwd=root)
        except BaseException:
            shutil.rmtree(root, ignore_errors=True)
            raise
        sandbox = ProcessSandbox(spec, Connection(sock), process=process, root=root, provider=self.name, run_id=run_id)
        await sandbox.greet(config)
        return sandbox

    async def sweep(self) -> int:
        """Remove the folders of dead owners (their supervisors ended with them)."""
        return await anyio.to_thread.run_sync(_sweep_folders)


def _sweep_folders() -> int:
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        if owner_is_dead(folder.name.removeprefix(PREFIX).rpartition("-")[0]):
            shutil.rmtree(folder, ignore_errors=True)
            removed += 1
    return removed


def spawn(command: list[str], *, cwd: Path) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Start a supervisor on one end of a socket pair, and give the other.

    When we die its input ends, and so does it.
    """
    ours, theirs = socket.socketpair()
    with theirs:
        try:
            process = subprocess.Popen(
                command, stdin=theirs.fileno(), stdout=theirs.fileno(), stderr=subprocess.DEVNULL, cwd=cwd,
                start_new_session=True, env={"PATH": os.environ.get("PATH", "/usr/bin:/bin"), "LANG": "C.UTF-8",
                "PYTHONHASHSEED": "0"},
            )  # fmt: skip
        except BaseException as error:
            ours.close()
            if isinstance(error, OSError):
                raise SandboxLost(f"cannot start {command[0]}: {error}") from error
            raise
    return process, ours


class ProcessSandbox(SupervisedSandbox):
    """A sandbox whose supervisor is our child process, with a temporary folder of its own."""

    def __init__(
        self,
        spec: SandboxSpec,
        connection: Connection,
        *,
        process: subprocess.Popen[bytes],
        root: Path,
        provider: str,
        run_id: str,
    ) -> None:
        super().__init__(spec, connection, id=root.name.rpartition("-")[2], provider=provider, run_id=run_id)
        self._process = process
        self._root = root

    async def greet(self, config: dict[str, Any]) -> None:
        """Send the program and its configuration; wait until it serves. Kills the sandbox where that fails."""
        try:
            with anyio.fail_after(START_S):
                await start_supervisor(self._connection, config)
        except ConnectionEnded:
            await self.kill()
            raise SandboxLost(f"the {self.provider} sandbox ended at its start: {self._process.args}") from None
        except TimeoutError:
            await self.kill()
            raise SandboxTimeout(f"the {self.provider} sandbox did not start within {START_S:.0f} s") from None
        except BaseException:
            await self.kill()
            raise

    async def _judge(self) -> Verdict:
        code = await self._wait(2)
        return Verdict.EXPIRED if code == _EXPIRED else Verdict.PROGRAM

    async def _wait(self, seconds: float) -> int | None:
        try:
            return self._process.wait(0) if self._process.poll() is not None else await anyio.to_thread.run_sync(
                lambda: self._process.wait(seconds), abandon_on_cancel=True
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None

    async def _destroy(self) -> None:
        """The supervisor kills its descendants when its input ends; where it cannot any more, its session is killed."""
        if await self._wait(6) is None:
            with suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._wait(2)
        await anyio.to_thread.run_sync(lambda: shutil.rmtree(self._root, ignore_errors=True))

    async def _freeze(self, frozen: bool) -> None:
        await self._ask({"op": "freeze", "value": frozen})


async def start_supervisor(connection: Connection, config: dict[str, Any]) -> dict[str, Any]:
    """Send the supervisor's program and its configuration, and wait until it is ready.

    Returns what it says of itself.
    """
    box = connection.open_box()
    try:
        await connection.send_raw(supervisor_program())
        await connection.send({**config, "id": box})
        return (await connection.receive(box))[0]
    finally:
        connection.close_box(box)
