"""Sandboxes that are ready before they are asked for.

An episode gets a sandbox of its own, which is killed when it is given back; the pool refills in the background. Where
the specification is *stateless*, episodes share ``size`` sandboxes instead, each for one execution at a time: then
thousands of episodes need no more of them than the machine has cores.

    ready --take--> in use --give back--> killed, a new one is started      (stateless: wiped, and ready again)
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self

import anyio

from toolgym.errors import ConfigError
from toolgym.sandboxes.base import Sandbox, SandboxError, SandboxLost, SandboxSpec, SandboxTimeout
from toolgym.sandboxes.provider import Provider, choose_provider
from toolgym.sandboxes.shared import SharedSandbox
from toolgym.sandboxes.slots import EngineSlots, Slot

_BACKOFF_S = (0.25, 0.5, 1.0, 2.0, 4.0)  # between attempts to start a sandbox on an engine that does not answer
_SWEEP_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolStats:
    """What a pool has and has done. ``waits_s`` are the last 1,000 waits for a sandbox. ``PoolStats(ready=4, ...)``."""

    ready: int
    in_use: int
    starting: int
    waiting: int
    started: int
    failed_starts: int
    waits_s: tuple[float, ...]


@dataclass(slots=True, eq=False)
class _Waiter:
    event: anyio.Event = field(default_factory=anyio.Event)
    sandbox: Sandbox | None = None


class SandboxPool:
    """Warm sandboxes of one specification; an async context manager that kills them all on leaving.

    Args:
        provider: a name (see `open_sandbox`) or a provider.
        spec: what each is made of.
        size: how many are kept ready (stateless: how many there are).
        limit: how many may exist at once, those in use included; who comes later waits.
        run_id: put on every sandbox.
        parallel_starts: how many are started at once.
        acquire_timeout_s: deadline of `acquire` where it is given none.

    Entering sweeps what dead owners left on this machine, opens the first sandbox, and raises as `open_sandbox` does.
    """

    def __init__(
        self,
        provider: str | Provider,
        spec: SandboxSpec | None = None,
        size: int = 4,
        *,
        limit: int = 256,
        run_id: str = "",
        parallel_starts: int = 4,
        acquire_timeout_s: float = 120.0,
    ) -> None:
        if not 1 <= size <= limit or parallel_starts < 1:
            raise ConfigError(
                f"a pool needs 1 <= size <= limit and a start at a time, got {size=} {limit=} {parallel_starts=}"
            )
        self.spec = spec or SandboxSpec()
        self.run_id = run_id
        self._wanted = provider
        self._size, self._limit, self._parallel = size, limit, parallel_starts
        self._acquire_timeout_s = acquire_timeout_s
        self._provider: Provider | None = None
        self._ready: deque[Sandbox] = deque()
        self._waiters: deque[_Waiter] = deque()
        self._slots: dict[Sandbox, Slot | None] = {}  # of every sandbox that lives
        self._starting = 0
        self._started = self._failed = self._failed_in_a_row = 0
        self._error: SandboxError | None = None
        self._waits: deque[float] = deque(maxlen=1000)
        self._wake = anyio.Event()

    # -- the pool itself

    @property
    def provider(self) -> Provider:
        """Where its sandboxes come from; known once the pool is entered."""
        if self._provider is None:
            raise RuntimeError("the pool is not open: use it in `async with`")
        return self._provider

    def describe(self) -> str:
        """One line: which provider, what it isolates, and what it does not."""
        return self.provider.describe(self.spec)

    def stats(self) -> PoolStats:
        """What it has now."""
        return PoolStats(
            ready=len(self._ready),
            in_use=len(self._slots) - len(self._ready),
            starting=self._starting,
            waiting=len(self._waiters),
            started=self._started,
            failed_starts=self._failed,
            waits_s=tuple(self._waits),
        )

    async def __aenter__(self) -> Self:
        if isinstance(self._wanted, Provider):
            self._provider = self._wanted
            await self._provider.check(self.spec)
        else:
            self._provider = await choose_provider(self._wanted, self.spec)
        with anyio.move_on_after(_SWEEP_S):
            await self._provider.sweep()
        self._engine = EngineSlots(self._provider.name)
        await self._open_one()
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._kill_all)
            self._tasks = await stack.enter_async_context(anyio.create_task_group())
            self._tasks.start_soon(self._refill)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._tasks.cancel_scope.cancel()
        await self._stack.__aexit__(None, None, None)  # an error of the body goes on as it is, in no group of ours

    async def _kill_all(self) -> None:
        """Kill every sandbox, also those that somebody still holds. Bounded: each kill is."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as tasks:
                for sandbox in list(self._slots):
                    tasks.start_soon(self._discard, sandbox)

    # -- taking and giving back

    @asynccontextmanager
    async def acquire(self, *, timeout_s: float | None = None) -> AsyncIterator[Sandbox]:
        """A sandbox for one episode; first come, first served.

        It may be entered in one task and left in another. Where the specification is stateless this is a
        `SharedSandbox`, which waits for a sandbox at each execution instead of here.

        Raises:
            SandboxTimeout: none was to be had within ``timeout_s``.
            SandboxLost: none was, and the engine is why.
        """
        if self.spec.stateless:
            yield SharedSandbox(self)
            return
        sandbox = await self.take(timeout_s=timeout_s)
        try:
            yield sandbox
        finally:
            self.give_back(sandbox, reuse=False)

    async def take(self, *, timeout_s: float | None = None) -> Sandbox:
        """A sandbox that lives and whose lifetime starts now; `give_back` must follow. Raises as `acquire`."""
        began = anyio.current_time()
        timeout_s = self._acquire_timeout_s if timeout_s is None else timeout_s
        try:
            with anyio.fail_after(timeout_s):
                while True:
                    sandbox = await self._next()
                    try:
                        if not sandbox.ended and not self.spec.stateless:
                            await sandbox.set_timeout(self.spec.lifetime_s)
                    except SandboxError:
                        self.give_back(
                            sandbox, reuse=False
                        )  # it died while it waited: its time was up, or its engine left
                    except BaseException:
                        self.give_back(sandbox, reuse=False)
                        raise
                    else:
                        if not sandbox.ended:
                            self._waits.append(anyio.current_time() - began)
                            return sandbox
                        self.give_back(sandbox, reuse=False)
        except TimeoutError:
            if self._error is not None and self._failed_in_a_row:
                raise SandboxLost(f"no sandbox within {timeout_s:g} s: {self._error}") from self._error
            raise SandboxTimeout(
                f"no sandbox within {timeout_s:g} s: "
                f"{len(self._slots)} in use of {self._limit}, {len(self._waiters)} waiting"
            ) from None

    async def _next(self) -> Sandbox:
        """The first ready sandbox that nobody before us waits for."""
        if self._ready and not self._waiters:
            sandbox = self._ready.popleft()
            self._wake.set()
            return sandbox
        waiter = _Waiter()
        self._waiters.append(waiter)
        self._wake.set()
        try:
            await waiter.event.wait()
        except BaseException:
            if waiter.sandbox is not None:  # handed over at the moment of our cancellation: to the next
                self._offer(waiter.sandbox)
            else:
                self._waiters.remove(waiter)
            raise
        assert waiter.sandbox is not None, "a waiter is woken with a sandbox"
        return waiter.sandbox

    def _offer(self, sandbox: Sandbox) -> None:
        if self._waiters:
            waiter = self._waiters.popleft()
            waiter.sandbox = sandbox
            waiter.event.set()
        else:
            self._ready.append(sandbox)

    def give_back(self, sandbox: Sandbox, *, reuse: bool) -> None:
        """Return a sandbox: ready again where it may be reused and lives, else killed in the background."""
        if reuse and not sandbox.ended:
            self._offer(sandbox)
        elif not self._tasks.cancel_scope.cancel_called:
            self._tasks.start_soon(self._discard, sandbox)
        self._wake.set()

    # -- behind the scenes

    async def _discard(self, sandbox: Sandbox) -> None:
        with anyio.CancelScope(shield=True):
            await sandbox.kill()
            slot = self._slots.pop(sandbox, None)
            if slot is not None:
                slot.release()
        self._wake.set()

    async def _open_one(self) -> None:
        """Start a sandbox on a free slot of the engine and offer it."""
        slot = await self._engine.acquire()
        try:
            sandbox = await self.provider.open(self.spec, run_id=self.run_id)
        except BaseException:
            slot.release()
            raise
        self._slots[sandbox] = slot
        self._started += 1
        self._failed_in_a_row = 0
        self._offer(sandbox)

    async def _start_one(self) -> None:
        try:
            await self._open_one()
        except SandboxError as error:
            self._error = error
            self._failed += 1
            pause = _BACKOFF_S[min(self._failed_in_a_row, len(_BACKOFF_S) - 1)]
            self._failed_in_a_row += 1
            await anyio.sleep(pause)
        finally:
            self._starting -= 1
            self._wake.set()

    def _missing(self) -> int:
        """How many more are to be started now."""
        alive = len(self._slots) + self._starting
        if self.spec.stateless:
            missing = self._size - alive
        else:
            missing = min(self._size + len(self._waiters) - len(self._ready) - self._starting, self._limit - alive)
        return min(missing, self._parallel - self._starting)

    async def _refill(self) -> None:
        while True:
            for _ in range(self._missing()):
                self._starting += 1
                self._tasks.start_soon(self._start_one)
            self._wake = anyio.Event()
            await self._wake.wait()


def percentile(values: tuple[float, ...], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed; nan where there are none."""
    if not values:
        return math.nan
    return sorted(values)[min(len(values) - 1, math.ceil(share * len(values)) - 1)]
