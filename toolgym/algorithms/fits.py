"""Curves through results: ScaleRL's sigmoid over compute, the power law over model size, each with its uncertainty.

These run on the host, in float64, deterministically: a grid over the parameters that enter nonlinearly, linear least
squares for the others, and a local refinement of the grid.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from toolgym.algorithms.registry import card


@card(family="fit", certainty="certain")
def sigmoid_curve(compute: Tensor, *, start: float, asymptote: float, exponent: float, midpoint: float) -> Tensor:
    """ScaleRL's pass rate over compute.

        R(C) = R_0 + (A - R_0) / (1 + (C_mid / C)^B)

    Args:    compute C: float > 0, any shape. start R_0, asymptote A, exponent B > 0, midpoint C_mid > 0.
    Returns: float64, the shape of ``compute``; R_0 at 0, A at infinity, their mean at C_mid.
    Source:  ScaleRL (arXiv:2510.13786) eq. 1.
    """
    log_c = compute.to(torch.float64).log()
    return start + (asymptote - start) * torch.sigmoid(exponent * (log_c - math.log(midpoint)))


@dataclass(frozen=True, slots=True, kw_only=True)
class SigmoidFit:
    """A fitted `sigmoid_curve`. ``bounded`` is false when the data do not limit the asymptote from above."""

    start: float
    asymptote: float
    exponent: float
    midpoint: float
    sse: float
    low: float
    high: float
    bounded: bool

    def predict(self, compute: Tensor) -> Tensor:
        """The curve at further compute, float64."""
        return sigmoid_curve(
            compute, start=self.start, asymptote=self.asymptote, exponent=self.exponent, midpoint=self.midpoint
        )


@card(family="fit", certainty="certain", parts=("sigmoid_curve",))
def fit_sigmoid(compute: Sequence[float], scores: Sequence[float], *, start: float, skip: float = 0.0) -> SigmoidFit:
    """Fit ScaleRL's sigmoid by least squares; the asymptote's interval from its profile.

        for fixed (B, C_mid):  A = R_0 + sum f (y - R_0) / sum f^2,  f = 1 / (1 + (C_mid / C)^B),  A in (R_0, 1]
        interval: all A with  min_{B, C_mid} SSE(A) <= SSE_min (1 + 3.84 / (n - 3))

    Args:    compute: > 0. scores: pass rates. start R_0: measured. skip: points with compute below it are dropped.
    Returns: the fit with the 95 % interval [low, high] of the asymptote. It is unbounded when the interval reaches 1
             or the data end before the midpoint.
    Raises:  ValueError: fewer than 4 points are left, a compute is not positive, or a value is not finite.
    Source:  ScaleRL (arXiv:2510.13786); the profile interval is ours (the paper states +-0.02 between runs).
    """
    pairs = [(c, y) for c, y in zip(compute, scores, strict=True) if not c < skip]
    if len(pairs) < 4 or not all(c > 0 and math.isfinite(c) and math.isfinite(y) for c, y in pairs):
        raise ValueError(f"got {len(pairs)} usable points, expected at least 4, finite, with positive compute")
    log_c = torch.tensor([c for c, _ in pairs], dtype=torch.float64).log()
    y = torch.tensor([y for _, y in pairs], dtype=torch.float64) - start
    b, mid = _candidates(log_c, 40, 80)
    grids = [_candidates(log_c, 60, 160)]
    for _ in range(12):  # each round narrows the grid around its best cell
        best, gain, sse = _sigmoid_grid(log_c, y, b, mid, 1 - start)
        i, j = best
        b, mid = _around(b.log(), i, 41).exp(), _around(mid, j, 41)
        grids.append((b, mid))
    _, gain, sse = _sigmoid_grid(log_c, y, b, mid, 1 - start)
    cell = int(sse.argmin())
    best_gain = float(gain.flatten()[cell])
    low, high = _asymptote_interval(log_c, y, 1 - start, float(sse.min()), grids)
    middle = float(mid[cell % len(mid)])
    return SigmoidFit(
        start=start,
        asymptote=start + best_gain,
        exponent=float(b[cell // len(mid)]),
        midpoint=math.exp(middle),
        sse=float(sse.min()),
        low=start + min(low, best_gain),
        high=start + max(high, best_gain),
        bounded=start + high < 1 - 1e-9 and middle < float(log_c.max()),
    )


def _candidates(log_c: Tensor, exponents: int, midpoints: int) -> tuple[Tensor, Tensor]:
    """Exponents from 0.3 to 5, log midpoints from a tenth of the least compute to ten times the largest; log-even."""
    b = torch.linspace(math.log(0.3), math.log(5.0), exponents, dtype=torch.float64).exp()
    low, high = float(log_c.min()) - math.log(10), float(log_c.max()) + math.log(10)
    return b, torch.linspace(low, high, midpoints, dtype=torch.float64)


def _sigmoid_grid(
    log_c: Tensor, y: Tensor, b: Tensor, mid: Tensor, limit: float
) -> tuple[tuple[int, int], Tensor, Tensor]:
    """Best cell, gains A - R_0 and squared errors over the grid [b, mid]; the gain lies in (0, limit].

    No division by 0: within the `_candidates`, f is at least 1e-5 at the largest compute.
    """
    f = _shapes(log_c, b, mid)
    gain = ((f * y).sum(-1) / f.square().sum(-1)).clamp(1e-9, limit)
    sse = (gain[..., None] * f - y).square().sum(-1)
    cell = int(sse.argmin())
    return (cell // len(mid), cell % len(mid)), gain, sse


def _around(grid: Tensor, place: int, n: int) -> Tensor:
    """A finer grid over the two cells beside ``place``."""
    low, high = grid[max(place - 1, 0)], grid[min(place + 1, len(grid) - 1)]
    return torch.linspace(float(low), float(high), n, dtype=torch.float64)


def _shapes(log_c: Tensor, b: Tensor, mid: Tensor) -> Tensor:
    """The curve from 0 to 1 for each exponent and midpoint, [b, mid, n]."""
    return torch.sigmoid(b[:, None, None] * (log_c - mid[None, :, None]))


def _asymptote_interval(
    log_c: Tensor, y: Tensor, limit: float, sse_min: float, grids: list[tuple[Tensor, Tensor]]
) -> tuple[float, float]:
    """Lowest and highest gain whose squared error, at its best (b, mid) of the ``grids``, passes the threshold.

    The grids must hold the optimum's neighbourhood at every scale: a coarse one alone may miss a sharp optimum.
    """
    n = len(y)
    bound = sse_min * (1 + 3.84 / max(n - 3, 1)) + 1e-12
    f = torch.cat([_shapes(log_c, b, mid).reshape(-1, n) for b, mid in grids])
    # SSE(A) is a parabola in A for every (b, mid): yy - 2 A fy + A^2 ff. No loop over A is needed for its roots.
    ff, fy, yy = f.square().sum(1), f @ y, y.square().sum()
    discriminant = fy.square() - ff * (yy - bound)
    inside = discriminant >= 0
    root = discriminant[inside].sqrt()
    low = ((fy[inside] - root) / ff[inside]).min()
    high = ((fy[inside] + root) / ff[inside]).max()
    return max(float(low), 0.0), min(float(high), limit)


@card(family="fit", certainty="certain")
def power_law_slope(size: Tensor, *, k_max: float, n0: float) -> Tensor:
    """How fast the loss falls with compute, by model size: larger models learn faster, up to a limit.

        k(N) = K_max / (1 + N_0 / N)

    Args:    size N: float > 0, any shape, parameters. k_max, n0 > 0.
    Returns: float64, the shape of ``size``; K_max / 2 at N_0.
    Source:  RL post-training scaling (arXiv:2509.25300).
    """
    return k_max / (1 + n0 / size.to(torch.float64))


@dataclass(frozen=True, slots=True, kw_only=True)
class PowerLawFit:
    """A fitted power law. ``identified`` is false with one model size: N_0 and K_max are then not separate.

    ``k_low`` and ``k_high`` bound K_max at 95 %, from the profile over N_0. ``intercepts`` are per size.
    """

    k_max: float
    n0: float
    intercepts: dict[float, float]
    r_squared: float
    k_low: float
    k_high: float
    identified: bool

    def slope(self, size: float) -> float:
        """k(N)."""
        return self.k_max / (1 + self.n0 / size)

    def predict(self, size: float, amount: Tensor, *, intercept: float | None = None) -> Tensor:
        """The loss at ``amount`` (compute or data), float64. Raises KeyError: a new size needs an intercept."""
        e = self.intercepts[size] if intercept is None else intercept
        return torch.pow(10.0, e - self.slope(size) * amount.to(torch.float64).log10())


@card(family="fit", certainty="certain", parts=("power_law_slope",))
def fit_power_law(points: Sequence[tuple[float, float, float]]) -> PowerLawFit:
    """Fit the power law of RL post-training: one slope function of model size, an intercept a size.

        log10 L(N, X) = -k(N) log10 X + E(N);   for fixed N_0 linear in (K_max, E); N_0 by grid and refinement
        every size has the same weight, however many points it has

    Args:    points: (N, X, L): model size, compute or data > 0, loss 1 - pass rate; L <= 1e-6 is dropped.
    Returns: the fit; K_max in [0, 2], N_0 in [1e8, 1e11].
    Raises:  ValueError: fewer than 3 usable points, or no size with two different X.
    Source:  RL post-training scaling (arXiv:2509.25300); fit_utils.py of its repository.
    Differs: the paper searches with CMA-ES; the grid gives the same optimum deterministically. With one size K_max
             is the slope itself, N_0 is 0.
    """
    usable = [p for p in points if p[2] > 1e-6 and p[0] > 0 and p[1] > 0]
    sizes = sorted({n for n, _, _ in usable})
    log_x, log_l, weight, scale = _centred_curves(usable, sizes)
    if len(usable) < 3 or not bool((log_x.abs() > 0).any()):
        raise ValueError(f"got {len(usable)} usable points of {len(sizes)} sizes, expected 3 with different amounts")
    identified = len(sizes) > 1
    grid = torch.linspace(8.0, 11.0, 200, dtype=torch.float64)
    if not identified:
        k, sse = _slopes(torch.full((1,), -torch.inf, dtype=torch.float64), log_x, log_l, weight, scale)
        grid = torch.full((1,), -torch.inf, dtype=torch.float64)
    else:
        k, sse = _slopes(grid, log_x, log_l, weight, scale)
        for _ in range(10):
            grid = _around(grid, int(sse.argmin()), 41)
            k, sse = _slopes(grid, log_x, log_l, weight, scale)
    best = sse.argmin()
    k_max, n0 = float(k[best]), float(10.0 ** grid[best])
    k_low, k_high = _slope_interval(log_x, log_l, weight, scale, identified)
    intercepts = {
        n: _mean([math.log10(loss) + k_max / (1 + n0 / n) * math.log10(x) for m, x, loss in usable if m == n])
        for n in sizes
    }
    total = float((weight * log_l.square()).sum())
    r_squared = 1 - float(sse[best]) / total if total > 0 else 1.0
    return PowerLawFit(
        k_max=k_max,
        n0=n0,
        intercepts=intercepts,
        r_squared=r_squared,
        k_low=min(k_low, k_max),
        k_high=max(k_high, k_max),
        identified=identified,
    )


def _mean(values: list[float]) -> float:
    return sum(values) / len(values)


def _centred_curves(points: Sequence[tuple[float, float, float]], sizes: list[float]) -> tuple[Tensor, ...]:
    """log10 X and log10 L, each minus its mean over its size (which removes E), the weights, and the sizes."""
    xs: list[float] = []
    ls: list[float] = []
    ws: list[float] = []
    ns: list[float] = []
    for n in sizes:
        curve = [(math.log10(x), math.log10(loss)) for m, x, loss in points if m == n]
        mean_x, mean_l = _mean([x for x, _ in curve]), _mean([loss for _, loss in curve])
        xs += [x - mean_x for x, _ in curve]
        ls += [loss - mean_l for _, loss in curve]
        ws += [1 / len(curve)] * len(curve)
        ns += [n] * len(curve)
    return tuple(torch.tensor(v, dtype=torch.float64) for v in (xs, ls, ws, ns))


def _slopes(log_n0: Tensor, log_x: Tensor, log_l: Tensor, weight: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Best K_max in [0, 2] and squared error for each candidate N_0."""
    basis = -log_x / (1 + 10.0 ** log_n0[:, None] / size)
    k = ((weight * basis * log_l).sum(1) / (weight * basis.square()).sum(1)).clamp(0.0, 2.0)
    return k, (weight * (k[:, None] * basis - log_l).square()).sum(1)


def _slope_interval(
    log_x: Tensor, log_l: Tensor, weight: Tensor, size: Tensor, identified: bool
) -> tuple[float, float]:
    """Lowest and highest K_max whose squared error, at its best N_0, passes the 95 % threshold."""
    grid = torch.linspace(8.0, 11.0, 2000, dtype=torch.float64) if identified else torch.tensor([-torch.inf]).double()
    basis = -log_x / (1 + 10.0 ** grid[:, None] / size)
    cross, square, total = (weight * basis * log_l).sum(1), (weight * basis.square()).sum(1), (weight * log_l**2).sum()
    sse = total - cross.square() / square
    sizes = len({float(n) for n in size})
    free = max(len(log_x) - sizes - (2 if identified else 1), 1)
    bound = sse.min() * (1 + 3.84 / free) + 1e-15
    discriminant = (cross.square() - square * (total - bound)).clamp(min=0)
    inside = sse <= bound
    root = discriminant.sqrt()
    low, high = ((cross - root) / square)[inside].min(), ((cross + root) / square)[inside].max()
    return max(float(low), 0.0), min(float(high), 2.0)
