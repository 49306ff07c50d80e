"""Between supervised and reinforcement learning: Prefix-RFT's hybrids, DYPO's per-prompt choice."""

import math
import random
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.masking import (
    check_mask,
    group_extreme,
    group_index,
    group_sum,
    log_ratio,
    row_mean,
    silence,
    upcast,
)
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card

PromptState: TypeAlias = Literal["easy", "hard", "mixed"]


@card(family="sft", certainty="certain")
def prefix_ratio_range(
    step: int, total: int, *, init: float = 0.95, target: float = 0.05, high: float = 0.95
) -> tuple[float, float]:
    """Range from which Prefix-RFT draws the share of the demonstration that is given.

        low(step) = target + (1 + cos(pi step / total)) / 2 (init - target);   l ~ U(low, high)

    Early prefixes are long, late ones span the full range.

    Args:    step: 0..total, later steps count as total. total: >= 1. init, target, high: in [0, 1].
    Returns: (low, high), low at most high.
    Raises:  ValueError: step < 0 or total < 1.
    Source:  Prefix-RFT (arXiv:2507.01679), official repository.
    """
    if step < 0 or total < 1:
        raise ValueError(f"prefix_ratio_range got step={step}, total={total}")
    low = target + 0.5 * (1 + math.cos(math.pi * min(step, total) / total)) * (init - target)
    return min(low, high), high


@card(family="sft", certainty="certain")
def prefix_length(demo_length: int, ratio_range: tuple[float, float], *, rng: random.Random) -> int:
    """Number of demonstration tokens that a hybrid rollout starts with.

        L = floor(l n), l ~ U(low, high), at most n - 1

    Args:    demo_length: n, tokens; 0 (no demonstration) gives 0, an ordinary rollout. ratio_range:
             `prefix_ratio_range`.
    Returns: int in [0, n - 1]: at least one token is left to generate.
    Source:  Prefix-RFT (arXiv:2507.01679), official repository.
    """
    drawn = math.floor(rng.uniform(*ratio_range) * demo_length)
    return max(0, min(drawn, demo_length - 1))


@card(family="sft", certainty="certain")
def prefix_entropy_mask(entropy: Tensor, prefix_mask: Tensor, *, keep: float = 0.2) -> Tensor:
    """The prefix tokens that keep their gradient: those where the policy is least certain.

        the ceil(keep n) prefix tokens of the row with the highest entropy

    Without it, tokens at which the policy is confidently of another mind dominate the update.

    Args:    entropy: float [B, T], nats, the policy's. prefix_mask: bool [B, T]. keep in [0, 1].
    Returns: bool [B, T], within ``prefix_mask``; on equal entropies the earlier token.
    Raises:  ValueError: keep outside [0, 1].
    Source:  Prefix-RFT (arXiv:2507.01679), official repository.
    Differs: keep = 0.2 is ours; the official runs schedule it.
    """
    if not 0 <= keep <= 1:
        raise ValueError(f"got keep {keep}, expected [0, 1]")
    check_mask(prefix_mask, entropy=entropy)
    count = (prefix_mask.sum(1, keepdim=True) * keep).ceil()
    ranked = torch.where(prefix_mask, upcast(entropy.detach()), -math.inf)
    order = torch.argsort(ranked, dim=1, descending=True, stable=True)
    rank = torch.argsort(order, dim=1, stable=True)
    return rank < count  # the masked ones stand last, and count is at most that of the others


@card(family="sft", certainty="derived", parts=("group_advantage",))
def prefix_rft_advantages(
    rewards: Tensor,
    group: Tensor,
    prefix_mask: Tensor,
    mask: Tensor,
    *,
    kept_prefix: Tensor | None = None,
    repo_style: bool = False,
    eps: float = 1e-6,
) -> Tensor:
    """Token advantages of groups in which some rows start with a demonstration's prefix.

        simple: A_it = `group_advantage`, hybrids being members like any other
        repo_style: pure rows: (r - mean_pure) / (std_pure + eps)
                    a hybrid's continuation: the same among the hybrids; r where it is the only one
                    its prefix: (r - mean_pure) / (number of hybrids)
        both: 0 on prefix tokens outside kept_prefix

    Args:    rewards: float [B]. group: int [B]. prefix_mask: bool [B, T], true on demonstration tokens; rows without
             any are pure. mask: bool [B, T], prefix and generated tokens. kept_prefix: bool [B, T],
             `prefix_entropy_mask`.
    Returns: float32 or float64 [B, T], detached; 0 under the mask.
    Edge:    a group without a hybrid is GRPO; repo_style without a pure row takes 0 for its mean.
    Note:    old log-probabilities of prefix tokens are the current policy's: nothing is known of the demonstrator.
    Source:  Prefix-RFT (arXiv:2507.01679), official repository (repo_style; a group's hybrids share one prefix).
    Differs: the simple form is the default; the paper gives prefix and continuation different baselines.
    """
    check_mask(mask, prefix_mask=prefix_mask)
    r = upcast(rewards.detach())
    hybrid = (prefix_mask & mask).any(1)
    if not repo_style:
        tokens = group_advantage(r, group, eps=eps).unsqueeze(1).expand(mask.shape)
    else:
        pure = ~hybrid
        index = group_index(group)
        mean = group_sum(torch.where(pure, r, 0.0), index) / group_sum(pure.to(r.dtype), index).clamp(min=1)
        hybrids = group_sum(hybrid.to(r.dtype), index).clamp(min=1)
        shared = torch.where(hybrids == 1, r, group_advantage(r, group, eps=eps, keep=hybrid))
        continuation = torch.where(hybrid, shared, group_advantage(r, group, eps=eps, keep=pure)).unsqueeze(1)
        tokens = torch.where(prefix_mask, ((r - mean) / hybrids).unsqueeze(1), continuation)
    if kept_prefix is not None:
        tokens = torch.where(prefix_mask & ~kept_prefix, 0.0, tokens)
    return silence(tokens, mask)


