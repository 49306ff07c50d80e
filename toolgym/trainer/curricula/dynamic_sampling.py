"""DAPO's dynamic sampling: groups without signal are thrown back, others drawn until a batch is full."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from toolgym.algorithms.curricula import has_signal
from toolgym.errors import ConfigError, TrainingError
from toolgym.trainer.curricula.base import TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task


class DynamicSampling:
    """Shuffled epochs, and a count of what still misses to a batch of ``target`` groups with signal.

    `offer` says which groups to keep; surplus ones beyond the target are dropped. Rewards must be raw correctness:
    shaped ones (a length penalty) would let all-wrong groups pass. After ``max_batches`` times the target was generated
    without filling a batch, TrainingError.
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
    def missing(self) -> int:
        """Groups with signal that the batch still lacks; 0 when it is full."""
        return self._target - self._kept

    @property
    def stats(self) -> dict[str, float]:
        """``discarded``: share of played groups not kept; ``cost``: groups played per group kept."""
        kept, played = self.total_kept, self.total_played
        return {"discarded": 1 - kept / played if played else 0.0, "cost": played / kept if kept else 0.0}

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks of the epoch."""
        return self._order.next_tasks(n)

    def offer(self, results: Sequence[TaskResult]) -> list[bool]:
        """Which of these groups belong to the batch; a full batch starts a new one.

        Raises:  TrainingError: too many groups were played for one batch.
        """
        if self.missing == 0:
            self._kept = self._played = 0
        accepted: list[bool] = []
        for result in results:
            take = self.missing > 0 and _signal(result)
            self._kept += take
            accepted.append(take)
        self._played += len(results)
        self.total_played += len(results)
        self.total_kept += sum(accepted)
        if self.missing > 0 and self._played >= self._max_batches * self._target:
            raise TrainingError(
                f"{self._played} groups gave {self._kept} with different rewards, {self._target} are wanted: the tasks "
                "are too easy or too hard for this policy; lower target, raise group_size, or change the tasks"
            )
        return accepted

    def update(self, results: Sequence[TaskResult]) -> None:
        """`offer`, for a trainer that drops groups without signal by itself."""
        self.offer(results)

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
