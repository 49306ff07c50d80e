"""Preference losses: worked values, gradients, optimum; BPO's reference; delta learning."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.preferences import (
    BehaviorReference,
    behaviour_average,
    bradley_terry_loss,
    delta_pairs,
    dpo_loss,
    dpo_loss_indexed,
    f_dpo_loss,
    ipo_loss,
    preference_pair,
    sequence_logprobs,
    slic_loss,
)
from toolgym.errors import ConfigError

DOUBLE = torch.float64
PAIRWISE = [dpo_loss, f_dpo_loss, ipo_loss, slic_loss]


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def at(loss, delta, **options):
    """Value and gradients (chosen, rejected) at h_w - h_l = delta."""
    chosen, rejected = t(delta - 1.0).requires_grad_(), t(-1.0).requires_grad_()
    value, metrics = loss(chosen, rejected, t(0.0), t(0.0), **options)
    w, x = torch.autograd.grad(value.sum(), (chosen, rejected))
    return value.item(), w.item(), x.item(), metrics


@pytest.mark.parametrize(
    ("loss", "options", "value"),
    [
        (dpo_loss, {}, 0.554355),
        (ipo_loss, {}, 4.0),
        (slic_loss, {}, 0.7),
        (dpo_loss, {"smoothing": 0.1}, 0.584355),
        (dpo_loss, {"smoothing": 0.1, "robust": True}, 0.516855),
    ],
)
def test_pairwise_losses_worked_values(loss, options, value):
    assert at(loss, 3.0, beta=0.1, **options)[0] == pytest.approx(value, abs=5e-7)


def test_dpo_loss_gradient_weight():
    _, w, x, metrics = at(dpo_loss, 3.0, beta=0.1)
    assert (w, x) == (pytest.approx(-0.0425557, abs=5e-8), pytest.approx(0.0425557, abs=5e-8))
    assert metrics["reward_chosen"].item() == pytest.approx(0.2)
    assert metrics["reward_rejected"].item() == pytest.approx(-0.1)
    assert metrics["accuracy"].item() == 1.0


@pytest.mark.parametrize(
    ("loss", "value"), [(dpo_loss, math.log(2)), (ipo_loss, 25.0), (slic_loss, 1.0), (f_dpo_loss, math.log(2))]
)
def test_pairwise_losses_at_the_reference(loss, value):
    got, w, _, _ = at(loss, 0.0, beta=0.1)
    assert got == pytest.approx(value, abs=1e-12)
    if loss is dpo_loss:
        assert w == pytest.approx(-0.05, abs=1e-12)  # beta / 2


def test_ipo_loss_is_least_at_half_the_inverse_beta():
    assert at(ipo_loss, 5.0, beta=0.1)[:2] == (pytest.approx(0.0, abs=1e-20), pytest.approx(0.0, abs=1e-12))


def test_slic_loss_stops_pulling_beyond_its_margin():
    assert at(slic_loss, 10.5, beta=0.1)[:3] == (0.0, 0.0, 0.0)
    assert at(slic_loss, 9.5, beta=0.1)[1] == pytest.approx(-0.1, abs=1e-12)


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(-50, 50))
def test_pairwise_losses_depend_on_differences_only(w, x, shift):
    for loss in PAIRWISE[:1] + PAIRWISE[2:]:
        plain = loss(t(w), t(x), t(0.0), t(0.0))[0]
        moved = loss(t(w + shift), t(x + shift), t(0.0), t(0.0))[0]
        torch.testing.assert_close(plain, moved, atol=1e-9, rtol=1e-9)


def test_dpo_loss_swaps_sides_with_the_sign_of_the_margin():
    forth = dpo_loss(t(1.0), t(3.0), t(0.2), t(0.1))[0]
    back = dpo_loss(t(3.0), t(1.0), t(0.1), t(0.2))[0]
    delta = 0.1 * (0.8 - 2.9)
    assert forth.item() == pytest.approx(math.log1p(math.exp(-delta)), abs=1e-12)
    assert back.item() == pytest.approx(math.log1p(math.exp(delta)), abs=1e-12)


@pytest.mark.parametrize("loss", [dpo_loss, f_dpo_loss, ipo_loss, slic_loss])
@pytest.mark.parametrize("delta", [1e4, -1e4])
def test_pairwise_losses_are_finite_at_extremes(loss, delta):
    value, w, x, _ = at(loss, delta)
    assert all(map(math.isfinite, (value, w, x)))


@pytest.mark.parametrize("loss", PAIRWISE)
def test_pairwise_losses_send_no_gradient_into_the_reference(loss):
    inputs = [t(float(i)).requires_grad_() for i in range(4)]
    loss(*inputs)[0].sum().backward()
    assert inputs[0].grad is not None
    assert inputs[2].grad is None
    assert inputs[3].grad is None


@pytest.mark.parametrize("loss", PAIRWISE)
def test_pairwise_losses_refuse_a_bad_beta(loss):
    with pytest.raises(ValueError, match="beta=0"):
        loss(t(0.0), t(0.0), t(0.0), t(0.0), beta=0.0)


def test_dpo_loss_refuses_coin_flip_labels():
    with pytest.raises(ValueError, match=r"smoothing=0\.5"):
        dpo_loss(t(0.0), t(0.0), t(0.0), t(0.0), smoothing=0.5)


def test_dpo_robust_is_unbiased_under_flipped_labels():
    """With labels flipped at rate e, the expected robust loss is the clean loss."""
    e, pair = 0.2, (t(1.3), t(-0.4), t(0.1), t(0.0))
    flipped = (pair[1], pair[0], pair[3], pair[2])
    noisy = sum(p * dpo_loss(*x, smoothing=e, robust=True)[0] for p, x in ((1 - e, pair), (e, flipped)))
    torch.testing.assert_close(noisy, dpo_loss(*pair)[0])


@pytest.mark.slow
def test_dpo_loss_minimiser_is_the_tilted_reference():
    """Bradley-Terry labels from rewards r on three responses: pi ∝ ref exp(r / beta)."""
    ref, reward, beta = t(0.5, 0.3, 0.2), t(0.0, 0.3, -0.2), 0.5
    logits = torch.zeros(3, dtype=DOUBLE, requires_grad=True)
    w, x = zip(*[(i, j) for i in range(3) for j in range(3) if i != j], strict=True)
    w, x = torch.tensor(w), torch.tensor(x)
    labels = (reward[w] - reward[x]).sigmoid()
    optimiser = torch.optim.LBFGS([logits], max_iter=200, tolerance_grad=1e-12, tolerance_change=1e-15)

    def closure():
        optimiser.zero_grad()
        logprobs = logits.log_softmax(0)
        losses, _ = dpo_loss_indexed(logprobs, ref.log(), w, x, beta)
        total = (labels * losses).sum()
        total.backward()
        return total

    optimiser.step(closure)
    expected = (ref.log() + reward / beta).softmax(0)
    torch.testing.assert_close(logits.detach().softmax(0), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("divergence", "score"),
    [
        ("reverse_kl", lambda h: h),
        ("forward_kl", lambda h: -math.exp(-h)),
        ("js", lambda h: -math.log1p(math.exp(-h))),
        ("alpha", lambda h: math.exp(-0.7 * h) / -0.7),
    ],
)
def test_f_dpo_loss_scores(divergence, score):
    got, metrics = f_dpo_loss(t(0.6), t(-0.3), t(0.1), t(0.2), beta=2.0, divergence=divergence, alpha=0.3)
    gap = 2.0 * (score(0.5) - score(-0.5))
    assert got.item() == pytest.approx(math.log1p(math.exp(-gap)), abs=1e-12)
    assert metrics["reward_chosen"].item() == pytest.approx(2.0 * score(0.5), abs=1e-12)


def test_f_dpo_loss_of_reverse_kl_is_dpo_and_names_are_checked():
    pair = (t(0.6, 1.0), t(-0.3, 2.0), t(0.1, 0.0), t(0.2, 0.0))
    torch.testing.assert_close(f_dpo_loss(*pair, divergence="reverse_kl")[0], dpo_loss(*pair)[0])
    with pytest.raises(ValueError, match="did you mean 'forward_kl'"):
        f_dpo_loss(*pair, divergence="forwardkl")
    with pytest.raises(ValueError, match="alpha=1"):
        f_dpo_loss(*pair, divergence="alpha", alpha=1)


def test_bradley_terry_loss_worked_values():
    assert bradley_terry_loss(t(1.0), t(0.0))[0].item() == pytest.approx(0.313262, abs=5e-7)
    losses, metrics = bradley_terry_loss(t(1.0, 0.5, 0.0), t(0.0, 0.5, 1.0))
    assert losses.mean().item() == pytest.approx(0.773224, abs=1e-6)
    assert metrics["accuracy"].item() == pytest.approx(1 / 3)
    assert metrics["reward_margin"].item() == pytest.approx(0.0)
    assert bradley_terry_loss(t(2.0), t(0.0), margin=1.0)[0].item() == pytest.approx(0.313262, abs=5e-7)
    assert bradley_terry_loss(t(2.0), t(0.0), margin=t(1.0))[0].item() == pytest.approx(0.313262, abs=5e-7)
    centred = bradley_terry_loss(t(2.0), t(1.0), centering=0.01)[0]
    assert centred.item() == pytest.approx(0.313262 + 0.09, abs=5e-7)


def test_sequence_logprobs_sums_or_averages_valid_tokens():
    logprobs = t([-1.0, -2.0, math.nan], [-3.0, math.nan, math.nan], [math.nan] * 3)
    mask = torch.tensor([[True, True, False], [True, False, False], [False] * 3])
    assert sequence_logprobs(logprobs, mask).tolist() == [-3.0, -3.0, 0.0]
    assert sequence_logprobs(logprobs, mask, length_normalize=True).tolist() == [-1.5, -3.0, 0.0]


def test_length_normalised_dpo_is_dpo_of_means():
    logprobs, ref = t([-1.0, -2.0], [-4.0, 0.0]), t([-1.5, -1.5], [-3.0, 0.0])
    mask = torch.tensor([[True, True], [True, False]])
    policy, reference = (sequence_logprobs(x, mask, length_normalize=True) for x in (logprobs, ref))
    got, _ = dpo_loss(policy[:1], policy[1:], reference[:1], reference[1:], beta=5.0)
    assert got.item() == pytest.approx(math.log1p(math.exp(-5.0 * (0.0 - -1.0))), abs=1e-12)


def test_dpo_loss_indexed_returns_losses_and_detached_rewards():
    logprobs, ref = t(-1.0, -2.0, -3.0).requires_grad_(), t(-1.5, -1.5, -1.5)
    losses, rewards = dpo_loss_indexed(logprobs, ref, torch.tensor([0, 1]), torch.tensor([2, 2]), 0.1)
    assert losses.tolist() == pytest.approx([math.log1p(math.exp(-0.2)), math.log1p(math.exp(-0.1))], abs=1e-12)
    assert rewards.tolist() == pytest.approx([0.05, -0.05, -0.15], abs=1e-12)
    assert not rewards.requires_grad


def test_behavior_reference_refreshes_at_phase_boundaries_only():
    reference = BehaviorReference(3)
    policy = {"w": torch.zeros(2)}
    refreshed = []
    for step in range(8):
        refreshed.append(reference.maybe_refresh(step, policy))
        assert reference.state["w"].tolist() == [float(step - step % 3)] * 2  # the policy at the phase's first step
        policy["w"] += 1
    assert refreshed == [True, False, False, True, False, False, True, False]


def test_behavior_reference_of_one_phase_is_offline_dpo():
    reference = BehaviorReference(1000)
    policy = {"w": torch.zeros(1)}
    assert [reference.maybe_refresh(step, policy) for step in range(5)] == [True] + [False] * 4


def test_behavior_reference_refuses_to_go_back():
    reference = BehaviorReference(2)
    reference.maybe_refresh(4, {})
    with pytest.raises(ValueError, match="step 1 is in phase 0"):
        reference.maybe_refresh(1, {})
    with pytest.raises(ValueError, match="phase_length 0"):
        BehaviorReference(0)


def test_behavior_reference_makes_the_first_loss_after_a_refresh_ln_two():
    policy = {"logits": t(0.3, -0.1, 0.5)}
    reference = BehaviorReference(5)
    reference.maybe_refresh(0, policy)
    logprobs, ref = policy["logits"].log_softmax(0), reference.state["logits"].log_softmax(0)
    losses, _ = dpo_loss_indexed(logprobs, ref, torch.tensor([0]), torch.tensor([1]))
    assert losses.item() == pytest.approx(math.log(2), abs=1e-12)


def test_behaviour_average_of_identical_adapters_is_that_adapter():
    adapter = {"a": t(1.0, 2.0), "b": t([3.0])}
    got = behaviour_average([adapter] * 8)
    assert all(torch.equal(got[name], adapter[name]) for name in adapter)
    assert behaviour_average([{"a": t(0.0)}, {"a": t(4.0)}], weights=[3.0, 1.0])["a"].tolist() == [1.0]


def test_preference_pair_takes_best_and_worst():
    assert preference_pair([0.2, 0.9, 0.1, 0.9]) == (1, 2)
    assert preference_pair([0.5, 0.5]) is None
    assert preference_pair([0.5, None]) is None
    assert preference_pair([None, 0.2, 0.9]) == (2, 1)
    assert preference_pair([]) is None


def test_delta_pairs_keep_their_orientation_and_drop_identical_texts():
    made = delta_pairs(["long answer", "same", "x"], ["short", "same", "yy"])
    assert made.pairs == (("long answer", "short"), ("x", "yy"))
    assert made.dropped == 1
    assert made.length_ratio == pytest.approx(12 / 7)
    assert math.isnan(delta_pairs(["a"], ["a"]).length_ratio)
    with pytest.raises(ConfigError, match="got 1 stronger and 0 weaker"):
        delta_pairs(["a"], [])


def test_delta_learning_extrapolates_where_imitation_regresses():
    """Policy N(5, 1), chosen at 3, rejected at 2: SFT pulls theta down to 3, the pair pushes it up."""
    theta = t(5.0).requires_grad_()

    def logprob(y):
        return -0.5 * (y - theta) ** 2

    (sft,) = torch.autograd.grad(logprob(3.0).sum(), theta)
    assert sft.item() == -2.0
    loss, _ = dpo_loss(logprob(3.0), logprob(2.0), logprob(3.0).detach(), logprob(2.0).detach(), beta=2.0)
    (dpo,) = torch.autograd.grad(loss.sum(), theta)
    assert dpo.item() == pytest.approx(-1.0)  # descent direction +1 (times beta / 2)


@pytest.mark.parametrize("loss", PAIRWISE)
def test_pairwise_metrics_carry_no_gradient(loss):
    chosen, rejected = t(-1.0).requires_grad_(), t(-2.0).requires_grad_()
    _, metrics = loss(chosen, rejected, t(0.0), t(0.0))
    assert not any(metric.requires_grad for metric in metrics.values())


def test_behavior_reference_of_one_step_a_phase_is_a_copy_of_each_policy_without_its_graph():
    reference = BehaviorReference(1)
    for step in range(3):
        policy = {"w": torch.full((2,), float(step), requires_grad=True)}
        assert reference.maybe_refresh(step, policy)
        assert reference.state["w"].tolist() == [step, step]
        assert not reference.state["w"].requires_grad
