"""Output as it comes, from a call to a callback that may be a coroutine."""

from __future__ import annotations

import inspect
import math
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias, TypeVar

import anyio

from toolgym.sandboxes.base import OnOutput, SandboxError

T = TypeVar("T")
Handler: TypeAlias = Callable[[T], Any]
"""A callback; what it returns is awaited where it can be."""


async def tell(handler: Handler[T] | None, item: T) -> None:
    """Call a handler, where there is one."""
    if handler is not None:
        answer = handler(item)
        if inspect.isawaitable(answer):
            await answer


async def relay(call: Callable[[OnOutput], Awaitable[T]], hear: Callable[[str, str], Awaitable[None]]) -> T:
    """Make ``call`` and pass each piece of its output on, in order, to ``hear`` ("stdout" or "stderr", text).

    Raises what the call raises, and what ``hear`` raises: then the call is cancelled.
    """
    results: list[T] = []
    failures: list[Exception] = []
    send, receive = anyio.create_memory_object_stream[tuple[str, str]](math.inf)

    async def run() -> None:
        with send:
            try:
                results.append(await call(lambda name, text: send.send_nowait((name, text))))
            except SandboxError as error:
                failures.append(error)

    with send, receive:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            async for name, text in receive:
                try:
                    await hear(name, text)
                except Exception as error:  # of the caller's callback, to whom it goes
                    failures.append(error)
                    tasks.cancel_scope.cancel()
                    break
    if failures:
        raise failures[0]
    return results[0]
