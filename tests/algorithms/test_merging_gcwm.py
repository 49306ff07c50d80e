"""GCWM: worked values of its geometry, identities of whitening and of the merge."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.merging_gcwm import (
    Whitening,
    bures_distance,
    common_geometry,
    conflict_gate,
    continual_merge,
    gcwm,
    gcwm_merge,
    geometry_conflict,
    wasserstein_barycenter,
    wudi,
)
from toolgym.errors import ConfigError

DOUBLE = torch.float64


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def diag(*values):
    return torch.diag(t(*values))


def randn(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=DOUBLE)


def covariance(seed, d=3):
    x = randn(seed, d, d)
    return x @ x.mT + 0.1 * torch.eye(d, dtype=DOUBLE)


FULL = t([2.0, 1.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("a", "b", "distance", "conflict"),
    [(diag(1, 4), diag(4, 1), 2.0, 0.2), (FULL, diag(3, 1), 0.516685, 0.064586)],
)
def test_bures_distance_and_conflict_worked_values(a, b, distance, conflict):
    assert bures_distance(a, b).item() == pytest.approx(distance, abs=5e-7)
    assert geometry_conflict(torch.stack([a, b])).item() == pytest.approx(conflict, abs=5e-7)


def test_bures_distance_of_halves_is_summed_in_float32():
    a = torch.diag(torch.tensor([256.0, 1.0])).bfloat16()  # their sum is no bfloat16
    nothing = torch.zeros_like(a)
    assert bures_distance(a, nothing) == bures_distance(nothing, a) == 257


@given(st.integers(0, 999))
def test_bures_distance_is_symmetric_and_zero_at_itself(seed):
    a, b = covariance(seed), covariance(seed + 1000)
    torch.testing.assert_close(bures_distance(a, b), bures_distance(b, a), atol=1e-9, rtol=1e-9)
    assert 0 <= bures_distance(a, a).item() < 1e-10
    assert 0 <= geometry_conflict(torch.stack([a, b])).item() <= 1


def test_geometry_conflict_weighs_pairs_by_products():
    c = torch.stack([diag(1, 4), diag(4, 1), diag(1, 4)])  # pairs: 01 .2, 02 0, 12 .2
    assert geometry_conflict(c).item() == pytest.approx(0.4 / 3, abs=1e-9)
    assert geometry_conflict(c, weights=[2, 1, 1]).item() == pytest.approx((2 * 0.2 + 0.2) / 5, abs=1e-9)
    assert geometry_conflict(c[:1]).item() == 0.0


def test_conflict_gate_worked_values_and_monotone():
    assert conflict_gate(t(0.2)).item() == pytest.approx(0.728497, abs=5e-7)
    assert conflict_gate(t(0.12)).item() == pytest.approx(0.55, abs=1e-12)
    gates = conflict_gate(torch.linspace(0, 1, 50, dtype=DOUBLE))
    assert (gates.diff() > 0).all()
    assert 0.15 < gates[0] < gates[-1] < 0.95


def test_wasserstein_barycenter_worked_values():
    torch.testing.assert_close(
        wasserstein_barycenter(torch.stack([diag(1, 4), diag(4, 1)])), diag(2.25, 2.25), atol=1e-6, rtol=0
    )
    got = wasserstein_barycenter(torch.stack([FULL, diag(3, 1)]), tolerance=1e-12)
    torch.testing.assert_close(got, t([2.452676, 0.517261], [0.517261, 1.418153]), atol=1e-6, rtol=0)


def test_wasserstein_barycenter_of_commuting_covariances():
    got = wasserstein_barycenter(torch.stack([diag(1, 9), diag(4, 25)]), weights=[3, 1], tolerance=1e-14)
    torch.testing.assert_close(got, diag((0.75 * 1 + 0.25 * 2) ** 2, (0.75 * 3 + 0.25 * 5) ** 2), atol=1e-9, rtol=0)


def test_wasserstein_barycenter_stops_at_a_relative_change_below_its_tolerance():
    c = torch.stack([FULL, diag(3, 1)])
    start, first, second = c.mean(0), *(wasserstein_barycenter(c, iterations=i, tolerance=0.0) for i in (1, 2))
    change = ((first - start).norm() / start.norm()).item()
    assert torch.equal(wasserstein_barycenter(c, tolerance=1.001 * change), first)
    assert torch.equal(wasserstein_barycenter(c, iterations=2, tolerance=0.999 * change), second)
    assert not torch.equal(first, second)


def test_wasserstein_barycenter_of_equal_covariances_is_that_covariance():
    c = covariance(3)
    torch.testing.assert_close(wasserstein_barycenter(torch.stack([c, c, c])), c)


def wudi_objective(merged, updates, weights=None):
    weights = [1.0] * len(updates) if weights is None else weights
    return sum(
        w * ((merged - d) @ d.mT).square().sum() / d.square().sum() for w, d in zip(weights, updates, strict=True)
    )


def test_wudi_of_one_task_is_its_update():
    d = randn(0, 1, 4, 3)
    torch.testing.assert_close(wudi(d), d[0])
    torch.testing.assert_close(wudi(d.expand(3, 4, 3)), d[0])


def test_wudi_of_orthogonal_row_spaces_is_the_sum():
    updates = torch.zeros(2, 3, 4, dtype=DOUBLE)
    updates[0, :, :2], updates[1, :, 2:] = randn(1, 3, 2), randn(2, 3, 2)
    merged = wudi(updates)
    torch.testing.assert_close(merged, updates.sum(0))
    assert wudi_objective(merged, updates).item() == pytest.approx(0.0, abs=1e-18)


def test_wudi_exact_is_the_minimum():
    updates, weights = randn(4, 3, 4, 5), [1.0, 2.0, 0.5]
    merged = wudi(updates, weights=weights)
    least = wudi_objective(merged, updates, weights)
    for seed in range(10):
        assert wudi_objective(merged + 1e-3 * randn(seed, 4, 5), updates, weights) > least


def test_wudi_adam_descends_from_the_sum_towards_the_exact_minimum():
    updates = randn(5, 2, 3, 3)
    near = wudi(updates, method="adam", lr=1e-2, iterations=400)
    exact, start = wudi_objective(wudi(updates), updates), wudi_objective(updates.sum(0), updates)
    assert exact <= wudi_objective(near, updates) < exact + 0.01 * (start - exact)
    small = wudi(updates, method="adam", iterations=3)
    assert (small - updates.sum(0)).abs().max() == pytest.approx(3e-5, rel=0.1)
    with pytest.raises(ConfigError, match="did you mean 'adam'"):
        wudi(updates, method="adm")


def test_wudi_ignores_a_task_without_update():
    updates = torch.stack([randn(6, 3, 3), torch.zeros(3, 3, dtype=DOUBLE)])
    torch.testing.assert_close(wudi(updates), updates[0])


def test_whitening_is_undone_by_recolouring_and_whitens():
    updates = randn(7, 2, 4, 6)
    basis, covariances = common_geometry(updates, rank=2)
    assert basis.shape == (6, 4)
    torch.testing.assert_close(basis.mT @ basis, torch.eye(4, dtype=DOUBLE))
    space = Whitening(basis=basis, barycenter=wasserstein_barycenter(covariances), floor=1e-6)
    torch.testing.assert_close(space.recolour(space.whiten(updates)), updates, atol=1e-5, rtol=0)
    inside = updates[0] @ basis @ basis.mT
    white = Whitening(basis=basis, barycenter=basis.mT @ inside.mT @ inside @ basis, floor=1.0).whiten(inside)
    torch.testing.assert_close(basis.mT @ white.mT @ white @ basis, torch.eye(4, dtype=DOUBLE), atol=1e-6, rtol=0)


def test_whitening_scales_by_the_barycenter_inside_and_by_the_floor_outside():
    space = Whitening(basis=t([1.0], [0.0]), barycenter=t([4.0]), floor=0.25)
    assert space.whiten(t([2.0, 3.0])).tolist() == [[1.0, 6.0]]
    assert space.recolour(t([2.0, 3.0])).tolist() == [[4.0, 1.5]]


def test_common_geometry_of_full_rank_holds_the_whole_covariance():
    updates = randn(8, 2, 5, 3)
    basis, covariances = common_geometry(updates, rank=3, floor=0.1)
    for d, c in zip(updates, covariances, strict=True):
        expected = d.mT @ d + 0.1 * torch.eye(3, dtype=DOUBLE)
        torch.testing.assert_close(basis @ c @ basis.mT, expected, atol=1e-12, rtol=0)


def test_common_geometry_drops_repeated_directions():
    d = randn(9, 1, 4, 6)
    basis, _ = common_geometry(d.expand(3, 4, 6), rank=2)
    assert basis.shape == (6, 2)


def test_common_geometry_keeps_what_comes_after_repeated_directions():
    same, other = randn(9, 1, 4, 6), randn(10, 1, 4, 6)
    basis, _ = common_geometry(torch.cat([same, same, other]), rank=2)
    assert basis.shape == (6, 4)
    rows = torch.linalg.svd(other[0]).Vh[:2]
    torch.testing.assert_close(rows @ basis @ basis.mT, rows)


def test_gcwm_merge_of_equal_tasks_is_that_task_without_conflict():
    d = randn(10, 1, 4, 3)
    merged, metrics = gcwm_merge(d.expand(3, 4, 3))
    torch.testing.assert_close(merged, d[0], atol=1e-6, rtol=1e-6)
    assert metrics["conflict"].item() == pytest.approx(0.0, abs=1e-9)
    single, _ = gcwm_merge(d)
    torch.testing.assert_close(single, d[0], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("weights", [None, [1.0, 2.0, 4.0]])
def test_gcwm_merge_mixes_by_its_gate(weights):
    updates = randn(11, 3, 4, 4)
    merged, metrics = gcwm_merge(updates, weights=weights)
    basis, covariances = common_geometry(updates)
    gate = conflict_gate(geometry_conflict(covariances, weights=weights)).item()
    assert metrics["gate"].item() == pytest.approx(gate)
    space = Whitening(basis=basis, barycenter=wasserstein_barycenter(covariances, weights=weights), floor=1e-6)
    geometric = space.recolour(wudi(space.whiten(updates), weights=weights))
    plain = wudi(updates, weights=weights)
    torch.testing.assert_close(merged, gate * geometric + (1 - gate) * plain)
    assert (geometric - plain).norm() > 1e-3  # the two really differ here


def test_gcwm_merges_projections_and_averages_the_rest():
    base = {"layers.0.q_proj.weight": torch.zeros(4, 3, dtype=DOUBLE), "norm.weight": t(1.0, 1.0), "n": torch.tensor(1)}
    base["embed.weight"] = torch.zeros(2, 2, dtype=DOUBLE)
    updates = randn(12, 2, 4, 3)
    states = [
        {
            "layers.0.q_proj.weight": d,
            "norm.weight": t(1.0 + i, 1.0),
            "n": torch.tensor(5),
            "embed.weight": t([i] * 2, [0, 4]),
        }
        for i, d in enumerate(updates)
    ]
    got = gcwm(base, states, weights=[1.0, 3.0])
    torch.testing.assert_close(got["layers.0.q_proj.weight"], gcwm_merge(updates, weights=[1.0, 3.0])[0])
    assert got["norm.weight"].tolist() == [1.75, 1.0]
    assert got["embed.weight"].tolist() == [[0.75, 0.75], [0.0, 4.0]]
    assert got["n"].item() == 1
    with pytest.raises(ConfigError, match="2 states and 1 weights"):
        gcwm(base, states, weights=[1.0])


def test_gcwm_is_deterministic():
    updates = randn(13, 3, 6, 5)
    assert torch.equal(gcwm_merge(updates)[0], gcwm_merge(updates)[0])


def test_continual_merge_telescopes():
    base = {"w": t(1.0, 2.0), "fixed": t(5.0)}
    first, second = {"w": t(0.5, 0.0)}, {"w": t(0.25, 1.0)}
    after = continual_merge(continual_merge(base, first), second, first)
    assert after["w"].tolist() == [1.25, 3.0]
    assert after["fixed"].tolist() == continual_merge(base, first)["fixed"].tolist() == [5.0]
    assert continual_merge(base, first, eta=0.5)["w"].tolist() == [1.25, 2.0]
    assert math.isclose(base["w"][0].item(), 1.0)
