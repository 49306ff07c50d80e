"""The trainer: curricula, rollouts, buffer, learner, publisher, evaluator, checkpoints. It knows no algorithm."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolgym.trainer.config import RunConfig
    from toolgym.trainer.run import train

_HOME = {"RunConfig": "config", "train": "run"}

__all__ = ["RunConfig", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:  # at first use: they import torch and transformers
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
