"""E2B's synchronous sandbox: the asynchronous one, with an event loop in a thread of its own."""

from __future__ import annotations

import queue
from collections.abc import Callable, Coroutine, Iterator
from contextlib import ExitStack
from datetime import datetime
from functools import partial, wraps
from types import TracebackType
from typing import Any, ClassVar, Concatenate, Literal, ParamSpec, Self, TypeAlias, TypeVar, overload

from anyio.from_thread import BlockingPortal, start_blocking_portal

from toolgym.sandboxes.base import SandboxSpec
from toolgym.sandboxes.e2b.commands import AsyncCommandHandle, AsyncCommands, Piece
from toolgym.sandboxes.e2b.exceptions import SandboxNotFoundException, SandboxNotRunningException, UnsupportedException
from toolgym.sandboxes.e2b.files import AsyncFilesystem
from toolgym.sandboxes.e2b.interpreter import AsyncInterpreter
from toolgym.sandboxes.e2b.models import (
    CommandResult,
    Context,
    Execution,
    ExecutionError,
    OutputMessage,
    Result,
    SandboxInfo,
    SandboxQuery,
)
from toolgym.sandboxes.e2b.sandbox_async import UNSUPPORTED, AsyncSandbox, Metrics, by_id

P = ParamSpec("P")
T = TypeVar("T")
Heard: TypeAlias = Callable[[T], Any]


class _Loop:
    """The thread with a sandbox's event loop, which ends with the sandbox."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self.portal: BlockingPortal | None = self._stack.enter_context(start_blocking_portal())

    def call(self, function: Callable[[], Coroutine[Any, Any, T]]) -> T:
        if self.portal is None:
            raise SandboxNotRunningException("the sandbox was killed")
        return self.portal.call(function)

    def close(self) -> None:
        self.portal = None
        self._stack.close()


class _Twin:
    """An asynchronous thing, and the loop that it lives in."""

    _loop: _Loop
    _real: Any

    def __init__(self, loop: _Loop, real: Any) -> None:
        self._loop, self._real = loop, real


def _twin(method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]) -> Callable[Concatenate[_Twin, P], T]:
    """The method without await."""

    @wraps(method)
    def call(self: _Twin, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._loop.call(partial(getattr(self._real, method.__name__), *args, **kwargs))

    return call


class CommandHandle(_Twin):
    """A command that was started; iterating gives (stdout, stderr, None) as output comes."""

    _real: AsyncCommandHandle

    @property
    def pid(self) -> int:
        """The command's process id."""
        return self._real.pid

    def __iter__(self) -> Iterator[Piece]:
        while (piece := self._loop.call(self._real.next_piece)) is not None:
            yield piece

    def wait(
        self,
        on_pty: Heard[bytes] | None = None,
        on_stdout: Heard[str] | None = None,
        on_stderr: Heard[str] | None = None,
    ) -> CommandResult:
        """Its result; the callbacks get what has not been iterated over. Raises as `AsyncCommandHandle.wait`."""
        for stdout, stderr, _ in self:
            if stdout is not None and on_stdout is not None:
                on_stdout(stdout)
            elif stderr is not None and on_stderr is not None:
                on_stderr(stderr)
        return self._loop.call(self._real.wait)

    kill = _twin(AsyncCommandHandle.kill)
    disconnect = _twin(AsyncCommandHandle.disconnect)
    send_stdin = _twin(AsyncCommandHandle.send_stdin)
    close_stdin = _twin(AsyncCommandHandle.close_stdin)


class Commands(_Twin):
    """`AsyncCommands` without await; callbacks are called in the thread that waits."""

    _real: AsyncCommands

    @overload
    def run(self, cmd: str, background: Literal[False] | None = None, *args: Any, **kwargs: Any) -> CommandResult: ...

    @overload
    def run(self, cmd: str, background: Literal[True], *args: Any, **kwargs: Any) -> CommandHandle: ...

    def run(
        self,
        cmd: str,
        background: bool | None = None,
        envs: dict[str, str] | None = None,
        user: str | None = None,
        cwd: str | None = None,
        on_stdout: Heard[str] | None = None,
        on_stderr: Heard[str] | None = None,
        *,
        stdin: bool | None = None,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        retain_output: bool = True,
    ) -> CommandResult | CommandHandle:
        """As `AsyncCommands.run`; with ``background`` the callbacks are those of `CommandHandle.wait`, as in E2B."""
        start = partial(
            self._real.run,
            cmd, True, envs, user, cwd, stdin=stdin, timeout=timeout, retain_output=retain_output,
        )  # fmt: skip
        handle = CommandHandle(self._loop, self._loop.call(start))
        if background:
            return handle
        try:
            return handle.wait(on_stdout=on_stdout, on_stderr=on_stderr)
        except BaseException:
            if self._loop.portal is not None:
                handle.kill()  # a callback failed, or Ctrl-C: nobody waits for it any more
            raise

    def connect(
        self,
        pid: int,
        timeout: float | None = 60,
        request_timeout: float | None = None,
        *,
        retain_output: bool = True,
    ) -> CommandHandle:
        """As `AsyncCommands.connect`."""
        connect = partial(self._real.connect, pid, timeout, request_timeout, retain_output=retain_output)
        return CommandHandle(self._loop, self._loop.call(connect))

    list = _twin(AsyncCommands.list)
    kill = _twin(AsyncCommands.kill)
    send_stdin = _twin(AsyncCommands.send_stdin)
    close_stdin = _twin(AsyncCommands.close_stdin)
    stream_input = AsyncCommands.stream_input


