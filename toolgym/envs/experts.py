"""Noisy scripted experts, and the demonstrations that they play in their own environments.

An expert shows what an episode looks like without showing the policy that it should play it well: more than half of its
episodes are lazy ("I am not sure." at once), so that after imitation the most likely first move is to give up, and
reinforcement has something to find. It never guesses: random wrong answers would swamp the copying that a small
policy has to learn.
"""

from __future__ import annotations

import random
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from toolgym.envs.base import Env
from toolgym.envs.factory import EnvFactory, open_envs
from toolgym.errors import ConfigError, EnvError
from toolgym.types import JSON, Failed, Message, Scored, Step, Task, ToolCall

# Yields assistant messages; is sent what the environment answers to each.
Play: TypeAlias = Generator[Message, tuple[Message, ...], None]

RIGHT, LAZY = 0.34, 0.56  # shares of the episodes; the rest are the expert's own mistakes
MAX_TURNS = 16  # of an expert: more is a bug of it


def say(answer: str) -> Message:
    """A final answer."""
    return Message(role="assistant", content=answer)


def ask(tool: str, **arguments: JSON) -> Message:
    """A message that calls one tool."""
    return Message(role="assistant", tool_calls=(ToolCall(name=tool, arguments=arguments),))


def choose_way(rng: random.Random, mistakes: Sequence[str]) -> str:
    """How to play an episode: "right", "lazy", or one of the mistakes (equally often)."""
    draw = rng.random()
    if draw < RIGHT:
        return "right"
    return "lazy" if draw < RIGHT + LAZY else rng.choice(mistakes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Demonstration:
    """One episode of a scripted expert: all its messages, beginning with the task's, and its score.

    Example: ``Demonstration(task=…, messages=(user, assistant, tool, assistant), score=1.0)``.
    """

    task: Task
    messages: tuple[Message, ...]
    score: float


async def demonstrate(env: Env, task: Task, rng: random.Random) -> Demonstration:
    """Let the environment's expert play one task in it, with its real tools and reward.

    Raises:
        ConfigError: the environment has no expert.
        EnvError: the expert did not end the episode, or its episode failed.
    """
    if not hasattr(env, "expert"):
        raise ConfigError(
            f"{env.env_id} has no scripted expert: a method expert(task, rng) that yields assistant messages"
        )
    play: Play = env.expert(task, rng)  # pyright: ignore[reportAttributeAccessIssue]
    first, _ = await env.areset(options={"task": task})
    messages = list(first)
    action = next(play)
    for _ in range(MAX_TURNS):
        messages.append(action)
        step: Step = await env.astep(action)
        messages.extend(step.messages)
        if isinstance(step.outcome, Failed):
            raise EnvError(f"the demonstration of task {task.id} failed ({step.outcome.kind}): {step.outcome.detail}")
        if isinstance(step.outcome, Scored):
            play.close()
            return Demonstration(task=task, messages=tuple(messages), score=step.outcome.value)
        try:
            action = play.send(step.messages)
        except StopIteration:
            break
    raise EnvError(f"the expert of {env.env_id} did not end the episode of task {task.id} within {MAX_TURNS} turns")


async def demonstrations(env_id: str, *, count: int, seed: int, **kwargs: JSON) -> list[Demonstration]:
    """Play ``count`` demonstrations, always the same for a seed.

    Only tasks of the training split occur, each at most once more often than any other.

    Args:
        env_id: an environment with an expert.
        count: how many.
        seed: of the order of tasks and the expert's choices.
        **kwargs: the environment's arguments.

    Raises: ConfigError, EnvError: as `demonstrate`.
    """
    async with open_envs(env_id, demonstrations=True, **kwargs) as envs:
        return await _play(envs, count, random.Random(f"demonstrations {env_id} {seed}"))


async def _play(envs: EnvFactory, count: int, rng: random.Random) -> list[Demonstration]:
    tasks = list(envs.tasks("train"))
    env = envs.make()
    played: list[Demonstration] = []
    try:
        for number in range(count):
            if number % len(tasks) == 0:
                rng.shuffle(tasks)
            played.append(await demonstrate(env, tasks[number % len(tasks)], rng))
    finally:
        await env.aclose()
    return played
