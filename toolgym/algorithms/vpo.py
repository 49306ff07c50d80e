"""VPO: rollouts that answer with a set of candidates, scored on a vector of criteria whose weighting is not known."""

import torch
from torch import Tensor

from toolgym.algorithms.masking import upcast
from toolgym.algorithms.registry import card


@card(family="reward", certainty="certain")
def vpo_scores(rewards: Tensor, weights: Tensor) -> Tensor:
    """Score of a set of candidates: for each weighting of the criteria the best candidate counts.

        S_r = 1/N sum_l max_{s <= m} <w_l, R_rs>          # max inside, mean outside

    Feed it to `group_advantage` (population std).

    Args:    rewards: float [n, m, k], criterion k of candidate m of rollout n, in [0, 1]; missing candidates are
             zero rows (see `distinct`). weights: float [N, k], the same draws for all rollouts of a prompt:
             `simplex_weights`, or one fixed row (Multi-RLVR).
    Returns: float32 or float64 [n], detached.
    Edge:    k = 1 is best-of-m; m = 1 with one weighting is the scalar reward. A further candidate never lowers it.
    Source:  VPO (arXiv:2605.22817); ryanboldi/vpo.
    """
    if rewards.dim() != 3 or weights.dim() != 2 or rewards.shape[2] != weights.shape[1]:
        raise ValueError(
            f"got rewards {list(rewards.shape)}, weights {list(weights.shape)}, expected [n, m, k], [N, k]"
        )
    r = upcast(rewards.detach())
    return torch.einsum("nmk,lk->nml", r, weights.detach().to(r.dtype)).amax(1).mean(1)


@card(family="reward", certainty="certain")
def simplex_weights(n: int, k: int, *, generator: torch.Generator | None = None) -> Tensor:
    """Weightings drawn evenly from the simplex.

        w ~ Dirichlet(1, ..., 1):  E_j / sum E,  E_j ~ Exponential(1)

    Args:    n draws (VPO: 100) of k criteria.
    Returns: float64 [n, k], rows sum to 1.
    Source:  VPO (arXiv:2605.22817).
    """
    if n < 1 or k < 1:
        raise ValueError(f"got n={n}, k={k}, expected both >= 1")
    e = -torch.log1p(-torch.rand(n, k, generator=generator, dtype=torch.float64))  # 1 - U is never 0
    return e / e.sum(1, keepdim=True)


@card(family="reward", certainty="certain")
def distinct(rewards: Tensor, candidates: Tensor) -> Tensor:
    """Count a repeated candidate once: later copies become zero rows.

        R'_rs = R_rs if candidate_rs is not among candidate_r,<s, else 0

    Args:    rewards: float [n, m, k]. candidates: int [n, m], an id per distinct text; -1 for a missing one (zero row).
    Returns: float32 or float64 [n, m, k].
    Source:  ryanboldi/vpo.
    """
    m = candidates.shape[1]
    same = candidates.unsqueeze(2) == candidates.unsqueeze(1)
    earlier = torch.ones(m, m, dtype=torch.bool, device=candidates.device).tril(-1)
    fresh = ~(same & earlier).any(2) & (candidates >= 0)
    return torch.where(fresh.unsqueeze(2), upcast(rewards), 0.0)
