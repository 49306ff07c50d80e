"""Fits: exact on curves without noise, honest about what the data cannot say."""

import math

import pytest
import torch

from toolgym.algorithms.fits import _around, _candidates, fit_power_law, fit_sigmoid, power_law_slope, sigmoid_curve

TRUE = {"start": 0.30, "asymptote": 0.645, "exponent": 1.7, "midpoint": 8000.0}
COMPUTE = [float(c) for c in torch.logspace(3, 4.7, 24)]


def curve(compute, **changes):
    return [float(x) for x in sigmoid_curve(torch.tensor(compute, dtype=torch.float64), **(TRUE | changes))]


def test_sigmoid_curve_worked_values():
    got = curve([8000.0, 2000.0, 50000.0, 1e-300, 1e300])
    assert got == pytest.approx([0.4725, 0.3299, 0.6303, 0.30, 0.645], abs=5e-5)


def test_fit_sigmoid_recovers_a_curve_without_noise():
    fit = fit_sigmoid(COMPUTE, curve(COMPUTE), start=0.30)
    assert fit.asymptote == pytest.approx(0.645, abs=1e-4)
    assert fit.exponent == pytest.approx(1.7, abs=1e-2)
    assert fit.midpoint == pytest.approx(8000, rel=1e-2)
    assert fit.bounded
    assert all(type(x) is float for x in (fit.asymptote, fit.exponent, fit.midpoint, fit.sse, fit.low, fit.high))
    assert 0.64 < fit.low <= fit.asymptote <= fit.high < 0.65
    assert fit.sse < 1e-8


def test_fit_sigmoid_holds_the_asymptote_at_one():
    fit = fit_sigmoid(COMPUTE, curve(COMPUTE, asymptote=1.2), start=0.30)
    assert fit.asymptote == fit.high == pytest.approx(1.0, abs=1e-12)
    assert not fit.bounded


def test_fit_sigmoid_of_falling_scores_has_no_gain():
    fit = fit_sigmoid(COMPUTE, curve(COMPUTE, asymptote=0.1), start=0.30)
    assert fit.asymptote == pytest.approx(0.30, abs=1e-8)


def test_fit_sigmoid_of_flat_scores_leaves_room_for_a_late_rise():
    fit = fit_sigmoid(COMPUTE, [0.30] * len(COMPUTE), start=0.30)
    assert fit.asymptote == pytest.approx(0.30, abs=1e-8)
    assert fit.low == pytest.approx(0.30, abs=1e-8)
    assert fit.high > 0.31


def test_fit_sigmoid_searches_a_factor_of_ten_beyond_the_data():
    b, middle = _candidates(torch.tensor([100.0, 1.0, 10.0], dtype=torch.float64).log(), 3, 5)
    assert b.tolist() == pytest.approx([0.3, 1.5**0.5, 5.0], rel=1e-12)
    assert middle.exp().tolist() == pytest.approx([0.1, 1.0, 10.0, 100.0, 1000.0], rel=1e-12)


@pytest.mark.parametrize(("place", "finer"), [(0, [0.0, 0.5, 1.0]), (2, [1.0, 2.0, 3.0]), (3, [2.0, 2.5, 3.0])])
def test_fit_refines_over_the_two_cells_beside_the_best(place, finer):
    assert _around(torch.arange(4, dtype=torch.float64), place, 3).tolist() == finer


def test_fit_sigmoid_covers_the_truth_and_predicts_the_rest_of_the_run():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(8):
        noise = 0.005 * torch.randn(len(COMPUTE), generator=generator)
        fit = fit_sigmoid(COMPUTE, [y + float(e) for y, e in zip(curve(COMPUTE), noise, strict=True)], start=0.30)
        covered += fit.low <= 0.645 <= fit.high
        assert float(fit.predict(torch.tensor(1e5))) == pytest.approx(curve([1e5])[0], abs=0.03)
    assert covered >= 6


