"""GCWM: geometry-conflict Wasserstein merging of weight matrices.

Each task's update D (out x in) has a covariance ``C = D^T D``. How far the covariances disagree (Bures-Wasserstein)
decides how much of the merge happens in a space whitened by their barycenter. All in float64, for determinism.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor

from toolgym.algorithms.masking import upcast
from toolgym.algorithms.merging import check_states, merge_tensors, svd, task_vectors
from toolgym.algorithms.registry import card
from toolgym.errors import ConfigError, nearest

State: TypeAlias = Mapping[str, Tensor]
PROJECTIONS = r"\b(q|k|v|o|gate|up|down)_proj\b"


def _eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    values, vectors = torch.linalg.eigh(x)  # pyright: ignore
    return values, vectors  # pyright: ignore


def _power(x: Tensor, exponent: float) -> Tensor:
    """Power of a symmetric positive semi-definite matrix; eigenvalues that rounding made negative count as 0."""
    values, vectors = _eigh((x + x.mT) / 2)
    floor = 0.0 if exponent > 0 else torch.finfo(x.dtype).tiny
    return (vectors * values.clamp(min=floor).pow(exponent).unsqueeze(-2)) @ vectors.mT


def _size(x: Tensor) -> Tensor:
    return x.square().sum().sqrt()


def _trace(x: Tensor) -> Tensor:
    return x.diagonal(dim1=-2, dim2=-1).sum(-1)


@card(family="merging", certainty="certain")
def bures_distance(a: Tensor, b: Tensor) -> Tensor:
    """Squared Bures-Wasserstein distance of two covariances.

        d^2(A, B) = tr A + tr B - 2 tr (A^(1/2) B A^(1/2))^(1/2)

    Args:    a, b: float [..., d, d], symmetric positive semi-definite.
    Returns: float [...], >= 0; symmetric; 0 iff equal.
    Source:  GCWM, official repository (wyy-code/GCWM).
    """
    root = _power(upcast(a), 0.5)
    cross = _power(root @ upcast(b) @ root, 0.5)
    return (_trace(upcast(a)) + _trace(upcast(b)) - 2 * _trace(cross)).clamp(min=0)


@card(family="merging", certainty="certain", parts=("bures_distance",))
def geometry_conflict(covariances: Tensor, *, weights: Sequence[float] | None = None, eps: float = 1e-12) -> Tensor:
    """How much the tasks' geometries disagree.

        g = sum_{i<j} w_ij gamma_ij,  gamma_ij = d^2(C_i, C_j) / (tr C_i + tr C_j + eps),  w_ij ∝ w_i w_j

    Args:    covariances: float [n, d, d]. weights: n positive weights, None is equal.
    Returns: scalar in [0, 1]; 0 for one task.
    Source:  GCWM, official repository.
    """
    n = covariances.shape[0]
    w = [1.0] * n if weights is None else list(weights)
    pairs = [(i, j) for i in range(n) for j in range(i + 1, n)]
    total = sum(w[i] * w[j] for i, j in pairs)
    g = upcast(covariances).new_zeros(())
    for i, j in pairs:
        size = _trace(upcast(covariances[i])) + _trace(upcast(covariances[j])) + eps
        g = g + w[i] * w[j] / total * bures_distance(covariances[i], covariances[j]) / size
    return g


@card(family="merging", certainty="certain")
def conflict_gate(
    conflict: Tensor, *, threshold: float = 0.12, sharpness: float = 12.0, low: float = 0.15, high: float = 0.95
) -> Tensor:
    """Share of the geometric merge.

        a = a_min + (a_max - a_min) sigmoid(kappa (g - tau))

    Args:    conflict: g, float [...]. threshold: tau. sharpness: kappa > 0. low, high: a_min and a_max.
    Returns: float [...] in [low, high]; grows with g.
    Source:  GCWM, official repository.
    """
    return low + (high - low) * (sharpness * (upcast(conflict) - threshold)).sigmoid()


@card(family="merging", certainty="certain")
def wasserstein_barycenter(
    covariances: Tensor, *, weights: Sequence[float] | None = None, iterations: int = 50, tolerance: float = 1e-5
) -> Tensor:
    """Barycenter of covariances under the Bures-Wasserstein distance, by fixed-point iteration.

        B <- B^(-1/2) (sum_i w_i (B^(1/2) C_i B^(1/2))^(1/2))^2 B^(-1/2),  from sum_i w_i C_i,  sum_i w_i = 1

    Args:    covariances: float [n, d, d], positive definite. weights: n positive weights, None is equal. tolerance:
             stops when the relative change in Frobenius norm falls below it.
    Returns: float [d, d]. Commuting covariances give (sum_i w_i C_i^(1/2))^2.
    Source:  Alvarez-Esteban et al. (2016); GCWM, official repository.
    """
    c = upcast(covariances)
    w = c.new_tensor([1.0] * c.shape[0] if weights is None else list(weights))
    w = (w / w.sum()).reshape(-1, 1, 1)
    b = (w * c).sum(0)
    for _ in range(iterations):
        root, inverse = _power(b, 0.5), _power(b, -0.5)
        middle = (w * _power(root @ c @ root, 0.5)).sum(0)
        before, b = b, inverse @ middle @ middle @ inverse
        if _size(b - before) <= tolerance * _size(before):
            break
    return b


@card(family="merging", certainty="certain")
def wudi(
    updates: Tensor,
    *,
    weights: Sequence[float] | None = None,
    method: Literal["exact", "adam"] = "exact",
    lr: float = 1e-5,
    iterations: int = 300,
) -> Tensor:
    """Merge updates so that each task's own inputs see as little of the others as possible.

        min_M sum_t w_t ||(M - D_t) D_t^T||_F^2 / ||D_t||_F^2
        exact: M = (sum_t c_t D_t G_t)(sum_t c_t G_t)^+,  G_t = D_t^T D_t,  c_t = w_t / ||D_t||_F^2

    Args:    updates: float [n, out, in]. weights: n positive weights, None is equal. method: the least-norm minimiser,
             or Adam from sum_t D_t with ``lr`` and ``iterations`` as the paper does.
    Returns: float [out, in]. One task gives its update; orthogonal row spaces give the sum.
    Raises:  ConfigError: unknown method.
    Source:  WUDI-Merging (arXiv:2503.08099); GCWM, official repository.
    Differs: the exact minimiser is derived and the default: Adam with the paper's 300 small steps stops near its start.
    """
    d = upcast(updates.detach())
    w = d.new_ones(d.shape[0]) if weights is None else d.new_tensor(list(weights))
    norms = d.square().sum((1, 2))
    c = torch.where(norms > 0, w / torch.where(norms > 0, norms, 1.0), 0.0).reshape(-1, 1, 1)
    gram = d.mT @ d
    if method == "exact":
        total = (c * gram).sum(0)
        inverse = torch.linalg.pinv(total, hermitian=True)  # pyright: ignore
        return (c * (d @ gram)).sum(0) @ inverse  # pyright: ignore
    if method != "adam":
        raise ConfigError(nearest(method, ("exact", "adam"), what="WUDI method"))
    merged = d.sum(0).clone().requires_grad_(True)
    optimiser = torch.optim.Adam([merged], lr=lr)
    with torch.enable_grad():
        for _ in range(iterations):
            loss = (c * ((merged - d) @ d.mT).square()).sum()
            (merged.grad,) = torch.autograd.grad(loss, merged)
            optimiser.step()  # pyright: ignore[reportUnknownMemberType]
    return merged.detach()


@dataclass(frozen=True, slots=True, kw_only=True)
class Whitening:
    """Whitening by a barycenter in a common basis, and back. ``basis`` [in, r] orthonormal, ``barycenter`` [r, r]."""

    basis: Tensor
    barycenter: Tensor
    floor: float

    def _apply(self, d: Tensor, exponent: float) -> Tensor:
        inside = d @ self.basis
        outside = d - inside @ self.basis.mT
        return inside @ _power(self.barycenter, exponent) @ self.basis.mT + self.floor**exponent * outside

    def whiten(self, d: Tensor) -> Tensor:
        """``D Q B^(-1/2) Q^T + floor^(-1/2) (D - D Q Q^T)`` for D float [..., out, in]."""
        return self._apply(d, -0.5)

    def recolour(self, x: Tensor) -> Tensor:
        """The inverse of `whiten`."""
        return self._apply(x, 0.5)


def common_geometry(updates: Tensor, *, rank: int = 16, floor: float = 1e-6) -> tuple[Tensor, Tensor]:
    """A common orthonormal basis Q [in, r] and each update's covariance in it, [n, r, r], from rank-limited SVDs.

    Q = orth[V_1 .. V_n];   B_i = Q^T V_i S_i^2 V_i^T Q + floor I
    """
    _, sigma, v = svd(updates)
    size = min(rank, sigma.shape[-1])
    vectors = v[:, :size].mT  # [n, in, size]
    u, scale, _ = svd(torch.cat(list(vectors), 1))
    basis = u[:, scale > 1e-8 * scale.max()]
    loadings = (basis.mT @ vectors) * sigma[:, :size].unsqueeze(1)
    return basis, loadings @ loadings.mT + floor * torch.eye(basis.shape[1], dtype=updates.dtype)


@card(
    family="merging",
    certainty="certain",
    parts=("geometry_conflict", "conflict_gate", "wasserstein_barycenter", "wudi"),
)
def gcwm_merge(
    updates: Tensor, *, weights: Sequence[float] | None = None, rank: int = 16, floor: float = 1e-6
) -> tuple[Tensor, dict[str, Tensor]]:
    """Merge the updates of one weight matrix: geometrically as far as the tasks conflict, plainly otherwise.

        D = a recolour(WUDI(whiten(D_1), ..)) + (1 - a) WUDI(D_1, ..);   a = `conflict_gate` of `geometry_conflict`
        a <= 0.05: the plain part alone;   a >= 0.95: the geometric part alone

    Args:    updates: float [n, out, in]. weights: n positive weights, None is equal. rank: of each task's covariance.
             floor: lambda, the variance outside.
    Returns: float [out, in] in float32 or float64 (computed in float64); metrics: conflict, gate.
    Edge:    one task, or equal tasks, give that update.
    Source:  GCWM (paper and official repository, wyy-code/GCWM).
    """
    dtype = upcast(updates).dtype
    d = updates.detach().to(torch.float64)
    basis, covariances = common_geometry(d, rank=rank, floor=floor)
    conflict = geometry_conflict(covariances, weights=weights)
    gate = conflict_gate(conflict)
    plain = wudi(d, weights=weights)
    merged = plain
    if gate > 0.05:
        space = Whitening(basis=basis, barycenter=wasserstein_barycenter(covariances, weights=weights), floor=floor)
        geometric = space.recolour(wudi(space.whiten(d), weights=weights))
        merged = geometric if gate >= 0.95 else gate * geometric + (1 - gate) * plain
    return merged.to(dtype), {"conflict": conflict.to(dtype), "gate": gate.to(dtype)}


@card(family="merging", certainty="certain", parts=("gcwm_merge", "average"))
def gcwm(
    base: State,
    states: Sequence[State],
    *,
    weights: Sequence[float] | None = None,
    projections: str = PROJECTIONS,
    rank: int = 16,
) -> dict[str, Tensor]:
    """GCWM on state dicts: matrices of the projections by `gcwm_merge`, everything else averaged.

        theta_0 + gcwm_merge(tau_1, ..., tau_n)

    Args:    base: theta_0. states: one or more fine-tuned states. weights: one a state, None is equal. projections:
             regular expression that 2-D names must contain. rank: see `gcwm_merge`.
    Returns: new state dict in the base's dtypes.
    Raises:  ConfigError: states or weights that do not fit.
    Source:  GCWM (paper and official repository, wyy-code/GCWM).
    """
    check_states([base, *states])
    if not states or (weights is not None and len(weights) != len(states)):
        raise ConfigError(f"got {len(states)} states and {'no' if weights is None else len(weights)} weights")
    taus = task_vectors(base, states)
    shares = [1.0] * len(states) if weights is None else list(weights)
    total = math.fsum(shares)

    def rule(name: str, xs: list[Tensor]) -> Tensor:
        stacked = torch.stack([tau[name] for tau in taus])
        if xs[0].dim() == 2 and re.search(projections, name):
            return xs[0] + gcwm_merge(stacked, weights=weights, rank=rank)[0]
        share = stacked.new_tensor(shares).reshape(-1, *[1] * xs[0].dim()) / total
        return xs[0] + (share * stacked).sum(0)

    return merge_tensors([base], rule)


@card(family="merging", certainty="certain")
def continual_merge(
    previous: State, update: State, last_update: State | None = None, *, eta: float = 1.0
) -> dict[str, Tensor]:
    """Move a continually merged model by the change of the merged update.

        theta_t = theta_{t-1} + eta (D_t - D_{t-1})

    Args:    previous: theta_{t-1}. update: D_t, merged over tasks 1..t (names of ``previous``, or some of them).
             last_update: D_{t-1}; None at the first task. eta: step.
    Returns: new state dict in the dtypes of ``previous``; with eta 1 from theta_0 it is theta_0 + D_t.
    Source:  GCWM (paper and official repository, wyy-code/GCWM).
    """

    def rule(name: str, xs: list[Tensor]) -> Tensor:
        if name not in update:
            return xs[0]
        step = upcast(update[name])
        return xs[0] + eta * (step if last_update is None else step - upcast(last_update[name]))

    return merge_tensors([previous], rule)
