"""The configuration of a run: one tree, saved with the run, from which it can be run again."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from toolgym.config import Config, component
from toolgym.engines.transformers_engine import TransformersEngineConfig
from toolgym.trainer.algorithm import AlgorithmConfig
from toolgym.trainer.curricula.config import CurriculumConfig, ShuffledConfig
from toolgym.trainer.failures import FailureConfig
from toolgym.trainer.learner import OptimizerConfig
from toolgym.trainer.policy import PolicyConfig, TinyPolicyConfig
from toolgym.trainer.presets import check_combination
from toolgym.trainer.sft import SFTConfig


class EnvConfig(Config):
    """The environment to learn in."""

    id: str = "toolgym/python-v0"
    options: dict[str, Any] = Field(default_factory=dict)
    """keyword arguments of the environment, such as ``{sandbox = "docker"}``"""


class RolloutConfig(Config):
    """How episodes are played while training. One unit everywhere: groups per step, episodes per group."""

    groups_per_step: int = Field(default=16, ge=1)
    group_size: int = Field(default=8, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    max_new_tokens: int = Field(default=64, ge=1)
    """tokens per turn"""
    max_turns: int = Field(default=6, ge=1)
    max_tokens: int = Field(default=384, ge=2)
    """tokens per episode, the prompt and tool results included"""
    max_time_s: float = Field(default=60.0, gt=0)
    """seconds per episode; more is a failure of the infrastructure, not a score"""
    max_staleness: int = Field(default=1, ge=0)
    """versions by which the sampler may run ahead of the learner; 0 is exactly on-policy"""


class EvalConfig(Config):
    """Evaluation on held-out tasks, before and after."""

    split: Literal["validation", "test"] = "test"
    tasks: int = Field(default=400, ge=1)
    every: int = Field(default=0, ge=0)
    """also measure ``every_tasks`` validation tasks every so many steps, greedily and sampled; 0: never"""
    every_tasks: int = Field(default=100, ge=1)
    transcripts: int = Field(default=3, ge=0)


class TrainConfig(Config):
    """Learning."""

    steps: int = Field(default=30, ge=1)
    optimizer: OptimizerConfig = Field(default_factory=OptimizerConfig)
    micro_batch_tokens: int = Field(default=16384, ge=1)
    minibatches: int = Field(default=1, ge=1)
    """optimizer steps per batch"""
    autocast: Literal["none", "bfloat16"] = "none"
    """precision of the learner's matrix products; parameters, log-probabilities and losses stay in float32"""
    checkpoint_every: int = Field(default=5, ge=1)
    threads: int = Field(default=1, ge=1)


class RunConfig(Config):
    """A recipe. ``toolgym config show RECIPE`` prints every key with its value."""

    name: str = "custom"
    seed: int = Field(default=0, ge=0)
    deterministic: bool = False
    """two runs agree bit for bit whatever the tools' delays; needs rollout.max_staleness = 0"""
    env: EnvConfig = Field(default_factory=EnvConfig)
    policy: PolicyConfig = TinyPolicyConfig()  # type: ignore[valid-type]
    engine: component(TransformersEngineConfig) = TransformersEngineConfig()  # type: ignore[valid-type]
    sft: SFTConfig | None = None
    algorithm: AlgorithmConfig = Field(default_factory=lambda: AlgorithmConfig.model_validate("grpo"))
    curriculum: CurriculumConfig = Field(default_factory=ShuffledConfig)  # type: ignore[valid-type]
    rollout: RolloutConfig = Field(default_factory=RolloutConfig)
    train: TrainConfig = Field(default_factory=TrainConfig)
    evaluate: EvalConfig = Field(default_factory=EvalConfig)
    failures: FailureConfig = Field(default_factory=FailureConfig)

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        check_combination(
            self.algorithm.model_dump(),
            group_size=self.rollout.group_size,
            max_staleness=self.rollout.max_staleness,
        )
        if self.deterministic and self.rollout.max_staleness != 0:
            raise ValueError(
                f"deterministic = true needs rollout.max_staleness = 0, got {self.rollout.max_staleness}: with "
                "the sampler running ahead, which weights a token is sampled from depends on timing"
            )
        if self.train.minibatches > self.rollout.groups_per_step:
            raise ValueError(
                f"train.minibatches = {self.train.minibatches} is more than rollout.groups_per_step = "
                f"{self.rollout.groups_per_step}: a minibatch holds at least one group"
            )
        if self.rollout.max_tokens > self.engine.max_context:
            raise ValueError(
                f"rollout.max_tokens = {self.rollout.max_tokens} does not fit engine.max_context = "
                f"{self.engine.max_context}"
            )
        return self
