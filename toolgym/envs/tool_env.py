"""An environment made of tasks, tools and a reward."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from toolgym.envs.base import Env
from toolgym.envs.tools import Tool, ToolError, ToolSpec
from toolgym.errors import ConfigError, EnvError
from toolgym.rewards import ExactMatch, Reward, evaluate
from toolgym.types import JSON, Message, Outcome, Step, Task, ToolCall


class ToolEnv(Env):
    """Asks a question, answers tool calls, scores the final answer.

    A subclass gives ``tasks(split)`` (whose data hold ``question`` and what the reward needs), its tools as methods
    marked with `tool` or as a list ``tools`` of marked functions, and a ``reward``: an object such as
    ``NumericMatch()``, or a method ``async def reward(self, task, messages, answer)``. An assistant message without
    tool calls is the final answer and ends the episode. Every call of a message gets exactly one tool message, in
    order; a call that cannot be carried out gets one that says why.

    See ``examples/capitals.py`` for a whole environment.
    """

    reward: Reward | Callable[..., Any] = ExactMatch()
    reward_timeout_s: ClassVar[float] = 30.0
    _tools: ClassVar[tuple[Tool, ...]] = ()

    def __init_subclass__(cls, **kwargs: Any) -> None:
        """Collect the tools: the inherited ones, the list ``tools``, the marked methods, in order of definition."""
        super().__init_subclass__(**kwargs)
        found = {tool.name: tool for tool in cls._tools}
        listed = cls.__dict__.get("tools", ())
        own = [*listed] if isinstance(listed, (list, tuple)) else []
        own += [value for value in cls.__dict__.values() if isinstance(value, Tool)]
        for tool in own:
            if not isinstance(tool, Tool):
                raise ConfigError(f"{cls.__name__}.tools holds {tool!r}: mark the function with @tool")
            found[tool.name] = tool
        cls._tools = tuple(found.values())

    def __init__(self, *, instructions: str | None = None, max_turns: int | None = None, **kwargs: Any) -> None:
        """Make an instance; see `Env` for the other arguments.

        Args:
            instructions: a system message put before each task.
            max_turns: assistant messages after which the episode is truncated; None: no limit here
                (the agent has one).
            **kwargs: for `Env`.
        """
        super().__init__(**kwargs)
        if max_turns is not None and max_turns < 1:
            raise ConfigError(f"max_turns must be at least 1, got {max_turns}")
        self.instructions = instructions
        self.max_turns = max_turns
        self.tools: Sequence[ToolSpec] = tuple(tool.bind(self) for tool in self._tools)
        self._by_name = {tool.name: tool for tool in self.tools}
        self.task: Task | None = None  # None: no episode runs
        self._turns = 0

    def prompt(self, task: Task) -> tuple[Message, ...]:
        """The first messages of an episode: the instructions, where given, and the task's question."""
        question = Message(role="user", content=task.data["question"])
        if self.instructions is None:
            return (question,)
        return Message(role="system", content=self.instructions), question

    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, JSON]]:
        """Begin an episode of the task asked for, see `Env.areset`."""
        await self.ensure_shared()
        self.task = self.choose_task(seed=seed, options=options)
        self.messages = self.prompt(self.task)
        self._turns = 0
        return self.messages, {"task_id": self.task.id, "split": self.task.split}

    async def astep(self, action: Message) -> Step:
        """Answer the message's tool calls; one without calls is the final answer, which the reward scores."""
        task = self._running()
        self._turns += 1
        if not action.tool_calls:
            self.messages += (action,)
            self.task = None
            outcome = await evaluate(self.reward, task, self.messages, action.content, timeout_s=self.reward_timeout_s)
            return Step(reward=outcome.value, terminated=True, outcome=outcome)
        replies = tuple([await self._reply(call) for call in action.tool_calls])
        self.messages += (action, *replies)
        if self.max_turns is not None and self._turns >= self.max_turns:
            return Step(messages=replies, truncated=True, outcome=await self.atruncate("turns"))
        return Step(messages=replies)

    async def atruncate(self, reason: str) -> Outcome:
        """End the episode: without an answer it is worth nothing."""
        self.task = None
        return await super().atruncate(reason)

    def _running(self) -> Task:
        if self.task is None:
            raise EnvError(
                f"no episode of {self.env_id} runs: reset the environment before the first step and after the last"
            )
        return self.task

    async def _reply(self, call: ToolCall) -> Message:
        try:
            content = await self._answer(call)
        except ToolError as error:
            content = f"error: {error}"
        if not content.isascii():
            # Half a surrogate pair, which a program can print, is no Unicode text: no tokenizer or database takes it.
            content = content.encode("utf-8", "replace").decode()
        return Message(role="tool", content=content, tool_call_id=call.id or None, name=call.name)

    async def _answer(self, call: ToolCall) -> str:
        if call.name is None:
            raise ToolError(f"this tool call cannot be read: {call.error}")
        spec = self._by_name.get(call.name)
        if spec is None:
            raise ToolError(f"there is no tool {call.name[:50]!r}; tools: {', '.join(self._by_name) or '(none)'}")
        return await spec.call(call.arguments)
