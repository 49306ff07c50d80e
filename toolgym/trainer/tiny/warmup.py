"""The copy warm-up: before any demonstration, the model learns to repeat spans that it has seen in its context.

Spans of random length are repeated from random places, so only matching by content helps: with a fixed distance the
model would learn the distance.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from toolgym.config import Config
from toolgym.errors import TrainingError


class WarmupConfig(Config):
    """Random repeated spans until the loss on their predictable tokens is below a threshold."""

    until_loss: float = Field(default=0.65, gt=0)
    """nats per token; about 0.45 is the floor, since a repeated token may have been seen in two places"""
    max_steps: int = Field(default=400, ge=0)
    batch: int = 32
    length: int = 64
    lr: float = 4e-3


def copy_batch(vocab: tuple[int, int], *, batch: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Random tokens from the range ``vocab`` with repeated spans: int64 [batch, length], and a bool mask of the same
    shape that is true where a token continues a repetition (its first token cannot be foreseen).
    """
    low, high = vocab
    tokens = torch.randint(low, high, (batch, length), generator=generator)
    mask = torch.zeros(batch, length, dtype=torch.bool)
    for row in range(batch):
        at = _draw(8, 33, generator)
        while at < length:
            span = min(_draw(3, 9, generator), length - at)
            source = _draw(0, at - span + 1, generator)
            tokens[row, at : at + span] = tokens[row, source : source + span].clone()
            mask[row, at + 1 : at + span] = True
            at += span
    return tokens, mask


def _draw(low: int, high: int, generator: torch.Generator) -> int:
    return int(torch.randint(low, max(high, low + 1), (1,), generator=generator))


def copy_warmup(
    model: PreTrainedModel,
    config: WarmupConfig,
    *,
    first_token: int,
    seed: int,
    on_step: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train in place until the threshold holds (mean of the last 5 losses); returns the last mean loss.

    Args:    first_token: ids from here to the end of the vocabulary are ordinary tokens (control tokens come first).
             on_step: called after each step with its number and loss.
    Raises:  TrainingError: ``max_steps`` were not enough.
    """
    if config.max_steps == 0:
        return float("nan")
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=config.lr, betas=(0.9, 0.98), weight_decay=0.01)
    head = model.get_output_embeddings()
    assert head is not None, "a causal model has an output layer"
    recent: list[float] = []
    for step in range(config.max_steps):
        tokens, mask = copy_batch(
            (first_token, model.config.vocab_size), batch=config.batch, length=config.length, generator=generator
        )
        hidden = model.get_decoder()(input_ids=tokens, use_cache=False).last_hidden_state
        targets = mask[:, 1:]
        logits = head(hidden[:, :-1][targets])
        loss = F.cross_entropy(logits, tokens[:, 1:][targets])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        recent = [*recent[-4:], float(loss.detach())]
        on_step(step, recent[-1])
        if len(recent) == 5 and sum(recent) / 5 < config.until_loss:
            return sum(recent) / 5
    raise TrainingError(
        f"the copy warm-up ended at loss {recent[-1]:.2f} after {config.max_steps} steps, expected below "
        f"{config.until_loss}; try another seed, more policy.warmup.max_steps or a larger policy.model.hidden_size"
    )
