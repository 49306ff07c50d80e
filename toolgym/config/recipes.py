"""Recipes: TOML files that ship with toolgym, found by name, or anybody's, found by path."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

from toolgym.config.base import Config
from toolgym.config.load import load
from toolgym.errors import ConfigError, nearest

C = TypeVar("C", bound=Config)
RECIPES = Path(__file__).resolve().parent.parent / "recipes"


def list_recipes(folder: Path = RECIPES) -> list[str]:
    """The names of the recipes in a folder, sorted."""
    return sorted(p.stem for p in folder.glob("*.toml"))


def find_recipe(name: str, *, folder: Path = RECIPES) -> Path:
    """The file of a recipe, given its name (``quickstart``) or a path (anything with a ``/``, or ending in ``.toml``).

    Raises:
        ConfigError: no such recipe (the nearest is named) or no such file.
    """
    if name.endswith(".toml") or "/" in name:
        path = Path(name)
        if not path.is_file():
            raise ConfigError(f"no recipe file {name!r}; recipes known by name: {', '.join(list_recipes(folder))}")
        return path
    known = list_recipes(folder)
    if name not in known:
        raise ConfigError(nearest(name, known, what="recipe"))
    return folder / f"{name}.toml"


def describe_recipe(path: Path) -> str:
    """The first comment line of a recipe: what it is, in a sentence."""
    with path.open(encoding="utf-8") as file:
        first = file.readline().strip()
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def read_toml(path: Path) -> dict[str, Any]:
    """Parse a TOML file.

    Raises:
        ConfigError: unreadable, not UTF-8 or not TOML; with the file and, for TOML, the line.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ConfigError(f"cannot read {path}: {error}") from None


def load_recipe(model: type[C], name: str, *, overrides: Sequence[str] = (), folder: Path = RECIPES) -> C:
    """`find_recipe`, `read_toml` and `load` in one."""
    path = find_recipe(name, folder=folder)
    return load(model, read_toml(path), overrides=overrides, source=str(path))
