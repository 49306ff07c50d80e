"""Extrapolating beyond the teacher (G-OPD), and the cliff where a clipped ratio can no longer keep structure alive
(ListOPD).

Structure is a token on which all depends (a brace, a quote). There the policy is reduced to a Bernoulli variable: p is
the teacher's probability of its modal token, b the base's probability of the same token.
"""

import math

import torch
from torch import Tensor

from toolgym.algorithms.masking import log_ratio, silence, upcast
from toolgym.algorithms.registry import card

# Closest that a probability may come to 0 or 1: float32 still tells 1 - 1e-7 from 1.
_EDGE = 1e-7


@card(family="distillation", certainty="secondary", parts=("opd_advantage",))
def extrapolated_advantage(
    logprobs: Tensor, teacher_logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, lam: Tensor | float = 1.25
) -> Tensor:
    """Advantage whose optimum lies beyond the teacher, seen from the base.

        A_t = lam log T - log S - (lam - 1) log B;   optimum S* ∝ B^(1-lam) T^lam

    Args:    logprobs, teacher_logprobs, ref_logprobs: float [B, T] of student, teacher and base (the warm-started
             student). mask: bool [B, T]. lam: a number or float [B, T]; 1 is on-policy distillation, below
             interpolates.
    Returns: float32 or float64 [B, T], detached; 0 under the mask. Both log-ratios are clamped to +-20.
    Source:  G-OPD (arXiv:2602.12125), from two independent notes.
    """
    gap = log_ratio(teacher_logprobs.detach(), logprobs, mask)
    beyond = log_ratio(teacher_logprobs.detach(), ref_logprobs, mask)
    factor = lam.detach() - 1 if isinstance(lam, Tensor) else lam - 1
    return silence(gap + factor * beyond, mask)


def _logit(p: Tensor) -> Tensor:
    p = upcast(p).clamp(_EDGE, 1 - _EDGE)
    return p.log() - (-p).log1p()


@card(family="distillation", certainty="derived")
def bernoulli_fixed_point(p: Tensor, b: Tensor, *, lam: Tensor | float) -> Tensor:
    """Modal probability that extrapolation drives a structural position to.

        logit(q) = lam logit(p) + (1 - lam) logit(b)

    Args:    p: float [...], the teacher's modal probability. b: float [...], the base's of the same token. lam: number
             or float [...].
    Returns: float32 or float64 [...] in [0, 1]; its tail is 1 - q. p and b are clamped to [1e-7, 1 - 1e-7].
    Source:  ListOPD (arXiv:2605.08737), derived from the optimum of `extrapolated_advantage`.
    """
    return (lam * _logit(p) + (1 - lam) * _logit(b)).sigmoid()


@card(family="distillation", certainty="secondary", parts=("bernoulli_fixed_point",))
def cliff_lambda(p: Tensor, b: Tensor, *, c: float = 5.0, max_lambda: float = math.inf) -> Tensor:
    """The largest extrapolation at which a ratio clipped at c can still restore the teacher's tail.

        lam* = [log((1-p)/(c-1+p)) - log((1-b)/b)] / [log((1-p)/p) - log((1-b)/b)]

    It solves tail(lam) = (1-p)/c. With b = 1/2 it is about 1 + ln c / ln(1/(1-p)).

    Args:    p, b: float [...], see `bernoulli_fixed_point`. c: cap on the per-token importance ratio, >= 1 (paper: 5).
    Returns: float32 or float64 [...]; at least 1, at most ``max_lambda``; ``max_lambda`` where p <= b, since
             extrapolation then never shrinks the tail (the formula alone would give a meaningless negative number).
    Raises:  ValueError: c < 1.
    Edge:    c = 1 gives exactly 1. p is clamped to 1 - 1e-7.
    Source:  ListOPD (arXiv:2605.08737) theorem 4.1, as quoted by a reimplementation; derived here independently.
    """
    if not c >= 1:
        raise ValueError(f"cliff_lambda got c={c}, expected at least 1")
    p, b = (upcast(x).clamp(_EDGE, 1 - _EDGE) for x in (p, b))
    odds_b = (-b).log1p() - b.log()
    numerator = (-p).log1p() - (c - 1 + p).log() - odds_b
    denominator = (-p).log1p() - p.log() - odds_b
    sharper = p > b
    ratio = numerator / torch.where(sharper, denominator, -1.0)
    return torch.where(sharper, ratio, math.inf).clamp(max=max_lambda)


@card(family="distillation", certainty="derived", parts=("cliff_lambda",))
def safe_lambda(
    lam: float, p: Tensor, b: Tensor, *, c: float = 5.0, margin: float = 0.05, critical: Tensor | None = None
) -> Tensor:
    """Extrapolation held below the cliff, position by position.

        min(lam, max(lam* - margin, 1)) at critical positions, lam elsewhere

    Args:    lam: wanted. p, b: float [...], see `cliff_lambda`. margin: >= 0. critical: bool [...]
             (`critical_positions`); None is everywhere.
    Returns: float32 or float64 [...], for `extrapolated_advantage`. Never raises lam, and never forces it below 1.
    Source:  derived from ListOPD (arXiv:2605.08737).
    """
    bound = (cliff_lambda(p, b, c=c) - margin).clamp(min=1.0)
    wanted = torch.full_like(bound, lam)
    held = torch.minimum(wanted, bound)
    return held if critical is None else torch.where(critical, held, wanted)


@card(family="distillation", certainty="secondary")
def critical_positions(teacher_logits: Tensor, mask: Tensor, *, top1: float = 0.9, entropy: float = 0.5) -> Tensor:
    """Positions where the teacher is sure: structure rather than content.

        max_v T(v) > top1  or  H(T) < entropy

    Args:    teacher_logits: float [B, T, V]. mask: bool [B, T]. entropy: nats.
    Returns: bool [B, T]; false under the mask.
    Source:  a reimplementation of ListOPD (arXiv:2605.08737).
    """
    logprobs = silence(teacher_logits.detach(), mask.unsqueeze(-1)).log_softmax(-1)
    p = logprobs.exp()
    spread = -torch.where(p > 0, p * logprobs, 0.0).sum(-1)
    return mask & ((p.amax(-1) > top1) | (spread < entropy))
