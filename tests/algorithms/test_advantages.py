"""Worked values and identities of the group advantages and returns, in float64."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.testing import assert_close

from toolgym.algorithms.advantages import (
    discounted_returns,
    group_advantage,
    last_token,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
    whiten,
)
from toolgym.errors import ConfigError

F64 = torch.float64
R8 = torch.tensor([1, 0, 0, 1, 1, 0, 0, 0], dtype=F64)
ONE = torch.zeros(8, dtype=torch.int64)


def close(got, expected, tol=5e-5):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


@pytest.mark.parametrize(("ddof", "up", "down"), [(0, 1.2910, -0.7746), (1, 1.2076, -0.7246)])
def test_group_advantage_worked_values(ddof, up, down):
    # mean 3/8, population variance 15/64: (1 - 3/8) / sqrt(15)/8 = 5 / sqrt(15) = 1.2910
    a = group_advantage(R8, ONE, ddof=ddof, eps=0.0)
    close(a, R8 * up + (1 - R8) * down)


def test_group_advantage_eps_stands_outside_the_root():
    a = group_advantage(torch.tensor([1.0, 0.0], dtype=F64), torch.zeros(2, dtype=torch.int64), eps=0.5)
    close(a, [0.5, -0.5], 1e-12)  # 0.5 / (0.5 + 0.5)


def test_group_advantage_binary_closed_form():
    for p in (0.125, 0.25, 0.5, 0.75):
        r = (torch.arange(8) < 8 * p).to(F64)
        a = group_advantage(r, ONE, eps=0.0)
        close(a, r * math.sqrt((1 - p) / p) - (1 - r) * math.sqrt(p / (1 - p)), 1e-12)
        close(a.abs().mean(), 2 * math.sqrt(p * (1 - p)), 1e-12)


def test_group_advantage_scale_none_is_dr_grpo():
    close(group_advantage(R8, ONE, scale="none"), R8 - 0.375, 1e-15)


def test_group_advantage_scale_batch_divides_by_the_std_of_centred_rewards():
    r = torch.tensor([1.0, 0.0, 3.0, 1.0], dtype=F64)
    group = torch.tensor([7, 7, -2, -2])
    # centred: .5 -.5 1 -1; mean square 2.5/4
    close(
        group_advantage(r, group, scale="batch", eps=0.0),
        [0.5 / 0.625**0.5, -0.5 / 0.625**0.5, 1 / 0.625**0.5, -1 / 0.625**0.5],
        1e-12,
    )


def test_group_advantage_ids_need_no_order():
    r = torch.tensor([1.0, 5.0, 0.0, 3.0], dtype=F64)
    close(group_advantage(r, torch.tensor([4, -9, 4, -9]), scale="none"), [0.5, 1.0, -0.5, -1.0], 1e-15)


@pytest.mark.parametrize("scale", ["group", "batch", "none"])
@pytest.mark.parametrize("ddof", [0, 1])
def test_group_advantage_constant_and_single_groups_are_exactly_zero(scale, ddof):
    r = torch.tensor([0.1] * 7 + [0.7], dtype=F64)  # the mean of seven 0.1 is off by an ulp
    group = torch.tensor([0] * 7 + [1])
    assert group_advantage(r, group, scale=scale, ddof=ddof, eps=1e-12).eq(0).all()


def test_group_advantage_tells_rewards_apart_relative_to_the_largest():
    group = torch.tensor([0, 0, 1, 1])
    r = torch.tensor([1e-9, 2e-9, 1e6, 1e6 + 1e-3], dtype=F64)  # a spread of half, and of 1e-9, of the largest
    close(group_advantage(r, group, eps=0.0), [-1.0, 1.0, 0.0, 0.0], 1e-6)


def test_group_advantage_keep_leaves_failures_out_of_the_baseline():
    r = torch.tensor([1.0, 0.0, math.nan, 9.0], dtype=F64)
    keep = torch.tensor([True, True, False, True])
    close(group_advantage(r, torch.tensor([0, 0, 0, 1]), eps=0.0, keep=keep), [1.0, -1.0, 0.0, 0.0], 1e-12)


def test_group_advantage_nan_stays_in_its_group():
    a = group_advantage(torch.tensor([1.0, 0.0, math.nan, 0.0]), torch.tensor([0, 0, 1, 1]))
    assert a[:2].isfinite().all()
    assert a[2:].isnan().all()


def test_group_advantage_refuses_unknown_scale_and_shapes():
    with pytest.raises(ConfigError, match="did you mean 'group'"):
        group_advantage(R8, ONE, scale="groups")
    with pytest.raises(ValueError, match="expected \\[B\\]"):
        group_advantage(R8, ONE[:3])
    with pytest.raises(ValueError, match="expected integers"):
        group_advantage(R8, ONE.double())


@given(
    st.lists(st.floats(-10, 10), min_size=2, max_size=12),
    st.floats(0.1, 10),
    st.floats(-5, 5),
)
@settings(max_examples=50, deadline=None)
def test_group_advantage_is_affine_invariant_and_centred(values, a, b):
    r = torch.tensor(values, dtype=F64)
    group = torch.arange(len(values)) % 2
    if any(r[group == g].std(correction=0) < 0.1 for g in (0, 1) if (group == g).sum() > 1):
        return
    base = group_advantage(r, group, eps=0.0)
    assert_close(group_advantage(a * r + b, group, eps=0.0), base, atol=1e-8, rtol=1e-8)
    assert_close(group_advantage(-r, group, eps=0.0), -base, atol=1e-8, rtol=1e-8)
    close(torch.stack([base[group == g].sum() for g in (0, 1)]), [0.0, 0.0], 1e-8)


def test_rloo_worked_values_and_both_forms():
    a = rloo(R8, ONE)
    close(a, R8 * 0.7143 - (1 - R8) * 0.4286)
    others = torch.stack([R8[torch.arange(8) != i].mean() for i in range(8)])
    close(a, R8 - others, 1e-12)
    close(group_advantage(R8, ONE, scale="none"), a * 7 / 8, 1e-12)


def test_rloo_ignores_what_is_not_kept_and_a_single_row_gets_zero():
    r = torch.tensor([1.0, 0.0, 5.0, 2.0], dtype=F64)
    keep = torch.tensor([True, True, False, True])
    close(rloo(r, torch.tensor([70, 70, 70, -3]), keep=keep), [1.0, -1.0, 0.0, 0.0], 1e-12)


M = torch.tensor([[1, 0, 1, 1, 0], [0, 1, 0, 0, 0]], dtype=torch.bool)


def test_last_token_is_the_last_true_one():
    close(last_token(torch.tensor([2.0, 3.0], dtype=F64), M), [[0, 0, 0, 2.0, 0], [0, 3.0, 0, 0, 0]], 0)


@pytest.mark.parametrize(("gamma", "expected"), [(1.0, [6.0, 0, 5, 3, 0]), (0.5, [2.75, 0, 3.5, 3, 0])])
def test_discounted_returns_pass_over_masked_tokens(gamma, expected):
    r = torch.tensor([[1.0, math.nan, 2, 3, 7], [9, 4, 9, 9, 9]], dtype=F64)
    close(discounted_returns(r, M, gamma=gamma), [expected, [0, 4.0, 0, 0, 0]], 1e-12)


def test_whiten_has_mean_zero_and_variance_one_under_the_mask():
    x = torch.tensor([[1.0, math.inf, 2, 6, 0], [0, 3, 0, 0, 0]], dtype=F64)
    w = whiten(x, M, eps=0.0)
    close(w[M].mean(), 0.0, 1e-12)
    close(w[M].square().mean(), 1.0, 1e-12)
    assert w[~M].eq(0).all()
    close(whiten(x, M, eps=10.5)[M], torch.tensor([-2.0, -1, 3, 0], dtype=F64) / 14**0.5, 1e-12)  # variance 3.5


def test_reinforce_plus_plus_without_kl_spreads_the_reward_and_whitens():
    r = torch.tensor([1.0, 0.0], dtype=F64)
    # returns: 1 1 1 on the first row, 0 on the second: mean 3/4, variance 3/16
    a = reinforce_plus_plus(r, M)
    close(a[0, 0], 0.25 / math.sqrt(3 / 16), 1e-6)
    close(a[1, 1], -0.75 / math.sqrt(3 / 16), 1e-6)


def test_reinforce_plus_plus_kl_enters_the_return_and_group_centres_first():
    r = torch.tensor([1.0, 0.0], dtype=F64)
    k = torch.tensor([[0.5, 9, 0.5, 1.0, 9], [9, 2.0, 9, 9, 9]], dtype=F64)
    g = torch.tensor([[0.8, 0, 0.85, 0.9, 0], [0, -0.2, 0, 0, 0]], dtype=F64)
    close(reinforce_plus_plus(r, M, kl=k, beta=0.1), whiten(g, M), 1e-9)


def test_reinforce_plus_plus_baseline_centres_by_group_before_the_kl():
    r, group = torch.tensor([3.0, 1.0, 9.0, 5.0], dtype=F64), torch.tensor([0, 0, 4, 4])
    mask = torch.ones(4, 1, dtype=torch.bool)
    kl = torch.tensor([[0.5], [0.0], [0.0], [-1.0]], dtype=F64)
    # centred: 1 -1 2 -2; less 2 kl: 0 -1 2 0, mean 1/4, mean square 5/4
    expected = (torch.tensor([[0.0], [-1.0], [2.0], [0.0]], dtype=F64) - 0.25) / math.sqrt(1.25 - 0.0625)
    close(reinforce_plus_plus_baseline(r, group, mask, kl=kl, beta=2.0), expected, 1e-6)
