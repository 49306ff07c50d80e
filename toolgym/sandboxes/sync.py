"""The synchronous twin: the same calls without await, for scripts and notebooks."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial, wraps
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

from anyio.from_thread import BlockingPortal, start_blocking_portal

from toolgym.sandboxes.base import Process, Sandbox, SandboxSpec
from toolgym.sandboxes.provider import open_sandbox

P = ParamSpec("P")
T = TypeVar("T")


class _Twin:
    """Something asynchronous, and the thread in which its event loop runs."""

    _portal: BlockingPortal
    _real: Any


def _twin(
    method: Callable[Concatenate[Any, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate[_Twin, P], T]:
    """The method without await."""

    @wraps(method)
    def call(self: _Twin, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._portal.call(partial(getattr(self._real, method.__name__), *args, **kwargs))

    return call


class SyncProcess(_Twin):
    """`Process` without await."""

    def __init__(self, portal: BlockingPortal, process: Process) -> None:
        self._portal, self._real = portal, process
        self.pid = process.pid

    wait = _twin(Process.wait)
    send_stdin = _twin(Process.send_stdin)
    kill = _twin(Process.kill)


class SyncSandbox(_Twin):
    """`Sandbox` without await, with an event loop in a thread of its own; a context manager, as `open_sandbox` is.

    Callbacks (``on_output``) are called in that thread. Example::

        with SyncSandbox("local") as sandbox:
            print(sandbox.run_code("print(1 + 1)").stdout)
    """

    def __init__(self, provider: str = "auto", spec: SandboxSpec | None = None, *, run_id: str = "") -> None:
        self._arguments = (provider, spec, run_id)
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        provider, spec, run_id = self._arguments
        with ExitStack() as stack:
            self._portal = stack.enter_context(start_blocking_portal())
            opened: AbstractContextManager[Sandbox] = self._portal.wrap_async_context_manager(
                open_sandbox(provider, spec, run_id=run_id)
            )
            self._real = stack.enter_context(opened)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, trace)

    run_code = _twin(Sandbox.run_code)
    create_context = _twin(Sandbox.create_context)
    remove_context = _twin(Sandbox.remove_context)
    run = _twin(Sandbox.run)
    processes = _twin(Sandbox.processes)
    read_bytes = _twin(Sandbox.read_bytes)
    read_text = _twin(Sandbox.read_text)
    write = _twin(Sandbox.write)
    write_many = _twin(Sandbox.write_many)
    list_dir = _twin(Sandbox.list_dir)
    exists = _twin(Sandbox.exists)
    file_info = _twin(Sandbox.file_info)
    rename = _twin(Sandbox.rename)
    remove = _twin(Sandbox.remove)
    make_dir = _twin(Sandbox.make_dir)
    set_timeout = _twin(Sandbox.set_timeout)
    info = _twin(Sandbox.info)
    metrics = _twin(Sandbox.metrics)
    pause = _twin(Sandbox.pause)
    resume = _twin(Sandbox.resume)
    kill = _twin(Sandbox.kill)

    @wraps(Sandbox.start)
    def start(self, *args: Any, **kwargs: Any) -> SyncProcess:
        """As `Sandbox.start`."""
        return SyncProcess(self._portal, self._portal.call(partial(self._real.start, *args, **kwargs)))

    def connect(self, pid: int) -> SyncProcess:
        """As `Sandbox.connect`."""
        return SyncProcess(self._portal, self._portal.call(self._real.connect, pid))

    def read_stream(self, path: str) -> Iterator[bytes]:
        """As `Sandbox.read_stream`."""
        pieces: AsyncIterator[bytes] = self._real.read_stream(path)
        while (piece := self._portal.call(_next, pieces)) is not None:
            yield piece


async def _next(pieces: AsyncIterator[bytes]) -> bytes | None:
    return await anext(pieces, None)
