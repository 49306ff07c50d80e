"""Policy-gradient losses with a token-level trust region: REINFORCE, PPO's clip, CISPO.

All share one signature: ``loss(logprobs, old_logprobs, advantages, mask, **parameters) -> (per_token [B, T],
metrics)``. The per-token loss is 0 under the mask; `aggregation.aggregate` makes a scalar of it. Metrics are
detached scalars.
"""

from typing import TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, per_token, silence
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import (
    advantage_of,
    bound_above,
    clip_metrics,
    moved,
    pessimistic,
    ratio_metrics,
    surrogate,
)

Metrics: TypeAlias = dict[str, Tensor]


@card(family="policy_loss", certainty="certain")
def reinforce(logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
    """The plain policy gradient, for data of the policy itself: no ratio, no trust region.

        l_t = -A log pi(a_t)

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], for the metrics. advantages: float
             [B] or [B, T], detached here. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics.
    Source:  Williams (1992), Simple statistical gradient-following algorithms.
    """
    check_mask(mask, logprobs=logprobs, old_logprobs=old_logprobs)
    with torch.no_grad():
        slope = -per_token(advantages, mask) * mask
        value = silence(logprobs, mask).mul_(slope)
    return surrogate(logprobs, value, slope.to(value.dtype)), {}


@card(family="policy_loss", certainty="certain")
def ppo_clip(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    dual_clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """PPO's clipped surrogate per token; DAPO's clip-higher with clip_high > clip_low; dual clip for negative
    advantages.

        rho_t = pi(a_t) / pi_old(a_t)
        l_t   = max(-rho_t A, -clip(rho_t, 1 - clip_low, 1 + clip_high) A)
        dual  : where A < 0, l_t = min(l_t, -dual_clip A)

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T]. advantages: float [B] or [B, T].
             mask: bool [B, T]. clip_low in [0, 1], clip_high >= 0. dual_clip > 1, or None for none (verl: 3).
    Returns: float32 or float64 [B, T], 0 under the mask; metrics.
    Edge:    at |log rho| > 20 the slope is that of the bounded ratio, not 0.
    Source:  PPO (arXiv:1707.06347) eq. 7; DAPO (arXiv:2503.14476); dual clip (arXiv:1912.09729).
    """
    if not 0 <= clip_low <= 1 or clip_high < 0 or (dual_clip is not None and dual_clip <= 1):
        raise ValueError(f"got clip_low={clip_low}, clip_high={clip_high}, dual_clip={dual_clip}: see Args")
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        a, log_sum = advantage_of(advantages, step, mask), step.log.sum()
        ratio = step.log.exp_()
        metrics = ratio_metrics(ratio, log_sum, mask)
        value, slope, lost = pessimistic(ratio, ratio.clamp(1 - clip_low, 1 + clip_high), a)
        if dual_clip is not None:
            limit = torch.where(a < 0, -dual_clip * a, torch.inf)
            value, slope = bound_above(value, slope, limit)
    return surrogate(logprobs, value, slope), metrics | clip_metrics(lost, advantages, mask)


@card(family="policy_loss", certainty="certain")
def cispo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    max_ratio: float = 5.0,
    min_ratio: float = 0.0,
) -> tuple[Tensor, Metrics]:
    """CISPO: REINFORCE with a clipped, detached ratio as weight; no token ever loses its gradient.

        l_t = -sg[clip(rho_t, min_ratio, max_ratio)] A log pi(a_t)

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T]. advantages: float [B] or [B, T].
             mask: bool [B, T]. max_ratio: 4 to 8 (ScaleRL); verl clips below too, with 1 - eps_low.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics.
    Source:  MiniMax-M1 (arXiv:2506.13585); ScaleRL (arXiv:2510.13786).
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        slope, log_sum = advantage_of(advantages, step, mask).neg_(), step.log.sum()
        ratio = step.log.exp_()
        metrics = ratio_metrics(ratio, log_sum, mask)
        slope *= ratio.clamp_(min_ratio, max_ratio)
        value = silence(logprobs, mask).mul_(slope)
    return surrogate(logprobs, value, slope), metrics
