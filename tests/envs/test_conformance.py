"""`check_env` passes a good environment and names what is wrong with a bad one; the example is a good one."""

import runpy
from pathlib import Path

import pytest

from tests.envs.small import Small
from toolgym.envs import check_env, register, tool
from toolgym.errors import EnvError
from toolgym.types import Message, Step

EXAMPLE = Path(__file__).parents[2] / "examples" / "capitals.py"


async def test_check_env_passes_a_good_environment():
    await check_env("tests/small-v0")


async def test_example_environment_conforms(capsys: pytest.CaptureFixture[str]):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    assert "Lima" in capsys.readouterr().out
    await check_env("example/capitals-v0")


class SameContent(Small):
    def tasks(self, split):
        self.check_split(split)
        return [self.make_task(split, 0, question="q", answer="1")]


class AnySplit(Small):
    def tasks(self, split):
        return [self.make_task(split, 0, question=split, answer="1")]


class NoTasks(Small):
    def tasks(self, split):
        return []


class TwiceTheId(Small):
    def tasks(self, split):
        self.check_split(split)
        return [self.make_task(split, 0, question=split + str(i), answer="1") for i in range(2)]


class OtherEnv(Small):
    def tasks(self, split):
        return Small().tasks(split)


class Random(Small):
    async def areset(self, *, seed=None, options=None):
        messages, info = await super().areset(seed=seed, options=options)
        return messages, info | {"at": object()}


class GoesOn(Small):
    async def astep(self, action):
        if self.task is None:
            return Step()
        return await super().astep(action)


class Silent(Small):
    async def astep(self, action):
        if action.tool_calls:
            return Step(messages=(Message(role="tool", content="one for all"),))
        return await super().astep(action)


class Undescribed(Small):
    @tool
    async def quiet(self) -> str:
        return ""


class BadExpert(Small):
    def expert(self, task, rng):
        yield Message(role="assistant", content="wrong")


@pytest.mark.parametrize(
    ("cls", "complaint"),
    [
        (SameContent, "task validation-0 of 'validation' has the same content as a task of 'train'"),
        (AnySplit, r"tasks\('no such split'\) must raise ConfigError"),
        (NoTasks, "split 'train' has no tasks"),
        (TwiceTheId, "task train-0 of 'train': its id occurs twice"),
        (OtherEnv, "says tests/small-v0"),
        (Random, "two resets to task train-0 differ"),
        (GoesOn, "a step after the end of the episode must raise EnvError"),
        (Silent, "need one tool message each, in order"),
        (Undescribed, "tool quiet has no description"),
        (BadExpert, "its expert scored nothing"),
    ],
)
async def test_check_env_names_what_is_wrong(cls: type[Small], complaint: str):
    name = f"tests/{cls.__name__}-v0"
    register(name)(cls)
    with pytest.raises(EnvError, match=complaint):
        await check_env(name)
