"""The teacher cache: round trip, guards, and training from it without a teacher."""

import dataclasses
import math

import numpy as np
import pytest
import torch

from toolgym.algorithms.distill_cache import (
    CacheHeader,
    CacheRecord,
    align_teacher_logprobs,
    check_teacher_consistency,
    read_teacher_cache,
    validate_record,
    write_teacher_cache,
)
from toolgym.algorithms.distillation import offline_opd_loss
from toolgym.errors import ConfigError

HEADER = CacheHeader(
    sft_teacher_id="big",
    opd_teacher_id="big",
    student_checkpoint_id="sft-1",
    tokenizer_hash="9c1d",
    sampling_params={"temperature": 1.0},
)


def record(n=3, **changes):
    made = CacheRecord(
        prompt_ids=np.arange(2, dtype=np.int32),
        response_ids=np.arange(n, dtype=np.int32),
        response_mask=np.ones(n, np.bool_),
        teacher_logprobs=-np.arange(n, dtype=np.float32),
        finish_reason="stop",
    )
    return dataclasses.replace(made, **changes)


def test_teacher_cache_round_trips_exactly(tmp_path):
    records = [record(3), record(1, finish_reason="length"), record(0), record(4, prompt_ids=np.zeros(0, np.int32))]
    write_teacher_cache(tmp_path / "cache.npz", HEADER, records)
    header, read = read_teacher_cache(tmp_path / "cache.npz", tokenizer_hash="9c1d")
    assert header == HEADER
    assert len(read) == 4
    for got, wanted in zip(read, records, strict=True):
        for field in dataclasses.fields(CacheRecord):
            a, b = getattr(got, field.name), getattr(wanted, field.name)
            assert np.array_equal(a, b)
            assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
    assert [p.name for p in tmp_path.iterdir()] == ["cache.npz"]


def test_teacher_cache_of_nothing_round_trips(tmp_path):
    write_teacher_cache(tmp_path / "c", HEADER, [])
    assert read_teacher_cache(tmp_path / "c", tokenizer_hash="9c1d") == (HEADER, [])
    with np.load(tmp_path / "c") as data:
        assert data["response_ends"].dtype == np.int64


def test_teacher_cache_names_the_file_and_the_record_that_is_spoilt(tmp_path):
    write_teacher_cache(tmp_path / "c", HEADER, [record(), record()])
    with np.load(tmp_path / "c") as data:
        arrays = dict(data)
    arrays["teacher_logprobs"][4] = math.nan
    np.savez(tmp_path / "spoilt.npz", **arrays)
    with pytest.raises(ConfigError, match=r"spoilt\.npz, record 1: .* nan at response token 1"):
        read_teacher_cache(tmp_path / "spoilt.npz", tokenizer_hash="9c1d")


def test_teacher_cache_refuses_another_tokenizer(tmp_path):
    write_teacher_cache(tmp_path / "c", HEADER, [record()])
    with pytest.raises(ConfigError, match="'9c1d', the trainer uses 'other'"):
        read_teacher_cache(tmp_path / "c", tokenizer_hash="other")


def test_teacher_cache_refuses_two_teachers_when_read(tmp_path):
    write_teacher_cache(tmp_path / "c", dataclasses.replace(HEADER, opd_teacher_id="bigger"), [record()])
    with pytest.raises(ConfigError, match="'big', the scores from 'bigger'"):
        read_teacher_cache(tmp_path / "c", tokenizer_hash="9c1d")
    assert len(read_teacher_cache(tmp_path / "c", tokenizer_hash="9c1d", policy="ignore")[1]) == 1


def test_check_teacher_consistency_policies():
    two = dataclasses.replace(HEADER, sft_teacher_id="other")
    assert check_teacher_consistency(HEADER) is True
    assert not check_teacher_consistency(two, policy="ignore")
    with pytest.warns(UserWarning, match="biased for good") as caught:
        assert not check_teacher_consistency(two, policy="warn")
    assert caught[0].filename == __file__  # the caller's line
    with pytest.raises(ConfigError, match="biased for good"):
        check_teacher_consistency(two)


def test_align_teacher_logprobs_keeps_the_last():
    assert align_teacher_logprobs([-9.0, -8.0, -1.0, -2.0], 2).tolist() == [-1.0, -2.0]
    assert align_teacher_logprobs([-1.0], 0).tolist() == []
    with pytest.raises(ConfigError, match="got 1 teacher log-probabilities for 2"):
        align_teacher_logprobs([-1.0], 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"teacher_logprobs": np.zeros(2, np.float32)}, "teacher_logprobs has 2 entries for 3"),
        ({"response_mask": np.ones(4, np.bool_)}, "response_mask has 4 entries for 3"),
        ({"teacher_logprobs": np.array([0, math.nan, 0], np.float32)}, "nan at response token 1"),
        ({"teacher_logprobs": np.array([0, 0, -math.inf], np.float32)}, "-inf at response token 2"),
        ({"teacher_logprobs": np.array([0.01, 0, 0], np.float32)}, "at response token 0"),
    ],
)
def test_validate_record_refuses(changes, message, tmp_path):
    with pytest.raises(ConfigError, match=message):
        validate_record(record(**changes))
    with pytest.raises(ConfigError, match=f"record 1: .*{message}"):
        write_teacher_cache(tmp_path / "c", HEADER, [record(), record(**changes)])
    assert list(tmp_path.iterdir()) == []


def test_validate_record_reads_trained_tokens_only():
    mask = np.array([True, False, True])
    validate_record(record(response_mask=mask, teacher_logprobs=np.array([-1, math.nan, 5e-5], np.float32)))


def test_offline_opd_loss_trains_from_the_file_alone(tmp_path):
    """The scores come from the file; there is no teacher to call."""
    write_teacher_cache(tmp_path / "c", HEADER, [record(3)])
    (cached,) = read_teacher_cache(tmp_path / "c", tokenizer_hash="9c1d")[1]
    logprobs = torch.full((1, 3), -0.5, dtype=torch.float64, requires_grad=True)
    scores = torch.from_numpy(cached.teacher_logprobs).unsqueeze(0)
    loss, _ = offline_opd_loss(logprobs, scores, torch.from_numpy(cached.response_mask).unsqueeze(0))
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad.tolist() == [[-0.5, 0.5, 1.5]]  # -(log T - log S)
