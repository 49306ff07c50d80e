"""Advantages and losses with a learned value function: GAE per token and per turn, the clipped value loss."""

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, silence, square_sum, upcast
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import hush, surrogate


@card(family="advantage", certainty="certain")
def gae(
    token_rewards: Tensor,
    values: Tensor,
    mask: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
    bootstrap: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation over the valid tokens, and the returns that the critic regresses on.

        delta_t = r_t + gamma V_next - V_t;   A_t = delta_t + gamma lam A_next;   return_t = A_t + V_t

    "next" is the next valid token of the row: tool tokens are passed over, (V, A) are carried across them unchanged.

    Args:    token_rewards, values: float [B, T]. mask: bool [B, T]. gamma, lam in [0, 1]. bootstrap: float [B], the
             value after the last token of a row cut by length; None treats every end as terminal (value 0), as is
             usual.
    Returns: advantages and returns, float32 or float64 [B, T], detached, 0 under the mask. Not whitened: see `whiten`.
    Source:  GAE (arXiv:1506.02438) eq. 16; verl compute_gae_advantage_return.
    """
    check_mask(mask, token_rewards=token_rewards, values=values)
    r, v = silence(token_rewards.detach(), mask), silence(values.detach(), mask)
    after = torch.zeros_like(v[:, 0]) if bootstrap is None else upcast(bootstrap.detach()).to(v.dtype)
    advantage = torch.zeros_like(after)
    out = torch.zeros_like(v)
    for t in range(v.shape[1] - 1, -1, -1):
        valid = mask[:, t]
        step = r[:, t] + gamma * after - v[:, t] + gamma * lam * advantage
        advantage = torch.where(valid, step, advantage)
        after = torch.where(valid, v[:, t], after)
        out[:, t] = torch.where(valid, step, 0.0)
    return out, silence(out + v, mask)


@card(family="advantage", certainty="derived", parts=("gae",))
def turn_gae(
    turn_rewards: Tensor,
    values: Tensor,
    turn_mask: Tensor,
    turn: Tensor,
    *,
    gamma: float = 1.0,
    lam: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """GAE with one turn as one action; every token of a turn gets its turn's advantage.

        delta_k = R_k + gamma V_(k+1) - V_k;   A_k = delta_k + gamma lam A_(k+1);   A_t = A_turn(t)

    V_k is the value at the last context token before turn k's first generated token; the critic regresses there only.

    Args:    turn_rewards, values: float [B, K]. turn_mask: bool [B, K]. turn: int [B, T], the turn of each token;
             -1 where the policy sampled nothing.
    Returns: advantages float [B, T], 0 where turn is -1; value targets A_k + V_k, float [B, K]. Detached.
    Source:  derived from GAE (arXiv:1506.02438).
    """
    advantages, targets = gae(turn_rewards, values, turn_mask, gamma=gamma, lam=lam)
    sampled = turn >= 0
    return torch.where(sampled, advantages.gather(1, turn.clamp(min=0)), 0.0), targets


@card(family="value", certainty="certain")
def value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, mask: Tensor, *, clip: float | None = 0.2
) -> tuple[Tensor, dict[str, Tensor]]:
    """Half the squared error of the critic, with its step bounded around the old value.

        v_c = clip(v, v_old - clip, v_old + clip);   l_t = max((v - R)^2, (v_c - R)^2) / 2

    Args:    values: float [B, T], with gradient. old_values, returns: float [B, T]. mask: bool [B, T]. clip: None for
             none; verl's recipes have 0.5.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics value_clip_fraction and explained_variance.
    Edge:    where the clipped branch is the larger and v outside the bound the gradient is 0.
    Source:  PPO's code; verl compute_value_loss.
    """
    check_mask(mask, values=values, old_values=old_values, returns=returns)
    with torch.no_grad():
        v, r = silence(values, mask), silence(returns, mask)
        slope = v - r
        value = (0.5 * slope).mul_(slope)
        n = mask.count_nonzero().clamp(min=1)
        metrics = {"explained_variance": 1 - _variance(slope, n) / _variance(r, n).clamp(min=1e-12)}
        if clip is not None:
            old = silence(old_values, mask)
            clipped = v.clamp_(old - clip, old.add_(clip)).sub_(r).square_().mul_(0.5)
            clipped = hush(clipped, mask)
            lost = clipped > value
            metrics["value_clip_fraction"] = lost.count_nonzero() / n.to(v.dtype)
            value, slope = torch.maximum(value, clipped), slope.masked_fill_(lost, 0.0)
    return surrogate(values, value, slope), metrics


def _variance(x: Tensor, n: Tensor) -> Tensor:
    """Population variance of n entries, the others being 0."""
    return (square_sum(x) / n - (x.sum() / n).square()).clamp(min=0)
