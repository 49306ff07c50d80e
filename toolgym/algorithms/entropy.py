"""Entropy of the policy: a metric, and a term that keeps it from collapsing."""

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, token_mean, upcast
from toolgym.algorithms.registry import card


@card(family="entropy", certainty="certain")
def entropy(logits: Tensor, mask: Tensor, *, temperature: float = 1.0) -> Tensor:
    """Entropy of the distribution that each token was sampled from, in nats.

        H_t = -sum_v p_v log p_v,   p = softmax(logits_t / temperature)

    Args:    logits: float [B, T, V], with or without gradient; -inf (a filter's) is allowed. mask: bool [B, T].
    Returns: float32 or float64 [B, T] in [0, log V], 0 under the mask.
    Source:  Shannon (1948).
    """
    if logits.dim() != 3:
        raise ValueError(f"logits: got shape {list(logits.shape)}, expected [B, T, V]")
    check_mask(mask, **{"logits[..., 0]": logits[..., 0]})
    scores = torch.where(mask.unsqueeze(-1), upcast(logits), 0.0) / temperature
    log_p = scores.log_softmax(-1)
    p = log_p.exp()
    terms = torch.where(p > 0, p * torch.where(p > 0, log_p, 0.0), 0.0)
    return torch.where(mask, -terms.sum(-1), 0.0)


@card(family="entropy", certainty="certain", parts=("entropy",))
def entropy_loss(
    logits: Tensor, mask: Tensor, *, coefficient: float = 0.001, temperature: float = 1.0
) -> tuple[Tensor, dict[str, Tensor]]:
    """The entropy bonus as a loss.

        l_t = -coefficient H_t

    Args:    logits: float [B, T, V], with gradient. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics with the mean entropy.
    Source:  Mnih et al., A3C (arXiv:1602.01783); verl entropy_coeff.
    """
    h = entropy(logits, mask, temperature=temperature)
    return -coefficient * h, {"entropy": token_mean(h, mask)}
