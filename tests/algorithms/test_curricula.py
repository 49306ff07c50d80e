"""The equations of curricula: what is selected, with which probability."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.curricula import (
    effective_ratio,
    has_signal,
    informativeness,
    mastered,
    sample_informative,
    select_intermediate,
    ucb_probabilities,
    upgraded,
)
from toolgym.algorithms.shaping import overlong_penalty
from toolgym.errors import ConfigError

F64 = torch.float64


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_select_intermediate_takes_the_nearest_and_ties_by_place():
    values = torch.tensor([0.9, 0.45, 0.1, 0.55, 0.5])
    assert select_intermediate(values, 3).tolist() == [4, 1, 3]
    assert select_intermediate(values, 2, tau=1.0).tolist() == [0, 3]
    assert select_intermediate(torch.full((4,), 0.2), 2).tolist() == [0, 1]
    assert sorted(select_intermediate(values, 5).tolist()) == [0, 1, 2, 3, 4]
    half = torch.tensor([0.5, 0.1]).bfloat16()  # 0.1 is 0.10009..., nearer to 0.3 by less than bfloat16 can tell
    assert select_intermediate(half, 1, tau=0.3).tolist() == [1]
    for m in (0, 6):
        with pytest.raises(ValueError, match="expected 1 <= m"):
            select_intermediate(values, m)


def test_has_signal_reads_raw_correctness_not_shaped_rewards():
    correct = torch.tensor([0.0, 0, 1, 0, 0.1, 0.1], dtype=F64)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    assert has_signal(correct, group).tolist() == [False, False, True, True, False, False]
    shaped = correct + overlong_penalty(torch.tensor([10, 90, 10, 10, 10, 10]), l_max=100, l_cache=50)
    assert has_signal(shaped, group)[:2].all()  # noise would let the all-wrong group pass
    assert_close(effective_ratio(correct, group), torch.tensor(1 / 3, dtype=F64))


def test_has_signal_is_relative_to_the_largest_reward():
    r = torch.tensor([1e-9, 2e-9, 1e6, 1e6 + 1e-3], dtype=F64)
    assert has_signal(r, torch.tensor([0, 0, 1, 1])).tolist() == [True, True, False, False]


def test_effective_ratio_counts_groups_not_rows():
    r = torch.tensor([1.0, 0, 0, 0, 1, 1], dtype=F64)
    close(effective_ratio(r, torch.tensor([0, 0, 0, 0, 1, 1])), 0.5)


def test_ucb_probabilities_worked_values():
    ucb, p = ucb_probabilities(torch.tensor([0.2, 0.8, 0.0], dtype=F64), torch.tensor([100, 100, 5]))
    close(ucb, [0.5248, 1.1248, 1.3327], 1e-4)
    close(p, [0.0003, 0.1112, 0.8885], 1e-4)
    close(p.sum(), 1.0)


def test_ucb_probabilities_limits_of_the_temperature():
    means, counts = torch.tensor([0.2, 0.5, 0.4], dtype=F64), torch.tensor([9, 9, 9])
    close(ucb_probabilities(means, counts, tau=1e6)[1], [1 / 3] * 3, 1e-5)
    close(ucb_probabilities(means, counts, tau=1e-4)[1], [0.0, 1, 0], 1e-9)
    close(ucb_probabilities(torch.full((3,), 0.3, dtype=F64), counts)[1], [1 / 3] * 3)
    assert ucb_probabilities(torch.zeros(2), torch.tensor([0, 50]))[0].argmax() == 0
    with pytest.raises(ValueError, match="tau=0"):
        ucb_probabilities(means, counts, tau=0)


def test_informativeness_by_hand():
    r = torch.tensor([1.0, 0, 0, 0, 1, 1, 0, 0], dtype=F64)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2, 2])
    for kind, value in (("regret", 0.75), ("range", 1.0), ("advantage", 0.375), ("variance", 0.1875)):
        close(informativeness(r, group, kind=kind), [value] * 4 + [0.0] * 4)
    with pytest.raises(ConfigError, match="did you mean 'regret'"):
        informativeness(r, group, kind="regrets")


def test_sample_informative_is_proportional_without_replacement():
    generator = torch.Generator().manual_seed(0)
    info = torch.tensor([0.0, 3.0, 1.0, 0.0])
    first = torch.stack([sample_informative(info, 2, generator=generator) for _ in range(4000)])
    assert set(first.flatten().tolist()) == {1, 2}
    assert (first[:, 0] == 1).double().mean().item() == pytest.approx(0.75, abs=0.02)
    assert all(
        len(set(row)) == 4 for row in (sample_informative(info, 4, generator=generator).tolist() for _ in range(20))
    )


def test_sample_informative_draws_from_its_generator():
    drawn = [sample_informative(torch.ones(100), 5, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert drawn[0].equal(drawn[1])
    assert not drawn[0].equal(drawn[2])


def test_sample_informative_all_zero_is_uniform():
    generator = torch.Generator().manual_seed(0)
    picks = torch.cat([sample_informative(torch.zeros(4), 1, generator=generator) for _ in range(4000)])
    assert (torch.bincount(picks).double() / 4000 - 0.25).abs().max() < 0.03
    with pytest.raises(ValueError, match="expected 1 <= m"):
        sample_informative(torch.zeros(4), 5)


def test_mastered_needs_attempts_and_includes_its_threshold():
    got = mastered(torch.tensor([0, 9, 89, 10, 1]), torch.tensor([0, 10, 100, 10, 1]))
    assert got.tolist() == [False, True, False, True, True]


def test_upgraded_is_strict_and_stops_at_the_last_rung():
    rung, last = torch.tensor([0, 0, 3, 1]), torch.tensor([3, 3, 3, 3])
    assert upgraded(rung, torch.tensor([0.5, 0.51, 1.0, 0.0]), last).tolist() == [0, 1, 3, 1]
