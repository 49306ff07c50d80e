"""What a curriculum is: it says which tasks come next and hears how they went."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from toolgym.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a group's scored episodes gave. Example: ``TaskResult(task_id="train-7", rewards=(1.0, 0.0, 1.0, 0.0))``."""

    task_id: str
    rewards: tuple[float, ...]


class Curriculum(ABC):
    """Chooses tasks, seeded and stateful. Two equal curricula with equal histories choose equally.

    ``state_dict`` is JSON; loaded into a fresh one of the same tasks and seed it goes on as the old one would have.
    """

    @abstractmethod
    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks, in order."""

    def keeps(self, result: TaskResult) -> bool:
        """Whether a group that has just finished may enter a batch; where not, another is played in its place.

        Asked once a group, in the order of finishing. All are kept unless the curriculum says otherwise.
        """
        return True

    @abstractmethod
    def update(self, results: Sequence[TaskResult]) -> None:
        """Learn how tasks went, those of groups that were not kept too; called once per batch, in task order."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything it has learned, as JSON."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
