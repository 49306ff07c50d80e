"""Exact expectation and variance of any estimator, by enumerating a small tabular MDP; and the table made from it.

Two steps, three actions, the second step's policy depends on the first action: nine trajectories, twelve parameters.
``python -m tests.algorithms.exact`` prints the table of docs/algorithms/bias-variance.md.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from toolgym.algorithms.advantages import group_advantage, rloo
from toolgym.algorithms.corrections import masked_is, truncated_is
from toolgym.algorithms.distillation import opd_loss
from toolgym.algorithms.kl import kl, unbiased_kl
from toolgym.algorithms.policy_losses import cispo, ppo_clip, reinforce
from toolgym.algorithms.trust_regions import ctpo, decoupled_ppo, gspo

F64 = torch.float64
A = 3
ACTIONS = torch.tensor(list(itertools.product(range(A), range(A))))  # [9, 2]
MASK = torch.ones(len(ACTIONS), 2, dtype=torch.bool)

Estimator = Callable[[Tensor, Tensor], Tensor]  # log-probs with gradient, sampler's, both [N, 2] -> loss per row [N]


def _normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


# Parameters: the root's logits, then those of the second step, one row per first action.
THETA = 0.7 * _normal(1, A + A * A)
STALE = THETA + 0.5 * _normal(2, A + A * A)  # the sampler of the off-policy rows
FAR_TEACHER = 0.9 * _normal(4, A + A * A)
REWARD = torch.rand(A, A, generator=torch.Generator().manual_seed(3), dtype=F64)[ACTIONS[:, 0], ACTIONS[:, 1]]


def logprobs(theta: Tensor) -> Tensor:
    """Log-probability of both actions of every trajectory, [9, 2]."""
    root, second = theta[:A].log_softmax(0), theta[A:].reshape(A, A).log_softmax(1)
    return torch.stack([root[ACTIONS[:, 0]], second[ACTIONS[:, 0], ACTIONS[:, 1]]], 1)


def outcome_advantage() -> Tensor:
    """Reward above the policy's expected reward: one number a trajectory, [9]."""
    return REWARD - (logprobs(THETA).sum(1).exp() * REWARD).sum()


def step_advantage() -> Tensor:
    """The policy's true advantage A(s_t, a_t) of both steps, [9, 2]."""
    lp = logprobs(THETA)
    q = torch.zeros(A, dtype=F64).index_add(0, ACTIONS[:, 0], lp[:, 1].exp() * REWARD)[ACTIONS[:, 0]]
    value = (lp.sum(1).exp() * REWARD).sum()
    return torch.stack([q - value, REWARD - q], 1)


def true_gradient() -> Tensor:
    """Gradient of minus the expected reward, [12]."""
    theta = THETA.clone().requires_grad_(True)
    return torch.autograd.grad(-(logprobs(theta).sum(1).exp() * REWARD).sum(), theta)[0]


def reverse_kl_gradient() -> Tensor:
    """Gradient of sum_t E_{s_t ~ policy} KL(policy || teacher)(s_t) at fixed state weights, [12]: what OPD descends."""
    theta = THETA.clone().requires_grad_(True)
    lp, teacher = logprobs(theta), logprobs(FAR_TEACHER)
    p = lp.exp()
    step = (p * (lp - teacher)).unbind(1)
    first = step[0].reshape(A, A)[:, 0].sum()
    visits = p[:, 0].detach()
    return torch.autograd.grad(first + (visits * step[1]).sum(), theta)[0]


def moments(estimator: Estimator, sampler: Tensor) -> tuple[Tensor, Tensor]:
    """Exact mean [12] and total variance of the gradient of ``estimator`` on one trajectory of ``sampler``."""
    theta, mu = THETA.clone().requires_grad_(True), logprobs(sampler)
    rows = estimator(logprobs(theta), mu)
    gradients = torch.stack([torch.autograd.grad(row, theta, retain_graph=True)[0] for row in rows])
    return _mean_and_variance(gradients, mu.sum(1).exp())


def group_moments(advantage: Callable[[Tensor, Tensor], Tensor], size: int = 3) -> tuple[Tensor, Tensor]:
    """The same of the on-policy group gradient, over all groups of ``size`` trajectories."""
    theta = THETA.clone().requires_grad_(True)
    lp = logprobs(theta)
    scores = torch.stack([torch.autograd.grad(row, theta, retain_graph=True)[0] for row in lp.sum(1)])
    groups = torch.tensor(list(itertools.product(range(len(ACTIONS)), repeat=size)))
    ids = torch.arange(len(groups)).repeat_interleave(size)
    a = advantage(REWARD[groups].flatten(), ids).reshape(len(groups), size)
    gradients = -(a.unsqueeze(2) * scores[groups]).mean(1)
    weight = lp.detach().sum(1).exp()[groups].prod(1)
    return _mean_and_variance(gradients, weight)


