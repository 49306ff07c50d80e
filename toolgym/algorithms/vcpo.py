"""VCPO: what keeps a stale policy gradient's variance in hand: a smaller step, and the baseline of least variance."""

from collections.abc import Generator
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.optim import Optimizer

from toolgym.algorithms.masking import MAX_LOG_RATIO, check_mask, group_index, group_sum, log_ratio, silence, upcast
from toolgym.algorithms.registry import card


@card(family="correction", certainty="certain")
def sequence_log_weights(logprobs: Tensor, sampler_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Log importance weight of each row.

        log w_i = clamp(sum_t (log pi - log mu), -20, 20)

    Args:    logprobs, sampler_logprobs: float [B, T]. mask: bool [B, T].
    Returns: float32 or float64 [B], detached; 0 for an empty row.
    Source:  VCPO (arXiv:2602.17616); mit-han-lab/vcpo staleness_utils.py.
    """
    return log_ratio(logprobs.detach(), sampler_logprobs, mask).sum(1).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)


@card(family="correction", certainty="certain")
def ess_ratio(log_weights: Tensor) -> Tensor:
    """Effective sample size of importance weights, as a share of the samples.

        ESS / B = (sum w)^2 / (B sum w^2)

    Args:    log_weights: float [B], B >= 1, of the global minibatch, not truncated.
    Returns: float scalar in [1/B, 1]; 1 when all are equal, whatever their scale.
    Source:  Kong (1992); VCPO (arXiv:2602.17616).
    """
    w = (upcast(log_weights.detach()) - log_weights.detach().amax()).exp()
    return w.sum().square() / (w.square().sum() * w.numel())


@card(family="correction", certainty="certain", parts=("ess_ratio",))
def ess_lr_scale(ratio: Tensor, *, base: float = 1.0, power: float = 0.5) -> Tensor:
    """VCPO's factor on the learning rate of one step: fewer effective samples, a smaller step.

        (min(1, ratio / base))^power

    Args:    ratio: float, `ess_ratio`. base in (0, 1]: the ratio that deserves the full rate (0.55 for multi-turn at a
             lag of 2). power: 0.5, or 1 for "linear".
    Returns: float in (0, 1].
    Source:  VCPO (arXiv:2602.17616); mit-han-lab/vcpo.
    """
    if not 0 < base <= 1:
        raise ValueError(f"got base={base}, expected 0 < base <= 1")
    return (upcast(ratio.detach()) / base).clamp(max=1.0) ** power


@contextmanager
def scaled_lr(optimizer: Optimizer, scale: float) -> Generator[None]:
    """Multiply every learning rate of ``optimizer`` by ``scale`` inside the block, and restore them after it.

    Decoupled weight decay (AdamW) is scaled with it, as in VCPO's code.
    """
    rates = [group["lr"] for group in optimizer.param_groups]
    try:
        for group in optimizer.param_groups:
            group["lr"] = group["lr"] * scale
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@card(family="advantage", certainty="certain")
def optimal_baseline(
    rewards: Tensor,
    log_weights: Tensor,
    squared_norms: Tensor,
    group: Tensor,
    *,
    norm_includes_weight: bool = False,
) -> Tensor:
    """OPOB: the off-policy baseline that gives the group's policy gradient the least variance.

        b_g = sum_i w_i^2 n_i R_i / sum_i w_i^2 n_i,   n_i = ||grad log pi(tau_i)||^2

    Args:    rewards, log_weights, squared_norms: float [B]; norms >= 0. group: int [B]. norm_includes_weight: the norms
             are of gradients already multiplied by w (n_i is then w_i^2 ||...||^2).
    Returns: float32 or float64 [B], detached: each row's baseline.
    Edge:    all norms 0 -> the group's mean reward. In a sample, b depends on the rewards it centres: the gradient's
             bias is of order 1/G and vanishes with the group size.
    Source:  VCPO (arXiv:2602.17616).
    Differs: the official code multiplies norms of weighted gradients by w^2 once more; the paper's formula is used.
    """
    r = upcast(rewards.detach())
    index = group_index(group)
    log_n = upcast(squared_norms.detach()).clamp(min=0).log()
    log_c = log_n if norm_includes_weight else log_n + 2 * log_weights.detach()
    top = torch.zeros_like(r).scatter_reduce(0, index, log_c, reduce="amax", include_self=False)[index]
    c = torch.where(top.isneginf(), 1.0, (log_c - top).exp())  # scaled within the group: only ratios matter
    return group_sum(c * r, index) / group_sum(c, index)


@card(family="advantage", certainty="certain", parts=("optimal_baseline", "ess_ratio"))
def vcpo_advantage(
    rewards: Tensor,
    log_weights: Tensor,
    squared_norms: Tensor,
    group: Tensor,
    *,
    cap: float = 8.0,
    normalise: bool = False,
) -> Tensor:
    """VCPO's row advantage, for the plain policy gradient: truncated weight times reward above the optimal baseline.

        A_i = min(w_i, cap) (R_i - b_g)   (/ population std of the group's rewards, where above 1e-8)

    Args:    rewards, log_weights, squared_norms: float [B]. group: int [B].
    Returns: float32 or float64 [B], detached; use with `reinforce` and seq-mean-token-mean.
    Edge:    constant rewards -> 0.
    Source:  VCPO (arXiv:2602.17616).
    """
    r = upcast(rewards.detach())
    centred = r - optimal_baseline(r, log_weights, squared_norms, group)
    if normalise:
        index = group_index(group)
        n = group_sum(torch.ones_like(r), index)
        deviation = r - group_sum(r, index) / n
        std = (group_sum(deviation.square(), index) / n).sqrt()
        centred = torch.where(std > 1e-8, centred / std.clamp(min=1e-8), centred)
    return upcast(log_weights.detach()).exp().clamp(max=cap) * centred


@card(family="advantage", certainty="certain")
def score_norm(logprobs: Tensor, sum_squared_probs: Tensor, mask: Tensor) -> Tensor:
    """Cheap stand-in for a row's squared gradient norm: the norm of its score in the last layer's logits.

        n_i = sum_t (1 - 2 pi(a_t) + sum_v pi_v^2)

    Args:    logprobs: float [B, T], of the sampled tokens. sum_squared_probs: float [B, T], in (0, 1]. mask: bool
             [B, T].
    Returns: float32 or float64 [B], detached, >= 0.
    Source:  verl optimal token baseline; ||grad_logits log pi(a)||^2 = ||onehot(a) - pi||^2.
    """
    check_mask(mask, logprobs=logprobs, sum_squared_probs=sum_squared_probs)
    terms = 1 - 2 * silence(logprobs.detach(), mask).exp() + silence(sum_squared_probs.detach(), mask)
    return silence(terms, mask).sum(1)
