"""Distillation on tokens and on whole distributions: KDRL, on-policy distillation, GKD, KL mixing.

S is the student (the policy, with gradient), T the teacher (constant). Forward KL is KL(T || S), which covers modes;
reverse KL is KL(S || T), which seeks one. Losses return ``(per_token [B, T], metrics)``; `aggregation.aggregate` makes
a scalar.

Two independent switches give the four token-level objectives. Who wrote the sequence is the data's business
(`prefix_source`), which direction is the loss's:

===============  ====================================  =================================
prefixes from    KL(T || S)                            KL(S || T)
===============  ====================================  =================================
the teacher      SFT on soft targets                   distillation as offline RL
the student      DAgger-style SFT on its own states    on-policy distillation
===============  ====================================  =================================
"""

import math
import random
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.advantages import discounted_returns
from toolgym.algorithms.kl import KLKind, estimate
from toolgym.algorithms.masking import (
    MAX_LOG_RATIO,
    group_extreme,
    group_index,
    silence,
    silent_mean,
    token_mean,
    valid_count,
)
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import moved, pessimistic, surrogate
from toolgym.algorithms.vocabulary import common_logprobs, logit_surrogate
from toolgym.errors import ConfigError, nearest

MaskMode: TypeAlias = Literal["none", "response", "group"]


@card(family="distillation", certainty="secondary", parts=("kl",))
def distillation_kl(
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    kind: KLKind = "k2",
    old_logprobs: Tensor | None = None,
) -> tuple[Tensor, Metrics]:
    """Reverse KL to the teacher from the student's own sampled tokens.

        R = log T(y_t) - log S(y_t);   k2 = R^2 / 2;   k3 = e^R - R - 1;   l_t = sg[rho_t] k

    On policy the gradient of k2 is that of KL(S || T), of k3 that of KL(T || S). That of k1 = -R does not depend on the
    teacher and is zero in expectation, however plausible its value: it is refused.

    Args:    logprobs: float [B, T], with gradient. teacher_logprobs: float [B, T], of the same tokens, tokenizer and
             temperature 1; -inf (a truncated score) is clamped to a log-ratio of 20. mask: bool [B, T]; leave out
             positions where the two end a turn with different tokens. old_logprobs: of the sampler, for stale data:
             weights by rho.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: teacher_kl (k1), teacher_clamped (share of
             tokens that the teacher gives no chance).
    Raises:  ConfigError: kind k1, or an unknown one.
    Source:  KDRL (arXiv:2506.02208) eq. 21-23, 26-27, as quoted by reimplementations.
    Differs: the weight sg[rho] for stale data is derived.
    """
    if kind == "k1":
        raise ConfigError("k1 as a loss has zero expected gradient, whatever the teacher: use k2, k3+ or opd_advantage")
    with torch.no_grad():
        gap = moved(logprobs, teacher_logprobs, mask).log
        value, slope = estimate(gap, kind)
        assert slope is not None
        if old_logprobs is not None:
            ratio = moved(logprobs, old_logprobs, mask).log.exp_()
            value, slope = value * ratio, slope * ratio
        metrics = _teacher_metrics(-gap, mask)
    return surrogate(logprobs, value, slope), metrics


def _teacher_metrics(reward: Tensor, mask: Tensor) -> Metrics:
    """From ``reward`` = log T - log S [B, T], 0 under the mask."""
    clamped = (reward <= -MAX_LOG_RATIO).count_nonzero().to(reward.dtype)
    return {"teacher_kl": -silent_mean(reward, mask), "teacher_clamped": clamped / valid_count(mask)}


@card(family="distillation", certainty="secondary", parts=("ppo_clip", "distillation_kl"))
def kdrl_loss(
    rl_loss: Tensor,
    logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    kd_weight: Tensor | float = 2e-3,
    kind: KLKind = "k2",
) -> tuple[Tensor, Metrics]:
    """Reinforcement and distillation on the same on-policy tokens.

        L_KDRL = L_GRPO + beta m_KD L_KD,   L_KD from `distillation_kl`

    Args:    rl_loss: float [B, T], any per-token policy loss, GRPO's `ppo_clip` in the paper. logprobs,
             teacher_logprobs, mask: as in `distillation_kl`. kd_weight: beta (`kd_coefficient`), or beta times
             `reward_guided_mask`, [B] or [B, T], not negative.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics of the distillation part.
    Edge:    beta 0 is the policy loss; zero advantages are pure distillation. One denominator for both: a mask lowers
             the weight of distillation. For a denominator of its own, aggregate `distillation_kl` by itself.
    Note:    its additive-advantage form, equal in gradient to k2, is `opd_advantage` added to the advantages.
    Source:  KDRL (arXiv:2506.02208) eq. 8, as quoted by reimplementations; no official code was found.
    """
    distilled, metrics = distillation_kl(logprobs, teacher_logprobs, mask, kind=kind)
    weight = kd_weight.detach() if isinstance(kd_weight, Tensor) else kd_weight
    if isinstance(weight, Tensor) and weight.dim() == 1:
        weight = weight.unsqueeze(1)
    return silence(rl_loss, mask) + weight * distilled, metrics


