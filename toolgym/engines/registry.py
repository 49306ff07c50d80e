"""Engines by name. A name's module is imported when it is asked for: most engines need packages that others do not."""

from __future__ import annotations

import importlib
from typing import Any

from toolgym.engines.base import Engine
from toolgym.errors import ConfigError, nearest

_ENGINES = {
    "scripted": "toolgym.engines.scripted:ScriptedEngine",
    "transformers": "toolgym.engines.transformers_engine:TransformersEngine",
}


def engine_names() -> tuple[str, ...]:
    """The names that `open_engine` knows."""
    return tuple(sorted(_ENGINES))


def open_engine(type: str, **config: Any) -> Engine:
    """Make the engine of that name; it starts when it is entered as an async context manager.

    Example: ``async with open_engine("transformers", model_path="runs/latest/model", slots=64) as engine: ...``

    Raises ConfigError: an unknown name or option, or a package that the engine needs is not installed.
    """
    if type not in _ENGINES:
        raise ConfigError(nearest(type, _ENGINES, what="engine"))
    module, name = _ENGINES[type].split(":")
    try:
        engine: type[Engine] = getattr(importlib.import_module(module), name)  # pyright: ignore
    except ModuleNotFoundError as error:
        raise ConfigError(f"engine {type!r} needs the package {error.name!r}, which is not installed") from error
    return engine(**config)
