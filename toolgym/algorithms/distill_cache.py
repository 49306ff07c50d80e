"""Lightning OPD's cache: responses sampled once, scored once by the teacher, and checked before they are trained on.

One ``.npz`` file, readable without pickle: a JSON header and the records as flat arrays with offsets. numpy only, no
torch.
"""

import json
import os
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from toolgym.errors import ConfigError

CACHE_VERSION = 1
# Scores may exceed 0 by rounding, not by more: a positive log-probability is a bug of whoever scored.
MAX_LOGPROB = 1e-4

Ints: TypeAlias = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheHeader:
    """Who made the data. Distilling from a teacher other than the one that wrote the SFT data has an irreducible bias.

    ``CacheHeader(sft_teacher_id="qwen3-8b@1f2e", opd_teacher_id="qwen3-8b@1f2e", student_checkpoint_id="sft-3000",
    tokenizer_hash="9c1d", sampling_params={"temperature": 1.0})``.
    """

    sft_teacher_id: str
    opd_teacher_id: str
    student_checkpoint_id: str
    tokenizer_hash: str
    sampling_params: dict[str, Any] = field(default_factory=dict[str, Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class CacheRecord:
    """One scored response of n tokens.

    ``CacheRecord(prompt_ids=array([5, 8], int32), response_ids=array([3, 1], int32), response_mask=array([True, True]),
    teacher_logprobs=array([-0.1, -2.0], float32), finish_reason="stop")``.
    """

    prompt_ids: Ints
    response_ids: Ints
    response_mask: npt.NDArray[np.bool_]
    teacher_logprobs: npt.NDArray[np.float32]
    finish_reason: str = ""


def check_teacher_consistency(header: CacheHeader, *, policy: Literal["raise", "warn", "ignore"] = "raise") -> bool:
    """Whether one teacher wrote the SFT data and scored the responses.

    Raises:  ConfigError: it did not, and the policy is "raise". "warn" warns (UserWarning) instead, "ignore" does
             neither.
    Source:  Lightning OPD (arXiv:2604.13010): with two teachers the gradient is biased, online and offline alike.
    """
    if header.sft_teacher_id == header.opd_teacher_id:
        return True
    message = (
        f"the SFT data came from teacher {header.sft_teacher_id!r}, the scores from {header.opd_teacher_id!r}: "
        "distillation would be biased for good; score with the SFT teacher, or redo the SFT with this one"
    )
    if policy == "raise":
        raise ConfigError(message)
    if policy == "warn":
        warnings.warn(message, stacklevel=2)
    return False


def align_teacher_logprobs(logprobs: Sequence[float], response_length: int) -> npt.NDArray[np.float32]:
    """The last ``response_length`` scores: a server may return the prompt's positions too.

    Raises:  ConfigError: fewer scores than response tokens.
    """
    if len(logprobs) < response_length:
        raise ConfigError(f"got {len(logprobs)} teacher log-probabilities for {response_length} response tokens")
    return np.asarray(logprobs[len(logprobs) - response_length :], np.float32)


def validate_record(record: CacheRecord, *, where: str = "record") -> None:
    """Refuse a record that cannot be trained on.

    Raises:  ConfigError: lengths differ, or the score of a trained token is not finite or above 1e-4; the message names
             ``where`` and the position.
    """
    n = len(record.response_ids)
    for name in ("response_mask", "teacher_logprobs"):
        if len(getattr(record, name)) != n:
            raise ConfigError(f"{where}: {name} has {len(getattr(record, name))} entries for {n} response tokens")
    scores = np.where(record.response_mask, record.teacher_logprobs, 0.0)
    bad = np.flatnonzero(~np.isfinite(scores) | (scores > MAX_LOGPROB))
    if len(bad):
        raise ConfigError(f"{where}: teacher log-probability {scores[bad[0]]} at response token {bad[0]}")


_STREAMS = {"prompt_ids": np.int32, "response_ids": np.int32, "response_mask": np.bool_, "teacher_logprobs": np.float32}


def write_teacher_cache(path: Path | str, header: CacheHeader, records: Sequence[CacheRecord]) -> None:
    """Validate the records and write them beside ``path``, then rename: a reader sees the whole file or none.

    Raises:  ConfigError: an invalid record (nothing is written). OSError: from the file system.
    """
    for i, record in enumerate(records):
        validate_record(record, where=f"record {i}")
    arrays: dict[str, npt.NDArray[Any]] = {
        name: np.concatenate([np.zeros(0, dtype), *(getattr(r, name) for r in records)]).astype(dtype)
        for name, dtype in _STREAMS.items()
    }
    for name in ("prompt", "response"):
        lengths = [len(getattr(r, f"{name}_ids")) for r in records]
        arrays[f"{name}_ends"] = np.cumsum(lengths, dtype=np.int64)
    text = json.dumps({"version": CACHE_VERSION} | asdict(header) | {"finish": [r.finish_reason for r in records]})
    arrays["header"] = np.frombuffer(text.encode(), np.uint8)
    path = Path(path)
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        except BaseException:
            os.unlink(file.name)
            raise
    os.replace(file.name, path)


def read_teacher_cache(
    path: Path | str, *, tokenizer_hash: str, policy: Literal["raise", "warn", "ignore"] = "raise"
) -> tuple[CacheHeader, list[CacheRecord]]:
    """Read a cache, check its teachers, tokenizer and every record.

    Args:    path: of a file by `write_teacher_cache`. tokenizer_hash: the trainer's. policy: on two different
             teachers, see `check_teacher_consistency`.
    Raises:  ConfigError: another tokenizer, another format version, inconsistent teachers, an invalid record.
    """
    with np.load(path, allow_pickle=False) as data:
        arrays = {name: data[name] for name in data.files}
    header = json.loads(arrays["header"].tobytes().decode())
    if header.pop("version") != CACHE_VERSION:
        raise ConfigError(f"{path}: written in another format version than {CACHE_VERSION}; write it again")
    finish: list[str] = header.pop("finish")
    head = CacheHeader(**header)
    if head.tokenizer_hash != tokenizer_hash:
        raise ConfigError(f"{path}: made with tokenizer {head.tokenizer_hash!r}, the trainer uses {tokenizer_hash!r}")
    check_teacher_consistency(head, policy=policy)
    streams: dict[str, list[npt.NDArray[Any]]] = {}
    for name in _STREAMS:
        ends = arrays["prompt_ends" if name == "prompt_ids" else "response_ends"]
        streams[name] = np.split(arrays[name], ends[:-1])
    records = [
        CacheRecord(**{name: parts[i] for name, parts in streams.items()}, finish_reason=reason)
        for i, reason in enumerate(finish)
    ]
    for i, record in enumerate(records):
        validate_record(record, where=f"{path}, record {i}")
    return head, records
