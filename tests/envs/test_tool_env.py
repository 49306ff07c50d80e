"""An episode of a `ToolEnv`: what each action is answered with, and how it ends."""

import anyio
import pytest

from tests.envs.small import Small, call, release, say
from toolgym.envs import ToolEnv, tool
from toolgym.errors import ConfigError, EnvError, RewardError, SandboxError
from toolgym.types import Message, Scored, Step, ToolCall


async def started(**kwargs) -> Small:
    env = Small(**kwargs)
    await env.areset(options={"task_id": "train-3"})
    return env


async def answer(env: Small, action: Message) -> str:
    step = await env.astep(action)
    assert len(step.messages) == 1
    assert step.messages[0].role == "tool"
    assert (step.terminated, step.truncated, step.outcome) == (False, False, None)
    return step.messages[0].content


async def test_tool_env_asks_answers_and_scores():
    env = Small()
    messages, info = await env.areset(options={"task_id": "train-3"})
    assert messages == (Message(role="user", content="3 + 1?"),)
    assert info == {"task_id": "train-3", "split": "train"}
    step = await env.astep(call("add", a=3))
    assert step == Step(messages=(Message(role="tool", content="4", name="add"),))
    step = await env.astep(say("4"))
    assert step == Step(reward=1.0, terminated=True, outcome=Scored(value=1.0))
    assert [m.role for m in env.messages] == ["user", "assistant", "tool", "assistant"]


async def test_tool_env_scores_a_wrong_answer_with_zero():
    env = await started()
    assert (await env.astep(say("5"))).outcome == Scored(value=0.0)


async def test_tool_env_puts_instructions_first():
    env = Small(instructions="Be brief.")
    messages, _ = await env.areset(seed=0)
    assert messages[0] == Message(role="system", content="Be brief.")
    assert messages[1].role == "user"


@pytest.mark.parametrize(
    ("action", "reply"),
    [
        (call("add", a=1, b=2), "3"),
        (call("double", number=1.5), "3.0"),
        (call("ad", a=1), "error: there is no tool 'ad'; tools: double, add, hang, hang_in_thread, flood, fail"),
        (call("add", a="1"), "error: wrong arguments for add: a: Input should be a valid integer"),
        (call("add"), "error: wrong arguments for add: a: Field required"),
        (call("hang"), "error: hang took longer than 0.02 s"),
        (call("hang_in_thread"), "error: hang_in_thread took longer than 0.02 s"),
        (call("flood", size=10), "x" * 10),
        (call("flood", size=11), "error: flood gave too much output: 11 characters, limit 10"),
        (call("fail", how="tool"), "error: not like this"),
        (call("fail", how="value"), "error: fail failed: ValueError: bad"),
        (call("fail", how="exit"), "error: fail failed: SystemExit: 1"),
        (call("fail", how="program"), "error: fail failed: the program is gone"),
        (call("fail", how="timeout"), "error: fail failed: TimeoutError: slow"),
        (
            Message(role="assistant", tool_calls=(ToolCall(error="not valid JSON: x", raw="{"),)),
            "error: this tool call cannot be read: not valid JSON: x",
        ),
    ],
)
async def test_tool_env_answers_every_call_and_goes_on(action: Message, reply: str):
    env = await started()
    try:
        with anyio.fail_after(5):
            assert await answer(env, action) == reply
            assert await answer(env, call("add", a=1)) == "2"
    finally:
        release.set()
        release.clear()


async def test_tool_env_answers_each_of_several_calls_in_order_with_its_id():
    env = await started()
    calls = (
        ToolCall(name="add", arguments={"a": 1}, id="1"),
        ToolCall(error="no", id="2"),
        ToolCall(name="add", arguments={"a": 5}, id="3"),
    )
    step = await env.astep(Message(role="assistant", content="text is ignored beside calls", tool_calls=calls))
    got = [(m.tool_call_id, m.name, m.content) for m in step.messages]
    assert got == [("1", "add", "2"), ("2", None, "error: this tool call cannot be read: no"), ("3", "add", "6")]


async def test_tool_env_replies_are_always_unicode_text():
    class Odd(Small):
        @tool
        async def odd(self) -> str:
            """Give half a surrogate pair."""
            return "é\ud800"

        @tool
        async def odd_error(self) -> str:
            """Raise half a surrogate pair."""
            raise ValueError("é\ud800")

    env = Odd()
    await env.areset(seed=0)
    assert await answer(env, call("odd")) == "é?"
    assert await answer(env, call("odd_error")) == "error: odd_error failed: ValueError: é?"


