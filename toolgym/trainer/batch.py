"""Groups become one right-padded batch: tokens, masks, the sampler's streams and the rewards, groups whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace

import numpy as np
import torch
from torch import Tensor

from toolgym.types import Failed, Group, Sample


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """B sequences for the learner, right-padded to T. Example: 16 groups of 8 give B = 128.

    tokens int64 [B, T]; mask bool [B, T], tokens sampled by the policy; sampler_logprobs float32 [B, T]; versions int64
    [B, T], -1 where not sampled; rewards float32 [B]; group int64 [B]; lengths int64 [B].
    """

    tokens: Tensor
    mask: Tensor
    sampler_logprobs: Tensor
    versions: Tensor
    rewards: Tensor
    group: Tensor
    lengths: Tensor

    def __len__(self) -> int:
        return len(self.tokens)

    def rows(self, index: Tensor) -> Batch:
        """Those rows, cut to the longest of them."""
        width = int(self.lengths[index].max()) if len(index) else 1
        chosen = {f.name: getattr(self, f.name)[index] for f in fields(self)}
        return replace(self, **{k: v[:, :width] if v.dim() == 2 else v for k, v in chosen.items()})


def samples_of(group: Group) -> list[Sample]:
    """One sample per segment of each scored trajectory; failed ones leave here, before any baseline is computed."""
    return [
        Sample(
            id=f"{t.id}/{place}",
            group_id=group.id,
            reward=t.score,
            tokens=segment.tokens,
            streams={
                "loss_mask": segment.loss_mask,
                "sampler_logprobs": segment.sampler_logprobs,
                "versions": segment.versions,
            },
        )
        for t in group.trajectories
        if not isinstance(t.outcome, Failed)
        for place, segment in enumerate(t.segments)
    ]


def collate(groups: Sequence[Group], *, pad: int) -> Batch:
    """Pad the samples of whole groups into one batch, in the order given.

    Raises:  ValueError: no group holds a scored trajectory.
    """
    samples = [(place, sample) for place, group in enumerate(groups) for sample in samples_of(group)]
    if not samples:
        raise ValueError(f"none of the {len(groups)} groups holds a scored trajectory")
    lengths = torch.tensor([len(s.tokens) for _, s in samples])
    shape = (len(samples), int(lengths.max()))
    tokens = np.full(shape, pad, np.int64)
    mask = np.zeros(shape, np.bool_)
    logprobs = np.zeros(shape, np.float32)
    versions = np.full(shape, -1, np.int64)
    for row, (_, s) in enumerate(samples):
        n = len(s.tokens)
        tokens[row, :n] = s.tokens
        mask[row, :n] = s.streams["loss_mask"]
        logprobs[row, :n] = s.streams["sampler_logprobs"]
        versions[row, :n] = s.streams["versions"]
    return Batch(
        tokens=torch.from_numpy(tokens),
        mask=torch.from_numpy(mask),
        sampler_logprobs=torch.from_numpy(logprobs),
        versions=torch.from_numpy(versions),
        rewards=torch.tensor([s.reward for _, s in samples]),
        group=torch.tensor([place for place, _ in samples]),
        lengths=lengths,
    )


def micro_batches(lengths: Tensor, *, max_tokens: int) -> Iterator[Tensor]:
    """Row indices in parts whose padded size is at most ``max_tokens``, rows of like length together.

    A row longer than that is a part of its own. The order depends on the lengths alone (ties by index).
    """
    order = torch.argsort(lengths, stable=True)
    part: list[int] = []
    for i in order.tolist():
        if part and (len(part) + 1) * int(lengths[i]) > max_tokens:
            yield torch.tensor(part)
            part = []
        part.append(i)
    if part:
        yield torch.tensor(part)
