"""Run somebody's synchronous function beside the event loop, with a deadline at which it is abandoned.

`anyio.to_thread.run_sync` will not do: its worker threads are not daemonic, so one function that never returns would
keep the whole process from ending. Here each call has a daemon thread of its own (about 0.1 ms).
"""

import contextvars
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.from_thread
from anyio.lowlevel import RunVar, current_token

from toolgym.errors import EnvError

T = TypeVar("T")

MAX_THREADS = 64  # at once and waited for; more calls queue, within their deadlines
MAX_ABANDONED = 256  # threads that hang for good: each holds memory, and a program with this many is broken

_limiter: RunVar[anyio.CapacityLimiter] = RunVar("toolgym_sync_calls")
_abandoned: set[threading.Thread] = set()


class _Call:
    """One call's result, written by its thread and read by the event loop after ``done``."""

    def __init__(self) -> None:
        self.done = anyio.Event()
        self.value: Any = None
        self.error: BaseException | None = None

    def run(self, fn: Callable[[], Any], token: Any) -> None:
        try:
            self.value = fn()
        except (Exception, SystemExit) as error:
            self.error = error
        except BaseException as error:  # raised anew in the event loop, these would mean something else there
            self.error = RuntimeError(f"{type(error).__name__}: {error}")
        # The loop may be gone by now (NoEventLoopError, RunFinishedError): then nobody waits for the result.
        try:
            anyio.from_thread.run_sync(self.done.set, token=token)
        except RuntimeError:
            return


async def run_in_thread(fn: Callable[..., T], *args: Any, timeout_s: float) -> T:
    """Call ``fn(*args)`` in a thread and wait for it at most ``timeout_s`` seconds, waiting for a free thread included.

    Args:
        fn: a synchronous function. One that holds the interpreter lock for long (a regular expression, a huge power)
            blocks the event loop all the same: run such a one in a process or a sandbox.
        *args: its arguments.
        timeout_s: seconds until the call is abandoned; its thread goes on, and what it returns is dropped.

    Raises:
        TimeoutError: the deadline passed.
        EnvError: `MAX_ABANDONED` earlier calls still hang.
        Exception, SystemExit: what ``fn`` raised; another BaseException as RuntimeError.
    """
    _abandoned.difference_update([t for t in _abandoned if not t.is_alive()])
    if len(_abandoned) >= MAX_ABANDONED:
        raise EnvError(
            f"{len(_abandoned)} synchronous calls of tools or rewards hang in threads, which cannot be killed: "
            "run such code in a sandbox or a process"
        )
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(MAX_THREADS)
        _limiter.set(limiter)
    call = _Call()
    context = contextvars.copy_context()
    thread = threading.Thread(
        target=call.run, args=(lambda: context.run(fn, *args), current_token()), name="toolgym-sync-call", daemon=True
    )
    with anyio.fail_after(timeout_s):
        async with limiter:
            thread.start()
            try:
                await call.done.wait()
            finally:
                if not call.done.is_set():
                    _abandoned.add(thread)
    if call.error is not None:
        raise call.error
    return call.value
