"""Rewards that compare the answer with the expected one in the task's data, and their weighted sum."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from toolgym.errors import RewardError
from toolgym.rewards.base import Reward, evaluate
from toolgym.rewards.matching import exact_match, f1_match, numeric_match
from toolgym.types import Message, Scored, Task


def _expected(task: Task, key: str) -> Any:
    if key not in task.data:
        raise RewardError(f"task {task.id} has no {key!r} to compare the answer with; it has: {', '.join(task.data)}")
    return task.data[key]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    """`exact_match` of the answer with ``task.data[key]`` (a text, or a list of accepted ones)."""

    key: str = "answer"

    async def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> float:
        """1.0 or 0.0."""
        return exact_match(_expected(task, self.key), answer)


@dataclass(frozen=True, slots=True, kw_only=True)
class NumericMatch:
    """`numeric_match` of the answer with ``task.data[key]`` (a number, or its text)."""

    key: str = "answer"
    abs_tol: float = 1e-9
    rel_tol: float = 0.0

    async def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> float:
        """1.0 or 0.0."""
        return numeric_match(_expected(task, self.key), answer, abs_tol=self.abs_tol, rel_tol=self.rel_tol)


@dataclass(frozen=True, slots=True, kw_only=True)
class F1Match:
    """`f1_match` of the answer with ``task.data[key]`` (a text, or a list of accepted ones)."""

    key: str = "answer"

    async def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> float:
        """In [0, 1]."""
        return f1_match(_expected(task, self.key), answer)


@dataclass(frozen=True, slots=True)
class Weighted:
    """A weighted sum of named rewards; the parts are reported beside the total.

        value = sum_k w_k r_k        parts[k] = w_k r_k

    Example: ``Weighted({"answer": (1.0, NumericMatch()), "short": (0.1, short)})``. The rewards run one after
    another, each with its own deadline; if one fails, the whole fails: a sum over some of its parts would be another
    reward.
    """

    parts: Mapping[str, tuple[float, Reward]]
    timeout_s: float = 30.0  # of each part

    def __post_init__(self) -> None:
        if not self.parts:
            raise ValueError("Weighted needs at least one reward")

    async def __call__(self, task: Task, messages: Sequence[Message], answer: str, /) -> Scored:
        """The sum and its parts."""
        parts: dict[str, float] = {}
        for name, (weight, reward) in self.parts.items():
            scored = await evaluate(reward, task, messages, answer, timeout_s=self.timeout_s)
            parts[name] = weight * scored.value
        return Scored(value=sum(parts.values()), parts=parts)
