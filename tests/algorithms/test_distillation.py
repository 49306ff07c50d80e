"""Distillation: worked values, gradient identities by enumeration, the length gate.

The running toy is a student S = [.7, .3] and a teacher T = [.4, .6]. Enumeration replaces sampling: one row per symbol,
weighted by the (constant) probability with which it is sampled, so an expectation is exact.
"""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.aggregation import aggregate, row_weights
from toolgym.algorithms.distillation import (
    EntropyGate,
    distillation_kl,
    generalized_jsd,
    kd_coefficient,
    kdrl_loss,
    mixed_kl,
    offline_opd_loss,
    opd_advantage,
    opd_loss,
    prefix_source,
    reward_guided_mask,
)
from toolgym.algorithms.kl import kl
from toolgym.algorithms.policy_losses import ppo_clip
from toolgym.errors import ConfigError

DOUBLE = torch.float64
S, T = torch.tensor([0.7, 0.3], dtype=DOUBLE), torch.tensor([0.4, 0.6], dtype=DOUBLE)
REVERSE, FORWARD = 0.183786897, 0.192041993  # KL(S||T), KL(T||S)
GRAD_REVERSE = torch.tensor([0.263080, -0.263080], dtype=DOUBLE)
GRAD_FORWARD = torch.tensor([0.3, -0.3], dtype=DOUBLE)
ONE = torch.ones(1, 1, dtype=torch.bool)


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def enumerated(loss, *, sampled_from=S):
    """Exact expectation, and its gradient in the student's logits, of ``loss(logprobs [V, 1], ids) -> [V, 1]``."""
    logits = S.log().requires_grad_()
    value = (sampled_from.unsqueeze(1) * loss(logits.log_softmax(0).unsqueeze(1))).sum()
    (gradient,) = torch.autograd.grad(value, logits, allow_unused=True)
    return value.item(), gradient


@pytest.mark.parametrize(("kind", "value"), [("k2", 0.125), ("k3", 0.10653066)])
def test_distillation_kl_worked_values(kind, value):
    loss, _ = distillation_kl(t([-1.0]), t([-1.5]), ONE, kind=kind)
    assert loss.item() == pytest.approx(value, abs=5e-9)
    assert kl(t([-1.0]), t([-1.5]), ONE, kind="k1").item() == 0.5


