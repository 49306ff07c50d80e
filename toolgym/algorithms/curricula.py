"""Which tasks to train on next: the equations. What remembers between steps is in ``toolgym.trainer.curricula``."""

import torch
from torch import Tensor

from toolgym.algorithms.advantages import SPREAD
from toolgym.algorithms.masking import group_extreme, group_index, group_sum, upcast
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest


@card(family="curriculum", certainty="secondary")
def select_intermediate(values: Tensor, m: int, *, tau: float = 0.5) -> Tensor:
    """PCL: the m candidates whose predicted success is nearest to tau, where the gradient is largest.

        the m smallest |V(x) - tau|, ties by place

    Args:    values: float [N], predicted success. 1 <= m <= N; PCL draws N = 4 m candidates, in random order.
    Returns: int64 [m], places in ``values``, ascending in |V - tau|.
    Source:  PCL (arXiv:2510.01135), as quoted in notes of the paper.
    """
    if not 1 <= m <= values.shape[0]:
        raise ValueError(f"got m={m} of {values.shape[0]} candidates, expected 1 <= m <= candidates")
    return torch.argsort((upcast(values) - tau).abs(), stable=True)[:m]


@card(family="curriculum", certainty="certain")
def has_signal(rewards: Tensor, group: Tensor) -> Tensor:
    """DAPO's dynamic sampling: groups whose rewards are not all equal. Feed it raw correctness, not shaped rewards.

        keep_g = max_g r > min_g r        (beyond 1e-8 of the largest |r|)

    Shaping (a length penalty) would let groups pass that are all wrong.

    Args:    rewards: float [B]. group: int [B].
    Returns: bool [B], equal within a group.
    Source:  DAPO (arXiv:2503.14476), dynamic sampling.
    """
    r, index = upcast(rewards), group_index(group)
    high, low = group_extreme(r, index, largest=True), group_extreme(r, index, largest=False)
    return high - low > SPREAD * torch.maximum(high.abs(), low.abs())


@card(family="curriculum", certainty="certain", parts=("has_signal",))
def effective_ratio(rewards: Tensor, group: Tensor) -> Tensor:
    """The share of groups that give a gradient at all.

        |{g: max_g r > min_g r}| / |{g}|

    Args:    rewards: float [B]. group: int [B].
    Returns: float scalar in [0, 1].
    Source:  PCL (arXiv:2510.01135).
    """
    size = group_sum(torch.ones_like(upcast(rewards)), group_index(group))
    return (has_signal(rewards, group).to(size.dtype) / size).sum() / (1 / size).sum()


@card(family="curriculum", certainty="certain")
def ucb_probabilities(means: Tensor, counts: Tensor, *, tau: float = 0.1) -> tuple[Tensor, Tensor]:
    """DUMP: sample sources by an upper confidence bound on their mean absolute advantage.

        UCB_j = mean|A|_j + sqrt(2 ln(N + 1) / (n_j + 1)),  N = sum n;   P = softmax(UCB / tau)

    Args:    means: float [J], over each source's window, 0 when empty. counts: [J] >= 0, samples ever. tau > 0.
    Returns: UCB and P, float32 or float64 [J].
    Edge:    with std-normalised advantages mean|A| = 2 sqrt(p (1 - p)); without, 2 p (1 - p).
    Source:  DUMP (arXiv:2504.09710); ZhentingWang/DUMP curriculum_learning.py.
    Differs: the official code also counts validation rewards as advantages; here only what the caller feeds counts.
    """
    if tau <= 0:
        raise ValueError(f"got tau={tau}, expected > 0")
    mean = upcast(means.detach())
    n = counts.to(mean.dtype)
    ucb = mean + (2 * (n.sum() + 1).log() / (n + 1)).sqrt()
    return ucb, (ucb / tau).softmax(0)


@card(family="curriculum", certainty="secondary")
def informativeness(rewards: Tensor, group: Tensor, *, kind: str = "regret") -> Tensor:
    """eva: how much there is to gain from a prompt, from the spread of its samples.

        regret:    max_g r - mean_g r        (online; offline: "range", max - min)
        advantage: mean_g |r - mean_g r|     variance: mean_g (r - mean_g r)^2

    With binary rewards regret is 1 - p for 0 < p: it prefers the hardest solvable prompts.

    Args:    rewards: float [B]. group: int [B]. kind: regret, range, advantage or variance.
    Returns: float32 or float64 [B] >= 0, equal within a group; 0 for constant rewards.
    Source:  eva (arXiv:2411.00062), as quoted in notes of the paper; "advantage" and "variance" are ours.
    """
    r, index = upcast(rewards.detach()), group_index(group)
    size = group_sum(torch.ones_like(r), index)
    high, low = group_extreme(r, index, largest=True), group_extreme(r, index, largest=False)
    centred = r - group_sum(r, index) / size
    if kind == "regret":
        info = high - group_sum(r, index) / size
    elif kind == "range":
        info = high - low
    elif kind == "advantage":
        info = group_sum(centred.abs(), index) / size
    elif kind == "variance":
        info = group_sum(centred.square(), index) / size
    else:
        raise ConfigError(nearest(kind, ("regret", "range", "advantage", "variance"), what="informativeness"))
    return torch.where(has_signal(r, group), info, 0.0)


@card(family="curriculum", certainty="secondary", parts=("informativeness",))
def sample_informative(info: Tensor, m: int, *, generator: torch.Generator | None = None) -> Tensor:
    """eva: draw prompts without replacement, in proportion to what there is to gain.

        P(x) ~ info(x); uniform when all are 0; with fewer than m above 0, the rest is drawn evenly from the others

    Args:    info: float [N] >= 0. 1 <= m <= N.
    Returns: int64 [m], distinct places.
    Source:  eva (arXiv:2411.00062), as quoted in notes of the paper.
    """
    if not 1 <= m <= info.shape[0]:
        raise ValueError(f"got m={m} of {info.shape[0]} prompts, expected 1 <= m <= prompts")
    # Exponential races: the m smallest E_i / info_i are a draw without replacement; zeros race among themselves, last.
    uniform = torch.rand(info.shape[0], generator=generator, dtype=torch.float64)
    weight = info.to(torch.float64)
    race = (-torch.log1p(-uniform)).clamp(min=1e-300).log()
    times = torch.where(weight > 0, race - weight.log(), race + 1e6)
    return torch.argsort(times)[:m]


@card(family="curriculum", certainty="certain")
def mastered(passes: Tensor, attempts: Tensor, *, threshold: float = 0.9) -> Tensor:
    """No-positive-resampling: prompts that need no further epoch.

        n > 0  and  c / n >= threshold

    Args:    passes c, attempts n: [N] >= 0, over the run. threshold in (0, 1].
    Returns: bool [N].
    Source:  ScaleRL (arXiv:2510.13786), No-Positive-Resampling.
    """
    return (attempts > 0) & (passes >= threshold * attempts)


@card(family="curriculum", certainty="certain")
def upgraded(rung: Tensor, mean_reward: Tensor, last: Tensor, *, threshold: float = 0.5) -> Tensor:
    """Cog-DRIFT: move to the next harder form of a problem once this one is solved more often than not.

        rung + 1 if mean_reward > threshold and rung < last, else rung        (never down)

    Args:    rung, last: int [N]. mean_reward: float [N], over the problem's window.
    Returns: int [N].
    Source:  Cog-DRIFT (arXiv:2604.04767); dinobby/Cog-DRIFT.
    """
    return torch.where((mean_reward > threshold) & (rung < last), rung + 1, rung)
