"""Providers by name: the one way to open a sandbox."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from importlib import import_module

from toolgym.errors import ConfigError, nearest
from toolgym.sandboxes.base import Sandbox, SandboxSpec, SandboxUnavailable

RESTRICTIONS = (
    "network", "files", "processes", "memory", "cpu", "pids", "disk", "privileges", "user", "system calls",
)  # fmt: skip


class Provider(ABC):
    """Where sandboxes come from. One object serves a whole process; it holds no sandbox itself."""

    name: str

    @abstractmethod
    async def check(self, spec: SandboxSpec) -> None:
        """Raise SandboxUnavailable, saying what to do, where no sandbox of this kind can be opened here."""

    async def prepare(self, spec: SandboxSpec) -> None:
        """Make what `check` would miss and that can be made here, such as an image, and log that. May take minutes.

        Raises:
            SandboxUnavailable: it cannot be made.
        """
        return

    @abstractmethod
    async def open(self, spec: SandboxSpec, *, run_id: str = "") -> Sandbox:
        """Open a sandbox, which the caller kills. Raises SandboxUnavailable, SandboxLost, SandboxTimeout (60 s)."""

    @abstractmethod
    def isolation(self, spec: SandboxSpec) -> Mapping[str, str]:
        """For each of `RESTRICTIONS` how it is enforced, or "" where it is not."""

    async def sweep(self) -> int:
        """Remove what dead owners left on this machine; returns how many sandboxes that were."""
        return 0

    def describe(self, spec: SandboxSpec) -> str:
        """One line: which provider, what it isolates, and what it does not."""
        isolation = self.isolation(spec)
        held = [name for name in RESTRICTIONS if isolation.get(name)]
        open_ = [name for name in RESTRICTIONS if not isolation.get(name)]
        return (
            f"{self.name}: isolates {', '.join(held) or 'nothing'}"
            + (f"; DOES NOT ISOLATE {', '.join(open_)}" if open_ else "")
        )  # fmt: skip


_BUILTIN = {
    "docker": ("toolgym.sandboxes.docker", "DockerProvider"),
    "bubblewrap": ("toolgym.sandboxes.bubblewrap", "BubblewrapProvider"),
    "local": ("toolgym.sandboxes.local", "LocalProvider"),
}
_factories: dict[str, Callable[[], Provider]] = {}
_providers: dict[str, Provider] = {}


def register_provider(name: str, factory: Callable[[], Provider]) -> None:
    """Make a provider known by name.

    ``factory`` is called once, at its first use. Raises ConfigError: the name is taken.
    """
    if name == "auto" or name in _BUILTIN or name in _factories:
        raise ConfigError(f"a sandbox provider {name!r} exists already")
    _factories[name] = factory


def providers() -> list[str]:
    """The names that `get_provider` takes, without "auto"."""
    return sorted({*_BUILTIN, *_factories})


def get_provider(name: str) -> Provider:
    """The provider of this name. Raises ConfigError (with the nearest name) where there is none."""
    if name not in _providers:
        if name in _factories:
            _providers[name] = _factories[name]()
        elif name in _BUILTIN:
            module, attribute = _BUILTIN[name]
            _providers[name] = getattr(import_module(module), attribute)()
        else:
            raise ConfigError(nearest(name, [*providers(), "auto"], what="sandbox provider"))
    return _providers[name]


async def choose_provider(name: str, spec: SandboxSpec) -> Provider:
    """The provider that opens ``spec``, ready for use; "auto" is Docker, else bubblewrap, else plain local processes.

    Raises:
        SandboxUnavailable: it cannot open sandboxes here, or isolates less than the specification needs.
    """
    if name != "auto":
        provider = get_provider(name)
        await provider.prepare(spec)
        await provider.check(spec)
        return _isolating(provider, spec)
    reasons: list[str] = []
    for candidate in ("docker", "bubblewrap", "local"):
        provider = get_provider(candidate)
        try:
            await provider.prepare(spec)
            await provider.check(spec)
            provider = _isolating(provider, spec)
        except SandboxUnavailable as error:
            reasons.append(f"{candidate}: {error}")
            continue
        if candidate == "local":
            warnings.warn(f"sandbox: {provider.describe(spec)}. {' | '.join(reasons)}", RuntimeWarning, stacklevel=2)
        return provider
    raise SandboxUnavailable("no provider can open this sandbox: " + " | ".join(reasons))


def _isolating(provider: Provider, spec: SandboxSpec) -> Provider:
    isolation = provider.isolation(spec)
    if spec.needs_isolation and not (isolation.get("files") and isolation.get("network")):
        raise SandboxUnavailable(
            f"this needs an isolated sandbox, and {provider.describe(spec)}; "
            "start Docker (`toolgym sandbox doctor` says how)"
        )
    return provider


@asynccontextmanager
async def open_sandbox(provider: str, spec: SandboxSpec | None = None, *, run_id: str = "") -> AsyncIterator[Sandbox]:
    """A sandbox that is killed on leaving.

    Args:
        provider: one of `providers()`, or "auto", which alone may fall back to a weaker one (and warns of it).
        spec: what it is made of; the defaults where None.
        run_id: put on all that is made for it, for `toolgym sandbox ps`.

    Raises:
        ConfigError: no such provider.
        SandboxUnavailable: it cannot open sandboxes here.
    """
    spec = spec or SandboxSpec()
    chosen = await choose_provider(provider, spec)
    sandbox = await chosen.open(spec, run_id=run_id)
    try:
        yield sandbox
    finally:
        await sandbox.kill()
