"""Preferences: DPO and its kin, reward models, BPO's behaviour reference, delta learning's pairs.

``h`` is a sequence's log-ratio ``log pi(y|x) - log ref(y|x)`` summed over its tokens. Losses on pairs take [B] tensors,
chosen (w) and rejected (l), and return ``(per_pair [B], metrics)``.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from torch import Tensor
from torch.nn.functional import logsigmoid

from toolgym.algorithms.masking import row_mean, silence, upcast
from toolgym.algorithms.merging import average
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

Divergence: TypeAlias = Literal["reverse_kl", "forward_kl", "js", "alpha"]
DIVERGENCES: tuple[Divergence, ...] = ("reverse_kl", "forward_kl", "js", "alpha")


@card(family="preference", certainty="certain")
def sequence_logprobs(logprobs: Tensor, mask: Tensor, *, length_normalize: bool = False) -> Tensor:
    """Sequence log-probabilities from token log-probabilities.

        sum_t m_t log pi(y_t), or its mean over the valid tokens (length-normalised DPO, TRL's IPO)

    Args:    logprobs: float [B, T], with gradient. mask: bool [B, T], response tokens.
    Returns: float32 or float64 [B]; 0 for a row without tokens.
    Source:  DPO (arXiv:2305.18290); length-normalised DPO of Tulu 3 (arXiv:2411.15124).
    """
    return row_mean(logprobs, mask) if length_normalize else silence(logprobs, mask).sum(1)


def _score(h: Tensor, divergence: Divergence, alpha: float) -> Tensor:
    if divergence == "reverse_kl":
        return h
    if divergence == "forward_kl":
        return -(-h).exp()
    if divergence == "js":
        return logsigmoid(h)
    if divergence == "alpha":
        return ((alpha - 1) * h).exp() / (alpha - 1)
    raise ConfigError(nearest(divergence, DIVERGENCES, what="divergence"))


def _ratios(chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor) -> tuple[Tensor, Tensor]:
    return upcast(chosen) - ref_chosen.detach(), upcast(rejected) - ref_rejected.detach()


def _pair_metrics(h_w: Tensor, h_l: Tensor, beta: float) -> Metrics:
    h_w, h_l = h_w.detach(), h_l.detach()
    return {
        "reward_chosen": beta * h_w.mean(),
        "reward_rejected": beta * h_l.mean(),
        "accuracy": (h_w > h_l).to(h_w.dtype).mean(),
    }


@card(family="preference", certainty="certain")
def dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    smoothing: float = 0.0,
    robust: bool = False,
) -> tuple[Tensor, Metrics]:
    """Direct preference optimisation, with label smoothing or its unbiased ("robust") form.

        D = h_w - h_l
        -(1-e) log s(beta D) - e log s(-beta D);   robust: [-(1-e) log s(beta D) + e log s(-beta D)] / (1-2e)

    Its gradient is -beta s(-beta D) (grad log pi_w - grad log pi_l) for e = 0. The minimiser has pi ∝ ref exp(r /
    beta).

    Args:    chosen, rejected: float [B], the policy's `sequence_logprobs`, with gradient (length-normalised for
             length-normalised DPO, together with the reference's). ref_chosen, ref_rejected: float [B], of the
             reference, or of the policy that generated the pair (BPO). beta > 0. smoothing: e in [0, 1/2), the rate of
             flipped labels.
    Returns: float32 or float64 [B], mean it over pairs; metrics: reward_chosen, reward_rejected (beta h), accuracy.
    Raises:  ValueError: beta <= 0 or smoothing outside [0, 1/2).
    Edge:    pi = ref gives ln 2; finite for any D.
    Source:  DPO (arXiv:2305.18290) eq. 7; robust DPO (arXiv:2403.00409); TRL.
    """
    if beta <= 0 or not 0 <= smoothing < 0.5:
        raise ValueError(f"dpo_loss got beta={beta}, smoothing={smoothing}; expected beta > 0, smoothing in [0, 1/2)")
    h_w, h_l = _ratios(chosen, rejected, ref_chosen, ref_rejected)
    scaled = beta * (h_w - h_l)
    right, wrong = -logsigmoid(scaled), -logsigmoid(-scaled)
    loss = (1 - smoothing) * right + (-smoothing if robust else smoothing) * wrong
    return loss / (1 - 2 * smoothing) if robust else loss, _pair_metrics(h_w, h_l, beta)


@card(family="preference", certainty="certain")
def f_dpo_loss(
    chosen: Tensor,
    rejected: Tensor,
    ref_chosen: Tensor,
    ref_rejected: Tensor,
    *,
    beta: float = 0.1,
    divergence: Divergence = "js",
    alpha: float = 0.5,
) -> tuple[Tensor, Metrics]:
    """DPO under another divergence from the reference.

        -log s(beta (g(h_w) - g(h_l)))
        g: reverse_kl h (DPO);  forward_kl -e^-h;  js log s(h);  alpha e^((a-1) h) / (a-1)

    Args:    as `dpo_loss`. alpha: a != 1.
    Returns: float32 or float64 [B]; metrics of the scores' rewards.
    Raises:  ConfigError: unknown divergence. ValueError: alpha = 1 (its limit is reverse_kl), beta <= 0.
    Source:  f-DPO (arXiv:2309.16240); TRL f_divergence_type.
    """
    if beta <= 0 or alpha == 1:
        raise ValueError(f"f_dpo_loss got beta={beta}, alpha={alpha}; expected beta > 0, alpha other than 1")
    h_w, h_l = _ratios(chosen, rejected, ref_chosen, ref_rejected)
    g_w, g_l = _score(h_w, divergence, alpha), _score(h_l, divergence, alpha)
    return -logsigmoid(beta * (g_w - g_l)), _pair_metrics(g_w, g_l, beta)


@card(family="preference", certainty="certain")
def ipo_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1
) -> tuple[Tensor, Metrics]:
    """Identity preference optimisation: regress the margin to a constant instead of driving it to infinity.

        (D - 1 / (2 beta))^2

    Args:    as `dpo_loss`: sequence sums in the paper; TRL takes means over tokens (``length_normalize``).
    Returns: float32 or float64 [B], least at D = 1 / (2 beta); metrics as `dpo_loss`.
    Raises:  ValueError: beta <= 0.
    Source:  IPO (arXiv:2310.12036) eq. 17; TRL.
    """
    if beta <= 0:
        raise ValueError(f"ipo_loss got beta={beta}, expected > 0")
    h_w, h_l = _ratios(chosen, rejected, ref_chosen, ref_rejected)
    return (h_w - h_l - 1 / (2 * beta)).square(), _pair_metrics(h_w, h_l, beta)


@card(family="preference", certainty="certain")
def slic_loss(
    chosen: Tensor, rejected: Tensor, ref_chosen: Tensor, ref_rejected: Tensor, *, beta: float = 0.1
) -> tuple[Tensor, Metrics]:
    """SLiC's hinge on the margin: no gradient once it is wide enough.

        max(0, 1 - beta D)

    Args:    as `dpo_loss`.
    Returns: float32 or float64 [B]; metrics as `dpo_loss`.
    Raises:  ValueError: beta <= 0.
    Source:  SLiC-HF (arXiv:2305.10425); TRL's "hinge".
    """
    if beta <= 0:
        raise ValueError(f"slic_loss got beta={beta}, expected > 0")
    h_w, h_l = _ratios(chosen, rejected, ref_chosen, ref_rejected)
    return (1 - beta * (h_w - h_l)).clamp(min=0), _pair_metrics(h_w, h_l, beta)


@card(family="preference", certainty="certain")
def bradley_terry_loss(
    chosen: Tensor, rejected: Tensor, *, margin: Tensor | float = 0.0, centering: float = 0.0
) -> tuple[Tensor, Metrics]:
    """Pairwise loss of a scalar reward model.

        -log s(r_w - r_l - margin) + c (r_w + r_l)^2

    Args:    chosen, rejected: float [B], the model's rewards, with gradient. margin: number or float [B], by how much
             the chosen one was preferred. centering: c >= 0, keeps rewards around 0 (TRL: 0.01).
    Returns: float32 or float64 [B]; metrics: accuracy, reward_margin.
    Source:  Bradley and Terry (1952); Llama 2 (arXiv:2307.09288) margin; TRL RewardTrainer.
    """
    w, x = upcast(chosen), upcast(rejected)
    loss = -logsigmoid(w - x - (margin.detach() if isinstance(margin, Tensor) else margin))
    if centering:
        loss = loss + centering * (w + x).square()
    gap = (w - x).detach()
    return loss, {"accuracy": (gap > 0).to(gap.dtype).mean(), "reward_margin": gap.mean()}


def dpo_loss_indexed(
    logprobs: Tensor, ref_logprobs: Tensor, chosen: Tensor, rejected: Tensor, beta: float = 0.1
) -> tuple[Tensor, Tensor]:
    """`dpo_loss` for pairs given as indices into a batch: per-pair losses [P], and detached rewards beta h [B].

    Args:    logprobs, ref_logprobs: float [B], sequence sums. chosen, rejected: int64 [P], indices of rows.
    """
    losses, _ = dpo_loss(logprobs[chosen], logprobs[rejected], ref_logprobs[chosen], ref_logprobs[rejected], beta=beta)
    return losses, beta * (upcast(logprobs) - upcast(ref_logprobs)).detach()


State: TypeAlias = Mapping[str, Tensor]


@card(family="preference", certainty="certain", parts=("average",))
def behaviour_average(states: Sequence[State], *, weights: Sequence[float] | None = None) -> dict[str, Tensor]:
    """BPO's behaviour policy: the average of an ensemble's adapters, factor by factor.

        theta_beta = sum_e w_e theta_e / sum_e w_e        # of A and of B, each

    Args:    states: adapter state dicts of one shape (8 in the paper). weights: one each, None is equal.
    Returns: state dict of the average, copies.
    Raises:  ConfigError: states that differ in keys or shapes.
    Note:    averaging the factors A and B is not averaging the updates B A (`merging.combine_lora`).
    Source:  BPO (arXiv:2406.12168), official repository.
    """
    return average(states, weights=weights)


@card(family="preference", certainty="certain")
class BehaviorReference:
    """BPO's reference: the policy that generated the current phase's pairs, refreshed at each phase boundary.

        ref <- copy(theta) at step 0, phase_length, 2 phase_length, ...

    Refreshed at every step the regulariser would be void; never (one phase) it is offline DPO.

    Args:    phase_length: optimiser steps, >= 1.
    Example: ``BehaviorReference(100).maybe_refresh(step, policy.state_dict())`` is True at steps 0, 100, 200, ...
    Source:  BPO (arXiv:2406.12168), official repository.
    """

    def __init__(self, phase_length: int) -> None:
        if phase_length < 1:
            raise ValueError(f"BehaviorReference got phase_length {phase_length}, expected >= 1")
        self.phase_length = phase_length
        self.phase = -1
        self.state: dict[str, Tensor] = {}

    def maybe_refresh(self, step: int, policy: State) -> bool:
        """Copy the policy if a new phase has begun by this step; whether it has."""
        phase = step // self.phase_length
        if phase == self.phase:
            return False
        if phase < self.phase:
            raise ValueError(f"step {step} is in phase {phase}, before the reference's phase {self.phase}")
        self.state = {name: tensor.detach().clone() for name, tensor in policy.items()}
        self.phase = phase
        return True


def preference_pair(scores: Sequence[float | None]) -> tuple[int, int] | None:
    """Indices (chosen, rejected) of the best and the worst scored candidate; None on a tie or with fewer than two
    scores.

    A None score (an unreadable verdict) is left out. First candidates win ties among the best and among the worst.
    """
    known = [i for i, score in enumerate(scores) if score is not None]
    if len(known) < 2:
        return None
    values = {i: score for i, score in enumerate(scores) if score is not None}
    best, worst = max(known, key=values.__getitem__), min(known, key=values.__getitem__)
    return None if values[best] == values[worst] else (best, worst)


@dataclass(frozen=True, slots=True, kw_only=True)
class DeltaPairs:
    """Pairs of delta learning, (chosen, rejected), the number dropped, and the ratio of their mean lengths.

    ``DeltaPairs(pairs=(("stronger text", "weaker text"),), dropped=3, length_ratio=1.2)``.
    """

    pairs: tuple[tuple[str, str], ...]
    dropped: int
    length_ratio: float


def delta_pairs(stronger: Sequence[str], weaker: Sequence[str]) -> DeltaPairs:
    """Delta learning's data: the stronger of two weak models is always chosen, nobody judges.

    Identical texts are dropped. ``length_ratio`` is mean chosen over mean rejected length in characters (nan without
    pairs); train with length-normalised DPO. The chosen texts may all be worse than the policy: it learns from the
    difference.

    Raises:  ConfigError: another number of texts.
    Source:  Delta learning (arXiv:2507.06187), official repository.
    """
    if len(stronger) != len(weaker):
        raise ConfigError(f"got {len(stronger)} stronger and {len(weaker)} weaker texts, expected one each per prompt")
    pairs = tuple((a, b) for a, b in zip(stronger, weaker, strict=True) if a != b)
    chosen, rejected = (sum(len(pair[i]) for pair in pairs) for i in (0, 1))
    return DeltaPairs(
        pairs=pairs, dropped=len(stronger) - len(pairs), length_ratio=chosen / rejected if rejected else math.nan
    )
