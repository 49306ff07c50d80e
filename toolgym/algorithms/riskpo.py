"""RiskPO: emphasise the lower tail of the score distribution, on bundles of questions so that hard ones get a
signal.
"""

from typing import Any, Literal

import torch
from torch import Tensor

from toolgym.algorithms.masking import upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

LEVELS = tuple(round(0.05 * i, 2) for i in range(1, 20))


@card(family="advantage", certainty="certain")
def mixed_var_weight(
    scores: Tensor,
    low: Tensor | float,
    high: Tensor | float,
    *,
    alpha: float = 0.2,
    beta: float = 0.8,
    mix: float = 1.5,
    natural_baseline: bool = True,
) -> Tensor:
    """Likelihood-ratio weight of the mixed value-at-risk: the lower tail counts double, the top is ignored.

        RVaR: (clip(z, a, b) - b) / (beta - alpha);   CVaR: -(a - z)^+ / alpha,   a = q_alpha, b = q_beta
        w(z) = (mix CVaR + RVaR) / (mix + 1)
        natural_baseline False: RVaR without its constant (a - b) / (beta - alpha)

    Args:    scores z: float [N]. low, high: the tracked quantiles a <= b. 0 < alpha < beta < 1. mix >= 0.
    Returns: float32 or float64 [N], detached; non-decreasing in z, constant above b.
    Source:  RiskPO (arXiv:2510.00911); RTkenny/RiskPO core_algos.py.
    """
    if not 0 < alpha < beta < 1 or mix < 0:
        raise ValueError(f"got alpha={alpha}, beta={beta}, mix={mix}, expected 0 < alpha < beta < 1 and mix >= 0")
    z = upcast(scores.detach())
    a, b = (torch.as_tensor(q, dtype=z.dtype, device=z.device).detach() for q in (low, high))
    inside = torch.minimum(torch.maximum(z, a), b)
    rvar = (inside - (b if natural_baseline else a)) / (beta - alpha)
    cvar = -(a - z).clamp(min=0) / alpha
    return (mix * cvar + rvar) / (mix + 1)


@card(family="advantage", certainty="certain")
def track_quantiles(quantiles: Tensor, scores: Tensor, levels: Tensor, *, rate: float = 0.1) -> Tensor:
    """One stochastic step of each quantile towards that of the new scores.

        q_s <- q_s + rate (s - mean_j 1[z_j < q_s])

    Args:    quantiles: float [L]. scores: float [N], N >= 1. levels: float [L] in (0, 1). rate > 0.
    Returns: float32 or float64 [L], detached.
    Source:  RiskPO (arXiv:2510.00911).
    """
    z = upcast(scores.detach())
    q = upcast(quantiles.detach())
    below = (z.unsqueeze(0) < q.unsqueeze(1)).to(z.dtype).mean(1)
    return q + rate * (levels.detach() - below)


