"""The synchronous view: Gymnasium's checks, vector environments, forks, running event loops."""

import multiprocessing
import os
import subprocess
import sys
import warnings

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AsyncVectorEnv, SyncVectorEnv

from tests.envs.small import Small
from toolgym.envs.space import TextSpace
from toolgym.errors import EnvError, RewardError
from toolgym.toolcalls import format_tool_calls
from toolgym.types import Failed, Step, ToolCall

ENVS = {"tests/small-v0": {}, "toolgym/lookup-v0": {}, "toolgym/python-v0": {"sandbox": "local"}}
ADD = format_tool_calls([ToolCall(name="add", arguments={"a": 3})])


@pytest.mark.slow
@pytest.mark.parametrize("env_id", ENVS)
def test_check_env_passes_with_warnings_as_errors(env_id: str):
    env = gymnasium.make(env_id, **ENVS[env_id])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env.unwrapped)
    env.close()


@pytest.mark.docker
def test_check_env_passes_on_docker():
    env = gymnasium.make("toolgym/python-v0", sandbox="docker")
    check_env(env.unwrapped)
    env.close()


def test_reset_and_step_speak_text():
    env = gymnasium.make("tests/small-v0", render_mode="ansi")
    text, info = env.reset(options={"task_id": "train-3"})
    assert (text, info) == ("3 + 1?", {"task_id": "train-3", "split": "train"})
    assert env.step(ADD) == ("<tool_response>\n4\n</tool_response>", 0.0, False, False, {})
    assert env.step("4") == ("", 1.0, True, False, {})
    assert env.render() == (
        f"[user] 3 + 1?\n[assistant] {ADD}\n[tool] <tool_response>\n4\n</tool_response>\n[assistant] 4"
    )
    env.close()
    env.close()


def test_step_malformed_call_is_answered():
    env = gymnasium.make("tests/small-v0")
    env.reset(seed=0)
    text = env.step("<tool_call>\n{oops\n</tool_call>")[0]
    assert text.startswith("<tool_response>\nerror: this tool call cannot be read: not valid JSON")
    env.close()


def test_step_refuses_what_is_no_text():
    env = Small()
    env.reset(seed=0)
    with pytest.raises(EnvError, match="is a text, got 3"):
        env.step(3)  # pyright: ignore
    env.close()


def test_step_raises_when_the_episode_failed():
    class Failing(Small):
        async def astep(self, action):
            return Step(terminated=True, outcome=Failed(kind="reward", detail="the judge is gone"))

    env = Failing()
    env.reset(seed=0)
    with pytest.raises(RewardError, match="the judge is gone"):
        env.step("4")
    env.close()


def test_environment_can_be_used_again_after_close():
    env = Small()
    for _ in range(2):
        env.reset(options={"task_id": "train-3"})
        assert env.step("4")[1] == 1.0
        env.close()


def test_sync_vector_env_plays():
    envs = SyncVectorEnv([lambda: gymnasium.make("tests/small-v0")] * 3)
    texts, _ = envs.reset(seed=[1, 2, 3])
    answers = tuple(str(int(text.split()[0]) + 1) for text in texts)
    _, rewards, terminated, _, _ = envs.step(answers)
    assert rewards.tolist() == [1.0, 1.0, 1.0]
    assert terminated.all()
    envs.close()


def _plays(context: str) -> None:
    envs = AsyncVectorEnv([_make] * 2, shared_memory=False, context=context)
    try:
        texts, infos = envs.reset(seed=[1, 2])
        assert list(infos["split"]) == ["train", "train"]
        assert envs.step((ADD, ADD))[0] == ("<tool_response>\n4\n</tool_response>",) * 2
        answers = tuple(str(int(text.split()[0]) + 1) for text in texts)
        _, rewards, *_ = envs.step(answers)
        assert np.asarray(rewards).tolist() == [1.0, 1.0]
    finally:
        envs.close(timeout=10)


def _make() -> gymnasium.Env:
    import tests.envs.small  # noqa: F401 - a spawned process has to register it

    return gymnasium.make("tests/small-v0")


