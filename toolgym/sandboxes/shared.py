"""One episode's view of sandboxes that all episodes share, an execution at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, NoReturn

from toolgym.sandboxes.base import (
    Command,
    CommandResult,
    Execution,
    FileInfo,
    Metrics,
    OnOutput,
    Process,
    ProcessInfo,
    ProgramError,
    Sandbox,
    SandboxClosed,
    SandboxInfo,
)

if TYPE_CHECKING:
    from toolgym.sandboxes.pool import SandboxPool


class SharedSandbox(Sandbox):
    """Runs each execution in whichever sandbox of a stateless pool is free; nothing stays between two of them.

    Contexts, background processes and files need something that stays: those calls raise ProgramError.
    """

    def __init__(self, pool: SandboxPool) -> None:
        self.id = "shared"
        self.provider = pool.provider.name
        self.spec = pool.spec
        self._pool = pool
        self._killed = False
        self._executions = 0

    @property
    def ended(self) -> bool:
        return self._killed

    async def run_code(
        self,
        code: str,
        *,
        language: str = "python",
        context: str | None = None,
        timeout_s: float | None = None,
        env: Mapping[str, str] | None = None,
        on_output: OnOutput | None = None,
    ) -> Execution:
        if context is not None:
            self._refuse("contexts")
        async with _Lease(self) as sandbox:
            return await sandbox.run_code(code, language=language, timeout_s=timeout_s, env=env, on_output=on_output)

    async def run(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        stdin: str | bytes = b"",
        on_output: OnOutput | None = None,
    ) -> CommandResult:
        async with _Lease(self) as sandbox:
            return await sandbox.run(
                command, timeout_s=timeout_s, cwd=cwd, env=env, user=user, stdin=stdin, on_output=on_output
            )

    def _refuse(self, what: str) -> NoReturn:
        raise ProgramError(f"a stateless sandbox keeps nothing between executions, so it has no {what}")

    async def create_context(self, *, cwd: str | None = None) -> str:
        self._refuse("contexts")

    async def remove_context(self, context: str) -> None:
        self._refuse("contexts")

    async def start(
        self,
        command: Command,
        *,
        timeout_s: float | None = None,
        cwd: str | None = None,
        env: Mapping[str, str] | None = None,
        user: str | None = None,
        on_output: OnOutput | None = None,
    ) -> Process:
        self._refuse("background processes")

    async def processes(self) -> list[ProcessInfo]:
        return []

    async def connect(self, pid: int) -> Process:
        self._refuse("background processes")

    async def read_bytes(self, path: str) -> bytes:
        self._refuse("files")

    async def read_stream(self, path: str) -> AsyncIterator[bytes]:
        self._refuse("files")
        yield b""

    async def write_many(self, files: Mapping[str, str | bytes]) -> list[FileInfo]:
        self._refuse("files")

    async def list_dir(self, path: str = ".", *, depth: int = 1) -> list[FileInfo]:
        self._refuse("files")

    async def exists(self, path: str) -> bool:
        self._refuse("files")

    async def file_info(self, path: str) -> FileInfo:
        self._refuse("files")

    async def rename(self, old: str, new: str) -> FileInfo:
        self._refuse("files")

    async def remove(self, path: str) -> None:
        self._refuse("files")

    async def make_dir(self, path: str) -> bool:
        self._refuse("files")

    async def set_timeout(self, lifetime_s: float) -> None:
        self._refuse("lifetime of its own")

    async def info(self) -> SandboxInfo:
        state = "ended" if self._killed else "running"
        left = 0.0 if self._killed else self.spec.lifetime_s
        return SandboxInfo(
            id=self.id,
            provider=self.provider,
            state=state,
            expires_in_s=left,
            image=self.spec.image,
            run_id=self._pool.run_id,
        )

    async def metrics(self) -> Metrics:
        return Metrics(memory_limit_bytes=self.spec.memory_mb << 20, executions=self._executions)

    async def pause(self) -> None:
        self._refuse("processes to freeze")

    async def resume(self) -> None:
        self._refuse("processes to freeze")

    async def kill(self) -> None:
        """End this view; the pool's sandboxes stay."""
        self._killed = True


class _Lease:
    """A sandbox of the pool for one execution; it goes back for reuse only when nothing went wrong in it."""

    def __init__(self, shared: SharedSandbox) -> None:
        self._shared = shared

    async def __aenter__(self) -> Sandbox:
        if self._shared._killed:
            raise SandboxClosed("this sandbox was killed")
        self._sandbox = await self._shared._pool.take()
        return self._sandbox

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._shared._executions += 1
        reuse = (kind is None or issubclass(kind, ProgramError)) and self._sandbox.clean
        self._shared._pool.give_back(self._sandbox, reuse=reuse)
