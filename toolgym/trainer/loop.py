"""The reinforcement loop: batch, gradient step, publish, checkpoint, while rollouts go on beside it."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import anyio
import anyio.to_thread

from toolgym.engines.base import Engine
from toolgym.store import RunStore
from toolgym.trainer import checkpoint
from toolgym.trainer.batch import collate
from toolgym.trainer.faults import crash_point
from toolgym.trainer.learner import Learner
from toolgym.trainer.metrics import rollout_metrics
from toolgym.trainer.publish import Publisher
from toolgym.trainer.reporter import Reporter
from toolgym.trainer.rollouts import Rollouts, scores
from toolgym.types import Group

CHECKPOINTS = "checkpoints"
LAG_PERIOD_S = 0.05


@dataclass(kw_only=True)
class Loop:
    """Runs the learner's steps to the end. One instance per process and run."""

    learner: Learner
    rollouts: Rollouts
    publisher: Publisher
    engine: Engine
    store: RunStore
    reporter: Reporter
    folder: Path
    steps: int
    checkpoint_every: int
    pad: int
    each_step: Callable[[int], Awaitable[None]]
    spent: Callable[[], dict[str, float]]  # seconds, kept with each checkpoint
    max_staleness: int = 0
    max_logprob_diff: float = 0.0
    _trained: list[str] = field(default_factory=list[str])  # group ids since the last checkpoint
    _skipped: list[str] = field(default_factory=list[str])
    _lag_s: float = 0.0
    _engine_before: dict[str, float] = field(default_factory=dict[str, float])

    async def run(self) -> None:
        """Train from the learner's step to ``steps``, with rollouts beside it."""
        self._engine_before = await self.engine.stats()
        async with anyio.create_task_group() as group:
            group.start_soon(self.rollouts.run)
            group.start_soon(self._watch_lag)
            while self.learner.step_count < self.steps:
                await self._step()
            group.cancel_scope.cancel()

    async def _step(self) -> None:
        clock = _Clock()
        groups = await self.rollouts.next_batch()
        clock.lap("time_wait_s")
        metrics = rollout_metrics([*groups, *self.rollouts.discarded.values()], self.rollouts.staleness)
        metrics["discarded_groups"] = float(len(self.rollouts.discarded))
        self.max_staleness = max(self.max_staleness, int(metrics["staleness_max"]))
        metrics |= await self._learn(groups)
        self.max_logprob_diff = max(self.max_logprob_diff, metrics.get("logprob_max_abs_diff", 0.0))
        clock.lap("time_learn_s")
        crash_point("gradient_step")
        self._skipped += [g.id for g in self.rollouts.consume(groups)]
        version = await self.publisher.publish()
        clock.lap("time_publish_s")
        self.rollouts.staleness.version = version.n
        last = self.learner.step_count >= self.steps
        if last or self.learner.step_count % self.checkpoint_every == 0:
            # Before the next groups are drawn: a checkpoint holds the curriculum as it was between two steps.
            await self.save()
        if not last:
            self.rollouts.notify()
        clock.lap("time_checkpoint_s")
        metrics |= clock.laps | self.rollouts.guard.metrics()
        metrics["loop_lag_s"], self._lag_s = self._lag_s, 0.0
        metrics |= await self._engine_metrics(clock.total)
        self.store.log_metrics(self.learner.step_count, metrics, phase="train")
        self.reporter.advance(1, **metrics)
        await self.each_step(self.learner.step_count)

    async def _learn(self, groups: list[Group]) -> dict[str, float]:
        """One learner step on the groups that have something to teach."""
        useful = [g for g in groups if len(scores(g)) > 0]
        informative = {g.id for g in groups if len(set(scores(g))) > 1}
        self._trained += [g.id for g in groups if g.id in informative]
        self._skipped += [g.id for g in groups if g.id not in informative]
        if not useful:
            self.learner.step_count += 1
            return {"skipped": 1.0}
        batch = collate(useful, pad=self.pad)
        version = self.rollouts.staleness.version
        return await anyio.to_thread.run_sync(lambda: self.learner.step(batch, version=version))

    async def save(self) -> None:
        """Write a checkpoint and record it together with what became of the groups since the last one."""
        step = self.learner.step_count
        folder = self.folder / CHECKPOINTS / f"step-{step:06d}-{self.rollouts.lineage}"
        await anyio.to_thread.run_sync(checkpoint.write, folder, self.learner)
        state = {
            "rollouts": self.rollouts.state_dict(),
            "max_staleness": self.max_staleness,
            "max_logprob_diff": self.max_logprob_diff,
            "verified": self.publisher.verified,
            "spent": self.spent(),
        }
        self.store.commit_checkpoint(folder, step=step, trained=self._trained, skipped=self._skipped, state=state)
        self._trained, self._skipped = [], []
        recorded = self.store.checkpoints()
        keep = {recorded[0].path, recorded[-1].path}  # the first is the reference of KL terms
        await anyio.to_thread.run_sync(lambda: checkpoint.prune(self.folder / CHECKPOINTS, keep=keep))

    async def _engine_metrics(self, seconds: float) -> dict[str, float]:
        """Tokens sampled since the last step by its wall time, and the engine's CPU seconds."""
        stats = await self.engine.stats()
        made, cpu = (stats.get(name, 0.0) - self._engine_before.get(name, 0.0) for name in ("tokens", "cpu_s"))
        self._engine_before = stats
        return {"tokens_per_s": made / max(seconds, 1e-9), "time_step_s": seconds, "cpu_generate_s": cpu}

    async def _watch_lag(self) -> None:
        """The longest time that the event loop was blocked: sync code in it stalls every rollout."""
        while True:
            start = time.perf_counter()
            await anyio.sleep(LAG_PERIOD_S)
            self._lag_s = max(self._lag_s, time.perf_counter() - start - LAG_PERIOD_S)


class _Clock:
    def __init__(self) -> None:
        self.laps: dict[str, float] = {}
        self._start = self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self.laps[name], self._last = now - self._last, now

    @property
    def total(self) -> float:
        return time.perf_counter() - self._start
