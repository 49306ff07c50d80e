"""Engines: they generate and score tokens with a policy at a known version; the contract is `toolgym.engines.base`."""

from toolgym.engines.base import (
    Completion,
    Engine,
    EngineInfo,
    Request,
    Sampling,
    Scores,
    WeightsHandle,
)
from toolgym.engines.registry import engine_names, open_engine
from toolgym.engines.scripted import ScriptedEngine

__all__ = [
    "Completion",
    "Engine",
    "EngineInfo",
    "Request",
    "Sampling",
    "Scores",
    "ScriptedEngine",
    "WeightsHandle",
    "engine_names",
    "open_engine",
]