@card(family="distillation", certainty="secondary")
def kd_coefficient(step: int, *, init: float = 5e-3, minimum: float = 1e-3, delta: float = 5e-5) -> float:
    """Annealed weight of distillation: strong imitation first, reward later.

        beta(step) = max(init - delta step, minimum)

    Args:    step: >= 0, optimiser steps. init, minimum, delta: >= 0. Constant in the paper's default: 2e-3.
    Raises:  ValueError: a negative argument, or minimum above init.
    Note:    coefficients of the additive-advantage form, with unnormalised log-ratios, are far larger (0.2 to 0.002).
    Source:  KDRL (arXiv:2506.02208), as quoted by reimplementations.
    """
    if min(step, minimum, delta) < 0 or minimum > init:
        raise ValueError(f"kd_coefficient got step={step}, init={init}, minimum={minimum}, delta={delta}")
    return max(init - delta * step, minimum)


@card(family="distillation", certainty="secondary")
def reward_guided_mask(rewards: Tensor, group: Tensor, *, mode: MaskMode, threshold: float = 1.0) -> Tensor:
    """Rows to distil on: everywhere, where the student failed, or where its whole group did.

        response: 1[r_i < threshold];   group: 1[max_{j in g(i)} r_j < threshold];   none: 1

    Args:    rewards: float [B]. group: int [B]. threshold: the reward of a success.
    Returns: bool [B].
    Raises:  ConfigError: unknown mode.
    Source:  KDRL (arXiv:2506.02208), as quoted by reimplementations.
    Differs: the threshold, for rewards other than 0 and 1, is derived.
    """
    if mode == "none":
        return torch.ones_like(rewards, dtype=torch.bool)
    if mode == "response":
        return rewards < threshold
    if mode == "group":
        return group_extreme(rewards, group_index(group), largest=True) < threshold
    raise ConfigError(nearest(mode, ("none", "response", "group"), what="reward-guided mask"))


@card(family="distillation", certainty="certain", parts=("discounted_returns",))
def opd_advantage(
    logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor, *, coefficient: float = 1.0, discount: float = 0.0
) -> Tensor:
    """Per-token advantage of on-policy distillation; add it to a task's advantages to have both.

        r_t = log T(y_t) - log S(y_t);   A_t = coefficient sum_{k >= t} discount^(k-t) r_k

    Args:    logprobs: float [B, T], the student's (current or of the sampler, see `opd_loss`). teacher_logprobs: float
             [B, T]. mask: bool [B, T]; masked tokens have no reward and are passed over. discount in [0, 1]: 1 gives
             the exact gradient of the sequence's reverse KL, 0 ignores a token's effect on later states for less
             variance.
    Returns: float32 or float64 [B, T], detached; 0 under the mask. Log-ratios are clamped to +-20.
    Source:  tinker-cookbook distillation; Thinking Machines, On-Policy Distillation (2025).
    """
    reward = moved(logprobs, teacher_logprobs, mask).log.mul_(-coefficient)
    return reward if discount == 0.0 else discounted_returns(reward, mask, gamma=discount)


@card(family="distillation", certainty="certain", parts=("opd_advantage",))
def opd_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    discount: float = 0.0,
    recompute: bool = True,
    clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """On-policy distillation as a policy gradient: reverse KL, one sampled token a position, stale data allowed.

        l_t = -rho_t A_t,   rho_t = S(y_t) / old(y_t),   A_t = `opd_advantage` of S (recompute) or of old (stored)
        clip: l_t = max(-rho_t A_t, -clip(rho_t, 1-clip, 1+clip) A_t)

    For discount 0, recompute and no clip the expected gradient is that of KL(S || T) whatever full-support policy
    sampled. With the stored signal the optimum of stale data is a point mass at argmax T / old, not T.

    Args:    logprobs: float [B, T], with gradient. old_logprobs: float [B, T], of the policy that sampled.
             teacher_logprobs: float [B, T]. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics as `distillation_kl`, of the signal.
    Source:  tinker-cookbook distillation; AsyncOPD (arXiv:2606.24143), official repository, policy_gradient_kl.
    Differs: recompute is the default (on policy the two agree; AsyncOPD recommends it).
    """
    with torch.no_grad():
        reward = opd_advantage(logprobs if recompute else old_logprobs, teacher_logprobs, mask)
        metrics = _teacher_metrics(reward, mask)
        advantages = reward if discount == 0.0 else discounted_returns(reward, mask, gamma=discount)
        ratio = moved(logprobs, old_logprobs, mask).log.exp_()
        if clip is None:  # the slope of the ratio is the ratio; the advantages are 0 under the mask
            value = slope = (ratio * advantages).neg_()
        else:
            value, slope, _ = pessimistic(ratio, ratio.clamp(1 - clip, 1 + clip), advantages)
    return surrogate(logprobs, value, slope), metrics


