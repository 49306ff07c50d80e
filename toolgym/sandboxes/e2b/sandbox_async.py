"""E2B's asynchronous sandbox."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import wraps
from types import MethodType, TracebackType
from typing import Any, ClassVar, Self, TypeAlias

import anyio

from toolgym.sandboxes import base
from toolgym.sandboxes.base import SandboxSpec
from toolgym.sandboxes.e2b.commands import AsyncCommands
from toolgym.sandboxes.e2b.exceptions import (
    InvalidArgumentException,
    SandboxNotFoundException,
    SandboxNotRunningException,
    UnsupportedException,
    translated,
)
from toolgym.sandboxes.e2b.files import AsyncFilesystem
from toolgym.sandboxes.e2b.interpreter import AsyncInterpreter
from toolgym.sandboxes.e2b.models import SandboxInfo, SandboxMetrics, SandboxQuery, SandboxState
from toolgym.sandboxes.provider import choose_provider

DEFAULT_SANDBOX_TIMEOUT = 300
PAUSED_S = 30 * 86400.0  # how long E2B keeps a paused sandbox
SPEC = SandboxSpec(
    memory_mb=1024, pids=256, tmp_mb=256, files=16384, file_mb=128, output_kb=1024, open_files=1024
)  # fmt: skip
STOCK_TEMPLATES = (None, "base", "code-interpreter-v1")
CONNECTION_OPTIONS = frozenset(
    ("api_key", "access_token", "domain", "debug", "request_timeout", "headers", "proxy", "api_url", "sandbox_url",
     "secure", "logger", "idempotency_key", "retry", "http_version", "integration", "validate_api_key")
)  # fmt: skip
UNSUPPORTED = frozenset(
    ("pty", "git", "get_host", "get_mcp_url", "get_mcp_token", "download_url", "upload_url", "fork", "create_snapshot",
     "list_snapshots", "delete_snapshot", "update_network", "beta_pause", "traffic_access_token",
     "connection_config", "envd_api_url")
)  # fmt: skip
Metrics: TypeAlias = list[SandboxMetrics]


def check_options(options: dict[str, Any]) -> None:
    """Let pass what only concerns E2B's servers.

    Raises UnsupportedException for what would have to have an effect, TypeError for what E2B does not know either.
    """
    for name, value in options.items():
        if name in ("mcp", "network", "iam", "lifecycle", "volume_mounts", "auto_pause"):
            if value:
                raise UnsupportedException(f"Sandbox.create: {name} is not available here; leave it out")
        elif name not in CONNECTION_OPTIONS:
            raise TypeError(f"Sandbox.create() got an unexpected keyword argument {name!r}")


class by_id:
    """A method that can also be called on the class, with a sandbox's id first: ``Sandbox.kill("a1b2")``."""

    def __init__(self, method: Callable[..., Any]) -> None:
        self._method = method
        self.__doc__ = method.__doc__

    def __get__(self, instance: Any, owner: Any) -> Callable[..., Any]:
        if instance is not None:
            return MethodType(self._method, instance)

        @wraps(self._method)
        def call(sandbox_id: str, *args: Any, **kwargs: Any) -> Any:
            return owner._on(sandbox_id, self._method.__name__, args, kwargs)

        return call


