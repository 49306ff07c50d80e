"""Shaped rewards by hand."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.shaping import attempt_reward, drop_truncated, first_turn, overlong_penalty, prime_echo

F64 = torch.float64


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_overlong_penalty_worked_values():
    got = overlong_penalty(torch.tensor([0, 16000, 16384, 18432, 20480, 21000], dtype=F64))
    close(got, [0, 0, 0, -0.5, -1, -1])
    assert overlong_penalty(torch.tensor([90]), l_max=100, l_cache=20).item() == -0.5


@pytest.mark.parametrize(("l_max", "l_cache"), [(10, 0), (10, 11), (0, 0)])
def test_overlong_penalty_refuses_impossible_limits(l_max, l_cache):
    with pytest.raises(ValueError, match="expected 0 < l_cache"):
        overlong_penalty(torch.tensor([1]), l_max=l_max, l_cache=l_cache)


def test_drop_truncated_empties_those_rows():
    mask = torch.tensor([[True, False], [True, True]])
    assert drop_truncated(mask, torch.tensor([False, True])).tolist() == [[True, False], [False, False]]


def test_prime_echo_orders_solutions_by_their_turn():
    turns = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]], dtype=torch.bool)
    nan = float("nan")
    scores = torch.tensor([[1, nan, nan], [0.2, 1, nan], [0.2, 0.4, 1], [0.2, 0.4, 0.1]], dtype=F64)
    # .75 s1 + .25 max + bonus: 1 + .15; .15 + .25 + .08; .15 + .25; .15 + .1
    close(prime_echo(scores, turns), [1.15, 0.48, 0.40, 0.25])
    close(prime_echo(scores, turns, anchor=1.0, bonuses=(0, 0)), [1, 0.2, 0.2, 0.2])
    close(prime_echo(scores, turns, anchor=0.0, bonuses=(0, 0)), [1, 1, 1, 0.4])


def test_prime_echo_negative_scores_and_a_later_turn_that_never_was():
    turns = torch.tensor([[True, False]])
    close(prime_echo(torch.tensor([[-0.5, 9.0]], dtype=F64), turns), [-0.5])
    close(prime_echo(torch.tensor([[1.0]], dtype=F64), turns[:, :1]), [1.15])


def test_first_turn_gives_no_gradient_to_later_turns():
    mask = torch.tensor([[True, True, False, True]])
    assert first_turn(mask, torch.tensor([[0, 0, 0, 1]])).tolist() == [[True, True, False, False]]


def test_attempt_reward_by_hand():
    passed = torch.tensor([0, 0.5, 0.9, 1, 1, 1, 1], dtype=F64)
    speedup = torch.tensor([9, 9, float("nan"), 0.5, 1.0, 2.0, 9.0], dtype=F64)
    close(attempt_reward(passed, speedup), [-1, -0.25, -0.05, 1, 1, 1.5, 2])


def test_masks_are_checked():
    mask = torch.ones(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        drop_truncated(mask.int(), mask[:, 0])
    with pytest.raises(ValueError, match="turn: got shape"):
        first_turn(mask, torch.zeros(2, 1))
