"""Environments for many episodes: shared resources opened once, an instance for each episode."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from toolgym.envs.base import Env
from toolgym.envs.registry import env_class, make
from toolgym.types import Task


class EnvFactory:
    """Makes the environments of a run's episodes. See `open_envs`."""

    def __init__(self, first: Env, shared: Any, kwargs: dict[str, Any]) -> None:
        self._first = first
        self._shared = shared
        self._kwargs = kwargs
        self._class = env_class(first.env_id)

    @property
    def env_id(self) -> str:
        """The environment's name."""
        return self._first.env_id

    @property
    def tools(self) -> Sequence[Any]:
        """The `ToolSpec`s of every instance (for their names and schemas; call those of an instance)."""
        return self._first.tools

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits."""
        return self._first.splits

    def make(self) -> Env:
        """An environment for one episode, using the shared resources. Its user closes it (``aclose``)."""
        return self._class(**self._kwargs, shared=self._shared)

    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of one split."""
        return self._first.tasks(split)

    def describe(self) -> str:
        """One line: where the tools run and what that isolates."""
        return self._first.describe(self._shared)


@asynccontextmanager
async def open_envs(env_id: str, *, demonstrations: bool = False, **kwargs: Any) -> AsyncIterator[EnvFactory]:
    """Open what the episodes of an environment share, and close it at the end.

        async with open_envs("toolgym/python-v0", sandbox="auto") as envs:
            env = envs.make()

    Args:
        env_id: a registered name.
        demonstrations: for playing scripted experts only: see `Env.open_demonstrations`.
        **kwargs: the environment's own arguments.

    Raises:
        ConfigError: no such environment or argument.
        SandboxError: the shared resources cannot be opened.
    """
    first = make(env_id, **kwargs)
    opened = first.open_demonstrations() if demonstrations else first.open_shared()
    async with opened as shared:
        yield EnvFactory(first, shared, kwargs)
