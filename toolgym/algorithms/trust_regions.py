"""Policy losses whose ratio reaches beyond one token, or whose trust region is elsewhere than the sampler.

Same signature as `policy_losses`: ``loss(logprobs, old_logprobs, advantages, mask, ...) -> (per_token [B, T],
metrics)``.
"""

from typing import Literal

import torch
from torch import Tensor

from toolgym.algorithms.corrections import masked_is, truncated_is
from toolgym.algorithms.kl import KLKind, estimate
from toolgym.algorithms.masking import per_token
from toolgym.algorithms.policy_losses import Metrics, ppo_clip
from toolgym.algorithms.ratios import prefix_mean, prefix_sum, row_mean_of
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
from toolgym.errors import ConfigError, nearest


@card(family="policy_loss", certainty="certain", parts=("sequence_ratio",))
def gspo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> tuple[Tensor, Metrics]:
    """GSPO: PPO's clipped surrogate with the geometric-mean ratio of the whole sequence; clips rows, not tokens.

        s_i  = exp(1/|y_i| sum_t log rho_it)
        l_it = max(-s_i A_it, -clip(s_i, 1 - clip_low, 1 + clip_high) A_it),   aggregated seq-mean-token-mean

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T]. advantages: float [B] or [B, T].
             mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics of s.
    Edge:    |y| = 1 is PPO with these bounds.
    Source:  GSPO (arXiv:2507.18071).
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        a, log_s = advantage_of(advantages, step, mask), row_mean_of(step)
        everywhere = log_s * step.ones
        log_sum = everywhere.sum()
        metrics, s = ratio_metrics(everywhere.exp_(), log_sum, mask), log_s.exp()
        value, slope, lost = pessimistic(s, s.clamp(1 - clip_low, 1 + clip_high), a)
    return surrogate(logprobs, value, slope), metrics | clip_metrics(lost, advantages, mask)


@card(family="policy_loss", certainty="certain", parts=("cumulative_ratio",))
def ctpo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_low: float = 0.025,
    clip_high: float = 0.05,
    power: float = 0.5,
    dual_clip: float | None = 0.05,
    average: bool = False,
) -> tuple[Tensor, Metrics]:
    """CTPO: the ratio of the prefix, in a window that widens with the position because the ratio's variance does.

        t     = number of the valid token in its row, 1, 2, ...
        l_t   = max(-A rho_t, -A exp(clip(log rho_t, -clip_low t^power, clip_high t^power)))
        dual  : where A < 0, l_t = min(l_t, -A exp(dual_clip t^power))

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T]. advantages: float [B] or [B, T].
             mask: bool [B, T]. power: 0.5 for the product, -0.5 with ``average`` (geometric mean), 0 a constant window.
             dual_clip: None for none.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics of rho. Aggregate with seq-mean-token-mean.
    Edge:    unbiased off policy only with per-step advantages: with one outcome advantage a row it corrects the prefix
             but not the future (docs/algorithms/bias-variance.md).
    Source:  CTPO (arXiv:2605.07331); horizon-llm/CTPO core_algos.py.
    Differs: power 0 works here (the official code takes exp of a Python float and fails).
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        a = advantage_of(advantages, step, mask)
        log_rho = prefix_mean(step) if average else prefix_sum(step)
        width = _power(step.ones.cumsum(1).clamp_(min=1.0), power)
        clipped = torch.minimum(torch.maximum(log_rho, -clip_low * width), clip_high * width).exp_()
        log_sum, ratio = log_rho.sum(), log_rho.exp_()
        metrics = ratio_metrics(ratio, log_sum, mask)
        value, slope, lost = pessimistic(ratio, clipped, a)
        if dual_clip is not None:
            sign = per_token(advantages, mask)
            limit = torch.where(sign < 0, -sign, torch.inf) * width.mul_(dual_clip).exp_()
            value, slope = bound_above(value, slope, limit)
    return surrogate(logprobs, value, slope), metrics | clip_metrics(lost, advantages, mask)


