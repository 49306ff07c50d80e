"""No-positive-resampling: tasks that the policy has mastered leave the later epochs (ScaleRL)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

import torch

from toolgym.algorithms.curricula import mastered
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.types import Task


class NoPositiveResampling(Curriculum):
    """Epochs over the tasks whose pass rate so far is below ``threshold``.

    A reward of at least ``success`` is a pass. Once every task is mastered, all of them come again.
    """

    def __init__(self, tasks: Sequence[Task], *, seed: int = 0, threshold: float = 0.9, success: float = 1.0) -> None:
        if not tasks:
            raise ConfigError("a curriculum needs at least one task, got none")
        self._tasks = {task.id: task for task in tasks}
        self._seed = seed
        self._threshold = threshold
        self._success = success
        self._epoch = 0
        self._queue: list[str] = []
        self._passes: dict[str, int] = {}
        self._attempts: dict[str, int] = {}

    @property
    def retired(self) -> list[str]:
        """Ids of the tasks mastered so far, in the order of the tasks."""
        ids = list(self._tasks)
        passes = torch.tensor([self._passes.get(i, 0) for i in ids])
        attempts = torch.tensor([self._attempts.get(i, 0) for i in ids])
        done = mastered(passes, attempts, threshold=self._threshold)
        return [i for i, gone in zip(ids, done, strict=True) if gone]

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks; what is mastered is looked up when an epoch starts."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        if not self._queue:
            gone = set(self.retired)
            self._queue = [i for i in self._tasks if i not in gone] or list(self._tasks)
            random.Random(f"{self._seed}/{self._epoch}").shuffle(self._queue)
            self._epoch += 1
        return self._tasks[self._queue.pop(0)]

    def update(self, results: Sequence[TaskResult]) -> None:
        """Count passes."""
        for result in results:
            i = result.task_id
            self._passes[i] = self._passes.get(i, 0) + sum(r >= self._success for r in result.rewards)
            self._attempts[i] = self._attempts.get(i, 0) + len(result.rewards)

    def state_dict(self) -> dict[str, Any]:
        """Epoch, what is left of it, and the counts."""
        return {
            "epoch": self._epoch,
            "queue": list(self._queue),
            "passes": dict(self._passes),
            "attempts": dict(self._attempts),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._epoch, self._queue = int(state["epoch"]), list(state["queue"])
        self._passes, self._attempts = dict(state["passes"]), dict(state["attempts"])
