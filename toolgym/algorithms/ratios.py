"""Importance ratios pi / pi_old, in log space, at three levels: the token, the whole sequence, the prefix.

All share one signature: ``ratio(logprobs, old_logprobs, mask) -> log-ratio [B, T]``, with the gradient of the paper,
0 under the mask.
"""

import torch
from torch import Tensor

from toolgym.algorithms.masking import MAX_LOG_RATIO
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import Step, moved, surrogate

# exp(10) = 22,026: products of many token ratios reach the bound of single ones too soon.
MAX_PRODUCT = 10.0


@card(family="ratio", certainty="certain")
def token_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Each token's own log-ratio, the one of PPO and GRPO.

        log rho_t = clamp(log pi(a_t) - log pi_old(a_t), -20, 20)

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], detached here. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask.
    Source:  PPO (arXiv:1707.06347) section 3.
    """
    step = moved(logprobs, old_logprobs, mask)
    return surrogate(logprobs, step.log, step.ones)


@card(family="ratio", certainty="certain", parts=("token_ratio",))
def sequence_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor) -> Tensor:
    """GSPO's length-normalised sequence log-ratio, the same for all tokens of a row.

        log s_it = sg[1/|y_i| sum_t log rho_it] + log pi(a_t) - sg[log pi(a_t)]        (<= 10)

    exp of it is the geometric mean of the token ratios; each token gets an equal share of the gradient.

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], detached here. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask.
    Source:  GSPO (arXiv:2507.18071), GSPO-token.
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        value = row_mean_of(step) * step.ones
    return surrogate(logprobs, value, step.ones)


@card(family="ratio", certainty="certain", parts=("token_ratio",))
def cumulative_ratio(logprobs: Tensor, old_logprobs: Tensor, mask: Tensor, *, average: bool = False) -> Tensor:
    """CTPO's log-ratio of the prefix up to each token; ``average`` divides by the number of its tokens.

        l_t = sum_{s <= t} log rho_s  (/ t);   log rho_t = sg[l_t] + log pi(a_t) - sg[log pi(a_t)]        (<= 10)

    The weight is that of the whole prefix, the gradient flows through the current token only.

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], detached here. mask: bool [B, T]; masked
             tokens (tool output) neither count nor add.
    Returns: float32 or float64 [B, T], 0 under the mask.
    Source:  CTPO (arXiv:2605.07331); its code's loss "cum-token-cumprod-la" and "geomean".
    """
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, mask)
        value = (prefix_mean(step) if average else prefix_sum(step)).mul_(step.ones)
    return surrogate(logprobs, value, step.ones)


def row_mean_of(step: Step) -> Tensor:
    """The mean log-ratio of each row, bounded, [B, 1]; 0 for an empty row."""
    mean = step.log.sum(1, keepdim=True) / step.ones.sum(1, keepdim=True).clamp(min=1)
    return mean.clamp_(-MAX_LOG_RATIO, MAX_PRODUCT)


def prefix_sum(step: Step) -> Tensor:
    """The log-ratio of each prefix, bounded, [B, T]; 0 under the mask."""
    return step.log.cumsum(1).mul_(step.ones).clamp_(-MAX_LOG_RATIO, MAX_PRODUCT)


def prefix_mean(step: Step) -> Tensor:
    """The mean log-ratio of each prefix, bounded, [B, T]; 0 under the mask."""
    mean = step.log.cumsum(1) / step.ones.cumsum(1).clamp_(min=1)
    return mean.mul_(step.ones).clamp_(-MAX_LOG_RATIO, MAX_PRODUCT)
