"""Token-level policy losses by hand in float64: value and gradient on both sides of every bound."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms import cards, get
from toolgym.algorithms.policy_losses import ppo_clip, reinforce
from toolgym.algorithms.surrogate import ratio_metrics

F64 = torch.float64


def evaluate(loss, ratios, advantages, **parameters):
    """Per-token losses and d loss / d logprob for one row of ratios with one advantage each."""
    old = torch.full((1, len(ratios)), -1.0, dtype=F64)
    logprobs = (old + torch.tensor([ratios], dtype=F64).log()).requires_grad_(True)
    mask = torch.ones_like(old, dtype=torch.bool)
    per_token, metrics = loss(logprobs, old, torch.tensor([advantages], dtype=F64), mask, **parameters)
    (grad,) = torch.autograd.grad(per_token.sum(), logprobs)
    return per_token[0].detach(), grad[0], metrics


def close(got, expected):
    assert_close(got, torch.tensor(expected, dtype=F64), atol=1e-12, rtol=0)


def test_ppo_clip_values_and_gradients_on_both_sides():
    ratios = [1.0, 1.3, 1.3, 0.7, 0.7, 1.25]
    advantages = [2.0, 2.0, -2.0, 2.0, -2.0, 2.0]
    loss, grad, metrics = evaluate(ppo_clip, ratios, advantages, clip_low=0.2, clip_high=0.28)
    close(loss, [-2.0, -2.56, 2.6, -1.4, 1.6, -2.5])
    close(grad, [-2.0, 0.0, 2.6, -1.4, 0.0, -2.5])  # -A rho, or 0 where the bound binds
    close(metrics["clip_fraction_low"], 1 / 6)
    close(metrics["clip_fraction_high"], 1 / 6)


def test_ppo_clip_dual_bounds_bad_tokens_only():
    loss, grad, _ = evaluate(ppo_clip, [10.0, 10.0, 2.0], [-1.0, 1.0, -1.0], dual_clip=3.0)
    close(loss, [3.0, -1.2, 2.0])
    close(grad, [0.0, 0.0, 2.0])


def test_ppo_clip_on_policy_is_reinforce():
    generator = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(3, 4, generator=generator, dtype=F64).requires_grad_(True)
    mask = torch.rand(3, 4, generator=generator) < 0.7
    a = torch.randn(3, generator=generator, dtype=F64)
    grads = [
        torch.autograd.grad(loss(logprobs, logprobs.detach(), a, mask)[0].sum(), logprobs)[0]
        for loss in (ppo_clip, reinforce)
    ]
    assert_close(grads[0], grads[1])
    assert_close(grads[1], torch.where(mask, -a[:, None], 0.0).expand(3, 4))


def test_reinforce_value():
    loss, grad, _ = evaluate(reinforce, [1.0, 1.0], [2.0, -3.0])
    close(loss, [2.0, -3.0])
    close(grad, [-2.0, 3.0])


def test_policy_losses_survive_extreme_ratios():
    old = torch.tensor([[-1e4, 0.0, -math.inf]])
    logprobs = torch.tensor([[0.0, -1e4, -1.0]], requires_grad=True)
    mask = torch.ones(1, 3, dtype=torch.bool)
    for a in (1.0, -1.0):
        loss, metrics = ppo_clip(logprobs, old, torch.tensor([a]), mask, dual_clip=3.0)
        assert loss.isfinite().all()
        assert torch.autograd.grad(loss.sum(), logprobs)[0].isfinite().all()
        assert all(m.isfinite() for m in metrics.values())


def test_ratio_metrics_by_hand():
    ratio = torch.tensor([[1.0, 2.0, 1.0], [0.5, 1.0, 1.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]], dtype=torch.bool)
    got = ratio_metrics(torch.where(mask, ratio, 1.0), torch.where(mask, ratio.log(), 0.0).sum(), mask)
    close(got["ratio_mean"], 3.5 / 3)
    close(got["approx_kl"], ((2 - 1 - math.log(2)) + (0.5 - 1 - math.log(0.5))) / 3)
    close(got["ess_ratio"], 3.5**2 / (5.25 * 3))


def test_ratio_metrics_of_no_token_at_all_are_zero():
    nothing = torch.zeros(1, 2, dtype=torch.bool)
    metrics = ratio_metrics(torch.ones(1, 2, dtype=F64), torch.zeros((), dtype=F64), nothing)
    assert {name: m.item() for name, m in metrics.items()} == dict.fromkeys(metrics, 0.0)


@pytest.mark.parametrize("bad", [{"clip_low": -0.1}, {"clip_low": 1.5}, {"clip_high": -1.0}, {"dual_clip": 1.0}])
def test_ppo_clip_refuses_impossible_bounds(bad):
    with pytest.raises(ValueError, match="got clip_low"):
        evaluate(ppo_clip, [1.0], [1.0], **bad)


def test_policy_losses_say_which_shape_is_wrong():
    x, mask = torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="old_logprobs: got shape"):
        ppo_clip(x, x[:1], torch.zeros(2), mask)
    with pytest.raises(ValueError, match="logprobs: got shape"):
        reinforce(x[:, :1], x, torch.zeros(2), mask)
    with pytest.raises(ValueError, match="advantages: got 3 rows, expected 2"):
        ppo_clip(x, x, torch.zeros(3), mask)
    with pytest.raises(ValueError, match="advantages: got shape"):
        ppo_clip(x, x, torch.zeros(2, 1), mask)


def test_ppo_clip_metrics_by_token_advantages_split_the_two_sides():
    ratios, advantages = [1.5, 1.5, 0.5, 0.5], [1.0, -1.0, 1.0, -1.0]
    _, _, metrics = evaluate(ppo_clip, ratios, advantages)
    close(metrics["clip_fraction_high"], 0.25)
    close(metrics["clip_fraction_low"], 0.25)


def test_ppo_clip_beyond_the_clamp_keeps_the_slope_of_the_bounded_ratio():
    loss, grad, _ = evaluate(ppo_clip, [math.exp(30.0)], [-1.0])
    close(loss, [math.exp(20.0)])
    close(grad, [math.exp(20.0)])


@pytest.mark.parametrize("name", [c.name for c in cards("policy_loss") if c.name != "reinforce"])
def test_policy_losses_report_their_ratios(name):
    # one row per sign; masked tokens hold what must not count
    ratio = torch.tensor([[1.2, 0.9, 77.0], [1.5, 77.0, 0.8]], dtype=F64)
    mask = torch.tensor([[True, True, False], [True, False, True]])
    old = torch.full_like(ratio, -1.0)
    more = {"sampler_logprobs": old} if name == "decoupled_ppo" else {}
    _, metrics = get(name).function(old + ratio.log(), old, torch.tensor([1.0, -1.0]), mask, **more)
    seen = {
        "gspo": torch.tensor([[1.08**0.5] * 2, [1.2**0.5] * 2], dtype=F64),
        "ctpo": torch.tensor([[1.2, 1.08], [1.5, 1.2]], dtype=F64),
    }.get(name, torch.tensor([[1.2, 0.9], [1.5, 0.8]], dtype=F64))
    close(metrics["ratio_mean"], float(seen.mean()))
    close(metrics["approx_kl"], float((seen - 1 - seen.log()).mean()))
    if name != "decoupled_ppo":  # there it is that of the correction's weights
        close(metrics["ess_ratio"], float(seen.sum() ** 2 / (4 * seen.square().sum())))
