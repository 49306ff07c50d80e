"""Effective sample size, the step it allows, and the baseline of least variance."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.vcpo import (
    ess_lr_scale,
    ess_ratio,
    optimal_baseline,
    scaled_lr,
    score_norm,
    sequence_log_weights,
    vcpo_advantage,
)

F64 = torch.float64
ONE = torch.zeros(4, dtype=torch.int64)
W = torch.tensor([1.0, 2, 3, 4], dtype=F64)
NORMS = torch.tensor([1.0, 4, 1, 2], dtype=F64)
R = torch.tensor([1.0, 0, 0, 1], dtype=F64)


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_sequence_log_weights_sum_and_are_bounded():
    lp = torch.tensor([[-1.0, -1.0, math.nan], [-1.0, 0.0, 0.0]], dtype=F64)
    mu = torch.tensor([[-1.5, -3.0, 0.0], [-16.0, -16.0, 0.0]], dtype=F64)
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]], dtype=torch.bool)
    close(sequence_log_weights(lp, mu, mask), [2.5, 20.0])


def test_ess_ratio_worked_values():
    close(ess_ratio(W.log()), 100 / 30 / 4)  # ESS 3.333
    close(ess_ratio(W.log() + 700.0), 100 / 30 / 4)  # the scale does not matter, nor overflow
    close(ess_ratio(torch.full((5,), -3.0, dtype=F64)), 1.0)
    close(ess_ratio(torch.tensor([0.0, -900, -900, -900], dtype=F64)), 0.25)


def test_ess_lr_scale_worked_values():
    ratio = ess_ratio(W.log())
    close(ess_lr_scale(ratio), 0.9128709291752769)  # sqrt(.8333)
    close(ess_lr_scale(ratio, power=1.0), 5 / 6)
    close(ess_lr_scale(ratio, base=0.5), 1.0)
    with pytest.raises(ValueError, match="expected 0 < base"):
        ess_lr_scale(ratio, base=0.0)


def test_ess_lr_scale_falls_with_staleness():
    generator = torch.Generator().manual_seed(0)
    logits = torch.zeros(4, dtype=F64)
    tokens = torch.randint(0, 4, (64, 8), generator=generator)
    mu = logits.log_softmax(0)[tokens]
    direction = torch.randn(4, generator=generator, dtype=F64)
    scales = []
    for lag in range(5):
        now = (logits + 0.3 * lag * direction).log_softmax(0)[tokens]
        weights = sequence_log_weights(now, mu, torch.ones_like(tokens, dtype=torch.bool))
        scales.append(ess_lr_scale(ess_ratio(weights)).item())
    assert scales[0] == 1
    assert scales == sorted(scales, reverse=True)


def test_scaled_lr_holds_inside_the_block_only():
    parameters = [torch.nn.Parameter(torch.zeros(1)) for _ in range(2)]
    optimizer = torch.optim.SGD([{"params": [parameters[0]], "lr": 0.1}, {"params": [parameters[1]], "lr": 0.4}])
    inside = []

    def fail():
        with scaled_lr(optimizer, 0.5):
            inside.extend(g["lr"] for g in optimizer.param_groups)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert inside == [0.05, 0.2]
    assert [g["lr"] for g in optimizer.param_groups] == [0.1, 0.4]


def test_optimal_baseline_worked_value():
    # (1 + 32) / (1 + 16 + 9 + 32) = 33/58 = .56897
    close(optimal_baseline(R, W.log(), NORMS, ONE), [33 / 58] * 4)
    close(optimal_baseline(R, W.log(), W.square() * NORMS, ONE, norm_includes_weight=True), [33 / 58] * 4)


def test_optimal_baseline_minimises_the_weighted_square():
    grid = torch.linspace(0, 1, 1001, dtype=F64)
    loss = (W.square() * NORMS * (R - grid[:, None]).square()).sum(1)
    close(grid[loss.argmin()], 33 / 58, 1e-3)


def test_optimal_baseline_with_equal_weights_and_norms_is_the_group_mean():
    group = torch.tensor([3, 3, 8, 8])
    close(optimal_baseline(R, torch.zeros(4, dtype=F64), torch.ones(4, dtype=F64), group), [0.5] * 4)
    close(optimal_baseline(R, torch.zeros(4, dtype=F64), torch.zeros(4, dtype=F64), group), [0.5] * 4)
    close(optimal_baseline(R, torch.tensor([800.0, 0, 0, 800], dtype=F64), NORMS, group), [1.0, 1, 1, 1])


def test_vcpo_advantage_truncates_its_weight_after_the_baseline():
    b = 33 / 58
    close(vcpo_advantage(R, W.log(), NORMS, ONE, cap=3.0), [1 - b, -2 * b, -3 * b, 3 * (1 - b)])
    close(vcpo_advantage(R, W.log(), NORMS, ONE, normalise=True), 2 * W * (R - b))  # population std .5
    for normalise in (True, False):
        close(vcpo_advantage(torch.ones(4, dtype=F64), W.log(), NORMS, ONE, normalise=normalise), [0.0] * 4)


def test_vcpo_advantage_gradient_is_the_sum_of_weighted_scores():
    generator = torch.Generator().manual_seed(2)
    theta = torch.randn(3, generator=generator, dtype=F64, requires_grad=True)
    features = torch.randn(4, 3, generator=generator, dtype=F64)
    logp = features @ theta
    scores = torch.stack([torch.autograd.grad(x, theta, retain_graph=True)[0] for x in logp])
    norms = scores.square().sum(1)
    a = vcpo_advantage(R, W.log(), norms, ONE)
    (got,) = torch.autograd.grad((a * logp).sum(), theta)
    # two buffers: P = sum w R g, S = sum w g; P - b S
    b = optimal_baseline(R, W.log(), norms, ONE)[0]
    close(got, ((W * R) @ scores) - b * (W @ scores), 1e-10)


def test_optimal_baseline_has_the_least_variance_on_a_bandit():
    # population: b from the exact moments of a three-armed bandit under a stale sampler
    p, mu = (torch.tensor(x, dtype=F64) for x in ([0.6, 0.3, 0.1], [0.2, 0.3, 0.5]))
    reward = torch.tensor([1.0, 0.0, 0.5], dtype=F64)
    w = p / mu
    score = torch.eye(3, dtype=F64) - p
    norms = score.square().sum(1)

    def variance(b):
        g = (w * (reward - b))[:, None] * score
        return (mu @ g.square().sum(1)) - (mu @ g).square().sum()

    best = (mu * w.square() * norms * reward).sum() / (mu * w.square() * norms).sum()
    close(optimal_baseline(reward, (w * mu.sqrt()).log(), norms, torch.zeros(3, dtype=torch.int64))[0], best)
    assert variance(best) < variance((mu * reward).sum()) < variance(torch.zeros((), dtype=F64))


def test_score_norm_is_the_squared_distance_to_the_one_hot():
    p = torch.tensor([0.5, 0.3, 0.2], dtype=F64)
    lp = p.log().unsqueeze(0)
    got = score_norm(lp, torch.full((1, 3), float(p.square().sum()), dtype=F64), torch.tensor([[True, True, False]]))
    expected = sum((torch.eye(3, dtype=F64)[a] - p).square().sum() for a in (0, 1))
    close(got, [expected])


def test_score_norm_checks_shapes():
    with pytest.raises(ValueError, match="sum_squared_probs: got shape"):
        score_norm(torch.zeros(2, 3), torch.zeros(2, 1), torch.ones(2, 3, dtype=torch.bool))
