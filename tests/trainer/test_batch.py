"""Groups to padded batches and micro-batches."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.trainer.builders import group
from toolgym.trainer.batch import collate, micro_batches, samples_of


def test_collate_pads_on_the_right_and_keeps_groups_whole() -> None:
    groups = [group([1.0, 0.0], name="g000000", seed=1), group([0.0, 0.0, 1.0], name="g000001", seed=2)]
    batch = collate(groups, pad=7)
    assert batch.rewards.tolist() == [1.0, 0.0, 0.0, 0.0, 1.0]
    assert batch.group.tolist() == [0, 0, 1, 1, 1]
    lengths = [len(t.segments[0].tokens) for g in groups for t in g.trajectories]
    assert batch.lengths.tolist() == lengths
    for row, n in enumerate(lengths):
        assert (batch.tokens[row, n:] == 7).all()
        assert not batch.mask[row, n:].any()
        assert (batch.versions[row, n:] == -1).all()


def test_samples_leave_failed_episodes_out_before_any_baseline() -> None:
    mixed = group([1.0, None, 0.0])
    assert [s.reward for s in samples_of(mixed)] == [1.0, 0.0]
    assert collate([mixed], pad=0).rewards.tolist() == [1.0, 0.0]


def test_collate_refuses_groups_without_a_scored_episode() -> None:
    with pytest.raises(ValueError, match="none of the 1 groups"):
        collate([group([None, None])], pad=0)


def test_rows_are_cut_to_their_longest() -> None:
    batch = collate([group([1.0, 0.0, 1.0], seed=4)], pad=0)
    shortest = int(batch.lengths.argmin())
    part = batch.rows(torch.tensor([shortest]))
    assert part.tokens.shape == (1, int(batch.lengths.min()))


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=40), budget=st.integers(1, 200))
def test_micro_batches_hold_every_row_once_within_the_budget(lengths: list[int], budget: int) -> None:
    sizes = torch.tensor(lengths)
    parts = list(micro_batches(sizes, max_tokens=budget))
    assert sorted(torch.cat(parts).tolist()) == list(range(len(lengths)))
    for part in parts:
        assert len(part) == 1 or len(part) * int(sizes[part].max()) <= budget
