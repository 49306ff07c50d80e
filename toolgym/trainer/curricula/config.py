"""What a recipe says about the curriculum: ``curriculum = "pcl"`` or ``curriculum = {type = "pcl", tau = 0.5}``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from toolgym.config import Config, component
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum
from toolgym.trainer.curricula.dynamic_sampling import DynamicSampling
from toolgym.trainer.curricula.ladder import VariantLadder
from toolgym.trainer.curricula.mastered import NoPositiveResampling
from toolgym.trainer.curricula.prompt import PromptCurriculum
from toolgym.trainer.curricula.retry import BufferedRetry
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.trainer.curricula.sources import SourceBandit
from toolgym.types import Task


class ShuffledConfig(Config):
    """Every task once per epoch, in random order."""

    type: Literal["shuffled"] = "shuffled"

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks."""
        return Shuffled(tasks, seed=seed)


class DynamicSamplingConfig(Config):
    """DAPO: shuffled epochs; groups whose rewards are all equal leave the batch, others are played in their place."""

    type: Literal["dynamic_sampling"] = "dynamic_sampling"
    batch: int = Field(default=16, ge=1)
    """groups with signal that are wanted at once; best rollout.groups_per_step"""
    max_batches: int = Field(default=10, ge=1)
    """the run stops where so many batches had to be played for one"""

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks."""
        return DynamicSampling(tasks, seed=seed, target=self.batch, max_batches=self.max_batches)


class PromptConfig(Config):
    """PCL: tasks whose predicted success is near ``tau``."""

    type: Literal["pcl"] = "pcl"
    tau: float = Field(default=0.5, ge=0, le=1)
    oversample: int = Field(default=4, ge=1)
    """candidates judged per task played"""
    batch: int = Field(default=16, ge=1)
    """tasks selected at once; best rollout.groups_per_step"""

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks."""
        return PromptCurriculum(tasks, seed=seed, tau=self.tau, oversample=self.oversample, batch=self.batch)


class SourcesConfig(Config):
    """DUMP: a bandit over sources of tasks, a source being the value of ``key`` in a task's data."""

    type: Literal["dump"] = "dump"
    key: str = "level"
    tau: float = Field(default=0.1, gt=0)
    window: int = Field(default=300, ge=1)
    """|advantage| values remembered per source"""
    scaled: bool = True
    """advantages are divided by their group's std"""

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks. Raises ConfigError: a task's data lacks the key."""
        _require(tasks, self.key)
        return SourceBandit(
            tasks,
            source=lambda task: str(task.data[self.key]),
            seed=seed,
            tau=self.tau,
            window=self.window,
            scaled=self.scaled,
        )


class RetryConfig(Config):
    """BDR: shuffled epochs, and now and then a task that its whole group had failed."""

    type: Literal["retry"] = "retry"
    p: float = Field(default=0.1, ge=0, le=1)
    """how often a task comes from the buffer"""
    capacity: int = Field(default=512, ge=1)
    max_retries: int = Field(default=2, ge=0)
    success: float = 1.0
    """a reward of at least this is a success"""

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks."""
        by_id = {task.id: task for task in tasks}
        return BufferedRetry(
            Shuffled(tasks, seed=seed),
            by_id.__getitem__,
            seed=seed,
            p=self.p,
            capacity=self.capacity,
            max_retries=self.max_retries,
            success=self.success,
        )


class MasteredConfig(Config):
    """No-positive-resampling: tasks with a pass rate of ``threshold`` leave the later epochs."""

    type: Literal["no_positive_resampling"] = "no_positive_resampling"
    threshold: float = Field(default=0.9, gt=0, le=1)
    success: float = 1.0

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks."""
        return NoPositiveResampling(tasks, seed=seed, threshold=self.threshold, success=self.success)


class LadderConfig(Config):
    """Cog-DRIFT: problems in ever harder forms; a task's data names its problem and its rung."""

    type: Literal["ladder"] = "ladder"
    problem: str = "problem"
    """key of the problem's name in a task's data"""
    rung: str = "rung"
    """key of the form's place, a number, the easiest lowest"""
    threshold: float = 0.5
    window: int = Field(default=1, ge=1)

    def build(self, tasks: Sequence[Task], *, seed: int) -> Curriculum:
        """The curriculum over these tasks. Raises ConfigError: a task's data lacks a key."""
        _require(tasks, self.problem)
        _require(tasks, self.rung)
        ladders: dict[str, list[Task]] = {}
        for task in sorted(tasks, key=lambda t: float(t.data[self.rung])):
            ladders.setdefault(str(task.data[self.problem]), []).append(task)
        return VariantLadder(ladders, seed=seed, threshold=self.threshold, window=self.window)


def _require(tasks: Sequence[Task], key: str) -> None:
    for task in tasks:
        if key not in task.data:
            raise ConfigError(f"task {task.id} has no {key!r} in its data; it has {', '.join(sorted(task.data))}")


CurriculumConfig = component(
    ShuffledConfig, DynamicSamplingConfig, PromptConfig, SourcesConfig, RetryConfig, MasteredConfig, LadderConfig
)