class QuantileTracker:
    """Quantiles of a score distribution that drifts; the first batch gives the start. ``state_dict`` round-trips.

    Example: ``tracker.update(scores); a = tracker[0.2]``.
    """

    def __init__(self, levels: tuple[float, ...] = LEVELS, *, rate: float = 0.1) -> None:
        self.levels = torch.tensor(levels, dtype=torch.float64)
        self.rate = rate
        self.quantiles: Tensor | None = None

    def update(self, scores: Tensor) -> None:
        """Take one batch of scores, float [N], N >= 1."""
        z = scores.detach().to("cpu", torch.float64)
        start = torch.quantile(z, self.levels) if self.quantiles is None else self.quantiles
        self.quantiles = track_quantiles(start, z, self.levels, rate=self.rate) if self.quantiles is not None else start

    def __getitem__(self, level: float) -> float:
        """The tracked quantile of a level. Raises KeyError: not a tracked level, or no batch yet."""
        place = (self.levels - level).abs().argmin()
        if self.quantiles is None or abs(float(self.levels[place]) - level) > 1e-9:
            raise KeyError(f"no quantile for level {level}: tracked are {_floats(self.levels)}, after the first update")
        return float(self.quantiles[place])

    def state_dict(self) -> dict[str, Any]:
        """Everything that changes, as JSON values."""
        return {"quantiles": None if self.quantiles is None else _floats(self.quantiles)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from `state_dict`."""
        saved = state["quantiles"]
        self.quantiles = None if saved is None else torch.tensor(saved, dtype=torch.float64)


def _floats(x: Tensor) -> list[float]:
    return [float(v) for v in x]


def make_bundles(n_questions: int, size: int, *, generator: torch.Generator | None = None) -> Tensor:
    """A random partition of questions into bundles: int64 [n_questions // size, size]; the remainder is left out.

    Example: ``make_bundles(10, 5)`` gives two bundles of five question numbers.
    """
    if not 1 <= size <= n_questions:
        raise ValueError(f"got bundles of {size} from {n_questions} questions, expected 1 <= size <= questions")
    order = torch.randperm(n_questions, generator=generator)
    return order[: n_questions // size * size].reshape(-1, size)


@card(family="advantage", certainty="certain")
def bundle_scores(correct: Tensor, bundles: Tensor) -> Tensor:
    """Score of each "paper": the j-th answers to all questions of a bundle.

        R_pj = sum_{q in bundle p} r_qj

    Args:    correct: float [Q, G], reward of answer j to question q; permute each row at random first for independent
             papers. bundles: int64 [P, S], question numbers.
    Returns: float32 or float64 [P, G].
    Source:  RiskPO (arXiv:2510.00911).
    """
    return upcast(correct.detach())[bundles].sum(1)


@card(family="advantage", certainty="certain", parts=("bundle_scores", "mixed_var_weight"))
def bundle_advantage(
    correct: Tensor,
    bundles: Tensor,
    weights: Tensor,
    *,
    credit: Literal["uniform", "score", "std", "sum-mean"] = "uniform",
    normalise: bool = True,
    eps: float = 1e-6,
) -> Tensor:
    """Hand each paper's weight down to the answers it is made of.

        uniform:  A_qj = w_pj                          score:    A_qj = w_pj r_qj
        std:      A_qj = w_pj / std_j r_qj             sum-mean: A_qj = S w_pj d_qj / sum_{q in p} d_qj,  d = r -
        mean_j r (normalise: w / (std of the batch's paper scores + eps) first)

    std is the population's; <= 1e-3 counts as 1. Where |sum d| <= 1e-6, sum-mean gives equal shares.

    Args:    correct: float [Q, G]. bundles: int64 [P, S]. weights: float [P, G], `mixed_var_weight` of `bundle_scores`.
    Returns: float32 or float64 [Q, G], detached; 0 for questions in no bundle.
    Source:  RiskPO (arXiv:2510.00911); RTkenny/RiskPO core_algos.py.
    Differs: the shares of sum-mean are scaled by the bundle's size, so that equal shares are uniform credit.
    """
    r = upcast(correct.detach())
    w = upcast(weights.detach())
    if normalise:
        w = w / (bundle_scores(r, bundles).std(correction=0) + eps)
    members = r[bundles]  # [P, S, G]
    spread = w.unsqueeze(1).expand_as(members)
    if credit == "score":
        spread = spread * members
    elif credit == "std":
        std = members.std(2, keepdim=True, correction=0)
        spread = spread / torch.where(std <= 1e-3, 1.0, std)
    elif credit == "sum-mean":
        d = members - members.mean(2, keepdim=True)
        total = d.sum(1, keepdim=True)
        share = d / torch.where(total.abs() <= 1e-6, 1.0, total)
        spread = spread * torch.where(total.abs() <= 1e-6, 1.0, share * bundles.shape[1])
    elif credit != "uniform":
        raise ConfigError(nearest(credit, ("uniform", "score", "std", "sum-mean"), what="credit"))
    return torch.zeros_like(r).index_copy(0, bundles.reshape(-1), spread.reshape(-1, r.shape[1]))
