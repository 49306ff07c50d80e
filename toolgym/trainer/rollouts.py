"""The producer: draws tasks, plays groups, records each when it finishes, and hands whole batches to the learner."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import anyio

from toolgym.agents.chat import ChatFormat
from toolgym.agents.rollout import Budget, EpisodeIds, rollout_group, stable_seed
from toolgym.engines.base import Engine, Sampling
from toolgym.envs.factory import EnvFactory
from toolgym.store import RunStore
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.failures import FailureGuard
from toolgym.trainer.faults import crash_point
from toolgym.trainer.staleness import Staleness
from toolgym.types import Failed, Group, Task, Trajectory


@dataclass(kw_only=True)
class Rollouts:
    """Plays the groups of a run within the staleness rule.

    Group ``number`` is called ``g<number>`` and plays the task that the curriculum gave for that number. States of a
    number: drawn (admitted, being played) -> finished (recorded, waiting) -> consumed (in a batch). A drawn number is
    played to its end or, after a kill, played again; a finished one is never played again. One that the curriculum does
    not keep is discarded when it finishes: it leaves with the next batch without being in it.
    """

    envs: EnvFactory
    chat: ChatFormat
    engine: Engine
    store: RunStore
    curriculum: Curriculum
    staleness: Staleness
    guard: FailureGuard
    sampling: Sampling
    budget: Budget
    group_size: int
    seed: int
    run_id: str
    lineage: int
    find_task: Callable[[str], Task]
    on_episode: Callable[[Trajectory], None] = lambda trajectory: None
    next_number: int = 0
    pending: dict[int, str] = field(default_factory=dict[int, str])  # drawn or finished: number -> task id
    finished: dict[int, Group] = field(default_factory=dict[int, Group])  # in the order of finishing
    discarded: dict[int, Group] = field(default_factory=dict[int, Group])  # since the last batch
    kept: dict[int, bool] = field(default_factory=dict[int, bool])  # the curriculum's verdicts, until consumed
    _replay: dict[int, Group] = field(default_factory=dict[int, Group])
    _changed: anyio.Event = field(default_factory=anyio.Event)

    async def run(self) -> None:
        """Admit and play groups until cancelled."""
        async with anyio.create_task_group() as group:
            for number in sorted(self.pending):  # drawn before the run was interrupted
                self._start(group, number)
            while True:
                while self.staleness.may_admit(self.next_number):
                    number = self.next_number
                    self.next_number += 1
                    self.pending[number] = self.curriculum.next_tasks(1)[0].id
                    self.staleness.admit(number)
                    self._start(group, number)
                await self._changed.wait()

    def _start(self, group: anyio.abc.TaskGroup, number: int) -> None:
        if (stored := self._replay.pop(number, None)) is not None:
            self._finish(number, stored)
        else:
            group.start_soon(self._play, number)

    async def _play(self, number: int) -> None:
        group = await rollout_group(
            self.envs.make,
            self.find_task(self.pending[number]),
            self.engine,
            self.chat,
            size=self.group_size,
            sampling=self.sampling,
            budget=self.budget,
            ids=EpisodeIds(run=self.run_id, group=f"g{number:06d}", attempt=self.lineage),
            seed=stable_seed(self.seed, number),
            on_episode=self._episode_ended,
        )
        self.store.add_group(group, number=number)
        crash_point("group_written")
        self.guard.check(group.trajectories)
        self._finish(number, group)

    def _finish(self, number: int, group: Group) -> None:
        if number not in self.kept:
            self.kept[number] = self.curriculum.keeps(result_of(group))
        if self.kept[number]:
            self.finished[number] = group
        else:
            self.staleness.discard(number)
            self.discarded[number] = group
        self.notify()

    def _episode_ended(self, trajectory: Trajectory) -> None:
        crash_point("mid_rollout")
        self.on_episode(trajectory)

    def notify(self) -> None:
        """Let those who wait look again: a group finished, or the learner's version moved on."""
        self._changed.set()
        self._changed = anyio.Event()

    async def next_batch(self) -> list[Group]:
        """Wait for the next batch: whole groups, in task order."""
        while (numbers := self.staleness.batch(list(self.finished))) is None:
            await self._changed.wait()
        return [self.finished[n] for n in numbers]

    def consume(self, groups: list[Group]) -> list[Group]:
        """The batch is in the learner: its groups leave the buffer, and those discarded since the last batch, too.

        The curriculum hears of them all. Returns: the discarded ones.
        """
        numbers = [number_of(g) for g in groups]
        self.staleness.consume(numbers)
        discarded, self.discarded = self.discarded, {}
        gone = {number: group for number, group in zip(numbers, groups, strict=True)} | discarded
        for n in gone:
            self.finished.pop(n, None)
            del self.pending[n], self.kept[n]
        self.curriculum.update([result_of(gone[n]) for n in sorted(gone)])
        return list(discarded.values())

    def state_dict(self) -> dict[str, Any]:
        """What is needed to go on: counters, the drawn numbers with their tasks and admission versions."""
        # Those discarded since the last batch are written as finished: they will be discarded again.
        admitted_at = self.staleness.admitted_at | dict.fromkeys(self.discarded, self.staleness.version)
        return {
            "next_number": self.next_number,
            "pending": {str(n): task for n, task in self.pending.items()},
            "kept": {str(n): kept for n, kept in self.kept.items()},
            "admitted_at": {str(n): v for n, v in admitted_at.items()},
            "discarded": self.staleness.discarded - len(self.discarded),
            "version": self.staleness.version,
            "first": self.staleness.first,
            "curriculum": self.curriculum.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any], *, recorded: list[Group]) -> None:
        """Take up a run. ``recorded`` are its finished, untrained groups; they are used instead of being played again.

        Groups of numbers that the state does not know were drawn after its checkpoint: those numbers will be drawn
        again, by the same curriculum from the same state, and then found here.
        """
        self.next_number = int(state["next_number"])
        self.pending = {int(n): task for n, task in state["pending"].items()}
        self.kept = {int(n): bool(kept) for n, kept in state["kept"].items()}
        self.staleness.discarded = int(state["discarded"])
        self.staleness.admitted_at = {int(n): int(v) for n, v in state["admitted_at"].items()}
        self.staleness.version = int(state["version"])
        self.staleness.first = int(state["first"])
        self.curriculum.load_state_dict(state["curriculum"])
        self._replay = {number_of(g): g for g in recorded}


def number_of(group: Group) -> int:
    """The number in a group's id: ``g000012`` -> 12."""
    return int(group.id[1:])


def scores(group: Group) -> list[float]:
    """The rewards of the episodes that did not fail."""
    return [t.score for t in group.trajectories if not isinstance(t.outcome, Failed)]


def result_of(group: Group) -> TaskResult:
    """What the curriculum hears of a group."""
    return TaskResult(task_id=group.task.id, rewards=tuple(scores(group)))