class AsyncSandbox(AsyncInterpreter):
    """E2B's ``AsyncSandbox`` on a provider of ours: make one with `create`, end it with `kill` or ``async with``.

    ``default_provider`` says where sandboxes come from when `create` is not told. Ids are known in this process only.
    """

    default_provider: ClassVar[str] = "auto"
    _open: ClassVar[dict[str, AsyncSandbox]] = {}

    def __init__(self, sandbox: base.Sandbox, *, template: str, metadata: dict[str, str]) -> None:
        super().__init__(self._usable_sandbox)
        self._sandbox = sandbox
        self._template = template
        self._metadata = metadata
        self._killed = self._paused = False
        self._started = datetime.now(UTC)
        self._measured = (anyio.current_time(), 0.0)  # seconds, and of processor time
        self.files = AsyncFilesystem(self._usable_sandbox)
        self.commands = AsyncCommands(self._usable_sandbox)

    def __getattr__(self, name: str) -> Any:
        if name in UNSUPPORTED:
            raise UnsupportedException(f"{name} is not available here; docs/e2b.md lists what is")
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    def _usable_sandbox(self) -> base.Sandbox:
        if self._paused and not self._killed:
            raise SandboxNotRunningException(f"sandbox {self.sandbox_id} is paused; connect() resumes it")
        if self._killed or self._sandbox.ended:
            raise SandboxNotRunningException(f"sandbox {self.sandbox_id} was killed or reached its timeout")
        return self._sandbox

    def _existing_sandbox(self) -> base.Sandbox:
        if self._killed or self._sandbox.ended:
            raise SandboxNotFoundException(f"sandbox {self.sandbox_id} was killed or reached its timeout")
        return self._sandbox

    @classmethod
    async def _on(cls, sandbox_id: str, call: str, args: Any, kwargs: Any) -> Any:
        sandbox = cls._open.get(sandbox_id)
        if sandbox is None and call == "kill":
            return False
        if sandbox is None:
            raise SandboxNotFoundException(f"no sandbox {sandbox_id!r} in this process; there are: {sorted(cls._open)}")
        return await getattr(sandbox, call)(*args, **kwargs)

    @property
    def sandbox_id(self) -> str:
        """Which sandbox this is."""
        return self._sandbox.id

    @property
    def sandbox_domain(self) -> str:
        """Always empty: a sandbox cannot be reached over a network."""
        return ""

    @classmethod
    @translated
    async def create(
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
        """Open a sandbox.

        Args:
            template: an image; None, "base" and "code-interpreter-v1" are our default image.
            timeout: seconds until it ends by itself; 300 where None.
            metadata: kept for `get_info` and `list`.
            envs: variables of all commands and code in it.
            secure: no effect.
            allow_internet_access: True gives it a network. None is False here, as in every sandbox of ours.
            provider: where from (ours, not E2B's); ``default_provider`` where None.
            spec: limits (ours, not E2B's); those above go first.
            **options: of E2B's, for its servers (``api_key``, ...): no effect.

        Raises:
            SandboxException: none can be opened; says what to do.
            UnsupportedException: an option that is not to be had.
        """
        check_options(options)
        spec = spec or SPEC
        spec = replace(
            spec,
            image=spec.image if template in STOCK_TEMPLATES else str(template),
            lifetime_s=float(timeout or DEFAULT_SANDBOX_TIMEOUT),
            env={**spec.env, **(envs or {})},
            network=spec.network if allow_internet_access is None else allow_internet_access,
        )
        chosen = await choose_provider(provider or cls.default_provider, spec)
        sandbox = cls(await chosen.open(spec, run_id="e2b"), template=template or "base", metadata=metadata or {})
        for id in [id for id, other in cls._open.items() if other._sandbox.ended]:
            del cls._open[id]
        cls._open[sandbox.sandbox_id] = sandbox
        return sandbox

    @by_id
    @translated
    async def connect(self, timeout: int | None = None, *, on_resume: str = "restore", **options: Any) -> AsyncSandbox:
        """Resume it if it is paused, and let it live ``timeout`` seconds (300 where None) at least from now on."""
        if on_resume != "restore":
            raise UnsupportedException("connect: on_resume='reboot' is not available here")
        sandbox, timeout = self._existing_sandbox(), timeout or DEFAULT_SANDBOX_TIMEOUT
        resumed, self._paused = self._paused, False
        if resumed:
            await sandbox.resume()
        if resumed or (await sandbox.info()).expires_in_s < timeout:
            await sandbox.set_timeout(timeout)
        return self

    @by_id
    @translated
    async def kill(self, **options: Any) -> bool:
        """End it with all that runs in it. False: it had ended before."""
        self._open.pop(self.sandbox_id, None)
        alive, self._killed = not (self._killed or self._sandbox.ended), True
        await self._sandbox.kill()
        await self.commands.close()
        return alive

    @by_id
    @translated
    async def set_timeout(self, timeout: int, **options: Any) -> None:
        """Let it end ``timeout`` seconds from now. Raises SandboxNotFoundException: it has ended."""
        if timeout <= 0:
            raise InvalidArgumentException(f"timeout must be above 0, got {timeout}")
        self._existing_sandbox()
        await self._usable_sandbox().set_timeout(timeout)

    @by_id
    @translated
    async def get_info(self, **options: Any) -> SandboxInfo:
        """About it. Raises SandboxNotFoundException: it has ended."""
        sandbox = self._existing_sandbox()
        return SandboxInfo(
            sandbox_id=sandbox.id,
            sandbox_domain=None,
            template_id=self._template,
            name=self._template,
            metadata=self._metadata,
            started_at=self._started,
            end_at=datetime.now(UTC) + timedelta(seconds=(await sandbox.info()).expires_in_s),
            state=SandboxState.PAUSED if self._paused else SandboxState.RUNNING,
            cpu_count=max(1, round(sandbox.spec.cpus)),
            memory_mb=sandbox.spec.memory_mb,
            envd_version="",
            allow_internet_access=sandbox.spec.network,
        )

    @by_id
    @translated
    async def get_metrics(self, start: datetime | None = None, end: datetime | None = None, **options: Any) -> Metrics:
        """What it uses now, as the only entry; its processor use is the mean since the last call."""
        self._existing_sandbox()
        found = await self._usable_sandbox().metrics()
        (before, cpu_before), now = self._measured, anyio.current_time()
        self._measured = (now, found.cpu_s)
        spec = self._sandbox.spec
        metrics = SandboxMetrics(
            cpu_count=max(1, round(spec.cpus)),
            cpu_used_pct=round(100 * max(0.0, found.cpu_s - cpu_before) / max(now - before, 1e-3), 2),
            disk_total=spec.tmp_mb << 20,
            disk_used=found.disk_bytes,
            mem_total=found.memory_limit_bytes,
            mem_used=found.memory_bytes,
            mem_cache=0,
            timestamp=datetime.now(UTC),
        )
        return [metrics]

    @by_id
    @translated
    async def pause(self, keep_memory: bool | None = None, **options: Any) -> bool:
        """Freeze it with all its processes until `connect`. False: it was paused already."""
        if keep_memory is False:
            raise UnsupportedException("pause: keep_memory=False is not available here")
        sandbox = self._existing_sandbox()
        if self._paused:
            return False
        await sandbox.set_timeout(PAUSED_S)  # its lifetime goes on while it is frozen
        await sandbox.pause()
        self._paused = True
        return True

    async def is_running(self, request_timeout: float | None = None) -> bool:
        """Whether it runs: not ended, not paused, and its provider answers."""
        if self._killed or self._paused or self._sandbox.ended:
            return False
        try:
            await self._sandbox.metrics()
        except base.SandboxError:
            return False
        return True

    @classmethod
    def list(cls, query: SandboxQuery | None = None, limit: int | None = None, **options: Any) -> AsyncSandboxPaginator:
        """The sandboxes of this process, in pages of ``limit`` (100 where None)."""
        return AsyncSandboxPaginator(query, limit, cls._open)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()


class AsyncSandboxPaginator:
    """Pages of sandboxes: ``while pages.has_next: await pages.next_items()``."""

    def __init__(self, query: SandboxQuery | None, limit: int | None, sandboxes: dict[str, AsyncSandbox]) -> None:
        self._query = query or SandboxQuery()
        self._limit = limit or 100
        self._waiting = list(sandboxes.values())

    @property
    def has_next(self) -> bool:
        """Whether there may be more."""
        return bool(self._waiting)

    async def next_items(self) -> list[SandboxInfo]:
        """The next page."""
        page: list[SandboxInfo] = []
        while self._waiting and len(page) < self._limit:
            try:
                info = await self._waiting.pop(0).get_info()
            except SandboxNotFoundException:
                continue  # it has ended meanwhile
            if self._query.matches(info):
                page.append(info)
        return page
