"""Divergence from a reference, estimated on sampled tokens: which estimator, where it stands, what its gradient is.

For tokens sampled from the policy, in expectation, with d = log pi - log pi_ref:

=====  ===================  ==========================  =====================================
kind   value                its expectation             gradient when used as a loss
=====  ===================  ==========================  =====================================
k1     d                    KL(pi || ref)               0: pure noise
k2     d^2 / 2              not KL (second order only)  grad KL(pi || ref)
k3     exp(-d) + d - 1      KL(pi || ref), each >= 0    grad KL(ref || pi): the other direction
=====  ===================  ==========================  =====================================

A "+" after the kind keeps its value and takes k2's gradient ("k3+").
"""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.advantages import last_token
from toolgym.algorithms.registry import card
from toolgym.algorithms.surrogate import moved, surrogate
from toolgym.errors import ConfigError, nearest

KLKind: TypeAlias = Literal["k1", "k2", "k3", "k1+", "k3+"]
KINDS: tuple[KLKind, ...] = ("k1", "k2", "k3", "k1+", "k3+")


@card(family="kl", certainty="certain")
def kl(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor | None = None, *, kind: KLKind = "k3") -> Tensor:
    """Per-token estimate of KL(pi || ref) from tokens sampled by pi; as a loss, prefer "k2" or "k3+".

        d = clamp(log pi - log pi_ref, -20, 20)
        k1 = d;   k2 = d^2 / 2;   k3 = exp(-d) + d - 1;   "k+" = sg[k] + k2 - sg[k2]

    Args:    logprobs, ref_logprobs: float [B, T]; the latter is detached. mask: bool [B, T], all true by default.
    Returns: float32 or float64 [B, T]; 0 under the mask.
    Raises:  ConfigError: unknown kind.
    Source:  Schulman, Approximating KL Divergence (2020); verl kl_penalty.
    Differs: the clamp bounds the gradient and does not silence it, and k3 is not clamped to 10, as verl does: the
             policy is held where it has strayed furthest.
    """
    with torch.no_grad():
        step = moved(logprobs, ref_logprobs, _everywhere(logprobs) if mask is None else mask)
        value, slope = estimate(step.log, kind)
        slope = step.ones if slope is None else slope
    return surrogate(logprobs, value, slope)


def estimate(d: Tensor, kind: KLKind) -> tuple[Tensor, Tensor | None]:
    """Value and slope in d of the estimator of that kind at log-ratios d, 0 at d = 0; None is the slope 1.

    Raises:  ConfigError: unknown kind.
    """
    if kind == "k1":
        return d, None
    if kind == "k1+":
        return d, d
    if kind == "k2":
        return (0.5 * d).mul_(d), d
    if kind not in KINDS:
        raise ConfigError(nearest(kind, KINDS, what="KL estimator"))
    inverse = (-d).exp_()
    value = (inverse + d).sub_(1)
    return value, d if kind == "k3+" else inverse.neg_().add_(1)


def _everywhere(logprobs: Tensor) -> Tensor:
    return torch.ones_like(logprobs, dtype=torch.bool)


@card(family="kl", certainty="certain", parts=("kl",))
def unbiased_kl(
    logprobs: Tensor,
    ref_logprobs: Tensor,
    sampler_logprobs: Tensor,
    mask: Tensor | None = None,
    *,
    kind: KLKind = "k3",
) -> Tensor:
    """KL estimate on tokens of another policy mu, weighted by the ratio; value and gradient are those of KL(pi || ref).

        (pi / mu) k_t          # the ratio carries its gradient: grad E_mu[(pi/mu) k3] = grad KL(pi || ref)

    Args:    logprobs, ref_logprobs, sampler_logprobs: float [B, T]; only the first carries a gradient. mask: bool
             [B, T].
    Returns: float32 or float64 [B, T]; 0 under the mask.
    Edge:    mu = pi gives k_t with the correct gradient, also for k1 and k3.
    Source:  DeepSeek-V3.2 (arXiv:2512.02556); TRL use_bias_correction_kl.
    """
    with torch.no_grad():
        mask = _everywhere(logprobs) if mask is None else mask
        step = moved(logprobs, ref_logprobs, mask)
        value, slope = estimate(step.log, kind)
        ratio = moved(logprobs, sampler_logprobs, mask).log.exp_()
        # d/dx (rho k) = rho (k + k'), x = log pi: the ratio moves with the policy too. Under the mask k is 0.
        slope = (value + (step.ones if slope is None else slope)).mul_(ratio)
        value = value * ratio
    return surrogate(logprobs, value, slope)


@card(family="kl", certainty="certain", parts=("kl",))
def kl_in_reward(
    rewards: Tensor, logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, beta: float = 0.001
) -> Tensor:
    """Token rewards with the KL penalty inside them: the policy gradient then yields the exact gradient of the KL.

        r_t = -beta k1_t (+ r at the last valid token)

    Args:    rewards: float [B]. logprobs, ref_logprobs: float [B, T]. mask: bool [B, T].
    Returns: float32 or float64 [B, T], detached; 0 under the mask.
    Source:  InstructGPT (arXiv:2203.02155); verl apply_kl_penalty.
    """
    penalty = kl(logprobs.detach(), ref_logprobs, mask, kind="k1")
    return last_token(rewards.detach(), mask) - beta * penalty
