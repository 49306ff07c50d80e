"""`load`: strictness, components, short forms, and one clear line for each kind of mistake."""

import tomllib
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from toolgym.config import Config, component, load, merge, to_toml
from toolgym.errors import ConfigError


class Grpo(Config):
    type: Literal["grpo"] = "grpo"
    eps: float = Field(1e-6, gt=0)


class Rloo(Config):
    type: Literal["rloo"] = "rloo"
    k: int = 2


class Optimizer(Config):
    lr: float = 1e-3
    betas: tuple[float, float] = (0.9, 0.99)


class Run(Config):
    seed: int = 0
    out: Path = Path("runs")
    advantage: component(Grpo, Rloo) = Grpo(eps=1e-3)
    correction: component(Grpo, Rloo) | None = Rloo()
    optimizer: Optimizer = Optimizer(lr=5.0)
    envs: tuple[component(Grpo, Rloo), ...] = ()
    named: dict[str, Optimizer] = Field(default_factory=dict)
    mode: Literal["fast", "exact"] = "fast"
    name: str | None = None


def run(*overrides: str, **data: Any) -> Run:
    return load(Run, data, overrides=overrides, source="my.toml")


def message(*overrides: str, **data: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        run(*overrides, **data)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_load_accepts_integer_for_float_list_for_tuple_and_string_for_path():
    config = run(optimizer={"lr": 1, "betas": [0, 1]}, out="/tmp/x")
    assert config.optimizer == Optimizer(lr=1.0, betas=(0.0, 1.0))
    assert config.out == Path("/tmp/x")


@pytest.mark.parametrize(
    ("override", "got", "expected"),
    [
        ("seed='1'", "'1' (a string)", "an integer"),
        ("seed=1.0", "1.0 (a float)", "an integer"),
        ("seed=true", "true (a boolean)", "an integer"),
        ("optimizer.lr=nan", "nan", "a finite number"),
        ("optimizer.lr=fast", "'fast' (a string)", "a number"),
        ("optimizer=3", "3 (an integer)", "a table with the keys optimizer.lr, optimizer.betas"),
        ("advantage.eps=0", "0 (an integer)", "a number > 0"),
        ("optimizer.lr.x=1", "a table of 1", "a number"),
        ("out=3", "3 (an integer)", "a string"),
    ],
)
def test_load_says_what_was_got_expected_and_where_from(override: str, got: str, expected: str):
    text = message(override)
    key = override.split("=")[0].removesuffix(".x")
    assert text.startswith(f"{key}: got {got}")
    assert f"expected {expected}" in text
    assert f"from the command line, {override!r}" in text


def test_load_names_the_file_when_the_value_is_not_from_the_command_line():
    assert message(seed="x").endswith("(from my.toml)")


def test_load_unknown_key_names_the_nearest_and_the_siblings():
    assert message("optimizer.lrr=1") == (
        "optimizer.lrr: unknown key; did you mean 'optimizer.lr'? valid keys here: betas, lr "
        "(from the command line, 'optimizer.lrr=1')"
    )


def test_load_unknown_key_that_exists_deeper_gives_its_path():
    assert "did you mean 'optimizer.lr'?" in message("lr=1")


def test_load_key_of_another_type_names_the_type():
    assert message("advantage.k=3").startswith("advantage.k: unknown key of type 'grpo'; valid keys here: eps, type")


@pytest.mark.parametrize("override", ["advantage=grop", "advantage.type=grop", 'advantage={type="grop"}'])
def test_load_unknown_type_names_the_nearest(override: str):
    assert "advantage: got type 'grop'; expected one of grpo, rloo; did you mean 'grpo'?" in message(override)


def test_load_missing_type_lists_the_types():
    assert "envs.0: type is missing; expected one of grpo, rloo" in message(envs=[{}])


def test_load_unknown_choice_names_the_nearest():
    assert "mode: got 'fats' (a string), expected one of fast, exact; did you mean 'fast'?" in message("mode=fats")


def test_load_several_mistakes_are_all_named_and_the_misspelt_key_comes_first():
    text = message(sed=3, advantage={"eps": "s"}, mode="x")
    assert text.startswith("sed: unknown key; did you mean 'seed'?")
    assert text.endswith("also wrong: advantage.eps, mode")


def test_load_component_by_name_alone_has_its_defaults():
    assert run("advantage=rloo").advantage == Rloo()
    assert run(envs=["rloo", {"type": "grpo", "eps": 2.0}]).envs == (Rloo(), Grpo(eps=2.0))


def test_load_table_without_type_keeps_the_defaults_type_and_values():
    assert run("correction.k=7").correction == Rloo(k=7)
    assert run(optimizer={"betas": [0.5, 0.6]}).optimizer == Optimizer(lr=5.0, betas=(0.5, 0.6))


def test_load_leaves_a_config_alone_that_fills_in_its_own_keys():
    class Method(Config):
        preset: str = "a"
        k: int

        @model_validator(mode="before")
        @classmethod
        def fill(cls, data: Any) -> Any:
            data = {"preset": data} if isinstance(data, str) else data
            return {"k": {"a": 1, "b": 2}[data.get("preset", "a")], **data}

    class Outer(Config):
        method: Method = Method.model_validate({})

    assert load(Outer, {"method": {"preset": "b"}}).method.k == 2
    assert load(Outer, {"method": "b"}).method.k == 2
    assert load(Outer, {"method": {"k": 5}}).method == Method(preset="a", k=5)


def test_load_another_type_drops_the_old_ones_keys_whatever_the_order():
    config = run("advantage.k=5", "advantage.type=rloo", advantage={"type": "grpo", "eps": 1.0})
    assert config.advantage == Rloo(k=5)


def test_load_short_form_in_the_recipe_can_be_refined_on_the_command_line():
    assert run("advantage.k=5", advantage="rloo").advantage == Rloo(k=5)


def test_load_none_empties_what_may_be_empty_and_nothing_else():
    assert run("correction=none").correction is None
    assert run("name=none").name is None
    assert "got type 'none'" in message("advantage=none")


def test_load_list_entries_are_overridden_by_index():
    assert run("envs.1.k=9", envs=["grpo", "rloo"]).envs == (Grpo(), Rloo(k=9))
    assert "'2' is no index of a list of 2" in message("envs.2.k=9", envs=["grpo", "rloo"])


def test_load_refuses_other_schema_versions():
    assert run(schema=1) == run()
    assert message(schema=2).startswith("schema: got 2, expected at most 1")


def test_load_migrates_older_schemas():
    class Newer(Config):
        schema_version = 2
        learning_rate: float = 0.0

        @classmethod
        def migrate(cls, data: dict[str, Any], version: int) -> dict[str, Any]:
            assert version == 1
            return {"learning_rate": data["lr"]}

    assert load(Newer, {"schema": 1, "lr": 0.5}).learning_rate == 0.5
    assert load(Newer, {"learning_rate": 0.5}).learning_rate == 0.5


def test_load_does_not_change_its_input():
    data = {"advantage": {"type": "grpo"}, "envs": [{"type": "rloo"}]}
    load(Run, data, overrides=["advantage.eps=2", "envs.0.k=3"])
    assert data == {"advantage": {"type": "grpo"}, "envs": [{"type": "rloo"}]}


def test_config_is_frozen_and_strict_when_built_in_python():
    with pytest.raises(ValidationError, match="frozen"):
        Run().seed = 3
    with pytest.raises(ValidationError, match="valid integer"):
        Run(seed="3")  # pyright: ignore[reportArgumentType]


def test_component_refuses_classes_that_cannot_be_told_apart():
    class AlsoGrpo(Config):
        type: Literal["grpo"] = "grpo"

    with pytest.raises(TypeError, match="both have type 'grpo'"):
        component(Grpo, AlsoGrpo)
    with pytest.raises(TypeError, match="needs a field"):
        component(Optimizer)


def test_component_of_one_class_refuses_another_type():
    class Single(Config):
        part: component(Rloo) = Rloo()

    assert load(Single, {"part": "rloo"}).part == Rloo()
    with pytest.raises(ConfigError, match="got 'x' \\(a string\\), expected one of rloo"):
        load(Single, {"part": "x"})


def test_to_toml_writes_every_key():
    data = tomllib.loads(to_toml(run("correction=none")))
    assert data["schema"] == 1
    assert data["correction"] == "none"
    assert data["name"] == "none"
    assert data["advantage"] == {"type": "grpo", "eps": 1e-3}


@given(
    seed=st.integers(-(2**63), 2**63 - 1),
    lr=st.floats(allow_nan=False, allow_infinity=False),
    name=st.none() | st.text().filter(lambda s: s != "none"),
    advantage=st.builds(Grpo, eps=st.floats(1e-12, 1e12)) | st.builds(Rloo, k=st.integers(0, 9)),
    envs=st.lists(st.sampled_from([Grpo(), Rloo(k=4)])).map(tuple),
    correction=st.none() | st.just(Grpo(eps=3.0)),
    named=st.dictionaries(st.text(), st.builds(Optimizer, lr=st.floats(0, 1))),
)
def test_to_toml_round_trips(**values: Any):
    optimizer = Optimizer(lr=values.pop("lr"))
    config = Run(optimizer=optimizer, **values)
    assert load(Run, tomllib.loads(to_toml(config))) == config


def test_merge_lays_tables_over_each_other_and_replaces_those_of_another_type():
    base = {"a": {"x": 1, "y": 2}, "c": {"type": "p", "k": 1}}
    assert merge(base, {"a": {"y": 3}, "c": {"type": "q"}}) == {"a": {"x": 1, "y": 3}, "c": {"type": "q"}}
    assert merge(base, {"c": {"k": 2}})["c"] == {"type": "p", "k": 2}
