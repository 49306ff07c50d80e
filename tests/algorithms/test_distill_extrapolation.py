"""Extrapolation beyond the teacher: its optimum, the cliff's worked values and the guard below it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.distill_extrapolation import (
    bernoulli_fixed_point,
    cliff_lambda,
    critical_positions,
    extrapolated_advantage,
    safe_lambda,
)
from toolgym.algorithms.distillation import opd_advantage

DOUBLE = torch.float64
probabilities = st.floats(0.01, 0.99)


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def cliff(p, b, c=5.0, **options):
    return cliff_lambda(t(p), t(b), c=c, **options).item()


def test_extrapolated_advantage_with_lambda_one_is_on_policy_distillation():
    gen = torch.Generator().manual_seed(0)
    student, teacher, base = (-2 * torch.rand(2, 3, generator=gen, dtype=DOUBLE) for _ in range(3))
    mask = torch.ones(2, 3, dtype=torch.bool)
    torch.testing.assert_close(
        extrapolated_advantage(student, teacher, base, mask, lam=1.0), opd_advantage(student, teacher, mask)
    )
    # 1.5 log T - log S - 0.5 log B
    torch.testing.assert_close(
        extrapolated_advantage(student, teacher, base, mask, lam=1.5), 1.5 * teacher - student - 0.5 * base
    )
    per_token = t(1.0, 1.5, 1.0).expand(2, 3)
    mixed = extrapolated_advantage(student, teacher, base, mask, lam=per_token)
    torch.testing.assert_close(mixed[:, 1], (1.5 * teacher - student - 0.5 * base)[:, 1])
    torch.testing.assert_close(mixed[:, 0], (teacher - student)[:, 0])


@pytest.mark.parametrize("lam", [0.5, 1.0, 1.25])
def test_extrapolated_advantage_has_no_gradient_at_its_optimum(lam):
    base, teacher = t(0.5, 0.3, 0.2), t(0.2, 0.2, 0.6)
    best = (base ** (1 - lam) * teacher**lam).log().log_softmax(0)
    logits = best.clone().requires_grad_()
    mask = torch.ones(3, 1, dtype=torch.bool)
    logprobs = logits.log_softmax(0).unsqueeze(1)
    advantages = extrapolated_advantage(logprobs, teacher.log().unsqueeze(1), base.log().unsqueeze(1), mask, lam=lam)
    (grad,) = torch.autograd.grad((best.exp().unsqueeze(1) * advantages * logprobs).sum(), logits)
    assert grad.abs().max() < 1e-12
    assert advantages.std() < 1e-12  # constant: nothing left to gain


@pytest.mark.parametrize(
    ("p", "b", "c", "value"),
    [
        (0.99, 0.9, 5, 1.674544),
        (0.99, 0.5, 5, 1.352001),
        (0.9993, 0.5, 5, 1.221649),
        (0.999, 0.5, 5, 1.233140),
        (0.95, 0.8, 5, 2.059389),
        (0.99, 0.9, 2, 1.291166),
    ],
)
def test_cliff_lambda_worked_values(p, b, c, value):
    assert cliff(p, b, c) == pytest.approx(value, abs=5e-7)


def test_cliff_lambda_of_no_clip_room_is_one_and_of_a_sharper_base_infinite():
    assert cliff(0.97, 0.4, 1.0) == pytest.approx(1.0, abs=1e-12)
    assert cliff(0.99, 0.995) == math.inf
    assert cliff(0.9, 0.9) == math.inf
    assert cliff(0.99, 0.995, max_lambda=3.0) == 3.0
    assert cliff(0.99, 0.9, max_lambda=1.5) == 1.5


def test_cliff_lambda_survives_certainty():
    assert math.isfinite(cliff(1.0, 0.5))
    assert cliff(1.0, 1.0) == math.inf
    assert math.isfinite(cliff(1.0, 0.0))


def test_cliff_lambda_refuses_a_cap_below_one():
    with pytest.raises(ValueError, match=r"c=0\.9"):
        cliff(0.9, 0.5, 0.9)


@given(probabilities, probabilities, st.floats(1.0, 20.0))
def test_cliff_lambda_grows_with_the_cap_and_with_the_base(p, b, c):
    if p > b + 1e-3:
        assert cliff(p, b, c + 1) > cliff(p, b, c) >= 1 - 1e-9
        assert cliff(p, b + 0.5 * (p - b), c + 0.5) > cliff(p, b, c + 0.5)


@given(probabilities, probabilities, st.floats(1.0, 20.0))
def test_cliff_lambda_is_where_the_fixed_points_tail_meets_the_clip(p, b, c):
    if p > b + 1e-3:
        tail = 1 - bernoulli_fixed_point(t(p), t(b), lam=cliff_lambda(t(p), t(b), c=c)).item()
        assert tail == pytest.approx((1 - p) / c, rel=1e-9)


def test_bernoulli_fixed_point_worked_value():
    assert 1 - bernoulli_fixed_point(t(0.99), t(0.9), lam=1.25).item() == pytest.approx(0.00551588, abs=5e-9)
    assert bernoulli_fixed_point(t(0.8), t(0.3), lam=1.0).item() == pytest.approx(0.8, abs=1e-12)
    assert bernoulli_fixed_point(t(1.0), t(1.0), lam=1.5).item() == pytest.approx(1 - 1e-7, abs=1e-15)
    assert bernoulli_fixed_point(t(0.0), t(0.0), lam=1.5).item() == pytest.approx(1e-7, rel=1e-9)
    assert bernoulli_fixed_point(t(0.8), t(0.3), lam=0.0).item() == pytest.approx(0.3, abs=1e-12)


def test_safe_lambda_stays_below_the_cliff_at_critical_positions_only():
    p, b = t(0.99, 0.99, 0.99), t(0.5, 0.5, 0.995)
    critical = torch.tensor([True, False, True])
    held = safe_lambda(1.5, p, b, critical=critical)
    assert held.tolist() == pytest.approx([1.302001, 1.5, 1.5], abs=5e-7)
    assert safe_lambda(1.5, p, b).tolist() == pytest.approx([1.302001, 1.302001, 1.5], abs=5e-7)


def test_safe_lambda_never_goes_below_one_nor_above_the_wish():
    assert safe_lambda(2.0, t(0.97), t(0.4), c=1.0).item() == 1.0  # lam* is 1: no room at all
    assert safe_lambda(0.5, t(0.99), t(0.5)).item() == 0.5


def test_critical_positions_are_sharp_or_of_low_entropy():
    # uniform over four; .95 on one; .85 on one and the rest on one other (entropy .42)
    p = t([0.25] * 4, [0.95, 0.05 / 3, 0.05 / 3, 0.05 / 3], [0.85, 0.15, 0.0, 0.0])
    logits = p.log().unsqueeze(0)
    mask = torch.ones(1, 3, dtype=torch.bool)
    assert critical_positions(logits, mask).tolist() == [[False, True, True]]
    assert critical_positions(logits, mask, entropy=0.3).tolist() == [[False, True, False]]
    assert not critical_positions(logits, ~mask).any()