@pytest.mark.parametrize(("n", "step", "exponent"), [(4, 10.0, 1.7), (12, 2.0, 2.5), (12, 1.8738, 1.7)])
def test_fit_sigmoid_interval_ends_where_the_profiled_error_reaches_its_bound(n, step, exponent):
    compute = [1000.0 * step**i for i in range(n)]
    scores = [y + 0.002 * (-1) ** i for i, y in enumerate(curve(compute, exponent=exponent))]
    fit = fit_sigmoid(compute, scores, start=0.30)
    log_c, y = torch.tensor(compute, dtype=torch.float64).log(), torch.tensor(scores, dtype=torch.float64) - 0.30
    b, middle = _candidates(log_c, 400, 800)
    f = torch.sigmoid(b[:, None, None] * (log_c - middle[:, None]))
    assert fit.low < fit.asymptote - 1e-4
    assert fit.high > fit.asymptote + 1e-4
    for end in (fit.low, fit.high):
        profiled = ((end - 0.30) * f - y).square().sum(-1).min()
        assert float(profiled) == pytest.approx(fit.sse * (1 + 3.84 / (n - 3)), rel=0.1)


def test_fit_sigmoid_says_when_the_asymptote_is_not_identified():
    early = [c for c in COMPUTE if c < 5000]
    generator = torch.Generator().manual_seed(1)
    noisy = [y + 0.003 * float(torch.randn((), generator=generator)) for y in curve(early)]
    assert not fit_sigmoid(early, noisy, start=0.30).bounded


def test_fit_sigmoid_skips_the_low_compute_regime():
    scores = curve(COMPUTE)
    spoilt = [0.9 if c < 1500 else y for c, y in zip(COMPUTE, scores, strict=True)]
    assert fit_sigmoid(COMPUTE, spoilt, start=0.30, skip=1500).asymptote == pytest.approx(0.645, abs=1e-3)


@pytest.mark.parametrize("compute", [[1.0, 2.0, 3.0], [0.0, 1.0, 2.0, 3.0], [1.0, math.nan, 2.0, 3.0, 4.0]])
def test_fit_sigmoid_refuses_what_it_cannot_fit(compute):
    with pytest.raises(ValueError, match="usable points"):
        fit_sigmoid(compute, [0.5] * len(compute), start=0.3)


K, N0 = 0.4, 7e9
SIZES = {5e8: 0.3, 3e9: 0.5, 7e9: 0.6, 3.2e10: 0.9}


def law(size, x, e):
    return 10 ** (e - K / (1 + N0 / size) * math.log10(x))


POINTS = [(n, x, law(n, x, e)) for n, e in SIZES.items() for x in (1e3, 1e4, 1e5, 1e6)]


def test_power_law_slope_is_half_its_limit_at_n0_and_saturates():
    got = power_law_slope(torch.tensor([7e9, 1e30, 1e8, 1e9]), k_max=K, n0=N0)
    assert got[:2].tolist() == pytest.approx([K / 2, K])
    assert got[2] < got[3]


def test_fit_power_law_recovers_a_law_without_noise():
    fit = fit_power_law(POINTS)
    assert fit.k_max == pytest.approx(K, abs=1e-3)
    assert fit.n0 == pytest.approx(N0, rel=1e-2)
    assert fit.r_squared == pytest.approx(1.0, abs=1e-6)
    assert fit.identified
    for n, e in SIZES.items():
        assert fit.intercepts[n] == pytest.approx(e, abs=5e-3)
        assert float(fit.predict(n, torch.tensor(1e5))) == pytest.approx(law(n, 1e5, e), rel=5e-3)


def test_fit_power_law_extrapolates_to_a_larger_model():
    fit = fit_power_law([p for p in POINTS if p[0] < 3e10])
    assert fit.slope(3.2e10) == pytest.approx(K / (1 + N0 / 3.2e10), rel=0.01)
    with pytest.raises(KeyError):
        fit.predict(3.2e10, torch.tensor(1e5))
    got = float(fit.predict(3.2e10, torch.tensor(1e5), intercept=0.9))
    assert got == pytest.approx(law(3.2e10, 1e5, 0.9), rel=0.02)


