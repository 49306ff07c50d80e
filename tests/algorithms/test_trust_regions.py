"""Sequence and prefix ratios, decoupled trust regions, filters: values, gradients and the identities of their
papers.
"""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.aggregation import aggregate, row_weights
from toolgym.algorithms.corrections import truncated_is
from toolgym.algorithms.policy_losses import cispo, ppo_clip, reinforce
from toolgym.algorithms.ratios import cumulative_ratio, sequence_ratio, token_ratio
from toolgym.algorithms.trust_regions import ctpo, decoupled_ppo, f_tis, gspo
from toolgym.errors import ConfigError

F64 = torch.float64
MASK = torch.tensor([[1, 0, 1, 1], [0, 1, 1, 0]], dtype=torch.bool)
LOG_RHO = torch.tensor([[0.1, 9, -0.3, 0.5], [9, 0.2, -0.1, 9]], dtype=F64)
OLD = torch.full((2, 4), -2.0, dtype=F64)


def logprobs():
    return (OLD + LOG_RHO).requires_grad_(True)


def grad(loss, x):
    return torch.autograd.grad(loss, x)[0]


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def one_row(log_rho):
    old = torch.full((1, len(log_rho)), -1.0, dtype=F64)
    lp = (old + torch.tensor([log_rho], dtype=F64)).requires_grad_(True)
    return lp, old, torch.ones_like(old, dtype=torch.bool)


# --- ratios


def test_token_ratio_is_clamped_and_masked():
    close(token_ratio(logprobs(), OLD, MASK), [[0.1, 0, -0.3, 0.5], [0, 0.2, -0.1, 0]])
    lp, old, mask = one_row([50.0, -50.0])
    close(token_ratio(lp, old, mask), [[20.0, -20.0]])


def test_sequence_ratio_is_the_mean_log_ratio_with_the_token_gradient():
    lp = logprobs()
    ratio = sequence_ratio(lp, OLD, MASK)
    close(ratio, [[0.1, 0, 0.1, 0.1], [0, 0.05, 0.05, 0]])
    close(grad(ratio.sum(), lp), MASK.double())
    lp, old, mask = one_row([15.0, 15.0])
    close(sequence_ratio(lp, old, mask), [[10.0, 10.0]])


def test_cumulative_ratio_is_the_prefix_sum_with_the_diagonal_gradient():
    lp = logprobs()
    close(cumulative_ratio(lp, OLD, MASK), [[0.1, 0, -0.2, 0.3], [0, 0.2, 0.1, 0]])
    close(cumulative_ratio(lp, OLD, MASK, average=True), [[0.1, 0, -0.1, 0.1], [0, 0.2, 0.05, 0]])
    jacobian = torch.autograd.functional.jacobian(lambda x: cumulative_ratio(x, OLD, MASK)[0], lp.detach())
    close(jacobian[:, 0], torch.diag(MASK[0].double()))
    lp, old, mask = one_row([9.0, 9.0])
    close(cumulative_ratio(lp, old, mask), [[9.0, 10.0]])
    lp, old, mask = one_row([15.0, 15.0])
    close(cumulative_ratio(lp, old, mask, average=True), [[10.0, 10.0]])


# --- GSPO


def test_gspo_gradient_is_that_of_the_sequence_form():
    lp = logprobs()
    a = torch.tensor([2.0, -1.5], dtype=F64)
    loss, _ = gspo(lp, OLD, a, MASK, clip_low=0.5, clip_high=0.5)
    token_form = grad(aggregate(loss, MASK, row_weights(MASK, "seq-mean-token-mean")), lp)
    difference = torch.where(MASK, lp - OLD, 0)
    s = (difference.sum(1) / MASK.sum(1)).exp()
    sequence_form = -torch.minimum(s * a, s.clamp(0.5, 1.5) * a).mean()
    close(aggregate(loss, MASK, row_weights(MASK, "seq-mean-token-mean")), sequence_form.detach())
    close(token_form, grad(sequence_form, lp))


def test_gspo_clips_whole_rows_in_the_direction_of_the_advantage():
    for a, bound, kept in ((1.0, "high", [False, False]), (-1.0, "low", [True, True])):
        lp = logprobs()
        loss, metrics = gspo(lp, OLD, torch.full((2,), a, dtype=F64), MASK)
        g = grad(loss.sum(), lp)
        assert [(g[i][MASK[i]] != 0).all().item() for i in range(2)] == kept
        assert metrics[f"clip_fraction_{bound}"] == (not kept[0])
    loss, _ = gspo(logprobs(), OLD, torch.ones(2, dtype=F64), MASK)
    close(loss[MASK], -torch.full((5,), 1 + 4e-4, dtype=F64))