@card(family="distillation", certainty="certain", parts=("opd_advantage",))
def offline_opd_loss(logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor) -> tuple[Tensor, Metrics]:
    """Lightning OPD: distillation on fixed responses whose teacher scores were stored once.

        l_t = -A_t log S(y_t),   A_t = log T(y_t) - sg[log S(y_t)]

    Its expected gradient is that of 1/2 E_{pi_0} (log S - log T)^2, zero at S = T, and that of `opd_loss` at S = pi_0.

    Args:    logprobs: float [B, T], with gradient. teacher_logprobs: float [B, T], from the cache. mask: bool [B, T].
    Returns: float32 or float64 [B, T], 0 under the mask; metrics.
    Note:    for the clipped surrogate over several inner steps call `opd_loss` with the log-probabilities before the
             first.
    Source:  Lightning OPD (arXiv:2604.13010), official repository.
    """
    with torch.no_grad():
        advantages = opd_advantage(logprobs, teacher_logprobs, mask)
        metrics = _teacher_metrics(advantages, mask)
        slope = advantages.neg_()
        value = silence(logprobs, mask).mul_(slope)
    return surrogate(logprobs, value, slope), metrics


@card(family="distillation", certainty="secondary")
def mixed_kl(
    student_logits: Tensor,
    teacher_logits: Tensor,
    mask: Tensor,
    *,
    reverse_weight: float = 0.25,
    temperature: float = 1.0,
) -> tuple[Tensor, Metrics]:
    """Full-vocabulary mixture of reverse and forward KL; weight 0 and 1 are the pure ones.

        l_t = lambda KL(S || T) + (1 - lambda) KL(T || S)

    Small lambda (forward-heavy) avoids entropy collapse and inflated lengths on long sequences. Of supervised KD
    (dataset or teacher sequences), on-policy KD, ImitKD and SKD this is the loss; they differ in the data.

    Args:    student_logits: float [B, T, V], with gradient. teacher_logits: float [B, T, V']; the common vocabulary
             counts. mask: bool [B, T]. reverse_weight in [0, 1]. temperature > 0 divides both logits.
    Returns: float32 or float64 [B, T], nats, 0 under the mask; metrics: forward_kl and reverse_kl, as far as used.
    Raises:  ValueError: reverse_weight outside [0, 1], temperature <= 0.
    Edge:    a one-hot teacher with weight 0 is cross-entropy. A token that one model rules out has log-probability
             -10,000.
    Source:  Decoupling KL direction and prefix source (arXiv:2605.16826), from notes; identities verified.
    Differs: lambda = 0.25 is ours.
    """
    if not 0 <= reverse_weight <= 1:
        raise ValueError(f"got reverse_weight {reverse_weight}, expected [0, 1]")
    with torch.no_grad():
        log_s, log_t = common_logprobs(student_logits, teacher_logits, mask, temperature=temperature)
        s = log_s.exp()
        gap = log_s.sub_(log_t)
        value, slope, metrics = s.new_zeros(mask.shape), None, dict[str, Tensor]()
        if reverse_weight < 1:  # in the logits, d KL(T || S) = S - T
            t = log_t.exp_()
            forward = -(t * gap).sum(-1)
            value, slope = (1 - reverse_weight) * forward, (s - t).mul_(1 - reverse_weight)
            metrics["forward_kl"] = token_mean(forward, mask)
        if reverse_weight > 0:  # d KL(S || T) = S (log S - log T - KL)
            reverse = (s * gap).sum(-1)
            own = gap.sub_(reverse.unsqueeze(-1)).mul_(s)
            value = value + reverse_weight * reverse
            slope = own if slope is None else slope.add_(own, alpha=reverse_weight)
            metrics["reverse_kl"] = token_mean(reverse, mask)
        assert slope is not None
        if temperature != 1:
            slope.div_(temperature)
    return logit_surrogate(student_logits[..., : gap.shape[-1]], value, slope, mask), metrics


