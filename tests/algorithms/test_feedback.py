"""RLTF: baselines, the self-distillation loss, feedback modelling and the prompts."""

import math

import pytest
import torch

from toolgym.algorithms.advantages import discounted_returns, group_advantage
from toolgym.algorithms.corrections import truncated_is
from toolgym.algorithms.feedback import (
    critique_prompt,
    feedback_example,
    feedback_model_loss,
    rltf_sd_loss,
    sd_advantages,
    sd_coefficient,
    second_turn_prompt,
)
from toolgym.algorithms.sft import sft_loss

DOUBLE = torch.float64
GROUP = torch.zeros(4, dtype=torch.int64)
ALL = torch.ones(4, dtype=torch.bool)


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


R0, R1 = t(0.0, 1.0, 0.0, 0.0), t(1.0, 1.0, 0.0, 1.0)


def test_sd_advantages_worked_values():
    assert sd_advantages(R0, R1, ALL, GROUP).tolist() == [0.75, 0.75, -0.25, 0.75]
    # the baseline that RLTF warns of: the mean of the second answers
    assert group_advantage(R1, GROUP, scale="none").tolist() == [0.25, 0.25, -0.75, 0.25]


def test_sd_advantages_keep_their_signal_when_feedback_makes_all_right():
    ones = torch.ones(4, dtype=DOUBLE)
    assert sd_advantages(0 * ones, ones, ALL, GROUP).tolist() == [1.0] * 4
    assert group_advantage(ones, GROUP, scale="none").tolist() == [0.0] * 4
    assert sd_advantages(R0, R0, ALL, GROUP).mean().item() == pytest.approx(0.0, abs=1e-12)


def test_sd_advantages_count_single_turn_episodes_in_the_baseline_only():
    second = torch.tensor([True, False, True, True])
    r1 = t(1.0, math.nan, 0.0, 1.0)
    assert sd_advantages(R0, r1, second, GROUP).tolist() == [0.75, 0.0, -0.25, 0.75]


def test_sd_advantages_stay_within_groups():
    group = torch.tensor([3, 3, 1, 1])
    assert sd_advantages(R0, R1, ALL, group).tolist() == [0.5, 0.5, 0.0, 1.0]


def test_multi_turn_returns_worked_values():
    returns = discounted_returns(torch.stack([R0, R1], 1), torch.ones(4, 2, dtype=torch.bool), gamma=0.1)
    assert returns[:, 0].tolist() == pytest.approx([0.1, 1.1, 0.0, 0.1], abs=1e-12)


def test_rltf_sd_loss_starts_as_weighted_cross_entropy():
    logprobs = t([-1.0, -2.0], [-0.5, -3.0]).requires_grad_()
    mask = torch.tensor([[True, True], [True, False]])
    advantages = t(0.75, -0.25)
    loss, metrics = rltf_sd_loss(logprobs, logprobs.detach(), advantages, mask)
    weighted = 0.1 * advantages.unsqueeze(1) * sft_loss(logprobs, mask)[0]
    got, expected = (torch.autograd.grad(x.sum(), logprobs, retain_graph=True)[0] for x in (loss, weighted))
    torch.testing.assert_close(got, expected)
    assert loss.tolist() == [pytest.approx([-0.075, -0.075]), pytest.approx([0.025, 0.0])]
    assert metrics["ratio_mean"].item() == 1.0
    assert metrics["dropped"].item() == 0.0


def test_rltf_sd_loss_drops_and_counts_absurd_tokens():
    logprobs = t([-1.0, -5.5, -5.0]).requires_grad_()
    loss, metrics = rltf_sd_loss(logprobs, logprobs.detach(), t(1.0), torch.ones(1, 3, dtype=torch.bool))
    assert (loss != 0).tolist() == [[True, False, True]]
    assert torch.autograd.grad(loss.sum(), logprobs)[0].tolist() == [[-0.1, 0.0, -0.1]]
    assert metrics["dropped"].item() == pytest.approx(1 / 3)
    everything, _ = rltf_sd_loss(
        logprobs, logprobs.detach(), t(1.0), torch.ones(1, 3, dtype=torch.bool), floor=-math.inf
    )
    assert (everything != 0).all()


def test_rltf_sd_loss_scales_with_its_ratio_and_coefficient():
    start = t([-1.0])
    loss, metrics = rltf_sd_loss(
        start + math.log(1.5), start, t(2.0), torch.ones(1, 1, dtype=torch.bool), coefficient=0.5
    )
    assert loss.item() == pytest.approx(-0.5 * 2.0 * 1.5, abs=1e-12)
    assert metrics["ratio_mean"].item() == pytest.approx(1.5)


def test_rltf_sd_loss_with_the_samplers_correction_is_unbiased():
    """Second answers drawn under the critique (mu), weighted by pi/mu: the exact policy gradient under x0."""
    pi, mu, reward = t(0.7, 0.3), t(0.2, 0.8), t(1.0, 0.0)
    logits = pi.log().requires_grad_()
    logprobs = logits.log_softmax(0).unsqueeze(1)
    mask = torch.ones(2, 1, dtype=torch.bool)
    weight, _, _ = truncated_is(logprobs.detach(), mu.log().unsqueeze(1), mask, cap=100.0)
    loss = weight * rltf_sd_loss(logprobs, logprobs.detach(), reward, mask, coefficient=1.0)[0]
    (grad,) = torch.autograd.grad((mu.unsqueeze(1) * loss).sum(), logits)
    torch.testing.assert_close(grad, -pi * (reward - (pi * reward).sum()))


def test_sd_coefficient_is_linear_then_constant():
    assert [sd_coefficient(s, 10) for s in (0, 5, 10, 99)] == pytest.approx([0.0, 0.05, 0.1, 0.1], abs=1e-15)
    assert sd_coefficient(3, 10, start=0.1) == pytest.approx(0.1)
    with pytest.raises(ValueError, match="step=-1"):
        sd_coefficient(-1, 10)
    with pytest.raises(ValueError, match="total=0"):
        sd_coefficient(0, 0)


def test_feedback_model_loss_is_scaled_cross_entropy_on_the_critique():
    ids, mask = feedback_example([5, 6, 7], [8, 9])
    assert ids.tolist() == [5, 6, 7, 8, 9]
    assert mask.tolist() == [False, False, False, True, True]
    logprobs = t([-1.0, -1.0, -1.0, -2.0, -4.0])
    loss, metrics = feedback_model_loss(logprobs, mask.unsqueeze(0))
    assert loss.tolist() == [pytest.approx([0.0, 0.0, 0.0, 0.2, 0.4])]
    assert metrics["nll"].item() == pytest.approx(3.0)
    assert feedback_model_loss(logprobs, mask.unsqueeze(0), coefficient=0.0)[0].abs().max() == 0


def test_prompts_word_for_word():
    assert second_turn_prompt("ATTEMPT", "CRITIQUE") == (
        "ATTEMPT",
        "Feedback on your answer:\n\nCRITIQUE\n\nUse it to answer the question again, in full.",
    )
    # distinct from the answering prompt, which is the question
    expected = "Critique this attempt.\n\nQuestion:\nQUESTION\n\nAttempt:\nATTEMPT\n\nCritique:"
    assert critique_prompt("QUESTION", "ATTEMPT") == expected
