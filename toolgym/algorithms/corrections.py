"""Corrections for data that the sampler drew from another distribution than the policy before its update.

All share one signature: ``correction(old_logprobs, sampler_logprobs, mask, ...) -> (weight, kept, metrics)``.
``weight`` float [B, T] multiplies the per-token loss (1 where none is meant, 0 under the mask), ``kept`` bool [B, T]
replaces the mask. Truncation edits the weight, rejection the mask; `combine` joins several. Row weights computed
from the original mask leave a rejected token in the denominators, computed from ``kept`` they count what is left.

``sampler_logprobs`` must be of the distribution actually sampled from (temperature, top-p), or no correction is right.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.kl import estimate
from toolgym.algorithms.masking import MAX_LOG_RATIO, silence, square_sum
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import Step, hush, moved
from toolgym.errors import ConfigError, nearest

Level: TypeAlias = Literal["token", "sequence"]
Correction: TypeAlias = tuple[Tensor, Tensor, dict[str, Tensor]]


@card(family="correction", certainty="certain")
def truncated_is(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, level: Level = "token", cap: float = 2.0
) -> Correction:
    """Truncated importance sampling (TIS): the ratio between trainer and sampler, bounded above.

        token:    w_t = min(rho_t, cap),  rho_t = pi_old(a_t) / mu(a_t)
        sequence: w_t = min(prod_s rho_s, cap), the same for the whole row

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T]. cap > 0: 1.5 to 5 per token, 2 to 10 per
             sequence; infinity gives exact importance sampling (up to exp(20)).
    Returns: weight [B, T] in [0, cap], detached, 0 under the mask; the mask itself; metrics.
    Source:  verl rollout_corr_helper; Yao et al., Your efficient RL framework secretly brings you off-policy (2025).
    """
    step = moved(old_logprobs, sampler_logprobs, mask)
    weight = _at(level, step).clamp_(max=cap).mul_(step.ones)
    return weight, mask, _metrics(step, weight, mask, mask)


@card(family="correction", certainty="certain")
def masked_is(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    level: Level = "token",
    low: float = 0.5,
    high: float = 2.0,
) -> Correction:
    """Masked importance sampling (MIS, IcePop): the exact ratio inside a window, rejection outside.

        w_t = rho_t,  kept_t = 1[low <= rho_t <= high];   level "sequence" takes prod_s rho_s for rho_t

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T]. low, high: TRL's sequence mode has 0
             and 3.
    Returns: weight [B, T], detached, 0 where not kept; kept; metrics.
    Source:  IcePop (Ring, arXiv:2510.18855); TRL vllm_importance_sampling_mode; verl rollout_corr_helper.
    """
    step = moved(old_logprobs, sampler_logprobs, mask)
    rho = _at(level, step)
    kept = mask & (rho <= high)
    if low > 0:
        kept &= rho >= low
    weight = hush(rho, kept)
    return weight, kept, _metrics(step, weight, mask, kept)


@card(family="correction", certainty="certain")
def geometric_rejection(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, low: float = 0.999, high: float = 1.001
) -> Correction:
    """Reject rows whose geometric-mean ratio leaves a window; no weight.

        kept_i = 1[low <= exp(mean_t log rho_t) <= high]

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T].
    Returns: weight 1 where kept, else 0; kept; metrics.
    Edge:    signed log-ratios cancel: see `mirror_pop`.
    Source:  verl rollout_corr_helper (Geo-RS).
    """
    step = moved(old_logprobs, sampler_logprobs, mask)
    return _reject_rows(step, mask, _gate(step, low, high))


@card(family="correction", certainty="certain", parts=("kl",))
def divergence_rejection(
    old_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: Literal["k2", "k3"] = "k3",
    threshold: float = 0.005,
) -> Correction:
    """Reject rows whose mean divergence between sampler and trainer is too large; no weight.

        kept_i = 1[mean_t k(mu, pi_old) <= threshold],   k2 = (log rho)^2 / 2,   k3 = rho - 1 - log rho

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T]. threshold: 0.001 to 0.01.
    Returns: weight 1 where kept, else 0; kept; metrics.
    Source:  verl rollout_corr_helper (K2-RS, K3-RS).
    """
    if kind not in ("k2", "k3"):
        raise ConfigError(nearest(kind, ("k2", "k3"), what="divergence"))
    step = moved(old_logprobs, sampler_logprobs, mask)
    divergence, _ = estimate(-step.log, kind)
    return _reject_rows(step, mask, _mean(divergence, step) <= threshold)


@card(family="correction", certainty="secondary")
def mirror_pop(old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, threshold: float = 0.05) -> Correction:
    """MirrorPop: reject rows whose mean *absolute* log-ratio is too large; deviations up and down do not cancel.

        kept_i = 1[mean_t |log rho_t| <= threshold],   exp|log rho| = max(rho, 1/rho)

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T].
    Returns: weight 1 where kept, else 0; kept; metrics.
    Source:  MusaCoder (arXiv:2606.04847), as quoted in notes of the paper.
    Differs: the paper's threshold is not published; 0.05 is ours: look at the distribution of sampler_kl first.
    """
    step = moved(old_logprobs, sampler_logprobs, mask)
    return _reject_rows(step, mask, _mean(step.log.abs(), step) <= threshold)


@card(family="correction", certainty="certain", parts=("geometric_rejection",))
def gated_is(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, low: float = 0.5, high: float = 2.0
) -> Correction:
    """Token weights behind a row gate: rows by their geometric mean, the kept ones weighted by exact token ratios.

        kept_i = 1[low <= exp(mean_t log rho_t) <= high],   w_t = rho_t

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T].
    Returns: weight [B, T], detached, 0 where not kept; kept; metrics.
    Source:  OpenRLHF (seq-mask-tis).
    """
    step = moved(old_logprobs, sampler_logprobs, mask)
    kept = mask & _gate(step, low, high).unsqueeze(1)
    weight = hush(step.log.exp(), kept)
    return weight, kept, _metrics(step, weight, mask, kept)


@card(family="correction", certainty="certain")
def off_policy_sequence_mask(
    old_logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor, *, advantages: Tensor, threshold: float = 0.1
) -> Correction:
    """OPSM: reject a row only if it is bad *and* far from the policy; good rows stay however far.

        kept_i = 1[A_i >= 0  or  mean_t (log mu - log pi_old) <= threshold]

    Args:    old_logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T]. advantages: float [B].
    Returns: weight 1 where kept, else 0; kept; metrics.
    Raises:  ValueError: advantages per token.
    Source:  DeepSeek-V3.2 (arXiv:2512.02556); TRL off_policy_mask_threshold.
    """
    if advantages.dim() != 1:
        raise ValueError(f"got advantages of shape {tuple(advantages.shape)}, expected one a row: [{len(mask)}]")
    step = moved(old_logprobs, sampler_logprobs, mask)
    return _reject_rows(step, mask, (advantages >= 0) | (-_mean(step.log, step) <= threshold))


@card(family="correction", certainty="certain")
def self_normalised(weight: Tensor, mask: Tensor) -> Tensor:
    """Divide weights by their mean, so that a correction does not change the size of the update.

        w_t / (sum m w / sum m)

    Args:    weight: float [B, T], after truncation. mask: bool [B, T]: of the *whole* batch.
    Returns: float32 or float64 [B, T], detached; mean 1 under the mask, 0 outside.
    Source:  verl rollout_corr_helper (rollout_is_batch_normalize).
    """
    w = silence(weight.detach(), mask)
    return w * mask.sum() / w.sum().clamp(min=torch.finfo(w.dtype).tiny)


def combine(*corrections: Correction) -> tuple[Tensor, Tensor]:
    """Join corrections of one batch: the product of their weights and the conjunction of their masks."""
    weight, kept, _ = corrections[0]
    for other_weight, other_kept, _ in corrections[1:]:
        weight, kept = weight * other_weight, kept & other_kept
    return weight, kept


def _at(level: str, step: Step) -> Tensor:
    """Ratios of each token, or of its whole row, [B, T]; memory of its own."""
    if level == "token":
        return step.log.exp()
    if level == "sequence":
        rows = step.log.sum(1, keepdim=True).clamp_(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        return rows.exp_().expand_as(step.log).clone()
    raise ConfigError(nearest(level, ("token", "sequence"), what="correction level"))


def _mean(x: Tensor, step: Step) -> Tensor:
    """Mean of ``x`` [B, T], 0 under the mask, over each row's valid tokens, [B]."""
    return x.sum(1) / step.ones.sum(1).clamp(min=1)


