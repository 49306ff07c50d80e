"""Synchronous twins of an environment's async methods, for Gymnasium.

One event loop in a daemon thread serves all environments of a process; each environment has one task in it that runs
its calls one after another (an async resource must be left in the task that entered it). This works inside a running
event loop too, since the caller only waits for a plain future.

After a fork the child has the objects of its parent's loop but not its thread. Finalising them would wait for that
thread for ever, so the child makes its own and keeps the parent's alive, unused.
"""

import atexit
import os
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, suppress
from typing import Any, TypeAlias

import anyio
from anyio.from_thread import BlockingPortal, start_blocking_portal

from toolgym.errors import EnvError

_Job: TypeAlias = tuple[Callable[[], Awaitable[Any]], "Future[Any]"]


class _Loop:
    """The event loop of one process."""

    def __init__(self) -> None:
        self.pid = os.getpid()
        self.context: AbstractContextManager[BlockingPortal] = start_blocking_portal(name="toolgym-sync-envs")
        self.portal = self.context.__enter__()


_loop: _Loop | None = None
_lock = threading.Lock()
_inherited: list[_Loop] = []  # loops of parent processes: never finalised


def _after_fork() -> None:
    global _loop, _lock
    _lock = threading.Lock()  # another thread of the parent may have held it
    if _loop is not None:
        _inherited.append(_loop)
        _loop = None


def _stop_at_exit() -> None:
    loop = _loop
    if loop is not None and loop.pid == os.getpid():
        # Environments that nobody closed end here: their tasks are cancelled, and their cleanup is bounded.
        loop.portal.start_task_soon(loop.portal.stop, True)
        loop.context.__exit__(None, None, None)


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_stop_at_exit)


def _portal() -> BlockingPortal:
    global _loop
    with _lock:
        if _loop is None:
            _loop = _Loop()
        return _loop.portal


class SyncDriver:
    """Runs one environment's coroutines, one at a time, in one task of the process's event loop."""

    def __init__(self, close: Callable[[], Awaitable[None]]) -> None:
        """Start the task; ``close`` is the environment's, run in it at its end."""
        self._pid = os.getpid()
        self._portal = _portal()
        self._close = close
        self._jobs, jobs = anyio.create_memory_object_stream[_Job](0)
        self._task = self._portal.start_task_soon(self._serve, jobs)

    def call(self, fn: Callable[[], Awaitable[Any]]) -> Any:
        """Run ``fn()`` to its end and return what it returns, or raise what it raises.

        Interrupted (Ctrl-C), it cancels ``fn()`` and with it the driver.

        Raises:
            EnvError: the environment was in use before this process was forked (make it in this one instead), or was
                interrupted before.
        """
        if os.getpid() != self._pid:
            raise EnvError("an environment in use was carried through a fork: make it in the process that uses it")
        done: Future[Any] = Future()
        try:
            self._send(fn, done)
            return done.result()
        except KeyboardInterrupt:  # it may come while the job is handed over, and the job runs all the same
            self._task.cancel()
            raise

    def _send(self, fn: Callable[[], Awaitable[Any]], done: "Future[Any]") -> None:
        try:
            self._portal.call(self._jobs.send, (fn, done))
        except (anyio.ClosedResourceError, anyio.BrokenResourceError) as error:
            raise EnvError("the environment was interrupted: close it before it is used again") from error

    def stop(self) -> None:
        """End the task, which closes the environment. The driver cannot be used again."""
        if os.getpid() == self._pid:
            self._portal.call(self._jobs.close)
            with suppress(CancelledError):  # interrupted: it is closing, or has closed
                self._task.result()

    async def _serve(self, jobs: Any) -> None:
        try:
            with jobs, self._jobs:
                async for fn, done in jobs:
                    await self._run(fn, done)
        finally:
            # Not in a scope of ours, which what it leaves (a pool's task group) would have to have been entered in;
            # each shared resource shields and bounds its own cleanup.
            await self._close()

    @staticmethod
    async def _run(fn: Callable[[], Awaitable[Any]], done: Future[Any]) -> None:
        try:
            result = await fn()
        except Exception as error:
            done.set_exception(error)
        except BaseException:  # cancelled, at exit: whoever still waits must not wait for ever
            done.set_exception(CancelledError("the event loop of the synchronous environments was stopped"))
            raise
        else:
            done.set_result(result)