def test_distillation_kl_refuses_k1():
    """As a loss, k1 has the value of the KL and no gradient in expectation, whatever the teacher."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    for teacher in (T, t(0.9, 0.1)):
        _, grad = enumerated(lambda lp, q=teacher: kl(lp, q.log().unsqueeze(1), mask, kind="k1"))
        torch.testing.assert_close(grad, torch.zeros(2, dtype=DOUBLE), atol=1e-12, rtol=0)
    with pytest.raises(ConfigError, match="zero expected gradient"):
        distillation_kl(t([-1.0]), t([-1.5]), ONE, kind="k1")


@pytest.mark.parametrize(
    ("kind", "value", "gradient"),
    [
        ("k2", 0.181677, GRAD_REVERSE),
        ("k3", REVERSE, GRAD_FORWARD),  # the other direction
        ("k3+", REVERSE, GRAD_REVERSE),
    ],
)
def test_distillation_kl_expectation_and_gradient(kind, value, gradient):
    mask = torch.ones(2, 1, dtype=torch.bool)
    teacher = T.log().unsqueeze(1)
    got, grad = enumerated(lambda logprobs: distillation_kl(logprobs, teacher, mask, kind=kind)[0])
    assert got == pytest.approx(value, abs=5e-7)
    torch.testing.assert_close(grad, gradient, atol=5e-7, rtol=0)


def test_distillation_kl_weights_stale_tokens_by_a_detached_ratio():
    old = t(0.5, 0.5)
    mask = torch.ones(2, 1, dtype=torch.bool)
    value, grad = enumerated(
        lambda lp: distillation_kl(lp, T.log().unsqueeze(1), mask, old_logprobs=old.log().unsqueeze(1))[0],
        sampled_from=old,
    )
    assert value == pytest.approx(0.181677, abs=5e-7)  # as if sampled from the student
    torch.testing.assert_close(grad, GRAD_REVERSE, atol=5e-7, rtol=0)


def test_distillation_kl_of_equal_models_is_zero_with_zero_gradient():
    logprobs = t([-1.0, -2.0]).requires_grad_()
    mask = torch.ones(1, 2, dtype=torch.bool)
    for kind in ("k2", "k3"):
        loss, _ = distillation_kl(logprobs, logprobs.detach(), mask, kind=kind)
        assert loss.abs().max() == 0
        assert torch.autograd.grad(loss.sum(), logprobs)[0].abs().max() == 0


@given(st.lists(st.tuples(st.floats(-30, 0), st.floats(-30, 0)), min_size=1, max_size=8))
def test_distillation_kl_is_not_negative(pairs):
    student, teacher = (torch.tensor([column], dtype=DOUBLE) for column in zip(*pairs, strict=True))
    for kind in ("k2", "k3"):
        assert distillation_kl(student, teacher, torch.ones_like(student).bool(), kind=kind)[0].min() >= -1e-12


def test_distillation_kl_clamps_and_counts_a_truncated_teacher():
    logprobs = t([-1.0, -1.0]).requires_grad_()
    loss, metrics = distillation_kl(logprobs, t([-math.inf, -1.0]), torch.ones(1, 2, dtype=torch.bool), kind="k2")
    assert loss.tolist() == [[200.0, 0.0]]
    assert metrics["teacher_clamped"].item() == 0.5
    assert torch.autograd.grad(loss.sum(), logprobs)[0].isfinite().all()


def _batch():
    gen = torch.Generator().manual_seed(0)
    logprobs = (-2 * torch.rand(4, 5, generator=gen, dtype=DOUBLE)).requires_grad_()
    old = logprobs.detach() + 0.1 * torch.randn(4, 5, generator=gen, dtype=DOUBLE)
    teacher = -2 * torch.rand(4, 5, generator=gen, dtype=DOUBLE)
    mask = torch.rand(4, 5, generator=gen) < 0.7
    advantages = group_advantage(t(1.0, 0.0, 0.0, 1.0), torch.zeros(4, dtype=torch.int64), eps=0.0)
    return logprobs, old, teacher, mask, advantages


def gradient(loss, wrt):
    return torch.autograd.grad(loss.sum(), wrt, retain_graph=True)[0]


def test_kdrl_loss_without_weight_is_grpo_and_without_advantage_is_distillation():
    logprobs, old, teacher, mask, advantages = _batch()
    grpo = ppo_clip(logprobs, old, advantages, mask)[0]
    none, _ = kdrl_loss(grpo, logprobs, teacher, mask, kd_weight=0.0)
    torch.testing.assert_close(none, grpo)
    torch.testing.assert_close(gradient(none, logprobs), gradient(grpo, logprobs))
    zero = ppo_clip(logprobs, old, 0 * advantages, mask)[0]
    pure, _ = kdrl_loss(zero, logprobs, teacher, mask, kd_weight=1.0)
    torch.testing.assert_close(
        gradient(pure, logprobs), gradient(distillation_kl(logprobs, teacher, mask)[0], logprobs)
    )


def test_kdrl_loss_takes_the_estimator_of_its_distillation_part():
    logprobs, _, teacher, mask, _ = _batch()
    got, metrics = kdrl_loss(torch.zeros_like(teacher), logprobs, teacher, mask, kd_weight=2.0, kind="k3")
    expected, same = distillation_kl(logprobs, teacher, mask, kind="k3")
    torch.testing.assert_close(got, 2 * expected)
    assert metrics == same


def test_kdrl_loss_masks_rows_without_changing_the_rest():
    logprobs, old, teacher, mask, advantages = _batch()
    grpo = ppo_clip(logprobs, old, advantages, mask)[0]
    rows = torch.tensor([True, False, False, True])
    got, _ = kdrl_loss(grpo, logprobs, teacher, mask, kd_weight=0.5 * rows.to(DOUBLE))
    everywhere, _ = kdrl_loss(grpo, logprobs, teacher, mask, kd_weight=0.5)
    torch.testing.assert_close(got[rows], everywhere[rows])
    torch.testing.assert_close(got[~rows], grpo[~rows])


def test_kdrl_additive_advantage_has_the_gradient_of_k2():
    """Teacher reward in the advantage, then a plain policy gradient: expected gradient of k2 as a loss."""
    mask = torch.ones(2, 1, dtype=torch.bool)
    teacher = T.log().unsqueeze(1)
    _, grad = enumerated(lambda lp: -opd_advantage(lp, teacher, mask) * lp)
    torch.testing.assert_close(grad, GRAD_REVERSE, atol=5e-7, rtol=0)


def test_kd_coefficient_anneals_to_its_minimum():
    assert [kd_coefficient(s) for s in (0, 40, 80, 200)] == pytest.approx([5e-3, 3e-3, 1e-3, 1e-3], abs=1e-15)
    with pytest.raises(ValueError, match="kd_coefficient got"):
        kd_coefficient(-1)
    with pytest.raises(ValueError, match="kd_coefficient got"):
        kd_coefficient(1, init=1e-4, minimum=1e-3)


def test_reward_guided_mask_worked_values():
    group = torch.zeros(4, dtype=torch.int64)
    rewards = t(1.0, 0.0, 0.0, 1.0)
    assert reward_guided_mask(rewards, group, mode="response").tolist() == [False, True, True, False]
    assert reward_guided_mask(rewards, group, mode="group").tolist() == [False] * 4
    assert reward_guided_mask(0 * rewards, group, mode="response").all()
    assert reward_guided_mask(0 * rewards, group, mode="group").all()
    assert reward_guided_mask(rewards, group, mode="none").all()
    two = torch.tensor([0, 1, 1, 0])
    assert reward_guided_mask(rewards, two, mode="group").tolist() == [False, True, True, False]
    with pytest.raises(ValueError, match="did you mean 'response'"):
        reward_guided_mask(rewards, group, mode="responses")


@pytest.mark.parametrize(("discount", "expected"), [(0.0, [0.6, -1.5]), (1.0, [-0.9, -1.5]), (0.5, [-0.15, -1.5])])
def test_opd_advantage_worked_values(discount, expected):
    got = opd_advantage(t([-1.0, -0.5]), t([-0.4, -2.0]), torch.ones(1, 2, dtype=torch.bool), discount=discount)
    assert got.tolist() == [pytest.approx(expected, abs=1e-12)]
    double = opd_advantage(
        t([-1.0, -0.5]), t([-0.4, -2.0]), torch.ones(1, 2, dtype=torch.bool), discount=discount, coefficient=2.0
    )
    torch.testing.assert_close(double, 2 * got)


def test_opd_advantage_passes_over_masked_tokens():
    mask = torch.tensor([[True, False, True]])
    got = opd_advantage(t([-1.0, math.nan, -0.5]), t([-0.4, math.nan, -2.0]), mask, discount=0.5)
    assert got.tolist() == [pytest.approx([-0.15, 0.0, -1.5], abs=1e-12)]


@pytest.mark.parametrize(("discount", "expected"), [(1.0, 0.156475), (0.0, 0.171121)])
def test_opd_loss_on_the_two_step_tree(discount, expected):
    """Sequence reverse KL in the Bernoulli logits (root, after 0, after 1): exact for discount 1 only."""
    student = t(0.3, -0.2, 0.5).requires_grad_()
    teacher = t(-0.4, 0.6, 0.1)

    def row(logits, first, second):
        def log_bernoulli(logit, bit):
            return torch.nn.functional.logsigmoid(logit if bit else -logit)

        return torch.stack([log_bernoulli(logits[0], first), log_bernoulli(logits[1 + first], second)])

    leaves = [(a, b) for a in (0, 1) for b in (0, 1)]
    logprobs = torch.stack([row(student, *leaf) for leaf in leaves])
    teacher_logprobs = torch.stack([row(teacher, *leaf) for leaf in leaves])
    weights = logprobs.detach().sum(1).exp()
    mask = torch.ones(4, 2, dtype=torch.bool)
    loss, _ = opd_loss(logprobs, logprobs.detach(), teacher_logprobs, mask, discount=discount)
    (got,) = torch.autograd.grad((weights.unsqueeze(1) * loss).sum(), student, retain_graph=True)
    sequence_kl = (logprobs.sum(1).exp() * (logprobs - teacher_logprobs).sum(1)).sum()
    (exact,) = torch.autograd.grad(sequence_kl, student)
    torch.testing.assert_close(exact, t(0.156475, -0.084266, 0.053998), atol=5e-7, rtol=0)
    torch.testing.assert_close(got[1:], exact[1:], atol=1e-12, rtol=0)  # no later state: the leaves agree
    assert got[0].item() == pytest.approx(expected, abs=5e-7)


def test_opd_loss_recomputed_and_stored_signals_differ_on_stale_data():
    """Data of old = [.5, .5]: the ascent gradients of the two signals; only the recomputed one is that of the KL."""
    old = t(0.5, 0.5)
    mask = torch.ones(2, 1, dtype=torch.bool)

    def ascent(recompute):
        _, grad = enumerated(
            lambda lp: opd_loss(lp, old.log().unsqueeze(1), T.log().unsqueeze(1), mask, recompute=recompute)[0],
            sampled_from=old,
        )
        return -grad

    torch.testing.assert_close(ascent(True), t(-0.263080, 0.263080), atol=5e-7, rtol=0)
    torch.testing.assert_close(ascent(False), t(-0.085148, 0.085148), atol=5e-7, rtol=0)


def test_opd_loss_clip_bounds_the_ratio_and_a_wide_one_does_nothing():
    logprobs, old, teacher, mask, _ = _batch()
    wide, _ = opd_loss(logprobs, old - 1.0, teacher, mask, clip=1e6)
    free, _ = opd_loss(logprobs, old - 1.0, teacher, mask)
    torch.testing.assert_close(wide, free)
    clipped, _ = opd_loss(logprobs, old - 1.0, teacher, mask, clip=0.2)
    gained = opd_advantage(logprobs, teacher, mask) > 0
    assert gradient(clipped, logprobs)[gained & mask].abs().max() == 0  # every ratio is about e
    assert gradient(clipped, logprobs)[~gained & mask].abs().min() > 0


def test_opd_loss_clip_worked_values():
    """Ratios 2 and 1/2 at advantages of both signs: the pessimistic one of ratio and bound."""
    old = t([-1.0, -1.0, -1.0, -1.0])
    logprobs = old + t([2.0, 0.5, 2.0, 0.5]).log()
    advantages = t([0.5, 0.5, -0.5, -0.5])
    loss, _ = opd_loss(logprobs, old, logprobs + advantages, torch.ones(1, 4, dtype=torch.bool), clip=0.2)
    torch.testing.assert_close(loss, -advantages * t([1.2, 0.5, 2.0, 0.8]))


def test_distillation_metrics_count_valid_tokens():
    logprobs, teacher = t([-1.0, -2.0, math.nan, -3.0]), t([-1.5, -math.inf, -math.inf, -1.0])
    mask = torch.tensor([[True, True, False, True]])
    for _, metrics in (
        distillation_kl(logprobs, teacher, mask),
        opd_loss(logprobs, logprobs, teacher, mask, discount=1.0),
        offline_opd_loss(logprobs, teacher, mask),
    ):
        assert metrics["teacher_kl"].item() == pytest.approx((0.5 + 20 - 2) / 3)
        assert metrics["teacher_clamped"].item() == pytest.approx(1 / 3)


def test_offline_opd_loss_starts_as_online_and_vanishes_at_the_teacher():
    logprobs, _, teacher, mask, _ = _batch()
    offline = gradient(offline_opd_loss(logprobs, teacher, mask)[0], logprobs)
    online = gradient(opd_loss(logprobs, logprobs.detach(), teacher, mask)[0], logprobs)
    torch.testing.assert_close(offline, online)
    torch.testing.assert_close(offline, torch.where(mask, logprobs.detach() - teacher, 0.0))
    value = offline_opd_loss(t([-1.0, math.nan]), t([-3.0, -1.0]), torch.tensor([[True, False]]))[0]
    assert value.tolist() == [[-2.0, 0.0]]  # -(log T - log S) log S
    at_teacher = gradient(offline_opd_loss(logprobs, logprobs.detach(), mask)[0], logprobs)
    assert at_teacher.abs().max() == 0


def test_offline_opd_loss_converges_to_the_teacher_from_fixed_responses():
    start, teacher = t(0.5, 0.3, 0.2), t(0.1, 0.2, 0.7)
    logits = start.log().requires_grad_()
    mask = torch.ones(3, 1, dtype=torch.bool)
    optimiser = torch.optim.SGD([logits], lr=2.0)
    for _ in range(300):
        optimiser.zero_grad()
        loss, _ = offline_opd_loss(logits.log_softmax(0).unsqueeze(1), teacher.log().unsqueeze(1), mask)
        (start.unsqueeze(1) * loss).sum().backward()
        optimiser.step()
    torch.testing.assert_close(logits.detach().softmax(0), teacher, atol=1e-6, rtol=0)


def vocabulary(p):
    return p.log().reshape(1, 1, -1)


@pytest.mark.parametrize(
    ("beta", "value"),
    [(0.1, 0.01709960), (0.5, 0.04620083), (0.9, 0.01651798), (0.0, FORWARD), (1.0, REVERSE)],
)
def test_generalized_jsd_worked_values(beta, value):
    loss, metrics = generalized_jsd(vocabulary(S), vocabulary(T), ONE, beta=beta)
    assert loss.item() == metrics["jsd"].item() == pytest.approx(value, abs=5e-9)


def test_generalized_jsd_ends_are_limits_of_the_rescaled_divergence_only():
    low = generalized_jsd(vocabulary(S), vocabulary(T), ONE, beta=1e-4)[0].item()
    high = generalized_jsd(vocabulary(S), vocabulary(T), ONE, beta=1 - 1e-4)[0].item()
    assert low / 1e-4 == pytest.approx(0.192021, abs=5e-7)
    assert high / 1e-4 == pytest.approx(0.183768, abs=5e-7)


@given(st.integers(0, 2**20))
def test_generalized_jsd_of_a_half_is_symmetric_and_bounded(seed):
    gen = torch.Generator().manual_seed(seed)
    a, b = (3 * torch.randn(1, 1, 4, generator=gen, dtype=DOUBLE) for _ in range(2))
    forth, back = generalized_jsd(a, b, ONE)[0], generalized_jsd(b, a, ONE)[0]
    torch.testing.assert_close(forth, back, atol=1e-12, rtol=0)
    assert 0 <= forth.item() <= math.log(2)
    assert generalized_jsd(a, a + 1.0, ONE)[0].abs().max() < 1e-12  # equal distributions


def test_generalized_jsd_uses_the_common_vocabulary_and_the_temperature():
    padded = torch.cat([vocabulary(T), torch.full((1, 1, 3), 7.0, dtype=DOUBLE)], -1)
    torch.testing.assert_close(
        generalized_jsd(vocabulary(S), padded, ONE)[0], generalized_jsd(vocabulary(S), vocabulary(T), ONE)[0]
    )
    warm = generalized_jsd(vocabulary(S), vocabulary(T), ONE, temperature=2.0)[0]
    torch.testing.assert_close(warm, generalized_jsd(vocabulary(S) / 2, vocabulary(T) / 2, ONE)[0])


@pytest.mark.parametrize("options", [{"beta": -0.1}, {"beta": 1.1}, {"temperature": 0.0}])
def test_generalized_jsd_refuses_bad_parameters(options):
    with pytest.raises(ValueError, match="expected"):
        generalized_jsd(vocabulary(S), vocabulary(T), ONE, **options)


@pytest.mark.parametrize(
    ("weight", "value", "grad"),
    [
        (0.25, 0.1899782, 0.25 * GRAD_REVERSE + 0.75 * GRAD_FORWARD),
        (0.0, FORWARD, GRAD_FORWARD),
        (1.0, REVERSE, GRAD_REVERSE),
    ],
)
def test_mixed_kl_is_linear_in_its_weight(weight, value, grad):
    logits = S.log().requires_grad_()
    loss, metrics = mixed_kl(logits.reshape(1, 1, -1), vocabulary(T), ONE, reverse_weight=weight)
    assert loss.item() == pytest.approx(value, abs=5e-8)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], grad, atol=5e-7, rtol=0)
    expected = {"forward_kl": FORWARD, "reverse_kl": REVERSE}
    used = {name: expected[name] for name, share in (("forward_kl", 1 - weight), ("reverse_kl", weight)) if share > 0}
    assert {name: x.item() for name, x in metrics.items()} == pytest.approx(used, abs=5e-9)


def test_mixed_kl_with_a_one_hot_teacher_is_cross_entropy():
    hard = torch.tensor([[[0.0, -math.inf]]], dtype=DOUBLE)
    logits = S.log().reshape(1, 1, -1).clone().requires_grad_()
    loss, _ = mixed_kl(logits, hard, ONE, reverse_weight=0.0)
    assert loss.item() == pytest.approx(-math.log(0.7), abs=1e-12)
    torch.testing.assert_close(torch.autograd.grad(loss.sum(), logits)[0], t([[-0.3, 0.3]]), atol=1e-12, rtol=0)


def test_mixed_kl_of_a_token_that_the_teacher_rules_out_is_large_not_infinite():
    hard = torch.tensor([[[0.0, -math.inf]]], dtype=DOUBLE)
    logits = S.log().reshape(1, 1, -1).clone().requires_grad_()
    loss, _ = mixed_kl(logits, hard, ONE, reverse_weight=1.0)
    assert loss.item() == pytest.approx(0.3 * 1e4, rel=1e-3)
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
    same, _ = mixed_kl(hard, hard, ONE)
    assert same.item() == 0.0


def test_mixed_kl_includes_the_first_response_token():
    """Per-token losses are returned, so a shift by one would show at once."""
    student = torch.stack([S.log(), T.log(), S.log()]).unsqueeze(0)
    teacher = torch.stack([T.log(), T.log(), S.log()]).unsqueeze(0)
    loss, _ = mixed_kl(student, teacher, torch.ones(1, 3, dtype=torch.bool))
    assert (loss.abs() > 1e-9).tolist() == [[True, False, False]]


@pytest.mark.parametrize("options", [{"reverse_weight": -0.1}, {"reverse_weight": 1.1}, {"temperature": -1.0}])
def test_mixed_kl_refuses_bad_parameters(options):
    with pytest.raises(ValueError, match="expected"):
        mixed_kl(vocabulary(S), vocabulary(T), ONE, **options)


def test_distillation_losses_aggregate_to_a_differentiable_zero_when_all_is_masked():
    logprobs = t([math.nan, -1.0]).requires_grad_()
    mask = torch.zeros(1, 2, dtype=torch.bool)
    loss = aggregate(distillation_kl(logprobs, logprobs.detach(), mask)[0], mask, row_weights(mask, "token-mean"))
    assert loss.item() == 0
    assert torch.autograd.grad(loss, logprobs)[0].tolist() == [[0.0, 0.0]]


def test_prefix_source_at_the_ends_and_between():
    rng = random.Random(0)
    assert {prefix_source(0.0, rng=rng) for _ in range(200)} == {"teacher"}
    assert {prefix_source(1.0, rng=rng) for _ in range(200)} == {"student"}
    drawn = sum(prefix_source(0.3, rng=rng) == "student" for _ in range(4000))
    assert abs(drawn / 4000 - 0.3) < 3 * math.sqrt(0.3 * 0.7 / 4000)
    with pytest.raises(ValueError, match="student_fraction"):
        prefix_source(1.5, rng=rng)


def test_entropy_gate_climbs_and_latches():
    gate = EntropyGate(h_min=0.3)
    assert gate.length == 128
    assert [gate.update(h) for h in (0.9, 0.5, 0.1, 5.0)] == [256, 512, 512, 512]


def test_entropy_gate_caps_at_the_last_rung_and_admits_the_threshold_itself():
    gate = EntropyGate((1, 2), h_min=0.3)
    assert [gate.update(0.3) for _ in range(3)] == [2, 2, 2]
    assert EntropyGate((1, 2), h_min=0.3).update(math.nan) == 1


def test_entropy_gate_state_round_trips():
    gate = EntropyGate(h_min=0.3)
    for h in (0.9, 0.1):
        gate.update(h)
    other = EntropyGate(h_min=0.3)
    other.load_state_dict(gate.state_dict())
    assert (other.length, other.update(9.0)) == (256, 256)
    other.load_state_dict(EntropyGate().state_dict())
    assert (other.length, other.latched) == (128, False)
    with pytest.raises(ValueError, match="stage 9"):
        other.load_state_dict({"stage": 9, "latched": False})


@pytest.mark.parametrize("ladder", [(), (2, 1), (1, 1), (0, 1)])
def test_entropy_gate_refuses_a_bad_ladder(ladder):
    with pytest.raises(ValueError, match="increasing lengths"):
        EntropyGate(ladder)
