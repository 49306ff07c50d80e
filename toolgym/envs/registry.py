"""Which environments there are: by decorator, by entry point of another package, and built in.

Names are listed without importing what they stand for. Whatever is registered here is visible to ``gymnasium.make``
too.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import inspect
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar, cast

import gymnasium
from gymnasium.wrappers import OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics, TimeLimit

from toolgym.errors import ConfigError, nearest

if TYPE_CHECKING:
    from toolgym.envs.base import Env

EnvClass = TypeVar("EnvClass", bound="type[Env]")

GROUP = "toolgym.envs"  # of entry points: ``"acme/maze-v0" = "acme.envs:Maze"``
BUILT_IN = {
    "toolgym/lookup-v0": "toolgym.envs.lookup.env:LookupEnv",
    "toolgym/python-v0": "toolgym.envs.python.env:PythonEnv",
}
# They watch and change neither observations, actions nor rewards, so that training may do without them.
TRANSPARENT_WRAPPERS = (OrderEnforcing, PassiveEnvChecker, RecordEpisodeStatistics)

_NAME = re.compile(r"([\w.-]+/)?[\w.-]+-v[0-9]+")
_entries: dict[str, str | type[Env]] = {}  # id -> class, or "module:Class" not imported yet


def register(env_id: str) -> Callable[[EnvClass], EnvClass]:
    """Class decorator: make the environment known by this name, here and to Gymnasium.

    Example: ``@register("acme/maze-v0")``.

    Raises: ConfigError: the name has no version (``-v0``), or belongs to another class.
    """

    def decorate(cls: EnvClass) -> EnvClass:
        cls.env_id = env_id
        where = f"{cls.__module__}:{cls.__qualname__}"
        importable = cls.__module__ != "__main__" and "<locals>" not in where
        add_entry(env_id, where if importable else cls)
        _entries[env_id] = cls
        return cls

    return decorate


def add_entry(env_id: str, entry: str | type[Env]) -> None:
    """Make an environment known by name: its class, or ``"module:Class"``, which is imported at first use.

    Raises: ConfigError: as `register`.
    """
    if not _NAME.fullmatch(env_id):
        raise ConfigError(f"environment name {env_id!r} must be like 'acme/maze-v0': [namespace/]name-v<version>")
    known = _entries.get(env_id)
    if known is not None and _where(known) != _where(entry):
        raise ConfigError(
            f"environment {env_id!r} is {_where(known)} already, not {_where(entry)}; choose another name"
        )
    _entries[env_id] = entry
    # Defining a class anew (a notebook's cell) replaces it; Gymnasium would warn about that.
    gymnasium.registry.pop(env_id, None)
    gymnasium.register(id=env_id, entry_point=cast(Any, entry))


def register_all() -> None:
    """Make the built-in environments and those of installed packages known; ``import toolgym`` calls it.

    An entry point that cannot be registered (its name is taken or malformed) is left out, with a warning.
    """
    for env_id, entry in BUILT_IN.items():
        add_entry(env_id, entry)
    for point in importlib.metadata.entry_points(group=GROUP):
        try:
            add_entry(point.name, point.value)
        except ConfigError as error:
            gymnasium.logger.warn(f"entry point {point.name!r} of group {GROUP!r}: {error}")


def list_envs() -> list[str]:
    """The names of all known environments, sorted."""
    return sorted(_entries)


def env_class(env_id: str) -> type[Env]:
    """The class of an environment, imported now if need be.

    Raises: ConfigError: no such environment (with the nearest name), or its package cannot be imported.
    """
    if env_id not in _entries:
        raise ConfigError(nearest(env_id, _entries, what="environment"))
    entry = _entries[env_id]
    if isinstance(entry, str):
        module, _, name = entry.partition(":")
        try:
            cls = getattr(importlib.import_module(module), name)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"environment {env_id!r} cannot be loaded from {entry}: {error}") from error
        _entries[env_id] = entry = cls
    return entry


def name_of(cls: type[Env]) -> str | None:
    """The name under which a class that is just being imported was made known; None where it was not."""
    return next((name for name, entry in _entries.items() if entry == _where(cls)), None)


def make(env_id: str, **kwargs: Any) -> Env:
    """A new instance of an environment, without any Gymnasium wrapper.

    Raises: ConfigError: no such environment, or it does not take one of the arguments.
    """
    cls = env_class(env_id)
    known = _keywords(cls)
    for name in kwargs:
        if name not in known:
            raise ConfigError(nearest(name, known, what=f"argument of {env_id}"))
    return cls(**kwargs)


def unwrap(env: gymnasium.Env[Any, Any]) -> Env:
    """The environment inside Gymnasium's own wrappers, for training.

    ``TimeLimit`` becomes the environment's ``max_turns``. A wrapper that is not known to be harmless is refused:
    leaving it out would train on something else than it was asked to.

    Raises: ConfigError: an unknown wrapper, or no environment of ours inside.
    """
    limits: list[int] = []
    while isinstance(env, gymnasium.Wrapper):
        if type(env) is TimeLimit:
            limits.append(env._max_episode_steps)
        elif type(env) not in TRANSPARENT_WRAPPERS:
            known = ", ".join(w.__name__ for w in (*TRANSPARENT_WRAPPERS, TimeLimit))
            raise ConfigError(
                f"training cannot look through the wrapper {type(env).__name__}: it may change "
                f"what the policy sees or earns; write it into the environment (known wrappers: {known})"
            )
        env = env.env
    if not hasattr(env, "astep"):
        raise ConfigError(f"{type(env).__name__} is no toolgym environment: it has no astep")
    inner: Any = env
    if limits:
        if not hasattr(inner, "max_turns"):
            raise ConfigError(f"{type(env).__name__} has no max_turns to put TimeLimit's {min(limits)} steps into")
        inner.max_turns = min(n for n in (*limits, inner.max_turns) if n is not None)
    return inner


def _where(entry: str | type[Env]) -> str:
    return entry if isinstance(entry, str) else f"{entry.__module__}:{entry.__qualname__}"


def _keywords(cls: type[Env]) -> set[str]:
    """The keyword arguments of a class that passes its ``**kwargs`` on to its base."""
    names: set[str] = set()
    for base in cls.__mro__:
        init = base.__dict__.get("__init__")
        if base is gymnasium.Env or init is None:
            continue
        parameters = inspect.signature(init).parameters.values()
        names |= {p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)} - {"self"}
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            break
    return names
