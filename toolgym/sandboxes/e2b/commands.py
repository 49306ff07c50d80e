"""``sandbox.commands`` of E2B's asynchronous sandbox."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Literal, TypeAlias, overload

import anyio

from toolgym.sandboxes import base
from toolgym.sandboxes.base import End, ProgramError, SandboxError
from toolgym.sandboxes.e2b.exceptions import (
    CommandExitException,
    NotFoundException,
    SandboxException,
    TimeoutException,
    UnsupportedException,
    translate,
    translated,
)
from toolgym.sandboxes.e2b.models import CommandResult, ProcessInfo
from toolgym.sandboxes.e2b.relay import Handler, relay, tell

Piece: TypeAlias = tuple[str | None, str | None, None]
"""Standard output, standard error, and what would be of a terminal."""
Processes: TypeAlias = list[ProcessInfo]

_ENDS = {
    End.OUT_OF_MEMORY: "out of memory",
    End.OUTPUT_CUT: "killed: more output than the sandbox allows",
    End.KILLED: "signal: killed",
}


class Follower:
    """One command: what it wrote so far, how it ended, and who listens."""

    def __init__(self, process: base.Process, info: ProcessInfo) -> None:
        self.process = process
        self.info = info
        self.handles: list[AsyncCommandHandle] = []
        self.ended = anyio.Event()
        self.result: base.CommandResult | None = None
        self.failure: SandboxException | None = None

    async def follow(self) -> None:
        """Read what the command writes until it ends, and pass it on."""
        try:
            self.result = await relay(lambda on_output: self.process.wait(on_output=on_output), self._hear)
        except SandboxError as error:
            self.failure = translate(error)
        finally:
            self.ended.set()
            for handle in self.handles:
                handle.wake()

    async def _hear(self, name: str, text: str) -> None:
        for handle in list(self.handles):
            await handle.hear(name, text)


class AsyncCommandHandle:
    """A command that was started; its callbacks are called as output comes, whether or not somebody waits."""

    def __init__(
        self,
        follower: Follower,
        *,
        on_stdout: Handler[str] | None = None,
        on_stderr: Handler[str] | None = None,
        retain_output: bool = True,
        timeout: float | None = None,
    ) -> None:
        self._follower = follower
        self._handlers = {"stdout": on_stdout, "stderr": on_stderr}
        self._retain = retain_output
        self._deadline = anyio.current_time() + timeout if timeout else None
        self._pieces: list[Piece] = []
        self._taken = 0
        self._failure: Exception | None = None
        self._changed = anyio.Event()
        follower.handles.append(self)

    @property
    def pid(self) -> int:
        """The command's process id."""
        return self._follower.process.pid

    @property
    def stdout(self) -> str | None:
        """What it wrote to standard output so far."""
        return "".join(piece[0] or "" for piece in self._pieces) if self._retain else None

    @property
    def stderr(self) -> str | None:
        """What it wrote to standard error so far."""
        return "".join(piece[1] or "" for piece in self._pieces) if self._retain else None

    @property
    def exit_code(self) -> int | None:
        """Its exit code, minus a signal's number where one ended it; None while it runs."""
        return None if self._follower.result is None else self._follower.result.exit_code

    @property
    def error(self) -> str | None:
        """Why it ended other than well; None while it runs."""
        result = self._follower.result
        if result is None or (result.end is End.EXITED and result.exit_code == 0):
            return None
        return _ENDS.get(result.end, f"exit status {result.exit_code}")

    async def hear(self, name: str, text: str) -> None:
        """Take a piece of output. A callback's exception ends its calls and is raised by `wait`."""
        self._pieces.append((text, None, None) if name == "stdout" else (None, text, None))
        self.wake()
        if self._failure is None:
            try:
                await tell(self._handlers[name], text)
            except Exception as error:  # the callback's, for whoever waits
                self._failure = error

    def wake(self) -> None:
        """Something happened that `next_piece` may wait for."""
        self._changed.set()
        self._changed = anyio.Event()

    @property
    def _listening(self) -> bool:
        return self in self._follower.handles and not self._follower.ended.is_set()

    async def next_piece(self) -> Piece | None:
        """The next piece of output, each given once; None where there will be no more."""
        while self._taken == len(self._pieces):
            if not self._listening:
                return None
            await self._changed.wait()
        self._taken += 1
        return self._pieces[self._taken - 1]

    async def wait(self) -> CommandResult:
        """Its result, once it has ended.

        Raises CommandExitException (exit code not 0), TimeoutException (its deadline), or what a callback raised.
        """
        left = None if self._deadline is None else self._deadline - anyio.current_time()
        with anyio.move_on_after(left):
            while self._listening:
                await self._changed.wait()
        if self._failure is not None:
            raise self._failure
        if self._follower.failure is not None:
            raise self._follower.failure
        result = self._follower.result
        if result is None:
            if self._follower.ended.is_set():
                raise SandboxException(f"the sandbox was killed while command {self.pid} ran")
            raise TimeoutException(f"no end of command {self.pid} within 'timeout'; it runs on")
        if result.end is End.TIMEOUT:
            raise TimeoutException(f"command {self.pid} was killed at its deadline; 'timeout' sets it, 0 means none")
        if result.exit_code != 0 or result.end is not End.EXITED:
            raise CommandExitException(self.stderr, self.stdout, result.exit_code, self.error)
        return CommandResult(self.stderr, self.stdout, result.exit_code, None)

    @translated
    async def kill(self) -> bool:
        """Kill it with all that it started. False: it had ended before."""
        return await self._follower.process.kill()

    async def disconnect(self) -> None:
        """Listen no more; the command runs on."""
        if self in self._follower.handles:
            self._follower.handles.remove(self)
        self._failure = self._failure or SandboxException(f"disconnected from command {self.pid}")
        self.wake()

    @translated
    async def send_stdin(self, data: str | bytes, request_timeout: float | None = None) -> None:
        """Write to its standard input; it must have been started with ``stdin=True``."""
        await self._follower.process.send_stdin(data)

    @translated
    async def close_stdin(self, request_timeout: float | None = None) -> None:
        """End its standard input."""
        await self._follower.process.send_stdin(b"", eof=True)


