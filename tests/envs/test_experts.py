"""Demonstrations: a fixed mixture, from training tasks only, the same with a sandbox as without."""

import random
import re
from collections import Counter

import pytest

from tests.envs.small import Small, call, say
from toolgym.envs import demonstrations, make, open_envs
from toolgym.envs.experts import LAZY, RIGHT, choose_way, demonstrate
from toolgym.errors import ConfigError, EnvError
from toolgym.toolcalls import format_assistant

ENVS = ("toolgym/lookup-v0", "toolgym/python-v0")


def test_choose_way_draws_the_shares():
    rng = random.Random(0)
    drawn = Counter(choose_way(rng, ("a", "b")) for _ in range(20_000))
    for way, share in {"right": RIGHT, "lazy": LAZY, "a": 0.05, "b": 0.05}.items():
        assert drawn[way] / 20_000 == pytest.approx(share, abs=0.01)


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVS)
async def test_demonstrations_start_lazy_and_are_right_in_a_third(env_id: str):
    played = await demonstrations(env_id, count=3000, seed=0)
    assert len(played) == 3000
    assert 0.30 < sum(d.score for d in played) / 3000 < 0.40
    assert {d.score for d in played} == {0.0, 1.0}
    lazy = sum(d.messages[1].content == "I am not sure." for d in played) / 3000
    assert 0.53 < lazy < 0.60  # so that giving up is the most likely first move
    # No wrong guesses: an answer is the tool's last output (or in it), or it gives up.
    for d in played:
        answer = d.messages[-1].content
        assert answer == "I am not sure." or answer in d.messages[-2].content


@pytest.mark.parametrize("env_id", ENVS)
async def test_demonstrations_use_training_tasks_only_and_repeat_with_their_seed(env_id: str):
    first = await demonstrations(env_id, count=50, seed=3)
    assert {d.task.split for d in first} == {"train"}
    assert len({d.task.id for d in first}) == 50
    assert await demonstrations(env_id, count=50, seed=3) == first
    assert await demonstrations(env_id, count=50, seed=4) != first


@pytest.mark.slow
async def test_demonstrations_hold_nothing_of_the_held_out_splits():
    env = make("toolgym/lookup-v0")
    held_out = {
        name
        for split in ("validation", "test")
        for t in env.tasks(split)
        for name in (*t.data["path"], t.data["answer"])
    }
    for d in await demonstrations("toolgym/lookup-v0", count=4500, seed=0):
        for message in d.messages:
            assert not held_out & set(re.findall(r"\w+", format_assistant(message)))
    env = make("toolgym/python-v0")
    held_out = {t.content_hash for split in ("validation", "test") for t in env.tasks(split)}
    questions = {t.data["question"] for split in ("validation", "test") for t in env.tasks(split)}
    for d in await demonstrations("toolgym/python-v0", count=4096, seed=0):
        assert d.task.content_hash not in held_out
        assert d.messages[0].content not in questions


@pytest.mark.slow
@pytest.mark.parametrize("sandbox", ["local", pytest.param("docker", marks=pytest.mark.docker)])
async def test_demonstrations_are_the_same_in_a_sandbox(sandbox: str):
    without = await demonstrations("toolgym/python-v0", count=150, seed=1)
    assert any("NameError" in m.content for d in without for m in d.messages)
    rng = random.Random("demonstrations toolgym/python-v0 1")
    async with open_envs("toolgym/python-v0", sandbox=sandbox) as envs:
        tasks = list(envs.tasks("train"))
        rng.shuffle(tasks)
        env = envs.make()
        assert [await demonstrate(env, task, rng) for task in tasks[:150]] == without
        await env.aclose()


async def test_demonstrate_refuses_what_does_not_work():
    env = Small()
    with pytest.raises(ConfigError, match="has no scripted expert"):
        await demonstrate(env, env.tasks("train")[0], random.Random(0))

    class Endless(Small):
        def expert(self, task, rng):
            while True:
                yield call("add", a=1)

    class Short(Small):
        def expert(self, task, rng):
            yield call("add", a=1)

    for cls in (Endless, Short):
        with pytest.raises(EnvError, match="did not end the episode of task train-0"):
            await demonstrate(cls(), env.tasks("train")[0], random.Random(0))


async def test_demonstrate_sends_the_expert_what_the_tools_said():
    class Good(Small):
        def expert(self, task, rng):
            (reply,) = yield call("add", a=int(task.data["question"].split()[0]))
            yield say(reply.content)

    played = await demonstrate(Good(), Small().tasks("train")[7], random.Random(0))
    assert played.score == 1.0
    assert [m.content for m in played.messages] == ["7 + 1?", "", "8", "8"]
