"""Small trajectories, groups and models for the trainer's tests."""

import numpy as np
import torch
from transformers import PreTrainedModel

from toolgym.trainer.tiny.model import TinyModelConfig, build
from toolgym.types import (
    EpisodeEnd,
    Failed,
    Group,
    Outcome,
    Scored,
    Segment,
    StopReason,
    Task,
    Trajectory,
    Turn,
)

VOCAB = 40


def tiny_model(seed: int = 0, **shape: int) -> PreTrainedModel:
    """About 10k parameters over a vocabulary of 40, in float64 so that comparisons can be tight."""
    sizes = {"hidden_size": 16, "heads": 2, "head_dim": 8, "intermediate_size": 24} | shape
    model = build(TinyModelConfig(**sizes), vocab_size=VOCAB, seed=seed, eos=1, pad=0)
    return model.double()


def trajectory(
    tokens: list[int], mask: list[bool], *, outcome: Outcome, group: str = "g000000", index: int = 0, version: int = 0
) -> Trajectory:
    """One segment with sampler log-probabilities of -1 on its sampled tokens."""
    sampled = np.array(mask)
    segment = Segment(
        tokens=np.array(tokens, dtype=np.int32),
        loss_mask=sampled,
        sampler_logprobs=np.where(sampled, -1.0, 0.0).astype(np.float32),
        versions=np.where(sampled, version, -1).astype(np.int32),
    )
    turn = Turn(segment=0, start=int(sampled.argmax()), end=len(tokens), stop=StopReason.END_OF_TURN)
    return Trajectory(
        id=f"r/{group}/{index}/0",
        task_id="train-0",
        env_id="acme/x-v0",
        group_id=group,
        index=index,
        attempt=0,
        segments=(segment,),
        turns=(turn,),
        messages=(),
        outcome=outcome,
        end=EpisodeEnd.FAILED if isinstance(outcome, Failed) else EpisodeEnd.TERMINATED,
    )


def group(rewards: list[float | None], *, name: str = "g000000", seed: int = 0, version: int = 0) -> Group:
    """One trajectory per reward, with random tokens and lengths; None stands for a failed one."""
    rng = np.random.default_rng(seed)
    trajectories = []
    for index, reward in enumerate(rewards):
        n = int(rng.integers(6, 14))
        start = int(rng.integers(2, 4))
        tokens = rng.integers(2, VOCAB, n).tolist()
        outcome: Outcome = Failed(kind="sandbox", detail="gone") if reward is None else Scored(value=reward)
        mask = [i >= start for i in range(n)]
        trajectories.append(trajectory(tokens, mask, outcome=outcome, group=name, index=index, version=version))
    task = Task(id="train-0", env_id="acme/x-v0", split="train", seed=0, content_hash="0", data={})
    return Group(id=name, task=task, trajectories=tuple(trajectories))


def gradients(model: torch.nn.Module) -> torch.Tensor:
    """All gradients of a model in one vector."""
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])