async def test_tool_env_passes_infrastructure_errors_on():
    env = await started()
    with pytest.raises(SandboxError, match="the daemon is gone"):
        await env.astep(call("fail", how="sandbox"))


async def test_tool_env_refuses_steps_outside_an_episode():
    env = Small()
    with pytest.raises(EnvError, match="reset"):
        await env.astep(say("4"))
    await env.areset(seed=0)
    await env.astep(say("4"))
    with pytest.raises(EnvError, match="reset"):
        await env.astep(say("4"))


async def test_tool_env_truncates_at_its_own_limit():
    env = await started(max_turns=2)
    assert (await env.astep(call("add", a=1))).outcome is None
    step = await env.astep(call("add", a=1))
    assert (step.truncated, step.terminated, step.outcome) == (True, False, Scored(value=0.0))
    assert len(step.messages) == 1
    with pytest.raises(EnvError, match="reset"):
        await env.astep(say("4"))
    env = await started(max_turns=1)
    assert (await env.astep(say("4"))).outcome == Scored(value=1.0)  # the last turn may still answer
    env = await started()
    assert await env.atruncate("tokens") == Scored(value=0.0)
    with pytest.raises(EnvError, match="reset"):
        await env.astep(say("4"))
    with pytest.raises(ConfigError, match="at least 1"):
        Small(max_turns=0)


async def test_tool_env_reward_may_be_a_method_and_may_fail():
    class Own(Small):
        async def reward(self, task, messages, answer):  # pyright: ignore
            if answer == "raise":
                raise ValueError("no")
            return {"nan": float("nan")}.get(answer, len(messages) / 4)

    env = Own()
    for text, complaint in (("raise", "ValueError"), ("nan", "finite")):
        await env.areset(seed=0)
        with pytest.raises(RewardError, match=complaint):
            await env.astep(say(text))
    await env.areset(seed=0)
    assert (await env.astep(say("x"))).reward == 0.5


async def test_tool_env_reward_that_hangs_fails_at_its_deadline():
    class Slow(Small):
        reward_timeout_s = 0.02

        async def reward(self, task, messages, answer):  # pyright: ignore
            await anyio.sleep_forever()

    env = Slow()
    await env.areset(seed=0)
    with anyio.fail_after(2), pytest.raises(RewardError, match=r"longer than 0\.02 s"):
        await env.astep(say("4"))


async def test_tool_env_chooses_the_task_it_is_asked_for():
    env = Small(split="test")
    task = env.tasks("validation")[4]
    assert (await env.areset(options={"task": task}))[1]["task_id"] == "validation-14"
    assert (await env.areset(options={"task_id": "train-0"}))[1]["split"] == "train"
    drawn = [(await env.areset(seed=5))[1]["task_id"] for _ in range(2)]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("test-")
    many = {(await env.areset())[1]["task_id"] for _ in range(60)}
    assert len(many) > 5


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ({"task_id": "train-99"}, "no task 'train-99'; its ids are like: train-0"),
        ({"taskid": "train-1"}, "unknown reset option.*'taskid'; did you mean 'task_id'"),
        ({"task": "train-1"}, "is no task of this environment"),
    ],
)
async def test_tool_env_refuses_tasks_it_does_not_have(options: dict[str, str], complaint: str):
    with pytest.raises(ConfigError, match=complaint):
        await Small().areset(options=options)


def test_tool_env_refuses_unknown_splits_and_modes():
    with pytest.raises(ConfigError, match="'tset'; did you mean 'test'"):
        Small(split="tset")
    with pytest.raises(ConfigError, match="'tran'; did you mean 'train'"):
        Small().tasks("tran")
    with pytest.raises(ConfigError, match="unknown render mode 'human'"):
        Small(render_mode="human")


def test_tool_env_subclasses_inherit_and_replace_tools():
    class More(Small):
        @tool
        async def add(self, a: int) -> int:
            """Add two."""
            return a + 2

        @tool
        async def sub(self, a: int) -> int:
            """Subtract."""
            return a - 1

    assert [t.name for t in More().tools] == ["double", "add", "hang", "hang_in_thread", "flood", "fail", "sub"]
    assert More().tools[1].description == "Add two."
    assert Small().tools[1].description == "Add two numbers."
    with pytest.raises(ConfigError, match="mark the function with @tool"):
        type("Bad", (ToolEnv,), {"tools": (len,)})
