"""Recipes by name and by path."""

from pathlib import Path

import pytest

from toolgym.config import Config, describe_recipe, find_recipe, list_recipes, load_recipe, read_toml
from toolgym.errors import ConfigError


class Small(Config):
    seed: int = 0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "quickstart.toml").write_text("# A first run.\nseed = 3\n")
    (tmp_path / "lookup.toml").write_text("seed = 4\n")
    return tmp_path


def test_find_recipe_by_name_and_path(folder: Path):
    assert list_recipes(folder) == ["lookup", "quickstart"]
    assert find_recipe("lookup", folder=folder) == folder / "lookup.toml"
    assert find_recipe(str(folder / "lookup.toml"), folder=Path("/")) == folder / "lookup.toml"


def test_find_recipe_unknown_names_the_nearest(folder: Path):
    with pytest.raises(ConfigError, match=r"unknown recipe 'quikstart'; did you mean 'quickstart'\? known: lookup"):
        find_recipe("quikstart", folder=folder)
    with pytest.raises(ConfigError, match=r"no recipe file '.*none.toml'; recipes known by name: lookup, quickstart"):
        find_recipe(str(folder / "none.toml"), folder=folder)


def test_describe_recipe_is_its_first_comment(folder: Path):
    assert describe_recipe(folder / "quickstart.toml") == "A first run."
    assert describe_recipe(folder / "lookup.toml") == ""


def test_load_recipe_names_the_file_in_errors(folder: Path):
    assert load_recipe(Small, "lookup", overrides=["seed=9"], folder=folder).seed == 9
    (folder / "bad.toml").write_text("sed = 1\n")
    with pytest.raises(ConfigError, match=r"sed: unknown key; did you mean 'seed'\? .*\(from .*bad.toml\)"):
        load_recipe(Small, "bad", folder=folder)


@pytest.mark.parametrize("content", [b"seed = = 3\n", b"\xff\xfe"])
def test_read_toml_refuses_what_is_no_toml(folder: Path, content: bytes):
    (folder / "bad.toml").write_bytes(content)
    with pytest.raises(ConfigError, match=r"cannot read .*bad\.toml: "):
        read_toml(folder / "bad.toml")


def test_read_toml_of_a_folder_or_nothing_is_a_config_error(folder: Path):
    with pytest.raises(ConfigError, match="cannot read"):
        read_toml(folder)