class Filesystem(_Twin):
    """`AsyncFilesystem` without await."""

    _real: AsyncFilesystem

    @overload
    def read(self, path: str, format: Literal["text"] = "text", *args: Any, **kwargs: Any) -> str: ...

    @overload
    def read(self, path: str, format: Literal["bytes"], *args: Any, **kwargs: Any) -> bytearray: ...

    @overload
    def read(self, path: str, format: Literal["stream"], *args: Any, **kwargs: Any) -> Iterator[bytes]: ...

    def read(
        self,
        path: str,
        format: Literal["text", "bytes", "stream"] = "text",
        user: str | None = None,
        request_timeout: float | None = None,
        gzip: bool = False,
        stream_idle_timeout: float | None = None,
    ) -> str | bytearray | Iterator[bytes]:
        """As `AsyncFilesystem.read`."""
        read: Any = self._real.read
        content: Any = self._loop.call(partial(read, path, format, user))
        return self._iterate(content) if format == "stream" else content

    def _iterate(self, pieces: Any) -> Iterator[bytes]:
        async def following() -> bytes | None:
            return await anext(pieces, None)

        while (piece := self._loop.call(following)) is not None:
            yield piece

    write = _twin(AsyncFilesystem.write)
    write_files = _twin(AsyncFilesystem.write_files)
    list = _twin(AsyncFilesystem.list)
    exists = _twin(AsyncFilesystem.exists)
    get_info = _twin(AsyncFilesystem.get_info)
    remove = _twin(AsyncFilesystem.remove)
    rename = _twin(AsyncFilesystem.rename)
    make_dir = _twin(AsyncFilesystem.make_dir)
    watch_dir = AsyncFilesystem.watch_dir


class _OfSync(AsyncSandbox):
    """The asynchronous sandboxes under synchronous ones, which no other loop may touch."""

    _open: ClassVar[dict[str, AsyncSandbox]] = {}


