"""What a resumed run does with the groups that its database holds."""

from collections.abc import Sequence
from typing import Any

import anyio

from tests.trainer.builders import group
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.rollouts import Rollouts
from toolgym.trainer.staleness import Staleness
from toolgym.types import Task


class Picky(Curriculum):
    """Keeps the groups of the tasks named, and remembers what it was asked and told."""

    def __init__(self, keep: Sequence[str]) -> None:
        self.keep = keep
        self.asked: list[str] = []
        self.told: list[str] = []

    def next_tasks(self, n: int) -> list[Task]:
        raise AssertionError("no task is wanted in this test")

    def keeps(self, result: TaskResult) -> bool:
        self.asked.append(result.task_id)
        return result.task_id in self.keep

    def update(self, results: Sequence[TaskResult]) -> None:
        self.told += [result.task_id for result in results]

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        return


async def test_resumed_rollouts_ask_once_about_a_group_and_tell_of_all():
    """Two groups were finished before the kill, one kept and one not; a third is in the database alone."""
    groups = [group([1.0, 0.0], name=f"g{n:06d}") for n in range(3)]
    names = [g.task.id for g in groups]
    curriculum = Picky(keep=[])
    unused: Any = None
    rollouts = Rollouts(
        envs=unused, chat=unused, engine=unused, store=unused, curriculum=curriculum,
        staleness=Staleness(limit=0, per_step=1), guard=unused, sampling=unused, budget=unused,
        group_size=2, seed=0, run_id="r", lineage=1, find_task=unused,
    )  # fmt: skip
    state = {
        "next_number": 3,
        "pending": dict(zip("012", names, strict=True)),
        "kept": {"0": True, "1": False},
        "admitted_at": {"0": 0, "1": 0, "2": 0},
        "discarded": 0,
        "version": 0,
        "first": 0,
        "curriculum": {},
    }
    rollouts.load_state_dict(state, recorded=groups)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(rollouts.run)
        await anyio.wait_all_tasks_blocked()
        tasks.cancel_scope.cancel()
    assert curriculum.asked == [names[2]]
    assert rollouts.finished == {0: groups[0]}
    assert rollouts.discarded == {1: groups[1], 2: groups[2]}
    saved = rollouts.state_dict()
    assert {key: saved[key] for key in ("pending", "admitted_at", "discarded")} == {
        key: state[key] for key in ("pending", "admitted_at", "discarded")
    }
    assert saved["kept"] == {"0": True, "1": False, "2": False}
    assert await rollouts.next_batch() == [groups[0]]
    assert rollouts.consume([groups[0]]) == [groups[1], groups[2]]
    assert curriculum.told == names
    assert rollouts.pending == {}
