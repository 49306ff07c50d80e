"""Checkpoints: written beside, synced, renamed into place, and only then recorded. Resume trusts only the record."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from toolgym.engines.weights import named_weights
from toolgym.errors import TrainingError
from toolgym.trainer.faults import crash_point
from toolgym.trainer.learner import Learner

SCHEMA_VERSION = 1


def write(folder: Path, learner: Learner) -> None:
    """Write ``model.safetensors`` and ``optimizer.pt`` into ``folder``, all or nothing.

    Raises:  OSError: no space left, no permission; an existing checkpoint is untouched.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(folder, ignore_errors=True)  # unrecorded leftover of a killed run: recorded names are never reused
    partial.mkdir(parents=True)
    save_file({n: t.contiguous() for n, t in named_weights(learner.model).items()}, partial / "model.safetensors")
    torch.save(learner.state_dict(), partial / "optimizer.pt")
    (partial / "checkpoint.json").write_text(json.dumps({"schema_version": SCHEMA_VERSION, "step": learner.step_count}))
    for file in partial.iterdir():
        _sync(file)
    os.rename(partial, folder)
    _sync(folder.parent)
    crash_point("checkpoint_written")


def read(folder: Path, learner: Learner) -> None:
    """Load a checkpoint into the learner.

    Raises:  TrainingError: a file is missing, damaged, of another schema, or does not fit the model.
    """
    try:
        meta: Mapping[str, Any] = json.loads((folder / "checkpoint.json").read_text())
        if meta["schema_version"] != SCHEMA_VERSION:
            raise TrainingError(f"checkpoint {folder} has schema {meta['schema_version']}, expected {SCHEMA_VERSION}")
        load_model(learner.model, folder / "model.safetensors")
        learner.load_state_dict(torch.load(folder / "optimizer.pt", weights_only=True))
    except (OSError, KeyError, ValueError, RuntimeError, SafetensorError, EOFError, pickle.UnpicklingError) as error:
        if isinstance(error, TrainingError):
            raise
        raise TrainingError(
            f"checkpoint {folder} cannot be read ({type(error).__name__}: {str(error)[:200]}); restore it from a copy, "
            "or start the run anew"
        ) from error


def load_model(model: torch.nn.Module, path: Path) -> None:
    """Copy the tensors of a safetensors file into the model. Raises TrainingError: names or shapes differ."""
    found = load_file(path)
    wanted = dict(model.named_parameters())
    if missing := sorted(wanted.keys() - found.keys()):
        raise TrainingError(f"{path} lacks {len(missing)} tensors of the model, among them {missing[0]}")
    with torch.no_grad():
        for name, parameter in wanted.items():
            if found[name].shape != parameter.shape:
                raise TrainingError(
                    f"{path}: {name} has shape {list(found[name].shape)}, the model's is {list(parameter.shape)}"
                )
            parameter.copy_(found[name])


def prune(folder: Path, *, keep: set[Path]) -> None:
    """Remove every checkpoint under ``folder`` that is not in ``keep``, and leftovers of killed runs."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path not in keep:
            shutil.rmtree(path, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
