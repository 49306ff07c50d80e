"""Supervised fine-tuning: masked cross-entropy, f-divergence SFT, PEAR's importance weights.

Losses return ``(per_token [B, T], metrics)``. Masks come from token counts, not from text: what the policy said is
true.
"""

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, log_ratio, silence, silent_mean
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import moved, surrogate
from toolgym.errors import ConfigError, nearest

FKind: TypeAlias = Literal["tv", "kl", "reverse_kl", "pearson", "hellinger", "js"]
PearLevel: TypeAlias = Literal["sequence", "token", "block"]


@card(family="sft", certainty="certain")
def sft_loss(logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
    """Cross-entropy on the tokens of the mask.

        l_t = -log pi(y_t)

    Args:    logprobs: float [B, T], of the realised tokens (already shifted), with gradient. mask: bool [B, T]:
             assistant tokens and each assistant turn's end token (`assistant_mask`).
    Returns: float32 or float64 [B, T], nats, 0 under the mask; metrics: nll. Aggregate with ``token-mean`` over the
             *global* number of tokens: a mean of per-device means weighs short batches too much.
    Source:  common practice.
    """
    check_mask(mask, logprobs=logprobs)
    loss = -silence(logprobs, mask)
    return loss, {"nll": silent_mean(loss, mask)}


def assistant_mask(segments: Sequence[tuple[str, int]], *, last_turn_only: bool = False) -> Tensor:
    """Bool [T] mask of one conversation from its segments in order: (role, number of tokens).

    True on role "assistant" (its tokens include the end of its turn, which must be trained), false elsewhere; with
    ``last_turn_only`` on the last assistant segment alone. Example: ``[("user", 2), ("assistant", 1)]`` is
    ``[False, False, True]``.
    """
    turns = [i for i, (role, _) in enumerate(segments) if role == "assistant"]
    kept = set(turns[-1:] if last_turn_only else turns)
    return torch.cat(
        [torch.zeros(0, dtype=torch.bool)] + [torch.full((n,), i in kept) for i, (_, n) in enumerate(segments)]
    )


# Where f*(-r) may be evaluated: r above this.
_DOMAIN: dict[FKind, float] = {
    "tv": -math.inf,
    "kl": -math.inf,
    "reverse_kl": -1.0,
    "pearson": -math.inf,
    "hellinger": -1.0,
    "js": -math.log(2.0),
}
# Distance from the edge of the domain at which the loss goes on as its tangent.
_INSIDE = 1e-3


def _conjugate(r: Tensor, kind: FKind) -> tuple[Tensor, Tensor]:
    """f*(-r), and the pull -d/dr of it."""
    if kind == "tv":
        return -r, torch.ones_like(r)
    if kind == "kl":
        shrunk = torch.expm1(-r)
        return shrunk, shrunk + 1
    if kind == "reverse_kl":
        return -torch.log1p(r), 1 / (1 + r)
    if kind == "pearson":
        inside = r.clamp(max=2.0)
        return -inside + inside.square() / 4, 1 - inside / 2
    if kind == "hellinger":
        inverse = 1 / (1 + r)
        return -r * inverse, inverse.square()
    rest = 1 - torch.expm1(-r)  # js: 2 - e^-r
    return -rest.log(), 2 / rest - 1


@card(family="sft", certainty="derived")
def f_divergence_sft_loss(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, kind: FKind = "hellinger", beta: float = 0.1
) -> tuple[Tensor, Metrics]:
    """SFT seen as matching demonstrations under an f-divergence, with the implicit reward r = beta log(pi / ref).

        l_t = f*(-r_t), with f(1) = f'(1) = 0:
        tv -r (SFT);  kl e^-r - 1;  reverse_kl -log(1+r);  pearson -r + r^2/4 (-1 beyond r = 2);
        hellinger -r/(1+r);  js -log(2 - e^-r)

    All but tv pull less the further the policy has moved above the reference on the data: an implicit KL brake. At
    pi = ref each has beta times the gradient of SFT. Decreasing and convex in r.

    Args:    logprobs: float [B, T], with gradient. ref_logprobs: float [B, T]. mask: bool [B, T]. beta > 0.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: implicit_reward.
    Raises:  ConfigError: unknown kind. ValueError: beta <= 0.
    Edge:    below its domain (r <= -1, for js r <= -ln 2) plus 1e-3 a loss goes on as its tangent there.
    Note:    a smaller learning rate is the other remedy of the paper (up to 25% relative gain).
    Source:  Implicit reward as the bridge (arXiv:2507.00018): the idea, from the abstract.
    Differs: the formulas are derived (the paper's were not available), with the normaliser of the reward fixed to 0.
    """
    if kind not in _DOMAIN:
        raise ConfigError(nearest(kind, _DOMAIN, what="f-divergence"))
    if beta <= 0:
        raise ValueError(f"got beta {beta}, expected > 0")
    with torch.no_grad():
        step = moved(logprobs, ref_logprobs, mask)
        r = beta * step.log  # 0 under the mask, and so is the loss
        edge = _DOMAIN[kind] + _INSIDE
        value, pull = _conjugate(r.clamp(min=edge), kind)
        if math.isfinite(edge):
            value = value + pull * (edge - r).relu_()
    return surrogate(logprobs, value, -beta * pull * step.ones), {"implicit_reward": silent_mean(r, mask)}


@card(family="sft", certainty="secondary")
def pear_weights(
    logprobs: Tensor,
    demo_logprobs: Tensor,
    mask: Tensor,
    *,
    level: PearLevel = "token",
    gamma: float = 0.999,
    block: int = 4,
    log_range: tuple[float, float] = (-10.0, 5.0),
) -> Tensor:
    """PEAR: weight a demonstration's token by how likely the policy is to produce the rest of the demonstration.

        delta_t = clip(log pi(y_t) - log pi_beta(y_t), -0.08, 0.3)
        sequence: G   = exp(sum_t delta_t)
        token:    G_t = gamma^(T-t) exp(sum_{j>t} delta_j)                # the last token has weight 1
        block:    G   = gamma^(T-e_k) exp(sum_{m>k} sum_{j in m} delta_j), e_k the last index of block k

    T, the indices and the sums count valid tokens only, so padding and tool output change nothing.

    Args:    logprobs: float [B, T], the policy's. demo_logprobs: float [B, T], of the demonstrator, under the same
             tokenisation. mask: bool [B, T]. gamma in (0, 1]. block: tokens. log_range: bounds of log G.
    Returns: float32 or float64 [B, T], detached; 0 under the mask.
    Raises:  ConfigError: unknown level. ValueError: block < 1 or gamma outside (0, 1].
    Source:  PEAR (arXiv:2602.01058), from two independent reimplementations.
    Differs: log G in [-10, 5] as one of them says the paper does (the other clamps G to [0.1, 10]); counting valid
             tokens is derived (one of them discounts by padding).
    """
    if block < 1 or not 0 < gamma <= 1:
        raise ValueError(f"pear_weights got block={block}, gamma={gamma}; expected block >= 1 and gamma in (0, 1]")
    delta = log_ratio(logprobs.detach(), demo_logprobs, mask).clamp(-0.08, 0.3)
    total = delta.sum(1, keepdim=True)
    if level == "sequence":
        log_weight = total.expand_as(delta)
    elif level == "token":
        place = mask.cumsum(1, dtype=delta.dtype)
        log_weight = total - delta.cumsum(1) + math.log(gamma) * (place[:, -1:] - place)
    elif level == "block":
        size, count = block, mask.sum(1, keepdim=True)
        index = mask.cumsum(1) - 1  # of a valid token among the valid ones
        last = torch.minimum((index // size + 1) * size, count)  # valid tokens up to the end of the token's block
        before = torch.cat([torch.zeros_like(total), _compact_sums(delta, mask)], 1)
        log_weight = total - before.gather(1, last) + math.log(gamma) * (count - last).to(delta.dtype)
    else:
        raise ConfigError(nearest(level, ("sequence", "token", "block"), what="PEAR level"))
    return silence(log_weight.clamp(*log_range).exp(), mask)


def _compact_sums(delta: Tensor, mask: Tensor) -> Tensor:
    """[B, T] whose n-th entry is the sum of the first n + 1 valid entries of ``delta``."""
    place = (mask.cumsum(1) - 1).clamp(min=0)  # a masked entry adds its 0 to the one before
    return torch.zeros_like(delta).scatter_add(1, place, delta).cumsum(1)


@card(family="sft", certainty="secondary", parts=("pear_weights", "sft_loss"))
def pear_loss(
    logprobs: Tensor,
    demo_logprobs: Tensor,
    mask: Tensor,
    *,
    level: PearLevel = "token",
    gamma: float = 0.999,
    block: int = 4,
) -> tuple[Tensor, Metrics]:
    """SFT with PEAR's detached weights.

        l_t = sg[G_t] (-log pi(y_t)),   G from `pear_weights`

    Args:    as `pear_weights`; ``logprobs`` with gradient.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: nll, weight_mean.
    Edge:    pi = pi_beta and gamma = 1 is plain SFT at every level.
    Source:  PEAR (arXiv:2602.01058), from two independent reimplementations.
    """
    weights = pear_weights(logprobs, demo_logprobs, mask, level=level, gamma=gamma, block=block)
    loss, metrics = sft_loss(logprobs, mask)
    return weights * loss, metrics | {"weight_mean": silent_mean(weights, mask)}
