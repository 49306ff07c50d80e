"""The state of every slot, as arrays: one index operation serves all rows of a decode step."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolgym.engines.base import Sampling
from toolgym.engines.sampling import SamplingTable, uniforms
from toolgym.types import FloatArray, IntArray, StopReason


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A request as the worker sees it. ``owner`` is the session, or the job's own id when it has none."""

    id: int
    tokens: IntArray
    sampling: Sampling
    seed: int
    session: str | None = None

    @property
    def owner(self) -> str | int:
        """Who holds the slot."""
        return self.session if self.session is not None else self.id


@dataclass(frozen=True, slots=True, kw_only=True)
class Finished:
    """A job that ended: sampled tokens, log-probabilities and versions, each [n]."""

    id: int
    tokens: IntArray
    logprobs: FloatArray
    versions: IntArray
    stop: StopReason


class Rows:
    """What is known of each slot.

    tokens, logprobs, versions, u: [slots, context], by position in the context. length: tokens so far. cached: how
    many of them have valid keys and values. begin: where the completion starts. limit: the length at which it is cut.
    A row is ``prefilling`` or ``decoding`` while it has a job, else neither.
    """

    def __init__(self, slots: int, context: int) -> None:
        self.tokens = np.zeros((slots, context), dtype=np.int32)
        self.logprobs = np.zeros((slots, context), dtype=np.float32)
        self.versions = np.zeros((slots, context), dtype=np.int32)
        self.u = np.zeros((slots, context), dtype=np.float32)
        self.length = np.zeros(slots, dtype=np.int64)
        self.cached = np.zeros(slots, dtype=np.int64)
        self.begin = np.zeros(slots, dtype=np.int64)
        self.limit = np.zeros(slots, dtype=np.int64)
        self.decoding = np.zeros(slots, dtype=np.bool_)
        self.stale = np.zeros(slots, dtype=np.bool_)
        self.sampling = SamplingTable(slots)
        self.jobs: list[Job | None] = [None] * slots
        self.owners: list[str | int | None] = [None] * slots

    def start(self, row: int, job: Job) -> None:
        """Give a row its next job, keeping the cached tokens that the job's context begins with."""
        count, context = len(job.tokens), self.tokens.shape[1]
        self.cached[row] = min(common_prefix(self.tokens[row, : self.cached[row]], job.tokens), count - 1)
        self.tokens[row, :count] = job.tokens
        self.length[row] = self.begin[row] = count
        self.limit[row] = limit = min(count + job.sampling.max_new_tokens, context)
        self.u[row, count:limit] = uniforms(job.seed, count, limit - count)
        self.sampling.set(row, job.sampling)
        self.jobs[row] = job

    def finish(self, row: int, stop: StopReason) -> Finished:
        """End a row's job and hand out what it produced. The row keeps its tokens and its cache."""
        job = self.jobs[row]
        assert job is not None
        self.jobs[row], self.decoding[row] = None, False
        if self.stale[row]:
            self.stale[row], self.cached[row] = False, 0
        made = slice(self.begin[row], self.length[row])
        return Finished(
            id=job.id,
            tokens=self.tokens[row, made].copy(),
            logprobs=self.logprobs[row, made].copy(),
            versions=self.versions[row, made].copy(),
            stop=stop,
        )

    def append(
        self,
        rows: npt.NDArray[np.int64],
        tokens: npt.NDArray[np.int64],
        logprobs: npt.NDArray[np.float32],
        version: int,
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Add one sampled token to each row; its predecessors are all cached now. Returns who stopped, who is full."""
        at = self.length[rows]
        self.tokens[rows, at] = tokens
        self.logprobs[rows, at] = logprobs
        self.versions[rows, at] = version
        self.cached[rows] = at
        self.length[rows] = at + 1
        stopped = (self.sampling.stops[rows] == tokens[:, None]).any(axis=1)
        return stopped, at + 1 >= self.limit[rows]

    def nearest(self, row: int, cached: npt.NDArray[np.int64]) -> tuple[int, int]:
        """The slot that shares the longest cached prefix with a row's context, and the length of that prefix."""
        count = int(self.length[row]) - 1
        if count <= 0:
            return row, 0
        same = self.tokens[:, :count] == self.tokens[row, :count]
        shared = np.where(same.all(axis=1), count, same.argmin(axis=1))
        shared = np.minimum(shared, cached)
        best = int(shared.argmax())
        return best, int(shared[best])

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        for array in (self.tokens, self.logprobs, self.versions, self.u, self.length, self.cached, self.begin):
            array[[a, b]] = array[[b, a]]
        for array in (self.limit, self.decoding, self.stale):
            array[[a, b]] = array[[b, a]]
        self.sampling.swap(a, b)
        self.jobs[a], self.jobs[b] = self.jobs[b], self.jobs[a]
        self.owners[a], self.owners[b] = self.owners[b], self.owners[a]


def common_prefix(a: npt.NDArray[np.int32], b: npt.NDArray[np.int32]) -> int:
    """How many leading tokens two sequences share."""
    n = min(len(a), len(b))
    different = a[:n] != b[:n]
    return int(different.argmax()) if different.any() else n
