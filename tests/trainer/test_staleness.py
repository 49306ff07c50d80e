"""The staleness rule, by simulation over random orders of finishing.

Pinned: no group is trained on more than ``limit`` versions after it was admitted; every group is trained on exactly
once; the learner never waits for ever; limit 0 is exactly on-policy.
"""

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from toolgym.trainer.staleness import Staleness


def simulate(
    limit: int, per_step: int, steps: int, seed: int, discard: float = 0.0
) -> tuple[list[list[int]], list[int]]:
    """Batches and the ages of their groups, when groups finish in random order at random times.

    ``discard`` is the share of groups that are thrown back when they finish.
    """
    rng = random.Random(seed)
    rule = Staleness(limit=limit, per_step=per_step)
    number, playing, finished = 0, [], []
    batches, ages = [], []
    while len(batches) < steps:
        while rule.may_admit(number):
            rule.admit(number)
            playing.append(number)
            number += 1
        batch = rule.batch(finished)
        if batch is None or (playing and rng.random() < 0.4):
            assert playing, "the learner waits and nothing is being played"
            number_done = playing.pop(rng.randrange(len(playing)))
            if rng.random() < discard:
                rule.discard(number_done)
            else:
                finished.append(number_done)
            continue
        ages += [rule.version - rule.admitted_at[n] for n in batch]
        rule.consume(batch)
        finished = [n for n in finished if n not in batch]
        batches.append(batch)
        rule.version += 1
    return batches, ages


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(0, 4), per_step=st.integers(1, 6), seed=st.integers(0, 10**6))
def test_staleness_never_exceeds_the_limit_and_nothing_is_lost(limit: int, per_step: int, seed: int) -> None:
    batches, ages = simulate(limit, per_step, 12, seed)
    assert max(ages) <= limit
    used = [n for batch in batches for n in batch]
    assert len(used) == len(set(used)) == 12 * per_step
    assert all(n < (12 + limit) * per_step for n in used)


@settings(max_examples=60, deadline=None)
@given(limit=st.integers(0, 4), per_step=st.integers(1, 6), seed=st.integers(0, 10**6), discard=st.floats(0, 0.8))
def test_staleness_holds_while_groups_are_discarded(limit: int, per_step: int, seed: int, discard: float) -> None:
    batches, ages = simulate(limit, per_step, 12, seed, discard)
    assert max(ages) <= limit
    assert [len(batch) for batch in batches] == [per_step] * 12


def test_staleness_limit_is_reached_when_the_sampler_runs_ahead() -> None:
    _, ages = simulate(3, 4, 20, seed=1)
    assert max(ages) == 3


def test_staleness_zero_takes_exactly_the_groups_of_its_version() -> None:
    batches, ages = simulate(0, 4, 5, seed=2)
    assert batches == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13, 14, 15], [16, 17, 18, 19]]
    assert set(ages) == {0}


def test_staleness_batch_waits_for_a_straggler_that_would_be_too_old() -> None:
    rule = Staleness(limit=1, per_step=2)
    for n in range(4):
        rule.admit(n)
    rule.version = 1  # groups 0 to 3 were admitted at version 0, so two of them must go now, and all are due
    rule.consume([0, 1])
    assert rule.batch([2]) is None
    assert rule.batch([3, 2]) == [2, 3]


def test_staleness_refuses_to_admit_past_the_limit() -> None:
    rule = Staleness(limit=0, per_step=2)
    rule.admit(0)
    rule.admit(1)
    assert not rule.may_admit(2)
    with pytest.raises(AssertionError):
        rule.admit(2)


def test_staleness_of_a_group_from_a_later_lineage_is_zero() -> None:
    assert Staleness(limit=1, per_step=1, version=3).of(5) == 0