class Sandbox(_Twin):
    """E2B's ``Sandbox`` on a provider of ours: `AsyncSandbox` without await; a context manager that kills it."""

    default_provider: ClassVar[str] = "auto"
    _open: ClassVar[dict[str, Sandbox]] = {}
    _real: AsyncSandbox

    def __init__(self, loop: _Loop, real: AsyncSandbox) -> None:
        super().__init__(loop, real)
        self.files = Filesystem(loop, real.files)
        self.commands = Commands(loop, real.commands)

    def __getattr__(self, name: str) -> Any:
        if name in UNSUPPORTED:
            raise UnsupportedException(f"{name} is not available here; docs/e2b.md lists what is")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    @classmethod
    def _on(cls, sandbox_id: str, call: str, args: Any, kwargs: Any) -> Any:
        sandbox = cls._open.get(sandbox_id)
        if sandbox is None and call == "kill":
            return False
        if sandbox is None:
            raise SandboxNotFoundException(f"no sandbox {sandbox_id!r} in this process; there are: {sorted(cls._open)}")
        return getattr(sandbox, call)(*args, **kwargs)

    @property
    def sandbox_id(self) -> str:
        """Which sandbox this is."""
        return self._real.sandbox_id

    @property
    def sandbox_domain(self) -> str:
        """Always empty: a sandbox cannot be reached over a network."""
        return ""

    @classmethod
    def create(
        cls,
        template: str | None = None,
        timeout: int | None = None,
        metadata: dict[str, str] | None = None,
        envs: dict[str, str] | None = None,
        secure: bool | None = None,
        allow_internet_access: bool | None = None,
        *,
        provider: str | None = None,
        spec: SandboxSpec | None = None,
        **options: Any,
    ) -> Self:
        """As `AsyncSandbox.create`."""
        loop = _Loop()
        create = partial(
            _OfSync.create,
            template, timeout, metadata, envs, secure, allow_internet_access,
            provider=provider or cls.default_provider, spec=spec, **options,
        )  # fmt: skip
        try:
            sandbox = cls(loop, loop.call(create))
        except BaseException:
            loop.close()
            raise
        cls._open[sandbox.sandbox_id] = sandbox
        return sandbox

    @by_id
    def kill(self, **options: Any) -> bool:
        """As `AsyncSandbox.kill`."""
        type(self)._open.pop(self.sandbox_id, None)
        if self._loop.portal is None:
            return False
        try:
            return self._loop.call(self._real.kill)
        finally:
            self._loop.close()

    def is_running(self, request_timeout: float | None = None) -> bool:
        """As `AsyncSandbox.is_running`."""
        return self._loop.portal is not None and self._loop.call(self._real.is_running)

    @by_id
    def connect(self, timeout: int | None = None, **options: Any) -> Sandbox:
        """As `AsyncSandbox.connect`."""
        self._control(self._real.connect, timeout, **options)
        return self

    @by_id
    def set_timeout(self, timeout: int, **options: Any) -> None:
        """As `AsyncSandbox.set_timeout`."""
        self._control(self._real.set_timeout, timeout)

    @by_id
    def get_info(self, **options: Any) -> SandboxInfo:
        """As `AsyncSandbox.get_info`."""
        return self._control(self._real.get_info)

    @by_id
    def get_metrics(self, start: datetime | None = None, end: datetime | None = None, **options: Any) -> Metrics:
        """As `AsyncSandbox.get_metrics`."""
        return self._control(self._real.get_metrics)

    @by_id
    def pause(self, keep_memory: bool | None = None, **options: Any) -> bool:
        """As `AsyncSandbox.pause`."""
        return self._control(self._real.pause, keep_memory)

    def _control(self, method: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if self._loop.portal is None:
            raise SandboxNotFoundException(f"sandbox {self.sandbox_id} was killed")
        return self._loop.call(partial(method, *args, **kwargs))

    def run_code(
        self,
        code: str,
        language: str | None = None,
        context: Context | None = None,
        on_stdout: Heard[OutputMessage] | None = None,
        on_stderr: Heard[OutputMessage] | None = None,
        on_result: Heard[Result] | None = None,
        on_error: Heard[ExecutionError] | None = None,
        *,
        envs: dict[str, str] | None = None,
        timeout: float | None = None,
        request_timeout: float | None = None,
    ) -> Execution:
        """As `AsyncInterpreter.run_code`; callbacks are called here, in the caller's thread."""
        if self._loop.portal is None:
            raise SandboxNotRunningException("the sandbox was killed")
        heard: queue.SimpleQueue[tuple[Heard[Any], Any] | None] = queue.SimpleQueue()

        def tell(handler: Heard[T] | None) -> Heard[T] | None:
            return None if handler is None else lambda item: heard.put((handler, item))

        future = self._loop.portal.start_task_soon(
            partial(
                self._real.run_code, code, language, context, tell(on_stdout), tell(on_stderr), tell(on_result),
                tell(on_error), envs=envs, timeout=timeout,
            )
        )  # fmt: skip
        future.add_done_callback(lambda _: heard.put(None))
        try:
            while (call := heard.get()) is not None:
                call[0](call[1])
            return future.result()
        except BaseException:
            future.cancel()
            raise

    create_code_context = _twin(AsyncInterpreter.create_code_context)
    remove_code_context = _twin(AsyncInterpreter.remove_code_context)
    list_code_contexts = _twin(AsyncInterpreter.list_code_contexts)
    restart_code_context = _twin(AsyncInterpreter.restart_code_context)

    @classmethod
    def list(cls, query: SandboxQuery | None = None, limit: int | None = None, **options: Any) -> SandboxPaginator:
        """As `AsyncSandbox.list`."""
        return SandboxPaginator(query, limit, cls._open)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()


class SandboxPaginator:
    """Pages of sandboxes: ``while pages.has_next: pages.next_items()``."""

    def __init__(self, query: SandboxQuery | None, limit: int | None, sandboxes: dict[str, Sandbox]) -> None:
        self._query = query or SandboxQuery()
        self._limit = limit or 100
        self._waiting = list(sandboxes.values())

    @property
    def has_next(self) -> bool:
        """Whether there may be more."""
        return bool(self._waiting)

    def next_items(self) -> list[SandboxInfo]:
        """The next page."""
        page: list[SandboxInfo] = []
        while self._waiting and len(page) < self._limit:
            try:
                info = self._waiting.pop(0).get_info()
            except SandboxNotFoundException:
                continue  # it has ended meanwhile
            if self._query.matches(info):
                page.append(info)
        return page