def _gate(step: Step, low: float, high: float) -> Tensor:
    """Bool [B]: the geometric mean of the row's ratios is inside."""
    mean = _mean(step.log, step).exp_()
    return (mean >= low) & (mean <= high)


def _reject_rows(step: Step, mask: Tensor, keep: Tensor) -> Correction:
    weight, kept = step.ones * keep.unsqueeze(1), mask & keep.unsqueeze(1)
    return weight, kept, _metrics(step, weight, mask, kept)


def _metrics(step: Step, weight: Tensor, mask: Tensor, kept: Tensor) -> dict[str, Tensor]:
    """sampler_kl (k3 per token), weight_mean and ess_ratio of the kept weights, kept share of tokens and rows."""
    n, left = step.ones.sum().clamp(min=1), kept.count_nonzero().clamp(min=1)
    total, squares = weight.sum(), square_sum(weight)
    return {
        "sampler_kl": (step.log.exp().sub_(step.log).sum() - mask.numel()).clamp(min=0) / n,
        "weight_mean": total / left,
        "ess_ratio": (total.square() / (squares * left).clamp(min=1e-30)).clamp(max=1.0),
        "kept_tokens": kept.count_nonzero() / n,
        "kept_rows": kept.any(1).sum() / mask.any(1).sum().clamp(min=1).to(n.dtype),
    }