def test_fit_power_law_with_noise_is_near_and_its_interval_covers():
    generator = torch.Generator().manual_seed(0)
    covered = 0
    for _ in range(10):
        noisy = [(n, x, y * math.exp(0.02 * float(torch.randn((), generator=generator)))) for n, x, y in POINTS]
        fit = fit_power_law(noisy)
        assert fit.k_max == pytest.approx(K, abs=0.05)
        covered += fit.k_low <= K <= fit.k_high
    assert covered >= 8


def test_fit_power_law_every_size_weighs_the_same():
    doubled = POINTS + [p for p in POINTS if p[0] == 5e8]
    bent = [(n, x, y * (1.1 if x == 1e6 and n == 5e8 else 1.0)) for n, x, y in doubled]
    single = [(n, x, y * (1.1 if x == 1e6 and n == 5e8 else 1.0)) for n, x, y in POINTS]
    assert fit_power_law(bent).k_max == pytest.approx(fit_power_law(single).k_max, abs=1e-9)


def test_fit_power_law_one_size_is_a_straight_line():
    fit = fit_power_law([p for p in POINTS if p[0] == 7e9])
    assert not fit.identified
    assert fit.slope(7e9) == pytest.approx(K / 2)
    assert fit.k_low <= fit.k_max <= fit.k_high


def test_fit_power_law_drops_a_loss_of_zero_and_refuses_too_little():
    fit = fit_power_law([*POINTS, (7e9, 1e9, 0.0)])
    assert fit.k_max == pytest.approx(K, abs=1e-3)
    with pytest.raises(ValueError, match="usable points"):
        fit_power_law(POINTS[:2])
    with pytest.raises(ValueError, match="different amounts"):
        fit_power_law([(1e9, 10.0, 0.5), (2e9, 10.0, 0.4), (3e9, 10.0, 0.3)])


def test_fit_power_law_explains_nothing_where_there_is_no_slope():
    a = 0.3
    fit = fit_power_law([(1e9, 10.0, 10 ** (a - 1)), (1e9, 100.0, 10 ** (-2 * a - 1)), (1e9, 1000.0, 10 ** (a - 1))])
    assert fit.k_max == pytest.approx(0.0, abs=1e-12)
    assert fit.r_squared == pytest.approx(0.0, abs=1e-9)


def test_fit_power_law_one_size_has_the_interval_of_a_straight_line():
    # log10 X is -1 0 1 and log10 L, centred, k + a, -2 a, a - k: with weights 1/3 the squared error is 2 a^2 at K = k
    # and 2 a^2 + 2/3 (K - k)^2 elsewhere, and one degree of freedom is left: (K - k)^2 <= 3/2 3.84 2 a^2.
    k, a = 0.5, 0.05
    fit = fit_power_law(
        [(1e9, 10.0, 10 ** (k + a - 1)), (1e9, 100.0, 10 ** (-2 * a - 1)), (1e9, 1e3, 10 ** (a - k - 1))]
    )
    assert fit.k_max == pytest.approx(k, abs=1e-9)
    assert fit.k_low == pytest.approx(k - a * 11.52**0.5, abs=1e-9)
    assert fit.k_high == pytest.approx(k + a * 11.52**0.5, abs=1e-9)
    assert fit.r_squared == pytest.approx(1 - 6 * a**2 / (6 * a**2 + 2 * k**2), abs=1e-9)


@pytest.mark.parametrize(("k", "bound"), [(-0.5, 0.0), (3.0, 2.0)])
def test_fit_power_law_slope_stays_between_zero_and_two(k, bound):
    fit = fit_power_law([(1e9, x, 0.1 * x**-k) for x in (1.0, 2.0, 4.0)])
    assert fit.k_max == fit.k_low == fit.k_high == bound


def test_fit_power_law_explains_all_of_what_does_not_vary():
    fit = fit_power_law([(1e9, x, 0.5) for x in (1.0, 10.0, 100.0, 1000.0)])
    assert fit.k_max == 0.0
    assert repr(fit.r_squared) == "1.0"
    assert all(type(x) is float for x in (fit_power_law(POINTS).r_squared, fit.k_max, fit.n0, fit.k_low, fit.k_high))
