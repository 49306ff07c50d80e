"""Environments: the contract, tools, the registry and the built-in ones.

The names below are loaded at first use, so that ``import toolgym``, which only registers names, stays light.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolgym.envs.base import Env
    from toolgym.envs.conformance import check_env
    from toolgym.envs.experts import Demonstration, demonstrations
    from toolgym.envs.factory import EnvFactory, open_envs
    from toolgym.envs.registry import list_envs, make, register, unwrap
    from toolgym.envs.tool_env import ToolEnv
    from toolgym.envs.tools import ToolError, ToolSpec, tool

_HOME = {
    "Demonstration": "experts",
    "Env": "base",
    "EnvFactory": "factory",
    "ToolEnv": "tool_env",
    "ToolError": "tools",
    "ToolSpec": "tools",
    "check_env": "conformance",
    "demonstrations": "experts",
    "list_envs": "registry",
    "make": "registry",
    "open_envs": "factory",
    "register": "registry",
    "tool": "tools",
    "unwrap": "registry",
}

__all__ = [
    "Demonstration",
    "Env",
    "EnvFactory",
    "ToolEnv",
    "ToolError",
    "ToolSpec",
    "check_env",
    "demonstrations",
    "list_envs",
    "make",
    "open_envs",
    "register",
    "tool",
    "unwrap",
]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
