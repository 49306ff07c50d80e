"""What a curriculum is: it says which tasks come next and hears how they went."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from toolgym.types import Task


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskResult:
    """What a group's scored episodes gave. Example: ``TaskResult(task_id="train-7", rewards=(1.0, 0.0, 1.0, 0.0))``."""

    task_id: str
    rewards: tuple[float, ...]


class Curriculum(Protocol):
    """Chooses tasks, seeded and stateful. Two equal curricula with equal histories choose equally.

    ``state_dict`` is JSON; loaded into a fresh one of the same tasks and seed it goes on as the old one would have.
    """

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` tasks, in order."""
        ...

    def update(self, results: Sequence[TaskResult]) -> None:
        """Learn how tasks went; called once per batch, in task order."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Everything it has learned, as JSON."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        ...
