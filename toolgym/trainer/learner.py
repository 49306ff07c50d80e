"""The learner: one forward and backward over a batch of groups, one optimizer step, and what it measured.

It knows no algorithm: `toolgym.trainer.algorithm` gives it per-token losses, `row_weights` their denominators over the
whole batch, so that micro-batches add up to exactly the batch's gradient.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor
from transformers import PreTrainedModel

from toolgym.algorithms.aggregation import aggregate, row_weights
from toolgym.config import Config
from toolgym.errors import TrainingError
from toolgym.trainer.algorithm import AlgorithmConfig, advantages, token_losses
from toolgym.trainer.batch import Batch, micro_batches
from toolgym.trainer.logprobs import token_logprobs

EAGER_TOKENS = 256  # rows longer than that would pay more for their [T, T] scores than the fused kernel costs


class OptimizerConfig(Config):
    """AdamW with a linear schedule from ``lr`` to ``lr_final``."""

    lr: float = Field(default=1e-3, gt=0)
    lr_final: float = Field(default=2e-4, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = Field(default=0.0, ge=0)
    grad_clip: float = Field(default=1.0, gt=0)

    def build(self, model: torch.nn.Module) -> torch.optim.AdamW:
        """The optimizer over all of the model's trainable parameters."""
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            trained, lr=self.lr, betas=self.betas, weight_decay=self.weight_decay, foreach=True, eps=1e-8
        )

    def lr_at(self, step: int, steps: int) -> float:
        """The learning rate of update ``step`` (from 0) of ``steps``."""
        share = min(1.0, step / max(1, steps - 1))
        return self.lr + (self.lr_final - self.lr) * share


