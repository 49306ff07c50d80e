"""The environment: a `gymnasium.Env` whose core is asynchronous.

An author writes ``tasks``, ``areset`` and ``astep`` (or uses `ToolEnv`, which writes the last two); the rollout loop
calls them. Gymnasium's synchronous ``reset``, ``step`` and ``close`` come free. One instance plays one episode at a
time.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, Self

import gymnasium

from toolgym.envs.registry import name_of
from toolgym.envs.space import TextSpace
from toolgym.envs.sync import SyncDriver
from toolgym.errors import (
    ConfigError,
    EngineError,
    EnvError,
    RewardError,
    SandboxError,
    ToolgymError,
    nearest,
)
from toolgym.toolcalls import format_assistant, parse_assistant
from toolgym.types import JSON, Failed, Message, Outcome, Scored, Step, Task, content_hash

_ERRORS: Mapping[str, type[ToolgymError]] = {
    "sandbox": SandboxError,
    "reward": RewardError,
    "judge": RewardError,
    "engine": EngineError,
}


class Env(gymnasium.Env[str, str]):
    """A tool environment.

    To write one: subclass, give ``tasks``, ``areset`` and ``astep``, and put ``@register("acme/name-v0")`` on it.
    What all its episodes share (a pool of sandboxes, a loaded corpus) is opened by ``open_shared``; an instance that
    was made with ``shared`` uses that, one that was made without (by `gymnasium.make`) opens its own at the first
    reset.

    In the Gymnasium view an action is the text of an assistant message in the canonical form (`toolgym.toolcalls`),
    and an observation the text of the messages that followed the last action. ``info`` holds nothing that differs
    between two equal runs.
    """

    env_id: str = ""  # set by `register`
    splits: ClassVar[tuple[str, ...]] = ("train", "validation", "test")
    tools: Sequence[Any] = ()  # of ToolSpec
    metadata: dict[str, Any] = {"render_modes": ["ansi"], "render_fps": 1}  # noqa: RUF012 - Gymnasium's declaration

    def __init__(self, *, split: str = "train", render_mode: str | None = None, shared: Any = None) -> None:
        """Make an instance.

        Args:
            split: where a reset that names no task draws one from.
            render_mode: None, or "ansi": ``render()`` gives the conversation as text.
            shared: what ``open_shared`` gave; None: the instance opens its own.

        Raises:
            ConfigError: no such split or render mode.
        """
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ConfigError(nearest(str(render_mode), self.metadata["render_modes"], what="render mode"))
        self.split = self.check_split(split)
        self.render_mode = render_mode
        self.action_space = TextSpace()
        self.observation_space = TextSpace()
        self.messages: tuple[Message, ...] = ()  # the episode so far
        self._shared = shared
        self._owned = AsyncExitStack()  # shared resources that this instance opened itself
        self._driver: SyncDriver | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Give the class the name under which an entry point has made it known."""
        super().__init_subclass__(**kwargs)
        cls.env_id = name_of(cls) or cls.env_id

    # -- what an author writes

    @abstractmethod
    def tasks(self, split: str) -> Sequence[Task]:
        """The tasks of one split, always the same in the same order. Raises ConfigError: no such split."""
        raise NotImplementedError(f"{type(self).__name__} must define tasks(split)")

    @abstractmethod
    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, JSON]]:
        """Begin an episode; an unfinished one is dropped.

        Args:
            seed: for the draw of a task, where the options name none.
            options: ``{"task": Task}``, ``{"task_id": str}``, or nothing (see `choose_task`).

        Returns:
            The first messages, and an info dict with at least ``task_id``.
        """
        raise NotImplementedError(f"{type(self).__name__} must define areset")

    @abstractmethod
    async def astep(self, action: Message) -> Step:
        """Answer one assistant message.

        Raises:
            EnvError: no episode runs.
            SandboxError, RewardError: what the policy cannot cause; the episode has failed and has no score.
        """
        raise NotImplementedError(f"{type(self).__name__} must define astep")

    async def atruncate(self, reason: str) -> Outcome:
        """The agent's budget (``reason``: turns, tokens or time) ran out: end the episode and say what it is worth."""
        del reason
        return Scored(value=0.0)

    async def aclose(self) -> None:
        """Let go of everything that this instance opened. May be called more than once, and must be called."""
        await self._owned.aclose()

    async def __aenter__(self) -> Self:
        await self.ensure_shared()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    @asynccontextmanager
    async def open_shared(self) -> AsyncIterator[Any]:
        """Open what all episodes share and give it to ``shared``; called once on an instance that plays no episode."""
        yield None

    def open_demonstrations(self) -> AbstractAsyncContextManager[Any]:
        """As ``open_shared``, for scripted demonstrations: may stand in something faster that answers the same."""
        return self.open_shared()

    def describe(self, shared: Any = None) -> str:
        """One line: where its tools run and what that isolates."""
        del shared
        return "tools run in this process; nothing needs isolation"

    # -- for authors to use

    @property
    def shared(self) -> Any:
        """What ``open_shared`` gave."""
        return self._shared

    async def ensure_shared(self) -> None:
        """Open the shared resources, where this instance was made without; call it first in ``areset``.

        They are left by ``aclose`` in the same task: an asynchronous caller that makes a single environment, rather
        than using `open_envs`, does so best with ``async with make(...) as env``.
        """
        if self._shared is None:
            self._shared = await self._owned.enter_async_context(self.open_shared())
            # Once closed, the next reset must open them again.
            self._owned.callback(setattr, self, "_shared", None)

    def choose_task(self, *, seed: int | None, options: Mapping[str, Any] | None) -> Task:
        """The task that a reset asks for: ``options["task"]``, ``options["task_id"]``, or a draw from ``self.split``.

        Raises: ConfigError: an unknown option or task, or the task of another environment.
        """
        if seed is not None:
            super().reset(seed=seed)
        given = options or {}
        if unknown := given.keys() - {"task", "task_id"}:
            raise ConfigError(nearest(sorted(unknown)[0], ("task", "task_id"), what=f"reset option of {self.env_id}"))
        if "task" in given:
            task = given["task"]
            if not isinstance(task, Task) or task.env_id != self.env_id:
                raise ConfigError(f"{self.env_id} cannot play {task!r:.200}: it is no task of this environment")
            return task
        if "task_id" in given:
            return self.find_task(given["task_id"])
        tasks = self.tasks(self.split)
        if not tasks:
            raise ConfigError(f"{self.env_id} has no tasks in its split {self.split!r}")
        return tasks[int(self.np_random.integers(len(tasks)))]

    def find_task(self, task_id: str) -> Task:
        """The task with this id, of any split. Raises ConfigError: there is none."""
        for split in self.splits:
            for task in self.tasks(split):
                if task.id == task_id:
                    return task
        some = [self.tasks(split)[0].id for split in self.splits if self.tasks(split)]
        raise ConfigError(f"{self.env_id} has no task {task_id!r}; its ids are like: {', '.join(some)}")

    @classmethod
    def check_split(cls, split: str) -> str:
        """``split`` itself. Raises ConfigError: the environment has no such split."""
        if split not in cls.splits:
            raise ConfigError(nearest(split, cls.splits, what=f"split of {cls.env_id or cls.__name__}"))
        return split

    @classmethod
    def make_task(cls, split: str, index: int, *, content: JSON = None, **data: JSON) -> Task:
        """A `Task` of this environment with id ``<split>-<index>`` and seed ``index``.

        ``content`` is what makes two tasks the same problem (see `Task.content_hash`); all of ``data`` by default.
        """
        return Task(
            id=f"{split}-{index}",
            env_id=cls.env_id,
            split=split,
            seed=index,
            content_hash=content_hash(data if content is None else content),
            data=data,
        )

    # -- Gymnasium's synchronous view

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[str, dict[str, Any]]:
        """Gymnasium's reset: the first messages as text."""
        messages, info = self._call_sync(lambda: self.areset(seed=seed, options=options))
        return render_messages(messages), dict(info)

    def step(self, action: str) -> tuple[str, float, bool, bool, dict[str, Any]]:
        """Gymnasium's step: ``action`` is an assistant message in the canonical text form.

        Raises: ToolgymError: the episode has failed; it has no reward.
        """
        if action not in self.action_space:
            raise EnvError(f"an action of {self.env_id} is a text, got {action!r:.100}")
        step: Step = self._call_sync(lambda: self.astep(parse_assistant(str(action))))
        if isinstance(step.outcome, Failed):
            error = _ERRORS.get(step.outcome.kind, EnvError)
            raise error(f"the episode failed ({step.outcome.kind}): {step.outcome.detail}")
        return render_messages(step.messages), float(step.reward), step.terminated, step.truncated, dict(step.info)

    def close(self) -> None:
        """Gymnasium's close. May be called more than once."""
        driver, self._driver = self._driver, None
        if driver is not None:
            driver.stop()

    def render(self) -> str | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The conversation so far, where ``render_mode`` is "ansi"; else None."""
        if self.render_mode is None:
            return None
        return "\n".join(f"[{m.role}] {render_messages((m,))}" for m in self.messages)

    def _call_sync(self, fn: Any) -> Any:
        if self._driver is None:
            self._driver = SyncDriver(self.aclose)
        return self._driver.call(fn)


def render_messages(messages: Sequence[Message]) -> str:
    """Messages as the text of an observation; tool results stand in ``<tool_response>`` tags."""
    return "\n".join(_render(message) for message in messages)


def _render(message: Message) -> str:
    if message.role == "tool":
        return f"<tool_response>\n{message.content}\n</tool_response>"
    if message.role == "assistant":
        return format_assistant(message)
    return message.content
