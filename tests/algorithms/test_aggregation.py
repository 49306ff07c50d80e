"""The five aggregation modes by hand, and that a split changes nothing."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.aggregation import MODES, aggregate, row_weights
from toolgym.errors import ConfigError

F64 = torch.float64
# lengths 1 and 3, losses 1 and 2
MASK = torch.tensor([[1, 0, 0, 0], [0, 1, 1, 1]], dtype=torch.bool)
LOSS = torch.tensor([[1.0, math.nan, math.inf, 9], [9, 2, 2, 2]], dtype=F64)


@pytest.mark.parametrize(
    ("mode", "expected", "more"),
    [
        ("token-mean", 7 / 4, {}),
        ("seq-mean-token-mean", 3 / 2, {}),
        ("seq-mean-token-sum", 7 / 2, {}),
        ("seq-mean-token-sum-norm", 7 / 20, {"l_max": 10}),
        ("prompt-mean", 7 / 4, {"group": torch.tensor([5, 5])}),  # one prompt: token-mean
        ("prompt-mean", 3 / 2, {"group": torch.tensor([5, 6])}),  # groups of one: seq-mean-token-mean
    ],
)
def test_aggregate_hand_example(mode, expected, more):
    for lengths in (MASK, MASK.sum(1)):
        got = aggregate(LOSS, MASK, row_weights(lengths, mode, **more))
        assert_close(got, torch.tensor(expected, dtype=F64))


def test_row_weights_equal_lengths_agree():
    mask = torch.ones(4, 3, dtype=torch.bool)
    group = torch.tensor([0, 0, 1, 1])
    expected = torch.full((4,), 1 / 12, dtype=F64)
    for mode in ("token-mean", "seq-mean-token-mean", "prompt-mean"):
        assert_close(row_weights(mask, mode, group=group), expected)


@pytest.mark.parametrize("mode", MODES)
def test_row_weights_empty_rows_count_nowhere(mode):
    lengths = torch.tensor([2, 0, 3, 0])
    group = torch.tensor([0, 0, 1, 2])
    w = row_weights(lengths, mode, group=group, l_max=7)
    assert w[1] == 0
    assert w[3] == 0
    assert_close(w[[0, 2]], row_weights(lengths[[0, 2]], mode, group=group[[0, 2]], l_max=7))


@pytest.mark.parametrize("mode", MODES)
def test_row_weights_split_exactly_with_global_denominators(mode):
    lengths = torch.tensor([2, 1, 3, 0, 4])
    group = torch.tensor([0, 0, 1, 1, 2])
    whole = row_weights(lengths, mode, group=group, l_max=7)
    parts = [
        row_weights(lengths[s], mode, group=group[s], l_max=7, n_tokens=10, n_sequences=4, n_groups=3)
        for s in (slice(0, 2), slice(2, 5))
    ]
    assert_close(torch.cat(parts), whole)


def test_aggregate_all_masked_is_a_differentiable_zero():
    loss = torch.tensor([[math.nan, 1.0]], dtype=F64, requires_grad=True)
    mask = torch.zeros(1, 2, dtype=torch.bool)
    for mode in MODES:
        total = aggregate(loss, mask, row_weights(mask, mode, group=torch.tensor([0]), l_max=2))
        (grad,) = torch.autograd.grad(total, loss)
        assert total == 0
        assert grad.eq(0).all()


def test_aggregate_keeps_the_loss_dtype_and_lifts_bfloat16():
    w = row_weights(MASK, "token-mean")
    assert aggregate(LOSS, MASK, w).dtype == torch.float64
    assert aggregate(LOSS.float(), MASK, w).dtype == torch.float32
    assert aggregate(LOSS.bfloat16(), MASK, w).dtype == torch.float32


def test_row_weights_says_what_is_missing():
    with pytest.raises(ConfigError, match="did you mean 'token-mean'"):
        row_weights(MASK, "token-meen")
    with pytest.raises(ValueError, match="l_max=None"):
        row_weights(MASK, "seq-mean-token-sum-norm")
    with pytest.raises(ValueError, match="l_max=0"):
        row_weights(MASK, "seq-mean-token-sum-norm", l_max=0)
    with pytest.raises(ValueError, match="expected group ids"):
        row_weights(MASK, "prompt-mean")
    with pytest.raises(ValueError, match=r"expected torch\.bool"):
        aggregate(LOSS, MASK.double(), row_weights(MASK, "token-mean"))
    with pytest.raises(ValueError, match="loss: got shape"):
        aggregate(LOSS[:1], MASK, row_weights(MASK, "token-mean"))
