"""RiskPO: worked weights, the likelihood-ratio identities behind them, quantiles that follow, credit by hand."""

import json
import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.riskpo import (
    QuantileTracker,
    bundle_advantage,
    bundle_scores,
    make_bundles,
    mixed_var_weight,
    track_quantiles,
)
from toolgym.errors import ConfigError

F64 = torch.float64


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_mixed_var_weight_worked_values():
    got = mixed_var_weight(torch.arange(6, dtype=F64), 1.0, 4.0)
    close(got, [-5, -2, -4 / 3, -2 / 3, 0, 0])
    without = mixed_var_weight(torch.arange(6, dtype=F64), 1.0, 4.0, natural_baseline=False)
    close(without, [-3, 0, 2 / 3, 4 / 3, 2, 2])


def test_mixed_var_weight_is_the_derivative_of_the_quantile_integrals():
    # z = s x, x standard normal: J(s) = (mix/alpha int_0^alpha + 1/(beta-alpha) int_alpha^beta) s F^-1(u) du / (mix+1)
    alpha, beta, mix = 0.2, 0.8, 1.5
    normal = torch.distributions.Normal(torch.zeros((), dtype=F64), torch.ones((), dtype=F64))
    n = 2_000_000
    u = (torch.arange(n, dtype=F64) + 0.5) / n
    z = normal.icdf(u)
    a, b = (normal.icdf(torch.tensor(q, dtype=F64)) for q in (alpha, beta))
    w = mixed_var_weight(z, a, b, alpha=alpha, beta=beta, mix=mix)
    lower, middle = z[u < alpha].mean(), z[(u >= alpha) & (u < beta)].mean()
    close((w * (z.square() - 1)).mean(), (mix * lower + middle) / (mix + 1), 1e-5)  # d/ds of log density at s = 1
    close((w * z).mean(), 1.0, 1e-5)  # d/d shift: every quantile moves along


def test_mixed_var_weight_never_falls_and_is_flat_above():
    w = mixed_var_weight(torch.linspace(-3, 6, 50, dtype=F64), 0.5, 2.0)
    assert (w.diff() >= 0).all()
    assert w[-15:].eq(w[-1]).all()


def test_mixed_var_weight_without_tails_is_the_score():
    z = torch.tensor([0.0, 1, 5], dtype=F64)
    w = mixed_var_weight(z, -100.0, 100.0, alpha=1e-9, beta=1 - 1e-9, mix=0.0)
    close(w - w.mean(), z - z.mean(), 1e-6)


@pytest.mark.parametrize("bad", [{"alpha": 0.0}, {"alpha": 0.9}, {"beta": 1.0}, {"mix": -1.0}])
def test_mixed_var_weight_refuses_impossible_levels(bad):
    with pytest.raises(ValueError, match="expected 0 < alpha < beta"):
        mixed_var_weight(torch.zeros(1), 0.0, 1.0, **bad)


def test_track_quantiles_one_step_by_hand():
    q = track_quantiles(
        torch.tensor([0.0, 2.0], dtype=F64),
        torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=F64),
        torch.tensor([0.2, 0.8], dtype=F64),
        rate=0.5,
    )
    close(q, [0.0 + 0.5 * 0.2, 2.0 + 0.5 * (0.8 - 0.5)])  # "below" is strict


def test_quantile_tracker_converges_and_round_trips():
    generator = torch.Generator().manual_seed(0)
    tracker = QuantileTracker(rate=0.05)
    with pytest.raises(KeyError, match="after the first update"):
        tracker[0.2]
    tracker.load_state_dict(tracker.state_dict())
    for i in range(400):
        tracker.update(3.0 + torch.randn(64, generator=generator) - 3.0 * (i > 40))  # the distribution drifts
    assert tracker[0.2] == pytest.approx(-0.842, abs=0.08)
    assert tracker[0.5] == pytest.approx(0.0, abs=0.08)
    copy = QuantileTracker(rate=0.05)
    copy.load_state_dict(tracker.state_dict())
    scores = torch.randn(8, generator=generator)
    tracker.update(scores)
    copy.update(scores)
    assert tracker.state_dict() == copy.state_dict()
    with pytest.raises(KeyError, match=r"level 0\.33"):
        tracker[0.33]


