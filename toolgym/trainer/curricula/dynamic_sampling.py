"""DAPO's dynamic sampling: groups without signal are thrown back, others played until a batch is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toolgym.algorithms.curricula import has_signal
from toolgym.errors import ConfigError, TrainingError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task


class DynamicSampling(Curriculum):
    """Shuffled epochs, of which only the groups with signal are kept: those whose rewards differ.

    Rewards must be raw correctness: shaped ones (a length penalty) would let all-wrong groups pass. Where ``target``
    groups (a batch) are not found among ``max_batches`` times as many, TrainingError.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int = 0, target: int = 16, max_batches: int = 10) -> None:
        if target < 1 or max_batches < 1:
            raise ConfigError(f"got target={target}, max_batches={max_batches}, expected both >= 1")
        self._order = Shuffled(tasks, seed=seed)
        self._target = target
        self._max_batches = max_batches
        self._kept = 0  # of the batch being filled
        self._played = 0
        self.total_played = 0
        self.total_kept = 0

    @property
    def stats(self) -> dict[str, float]:
        """``discarded``: share of played groups not kept; ``cost``: groups played per group kept."""
        kept, played = self.total_kept, self.total_played
        return {"discarded": 1 - kept / played if played else 0.0, "cost": played / kept if kept else 0.0}

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks of the epoch."""
        return self._order.next_tasks(n)

    def keeps(self, result: TaskResult) -> bool:
        """Whether the group has signal.

        Raises:  TrainingError: too many groups were played for one batch.
        """
        if self._kept == self._target:
            self._kept = self._played = 0
        kept = _signal(result)
        self._kept += kept
        self._played += 1
        self.total_kept += kept
        self.total_played += 1
        if self._kept < self._target and self._played >= self._max_batches * self._target:
            raise TrainingError(
                f"{self._played} groups gave {self._kept} with different rewards, {self._target} are wanted: the tasks "
                "are too easy or too hard for this policy; raise rollout.group_size or curriculum.max_batches, or "
                "change the tasks"
            )
        return kept

    def update(self, results: Sequence[TaskResult]) -> None:
        """Nothing: which tasks come does not depend on how they went."""

    def state_dict(self) -> dict[str, Any]:
        """Order and counts."""
        counts = {"kept": self._kept, "played": self._played}
        totals = {"total_kept": self.total_kept, "total_played": self.total_played}
        return {"order": self._order.state_dict(), **counts, **totals}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._order.load_state_dict(state["order"])
        self._kept, self._played = int(state["kept"]), int(state["played"])
        self.total_kept, self.total_played = int(state["total_kept"]), int(state["total_played"])


def _signal(result: TaskResult) -> bool:
    rewards = torch.tensor(result.rewards, dtype=torch.float64)
    return bool(len(rewards)) and bool(has_signal(rewards, torch.zeros(len(rewards), dtype=torch.int64))[0])
