"""Names: registered by decorator and entry point, seen by Gymnasium, unwrapped for training."""

import subprocess
import sys
from pathlib import Path

import gymnasium
import pytest
from gymnasium.wrappers import RecordEpisodeStatistics, TimeLimit, TransformObservation

import toolgym
from tests.envs.small import Small, say
from toolgym.envs import Env, list_envs, make, register, unwrap
from toolgym.envs.registry import env_class
from toolgym.errors import ConfigError


def test_register_makes_a_name_known_to_us_and_to_gymnasium():
    assert "tests/small-v0" in list_envs()
    assert type(make("tests/small-v0")) is Small
    assert Small.env_id == "tests/small-v0"
    assert type(gymnasium.make("tests/small-v0").unwrapped) is Small
    assert gymnasium.make("tests/small-v0", instructions="x").unwrapped.instructions == "x"  # pyright: ignore


def test_builtin_environments_are_listed():
    assert {"toolgym/lookup-v0", "toolgym/python-v0"} <= set(list_envs())
    assert {"toolgym/lookup-v0", "toolgym/python-v0"} <= set(gymnasium.registry)


@pytest.mark.parametrize(
    ("env_id", "complaint"),
    [
        ("toolgym/pyton-v0", "unknown environment 'toolgym/pyton-v0'; did you mean 'toolgym/python-v0'"),
        ("tests/small-v1", "did you mean 'tests/small-v0'"),
    ],
)
def test_make_unknown_name_says_the_nearest(env_id: str, complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        make(env_id)


def test_make_unknown_argument_says_the_nearest():
    with pytest.raises(ConfigError, match="unknown argument of tests/small-v0 'max_turn'; did you mean 'max_turns'"):
        make("tests/small-v0", max_turn=3)
    with pytest.raises(ConfigError, match="unknown argument of toolgym/python-v0 'sandbx'; did you mean 'sandbox'"):
        make("toolgym/python-v0", sandbx="local")


@pytest.mark.parametrize("env_id", ["small", "tests/small", "tests/small-v", "a/b/small-v0", "", "tests/sm all-v0"])
def test_register_refuses_names_without_version(env_id: str):
    with pytest.raises(ConfigError, match="must be like 'acme/maze-v0'"):
        register(env_id)(type("Other", (Small,), {}))


def test_register_refuses_a_name_that_is_taken():
    with pytest.raises(ConfigError, match=r"is tests\.envs\.small:Small already"):
        register("tests/small-v0")(type("Other", (Small,), {}))
    assert env_class("tests/small-v0") is Small


def test_register_takes_a_class_defined_anew_without_a_warning():
    def define() -> type[Env]:
        @register("tests/again-v0")
        class Again(Small):
            pass

        return Again

    first, second = define(), define()
    assert first is not second
    assert type(make("tests/again-v0")) is second
    assert type(gymnasium.make("tests/again-v0").unwrapped) is second


@pytest.mark.slow
def test_importing_toolgym_is_light():
    code = """
import sys, toolgym
heavy = {"torch", "docker", "transformers", "pydantic", "ray", "vllm", "toolgym.envs.python.env"} & set(sys.modules)
assert not heavy, heavy
import gymnasium
env = gymnasium.make("toolgym/lookup-v0")
assert not {"torch", "docker", "transformers"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=30)


@pytest.mark.slow
def test_entry_points_of_other_packages_are_known_and_imported_at_first_use(tmp_path: Path):
    (tmp_path / "acme_envs.py").write_text(
        "from toolgym.envs import ToolEnv\n"
        "class Maze(ToolEnv):\n"
        "    def tasks(self, split):\n"
        "        return [self.make_task(self.check_split(split), 0, question=split, answer='x')]\n"
    )
    info = tmp_path / "acme_envs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-envs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(
        "[toolgym.envs]\nacme/maze-v0 = acme_envs:Maze\nacme/gone-v0 = no_such_module:Gone\n"
    )
    code = """
import sys, warnings
warnings.simplefilter("error")
import toolgym, gymnasium
from toolgym.envs import list_envs, make
from toolgym.errors import ConfigError
assert "acme/maze-v0" in list_envs() and "acme_envs" not in sys.modules
env = gymnasium.make("acme/maze-v0")
assert env.reset(seed=1)[0] == "train" and env.unwrapped.env_id == "acme/maze-v0"
assert make("acme/maze-v0").tasks("test")[0].env_id == "acme/maze-v0"
env.close()
try:
    make("acme/gone-v0")
except ConfigError as error:
    assert "acme/gone-v0" in str(error) and "no_such_module" in str(error), error
else:
    raise AssertionError("no error")
"""
    path = [str(tmp_path), str(Path(toolgym.__file__).parents[1])]
    subprocess.run([sys.executable, "-c", f"import sys; sys.path[:0] = {path!r}\n{code}"], check=True, timeout=30)


def test_unwrap_looks_through_gymnasiums_own_wrappers():
    env = unwrap(RecordEpisodeStatistics(gymnasium.make("tests/small-v0")))
    assert type(env) is Small
    assert env.max_turns is None
    assert unwrap(env) is env


def test_unwrap_keeps_a_time_limit():
    env = unwrap(gymnasium.make("tests/small-v0", max_episode_steps=3))
    assert isinstance(env, Small)
    assert env.max_turns == 3
    env = unwrap(TimeLimit(gymnasium.make("tests/small-v0", max_turns=2), 5))
    assert isinstance(env, Small)
    assert env.max_turns == 2


def test_unwrap_refuses_what_it_does_not_know():
    env = gymnasium.make("tests/small-v0")
    with pytest.raises(ConfigError, match="wrapper TransformObservation: it may change"):
        unwrap(TransformObservation(env, str.upper, env.observation_space))
    with pytest.raises(ConfigError, match="CartPoleEnv is no toolgym environment"):
        unwrap(gymnasium.make("CartPole-v1"))

    class Mine(TimeLimit):
        pass

    with pytest.raises(ConfigError, match="wrapper Mine"):
        unwrap(Mine(env, 3))


def test_unwrap_refuses_a_time_limit_that_the_environment_cannot_keep():
    class Free(Env):
        async def areset(self, *, seed=None, options=None):
            return (), {}

        async def astep(self, action):
            raise NotImplementedError

        def tasks(self, split):
            return []

    with pytest.raises(ConfigError, match="no max_turns"):
        unwrap(TimeLimit(Free(), 3))


async def test_unwrapped_environment_plays():
    env = unwrap(gymnasium.make("tests/small-v0"))
    await env.areset(options={"task_id": "train-1"})
    assert (await env.astep(say("2"))).reward == 1.0
