"""Buffered dynamic retry (MusaCoder): tasks that the whole group failed are not lost, they come back as repairs."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.types import Task


class BufferedRetry(Curriculum):
    """Another curriculum, and with probability ``p`` a task of the first-in-first-out buffer of failures instead.

    A task enters when no reward of its group reaches ``success``, once, and at most ``max_retries`` times in all; it
    leaves when drawn. Beyond ``capacity`` the oldest falls out. ``repair`` turns it into what is played: a "repair
    this" prompt with the failed answer, where the environment has one; by default the task itself.
    """

    def __init__(
        self,
        inner: Curriculum,
        find_task: Callable[[str], Task],
        *,
        seed: int = 0,
        p: float = 0.1,
        capacity: int = 512,
        max_retries: int = 2,
        success: float = 1.0,
        repair: Callable[[Task], Task] = lambda task: task,
    ) -> None:
        if not 0 <= p <= 1 or capacity < 1 or max_retries < 0:
            raise ConfigError(f"got p={p}, capacity={capacity}, max_retries={max_retries}: see BufferedRetry")
        self._inner = inner
        self._find_task = find_task
        self._seed = seed
        self._p = p
        self._capacity = capacity
        self._max_retries = max_retries
        self._success = success
        self._repair = repair
        self._drawn = 0
        self._buffer: list[str] = []
        self._retries: dict[str, int] = {}

    def __len__(self) -> int:
        """Tasks waiting for another try."""
        return len(self._buffer)

    def next_tasks(self, n: int) -> list[Task]:
        """``n`` tasks, from the buffer or from the inner curriculum."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        self._drawn += 1
        if not self._buffer or random.Random(f"{self._seed}/{self._drawn}").random() >= self._p:
            return self._inner.next_tasks(1)[0]
        chosen = self._buffer.pop(0)
        self._retries[chosen] = self._retries.get(chosen, 0) + 1
        return self._repair(self._find_task(chosen))

    def update(self, results: Sequence[TaskResult]) -> None:
        """All-failed tasks enter the buffer, solved ones leave it."""
        self._inner.update(results)
        for result in results:
            i = result.task_id
            if any(r >= self._success for r in result.rewards):
                self._buffer = [j for j in self._buffer if j != i]
                self._retries.pop(i, None)
            elif result.rewards and i not in self._buffer and self._retries.get(i, 0) < self._max_retries:
                self._buffer = [*self._buffer, i][-self._capacity :]

    def state_dict(self) -> dict[str, Any]:
        """The buffer, the retries, the count of draws and the inner state."""
        return {
            "inner": self._inner.state_dict(),
            "drawn": self._drawn,
            "buffer": list(self._buffer),
            "retries": dict(self._retries),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._inner.load_state_dict(state["inner"])
        self._drawn, self._buffer, self._retries = int(state["drawn"]), list(state["buffer"]), dict(state["retries"])
