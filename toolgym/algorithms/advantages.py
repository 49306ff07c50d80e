"""Advantages from the rewards of a group: GRPO, Dr.GRPO, batch scaling, RLOO, REINFORCE++.

No function here checks its rewards for NaN (that would wait for the device): a NaN stays inside its group, and the
trainer refuses it before.
"""

from typing import Literal

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, group_extreme, group_index, group_sum, silence, upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

# Rewards closer than this, relative to the largest, are equal: 0.1 averaged over a group is off by an ulp, and an ulp
# divided by eps would be an advantage.
SPREAD = 1e-8


@card(family="advantage", certainty="certain")
def group_advantage(
    rewards: Tensor,
    group: Tensor,
    *,
    scale: Literal["group", "batch", "none"] = "group",
    ddof: int = 0,
    eps: float = 1e-6,
    keep: Tensor | None = None,
) -> Tensor:
    """Group-relative advantage: GRPO (scale "group"), ScaleRL ("batch"), Dr.GRPO ("none").

        A_i = (r_i - mean_g r) / (std r + eps)
        std over the group, or over the batch of all r_i - mean_g r, or 1 without eps; ddof 0 divides by n, 1 by n - 1

    Args:    rewards: float [B], finite. group: int [B], any ids. keep: bool [B]; rows outside it (failed episodes)
             enter no statistic and get 0.
    Returns: float32 or float64 [B], detached; sums to 0 over each group.
    Raises:  ConfigError: unknown scale. ValueError: shapes.
    Edge:    G == 1 -> 0; a constant group (spread below 1e-8 of the largest |r|) -> exactly 0.
    Source:  DeepSeekMath (arXiv:2402.03300) eq. 4; Dr.GRPO (arXiv:2503.20783); ScaleRL (arXiv:2510.13786).
    Differs: population std as the papers write; verl and TRL use ddof 1 (TRL with eps 1e-4). verl gives a group of
             one its raw reward; here it gets 0, since it has no baseline.
    """
    r = upcast(rewards.detach())
    if r.dim() != 1 or group.shape != r.shape:
        raise ValueError(f"got rewards {list(r.shape)} and group {list(group.shape)}, expected [B] and [B]")
    kept = torch.ones_like(group, dtype=torch.bool) if keep is None else keep
    index = group_index(group)
    n = group_sum(kept.to(r.dtype), index)
    r = torch.where(kept, r, 0.0)
    mean = group_sum(r, index) / n.clamp(min=1)
    centred = torch.where(kept & ~_constant(r, mean, kept, index), r - mean, 0.0)
    if scale == "none":
        return centred
    if scale == "group":
        variance = group_sum(centred.square(), index) / (n - ddof).clamp(min=1)
    elif scale == "batch":
        variance = centred.square().sum() / (kept.sum() - ddof).clamp(min=1)
    else:
        raise ConfigError(nearest(scale, ("group", "batch", "none"), what="advantage scale"))
    return torch.where(centred == 0, 0.0, centred / (variance.sqrt() + eps))  # 0 / (0 + 0) too


def _constant(r: Tensor, mean: Tensor, kept: Tensor, index: Tensor) -> Tensor:
    """Bool [B]: the row's group has one reward only."""
    filled = torch.where(kept, r, mean)
    high = group_extreme(filled, index, largest=True)
    low = group_extreme(filled, index, largest=False)
    return high - low <= SPREAD * torch.maximum(high.abs(), low.abs())


@card(family="advantage", certainty="certain")
def rloo(rewards: Tensor, group: Tensor, *, keep: Tensor | None = None) -> Tensor:
    """Leave-one-out advantage: each row against the mean of the others of its group.

        A_i = r_i - 1/(G-1) sum_{j != i} r_j  =  G/(G-1) (r_i - mean_g r)

    The baseline does not depend on y_i, so the policy gradient stays unbiased.

    Args:    rewards: float [B]. group: int [B]. keep: bool [B], rows that count.
    Returns: float32 or float64 [B], detached.
    Edge:    G == 1 has no baseline: 0. Constant group -> exactly 0.
    Source:  Back to Basics (arXiv:2402.14740).
    Differs: a group of one gives 0 instead of an error, which would need the values on the host.
    """
    centred = group_advantage(rewards, group, scale="none", keep=keep)
    counted = torch.ones_like(centred) if keep is None else keep.to(centred.dtype)
    n = group_sum(counted, group_index(group))
    return centred * n / (n - 1).clamp(min=1)