@card(family="sft", certainty="certain")
def dypo_states(rewards: Tensor, group: Tensor, *, switch_gate: float = 0.0) -> tuple[Tensor, Tensor]:
    """Which prompts DYPO skips, imitates or reinforces.

        hard: mean_g r <= switch_gate;   easy: min_g r >= 1;   mixed: neither

    Args:    rewards: float [B], 0 or 1. group: int [B].
    Returns: (hard, mixed), bool [B] each; easy is neither.
    Source:  DYPO (arXiv:2604.08926), paper and repository.
    """
    r, index = upcast(rewards.detach()), group_index(group)
    hard = group_sum(r, index) / group_sum(torch.ones_like(r), index) <= switch_gate
    easy = (group_extreme(r, index, largest=False) >= 1) & ~hard
    return hard, ~hard & ~easy


@card(family="sft", certainty="certain")
def group_alignment_loss(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    mask: Tensor,
    *,
    rewards: Tensor,
    group: Tensor,
    beta: float = 1.0,
    threshold: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """DYPO's group alignment: DPO on all pairs of a success and a failure of the same group.

        h_i = mean_t (log pi - log ref);   L_g = mean over pairs (w, l) of -log sigmoid(beta (h_w - h_l))

    Its gradient weight sigmoid(-beta d) lies in (0, 1), hence little variance.

    Args:    logprobs: float [B, T], with gradient. ref_logprobs: float [B, T], of the old or reference policy. mask:
             bool [B, T]. rewards: float [B]; a success has at least ``threshold``. group: int [B].
    Returns: float32 or float64 [B]: each row's half of the sum over its pairs, divided by its group's number of pairs,
             so that the sum over a group is L_g; 0 in groups without a pair; metrics: pairs (number), margin (mean h_w
             - h_l).
    Source:  DYPO (arXiv:2604.08926), paper and repository.
    Differs: the mean over tokens (not the sum) keeps h_w - h_l of order 1, as beta = 1 needs.
    """
    h = row_mean(log_ratio(logprobs, ref_logprobs, mask), mask)
    said = mask.any(1)  # a row without a token has no log-ratio to compare
    success, failure = said & (rewards >= threshold), said & (rewards < threshold)
    same = group.unsqueeze(0) == group.unsqueeze(1)
    pair = same & success.unsqueeze(1) & failure.unsqueeze(0)  # [w, l]
    difference = h.unsqueeze(1) - h.unsqueeze(0)
    losses = -torch.nn.functional.logsigmoid(beta * torch.where(pair, difference, 0.0))
    counts = group_sum(pair.sum(1).to(h.dtype), group_index(group)).clamp(min=1)
    shares = torch.where(pair, losses, 0.0) / counts.unsqueeze(1)
    loss = 0.5 * (shares.sum(1) + shares.sum(0))
    n = pair.sum()
    margin = torch.where(pair, difference.detach(), 0.0).sum() / n.clamp(min=1)
    return loss, {"pairs": n.to(h.dtype), "margin": margin}


@card(family="sft", certainty="certain", parts=("dypo_states", "group_alignment_loss", "ppo_clip", "sft_loss"))
def dypo_loss(
    rl: Tensor,
    alignment: Tensor,
    sft: Tensor,
    *,
    rewards: Tensor,
    group: Tensor,
    alpha: float = 0.5,
    sft_weight: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """DYPO: skip what is solved, imitate what is never solved, reinforce and align the rest.

        L_g = 1[hard] w L_SFT + 1[mixed] (alpha L_GRPO + (1 - alpha) L_GAL)

    Args:    rl: float [B], each row's share of its group's GRPO loss. alignment: float [B], `group_alignment_loss`.
             sft: float [B], each row's share of the loss on one demonstration drawn uniformly from the teachers; 0
             where there is none (a skip). rewards: float [B]. group: int [B]. alpha in [0, 1]. sft_weight >= 0.
    Returns: float32 or float64 [B], to be summed over a group and averaged over groups; metrics: easy, hard and mixed
             (shares of rows).
    Edge:    an easy group has exactly zero loss and gradient; alpha 1 is GRPO, 0 is alignment alone.
    Source:  DYPO (arXiv:2604.08926), paper and repository.
    """
    hard, mixed = dypo_states(rewards, group)
    loss = torch.where(hard, sft_weight * upcast(sft), 0.0)
    loss = loss + torch.where(mixed, alpha * upcast(rl) + (1 - alpha) * upcast(alignment), 0.0)
    shares = {"easy": ~hard & ~mixed, "hard": hard, "mixed": mixed}
    return loss, {name: rows.to(loss.dtype).mean() for name, rows in shares.items()}
