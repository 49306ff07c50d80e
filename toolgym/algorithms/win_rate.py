"""Length-controlled win rate (AlpacaEval 2). numpy only, no torch: it is part of evaluation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError

Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, kw_only=True)
class WinRate:
    """A win rate in percent. ``WinRate(lc=50.0, raw=67.9, theta=0.0, phi=2.0, psi=0.0, se=1.7)``; se is of ``raw``."""

    lc: float
    raw: float
    theta: float
    phi: float
    psi: float
    se: float


def _logistic(x: Floats) -> Floats:
    return np.asarray(np.exp(-np.logaddexp(0.0, -x)), np.float64)


def _newton_step(design: Floats, target: Floats, weights: Floats, l2: float) -> Floats:
    n, k = design.shape
    q = _logistic(design @ weights)
    gradient = design.T @ (q - target) / n + l2 * weights
    hessian = (design * (q * (1 - q))[:, None]).T @ design / n + l2 * np.eye(k)
    return np.asarray(np.linalg.solve(hessian, gradient), np.float64)


def _fit(design: Floats, target: Floats, l2: float) -> Floats:
    """Ridge logistic regression on soft labels by damped Newton steps."""

    def objective(w: Floats) -> float:
        z = design @ w
        return float(np.mean(np.logaddexp(0.0, z) - target * z) + 0.5 * l2 * w @ w)

    def damped(w: Floats) -> Floats:
        step = _newton_step(design, target, w, l2)
        scale = 1.0
        while scale > 1e-8 and objective(np.asarray(w - scale * step)) > objective(w):
            scale /= 2
        return np.asarray(w - scale * step, np.float64)

    weights = np.zeros(design.shape[1])
    for _ in range(200):
        before, weights = weights, damped(weights)
        if float(np.max(np.abs(weights - before))) < 1e-13:
            break
    return weights


@card(family="preference", certainty="certain")
def length_controlled_winrate(
    preferences: Sequence[float],
    length_model: Sequence[float],
    length_baseline: Sequence[float],
    *,
    difficulty: Sequence[float] | None = None,
    l2: float = 1e-6,
) -> WinRate:
    """AlpacaEval 2's win rate with the effect of length taken out by a regression.

        logit q_i = theta + phi tanh((len_m - len_b) / std) + psi gamma_i;   LC = 100 mean_i sigmoid(theta + psi
        gamma_i)

    Args:    preferences: n numbers in [0, 1] for the model over the baseline (a tie is 0.5; AlpacaEval stores 1 + q).
             length_model, length_baseline: n lengths each. difficulty: n, gamma per instruction, or None to leave it
             out. l2 > 0: ridge, keeps separable preferences finite.
    Returns: `WinRate`; ``se`` is the standard error of the raw win rate (sample std / sqrt n).
    Raises:  ConfigError: lengths differ, no preferences, or a preference outside [0, 1].
    Edge:    all length differences equal: the term is dropped and LC is the raw win rate (without difficulty).
    Source:  Length-controlled AlpacaEval (arXiv:2404.04475), official repository; std is the population's.
    Differs: no cross-validated ridge and no pull toward known gamed baselines (the official weights have 0.2 of it).
    """
    q = np.asarray(preferences, np.float64)
    columns = [np.asarray(x, np.float64) for x in (length_model, length_baseline)]
    gamma = np.zeros_like(q) if difficulty is None else np.asarray(difficulty, np.float64)
    if q.ndim != 1 or len(q) == 0 or any(x.shape != q.shape for x in (*columns, gamma)):
        raise ConfigError(
            f"got {len(q)} preferences and {[len(x) for x in (*columns, gamma)]} lengths and difficulties"
        )
    if not bool(np.all((q >= 0) & (q <= 1))):
        raise ConfigError("got preferences outside [0, 1]; AlpacaEval's 1 to 2 need 1 subtracted")
    gap = np.asarray(columns[0] - columns[1], np.float64)
    spread = float(np.std(gap))
    length = np.asarray(np.tanh(gap / spread), np.float64) if spread > 0 else np.zeros_like(gap)
    terms: list[Floats] = [np.ones_like(q), length, gamma]
    used = [i for i, term in enumerate(terms) if i == 0 or bool(np.any(term != 0))]
    weights: Floats = np.zeros(3)
    weights[used] = _fit(np.stack([terms[i] for i in used], 1), q, l2)
    theta, phi, psi = (float(w) for w in weights)
    controlled = 100 * float(np.mean(_logistic(theta + psi * gamma)))
    error = 100 * float(np.std(q, ddof=1)) / math.sqrt(len(q)) if len(q) > 1 else math.nan
    return WinRate(lc=controlled, raw=100 * float(np.mean(q)), theta=theta, phi=phi, psi=psi, se=error)
