"""The engine contract: token ids in; token ids, log-probabilities and versions out.

An engine serves one policy at a known `PolicyVersion`. It never sees text. The caller gives it the very tokens it
produced before plus the tokens of new messages; a ``session`` tells the engine that this context extends the one it
served before, so that it can keep the key-value cache. Dropping a session's cache costs time, never correctness.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from toolgym.errors import ConfigError, EngineError
from toolgym.types import FloatArray, IntArray, PolicyVersion, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How to sample. temperature 0 is greedy (its log-probabilities are those of the untempered distribution).

    top_k 0 and top_p 1 switch the filters off. ``stop_tokens`` end the turn and are part of the completion.
    """

    max_new_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    stop_tokens: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One completion to generate.

    ``tokens`` is the whole context (prompt, earlier turns, tool results). ``session`` names the episode whose
    key-value cache may be reused: ``tokens`` must extend what that session was given and produced before, else the
    engine recomputes it. ``seed`` keys the random numbers of this request: the same request at the same version gives
    the same tokens.
    """

    id: str
    tokens: Sequence[int]
    sampling: Sampling
    session: str | None = None
    seed: int = 0
    adapter: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Completion:
    """What was sampled. tokens int32 [n], logprobs float32 [n] of the distribution sampled from, versions int32 [n]."""

    tokens: IntArray
    logprobs: FloatArray
    versions: IntArray
    stop: StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Scores:
    """Teacher-forced log-probabilities of given tokens.

    logprobs: float32 [T]; entry t is log p(tokens[t] | tokens[:t]), entry 0 is 0. top_tokens int32 [T, k] and
    top_logprobs float32 [T, k] are the k most likely tokens at each position (k = 0: empty). version: the policy that
    scored.
    """

    logprobs: FloatArray
    top_tokens: IntArray
    top_logprobs: FloatArray
    version: PolicyVersion


@dataclass(frozen=True, slots=True, kw_only=True)
class WeightsHandle:
    """Where published weights lie, and what proves that they arrived.

    ``path`` is a file that engine and learner can both read (shared memory on one machine). ``checksum`` is over all
    tensors, by name. ``canary_tokens`` is a fixed prompt and ``canary_logprobs`` (float32 [T]) the learner's
    log-probabilities of it.
    """

    path: str
    checksum: str
    canary_tokens: tuple[int, ...]
    canary_logprobs: tuple[float, ...]
    canary_tolerance: float = 1e-3


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineInfo:
    """What an engine is, for the run's record and for the command line."""

    name: str
    version: PolicyVersion
    slots: int
    max_context: int
    details: Mapping[str, Any] = field(default_factory=dict[str, Any])


def check_newer(current: PolicyVersion, new: PolicyVersion) -> None:
    """Refuse a version that goes back: n must grow within a lineage, and a lineage is never reopened.

    Raises EngineError: the message names both versions.
    """
    if new.policy != current.policy:
        raise EngineError(f"this engine serves policy {current.policy!r}; weights of {new.policy!r} were published")
    if (new.lineage, new.n) <= (current.lineage, current.n):
        raise EngineError(
            f"the policy version may not go back: the engine serves lineage {current.lineage} n {current.n}, "
            f"lineage {new.lineage} n {new.n} was published"
        )


def check_request(request: Request) -> None:
    """Refuse a request that no engine can serve. Raises ConfigError: the message names the request and the value."""
    sampling = request.sampling
    wrong = (
        f"max_new_tokens {sampling.max_new_tokens} is under 1"
        if sampling.max_new_tokens < 1
        else f"temperature {sampling.temperature} is not a finite number of at least 0"
        if not 0 <= sampling.temperature < math.inf
        else f"top_p {sampling.top_p} is not in (0, 1]"
        if not 0 < sampling.top_p <= 1
        else f"top_k {sampling.top_k} is negative"
        if sampling.top_k < 0
        else None
    )
    if wrong is not None:
        raise ConfigError(f"request {request.id!r}: {wrong}")


class Engine(ABC):
    """An async context manager that generates and scores. All waits are bounded by the deadlines the engine was built
    with.

    Raises `EngineError` from any method when the engine died, hung past its deadline, or serves other weights than
    published.
    """

    @abstractmethod
    async def generate(self, request: Request) -> Completion:
        """Sample one completion. Cancelling the awaiting task cancels the request in the engine."""

    @abstractmethod
    async def score(self, tokens: Sequence[Sequence[int]], *, top_k: int = 0) -> list[Scores]:
        """Teacher-forced log-probabilities of each sequence, untempered, under the current version."""

    @abstractmethod
    async def publish(self, version: PolicyVersion, handle: WeightsHandle) -> None:
        """Swap in new weights at a decode-step boundary, then verify checksum and canary against the handle.

        Returns once every later token carries ``version``. ``version.n`` must be greater than the current one within a
        lineage. Raises EngineError: a tensor is missing or has another shape, the checksum or the canary differs, or
        the swap did not happen within the engine's deadline.
        """

    @abstractmethod
    async def release(self, session: str) -> None:
        """Forget a session's key-value cache (its episode is over). Unknown sessions are ignored.

        A request that the session still has under way ends with what it has, as cancelled.
        """

    @abstractmethod
    async def pause(self) -> None:
        """Stop decoding at the next step boundary; requests wait."""

    @abstractmethod
    async def resume(self) -> None:
        """Go on decoding."""

    @abstractmethod
    def info(self) -> EngineInfo:
        """The engine's name, current version, slots and longest context."""

    async def stats(self) -> dict[str, float]:
        """Counts and seconds since the start, for metrics; at least ``tokens`` (sampled) if the engine counts them."""
        return {}

    @abstractmethod
    async def aclose(self) -> None:
        """Stop the engine and everything it started, within its deadline."""

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