def _power(position: Tensor, power: float) -> Tensor:
    """``position ** power``, in place; the root is ten times faster than the general power."""
    return position.sqrt_() if power == 0.5 else position.pow_(power)


@card(family="policy_loss", certainty="certain", parts=("ppo_clip", "truncated_is", "masked_is"))
def decoupled_ppo(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    sampler_logprobs: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
    cap: float = 5.0,
    cap_mode: Literal["truncate", "mask"] = "mask",
) -> tuple[Tensor, Metrics]:
    """Decoupled PPO: the trust region around a recent policy, the sampling corrected to the one that sampled.

        l_t = sg[w_t] max(-rho_t A, -clip(rho_t) A),   rho = pi / pi_old,   w = pi_old / mu
        truncate: w <= cap;   mask: tokens with w > cap are dropped

    ``old_logprobs`` are of the proximal policy: recomputed by the trainer just before the update.

    Args:    logprobs: float [B, T], with gradient. old_logprobs, sampler_logprobs: float [B, T]. advantages: float
             [B] or [B, T]. mask: bool [B, T]. cap > 0.
    Returns: float32 or float64 [B, T], 0 under the mask and where dropped; metrics of both.
    Edge:    pi_old = mu is PPO; pi = pi_old has the token-weighted policy gradient however far mu is.
    Source:  Hilton et al. (arXiv:2110.00641); AReaL (arXiv:2505.24298).
    """
    if cap_mode == "truncate":
        weight, _, more = truncated_is(old_logprobs, sampler_logprobs, mask, cap=cap)
    elif cap_mode == "mask":
        weight, _, more = masked_is(old_logprobs, sampler_logprobs, mask, low=0.0, high=cap)
    else:
        raise ConfigError(nearest(cap_mode, ("truncate", "mask"), what="cap mode"))
    loss, metrics = ppo_clip(logprobs, old_logprobs, advantages, mask, clip_low=clip_low, clip_high=clip_high)
    return weight * loss, metrics | more


@card(family="policy_loss", certainty="secondary")
def f_tis(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    cap: float = 2.0,
    max_kl: float = 50.0,
    kind: KLKind = "k3",
    reduce: Literal["sum", "mean"] = "sum",
) -> tuple[Tensor, Metrics]:
    """F-TIS: learn from any generator, but push down only what came from a near one.

        A'_i = A_i if A_i > 0 or D_i < max_kl, else 0,   D_i = sum_t k3 of KL(mu || pi) on the row's tokens
        l_t  = -sg[min(pi/mu, cap)] A' R,   R = pi / sg[pi]

    Positive samples are safe to imitate whoever wrote them; a negative one far away makes the gradient of -log pi
    explode.

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], of the *generator* mu. advantages: float
             [B] or [B, T], normalised over all samples before the filter. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics with kept_rows.
    Edge:    max_kl = inf is GRPO with truncated importance sampling; 0 trains on positive advantages only.
    Source:  F-TIS (arXiv:2605.22537), as quoted in notes of the paper.
    Differs: the paper's estimator of D_KL is not known to us: the sum of k3 (its threshold of 50 fits a sum) is our
             choice. Its clip of R at 1 +- eps never binds, since R is 1, and is left out.
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        a, log_sum = advantage_of(advantages, step, mask), step.log.sum()
        distance = estimate(-step.log, kind)[0].sum(1, keepdim=True)
        if reduce == "mean":
            distance /= step.ones.sum(1, keepdim=True).clamp(min=1)
        near = distance < max_kl
        ratio = step.log.exp_()
        metrics = ratio_metrics(ratio, log_sum, mask)
        good = per_token(advantages, mask) > 0
        slope = -torch.where(good | near, a, 0.0).mul_(ratio.clamp_(max=cap))
        rows = mask.any(1)
        near_rows = (rows & near.squeeze(1)).sum().to(slope.dtype) / rows.sum().clamp(min=1)
    return surrogate(logprobs, slope.clone(), slope), metrics | {"near_rows": near_rows}
