"""Progress advantage: what a trained policy prefers over its reference, read as an advantage without any critic.

For the optimum pi* of KL-regularised RL with temperature beta, ``beta log(pi*/pi_ref) = Q*(s, a) - V*(s)`` exactly.
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import check_mask, log_ratio, silence, upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

Reduce: TypeAlias = Literal["mean", "sum", "last", "min", "max"]
REDUCE: tuple[Reduce, ...] = ("mean", "sum", "last", "min", "max")


@card(family="advantage", certainty="certain")
def progress_advantage(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float = 1.0) -> Tensor:
    """Token advantage from the log-ratio of a trained policy to its reference.

        A_t = beta (log pi_RL(a_t) - log pi_ref(a_t))

    Args:    logprobs, ref_logprobs: float [B, T]. mask: bool [B, T], action tokens.
    Returns: float32 or float64 [B, T], detached, 0 under the mask; sums telescope to R - V*(s_0) at the optimum.
    Source:  Progress Advantage (arXiv:2606.26080); deeplearning-wisc/progress-advantage.
    """
    return beta * log_ratio(logprobs.detach(), ref_logprobs, mask)


@card(family="advantage", certainty="certain", parts=("progress_advantage",))
def progress_steps(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    step: Tensor,
    n_steps: int,
    *,
    beta: float = 1.0,
    reduce: Reduce = "sum",
) -> tuple[Tensor, Tensor]:
    """Advantage of each step (turn): token log-probabilities reduced per model, then the difference.

        A_k = beta (reduce_{t in k} log pi_RL - reduce_{t in k} log pi_ref)

    Args:    logprobs, ref_logprobs: float [B, T]. mask: bool [B, T]. step: int [B, T] in [0, n_steps), read where mask
             is true. reduce: mean, sum, last, min or max over the step's tokens.
    Returns: float [B, n_steps], detached, 0 for steps without a token; bool [B, n_steps], the steps with one.
    Source:  deeplearning-wisc/progress-advantage.
    """
    check_mask(mask, logprobs=logprobs, ref_logprobs=ref_logprobs, step=step)
    index = torch.where(mask, step, n_steps).to(torch.int64)  # a column of their own takes the masked tokens
    present = _scatter(mask.to(torch.int64), index, n_steps, "sum") > 0
    ours = _reduce(upcast(logprobs.detach()), index, n_steps, reduce)
    theirs = _reduce(upcast(ref_logprobs.detach()), index, n_steps, reduce)
    return beta * silence(ours - theirs, present), present


def _reduce(x: Tensor, index: Tensor, n: int, kind: str) -> Tensor:
    if kind == "last":
        places = torch.arange(x.shape[1], device=x.device).expand_as(index)
        last = _scatter(places, index, n, "amax")
        return x.gather(1, last)
    names = {"mean": "mean", "sum": "sum", "min": "amin", "max": "amax"}
    if kind not in names:
        raise ConfigError(nearest(kind, REDUCE, what="reduction"))
    return _scatter(x, index, n, names[kind])


def _scatter(x: Tensor, index: Tensor, n: int, kind: str) -> Tensor:
    out = torch.zeros(x.shape[0], n + 1, dtype=x.dtype, device=x.device)
    return out.scatter_reduce(1, index, x, reduce=kind, include_self=False)[:, :n]


@card(family="advantage", certainty="certain", parts=("progress_steps",))
def progress_score(
    steps: Tensor, present: Tensor, *, reduce: Literal["mean", "sum", "last", "min", "max", "bottom10"] = "mean"
) -> Tensor:
    """One number for a trajectory from its steps, for best-of-n and for uncertainty.

        s = reduce_k A_k;   bottom10: the mean of the lowest tenth (at least one)

    Args:    steps: float [B, K]. present: bool [B, K], at the front of each row.
    Returns: float32 or float64 [B]; 0 for a row without a step.
    Source:  deeplearning-wisc/progress-advantage.
    """
    check_mask(present, steps=steps)
    x = silence(steps.detach(), present)
    if reduce == "bottom10":
        n = present.sum(1, keepdim=True)
        rank = torch.where(present, x, torch.inf).argsort(1).argsort(1)
        lowest = present & (rank < (n * 0.1).ceil().clamp(min=1))
        return silence(x, lowest).sum(1) / lowest.sum(1).clamp(min=1)
    index = torch.where(present, 0, 1)
    return _reduce(x, index, 1, reduce).squeeze(1) * present.any(1)


@card(family="advantage", certainty="certain", parts=("progress_steps",))
def erring_step(
    steps: Tensor, present: Tensor, *, rule: Literal["lowest_sum", "sharpest_drop"] = "lowest_sum"
) -> Tensor:
    """The step to blame for a failure.

        lowest_sum:    argmin_k sum_{j <= k} A_j
        sharpest_drop: argmin_k A_k

    Args:    steps: float [B, K]. present: bool [B, K].
    Returns: int64 [B]; the earliest on a tie.
    Source:  deeplearning-wisc/progress-advantage.
    """
    check_mask(present, steps=steps)
    x = silence(steps, present)
    if rule == "lowest_sum":
        x = x.cumsum(1)
    elif rule != "sharpest_drop":
        raise ConfigError(nearest(rule, ("lowest_sum", "sharpest_drop"), what="rule"))
    return torch.where(present, x, torch.inf).argmin(1)


@card(family="reward", certainty="certain")
def auroc(scores: Tensor, labels: Tensor) -> Tensor:
    """The chance that a positive scores above a negative, ties counting half.

        P(s+ > s-) + P(s+ = s-) / 2

    Args:    scores: float [N]. labels: bool [N].
    Returns: float scalar in [0, 1]; 0.5 when a class is absent.
    Source:  Hanley and McNeil (1982).
    """
    s = upcast(scores.detach())
    wins = (s.unsqueeze(1) > s.unsqueeze(0)).to(s.dtype) + 0.5 * (s.unsqueeze(1) == s.unsqueeze(0)).to(s.dtype)
    pairs = (labels.unsqueeze(1) & ~labels.unsqueeze(0)).to(s.dtype)
    n = pairs.sum()
    return torch.where(n > 0, (wins * pairs).sum() / n.clamp(min=1), 0.5)
