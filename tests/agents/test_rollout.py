"""The rollout loop: what is recorded is exactly what was sampled, and every way to end is typed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import anyio
import numpy as np
import pytest

from tests.agents.tokenizers_for_tests import tiny_tokenizer
from toolgym.agents.chat import ChatFormat
from toolgym.agents.rollout import Budget, EpisodeIds, failure_of, rollout, rollout_group, stable_seed
from toolgym.engines.base import Completion, EngineInfo, Request, Sampling
from toolgym.engines.scripted import ScriptedEngine
from toolgym.envs.base import Env
from toolgym.errors import ConfigError, EngineError, EnvError, RewardError, SandboxError
from toolgym.types import (
    EpisodeEnd,
    Failed,
    Message,
    Outcome,
    PolicyVersion,
    Scored,
    Step,
    StopReason,
    Task,
    ToolCall,
    Trajectory,
)

TASK = Task(id="t1", env_id="test/scripted-v0", split="train", seed=0, content_hash="0", data={"question": "12 + 30?"})
BUDGET = Budget(max_turns=4, max_tokens=400, max_time_s=30)
SAMPLING = Sampling(max_new_tokens=60)
IDS = EpisodeIds(run="r", group="g")
CALL = Message(role="assistant", tool_calls=(ToolCall(name="search", arguments={"query": "Zaka"}),))
ANSWER = Message(role="assistant", content="42")
REPLY = Step(messages=(Message(role="tool", content="the sum is 42", name="search"),))
DONE = Step(reward=1.0, terminated=True, outcome=Scored(value=1.0))


class PlayedEnv(Env):
    """Answers actions with steps in order (a function is called, and may raise or hang); keeps what it was given."""

    env_id = "test/scripted-v0"

    def __init__(
        self, *steps: Step | Callable[[], Any], outcome: Outcome | None = None, prompt: str = "12 + 30?"
    ) -> None:
        super().__init__()
        self.steps = list(steps)
        self.actions: list[Message] = []
        self.truncated: list[str] = []
        self.closed = 0
        self.seed: int | None = None
        self.truncation = outcome or Scored(value=0.0)
        self.prompt = prompt

    def tasks(self, split: str) -> Sequence[Task]:
        return [TASK]

    async def areset(
        self, *, seed: int | None = None, options: Mapping[str, Any] | None = None
    ) -> tuple[tuple[Message, ...], dict[str, Any]]:
        assert options == {"task": TASK}
        self.seed = seed
        return (Message(role="user", content=self.prompt),), {}

    async def astep(self, action: Message) -> Step:
        self.actions.append(action)
        step = self.steps.pop(0)
        return step if isinstance(step, Step) else await step()

    async def atruncate(self, reason: str) -> Outcome:
        self.truncated.append(reason)
        return self.truncation

    async def aclose(self) -> None:
        self.closed += 1


@pytest.fixture(scope="module")
def chat() -> ChatFormat:
    return ChatFormat(tiny_tokenizer())


def engine_of(chat: ChatFormat, *turns: Message | Sequence[int]) -> ScriptedEngine:
    answers = [chat.encode_turn(turn) if isinstance(turn, Message) else list(turn) for turn in turns]
    return ScriptedEngine(answers, version=PolicyVersion(lineage=2, n=7), logprob=-0.25)


async def play(env: Env, engine: ScriptedEngine, chat: ChatFormat, **changes: Any) -> Trajectory:
    options = {"sampling": SAMPLING, "budget": BUDGET, "ids": IDS, "seed": 5} | changes
    return await rollout(env, TASK, engine, chat, **options)


def raising(error: Exception) -> Callable[[], Any]:
    async def step() -> Step:
        raise error

    return step


async def test_rollout_records_exactly_what_was_sampled(chat: ChatFormat) -> None:
    engine = engine_of(chat, CALL, ANSWER)
    env = PlayedEnv(REPLY, DONE)
    trajectory = await play(env, engine, chat)
    (segment,) = trajectory.segments
    call, answer = chat.encode_turn(CALL), chat.encode_turn(ANSWER)
    prompt, reply = chat.initial([Message(role="user", content="12 + 30?")]), chat.extend(REPLY.messages)
    assert segment.tokens.tolist() == [*prompt, *call, *reply, *answer]
    mask = [*[False] * len(prompt), *[True] * len(call), *[False] * len(reply), *[True] * len(answer)]
    assert segment.loss_mask.tolist() == mask
    np.testing.assert_array_equal(segment.sampler_logprobs, np.where(mask, -0.25, 0.0).astype(np.float32))
    np.testing.assert_array_equal(segment.versions, np.where(mask, 7, -1))
    assert (segment.policy, segment.lineage, trajectory.min_version) == ("main", 2, 7)
    assert [segment.tokens[t.start : t.end].tolist() for t in trajectory.turns] == [call, answer]
    assert [(t.reward, t.tool_calls, t.parse_failures) for t in trajectory.turns] == [(0.0, 1, 0), (1.0, 0, 0)]
    assert (trajectory.outcome, trajectory.end) == (Scored(value=1.0), EpisodeEnd.TERMINATED)
    assert [m.role for m in trajectory.messages] == ["user", "assistant", "tool", "assistant"]
    assert env.actions == [CALL, ANSWER]


async def test_rollout_gives_the_engine_its_own_tokens_back(chat: ChatFormat) -> None:
    # a call that no formatter would write like that: encoding its text again would give other tokens
    odd = [*chat.encode_turn(Message(role="assistant", content="x")), 0][:1] * 3 + [chat.end_of_turn]
    engine = engine_of(chat, odd, CALL, ANSWER)
    trajectory = await play(PlayedEnv(REPLY, REPLY, DONE), engine, chat)
    first, second, third = engine.requests
    assert second.tokens[: len(first.tokens) + len(odd)] == [*first.tokens, *odd]
    assert third.tokens[: len(second.tokens)] == second.tokens
    assert trajectory.segments[0].tokens[: len(third.tokens)].tolist() == third.tokens
    assert {request.session for request in engine.requests} == {trajectory.id} == set(engine.released)
    assert len({request.id for request in engine.requests}) == 3


async def test_rollout_closes_a_turn_that_length_cut(chat: ChatFormat) -> None:
    cut = chat.encode_turn(CALL)[:8]
    env = PlayedEnv(REPLY, DONE)
    trajectory = await play(env, engine_of(chat, cut, ANSWER), chat)
    (segment,), turn = trajectory.segments, trajectory.turns[0]
    assert turn.stop is StopReason.LENGTH
    assert segment.tokens[turn.start : turn.end + 1].tolist() == [*cut, chat.end_of_turn]
    assert segment.loss_mask[turn.start : turn.end + 1].tolist() == [True] * 8 + [False]
    assert segment.versions[turn.end] == -1
    (call,) = env.actions[0].tool_calls
    assert call.error is not None
    assert (turn.tool_calls, turn.parse_failures) == (0, 1)


async def test_rollout_stops_at_the_turn_budget_and_lets_the_env_score(chat: ChatFormat) -> None:
    env = PlayedEnv(REPLY, REPLY, outcome=Scored(value=0.5))
    trajectory = await play(
        env, engine_of(chat, CALL, CALL), chat, budget=Budget(max_turns=2, max_tokens=400, max_time_s=30)
    )
    assert (trajectory.end, trajectory.outcome, env.truncated) == (EpisodeEnd.MAX_TURNS, Scored(value=0.5), ["turns"])
    assert len(trajectory.turns) == 2


async def test_rollout_never_exceeds_the_token_budget(chat: ChatFormat) -> None:
    env = PlayedEnv(REPLY, REPLY, REPLY, REPLY)
    prompt = len(chat.initial([Message(role="user", content="12 + 30?")]))
    for max_tokens in range(prompt + 2, prompt + 90):
        env = PlayedEnv(*[REPLY] * 8)
        engine = engine_of(chat, *[CALL] * 8)
        budget = Budget(max_turns=8, max_tokens=max_tokens, max_time_s=30)
        trajectory = await play(env, engine, chat, budget=budget)
        assert trajectory.end is EpisodeEnd.MAX_TOKENS
        assert env.truncated == ["tokens"]
        assert len(trajectory.segments[0].tokens) <= max_tokens
        assert bool(trajectory.segments[0].loss_mask[-1]) == (trajectory.turns[-1].stop is StopReason.END_OF_TURN)


async def test_rollout_fails_when_the_prompt_alone_is_too_long(chat: ChatFormat) -> None:
    env = PlayedEnv(prompt="very long " * 50)
    trajectory = await play(env, engine_of(chat), chat, budget=Budget(max_turns=2, max_tokens=50, max_time_s=30))
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "env"
    assert "max_tokens is 50" in trajectory.outcome.detail


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (EnvError("e"), "env"),
        (SandboxError("e"), "sandbox"),
        (RewardError("e"), "reward"),
        (EngineError("e"), "engine"),
        (TimeoutError("e"), "timeout"),
        (KeyError("e"), "bug"),
        (ExceptionGroup("g", [ValueError("x"), ExceptionGroup("h", [SandboxError("e")])]), "sandbox"),
    ],
)
async def test_rollout_types_what_an_environment_raises(chat: ChatFormat, error: Exception, kind: str) -> None:
    engine = engine_of(chat, CALL)
    trajectory = await play(PlayedEnv(raising(error)), engine, chat)
    assert isinstance(trajectory.outcome, Failed)
    assert (trajectory.outcome.kind, trajectory.end) == (kind, EpisodeEnd.FAILED)
    assert "e" in trajectory.outcome.detail
    assert engine.released == [trajectory.id]
    assert trajectory.segments[0].loss_mask.sum() == len(chat.encode_turn(CALL))  # what was sampled is kept


def test_failure_of_a_bug_says_where() -> None:
    try:
        {}["x"]  # pyright: ignore[reportArgumentType]
    except KeyError as error:
        failed = failure_of(error)
    assert failed.detail.startswith("KeyError: 'x' (")
    assert "test_rollout.py:" in failed.detail


async def test_rollout_types_what_the_engine_raises(chat: ChatFormat) -> None:
    trajectory = await play(PlayedEnv(REPLY), engine_of(chat), chat)
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "engine"
    assert trajectory.turns == ()


async def test_rollout_types_an_engine_that_cannot_even_say_what_it_is(chat: ChatFormat) -> None:
    class Gone(ScriptedEngine):
        def info(self) -> EngineInfo:
            raise EngineError("gone")

        async def release(self, session: str) -> None:
            raise EngineError("gone")

    trajectory = await play(PlayedEnv(DONE), Gone([]), chat)
    assert trajectory.outcome == Failed(kind="engine", detail="gone")
    assert len(trajectory.segments[0].tokens) == 0


async def test_rollout_fails_when_the_engine_gives_a_request_up(chat: ChatFormat) -> None:
    class Cancels(ScriptedEngine):
        async def generate(self, request: Request) -> Completion:
            return replace(await super().generate(request), stop=StopReason.CANCELLED)

    trajectory = await play(PlayedEnv(DONE), Cancels([chat.encode_turn(ANSWER)]), chat)
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "engine"


async def test_rollout_keeps_the_outcome_when_closing_fails(chat: ChatFormat) -> None:
    class Leaks(PlayedEnv):
        async def aclose(self) -> None:
            raise SandboxError("cannot be removed")

    group = await rollout_group(
        lambda: Leaks(DONE),
        TASK,
        engine_of(chat, ANSWER),
        chat,
        size=1,
        sampling=SAMPLING,
        budget=BUDGET,
        ids=IDS,
        seed=5,
    )
    assert group.trajectories[0].outcome == Scored(value=1.0)


async def test_rollout_fails_when_scoring_a_truncated_episode_fails(chat: ChatFormat) -> None:
    class Unscored(PlayedEnv):
        async def atruncate(self, reason: str) -> Outcome:
            raise RewardError(f"no score after {reason}")

    budget = Budget(max_turns=1, max_tokens=400, max_time_s=30)
    trajectory = await play(Unscored(REPLY), engine_of(chat, CALL), chat, budget=budget)
    assert trajectory.outcome == Failed(kind="reward", detail="no score after turns")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
async def test_rollout_refuses_a_score_that_is_no_number(chat: ChatFormat, value: float) -> None:
    env = PlayedEnv(Step(terminated=True, outcome=Scored(value=value)))
    trajectory = await play(env, engine_of(chat, ANSWER), chat)
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "reward"


async def test_rollout_keeps_a_failure_that_the_environment_reports(chat: ChatFormat) -> None:
    env = PlayedEnv(Step(terminated=True, outcome=Failed(kind="judge", detail="unreachable")))
    trajectory = await play(env, engine_of(chat, ANSWER), chat)
    assert (trajectory.outcome, trajectory.end) == (Failed(kind="judge", detail="unreachable"), EpisodeEnd.FAILED)


SHORT = Budget(max_turns=50, max_tokens=4000, max_time_s=0.05)


async def test_rollout_fails_with_timeout_when_one_environment_call_hangs(chat: ChatFormat) -> None:
    engine = engine_of(chat, CALL)
    trajectory = await play(PlayedEnv(anyio.sleep_forever), engine, chat, budget=SHORT)
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "timeout"
    assert "one call of the environment" in trajectory.outcome.detail
    assert engine.released == [trajectory.id]


async def test_rollout_fails_with_timeout_when_the_engine_hangs(chat: ChatFormat) -> None:
    engine = engine_of(chat)
    await engine.pause()
    trajectory = await play(PlayedEnv(), engine, chat, budget=SHORT)
    assert isinstance(trajectory.outcome, Failed)
    assert trajectory.outcome.kind == "timeout"
    assert "the engine took" in trajectory.outcome.detail


async def test_rollout_scores_an_episode_whose_many_tool_calls_used_its_time(chat: ChatFormat) -> None:
    async def slow() -> Step:
        await anyio.sleep(0.01)
        return REPLY

    env = PlayedEnv(*[slow] * 50, outcome=Scored(value=0.25))
    budget = Budget(max_turns=50, max_tokens=4000, max_time_s=0.2)  # a tenth of a second of delay is no hang
    trajectory = await play(env, engine_of(chat, *[CALL] * 50), chat, budget=budget)
    assert (trajectory.end, trajectory.outcome) == (EpisodeEnd.TIMEOUT, Scored(value=0.25))
    assert env.truncated == ["time"]


async def test_rollout_lets_cancellation_pass_and_releases_the_session(chat: ChatFormat) -> None:
    engine = engine_of(chat, CALL)
    finished = False
    with anyio.move_on_after(0.02) as scope:
        await play(PlayedEnv(anyio.sleep_forever), engine, chat)
        finished = True
    assert scope.cancelled_caught
    assert not finished
    assert engine.released == [IDS.trajectory]


async def test_rollout_lets_go_of_everything_under_cancellation(chat: ChatFormat) -> None:
    done: list[str] = []

    class Slow(ScriptedEngine):
        async def release(self, session: str) -> None:
            await anyio.lowlevel.checkpoint()
            done.append("session")

    class Closing(PlayedEnv):
        async def aclose(self) -> None:
            await anyio.lowlevel.checkpoint()
            done.append("env")

    options: dict[str, Any] = {"sampling": SAMPLING, "budget": BUDGET, "ids": IDS, "seed": 5}
    with anyio.move_on_after(0.02) as scope:
        engine = Slow([chat.encode_turn(CALL)])
        await rollout_group(lambda: Closing(anyio.sleep_forever), TASK, engine, chat, size=1, **options)
    assert scope.cancelled_caught
    assert done == ["session", "env"]


async def test_rollout_lets_what_is_no_exception_pass(chat: ChatFormat) -> None:
    async def interrupt() -> Step:
        raise KeyboardInterrupt

    engine = engine_of(chat, CALL)
    with pytest.raises(KeyboardInterrupt):
        await play(PlayedEnv(interrupt), engine, chat)
    assert engine.released == [IDS.trajectory]


async def test_rollout_seeds_depend_on_seed_task_index_and_turn_alone(chat: ChatFormat) -> None:
    async def seeds(index: int, seed: int) -> list[int]:
        engine = engine_of(chat, CALL, ANSWER)
        await play(PlayedEnv(REPLY, DONE), engine, chat, ids=EpisodeIds(run="x", group="y", index=index), seed=seed)
        return [request.seed for request in engine.requests]

    assert await seeds(0, 5) == await seeds(0, 5) == [stable_seed(5, "t1", 0, 0), stable_seed(5, "t1", 0, 1)]
    assert len({*await seeds(0, 5), *await seeds(1, 5), *await seeds(0, 6)}) == 6


def test_stable_seed_is_the_same_in_every_process() -> None:
    assert stable_seed(0, "train-1", 2, 3) == 4712389797050814309
    assert stable_seed(1, 23) != stable_seed(12, 3)


async def test_rollout_uses_the_formats_stop_tokens_unless_told_otherwise(chat: ChatFormat) -> None:
    engine = engine_of(chat, ANSWER, ANSWER)
    await play(PlayedEnv(DONE), engine, chat)
    await play(PlayedEnv(DONE), engine, chat, sampling=Sampling(max_new_tokens=9, stop_tokens=(1,)))
    assert [request.sampling.stop_tokens for request in engine.requests] == [chat.stop_tokens, (1,)]


async def test_group_plays_all_episodes_and_closes_their_environments(chat: ChatFormat) -> None:
    envs: list[PlayedEnv] = []

    def open_env() -> Env:
        if len(envs) == 2:
            envs.append(PlayedEnv())
            raise SandboxError("no container left")
        envs.append(PlayedEnv(REPLY, DONE))
        return envs[-1]

    def answer(request: Request) -> list[int]:
        return chat.encode_turn(CALL if request.id.endswith("/0") else ANSWER)

    engine = ScriptedEngine(answer)
    group = await rollout_group(open_env, TASK, engine, chat, size=4, sampling=SAMPLING, budget=BUDGET, ids=IDS, seed=5)
    assert [t.index for t in group.trajectories] == [0, 1, 2, 3]
    assert [t.outcome for t in group.trajectories].count(Scored(value=1.0)) == 3
    assert group.trajectories[2].outcome == Failed(kind="sandbox", detail="no container left")
    assert [env.closed for env in envs] == [1, 1, 0, 1]
    assert (group.id, group.task, {t.group_id for t in group.trajectories}) == ("g", TASK, {"g"})


async def test_group_environments_of_one_task_start_alike(chat: ChatFormat) -> None:
    envs = [PlayedEnv(DONE), PlayedEnv(DONE)]
    waiting = list(envs)
    engine = engine_of(chat, ANSWER, ANSWER)
    await rollout_group(
        lambda: waiting.pop(), TASK, engine, chat, size=2, sampling=SAMPLING, budget=BUDGET, ids=IDS, seed=5
    )
    assert envs[0].seed == envs[1].seed is not None


@pytest.mark.parametrize("name", ["max_turns", "max_tokens", "max_time_s"])
def test_budget_refuses_nothing(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} must be positive"):
        Budget(**({"max_turns": 1, "max_tokens": 1, "max_time_s": 1} | {name: 0}))