def test_gspo_one_token_is_ppo_with_its_bounds():
    for log_rho in (-0.3, 0.0, 0.3):
        for a in (1.0, -1.0):
            lp, old, mask = one_row([log_rho])
            advantages = torch.tensor([a], dtype=F64)
            ours = gspo(lp, old, advantages, mask, clip_low=0.1, clip_high=0.2)[0]
            ppo = ppo_clip(lp, old, advantages, mask, clip_low=0.1, clip_high=0.2)[0]
            close(ours, ppo.detach())
            close(grad(ours.sum(), lp), grad(ppo.sum(), lp))


# --- CISPO


def test_cispo_never_loses_a_gradient_and_caps_its_weight():
    lp, old, mask = one_row([math.log(100.0), math.log(0.01), math.log(2.0)])
    a = torch.tensor([[1.0, 1.0, -1.0]], dtype=F64)
    loss, _ = cispo(lp, old, a, mask)
    close(grad(loss.sum(), lp), [[-5.0, -0.01, 2.0]])
    close(loss, torch.tensor([[-5.0, -0.01, 2.0]], dtype=F64) * lp.detach())
    loss, _ = cispo(lp, old, a, mask, min_ratio=0.5)
    close(grad(loss.sum(), lp), [[-5.0, -0.5, 2.0]])


def test_cispo_below_its_cap_has_the_gradient_of_the_unclipped_surrogate():
    lp, old, mask = one_row([0.4, -0.7, 0.1])
    a = torch.tensor([1.3], dtype=F64)
    surrogate = -(lp - old).exp() * a
    close(grad(cispo(lp, old, a, mask)[0].sum(), lp), grad(surrogate.sum(), lp))


# --- CTPO


@pytest.mark.parametrize(
    ("t", "low", "high"),
    [(1, 0.9753, 1.0513), (4, 0.951, 1.105), (16, 0.905, 1.221), (100, 0.779, 1.649), (400, 0.607, 2.718)],
)
def test_ctpo_window_widens_with_the_root_of_the_position(t, low, high):
    for sign, expected in ((1.0, -high), (-1.0, low)):
        log_rho = [0.0] * t
        log_rho[-1] = sign * 5.0
        lp, old, mask = one_row(log_rho)
        loss, metrics = ctpo(lp, old, torch.tensor([sign], dtype=F64), mask, dual_clip=None)
        close(loss[0, -1], expected, 6e-4)
        assert grad(loss.sum(), lp)[0, -1] == 0
        close(metrics["clip_fraction_high" if sign > 0 else "clip_fraction_low"], 1 / t)


def test_ctpo_power_zero_is_a_constant_window_and_average_a_geometric_mean():
    lp, old, mask = one_row([0.0, 0.0, 0.3])
    a = torch.ones(1, dtype=F64)
    close(ctpo(lp, old, a, mask, power=0.0)[0], [[-1, -1, -math.exp(0.05)]])
    close(ctpo(lp, old, a, mask, power=-0.5, clip_high=9.0, average=True)[0], [[-1, -1, -math.exp(0.1)]])


def test_ctpo_window_may_widen_with_any_power():
    lp, old, mask = one_row([0.0, 0.0, 9.0])
    close(ctpo(lp, old, torch.ones(1, dtype=F64), mask, power=1.5)[0][0, 2], -math.exp(0.05 * 3**1.5))


def test_ctpo_dual_clip_bounds_bad_tokens():
    lp, old, mask = one_row([0.0, 0.0, 0.0, 2.0])
    close(ctpo(lp, old, torch.tensor([-1.0], dtype=F64), mask)[0], [[1, 1, 1, math.exp(0.1)]])
    close(ctpo(lp, old, torch.tensor([-1.0], dtype=F64), mask, dual_clip=None)[0], [[1, 1, 1, math.exp(2.0)]])


def test_ctpo_first_token_is_ppo_with_a_window_in_log_space_and_the_last_has_the_full_ratio():
    lp, old, mask = one_row([0.03])
    ours = ctpo(lp, old, torch.ones(1, dtype=F64), mask)[0]
    close(ours, [[-math.exp(0.03)]])
    close(grad(ours.sum(), lp), [[-math.exp(0.03)]])
    lp, old, mask = one_row([0.4, -0.1, 0.5])
    wide = ctpo(lp, old, torch.ones(1, dtype=F64), mask, clip_low=9, clip_high=9)[0]
    close(wide[0, -1], -math.exp(0.8))
    close(grad(wide[0, -1], lp), [[0, 0, -math.exp(0.8)]])


def test_ctpo_clip_rate_is_flat_in_the_position_and_grows_with_a_constant_window():
    generator = torch.Generator().manual_seed(3)
    log_rho = 0.03 * torch.randn(2000, 64, generator=generator, dtype=F64)
    old = torch.zeros_like(log_rho)
    mask = torch.ones_like(old, dtype=torch.bool)

    def clip_rate(power):
        lp = log_rho.clone().requires_grad_(True)
        loss, _ = ctpo(lp, old, torch.full((2000,), -1.0, dtype=F64), mask, power=power, dual_clip=None)
        lost = grad(loss.sum(), lp).eq(0).double().mean(0)
        return lost[:8].mean(), lost[-8:].mean()

    early, late = clip_rate(0.5)
    assert abs(late - early) < 0.02  # both near P(z < -0.025 / 0.03) = 0.20
    early, late = clip_rate(0.0)
    assert late - early > 0.1


