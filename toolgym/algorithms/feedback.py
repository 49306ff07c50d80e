"""RLTF: learning from text feedback that exists in training only, by self-distillation (SD) and by modelling it (FM).

An episode is a question, a first answer with reward r0, a critique of it, and a second answer with reward r1. The
multi-turn part is ordinary reinforcement learning with `advantages.discounted_returns` over turns (gamma 0.1); what is
here is added to it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from toolgym.algorithms.masking import (
    group_index,
    group_sum,
    per_token,
    silent_mean,
    upcast,
    valid_count,
)
from toolgym.algorithms.policy_losses import Metrics
from toolgym.algorithms.registry import card
from toolgym.algorithms.sft import sft_loss
from toolgym.algorithms.surrogate import moved, surrogate


@card(family="feedback", certainty="certain")
def sd_advantages(first_rewards: Tensor, second_rewards: Tensor, second: Tensor, group: Tensor) -> Tensor:
    """Advantage of a second answer over what the policy reaches unaided.

        A_i = r1_i - mean_{j in g(i)} r0_j

    Against the mean of second answers the signal would vanish as soon as the feedback makes all of them right.

    Args:    first_rewards: float [B], r0 of every episode of the group. second_rewards: float [B], r1, read only where
             ``second``. second: bool [B], the episode had a second answer. group: int [B].
    Returns: float32 or float64 [B], detached; 0 for episodes without a second answer (they still count in the
             baseline).
    Source:  RLTF (arXiv:2602.02482), official repository (lili-chen/rltf).
    """
    r0, index = upcast(first_rewards.detach()), group_index(group)
    baseline = group_sum(r0, index) / group_sum(torch.ones_like(r0), index)
    return torch.where(second, upcast(second_rewards.detach()) - baseline, 0.0)


@card(family="feedback", certainty="certain")
def rltf_sd_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    coefficient: float = 0.1,
    floor: float = -5.0,
) -> tuple[Tensor, Metrics]:
    """Teach the single-turn policy the second answer, given the first prompt alone.

        l_t = -coefficient m_t A rho_t,   rho_t = pi(y1_t | x0) / sg[pi_start(y1_t | x0)],   m_t = 1[log pi_start >=
        floor]

    At the first step rho is 1 and the gradient that of cross-entropy weighted by the advantage. Nothing corrects for y1
    having been drawn after the critique; the weight of `corrections.truncated_is` with the sampler's log-probabilities
    would, at high variance.

    Args:    logprobs: float [B, T], of the second answers under the first prompt, with gradient. old_logprobs: float
             [B, T], the same before the update. advantages: float [B], `sd_advantages`. mask: bool [B, T]; rows without
             a second answer are all false. floor: nats; tokens that the single-turn policy finds absurd are left out.
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: ratio_mean, dropped (share of tokens below the
             floor).
    Source:  RLTF (arXiv:2602.02482), official repository.
    """
    sane = mask & (old_logprobs >= floor)
    with torch.no_grad():
        step = moved(logprobs, old_logprobs, sane)
        ratio = step.log.exp_().mul_(step.ones)
        metrics = {
            "ratio_mean": silent_mean(ratio, sane),
            "dropped": (mask.count_nonzero() - sane.count_nonzero()).to(ratio.dtype) / valid_count(mask),
        }
        value = ratio.mul_(-coefficient * per_token(advantages, mask))  # its slope too: that of the ratio is the ratio
    return surrogate(logprobs, value, value), metrics


@card(family="feedback", certainty="certain")
def sd_coefficient(step: int, total: int, *, start: float = 0.0, end: float = 0.1) -> float:
    """Linear schedule of the self-distillation's weight.

        start + (end - start) min(step / total, 1)

    Args:    step: >= 0. total: >= 1, optimiser steps. The puzzles use a constant 0.1, the mathematics runs 0 to 0.1.
    Raises:  ValueError: a step below 0 or a total below 1.
    Source:  RLTF (arXiv:2602.02482), official repository.
    Differs: that the schedule is linear is assumed.
    """
    if step < 0 or total < 1:
        raise ValueError(f"sd_coefficient got step={step}, total={total}; expected step >= 0, total >= 1")
    return start + (end - start) * min(step / total, 1.0)


@card(family="feedback", certainty="certain", parts=("sft_loss",))
def feedback_model_loss(logprobs: Tensor, mask: Tensor, *, coefficient: float = 0.1) -> tuple[Tensor, Metrics]:
    """Predict the critique from question and attempt, beside the multi-turn loss.

        l_t = -lambda log pi(c_t | x0, y0, c_<t)

    Args:    logprobs: float [B, T], with gradient. mask: bool [B, T], true on critique tokens (`feedback_example`).
    Returns: float32 or float64 [B, T], 0 under the mask; metrics: nll (without the coefficient).
    Source:  RLTF (arXiv:2602.02482), official repository.
    """
    loss, metrics = sft_loss(logprobs, mask)
    return coefficient * loss, metrics


def feedback_example(prompt_ids: Sequence[int], critique_ids: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Token ids int64 [T] of prompt and critique, and the bool mask [T] that is true on the critique alone.

    The prompt is `critique_prompt` rendered; the critique's ids end with the end of its turn.
    """
    mask = torch.zeros(len(prompt_ids) + len(critique_ids), dtype=torch.bool)
    mask[len(prompt_ids) :] = True
    return torch.tensor([*prompt_ids, *critique_ids], dtype=torch.int64), mask


def second_turn_prompt(attempt: str, critique: str) -> tuple[str, str]:
    """What follows the question in the second turn: the attempt (assistant) and the request to try again (user).

    The first prompt, and every prompt at test time, is the question alone.
    """
    return attempt, f"Feedback on your answer:\n\n{critique}\n\nUse it to answer the question again, in full."


def critique_prompt(question: str, attempt: str) -> str:
    """The prompt of feedback modelling: worded unlike any question, so that answering is not overwritten."""
    return f"Critique this attempt.\n\nQuestion:\n{question}\n\nAttempt:\n{attempt}\n\nCritique:"
