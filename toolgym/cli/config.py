"""``toolgym config``: recipes, and what one resolves to."""

from __future__ import annotations

import argparse
import importlib
from typing import Any

from toolgym.cli.output import print_json, print_table
from toolgym.errors import ConfigError

DEFAULT_RECIPE = "quickstart"
SHOW = """\
Show a recipe resolved: every key with its value, as TOML that can be run again.

  toolgym config show quickstart seed=1 > mine.toml
  toolgym train mine.toml
"""


def register(subparsers: Any) -> None:
    """Add the command."""
    parser = subparsers.add_parser("config", help="list recipes, show one resolved", description=SHOW)
    commands = parser.add_subparsers(metavar="list|show", required=True)
    lister = commands.add_parser("list", help="the recipes known by name")
    lister.add_argument("--json", action="store_true", help="print JSON")
    lister.set_defaults(handler=list_recipes)
    shower = commands.add_parser("show", help="a recipe with every key written out", description=SHOW)
    add_recipe_arguments(shower)
    shower.add_argument("--json", action="store_true", help="print JSON instead of TOML")
    shower.set_defaults(handler=show_config)


def add_recipe_arguments(parser: argparse.ArgumentParser) -> None:
    """``[RECIPE] [key=value …]``, read by `load_run_config`."""
    parser.add_argument(
        "words",
        metavar="RECIPE | key=value",
        nargs="*",
        help=f"a recipe's name or path (default: {DEFAULT_RECIPE}), then values to change, in TOML; "
        "a bare word is a string",
    )


def split_words(words: list[str]) -> tuple[str | None, list[str]]:
    """The recipe, if one is given, and the overrides.

    Raises:
        ConfigError: two recipes.
    """
    names = [w for w in words if "=" not in w]
    if len(names) > 1:
        raise ConfigError(f"got two recipes, {names[0]!r} and {names[1]!r}; values are given as key=value")
    return (names[0] if names else None), [w for w in words if "=" in w]


def load_run_config(words: list[str]) -> Any:
    """The `RunConfig` that the words of a command line ask for."""
    recipe, overrides = split_words(words)
    config = importlib.import_module("toolgym.config")
    name = recipe or DEFAULT_RECIPE
    config.find_recipe(name)  # a wrong name is refused before torch is imported
    model = importlib.import_module("toolgym.trainer.config").RunConfig
    return config.load_recipe(model, name, overrides=overrides)


def list_recipes(args: argparse.Namespace) -> int:
    """Handler of ``toolgym config list``."""
    config = importlib.import_module("toolgym.config")
    rows = [(name, config.describe_recipe(config.find_recipe(name))) for name in config.list_recipes()]
    if args.json:
        print_json(dict(rows))
    else:
        print_table(["recipe", "what it does"], rows)
    return 0


def show_config(args: argparse.Namespace) -> int:
    """Handler of ``toolgym config show``."""
    resolved = load_run_config(args.words)
    if args.json:
        print_json(resolved.model_dump(mode="json"))
    else:
        print(importlib.import_module("toolgym.config").to_toml(resolved), end="")
    return 0
