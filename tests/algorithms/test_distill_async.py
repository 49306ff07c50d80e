"""Finite supports and samples: sparse equals full where it must, is biased where it must, and sampling is unbiased."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.distill_async import multi_sample_forward_kl, multi_sample_opd_loss, sparse_kl
from toolgym.algorithms.distillation import mixed_kl, opd_loss
from toolgym.algorithms.vocabulary import gather_logprobs

DOUBLE = torch.float64
ONE = torch.ones(1, 1, dtype=torch.bool)


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def position(p):
    return p.log().reshape(1, 1, -1)


def sparse(s, p, support, **options):
    ids = torch.tensor(support).reshape(1, 1, -1)
    return sparse_kl(position(s), ids, position(p[support]), ONE, **options)[0].item()


def full(s, p, weight):
    return mixed_kl(position(s), position(p), ONE, reverse_weight=weight)[0].item()


S3, T3 = t(0.6, 0.3, 0.1), t(0.5, 0.3, 0.2)
S4, T4 = t(0.4, 0.3, 0.2, 0.1), t(0.5, 0.3, 0.15, 0.05)


@pytest.mark.parametrize("weight", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("bucket", [False, True])
def test_sparse_kl_over_the_whole_vocabulary_is_the_full_divergence(weight, bucket):
    got = sparse(S4, T4, [2, 0, 3, 1], reverse_weight=weight, tail_bucket=bucket)
    assert got == pytest.approx(full(S4, T4, weight), abs=1e-12)


def test_sparse_kl_reverse_is_biased_and_can_be_negative():
    assert sparse(S3, T3, [0, 1], reverse_weight=1.0) == pytest.approx(0.109393, abs=5e-7)
    assert full(S3, T3, 1.0) == pytest.approx(0.040078, abs=5e-7)
    assert sparse(S4, T4, [0, 1], reverse_weight=1.0) == pytest.approx(-0.089257, abs=5e-7)


def test_sparse_kl_with_the_tail_bucket_lies_between_zero_and_the_full_divergence():
    assert sparse(S4, T4, [0, 1], reverse_weight=1.0, tail_bucket=True) == pytest.approx(0.032382, abs=5e-7)
    assert full(S4, T4, 1.0) == pytest.approx(0.037594, abs=5e-7)


@given(st.integers(0, 2**20), st.integers(1, 4), st.sampled_from([0.0, 1.0]))
def test_sparse_kl_with_the_tail_bucket_is_bounded(seed, k, weight):
    gen = torch.Generator().manual_seed(seed)
    s, p = (torch.randn(5, generator=gen, dtype=DOUBLE).softmax(0) for _ in range(2))
    support = torch.randperm(5, generator=gen)[:k].tolist()
    assert -1e-12 <= sparse(s, p, support, reverse_weight=weight, tail_bucket=True) <= full(s, p, weight) + 1e-12


def test_sparse_kl_forward_weighs_by_the_teacher():
    expected = 0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(1.0)
    assert sparse(S4, T4, [0, 1]) == pytest.approx(expected, abs=1e-12)


def test_sparse_kl_clips_each_forward_summand():
    s, p = t(0.01, 0.99), t(0.9, 0.1)
    summands = [0.9 * math.log(90), 0.1 * math.log(0.1 / 0.99)]
    assert sparse(s, p, [0, 1], clip=1.5) == pytest.approx(1.5 + summands[1], abs=1e-12)
    assert sparse(s, p, [0, 1], clip=1e6) == pytest.approx(sum(summands), abs=1e-12)


def test_sparse_kl_ignores_padding_whatever_stands_there():
    logits = position(S4).clone().requires_grad_()
    ids = torch.tensor([[[0, -1, 1]]])
    teacher = torch.tensor([[[0.5, 1.0, 0.3]]], dtype=DOUBLE).log()
    teacher[0, 0, 1] = math.nan
    loss, metrics = sparse_kl(logits, ids, teacher, ONE, reverse_weight=0.5, tail_bucket=True)
    expected = sparse(S4, T4, [0, 1], reverse_weight=0.5, tail_bucket=True)
    assert loss.item() == pytest.approx(expected, abs=1e-12)
    assert torch.autograd.grad(loss.sum(), logits)[0].isfinite().all()
    assert metrics["teacher_mass"].item() == pytest.approx(0.8, abs=1e-12)
    assert metrics["student_mass"].item() == pytest.approx(0.7, abs=1e-12)


def test_sparse_kl_reports_masses_of_valid_positions():
    logits, ids = position(S4).expand(1, 2, 4), torch.tensor([[[0, 1], [2, 3]]])
    _, metrics = sparse_kl(logits, ids, T4[ids].log(), torch.tensor([[True, False]]))
    assert metrics["teacher_mass"].item() == pytest.approx(0.8, abs=1e-12)
    assert metrics["student_mass"].item() == pytest.approx(0.7, abs=1e-12)


def test_sparse_kl_refuses_a_bad_weight():
    with pytest.raises(ValueError, match="reverse_weight"):
        sparse(S4, T4, [0], reverse_weight=2.0)


def test_gather_logprobs_normalises_over_the_whole_vocabulary():
    got = gather_logprobs(position(S4) + 3.0, torch.tensor([[[1, -1]]]), ONE)
    assert got.tolist() == [[[pytest.approx(math.log(0.3), abs=1e-12), 0.0]]]


def _samples(n, seed=0, rows=2, length=3):
    gen = torch.Generator().manual_seed(seed)
    logprobs, teacher = (-2 * torch.rand(rows, length, n, generator=gen, dtype=DOUBLE) for _ in range(2))
    old = logprobs + 0.2 * torch.randn(rows, length, n, generator=gen, dtype=DOUBLE)
    mask = torch.tensor([[True, False, True], [True, True, False]])
    return logprobs.requires_grad_(), old, teacher, mask


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
def test_multi_sample_opd_loss_of_one_sample_is_opd_loss(recompute, clip):
    logprobs, old, teacher, mask = _samples(1)
    many, _ = multi_sample_opd_loss(logprobs, old, teacher, mask, recompute=recompute, clip=clip)
    one, _ = opd_loss(logprobs[..., 0], old[..., 0], teacher[..., 0], mask, recompute=recompute, clip=clip)
    torch.testing.assert_close(many, one)


def test_multi_sample_opd_loss_is_the_mean_over_valid_samples():
    logprobs, old, teacher, mask = _samples(3)
    samples = torch.tensor([True, False, True]).expand(2, 3, 3)
    got, _ = multi_sample_opd_loss(logprobs, old, teacher, mask, samples=samples)
    each = [multi_sample_opd_loss(*(x[..., n : n + 1] for x in (logprobs, old, teacher)), mask)[0] for n in (0, 2)]
    torch.testing.assert_close(got, (each[0] + each[1]) / 2)
    none, _ = multi_sample_opd_loss(logprobs, old, teacher, mask, samples=torch.zeros(2, 3, 3, dtype=torch.bool))
    assert none.abs().max() == 0


def test_multi_sample_opd_loss_with_a_wide_clip_is_unclipped():
    logprobs, old, teacher, mask = _samples(4)
    wide, _ = multi_sample_opd_loss(logprobs, old, teacher, mask, clip=1e6)
    free, _ = multi_sample_opd_loss(logprobs, old, teacher, mask, clip=None)
    torch.testing.assert_close(wide, free)


def _gradient(ids, student, old, teacher):
    """Gradient of the estimator in the student's logits for drawn ids [R, N], one row a replicate, [R, V]."""
    logits = student.log().expand(ids.shape[0], 1, -1).clone().requires_grad_()
    mask = torch.ones(ids.shape[0], 1, dtype=torch.bool)
    logprobs = gather_logprobs(logits, ids.unsqueeze(1), mask)
    loss, _ = multi_sample_opd_loss(
        logprobs, old.log()[ids].unsqueeze(1), teacher.log()[ids].unsqueeze(1), mask, clip=None
    )
    return torch.autograd.grad(loss.sum(), logits)[0].squeeze(1)


