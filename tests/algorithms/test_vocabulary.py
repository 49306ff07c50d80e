"""Reductions of logits: against autograd's own gradient, with masked rows, padding, and what a model rules out."""

import math

import pytest
import torch

from toolgym.algorithms.vocabulary import common_logprobs, gather_logprobs, logit_surrogate

DOUBLE = torch.float64


def randn(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=DOUBLE)


MASK = torch.tensor([[True, False, True], [True, True, False]])


def test_gather_logprobs_has_the_value_and_gradient_of_the_plain_expression():
    ids = torch.tensor([0, 3, 3]).expand(2, 3, 3)  # a repeated token
    weights = randn(2, 3, 3)
    mine, plain = (randn(2, 3, 5).requires_grad_() for _ in range(2))
    got = gather_logprobs(mine, ids, MASK)
    expected = torch.where(MASK.unsqueeze(-1), plain.log_softmax(-1).gather(-1, ids), 0.0)
    torch.testing.assert_close(got, expected)
    (weights * got).sum().backward()
    (weights * expected).sum().backward()
    torch.testing.assert_close(mine.grad, plain.grad)


def test_gather_logprobs_reads_nothing_under_the_mask_nor_on_padding():
    logits = randn(2, 3, 5)
    logits[~MASK] = math.nan
    logits.requires_grad_()
    ids = torch.tensor([1, -1]).expand(2, 3, 2)
    got = gather_logprobs(logits, ids, MASK)
    assert got[..., 1].eq(0).all()
    assert got[~MASK].eq(0).all()
    got.sum().backward()
    assert logits.grad[~MASK].eq(0).all()
    assert logits.grad.isfinite().all()


def test_gather_logprobs_of_a_ruled_out_token_is_finite():
    logits = torch.tensor([[[0.0, -math.inf]]], dtype=DOUBLE).requires_grad_()
    got = gather_logprobs(logits, torch.tensor([[[0, 1]]]), torch.ones(1, 1, dtype=torch.bool))
    assert got.tolist() == [[[0.0, -1e4]]]
    assert torch.autograd.grad(got.sum(), logits)[0].isfinite().all()


@pytest.mark.parametrize("shape", [(2, 3, 5), (3, 3, 5)])
def test_gather_logprobs_refuses_other_shapes(shape):
    with pytest.raises(ValueError, match="expected the mask's"):
        gather_logprobs(randn(*shape), torch.zeros(2, 2, 1, dtype=torch.int64), MASK)


def test_common_logprobs_cuts_divides_and_detaches():
    student, teacher = randn(2, 3, 5).requires_grad_(), randn(2, 3, 7)
    a, b = common_logprobs(student, teacher, MASK, temperature=2.0)
    torch.testing.assert_close(a, (student.detach() / 2).log_softmax(-1))
    torch.testing.assert_close(b, (teacher[..., :5] / 2).log_softmax(-1))
    assert not a.requires_grad
    low, _ = common_logprobs(student.to(torch.bfloat16), teacher, MASK)
    assert low.dtype == torch.float32
    hard = torch.tensor([0.0, -math.inf], dtype=DOUBLE).expand(2, 3, 2)
    assert common_logprobs(hard, hard, MASK)[0].min().item() == -1e4


def test_common_logprobs_refuses():
    with pytest.raises(ValueError, match="temperature 0"):
        common_logprobs(randn(2, 3, 5), randn(2, 3, 5), MASK, temperature=0.0)
    with pytest.raises(ValueError, match="teacher_logits"):
        common_logprobs(randn(2, 3, 5), randn(2, 2, 5), MASK)


def test_logit_surrogate_gives_its_value_and_slope():
    logits, value, slope = randn(2, 3, 4).requires_grad_(), randn(2, 3), randn(2, 3, 4)
    value[0, 1] = slope[0, 1, 0] = math.nan
    loss = logit_surrogate(logits, value.clone(), slope.clone(), MASK)
    torch.testing.assert_close(loss, torch.where(MASK, value, 0.0))
    weights = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], dtype=DOUBLE)
    (grad,) = torch.autograd.grad((weights * loss).sum(), logits)
    torch.testing.assert_close(grad, torch.where(MASK.unsqueeze(-1), weights.unsqueeze(-1) * slope, 0.0))
