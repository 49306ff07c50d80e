"""Weights and rejections for a sampler that is not the policy, by hand in float64."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.corrections import (
    combine,
    divergence_rejection,
    gated_is,
    geometric_rejection,
    masked_is,
    mirror_pop,
    off_policy_sequence_mask,
    self_normalised,
    truncated_is,
)
from toolgym.errors import ConfigError

F64 = torch.float64
MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
# ratios 2, 4, .5 (product 4, geometric mean 4^(1/3) = 1.587) and .5, .5
RHO = torch.tensor([[2.0, 99, 4, 0.5], [0.5, 0.5, 99, 99]], dtype=F64)
OLD = torch.full_like(RHO, -1.0)
MU = OLD - RHO.log()
ALL = [truncated_is, masked_is, geometric_rejection, divergence_rejection, mirror_pop, gated_is]


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def rows(kept):
    return kept.any(1).tolist()


def test_truncated_is_token_level():
    weight, kept, metrics = truncated_is(OLD, MU, MASK, cap=3.0)
    close(weight, [[2.0, 0, 3, 0.5], [0.5, 0.5, 0, 0]])
    assert kept is MASK
    close(metrics["weight_mean"], 6.5 / 5)
    close(metrics["ess_ratio"], 6.5**2 / (13.75 * 5))
    k3 = [2 - 1 - math.log(2), 4 - 1 - math.log(4), *3 * [0.5 - 1 - math.log(0.5)]]
    close(metrics["sampler_kl"], sum(k3) / 5)
    assert metrics["kept_tokens"] == 1
    assert metrics["kept_rows"] == 1


def test_truncated_is_sequence_level_is_constant_over_the_row():
    close(truncated_is(OLD, MU, MASK, level="sequence", cap=3.0)[0], [[3.0, 0, 3, 3], [0.25, 0.25, 0, 0]])
    close(truncated_is(OLD, MU, MASK, level="sequence", cap=math.inf)[0][0], [4.0, 0, 4, 4])


def test_masked_is_rejects_outside_the_window_and_keeps_exact_weights():
    weight, kept, metrics = masked_is(OLD, MU, MASK, low=0.5, high=2.0)
    close(weight, [[2.0, 0, 0, 0.5], [0.5, 0.5, 0, 0]])
    assert kept.tolist() == [[True, False, False, True], [True, True, False, False]]
    close(metrics["kept_tokens"], 4 / 5)
    close(metrics["weight_mean"], 3.5 / 4)
    weight, kept, _ = masked_is(OLD, MU, MASK, level="sequence", low=0.0, high=3.0)
    close(weight, [[0.0] * 4, [0.25, 0.25, 0, 0]])
    assert rows(kept) == [False, True]
    assert rows(masked_is(OLD, MU, MASK, level="sequence", low=0.3, high=9.0)[1]) == [True, False]


def test_geometric_rejection_uses_the_geometric_mean():
    assert rows(geometric_rejection(OLD, MU, MASK, low=0.4, high=1.58)[1]) == [False, True]
    weight, kept, metrics = geometric_rejection(OLD, MU, MASK, low=0.51, high=1.59)
    assert rows(kept) == [True, False]
    close(weight, [[1.0, 0, 1, 1], [0.0] * 4])
    close(metrics["kept_rows"], 0.5)
    close(metrics["kept_tokens"], 0.6)


def test_divergence_rejection_by_k2_and_k3():
    k3 = [(2 - 1 - math.log(2) + 4 - 1 - math.log(4) + 0.5 - 1 - math.log(0.5)) / 3, 0.5 - 1 - math.log(0.5)]
    k2 = [(math.log(2) ** 2 + math.log(4) ** 2 + math.log(2) ** 2) / 6, math.log(2) ** 2 / 2]
    for kind, values in (("k3", k3), ("k2", k2)):
        middle = sum(values) / 2
        assert rows(divergence_rejection(OLD, MU, MASK, kind=kind, threshold=middle)[1]) == [v < middle for v in values]
        for i, v in enumerate(values):
            assert rows(divergence_rejection(OLD, MU, MASK, kind=kind, threshold=v + 1e-9)[1])[i]
            assert not rows(divergence_rejection(OLD, MU, MASK, kind=kind, threshold=v - 1e-9)[1])[i]
    with pytest.raises(ConfigError, match="unknown divergence 'k1'"):
        divergence_rejection(OLD, MU, MASK, kind="k1")


def test_mirror_pop_sees_deviations_that_cancel():
    mask = torch.ones(1, 4, dtype=torch.bool)
    mu = -1 - torch.tensor([[0.5, -0.5, 0.5, -0.5]], dtype=F64)
    old = torch.full_like(mu, -1.0)
    assert geometric_rejection(old, mu, mask)[1].all()
    assert not mirror_pop(old, mu, mask, threshold=0.49)[1].any()
    assert mirror_pop(old, mu, mask, threshold=0.51)[1].all()
    weight, kept, metrics = mirror_pop(mu, old, mask, threshold=0.49)  # symmetric, but for the metric
    assert not kept.any()
    close(weight, torch.zeros(1, 4))
    close(metrics["sampler_kl"], (math.exp(0.5) + math.exp(-0.5)) / 2 - 1)


def test_mirror_pop_is_monotone_in_its_threshold():
    kept = [mirror_pop(OLD, MU, MASK, threshold=d)[1].sum() for d in (0.0, 0.7, 1.0, 2.0)]
    assert kept == sorted(kept)
    assert kept[0] == 0
    assert kept[-1] == 5


def test_gated_is_gates_rows_and_weighs_tokens():
    weight, kept, _ = gated_is(OLD, MU, MASK, low=0.6, high=1.6)
    assert rows(kept) == [True, False]
    close(weight, [[2.0, 0, 4, 0.5], [0.0] * 4])


def test_off_policy_sequence_mask_drops_rows_that_are_bad_and_far():
    # mean log mu - log pi_old: -log 4 / 3 = -0.46 and log 2 = 0.69
    for a, threshold, kept in (
        ([1.0, 1.0], 0.1, [True, True]),
        ([-1.0, -1.0], 0.1, [True, False]),
        ([-1.0, 0.0], 0.1, [True, True]),
        ([-1.0, -1.0], 0.7, [True, True]),
        ([-1.0, 1.0], -0.5, [False, True]),
    ):
        weight, got, metrics = off_policy_sequence_mask(OLD, MU, MASK, advantages=torch.tensor(a), threshold=threshold)
        assert rows(got) == kept
        close(weight, (MASK * torch.tensor(kept)[:, None]).double())
        assert metrics["kept_rows"] == sum(kept) / 2
    with pytest.raises(ValueError, match="expected one a row"):
        off_policy_sequence_mask(OLD, MU, MASK, advantages=OLD)


@pytest.mark.parametrize("correction", ALL)
def test_corrections_of_equal_policies_do_nothing(correction):
    weight, kept, metrics = correction(OLD, OLD, MASK)
    close(weight, MASK.double())
    assert kept.equal(MASK)
    close(metrics["ess_ratio"], 1.0)
    assert metrics["sampler_kl"] == 0
    assert metrics["weight_mean"] == 1


def test_self_normalised_has_mean_one_under_the_mask():
    got = self_normalised(torch.tensor([[1.0, math.nan, 2, 3], [0, 4, 9, 9]], dtype=F64), MASK)
    close(got, [[0.5, 0, 1, 1.5], [0, 2, 0, 0]])


def test_combine_multiplies_weights_and_joins_masks():
    rows_first = truncated_is(OLD, MU, MASK, level="sequence")  # 2 and 1/4, bounded at 2
    weight, kept = combine(rows_first, masked_is(OLD, MU, MASK), gated_is(OLD, MU, MASK, high=1.0))
    close(weight, [[0.0] * 4, [0.0625, 0.0625, 0, 0]])
    assert kept.tolist() == [[False] * 4, [True, True, False, False]]
    weight, kept = combine(masked_is(OLD, MU, MASK), truncated_is(OLD, MU, MASK, cap=3.0))
    close(weight, [[4.0, 0, 0, 0.25], [0.25, 0.25, 0, 0]])
    assert kept.tolist() == [[True, False, False, True], [True, True, False, False]]


@pytest.mark.parametrize("level", ["token", "sequence"])
def test_corrections_refuse_an_unknown_level(level):
    with pytest.raises(ConfigError, match=f"did you mean '{level}'"):
        truncated_is(OLD, MU, MASK, level=f"{level}s")


@pytest.mark.parametrize("correction", ALL)
def test_corrections_report_how_far_the_sampler_is(correction):
    k3 = 2 - 1 - math.log(2) + 4 - 1 - math.log(4) + 3 * (0.5 - 1 - math.log(0.5))
    close(correction(OLD, MU, MASK)[2]["sampler_kl"], k3 / 5)


def test_corrections_of_a_single_token():
    weight, _, metrics = truncated_is(OLD[:1, :1], MU[:1, :1], MASK[:1, :1])
    close(weight, [[2.0]])
    assert metrics["weight_mean"] == 2
    assert metrics["kept_tokens"] == 1


def test_truncated_is_bounds_the_logarithm_of_the_whole_row_too():
    old, mask = torch.zeros(1, 2, dtype=F64), torch.ones(1, 2, dtype=torch.bool)
    close(truncated_is(old, old - 15, mask, level="sequence", cap=math.inf)[0], [[math.exp(20.0)] * 2])
