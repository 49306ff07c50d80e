"""Masks silence whatever stands under them, and group sums need no order of the ids."""

import math

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.masking import (
    check_mask,
    group_extreme,
    group_index,
    group_sum,
    log_ratio,
    per_token,
    row_mean,
    silence,
    silent_mean,
    square_sum,
    token_mean,
    upcast,
    valid_count,
)
from toolgym.algorithms.surrogate import bound_above, hush, moved, pessimistic, surrogate

F64 = torch.float64
M = torch.tensor([[True, False, True], [False, False, True]])
X = torch.tensor([[1.0, math.nan, -2.0], [math.inf, -math.inf, 4.0]])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_silence_zeroes_values_and_gradients_under_the_mask(dtype):
    x = X.clone().to(dtype).requires_grad_(True)
    got = silence(x, M)
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.tolist() == [[1.0, 0.0, -2.0], [0.0, 0.0, 4.0]]
    (got * torch.tensor([[2.0, math.nan, 3.0], [math.inf, 5.0, 7.0]])).sum().backward()
    assert x.grad.tolist() == [[2.0, 0.0, 3.0], [0.0, 0.0, 7.0]]


def test_silence_broadcasts_and_takes_strided_input():
    rows = torch.tensor([[5.0], [7.0]], requires_grad=True)
    got = silence(rows, M)
    assert got.tolist() == [[5.0, 0.0, 5.0], [0.0, 0.0, 7.0]]
    (got * torch.tensor([[2.0, math.nan, 3.0], [math.inf, 5.0, 7.0]])).sum().backward()
    assert rows.grad.tolist() == [[5.0], [7.0]]
    assert silence(X[:, ::2], M[:, :1]).tolist() == [[1.0, -2.0], [0.0, 0.0]]
    assert silence(X.T.contiguous().T, M).tolist() == [[1.0, 0.0, -2.0], [0.0, 0.0, 4.0]]
    assert silence(-torch.zeros(1, 1), torch.tensor([[True]])).signbit().all()  # bits are kept as they are


def test_hush_is_in_place():
    x = X.clone()
    assert hush(x, M) is x
    assert x.tolist() == [[1.0, 0.0, -2.0], [0.0, 0.0, 4.0]]


def test_upcast_lifts_integers_and_halves_only():
    assert [upcast(torch.zeros(1, dtype=d)).dtype for d in (torch.int64, torch.bfloat16, torch.float32, F64)] == [
        torch.float32,
        torch.float32,
        torch.float32,
        F64,
    ]


def test_check_mask_names_the_wrong_one():
    check_mask(M, x=X)
    with pytest.raises(ValueError, match=r"expected torch\.bool \[B, T\]"):
        check_mask(M.int())
    with pytest.raises(ValueError, match=r"expected torch\.bool \[B, T\]"):
        check_mask(M[0])
    with pytest.raises(ValueError, match=r"y: got shape \[2\]"):
        check_mask(M, x=X, y=X[:, 0])


def test_log_ratio_is_clamped_and_its_gradient_flows_into_the_policy_only():
    a = torch.tensor([[0.0, math.nan, 50.0], [math.inf, 0.0, -1.0]], requires_grad=True)
    b = torch.tensor([[-3.0, math.inf, 0.0], [math.nan, 0.0, 4.0]], requires_grad=True)
    got = log_ratio(a, b, M)
    assert got.tolist() == [[3.0, 0.0, 20.0], [0.0, 0.0, -5.0]]
    got.sum().backward()
    assert a.grad.tolist() == [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]
    assert b.grad is None
    step = moved(a, b, M)
    assert step.log.tolist() == got.tolist()
    assert step.ones.tolist() == M.float().tolist()


def test_per_token_detaches_and_silences():
    a = torch.tensor([1.0, 2.0], requires_grad=True)
    assert per_token(a, M).tolist() == [[1.0], [2.0]]
    assert not per_token(a, M).requires_grad
    assert per_token(X, M).tolist() == [[1.0, 0.0, -2.0], [0.0, 0.0, 4.0]]


