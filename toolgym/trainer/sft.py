"""Supervised fine-tuning on demonstrations: the loss is on the assistant's tokens only, and a threshold ends it.

A fixed number of steps fails for half of the seeds with a tiny model, because copying is found at different times. So
training goes on until sampled success on training tasks reaches a threshold, and then decays the learning rate to zero.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence

import anyio.to_thread
import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from toolgym.agents.chat import ChatFormat
from toolgym.config import Config
from toolgym.errors import TrainingError
from toolgym.trainer.logprobs import token_logprobs
from toolgym.types import Message


class SFTConfig(Config):
    """The warm start."""

    demonstrations: int = Field(default=3000, ge=1)
    batch: int = 8
    lr: float = 3e-3
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    until_success: float = Field(default=0.22, ge=0, le=1)
    """sampled success on training tasks at which the decay begins"""
    check_every: int = 50
    check_tasks: int = 256
    min_steps: int = 200
    max_steps: int = Field(default=2500, ge=1)
    decay_steps: int = 100


def encode_demonstration(
    chat: ChatFormat, messages: Sequence[Message], tools: Sequence[dict]
) -> tuple[list[int], list[bool]]:
    """Tokens of a conversation and which of them the policy says: exactly as a rollout would have recorded it.

    Args:    messages: begins with the task's messages and ends with an assistant turn.
    Returns: token ids and loss mask, equally long.
    """
    first = next(i for i, m in enumerate(messages) if m.role == "assistant")
    tokens = chat.initial(messages[:first], tools)
    mask = [False] * len(tokens)
    at = first
    while at < len(messages):
        turn = chat.encode_turn(messages[at])
        tokens += turn
        mask += [True] * len(turn)
        end = next((i for i in range(at + 1, len(messages)) if messages[i].role == "assistant"), len(messages))
        if end < len(messages):
            between = chat.extend(messages[at + 1 : end])
            tokens += between
            mask += [False] * len(between)
        at = end
    return tokens, mask


def sft_batches(
    examples: Sequence[tuple[list[int], list[bool]]], *, batch: int, pad: int, seed: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless right-padded batches: tokens int64 and mask bool [batch, T]; every example once per shuffled epoch."""
    generator = np.random.default_rng(seed)
    while True:
        order = generator.permutation(len(examples))
        for start in range(0, len(order) - batch + 1, batch):
            chosen = [examples[i] for i in order[start : start + batch]]
            width = max(len(t) for t, _ in chosen)
            tokens = torch.full((batch, width), pad)
            mask = torch.zeros((batch, width), dtype=torch.bool)
            for row, (t, m) in enumerate(chosen):
                tokens[row, : len(t)] = torch.tensor(t)
                mask[row, : len(m)] = torch.tensor(m)
            yield tokens, mask


class SFT:
    """Steps a model on batches; the caller decides when the threshold holds."""

    def __init__(self, model: PreTrainedModel, config: SFTConfig) -> None:
        self.model = model
        self.config = config
        self.optimizer = torch.optim.AdamW(
            model.parameters(), lr=config.lr, betas=config.betas, weight_decay=config.weight_decay
        )

    def step(self, tokens: Tensor, mask: Tensor, *, lr: float) -> float:
        """One update on the mean negative log-likelihood of the masked tokens; returns it (nats per token)."""
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        loss = -token_logprobs(self.model, tokens, mask).sum() / mask.sum().clamp(min=1)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip)
        self.optimizer.step()
        return float(loss.detach())


async def warm_start(
    model: PreTrainedModel,
    examples: Sequence[tuple[list[int], list[bool]]],
    config: SFTConfig,
    *,
    pad: int,
    seed: int,
    check: Callable[[], Awaitable[float]],
    on_steps: Callable[[int, float, float | None], None] = lambda step, loss, success: None,
) -> dict[str, float]:
    """Train in place until ``check`` reports sampled success of at least ``until_success``, then decay.

    Args:    check: publishes the model and measures it; called every ``check_every`` steps after ``min_steps``.
             on_steps: called every ``check_every`` steps with step, mean loss and, when measured, success.
    Returns: ``sft_steps``, ``sft_loss``, ``sft_success`` (at the threshold).
    Raises:  TrainingError: ``max_steps`` were not enough.
    """
    sft, batches = SFT(model, config), sft_batches(examples, batch=config.batch, pad=pad, seed=seed)

    def run(steps: int, rates: Callable[[int], float]) -> float:
        losses = [sft.step(*next(batches), lr=rates(i)) for i in range(steps)]
        return sum(losses) / max(1, len(losses))

    step, success, loss = 0, 0.0, float("nan")
    while step < config.max_steps:
        loss = await anyio.to_thread.run_sync(run, config.check_every, lambda i: config.lr)
        step += config.check_every
        measured = await check() if step >= config.min_steps else None
        on_steps(step, loss, measured)
        if measured is not None and measured >= config.until_success:
            success = measured
            break
    else:
        raise TrainingError(
            f"the warm start ended with less than sft.until_success = {config.until_success} after "
            f"{config.max_steps} steps (loss {loss:.3f}); give it more sft.max_steps or sft.demonstrations, or try "
            "another seed"
        )
    n = config.decay_steps
    if n:
        loss = await anyio.to_thread.run_sync(run, n, lambda i: config.lr * (1 - (i + 1) / n) + 1e-5)
        on_steps(step + n, loss, None)
    return {"sft_steps": float(step + n), "sft_loss": loss, "sft_success": success}