# --- decoupled PPO and F-TIS


def test_decoupled_ppo_with_one_old_policy_is_ppo():
    lp = logprobs()
    a = torch.tensor([1.0, -2.0], dtype=F64)
    loss, _ = decoupled_ppo(lp, OLD, a, MASK, sampler_logprobs=OLD)
    ppo, _ = ppo_clip(lp, OLD, a, MASK)
    close(loss, ppo.detach())
    close(grad(loss.sum(), lp), grad(ppo.sum(), lp))


def test_decoupled_ppo_keeps_the_weighted_gradient_where_plain_ppo_has_clipped_it_away():
    lp, prox, mask = one_row([0.0, 0.0])
    mu = prox - math.log(2.0)  # the sampler found these tokens half as likely
    a = torch.tensor([1.0], dtype=F64)
    close(grad(decoupled_ppo(lp, prox, a, mask, sampler_logprobs=mu)[0].sum(), lp), [[-2.0, -2.0]])
    close(grad(ppo_clip(lp, mu, a, mask)[0].sum(), lp), [[0.0, 0.0]])


def test_decoupled_ppo_caps_by_dropping_or_by_truncating():
    lp, prox, mask = one_row([0.0, 0.0])
    mu = prox - torch.tensor([[math.log(10.0), 0.0]], dtype=F64)
    a = torch.tensor([1.0], dtype=F64)
    close(decoupled_ppo(lp, prox, a, mask, sampler_logprobs=mu)[0], [[0.0, -1.0]])
    close(decoupled_ppo(lp, prox, a, mask, sampler_logprobs=mu, cap_mode="truncate")[0], [[-5.0, -1.0]])
    often = prox + math.log(10.0)  # the sampler found these tokens ten times as likely: no lower bound
    close(decoupled_ppo(lp, prox, a, mask, sampler_logprobs=often)[0], [[-0.1, -0.1]])
    with pytest.raises(ConfigError, match="did you mean 'truncate'"):
        decoupled_ppo(lp, prox, a, mask, sampler_logprobs=mu, cap_mode="truncat")


def test_f_tis_keeps_far_rows_only_when_they_are_good():
    far, mu, mask = one_row([-8.0, -9.0])  # k3 of each: 8 - 1 + e^-8, 9 - 1 + e^-9; sum 15
    for a, limit, weight in ((1.0, 10.0, 1.0), (-1.0, 10.0, 0.0), (-1.0, 16.0, 1.0)):
        loss, metrics = f_tis(far, mu, torch.tensor([a], dtype=F64), mask, max_kl=limit)
        close(grad(loss.sum(), far), [[-a * weight * math.exp(-8), -a * weight * math.exp(-9)]])
        assert metrics["near_rows"] == (limit > 15)
    assert f_tis(far, mu, torch.tensor([-1.0]), mask, max_kl=8.0, reduce="mean")[0].any()
    assert not f_tis(far, mu, torch.tensor([-1.0]), mask, max_kl=16.5, kind="k1")[0].any()  # k1: 17


def test_f_tis_without_a_limit_is_truncated_importance_sampling():
    lp = logprobs()
    a = torch.tensor([1.0, -2.0], dtype=F64)
    loss, _ = f_tis(lp, OLD, a, MASK, max_kl=math.inf, cap=1.2)
    weight, _, _ = truncated_is(lp.detach(), OLD, MASK, cap=1.2)
    expected = reinforce(lp, lp.detach(), a, MASK)[0] * weight
    close(grad(loss.sum(), lp), grad(expected.sum(), lp))


def test_f_tis_counts_near_rows_among_those_with_a_token():
    old = torch.zeros(3, 2, dtype=F64)
    lp = torch.tensor([[0.0, math.nan], [-9.0, -9.0], [math.nan, math.nan]], dtype=F64)
    mask = torch.tensor([[True, False], [True, True], [False, False]])
    for reduce in ("sum", "mean"):
        _, metrics = f_tis(lp, old, torch.ones(3, dtype=F64), mask, max_kl=5.0, reduce=reduce)
        assert metrics["near_rows"] == 0.5


def test_f_tis_limit_zero_trains_on_good_rows_only():
    lp = logprobs()
    loss, _ = f_tis(lp, OLD, torch.tensor([1.0, -2.0], dtype=F64), MASK, max_kl=0.0)
    g = grad(loss.sum(), lp)
    assert g[0][MASK[0]].ne(0).all()
    assert g[1].eq(0).all()
