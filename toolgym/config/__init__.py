"""Strict configurations: TOML recipes, ``key.sub=value`` overrides, components by ``type``, errors in one line."""

from toolgym.config.base import Config, component
from toolgym.config.load import load, to_toml
from toolgym.config.overrides import merge, parse_override
from toolgym.config.recipes import describe_recipe, find_recipe, list_recipes, load_recipe, read_toml

__all__ = [
    "Config",
    "component",
    "describe_recipe",
    "find_recipe",
    "list_recipes",
    "load",
    "load_recipe",
    "merge",
    "parse_override",
    "read_toml",
    "to_toml",
]