def test_multi_sample_opd_loss_has_the_gradient_of_the_reverse_kl_whoever_sampled():
    """Two draws (the same token twice included) from old, enumerated: 9 pairs, weighted by their probability."""
    old = t(0.5, 0.2, 0.3)
    ids = torch.cartesian_prod(torch.arange(3), torch.arange(3))
    got = (old[ids].prod(1, keepdim=True) * _gradient(ids, S3, old, T3)).sum(0)
    exact = S3 * (S3.log() - T3.log() - (S3 * (S3 / T3).log()).sum())
    torch.testing.assert_close(got, exact, atol=1e-12, rtol=0)


@pytest.mark.slow
def test_multi_sample_opd_loss_variance_falls_as_one_over_n():
    old, gen = t(0.5, 0.2, 0.3), torch.Generator().manual_seed(5)

    def variance(n):
        ids = torch.multinomial(old, 6000 * n, replacement=True, generator=gen).reshape(6000, n)
        return _gradient(ids, S3, old, T3).var(0).sum().item()

    assert variance(4) / variance(16) == pytest.approx(4.0, rel=0.25)


def test_multi_sample_forward_kl_is_the_forward_kl_in_expectation():
    logits = position(S3).expand(3, 1, 3).clone().requires_grad_()
    mask = torch.ones(3, 1, dtype=torch.bool)
    ids = torch.arange(3).reshape(3, 1, 1)
    loss, _ = multi_sample_forward_kl(gather_logprobs(logits, ids, mask), T3.log()[ids], mask)
    value = (T3.unsqueeze(1) * loss).sum()
    assert value.item() == pytest.approx(full(S3, T3, 0.0), abs=1e-12)
    grad = torch.autograd.grad(value, logits)[0].sum(0).squeeze(0)
    torch.testing.assert_close(grad, S3 - T3, atol=1e-12, rtol=0)


def test_multi_sample_forward_kl_averages_valid_samples_only():
    logprobs, _, teacher, mask = _samples(2)
    samples = torch.tensor([True, False]).expand(2, 3, 2)
    got, metrics = multi_sample_forward_kl(logprobs, teacher, mask, samples=samples)
    expected = torch.where(mask, (teacher - logprobs)[..., 0], 0.0)
    torch.testing.assert_close(got, expected)
    assert metrics["forward_kl"].item() == pytest.approx(expected[mask].mean().item(), abs=1e-12)
