"""DUMP: a bandit over sources of tasks; those that move the policy most are drawn most."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.curricula import ucb_probabilities
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task


class SourceBandit(Curriculum):
    """Draw a source by its upper confidence bound on mean |advantage|, then the source's next task.

    ``source`` names a task's source. ``window`` is how many |advantage| values a source remembers. With ``scaled`` they
    are std-normalised, 2 sqrt(p (1-p)) on average for binary rewards; without, 2 p (1-p).
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        source: Callable[[Task], str],
        seed: int = 0,
        tau: float = 0.1,
        window: int = 300,
        scaled: bool = True,
    ) -> None:
        if not tasks or window < 1:
            raise ConfigError(f"got {len(tasks)} tasks and window={window}, expected at least one of each")
        self._source_of = {task.id: source(task) for task in tasks}
        self.sources = sorted(set(self._source_of.values()))
        members = {name: [t for t in tasks if self._source_of[t.id] == name] for name in self.sources}
        self._orders = {name: Shuffled(members[name], seed=seed) for name in self.sources}
        self._seed = seed
        self._tau = tau
        self._window = window
        self._scaled = scaled
        self._drawn = 0
        self._values: dict[str, list[float]] = {name: [] for name in self.sources}
        self._counts: dict[str, int] = dict.fromkeys(self.sources, 0)

    @property
    def probabilities(self) -> dict[str, float]:
        """With which probability each source is drawn now."""
        means = torch.tensor([sum(v) / len(v) if v else 0.0 for v in self._values.values()], dtype=torch.float64)
        counts = torch.tensor([self._counts[name] for name in self.sources])
        p = ucb_probabilities(means, counts, tau=self._tau)[1]
        return {name: float(x) for name, x in zip(self.sources, p, strict=True)}

    def next_tasks(self, n: int) -> list[Task]:
        """``n`` tasks, their sources drawn independently by `probabilities`."""
        p = self.probabilities
        chosen: list[Task] = []
        for _ in range(n):
            self._drawn += 1
            name = random.Random(f"{self._seed}/{self._drawn}").choices(list(p), list(p.values()))[0]
            chosen += self._orders[name].next_tasks(1)
        return chosen

    def update(self, results: Sequence[TaskResult]) -> None:
        """Remember |advantage| of every episode, by source. Tasks it does not know are left out."""
        for result in results:
            name = self._source_of.get(result.task_id)
            if name is None or not result.rewards:
                continue
            rewards = torch.tensor(result.rewards, dtype=torch.float64)
            group = torch.zeros(len(rewards), dtype=torch.int64)
            a = group_advantage(rewards, group, scale="group" if self._scaled else "none")
            self._values[name] = (self._values[name] + [abs(float(x)) for x in a])[-self._window :]
            self._counts[name] += len(rewards)

    def state_dict(self) -> dict[str, Any]:
        """Windows, counts, draws, and the orders within the sources."""
        return {
            "drawn": self._drawn,
            "values": {name: list(v) for name, v in self._values.items()},
            "counts": dict(self._counts),
            "orders": {name: order.state_dict() for name, order in self._orders.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._drawn = int(state["drawn"])
        self._values = {name: [float(x) for x in state["values"][name]] for name in self.sources}
        self._counts = {name: int(state["counts"][name]) for name in self.sources}
        for name, order in self._orders.items():
            order.load_state_dict(state["orders"][name])
