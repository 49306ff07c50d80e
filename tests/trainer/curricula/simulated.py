"""A learner without a model: its success depends on skill and difficulty, and grows where groups have signal."""

import math
import random

from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.types import Task


def tasks(levels: list[float], *, per_level: int = 8, **data) -> list[Task]:
    """``per_level`` tasks of each difficulty; data hold the level and a question that shows it."""
    return [
        Task(
            id=f"{level}-{i}",
            env_id="simulated",
            split="train",
            seed=i,
            content_hash=f"{level}-{i}",
            data={"level": level, "question": f"level{level} item{i}", **data},
        )
        for level in levels
        for i in range(per_level)
    ]


class Learner:
    """Success ``sigmoid(2 (skill - level))``; a group of pass rate p adds ``rate p (1 - p)`` to the skill of its kind.

    One skill for all tasks, or one a level (``separate``), starting at ``skill``.
    """

    def __init__(self, *, skill: float = 0.0, rate: float = 0.2, group: int = 8, seed: int = 0, separate: bool = False):
        self.skill = skill
        self.rate = rate
        self.group = group
        self.rng = random.Random(seed)
        self.separate = separate
        self.skills: dict[float, float] = {}
        self.rollouts = 0

    def success(self, task: Task) -> float:
        level = float(task.data["level"])
        skill = self.skills.get(level, self.skill) if self.separate else self.skill
        return 1 / (1 + math.exp(-2 * (skill - level)))

    def play(self, task: Task) -> TaskResult:
        p = self.success(task)
        rewards = tuple(float(self.rng.random() < p) for _ in range(self.group))
        self.rollouts += self.group
        mean = sum(rewards) / self.group
        gain = self.rate * mean * (1 - mean)
        if self.separate:
            level = float(task.data["level"])
            self.skills[level] = self.skills.get(level, self.skill) + gain
        else:
            self.skill += gain
        return TaskResult(task_id=task.id, rewards=rewards)

    def step(self, curriculum: Curriculum, n: int = 16) -> list[Task]:
        """One batch: play and learn; the tasks it was."""
        batch = curriculum.next_tasks(n)
        results = [self.play(task) for task in batch]
        for result in results:
            curriculum.keeps(result)
        curriculum.update(results)
        return batch
