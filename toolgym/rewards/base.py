"""What a reward is, and the one place that runs it: a score, or a typed error, within a deadline."""

import inspect
import math
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import anyio
import anyio.to_process

from toolgym.errors import RewardError, ToolgymError
from toolgym.rewards.deadline import run_in_thread
from toolgym.types import Message, Scored, Task

Score = float | Scored


class Reward(Protocol):
    """Scores the final answer of an episode.

    A function, or an object with ``__call__``; synchronous (run in a thread) or ``async`` (run on the event loop, so
    it must not block). ``messages`` is the whole conversation, the final assistant message included, and ``answer``
    that message's text. It returns a finite number, or a `Scored` with named parts. It may raise: that makes the
    episode failed, not bad, so whatever the policy can cause must be a score (usually 0), not an exception.

    Example::

        async def short(task: Task, messages: Sequence[Message], answer: str) -> float:
            return float(len(answer) < 20)
    """

    def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> Score | Awaitable[Score]:
        """Score ``answer``."""
        ...


def is_async(reward: object) -> bool:
    """Whether calling ``reward`` gives an awaitable (a coroutine function, or an object whose ``__call__`` is one)."""
    return inspect.iscoroutinefunction(reward) or inspect.iscoroutinefunction(type(reward).__call__)


def reward_name(reward: object) -> str:
    """How messages call a reward: its ``__name__``, else its class."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def as_scored(value: object, *, name: str) -> Scored:
    """Check what a reward returned.

    Raises: RewardError: it is no number, or not finite (its value or one of its parts).
    """
    scored = value if isinstance(value, Scored) else None
    if scored is None:
        if not isinstance(value, (int, float)) and not hasattr(value, "__float__"):
            raise RewardError(f"reward {name} returned {type(value).__name__}, expected a number or Scored")
        scored = Scored(value=float(cast(float, value)))
    for part, number in (("value", scored.value), *scored.parts.items()):
        if not math.isfinite(number):
            raise RewardError(f"reward {name} returned {number!r} ({part}), expected a finite number")
    return scored


async def evaluate(
    reward: Reward, task: Task, messages: Sequence[Message], answer: str, *, timeout_s: float = 30.0
) -> Scored:
    """Run a reward and give its score, or say why there is none.

    Args:
        reward: asynchronous rewards run inline, synchronous ones in a thread that is abandoned at the deadline.
        task: the episode's task.
        messages: its conversation, final answer included.
        answer: the text of the final assistant message.
        timeout_s: seconds, for the whole reward.

    Raises:
        RewardError: it raised, took longer than ``timeout_s``, or returned something that is not a finite number.
        ToolgymError: it raised one itself (a sandbox that is gone, say): passed on as it is.
    """
    name = reward_name(reward)
    try:
        with anyio.move_on_after(timeout_s) as scope:
            if is_async(reward):
                return as_scored(await cast(Awaitable[Score], reward(task, messages, answer)), name=name)
            # One second more than the scope: which of the two deadlines fired must not depend on a race.
            return as_scored(await run_in_thread(reward, task, messages, answer, timeout_s=timeout_s + 1), name=name)
    except ToolgymError:
        raise
    except (Exception, SystemExit) as error:
        raise RewardError(f"reward {name} raised {type(error).__name__}: {error} (task {task.id})") from error
    assert scope.cancelled_caught
    raise RewardError(f"reward {name} took longer than {timeout_s:g} s (task {task.id})")


@dataclass(frozen=True, slots=True)
class InProcess:
    """Runs a synchronous, picklable reward in a worker process, which is killed at the deadline.

    For code that a thread cannot bound, because it holds the interpreter lock or crashes the interpreter: symbolic
    mathematics, regular expressions on model text. Workers are reused; a call costs about 0.2 ms once they are warm.

    Raises: RewardError: as `evaluate`; also when the worker died.
    """

    reward: Reward

    async def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> Score:
        """Score in a process; cancelled at the deadline of `evaluate`, which kills the process."""
        try:
            return await anyio.to_process.run_sync(_call, self.reward, task, messages, answer, cancellable=True)
        except anyio.BrokenWorkerProcess as error:
            raise RewardError(
                f"the worker process of reward {reward_name(self.reward)} died (task {task.id})"
            ) from error


def _call(reward: Reward, task: Task, messages: Sequence[Message], answer: str) -> Score:
    value = reward(task, messages, answer)
    assert not inspect.isawaitable(value), "InProcess takes a synchronous reward"
    return value
