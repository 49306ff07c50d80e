"""VPO: sets of candidates under unknown weightings."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.vpo import distinct, simplex_weights, vpo_scores

F64 = torch.float64
GEN = torch.Generator


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_vpo_scores_prefer_two_specialists_to_two_generalists():
    w = torch.linspace(0, 1, 2001, dtype=F64)
    weights = torch.stack([w, 1 - w], 1)
    specialists, generalists = [[1.0, 0], [0, 1]], [[0.5, 0.5]] * 2
    close(vpo_scores(torch.tensor([specialists, generalists], dtype=F64), weights), [0.75, 0.5], 2e-4)


def test_vpo_scores_one_criterion_is_best_of_m_and_one_candidate_the_scalar():
    r = torch.tensor([[[0.2], [0.7]], [[0.5], [0.1]]], dtype=F64)
    close(vpo_scores(r, torch.ones(3, 1, dtype=F64)), [0.7, 0.5])
    close(vpo_scores(torch.tensor([[[0.2, 0.6]]], dtype=F64), torch.tensor([[0.25, 0.75]], dtype=F64)), [0.5])


def test_vpo_scores_more_candidates_never_hurt_and_order_does_not_matter():
    g = GEN().manual_seed(0)
    r = torch.rand(5, 4, 3, generator=g, dtype=F64)
    w = simplex_weights(50, 3, generator=g)
    assert (vpo_scores(r, w) >= vpo_scores(r[:, :3], w)).all()
    close(vpo_scores(r[:, [2, 0, 3, 1]], w), vpo_scores(r, w))


def test_vpo_scores_refuse_mismatched_criteria():
    with pytest.raises(ValueError, match="expected \\[n, m, k\\]"):
        vpo_scores(torch.zeros(1, 2, 3), torch.zeros(4, 2))


def test_simplex_weights_are_even_and_seeded():
    w = simplex_weights(20000, 3, generator=GEN().manual_seed(1))
    close(w.sum(1), torch.ones(20000, dtype=F64))
    assert w.ge(0).all()
    close(w.mean(0), [1 / 3] * 3, 0.01)
    close(w.var(0), [1 / 18] * 3, 0.003)  # Dirichlet(1, 1, 1)
    assert simplex_weights(4, 2, generator=GEN().manual_seed(3)).equal(
        simplex_weights(4, 2, generator=GEN().manual_seed(3))
    )
    with pytest.raises(ValueError, match="expected both >= 1"):
        simplex_weights(0, 3)


def test_distinct_counts_a_copy_once_and_missing_never():
    r = torch.ones(1, 5, 2, dtype=F64)
    got = distinct(r, torch.tensor([[4, 7, 4, -1, 7]]))
    assert got[0, :, 0].tolist() == [1, 1, 0, 0, 0]