def _mean_and_variance(gradients: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    mean = weight @ gradients
    return mean, weight @ (gradients - mean).square().sum(1)


@dataclass(frozen=True, kw_only=True)
class Row:
    """One line of the table: relative bias, cosine to the truth, variance in units of the squared true gradient."""

    group: str
    name: str
    bias: float
    cosine: float
    variance: float


def compare(group: str, name: str, got: tuple[Tensor, Tensor], truth: Tensor) -> Row:
    mean, variance = got
    size = truth.norm()
    norm = mean.norm()
    cosine = float(mean @ truth / (norm * size)) if norm > 1e-12 else 0.0
    return Row(
        group=group,
        name=name,
        bias=float((mean - truth).norm() / size),
        cosine=cosine,
        variance=float(variance / size**2),
    )


def weighted(correction, loss=reinforce, advantages=None, **parameters) -> Estimator:
    """A loss at the policy itself, times a correction of it against the sampler."""

    def estimator(lp: Tensor, mu: Tensor) -> Tensor:
        a = outcome_advantage() if advantages is None else advantages
        weight, kept, _ = correction(lp.detach(), mu, MASK, **parameters)
        return torch.where(kept, weight * loss(lp, lp.detach(), a, MASK)[0], 0.0).sum(1)

    return estimator


def direct(loss, advantages=None, **parameters) -> Estimator:
    """A loss whose ratio is against the sampler."""

    def estimator(lp: Tensor, mu: Tensor) -> Tensor:
        a = outcome_advantage() if advantages is None else advantages
        return loss(lp, mu, a, MASK, **parameters)[0].sum(1)

    return estimator


WIDE = {"clip_low": 1.0, "clip_high": 1e6}  # no clipping: the ratio alone
OPEN = {"clip_low": 50.0, "clip_high": 50.0, "dual_clip": None}


def policy_gradient_estimators() -> dict[str, Estimator]:
    """Estimators of the policy gradient from one trajectory, by the name that the table gives them."""
    step = step_advantage()
    return {
        "no correction (reinforce)": direct(reinforce),
        "token ratio (ppo_clip, unclipped), outcome advantage": direct(ppo_clip, **WIDE),
        "token ratio (ppo_clip, unclipped), per-step advantage": direct(ppo_clip, step, **WIDE),
        "ppo_clip 0.2": direct(ppo_clip),
        "cispo, max ratio 1.5": direct(cispo, max_ratio=1.5),
        "geometric-mean ratio (gspo, unclipped)": direct(gspo, **WIDE),
        "prefix ratio (ctpo, unclipped), outcome advantage": direct(ctpo, **OPEN),
        "prefix ratio (ctpo, unclipped), per-step advantage": direct(ctpo, step, **OPEN),
        "sequence ratio, exact": weighted(truncated_is, level="sequence", cap=1e9),
        "sequence ratio, exact, per-step advantage": weighted(truncated_is, advantages=step, level="sequence", cap=1e9),
        "sequence TIS, cap 2": weighted(truncated_is, level="sequence", cap=2.0),
        "sequence TIS, cap 1.2": weighted(truncated_is, level="sequence", cap=1.2),
        "token TIS, cap 1.2": weighted(truncated_is, cap=1.2),
        "token MIS, 0.5 to 2": weighted(masked_is),
        "decoupled PPO, truncated at 1.2": lambda lp, mu: decoupled_ppo(
            lp, lp.detach(), outcome_advantage(), MASK, sampler_logprobs=mu, cap=1.2, cap_mode="truncate"
        )[0].sum(1),
    }


def distillation_estimators() -> dict[str, Estimator]:
    """Estimators of the gradient of reverse KL to a teacher, summed over both steps."""
    teacher = logprobs(FAR_TEACHER)

    def penalty(kind: str) -> Estimator:
        return lambda lp, mu: kl(lp, teacher, MASK, kind=kind).sum(1)

    def distilled(recompute: bool) -> Estimator:
        return lambda lp, mu: opd_loss(lp, mu, teacher, MASK, recompute=recompute)[0].sum(1)

    return {
        "k1 as a loss": penalty("k1"),
        "k2 as a loss": penalty("k2"),
        "k3 as a loss": penalty("k3"),
        "k3+ as a loss": penalty("k3+"),
        "unbiased_kl, k3": lambda lp, mu: unbiased_kl(lp, teacher, mu, MASK, kind="k3").sum(1),
        "opd_loss, recomputed signal": distilled(True),
        "opd_loss, stored signal": distilled(False),
    }


GROUPS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "no baseline": lambda r, g: r,
    "rloo": rloo,
    "group mean (group_advantage, none)": lambda r, g: group_advantage(r, g, scale="none"),
    "group mean and std (group_advantage, group)": lambda r, g: group_advantage(r, g),
}


def prefix_sampler(sampler: Tensor) -> Tensor:
    """The policy's first step and the sampler's second.

    Distillation's estimators correct the token, not the states that lead to it: so the states are right.
    """
    return torch.cat([THETA[:A], sampler[A:]])


def table() -> list[Row]:
    """All rows, recomputed."""
    truth, divergence = true_gradient(), reverse_kl_gradient()
    rows: list[Row] = []
    for name, advantage in GROUPS.items():
        rows.append(compare("group of 3, on policy", name, group_moments(advantage), truth))
    for title, sampler in (("one trajectory, on policy", THETA), ("one trajectory, stale sampler", STALE)):
        for name, estimator in policy_gradient_estimators().items():
            rows.append(compare(title, name, moments(estimator, sampler), truth))
    stale = prefix_sampler(STALE)
    for title, sampler in (("distillation, on policy", THETA), ("distillation, stale second step", stale)):
        for name, estimator in distillation_estimators().items():
            rows.append(compare(title, name, moments(estimator, sampler), divergence))
    return rows


def markdown() -> str:
    """The table as Markdown, three decimals."""
    lines: list[str] = []
    for title, rows in itertools.groupby(table(), key=lambda row: row.group):
        lines += [f"### {title.capitalize()}", "", "| estimator | bias | cosine | variance |", "|---|---:|---:|---:|"]
        lines += [f"| {r.name} | {_round(r.bias)} | {_round(r.cosine)} | {_round(r.variance)} |" for r in rows]
        lines.append("")
    return "\n".join(lines)


def _round(x: float) -> str:
    return f"{round(x, 3) + 0.0:.3f}"


if __name__ == "__main__":
    print(markdown())
