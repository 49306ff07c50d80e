"""AsyncOPD: distillation from stale rollouts and finite teacher caches.

A cache holds, for each position, K tokens with the teacher's log-probabilities: its top-k (`sparse_kl`), draws from the
student that rolled out (`multi_sample_opd_loss`), or draws from the teacher (`multi_sample_forward_kl`). One sampled
token a position is `distillation.opd_loss`.
"""

import torch
from torch import Tensor

from toolgym.algorithms.distillation import opd_loss
from toolgym.algorithms.masking import silence, silent_mean
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card
from toolgym.algorithms.vocabulary import gather_logprobs


def _valid(ids: Tensor, mask: Tensor) -> Tensor:
    return mask.unsqueeze(-1) & (ids >= 0)


def _tail(probabilities: Tensor) -> Tensor:
    """Log of the mass outside, [B, T]; rounding may make it 0 or less."""
    floor = torch.finfo(probabilities.dtype).eps
    return (1 - probabilities.sum(-1)).clamp(min=floor).log()


@card(family="distillation", certainty="certain")
def sparse_kl(
    student_logits: Tensor,
    ids: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    reverse_weight: float = 0.0,
    tail_bucket: bool = False,
    clip: float | None = None,
) -> tuple[Tensor, Metrics]:
    """KL over a finite support: forward (weight 0), reverse (1) or the skewed mixture between.

        l_t = a sum_{v in K} S (log S - log T) + (1 - a) sum_{v in K} T (log T - log S)
        tail_bucket: one more symbol with the masses 1 - sum_K S and 1 - sum_K T

    Forward over the teacher's top-k is robust to stale data, because the teacher weighs it. Reverse is biased: it
    ignores the tail and may be negative. With the bucket it is a true KL of a coarser alphabet, between 0 and the full
    KL.

    Args:    student_logits: float [B, T, V], with gradient. ids: int64 [B, T, K], distinct within a position, -1 pads.
             teacher_logprobs: float [B, T, K], of these ids, finite. mask: bool [B, T]. reverse_weight: a in [0, 1]
             (skewed: 0.5). clip: bound on each forward summand from above, nats, or None.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: teacher_mass, student_mass (means of the sums over
             K).
    Raises:  ValueError: reverse_weight outside [0, 1].
    Edge:    K = V gives the full divergences of `mixed_kl`.
    Source:  AsyncOPD (arXiv:2606.24143), official repository.
    Differs: the tail bucket is derived.
    """
    if not 0 <= reverse_weight <= 1:
        raise ValueError(f"got reverse_weight {reverse_weight}, expected [0, 1]")
    valid = _valid(ids, mask)
    log_s = gather_logprobs(student_logits, ids, mask)
    log_t = silence(teacher_logprobs.detach(), valid)
    s, p = silence(log_s.exp(), valid), silence(log_t.exp(), valid)
    difference = log_t - log_s
    forward, reverse = p * difference, -(s * difference)
    forward = (forward if clip is None else forward.clamp(max=clip)).sum(-1)
    reverse = reverse.sum(-1)
    if tail_bucket:
        tail_s, tail_t = _tail(s), _tail(p)
        forward = forward + tail_t.exp() * (tail_t - tail_s)
        reverse = reverse + tail_s.exp() * (tail_s - tail_t)
    loss = silence(reverse_weight * reverse + (1 - reverse_weight) * forward, mask)
    return loss, {"teacher_mass": silent_mean(p.sum(-1), mask), "student_mass": silent_mean(s.sum(-1), mask)}


def _sample_mask(mask: Tensor, samples: Tensor | None, n: int) -> Tensor:
    valid = mask.unsqueeze(-1).expand(*mask.shape, n)
    return valid if samples is None else valid & samples


def _sample_mean(x: Tensor, valid: Tensor) -> Tensor:
    """Mean over the last dimension of [B, T, N] where valid, [B, T]; 0 where nothing is."""
    return silence(x, valid).sum(-1) / valid.sum(-1).clamp(min=1)


@card(family="distillation", certainty="certain", parts=("opd_loss",))
def multi_sample_opd_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    teacher_logprobs: Tensor,
    mask: Tensor,
    *,
    samples: Tensor | None = None,
    recompute: bool = True,
    clip: float | None = 0.2,
) -> tuple[Tensor, Metrics]:
    """`opd_loss` with N tokens a position, drawn from the policy that rolled out: variance falls as 1/N.

        l_t = (1/N) sum_n -rho_tn A_tn,   A_tn = log T(v_tn) - sg[log S(v_tn)]

    Args:    logprobs: float [B, T, N], the student's of the cached tokens (`gather_logprobs`), with gradient.
             old_logprobs: float [B, T, N], of the policy that drew them. teacher_logprobs: float [B, T, N]. mask: bool
             [B, T]. samples: bool [B, T, N], false on padding (ids >= 0). The same token may have been drawn twice.
             recompute, clip: see `opd_loss`.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics as `opd_loss`.
    Edge:    N = 1 is `opd_loss`; a position without samples gives 0.
    Source:  AsyncOPD (arXiv:2606.24143), official repository, multi_sample (N = 16).
    """
    rows, n = mask.shape[0], logprobs.shape[-1]
    valid = _sample_mask(mask, samples, n)
    flat = [x.reshape(rows, -1) for x in (logprobs, old_logprobs, teacher_logprobs)]
    loss, metrics = opd_loss(flat[0], flat[1], flat[2], valid.reshape(rows, -1), recompute=recompute, clip=clip)
    return _sample_mean(loss.reshape(*mask.shape, n), valid), metrics


@card(family="distillation", certainty="certain")
def multi_sample_forward_kl(
    logprobs: Tensor, teacher_logprobs: Tensor, mask: Tensor, *, samples: Tensor | None = None
) -> tuple[Tensor, Metrics]:
    """Forward KL from N tokens a position drawn from the teacher.

        l_t = (1/N) sum_n log T(v_tn) - log S(v_tn),   v_tn ~ T

    Args:    logprobs: float [B, T, N], the student's, with gradient. teacher_logprobs: float [B, T, N]. mask: bool [B,
             T]. samples: bool [B, T, N], false on padding.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: forward_kl.
    Note:    the gradient is that of cross-entropy on the drawn tokens; the teacher's part is only the level.
    Source:  AsyncOPD (arXiv:2606.24143), official repository, multi_sample_forward.
    """
    valid = _sample_mask(mask, samples, logprobs.shape[-1])
    difference = silence(teacher_logprobs.detach(), valid) - silence(logprobs, valid)
    loss = _sample_mean(difference, valid)
    return loss, {"forward_kl": silent_mean(loss, mask)}
