"""The rewards of the library: what they compare, what they add up, and that they pass their own conformance suite."""

import pickle

import pytest

from toolgym.errors import RewardError
from toolgym.rewards import ExactMatch, F1Match, InProcess, NumericMatch, Weighted, check_reward, evaluate
from toolgym.types import Scored, Task


def task(**data: object) -> Task:
    return Task(id="test-1", env_id="x/y-v0", split="test", seed=1, content_hash="0", data=data)


async def score(reward, text: str, **data: object) -> Scored:
    return await evaluate(reward, task(**data), (), text)


async def test_verifiers_compare_with_the_key_of_the_task():
    assert (await score(ExactMatch(), "tesh", answer="Tesh")).value == 1.0
    assert (await score(ExactMatch(key="gold"), "tesh", gold=["x", "Tesh"])).value == 1.0
    assert (await score(NumericMatch(), "1e1", answer="10")).value == 1.0
    assert (await score(NumericMatch(rel_tol=0.1), "109", answer=100)).value == 1.0
    assert (await score(F1Match(), "green", answer="red green")).value == pytest.approx(2 / 3)


async def test_verifiers_fail_on_a_broken_task():
    with pytest.raises(RewardError, match=r"test-1 has no 'answer'.*it has: gold"):
        await score(ExactMatch(), "x", gold="x")
    with pytest.raises(RewardError, match="not a finite number"):
        await score(NumericMatch(), "x", answer="nan")


async def test_weighted_adds_its_parts():
    reward = Weighted({"answer": (1.0, NumericMatch()), "short": (0.5, lambda task, messages, answer: 1 / len(answer))})
    assert await score(reward, "10", answer="10") == Scored(value=1.25, parts={"answer": 1.0, "short": 0.25})


async def test_weighted_fails_when_a_part_fails():
    reward = Weighted({"answer": (1.0, NumericMatch()), "bad": (0.0, lambda *_: float("nan"))})
    with pytest.raises(RewardError, match="nan"):
        await score(reward, "10", answer="10")
    with pytest.raises(ValueError, match="at least one"):
        Weighted({})


@pytest.mark.parametrize(
    ("reward", "data", "right"),
    [
        (ExactMatch(), {"answer": "Tesh"}, "Tesh"),
        (NumericMatch(), {"answer": "136"}, "136"),
        (F1Match(), {"answer": "blue whale"}, "the blue whale"),
        (Weighted({"answer": (2.0, NumericMatch())}), {"answer": "136"}, "136"),
    ],
    ids=repr,
)
async def test_verifiers_conform(reward, data: dict[str, str], right: str):
    await check_reward(reward, task(**data), right=right)
    assert pickle.loads(pickle.dumps(reward)) == reward


@pytest.mark.parametrize(
    ("reward", "complaint"),
    [
        (lambda task, messages, answer: float(answer), "on the answer 'surely wrong'.*ValueError"),
        (lambda task, messages, answer: float(len(answer)), "no less than '4'"),
        (lambda task, messages, answer: 1.0, "no less than '4'"),
        (lambda task, messages, answer, seen=[0]: seen.append(0) or len(seen) * (answer == "4"), "repeat itself"),
    ],
)
async def test_check_reward_refuses_rewards_that_do_not_hold(reward, complaint: str):
    with pytest.raises(RewardError, match=complaint):
        await check_reward(reward, task(answer="4"), right="4")


def test_in_process_is_picklable():
    assert pickle.loads(pickle.dumps(InProcess(ExactMatch()))).reward == ExactMatch()