class AsyncCommands:
    """Runs commands. ``request_timeout`` is taken for compatibility and has no effect anywhere."""

    def __init__(self, usable: Callable[[], base.Sandbox]) -> None:
        self._usable = usable
        self._followers: dict[int, Follower] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    @overload
    async def run(
        self, cmd: str, background: Literal[False] | None = None, *args: object, **kwargs: object
    ) -> CommandResult: ...

    @overload
    async def run(self, cmd: str, background: Literal[True], *args: object, **kwargs: object) -> AsyncCommandHandle: ...

    @translated
    async def run(
        self,
        cmd: str,
        background: bool | None = None,
        envs: dict[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Handler[str] | None = None,
        on_stderr: Handler[str] | None = None,
        *,
        stdin: bool | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        retain_output: bool = True,
    ) -> CommandResult | AsyncCommandHandle:
        """Run a command with bash and wait for its end, or give a handle at once where ``background``.

        Args:
            cmd: for ``bash -c``.
            background: give a handle.
            envs: variables added to the sandbox's.
            user: None or "user"; there is no other.
            cwd: working folder; the home folder where None.
            on_stdout: called with each piece of text, may be a coroutine function.
            on_stderr: the same.
            stdin: True: its standard input stays open for `send_stdin`. Otherwise it is empty.
            timeout: seconds after which it is killed, also in the background; 0 or None: no limit.
            request_timeout: no effect.
            retain_output: False: stdout and stderr of the result are None.

        Raises:
            CommandExitException: its exit code is not 0.
            TimeoutException: it was killed at its deadline.
            InvalidArgumentException: another user.
            SandboxNotRunningException: the sandbox has ended or is paused.
        """
        sandbox = self._usable()
        process = await sandbox.start(["bash", "-c", cmd], timeout_s=timeout or None, cwd=cwd, env=envs, user=user)
        if not stdin:
            with suppress(ProgramError):  # it has ended already
                await process.send_stdin(b"", eof=True)
        follower = self._follow(process, ProcessInfo(process.pid, None, "bash", ["-c", cmd], dict(envs or {}), cwd))
        handle = AsyncCommandHandle(follower, on_stdout=on_stdout, on_stderr=on_stderr, retain_output=retain_output)
        if background:
            return handle
        try:
            return await handle.wait()
        except anyio.get_cancelled_exc_class():
            with anyio.CancelScope(shield=True), anyio.move_on_after(10):
                await handle.kill()
            raise

    def _follow(self, process: base.Process, info: ProcessInfo) -> Follower:
        """Start reading what a command writes.

        E2B's asynchronous handles read on without being waited for and outlive every scope of the caller's, so no
        task group could hold this task: the sandbox does, and `close` ends it.
        """
        follower = self._followers[process.pid] = Follower(process, info)
        task = asyncio.get_running_loop().create_task(follower.follow())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        follower_of = self._followers
        task.add_done_callback(lambda _: follower_of.pop(process.pid, None))
        return follower

    async def close(self) -> None:
        """Stop reading, for the end of the sandbox."""
        tasks = {*self._tasks}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=10)

    def _find(self, pid: int) -> Follower:
        self._usable()
        if pid not in self._followers:
            raise NotFoundException(f"no running command {pid}; there are: {sorted(self._followers) or '(none)'}")
        return self._followers[pid]

    async def connect(
        self,
        pid: int,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        on_stdout: Handler[str] | None = None,
        on_stderr: Handler[str] | None = None,
        *,
        retain_output: bool = True,
    ) -> AsyncCommandHandle:
        """A handle of a running command, for what it writes from now on; ``timeout`` is that of the handle's `wait`.

        Raises NotFoundException: no such command runs.
        """
        return AsyncCommandHandle(
            self._find(pid), on_stdout=on_stdout, on_stderr=on_stderr, retain_output=retain_output, timeout=timeout
        )

    @translated
    async def list(self, request_timeout: float | None = None) -> Processes:
        """The commands that run now."""
        return [self._followers[p.pid].info for p in await self._usable().processes() if p.pid in self._followers]

    @translated
    async def kill(self, pid: int, request_timeout: float | None = None) -> bool:
        """Kill a command. False: no such command runs."""
        self._usable()
        return pid in self._followers and await self._followers[pid].process.kill()

    @translated
    async def send_stdin(self, pid: int, data: str | bytes, request_timeout: float | None = None) -> None:
        """Write to a command's standard input. Raises NotFoundException: no such command runs."""
        await self._find(pid).process.send_stdin(data)

    @translated
    async def close_stdin(self, pid: int, request_timeout: float | None = None) -> None:
        """End a command's standard input. Raises NotFoundException: no such command runs."""
        await self._find(pid).process.send_stdin(b"", eof=True)

    def stream_input(self, pid: int, *args: object, **kwargs: object) -> None:
        """Not there: use `send_stdin`."""
        raise UnsupportedException("commands.stream_input is not available here; use commands.send_stdin")