def test_log_ratio_and_per_token_name_the_wrong_shape():
    with pytest.raises(ValueError, match="old_logprobs: got shape"):
        log_ratio(X, X[:, :1], M)
    with pytest.raises(ValueError, match=r"mask: got torch\.int32"):
        log_ratio(X, X, M.int())
    with pytest.raises(ValueError, match="advantages: got shape"):
        per_token(X[:, :1], M)


def test_counts_and_sums_without_a_mask_of_their_own():
    assert [valid_count(m).item() for m in (M, M[1], torch.zeros_like(M))] == [3, 1, 1]
    x = torch.tensor([[1.0, 0.0, -2.0], [0.0, 0.0, 4.0]], dtype=F64)
    assert_close(square_sum(x).item(), 21.0)
    assert silent_mean(x, M) == 1.0
    assert not silent_mean(x.requires_grad_(True), M).requires_grad


def test_means_over_the_mask():
    assert token_mean(X, M) == 1.0
    assert row_mean(X, M).tolist() == [-0.5, 4.0]
    assert row_mean(X, torch.zeros_like(M)).tolist() == [0.0, 0.0]
    assert token_mean(X, torch.zeros_like(M)) == 0.0


def test_group_sums_and_extremes_over_arbitrary_ids():
    ids = torch.tensor([7, -3, 7, 7, 2**40])
    index = group_index(ids)
    assert index.tolist() == [1, 0, 1, 1, 2]
    x = torch.tensor([1.0, 2.0, 3.0, -4.0, 5.0])
    assert group_sum(x, index).tolist() == [0.0, 2.0, 0.0, 0.0, 5.0]
    assert group_extreme(x, index, largest=True).tolist() == [3.0, 2.0, 3.0, 3.0, 5.0]
    assert group_extreme(x, index, largest=False).tolist() == [-4.0, 2.0, -4.0, -4.0, 5.0]
    with pytest.raises(ValueError, match="expected integers"):
        group_index(ids.double())


def test_surrogate_has_the_value_and_the_slope_it_was_given():
    x = torch.tensor([[1.0, 2.0]], dtype=torch.bfloat16, requires_grad=True)
    got = surrogate(x, torch.tensor([[5.0, 6.0]]), torch.tensor([[0.5, -3.0]]))
    assert got.tolist() == [[5.0, 6.0]]
    (2 * got).sum().backward()
    assert x.grad.tolist() == [[1.0, -6.0]]
    assert x.grad.dtype == torch.bfloat16


def test_pessimistic_and_its_bound_by_hand():
    ratio = torch.tensor([[1.5, 0.5, 1.0]], dtype=F64)
    a = torch.tensor([[1.0, -1.0, 2.0]], dtype=F64)
    value, slope, lost = pessimistic(ratio.clone(), ratio.clamp(0.8, 1.2), a)
    assert_close(value, torch.tensor([[-1.2, 0.8, -2.0]], dtype=F64))
    assert_close(slope, torch.tensor([[0.0, 0.0, -2.0]], dtype=F64))
    assert lost.tolist() == [[True, True, False]]
    rows = torch.tensor([[1.5], [0.5]], dtype=F64)  # one ratio a row
    by_row = pessimistic(rows, rows.clamp(0.8, 1.2), torch.tensor([[1.0, -1.0], [2.0, -2.0]], dtype=F64))
    assert_close(by_row[0], torch.tensor([[-1.2, 1.5], [-1.0, 1.6]], dtype=F64))
    assert_close(by_row[1], torch.tensor([[0.0, 1.5], [-1.0, 0.0]], dtype=F64))
    value, slope = bound_above(value, slope - 1, torch.tensor([[0.0, 0.5, 0.0]], dtype=F64))
    assert_close(value, torch.tensor([[-1.2, 0.5, -2.0]], dtype=F64))
    assert_close(slope, torch.tensor([[-1.0, 0.0, -3.0]], dtype=F64))