@card(family="distillation", certainty="certain")
def generalized_jsd(
    student_logits: Tensor, teacher_logits: Tensor, mask: Tensor, *, beta: float = 0.5, temperature: float = 1.0
) -> tuple[Tensor, Metrics]:
    """Generalised Jensen-Shannon divergence over the vocabulary, GKD's loss.

        M = beta T + (1 - beta) S;   JSD_beta = beta KL(T || M) + (1 - beta) KL(S || M)   for 0 < beta < 1
        beta = 0: KL(T || S);   beta = 1: KL(S || T)

    The two ends are special cases, not limits: JSD_beta itself goes to 0 there, and JSD_beta / beta to KL(T || S).

    Args:    student_logits: float [B, T, V], with gradient. teacher_logits: float [B, T, V']. mask: bool [B, T]. beta
             in [0, 1]. temperature > 0 divides both logits (GKD trains at 0.9).
    Returns: float32 or float64 [B, T], nats, 0 under the mask, at most ln 2 for beta 0.5; metrics: jsd.
    Raises:  ValueError: beta outside [0, 1], temperature <= 0.
    Source:  GKD (arXiv:2306.13649); TRL GKDTrainer.
    """
    if not 0 <= beta <= 1:
        raise ValueError(f"got beta {beta}, expected [0, 1]")
    if beta in (0, 1):
        loss, metrics = mixed_kl(student_logits, teacher_logits, mask, reverse_weight=beta, temperature=temperature)
        return loss, {"jsd": metrics["reverse_kl" if beta == 1 else "forward_kl"]}
    with torch.no_grad():
        log_s, log_t = common_logprobs(student_logits, teacher_logits, mask, temperature=temperature)
        mixture = torch.logaddexp(log_s + math.log1p(-beta), log_t + math.log(beta))
        s, t = log_s.exp(), log_t.exp()
        student, teacher = log_s.sub_(mixture), log_t.sub_(mixture)
        reverse = (s * student).sum(-1)
        value = beta * (t * teacher).sum(-1) + (1 - beta) * reverse
        # d JSD = (1 - beta) S (log S - log M - KL(S || M)) in the logits: what M adds cancels
        slope = student.sub_(reverse.unsqueeze(-1)).mul_(s).mul_((1 - beta) / temperature)
    loss = logit_surrogate(student_logits[..., : s.shape[-1]], value, slope, mask)
    return loss, {"jsd": silent_mean(loss, mask)}


@card(family="distillation", certainty="certain")
def prefix_source(student_fraction: float, *, rng: random.Random) -> Literal["student", "teacher"]:
    """Who writes the next batch's sequences.

        "student" with probability lambda, else "teacher" (or the dataset)

    Args:    student_fraction: lambda in [0, 1]: GKD's lmbda and ImitKD's mixed ratio are 0.5, on-policy distillation 1,
             supervised 0; "first half supervised, second half on-policy" is a step function of it. rng: seeded by the
             caller.
    Raises:  ValueError: a fraction outside [0, 1].
    Source:  GKD (arXiv:2306.13649); speculative_kd, official repository.
    """
    if not 0 <= student_fraction <= 1:
        raise ValueError(f"got student_fraction {student_fraction}, expected [0, 1]")
    return "student" if rng.random() < student_fraction else "teacher"


@card(family="distillation", certainty="secondary")
class EntropyGate:
    """Length curriculum that grows only while the policy keeps its entropy.

        L_{m+1} if H_m >= h_min, else L_m for good

    Args:    ladder: increasing lengths in tokens. h_min: nats per token, on a held-out set.
    Example: ``EntropyGate((128, 256, 512), h_min=0.3).update(0.9)`` is 256.
    Source:  Decoupling KL direction and prefix source (arXiv:2605.16826), from notes.
    Differs: ladder, h_min and the latch (no climbing after a recovery) are ours; the paper does not disclose them.
    """

    def __init__(self, ladder: tuple[int, ...] = (128, 256, 512, 1024, 2048, 4096), h_min: float = 0.2) -> None:
        if not ladder or list(ladder) != sorted(set(ladder)) or ladder[0] < 1:
            raise ValueError(f"EntropyGate got ladder {ladder}, expected increasing lengths")
        self.ladder, self.h_min = ladder, h_min
        self.stage, self.latched = 0, False

    @property
    def length(self) -> int:
        """The current length, tokens."""
        return self.ladder[self.stage]

    def update(self, entropy: float) -> int:
        """End a stage with this held-out entropy (nats per token; nan latches) and return the length of the next."""
        self.latched = self.latched or not entropy >= self.h_min
        if not self.latched:
            self.stage = min(self.stage + 1, len(self.ladder) - 1)
        return self.length

    def state_dict(self) -> dict[str, int | bool]:
        """What `load_state_dict` needs to go on from here."""
        return {"stage": self.stage, "latched": self.latched}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Go on from a saved state. Raises ValueError: its stage is not on this ladder."""
        if not 0 <= state["stage"] < len(self.ladder):
            raise ValueError(f"EntropyGate got stage {state['stage']} for a ladder of {len(self.ladder)}")
        self.stage, self.latched = int(state["stage"]), bool(state["latched"])
