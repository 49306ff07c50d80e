"""The core types: messages, tasks, outcomes, trajectories, groups and samples.

All are frozen, keyword-only, slotted dataclasses of standard-library and numpy values. `toolgym.store` writes them down
and reads them back exactly.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

SCHEMA_VERSION = 1

IntArray: TypeAlias = npt.NDArray[np.int32]
FloatArray: TypeAlias = npt.NDArray[np.float32]
BoolArray: TypeAlias = npt.NDArray[np.bool_]
Role: TypeAlias = Literal["system", "user", "assistant", "tool"]
JSON: TypeAlias = Any  # anything that json.dumps takes


class StopReason(StrEnum):
    """Why a completion ended."""

    END_OF_TURN = "end_of_turn"  # the policy sampled one of the stop tokens (it is the last token)
    LENGTH = "length"  # max_new_tokens reached: no stop token at the end
    CANCELLED = "cancelled"  # somebody cancelled the request


class EpisodeEnd(StrEnum):
    """Why an episode ended."""

    TERMINATED = "terminated"  # the environment said so
    TRUNCATED = "truncated"  # the environment's own limit
    MAX_TURNS = "max_turns"  # the agent's turn budget
    MAX_TOKENS = "max_tokens"  # the agent's token budget
    TIMEOUT = "timeout"  # the agent's time budget
    FAILED = "failed"  # the outcome is Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCall:
    """One tool call of an assistant message, parsed or unparsable; exactly one of ``name`` and ``error`` is None.

    Example: ``ToolCall(name="python", arguments={"code": "print(1)"})``, or, when the text could not be read,
    ``ToolCall(error="not valid JSON: ...", raw="{python(")``.
    """

    name: str | None = None
    arguments: Mapping[str, JSON] = field(default_factory=dict[str, Any])
    id: str = ""
    error: str | None = None
    raw: str = ""

    def __post_init__(self) -> None:
        assert (self.name is None) != (self.error is None), "a call is either parsed (name) or unparsable (error)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One chat message. Example: ``Message(role="user", content="What is 2 + 2?")``.

    ``content`` is the text that a person reads, without tool-call markup. ``reasoning`` is thinking text kept apart.
    ``tool_call_id`` and ``name`` belong to role ``tool``.
    """

    role: Role
    content: str = ""
    reasoning: str | None = None
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """One problem of an environment.

    ``id`` is unique within ``env_id`` and stable; ``content_hash`` depends on the problem's content alone (two tasks
    with the same hash are the same problem, whatever their seeds), see `content_hash`. ``data`` is JSON and may hold
    the expected answer: it stays on the host. Example: ``Task(id="test-3", env_id="toolgym/python-v0", split="test",
    seed=3, content_hash="9f…", data={"question": "…", "answer": "42"})``.
    """

    id: str
    env_id: str
    split: str
    seed: int
    content_hash: str
    data: Mapping[str, JSON]


def content_hash(content: JSON) -> str:
    """The first 16 hex digits of the SHA-256 of the content as canonical JSON."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scored:
    """The episode has a score; ``parts`` are the weighted components, for people.

    Example: ``Scored(value=1.0, parts={"answer": 1.0})``.
    """

    value: float
    parts: Mapping[str, float] = field(default_factory=dict[str, float])


FailureKind: TypeAlias = Literal["env", "sandbox", "reward", "judge", "engine", "timeout", "bug"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """The episode has no score, for a reason that the policy cannot cause. Never part of a baseline.

    Example: ``Failed(kind="sandbox", detail="the Docker daemon does not answer")``.
    """

    kind: FailureKind
    detail: str


Outcome: TypeAlias = Scored | Failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """What ``Env.astep`` returns. ``outcome`` is set exactly when the episode is over (terminated or truncated)."""

    messages: tuple[Message, ...] = ()
    reward: float = 0.0
    terminated: bool = False
    truncated: bool = False
    outcome: Outcome | None = None
    info: Mapping[str, JSON] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        assert (self.outcome is not None) == (self.terminated or self.truncated), "an outcome comes exactly at the end"


@dataclass(frozen=True, slots=True, kw_only=True)
class PolicyVersion:
    """``(policy, lineage, n)``: the n-th published weights of a policy; a resumed run starts a new lineage.

    Example: ``PolicyVersion(policy="main", lineage=0, n=12)``.
    """

    policy: str = "main"
    lineage: int = 0
    n: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """A token-exact stretch of one agent's context, length T. Turns of one episode append to one segment.

    tokens: int32 [T]. loss_mask: bool [T], true on tokens sampled by the policy. sampler_logprobs: float32 [T], of the
    distribution actually sampled from; 0 where not sampled. versions: int32 [T], n of the PolicyVersion; -1 where not
    sampled. extras: named per-token arrays [T, ...].
    """

    tokens: IntArray
    loss_mask: BoolArray
    sampler_logprobs: FloatArray
    versions: IntArray
    policy: str = "main"
    lineage: int = 0
    agent: str = "agent"
    parent: int | None = None
    extras: Mapping[str, npt.NDArray[Any]] = field(default_factory=dict[str, Any])

    def __post_init__(self) -> None:
        n = len(self.tokens)
        for name in ("loss_mask", "sampler_logprobs", "versions"):
            assert len(getattr(self, name)) == n, f"{name} has {len(getattr(self, name))} entries, tokens {n}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One assistant turn: the token range [start, end) it occupies in its segment and how it ended."""

    segment: int
    start: int
    end: int
    stop: StopReason
    reward: float = 0.0
    tool_calls: int = 0
    parse_failures: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Trajectory:
    """The token-exact record of one episode: what the learner trains on and what people read."""

    id: str
    task_id: str
    env_id: str
    group_id: str
    index: int  # place in its group
    attempt: int
    segments: tuple[Segment, ...]
    turns: tuple[Turn, ...]
    messages: tuple[Message, ...]
    outcome: Outcome
    end: EpisodeEnd
    duration_s: float = 0.0

    @property
    def score(self) -> float:
        """The scored value; raises ValueError on a failed episode (a failure is not a score)."""
        if isinstance(self.outcome, Failed):
            raise ValueError(
                f"trajectory {self.id} failed ({self.outcome.kind}: {self.outcome.detail}): it has no score"
            )
        return self.outcome.value

    @property
    def min_version(self) -> int:
        """The lowest policy version among its trained tokens; -1 when it has none."""
        ns = [int(s.versions[s.loss_mask].min()) for s in self.segments if bool(s.loss_mask.any())]
        return min(ns, default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """The trajectories of one task that are compared with each other."""

    id: str
    task: Task
    trajectories: tuple[Trajectory, ...]
    lineage: int = 0

    @property
    def min_version(self) -> int:
        """The lowest version among all trained tokens of the group; -1 when there are none."""
        return min((t.min_version for t in self.trajectories if t.min_version >= 0), default=-1)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One sequence for the learner: ``tokens`` int32 [T], the episode's reward, and named per-token streams, each [T].

    Streams always present: ``loss_mask`` (bool), ``sampler_logprobs`` (float32), ``versions`` (int32); others by name
    (``ref_logprobs``, ``teacher_logprobs``, ...).
    """

    id: str
    group_id: str
    reward: float
    tokens: IntArray
    streams: Mapping[str, npt.NDArray[Any]]