class Learner:
    """Owns the policy's parameters and optimizer; every call is synchronous and runs in one thread."""

    def __init__(
        self,
        model: PreTrainedModel,
        algorithm: AlgorithmConfig,
        optimizer: OptimizerConfig,
        *,
        steps: int,
        temperature: float = 1.0,
        micro_batch_tokens: int = 16384,
        minibatches: int = 1,
        autocast: Literal["none", "bfloat16"] = "none",
        reference: PreTrainedModel | None = None,
    ) -> None:
        self.model = model
        self.algorithm = algorithm
        self.config = optimizer
        self.steps = steps
        self.temperature = temperature
        self.micro_batch_tokens = micro_batch_tokens
        self.minibatches = minibatches
        self.autocast = autocast
        self.reference = reference
        self.optimizer = optimizer.build(model)
        self.step_count = 0

    def step(self, batch: Batch, *, version: int) -> dict[str, float]:
        """One batch: ``minibatches`` optimizer steps. ``version`` is the learner's own before this step.

        Returns: metrics by name. ``logprob_max_abs_diff`` is between sampler and learner, over tokens sampled at
        exactly
                 this version (absent when there are none); ``skipped`` is 1 when no row had an advantage.
        Raises:  TrainingError: a non-finite loss or gradient; the parameters are those from before the optimizer step.
        """
        start, cpu = time.perf_counter(), time.thread_time()
        a = advantages(self.algorithm, rewards=batch.rewards, group=batch.group, mask=batch.mask)
        index = self._informative(batch, a)
        metrics: dict[str, float] = {"rows": float(len(index)), "skipped": float(len(index) == 0)}
        old = self._old_logprobs(batch, index)
        for part in _split_groups(batch, index, self.minibatches):
            metrics.update(self._update(batch, a, old, part, version))
        self.step_count += 1
        metrics["time_learn_s"] = time.perf_counter() - start
        metrics["cpu_learn_s"] = time.thread_time() - cpu
        metrics["trained_tokens"] = float(batch.mask[index].sum())
        return metrics

    def _informative(self, batch: Batch, a: Tensor) -> Tensor:
        """Indices of the rows that are trained on."""
        has_tokens = batch.mask.any(1)
        if not self.algorithm.drop_uninformative or self.algorithm.kl is not None:
            return has_tokens.nonzero().flatten()
        signal = (a if a.dim() == 1 else a.abs().sum(1)) != 0
        return (has_tokens & signal).nonzero().flatten()

    @torch.no_grad()
    def _old_logprobs(self, batch: Batch, index: Tensor) -> Tensor | None:
        """What the ratios are taken against; None stands for the learner's own log-probabilities, detached."""
        if self.algorithm.old_logprobs == "sampler":
            return batch.sampler_logprobs
        if self.minibatches == 1:
            return None
        return self.logprobs(batch, index)

    @torch.no_grad()
    def logprobs(self, batch: Batch, index: Tensor, model: PreTrainedModel | None = None) -> Tensor:
        """The model's log-probabilities [B, T] of the sampled tokens in the rows of ``index``; 0 elsewhere."""
        out = torch.zeros_like(batch.sampler_logprobs)
        for local in micro_batches(batch.lengths[index], max_tokens=self.micro_batch_tokens):
            rows = index[local]
            part = batch.rows(rows)
            values = self._forward(model or self.model, part)
            out[rows, : values.shape[1]] = values.to(out.dtype)
        return out

    def _forward(self, model: PreTrainedModel, part: Batch) -> Tensor:
        """Log-probabilities [b, t] of the sampled tokens; the matrix products in bfloat16 where so configured."""
        if self.autocast == "bfloat16" and part.tokens.device.type == "cpu":
            # The fused attention's backward in bfloat16 is slow on a CPU: a third of a step of rows of 80 tokens.
            wanted = "eager" if part.tokens.shape[1] <= EAGER_TOKENS else "sdpa"
            if model.config._attn_implementation != wanted:
                model.set_attn_implementation(wanted)
        with torch.autocast(part.tokens.device.type, torch.bfloat16, enabled=self.autocast == "bfloat16"):
            return token_logprobs(model, part.tokens, part.mask, temperature=self.temperature)

    def _update(self, batch: Batch, a: Tensor, old: Tensor | None, index: Tensor, version: int) -> dict[str, float]:
        """Forward and backward over the micro-batches of ``index``, then one optimizer step."""
        if len(index) == 0:
            return {}
        reference = self.logprobs(batch, index, self.reference) if self.algorithm.kl is not None else None
        settings = self.algorithm.aggregation
        weights = row_weights(batch.mask[index], settings.mode, group=batch.group[index], l_max=settings.l_max)
        self.optimizer.zero_grad(set_to_none=True)
        gathered = _Gathered()
        for local in micro_batches(batch.lengths[index], max_tokens=self.micro_batch_tokens):
            rows = index[local]
            part = batch.rows(rows)
            width = part.tokens.shape[1]
            logprobs = self._forward(self.model, part)
            loss, mask, metrics = token_losses(
                self.algorithm,
                logprobs=logprobs,
                old_logprobs=logprobs.detach() if old is None else old[rows, :width],
                sampler_logprobs=part.sampler_logprobs,
                advantages=a[rows] if a.dim() == 1 else a[rows, :width],
                mask=part.mask,
                ref_logprobs=None if reference is None else reference[rows, :width],
            )
            total = aggregate(loss, mask, weights[local])
            total.backward()
            gathered.add(part, logprobs.detach(), total.detach(), metrics, version)
        return {**gathered.result(), **self._optimizer_step(gathered.loss)}

    def _optimizer_step(self, loss: float) -> dict[str, float]:
        lr = self.config.lr_at(self.step_count, self.steps)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.grad_clip))
        if not (math.isfinite(norm) and math.isfinite(loss)):
            self.optimizer.zero_grad(set_to_none=True)
            raise TrainingError(
                f"step {self.step_count}: loss {loss}, gradient norm {norm}; expected finite numbers. "
                "Lower optimizer.lr or optimizer.grad_clip; the last checkpoint is intact"
            )
        self.optimizer.step()
        return {"grad_norm": norm, "lr": lr}

    def state_dict(self) -> dict[str, Any]:
        """Optimizer state and step count (the model's parameters are saved apart)."""
        return {"optimizer": self.optimizer.state_dict(), "step_count": self.step_count}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up where `state_dict` was taken."""
        self.optimizer.load_state_dict(state["optimizer"])
        self.step_count = state["step_count"]


class _Gathered:
    """Metrics over the micro-batches of one update: sums weighted by their tokens."""

    def __init__(self) -> None:
        self.loss = 0.0
        self._tokens = 0.0
        self._sums: dict[str, float] = {}
        self._diff_max, self._diff_sum, self._diff_n = 0.0, 0.0, 0

    def add(self, part: Batch, logprobs: Tensor, loss: Tensor, metrics: dict[str, Tensor], version: int) -> None:
        self.loss += float(loss)
        n = float(part.mask.sum())
        self._tokens += n
        for name, value in metrics.items():
            self._sums[name] = self._sums.get(name, 0.0) + n * float(value)
        self._sums["sampler_kl_k1"] = self._sums.get("sampler_kl_k1", 0.0) + float(
            (part.sampler_logprobs - logprobs)[part.mask].sum()
        )
        same = part.mask & (part.versions == version)
        diff = (logprobs - part.sampler_logprobs)[same].abs()
        if diff.numel():
            self._diff_max = max(self._diff_max, float(diff.max()))
            self._diff_sum += float(diff.sum())
            self._diff_n += diff.numel()

    def result(self) -> dict[str, float]:
        out = {name: total / max(1.0, self._tokens) for name, total in self._sums.items()} | {"loss": self.loss}
        if self._diff_n:
            out["logprob_max_abs_diff"] = self._diff_max
            out["logprob_mean_abs_diff"] = self._diff_sum / self._diff_n
        return out


def _split_groups(batch: Batch, index: Tensor, n: int) -> Sequence[Tensor]:
    """``index`` in n parts of whole groups."""
    if n == 1:
        return [index]
    groups = batch.group[index].unique().tolist()
    size = -(-len(groups) // n)
    chosen = [torch.tensor(groups[i : i + size]) for i in range(0, len(groups), size)]
    return [index[torch.isin(batch.group[index], part)] for part in chosen]