@pytest.mark.slow
@pytest.mark.parametrize("context", ["fork", "spawn", "forkserver"])
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_async_vector_env_plays(context: str):
    env = Small()
    env.reset(seed=0)  # the event loop of the parent runs when the workers are made
    _plays(context)
    assert env.step("x")[2]
    env.close()


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_fork_child_makes_its_own_event_loop_and_refuses_an_environment_in_use():
    env = Small()
    env.reset(options={"task_id": "train-3"})
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    process = context.Process(target=_in_child, args=(env, queue))
    process.start()
    process.join(20)
    assert process.exitcode == 0
    assert queue.get() == (1.0, "an environment in use was carried through a fork: make it in the process that uses it")
    assert env.step("4")[1] == 1.0
    env.close()


def _in_child(env: Small, queue) -> None:
    fresh = Small()
    fresh.reset(options={"task_id": "train-3"})
    reward = fresh.step("4")[1]
    fresh.close()
    try:
        env.step("4")
    except EnvError as error:
        queue.put((reward, str(error)))


async def test_environment_works_inside_a_running_event_loop():
    env = gymnasium.make("tests/small-v0")
    env.reset(options={"task_id": "train-3"})
    assert env.step("4")[1] == 1.0
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("close", ["", "env.close()"])
def test_process_ends_though_an_environment_is_open(close: str):
    code = f"""
import gymnasium, toolgym
env = gymnasium.make("toolgym/python-v0", sandbox="local")
env.reset(seed=0)
env.step('<tool_call>{{"name": "python", "arguments": {{"code": "print(1)"}}}}</tool_call>')
{close}
print("end")
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert done.stdout == "end\n"
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_interrupt_cancels_the_step_and_the_environment_can_be_used_again_after_close():
    code = """
import os, signal, anyio
from toolgym.envs import ToolEnv
from toolgym.errors import EnvError

class Slow(ToolEnv):
    def tasks(self, split):
        return [self.make_task(self.check_split(split), 0, question="?", answer="1")]

    async def reward(self, task, messages, answer):
        if answer == "1":
            return 1.0
        try:
            os.kill(os.getpid(), signal.SIGINT)
            await anyio.sleep_forever()
        finally:
            os.write(1, b"cancelled\\n")  # whole: two threads write here

env = Slow()
env.reset(seed=0)
try:
    env.step("hang")
except KeyboardInterrupt:
    os.write(1, b"interrupted\\n")
try:
    env.step("1")
except EnvError as error:
    print(error)
env.close()
env.reset(seed=0)
print(env.step("1")[1])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)
    assert set(done.stdout.splitlines()) == {
        "cancelled",
        "interrupted",
        "the environment was interrupted: close it before it is used again",
        "1.0",
    }


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_async_vector_env_plays_in_sandboxes():
    envs = gymnasium.make_vec(
        "toolgym/python-v0",
        2,
        vectorization_mode="async",
        vector_kwargs={"shared_memory": False, "context": "fork"},
        sandbox="local",
    )
    try:
        envs.reset(seed=[1, 2])
        program = format_tool_calls([ToolCall(name="python", arguments={"code": "print(6 * 7)"})])
        assert envs.step((program, program))[0] == ("<tool_response>\n42\n</tool_response>",) * 2
    finally:
        envs.close(timeout=10)


def test_text_space_holds_any_text_up_to_its_length():
    space = TextSpace(5)
    assert "é\n💡" in space
    assert "" in space
    assert "123456" not in space
    assert b"1" not in space
    assert 1 not in space


def test_text_space_samples_what_it_holds_and_repeats_with_its_seed():
    space = TextSpace(7)
    space.seed(1)
    first = [space.sample() for _ in range(50)]
    space.seed(1)
    assert [space.sample() for _ in range(50)] == first
    assert len(set(first)) > 5
    assert all(text in space for text in first)
    assert space == TextSpace(7)
    assert space != TextSpace(8)
    with pytest.raises(ValueError, match="neither mask"):
        space.sample(mask=np.ones(2))
    with pytest.raises(ValueError, match="at least 1"):
        TextSpace(0)


assert os.name == "posix", "these tests fork"
