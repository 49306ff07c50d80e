"""Every task once per epoch, in an order shuffled anew for each."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.types import Task


class Shuffled(Curriculum):
    """The default curriculum. Its state is how many tasks it has given out."""

    def __init__(self, tasks: Sequence[Task], *, seed: int = 0) -> None:
        if not tasks:
            raise ConfigError("a curriculum needs at least one task, got none")
        self._tasks = tasks
        self._seed = seed
        self._given = 0
        self._order: list[int] = []

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks of the epoch, going on into the next one."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        epoch, place = divmod(self._given, len(self._tasks))
        if place == 0 or not self._order:
            self._order = list(range(len(self._tasks)))
            random.Random(f"{self._seed}/{epoch}").shuffle(self._order)
        self._given += 1
        return self._tasks[self._order[place]]

    def update(self, results: Sequence[TaskResult]) -> None:
        """Nothing: the order does not depend on results."""

    def state_dict(self) -> dict[str, Any]:
        """``{"given": n}``."""
        return {"given": self._given}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on after ``given`` tasks."""
        self._given = int(state["given"])
        self._order = []
