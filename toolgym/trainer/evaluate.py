"""Evaluation: success on a fixed set of tasks, sampled and greedy, with confidence intervals, at one policy version."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import anyio

from toolgym.agents.chat import ChatFormat
from toolgym.agents.rollout import Budget, EpisodeIds, rollout_group, stable_seed
from toolgym.engines.base import Engine, Sampling
from toolgym.envs.factory import EnvFactory
from toolgym.errors import EngineError
from toolgym.types import Failed, Task, Trajectory


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Mean score over n scored episodes with its 95 % interval. Example: ``Score(mean=0.91, ci95=(0.88, 0.94),
    n=400)``.
    """

    mean: float
    ci95: tuple[float, float]
    n: int
    failed: int = 0

    def to_dict(self) -> dict[str, object]:
        """As JSON, with ``failed`` (episodes without a score, which are not in n)."""
        return {"mean": self.mean, "ci95": list(self.ci95), "n": self.n, "failed": self.failed}


def score_of(trajectories: Sequence[Trajectory]) -> Score:
    """The mean score of the episodes that have one.

    The interval is Wilson's for scores of 0 and 1, else the normal one, cut to the scores' own range.
    """
    values = [t.score for t in trajectories if not isinstance(t.outcome, Failed)]
    failed = len(trajectories) - len(values)
    n = len(values)
    if n == 0:
        return Score(mean=math.nan, ci95=(math.nan, math.nan), n=0, failed=failed)
    mean = math.fsum(values) / n
    z = 1.959964
    if all(v in (0.0, 1.0) for v in values):
        centre = (mean + z * z / (2 * n)) / (1 + z * z / n)
        half = z / (1 + z * z / n) * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
        low, high = max(0.0, centre - half), min(1.0, centre + half)
    else:
        spread = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / max(1, n - 1))
        half = z * spread / math.sqrt(n)
        low, high = max(min(values), mean - half), min(max(values), mean + half)
    return Score(mean=mean, ci95=(low, high), n=n, failed=failed)


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluator:
    """Plays tasks with one policy. ``concurrency`` episodes at once."""

    envs: EnvFactory
    chat: ChatFormat
    engine: Engine
    budget: Budget
    max_new_tokens: int
    seed: int
    concurrency: int = 128

    async def run(
        self,
        tasks: Sequence[Task],
        *,
        temperature: float,
        label: str,
        on_episode: Callable[[Trajectory], None] = lambda t: None,
    ) -> list[Trajectory]:
        """One episode per task, in task order; temperature 0 is greedy. ``label`` keys the random numbers and the ids.

        Raises:  EngineError: the engine's version changed meanwhile (the result would mix policies).
        """
        before = self.engine.info().version
        results: list[Trajectory | None] = [None] * len(tasks)
        limiter = anyio.CapacityLimiter(self.concurrency)
        sampling = Sampling(
            max_new_tokens=self.max_new_tokens, temperature=temperature, stop_tokens=self.chat.stop_tokens
        )

        def done(place: int, trajectory: Trajectory) -> None:
            results[place] = trajectory
            on_episode(trajectory)

        async def play(place: int) -> None:
            async with limiter:
                await rollout_group(
                    self.envs.make,
                    tasks[place],
                    self.engine,
                    self.chat,
                    size=1,
                    sampling=sampling,
                    budget=self.budget,
                    ids=EpisodeIds(run="evaluate", group=f"{label}-{tasks[place].id}"),
                    seed=stable_seed(self.seed, label),
                    on_episode=lambda trajectory: done(place, trajectory),
                )

        async with anyio.create_task_group() as group:
            for place in range(len(tasks)):
                group.start_soon(play, place)
        if self.engine.info().version != before:
            raise EngineError(f"evaluation {label!r} began at {before} and ended at {self.engine.info().version}")
        return [t for t in results if t is not None]
