"""Weights on their way from a learner to an engine: files, checksums, and the canary that proves their arrival.

A `WeightsWriter` belongs to the learner. It writes each publication to one of two files in turn, so that the file an
engine is reading is never written to, and hands out the `WeightsHandle` that the engine's `publish` verifies.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import psutil
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from toolgym.engines.base import WeightsHandle
from toolgym.errors import EngineError

_CANARY_LENGTH = 16
_PREFIX = "toolgym-weights-"  # then the writer's process id


def named_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A model's weights by name, tied ones once, under the name by which the model lists them first."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def own_memory(model: torch.nn.Module) -> None:
    """Move a loaded model's tensors out of its file, into memory that torch allocates.

    In a mapped safetensors file a tensor may begin anywhere, and on a CPU the last bit of a matrix product depends on
    the alignment: without this two copies of the same weights give log-probabilities that differ by 1e-7.
    """
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()


def checksum(named_tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all tensors, in the order of their names.

    Tensors that share their memory count once, under the name that comes first in the mapping. 64 hex digits.
    """
    digest = hashlib.sha256()
    for name, tensor in sorted(_untied(named_tensors).items()):
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def write_weights(named_tensors: Mapping[str, torch.Tensor], path: str | os.PathLike[str]) -> str:
    """Write tensors as safetensors, beside and then renamed into place, and return their `checksum`.

    Raises OSError: the disk is full or the folder cannot be written to; nothing is left at ``path`` then but what was
    there.
    """
    target = Path(path)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _untied(named_tensors).items()}
    beside = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        try:
            save_file(tensors, beside)
        except SafetensorError as error:
            raise OSError(f"cannot write weights to {beside}: {error}") from error
        os.replace(beside, target)
    finally:
        beside.unlink(missing_ok=True)
    return checksum(tensors)


def read_weights(path: str, into: Mapping[str, torch.Tensor]) -> None:
    """Copy a file of weights into existing tensors. Nothing is guessed: names, shapes and dtypes must agree.

    Raises EngineError: the file cannot be read, a tensor is missing, unknown, or of another shape or dtype (it is
    named).
    """
    try:
        with safe_open(path, framework="pt") as file, torch.no_grad():
            _check_names(set(file.keys()), set(into), path)
            for name, target in into.items():
                tensor = file.get_tensor(name)
                if tensor.shape != target.shape or tensor.dtype != target.dtype:
                    raise EngineError(
                        f"tensor {name!r} in {path} is {tensor.dtype} {tuple(tensor.shape)}, "
                        f"the engine has {target.dtype} {tuple(target.shape)}"
                    )
                target.copy_(tensor)
    except (OSError, SafetensorError) as error:
        raise EngineError(f"cannot read the weights {path}: {error}") from error


def _check_names(got: set[str], expected: set[str], path: str) -> None:
    for names, what in ((expected - got, "lacks"), (got - expected, "has, and the engine does not know,")):
        if names:
            first = ", ".join(sorted(names)[:3])
            raise EngineError(f"the weights {path} {what} {len(names)} of {len(expected)} tensors: {first}")


def _untied(named_tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    seen: set[tuple[object, ...]] = set()
    kept: dict[str, torch.Tensor] = {}
    for name, tensor in named_tensors.items():
        key = (tensor.device, tensor.data_ptr(), tuple(tensor.shape), tensor.stride())
        if tensor.numel() and key in seen:
            continue
        seen.add(key)
        kept[name] = tensor
    return kept


def logprobs_of(model: torch.nn.Module, tokens: Sequence[int]) -> tuple[float, ...]:
    """The model's log-probability of each token given those before it, float32; entry 0 is 0."""
    ids = torch.tensor([list(tokens)], device=next(model.parameters()).device)
    training = model.training
    model.eval()
    with torch.no_grad():
        table = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[0, :-1].float(), dim=-1)
    model.train(training)
    return (0.0, *table.gather(1, ids[0, 1:, None])[:, 0].tolist())


def _sweep(folder: Path) -> None:
    """Remove what writers left whose process was killed: shared memory would fill up otherwise."""
    for left in folder.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).partition("-")[0]
        if pid.isdecimal() and not psutil.pid_exists(int(pid)):
            shutil.rmtree(left, ignore_errors=True)


class WeightsWriter:
    """Writes a learner's weights for engines on the same machine, into a private folder that `close` removes.

    Args:
        folder: where to make it; by default shared memory (``/dev/shm``) if there is any, else the temporary folder.
        canary_tokens: a fixed prompt whose log-probabilities travel with the weights; by default 16 tokens spread over
        the
            vocabulary.
        canary_tolerance: largest difference of a canary log-probability between learner and engine.

    Example: ``handle = writer.write(model)`` and then ``await engine.publish(version, handle)``.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        *,
        canary_tokens: Sequence[int] = (),
        canary_tolerance: float = 1e-3,
    ) -> None:
        if folder is None:
            folder = "/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir()
        _sweep(Path(folder))
        self._folder = tempfile.TemporaryDirectory(prefix=f"{_PREFIX}{os.getpid()}-", dir=folder)
        self._canary = tuple(canary_tokens)
        self._tolerance = canary_tolerance
        self._written = 0

    def write(self, model: torch.nn.Module, *, dtype: torch.dtype | None = None) -> WeightsHandle:
        """Write a transformers model's weights. dtype: the engine's, where it differs from the learner's.

        The canary is computed in the learner's own precision: with another ``dtype``, choose the tolerance to suit.
        """
        weights = named_weights(model)
        if dtype is not None:
            weights = {name: tensor.to(dtype) for name, tensor in weights.items()}
        if not self._canary:
            vocab = int(model.get_input_embeddings().weight.shape[0])  # pyright: ignore
            self._canary = tuple(int(i) for i in np.linspace(0, vocab - 1, _CANARY_LENGTH))
        path = Path(self._folder.name) / f"weights-{self._written % 2}.safetensors"
        self._written += 1
        return WeightsHandle(
            path=str(path),
            checksum=write_weights(weights, path),
            canary_tokens=self._canary,
            canary_logprobs=logprobs_of(model, self._canary),
            canary_tolerance=self._tolerance,
        )

    def close(self) -> None:
        """Remove the files."""
        self._folder.cleanup()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