@card(family="advantage", certainty="certain", parts=("discounted_returns", "whiten"))
def reinforce_plus_plus(
    rewards: Tensor,
    mask: Tensor,
    *,
    kl: Tensor | None = None,
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """REINFORCE++ token advantage: discounted returns whitened over the global batch.

        R_t = -beta kl_t (+ r at the last valid token);  G_t = sum_{s >= t} gamma^(s-t) R_s;  A = whiten(G)

    Args:    rewards: float [B]. mask: bool [B, T]. kl: float [B, T], k1 (detached here).
    Returns: float32 or float64 [B, T], detached; mean 0 and variance 1 under the mask, 0 outside.
    Edge:    masked tool tokens are passed over: they neither discount nor end the sum.
    Source:  REINFORCE++ (arXiv:2501.03262); OpenRLHF compute_reward and get_advantages_and_returns.
    """
    token_rewards = last_token(rewards, mask)
    if kl is not None:
        token_rewards = token_rewards - beta * silence(kl, mask)
    return whiten(discounted_returns(token_rewards, mask, gamma=gamma), mask)


@card(family="advantage", certainty="certain", parts=("group_advantage", "reinforce_plus_plus"))
def reinforce_plus_plus_baseline(
    rewards: Tensor,
    group: Tensor,
    mask: Tensor,
    *,
    kl: Tensor | None = None,
    beta: float = 0.0,
    gamma: float = 1.0,
) -> Tensor:
    """REINFORCE++-baseline: centred by group, scaled by the global batch.

        r_i <- r_i - mean_g r, then as `reinforce_plus_plus`

    Args:    rewards: float [B]. group: int [B]. mask: bool [B, T]. kl: float [B, T], k1 (detached here).
    Returns: float32 or float64 [B, T], detached; mean 0 and variance 1 under the mask, 0 outside.
    Source:  REINFORCE++ (arXiv:2501.03262); OpenRLHF reinforce_baseline.
    """
    centred = group_advantage(rewards, group, scale="none")
    return reinforce_plus_plus(centred, mask, kl=kl, beta=beta, gamma=gamma)


def last_token(rewards: Tensor, mask: Tensor) -> Tensor:
    """Put rewards [B] on the last true entry of each row of ``mask`` [B, T]; 0 elsewhere, [B, T]."""
    check_mask(mask)
    remaining = mask.flip(1).cumsum(1).flip(1)
    return torch.where(mask & (remaining == 1), upcast(rewards).unsqueeze(1), 0.0)


@card(family="advantage", certainty="certain")
def discounted_returns(token_rewards: Tensor, mask: Tensor, *, gamma: float = 1.0) -> Tensor:
    """Sum of the rewards to come, discounted per valid token.

        G_t = r_t + gamma G_next(t),   next(t) the next valid token

    Args:    token_rewards: float [B, T]. mask: bool [B, T].
    Returns: float32 or float64 [B, T], detached; 0 under the mask.
    Source:  Sutton and Barto, Reinforcement Learning (2018), eq. 3.9.
    """
    check_mask(mask, token_rewards=token_rewards)
    r = silence(token_rewards.detach(), mask)
    if gamma == 1.0:  # the masked terms are 0, so the plain suffix sum is it
        return silence(r.flip(1).cumsum(1).flip(1), mask)
    out = torch.zeros_like(r)
    carried = torch.zeros_like(r[:, 0])
    for t in range(r.shape[1] - 1, -1, -1):
        carried = torch.where(mask[:, t], r[:, t] + gamma * carried, carried)
        out[:, t] = carried
    return silence(out, mask)


@card(family="advantage", certainty="certain")
def whiten(x: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Mean 0, variance 1 over all valid tokens of the batch.

        (x - mean) / sqrt(var + eps)          # population variance

    Args:    x: float [B, T]. mask: bool [B, T].
    Returns: float32 or float64 [B, T], detached; 0 under the mask.
    Source:  verl masked_whiten; OpenRLHF.
    """
    check_mask(mask, x=x)
    x = silence(x.detach(), mask)
    n = mask.sum().clamp(min=1)
    centred = silence(x - x.sum() / n, mask)
    return centred / (centred.square().sum() / n + eps).sqrt()