def test_quantile_tracker_starts_at_the_first_batch():
    tracker = QuantileTracker((0.5,))
    tracker.update(torch.tensor([1.0, 2.0, 9.0]))
    assert tracker[0.5] == 2.0


def test_make_bundles_partition_and_leave_the_rest_out():
    bundles = make_bundles(11, 5, generator=torch.Generator().manual_seed(0))
    assert bundles.shape == (2, 5)
    assert len(set(bundles.flatten().tolist()) & set(range(11))) == 10
    assert bundles.equal(make_bundles(11, 5, generator=torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="expected 1 <= size"):
        make_bundles(3, 5)


R = torch.tensor([[1.0, 0, 1], [0, 0, 0], [0, 1, 0], [1, 1, 0]], dtype=F64)
BUNDLES = torch.tensor([[3, 0]])
W = torch.tensor([[6.0, 2.0, -2.0]], dtype=F64)


def test_bundle_scores_add_up_papers():
    close(bundle_scores(R, BUNDLES), [[2.0, 1, 1]])
    close(bundle_scores(R, torch.tensor([[1], [2]])), R[[1, 2]])  # bundles of one: per answer


@pytest.mark.parametrize(
    ("credit", "third", "first"),
    [
        ("uniform", [6, 2, -2], [6, 2, -2]),
        ("score", [6, 2, 0], [6, 0, -2]),
        ("std", [6 / math.sqrt(2 / 9), 2 / math.sqrt(2 / 9), -2 / math.sqrt(2 / 9)], None),
        # d of question 3: 1/3 1/3 -2/3; of question 0: 1/3 -2/3 1/3; sums 2/3 -1/3 -1/3
        ("sum-mean", [2 * 6 * 0.5, 2 * 2 * -1, 2 * -2 * 2], [2 * 6 * 0.5, 2 * 2 * 2, 2 * -2 * -1]),
    ],
)
def test_bundle_advantage_credit_by_hand(credit, third, first):
    got = bundle_advantage(R, BUNDLES, W, credit=credit, normalise=False)
    close(got, [first or third, [0] * 3, [0] * 3, third], 1e-10)


def test_bundle_advantage_gives_an_all_wrong_question_a_signal():
    bundles = torch.tensor([[1, 0]])
    weights = mixed_var_weight(bundle_scores(R, bundles), 0.2, 0.9)
    got = bundle_advantage(R, bundles, weights, credit="uniform")
    assert got[1].unique().numel() == 2
    for credit in ("std", "sum-mean"):
        assert bundle_advantage(R, torch.tensor([[1, 1]]), W, credit=credit).isfinite().all()


def test_bundle_advantage_equal_shares_where_nothing_differs():
    got = bundle_advantage(R[[1, 1]], torch.tensor([[0, 1]]), W, credit="sum-mean", normalise=False)
    close(got, [[6, 2, -2]] * 2)
    close(bundle_advantage(R[[1, 1]], torch.tensor([[0, 1]]), W, credit="std", normalise=False), [[6, 2, -2]] * 2)


def test_bundle_advantage_normalises_by_the_std_of_papers():
    std = (2 / 9) ** 0.5
    close(bundle_advantage(R, BUNDLES, W)[0], [6 / (std + 1e-6), 2 / (std + 1e-6), -2 / (std + 1e-6)], 1e-10)


def test_bundle_advantage_refuses_unknown_credit():
    with pytest.raises(ConfigError, match="did you mean 'uniform'"):
        bundle_advantage(R, BUNDLES, W, credit="uniforms")


def test_quantile_tracker_moves_at_its_rate_and_keeps_no_graph():
    tracker = QuantileTracker((0.5,), rate=0.25)
    tracker.update(torch.tensor([1.0, 3.0], requires_grad=True))
    assert tracker[0.5] == 2.0
    tracker.update(torch.tensor([5.0, 7.0], requires_grad=True))
    assert tracker[0.5] == 2.125  # 2 + 1/4 (1/2 - 0): no score is below 2
    assert not tracker.quantiles.requires_grad
    assert json.loads(json.dumps(tracker.state_dict())) == {"quantiles": [2.125]}
