"""AlpacaEval 2's length-controlled win rate on made-up preferences whose coefficients are known."""

import math

import numpy as np
import pytest

from toolgym.algorithms.win_rate import _newton_step, length_controlled_winrate
from toolgym.errors import ConfigError

GAP = np.linspace(-100, 300, 401)


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x)))


def fitted(q, gap=GAP, **options):
    return length_controlled_winrate(q, gap + 500, np.full(len(gap), 500.0), l2=1e-12, **options)


def test_length_controlled_winrate_worked_values():
    assert np.std(GAP) == pytest.approx(115.7584, abs=5e-5)
    got = fitted(sigmoid(2 * np.tanh(GAP / np.std(GAP))))
    assert got.raw == pytest.approx(67.9205, abs=5e-5)
    assert got.theta == pytest.approx(0.0, abs=1e-9)
    assert got.phi == pytest.approx(2.0, abs=1e-9)
    assert got.lc == pytest.approx(50.0, abs=1e-6)
    got = fitted(sigmoid(0.5 + 2 * np.tanh(GAP / np.std(GAP))))
    assert got.raw == pytest.approx(75.6310, abs=5e-5)
    assert got.lc == pytest.approx(62.2459, abs=5e-5)


def test_length_controlled_winrate_of_swapped_models_is_the_complement():
    q = sigmoid(0.5 + 2 * np.tanh(GAP / np.std(GAP)))
    assert fitted(q).lc + fitted(1 - q, -GAP).lc == pytest.approx(100.0, abs=1e-6)


def test_length_controlled_winrate_without_length_differences_is_raw():
    got = fitted([1.0, 0.0, 1.0, 0.5], np.zeros(4))
    assert got.lc == pytest.approx(got.raw, abs=1e-6)
    assert got.phi == 0.0
    assert fitted([0.5] * 5, np.arange(5.0)).lc == pytest.approx(50.0, abs=1e-6)


def test_length_controlled_winrate_uses_difficulty():
    gamma = np.cos(np.arange(401))
    q = sigmoid(0.3 + 1.5 * np.tanh(GAP / np.std(GAP)) - 0.8 * gamma)
    got = fitted(q, difficulty=gamma)
    assert (got.theta, got.phi, got.psi) == pytest.approx((0.3, 1.5, -0.8), abs=1e-8)
    assert got.lc == pytest.approx(100 * sigmoid(0.3 - 0.8 * gamma).mean(), abs=1e-6)


def test_length_controlled_winrate_of_separable_preferences_is_finite():
    got = length_controlled_winrate((GAP > 50).astype(float), GAP, np.zeros(401))
    assert all(map(math.isfinite, (got.lc, got.theta, got.phi)))
    assert length_controlled_winrate([1.0, 1.0], [1, 2], [2, 1]).lc > 99


def test_length_controlled_winrate_standard_error():
    assert fitted([1.0, 0.0, 1.0, 0.0], np.arange(4.0)).se == pytest.approx(100 * math.sqrt(1 / 3) / 2, abs=1e-9)
    assert math.isnan(length_controlled_winrate([1.0], [1], [1]).se)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [], []), "got 0"),
        (([0.5], [1, 2], [1]), "got 1 preferences"),
        (([1.5], [1], [1]), r"outside \[0, 1\]"),
        (([-0.5], [1], [1]), r"outside \[0, 1\]"),
    ],
)
def test_length_controlled_winrate_refuses(arguments, message):
    with pytest.raises(ConfigError, match=message):
        length_controlled_winrate(*arguments)


@pytest.mark.parametrize(("weight", "l2"), [(0.0, 0.0), (1.0, 0.5)])
def test_newton_step_of_a_constant_alone(weight, l2):
    q = float(sigmoid(weight))
    got = _newton_step(np.ones((4, 1)), np.array([1.0, 1.0, 1.0, 0.0]), np.array([weight]), l2)
    assert got.tolist() == pytest.approx([(q - 0.75 + l2 * weight) / (q * (1 - q) + l2)], abs=1e-12)
