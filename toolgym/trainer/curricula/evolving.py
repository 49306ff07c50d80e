"""eva: a creator turns the tasks that still teach something into new ones, and the policy trains on a mixture."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import torch

from toolgym.algorithms.curricula import informativeness, sample_informative
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task

Evolve = Callable[[Task, random.Random], Task]


class Evolving(Curriculum):
    """Every ``generation`` updates of as many tasks: draw informative ones, evolve each into ``children`` new tasks.

    ``evolve`` mutates a task (one level deeper, one node more) such that its verifier stays exact; its result needs an
    id of its own. Tasks are drawn ``original`` of the time from the given ones, else evenly from the evolved ones of
    the last ``keep`` generations.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        evolve: Evolve,
        seed: int = 0,
        fraction: float = 0.25,
        children: int = 4,
        original: float = 0.2,
        generation: int = 64,
        keep: int = 2,
        kind: str = "regret",
    ) -> None:
        if not (0 < fraction <= 1 and 0 <= original <= 1) or min(children, generation, keep) < 1:
            raise ConfigError(f"got fraction={fraction}, original={original}, children={children}: see Evolving")
        self._order = Shuffled(tasks, seed=seed)
        self._original = {task.id: task for task in tasks}
        self._evolve = evolve
        self._seed = seed
        self._fraction, self._children, self._share = fraction, children, original
        self._size, self._keep, self._kind = generation, keep, kind
        self._drawn = 0
        self._number = 0
        self._seen: dict[str, float] = {}  # informativeness of the tasks played in this generation
        self._evolved: list[list[Task]] = []

    def find(self, task_id: str) -> Task:
        """An original or evolved task. Raises KeyError: neither, or its generation is over."""
        for tasks in self._evolved:
            for task in tasks:
                if task.id == task_id:
                    return task
        return self._original[task_id]

    def next_tasks(self, n: int) -> list[Task]:
        """``n`` tasks of the mixture; originals only, until the first generation exists."""
        return [self._next() for _ in range(n)]

    def _next(self) -> Task:
        self._drawn += 1
        rng = random.Random(f"{self._seed}/{self._drawn}")
        pool = [task for tasks in self._evolved for task in tasks]
        if not pool or rng.random() < self._share:
            return self._order.next_tasks(1)[0]
        return rng.choice(pool)

    def update(self, results: Sequence[TaskResult]) -> None:
        """Measure what each task still teaches; make a new generation once enough were seen."""
        for result in results:
            if result.rewards:
                rewards = torch.tensor(result.rewards, dtype=torch.float64)
                group = torch.zeros(len(rewards), dtype=torch.int64)
                self._seen[result.task_id] = float(informativeness(rewards, group, kind=self._kind)[0])
        if len(self._seen) >= self._size:
            self._create()

    def _create(self) -> None:
        known = {i: info for i, info in self._seen.items() if self._knows(i)}
        self._seen = {}
        if not known:
            return
        ids = list(known)
        m = max(1, round(self._fraction * len(ids)))
        info = torch.tensor([known[i] for i in ids], dtype=torch.float64)
        generator = torch.Generator().manual_seed(random.Random(f"{self._seed}/g{self._number}").getrandbits(62))
        parents = [self.find(ids[int(i)]) for i in sample_informative(info, m, generator=generator)]
        rng = random.Random(f"{self._seed}/e{self._number}")
        born = {
            child.id: child
            for parent in parents
            for child in (self._evolve(parent, rng) for _ in range(self._children))
        }
        self._evolved = [*self._evolved, list(born.values())][-self._keep :]
        self._number += 1

    def _knows(self, task_id: str) -> bool:
        return task_id in self._original or any(t.id == task_id for tasks in self._evolved for t in tasks)

    def state_dict(self) -> dict[str, Any]:
        """Order, counters, what was seen, and the evolved tasks themselves."""
        return {
            "order": self._order.state_dict(),
            "drawn": self._drawn,
            "number": self._number,
            "seen": dict(self._seen),
            "evolved": [[_to_dict(task) for task in tasks] for tasks in self._evolved],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._order.load_state_dict(state["order"])
        self._drawn, self._number = int(state["drawn"]), int(state["number"])
        self._seen = {i: float(x) for i, x in state["seen"].items()}
        self._evolved = [[Task(**task) for task in tasks] for tasks in state["evolved"]]


def _to_dict(task: Task) -> dict[str, Any]:
    names = ("id", "env_id", "split", "seed", "content_hash")
    return {name: getattr(task, name) for name in names} | {"data": dict(task.data)}
