"""The warm start's data: exactly the tokens and masks that a rollout records."""

import random
from pathlib import Path

import anyio
import pytest
import torch

from tests.trainer.builders import tiny_model
from toolgym.agents.rollout import Budget, EpisodeIds, rollout
from toolgym.engines.base import Request, Sampling
from toolgym.engines.scripted import ScriptedEngine
from toolgym.envs import open_envs
from toolgym.envs.experts import Demonstration, demonstrations
from toolgym.errors import TrainingError
from toolgym.trainer.policy import Policy, TinyPolicyConfig, load, make_tiny
from toolgym.trainer.prepare import text_of
from toolgym.trainer.sft import SFTConfig, encode_demonstration, sft_batches, warm_start
from toolgym.types import Message


@pytest.fixture(scope="module")
def shown() -> list[Demonstration]:
    return anyio.run(lambda: demonstrations("toolgym/lookup-v0", count=60, seed=0))


@pytest.fixture(scope="module")
def policy(shown: list[Demonstration]) -> Policy:
    return make_tiny(TinyPolicyConfig(vocab_size=420), texts=[text_of(d) for d in shown], seed=0)


async def test_encoded_demonstration_is_what_a_rollout_of_it_records(
    shown: list[Demonstration], policy: Policy
) -> None:
    played = max(shown, key=lambda d: len(d.messages))
    turns = [policy.chat.encode_turn(m) for m in played.messages if m.role == "assistant"]
    assert len(turns) >= 3

    def script(request: Request) -> list[int]:
        return turns[int(request.id.rsplit("/", 1)[1])]

    async with open_envs("toolgym/lookup-v0") as envs:
        trajectory = await rollout(
            envs.make(),
            played.task,
            ScriptedEngine(script),
            policy.chat,
            sampling=Sampling(max_new_tokens=64),
            budget=Budget(max_turns=8, max_tokens=500, max_time_s=20),
            ids=EpisodeIds(run="r", group="g"),
            seed=0,
        )
        tokens, mask = encode_demonstration(policy.chat, played.messages, [tool.schema for tool in envs.tools])
    segment = trajectory.segments[0]
    assert tokens == segment.tokens.tolist()
    assert mask == segment.loss_mask.tolist()


def test_sft_batches_hold_every_example_once_per_epoch_and_pad_outside_the_mask() -> None:
    examples = [([10 + i] * (3 + i % 3), [False] + [True] * (2 + i % 3)) for i in range(8)]
    batches = sft_batches(examples, batch=4, pad=0, seed=0)
    seen = []
    for tokens, mask in (next(batches), next(batches)):
        assert tokens.shape == mask.shape
        assert not mask[tokens == 0].any()
        seen += tokens[:, 0].tolist()
    assert sorted(seen) == [10 + i for i in range(8)]


async def test_warm_start_ends_at_its_threshold_then_decays() -> None:
    answers = iter([0.1, 0.3, 0.9])
    config = SFTConfig(check_every=2, min_steps=4, max_steps=40, decay_steps=3, until_success=0.5, batch=2)
    result = await warm_start(
        tiny_model().float(), [([1, 2, 3, 4], [False, True, True, True])] * 4, config, pad=0, seed=0,
        check=lambda: _next(answers),
    )  # fmt: skip
    assert result["sft_steps"] == 4 + 2 + 2 + 3
    assert result["sft_success"] == 0.9


async def test_warm_start_that_never_succeeds_says_so() -> None:
    config = SFTConfig(check_every=2, min_steps=2, max_steps=4, until_success=0.5, batch=2)
    with pytest.raises(TrainingError, match=r"less than sft\.until_success = 0\.5 after 4 steps"):
        await warm_start(
            tiny_model().float(), [([1, 2, 3], [False, True, True])] * 2, config, pad=0, seed=0,
            check=lambda: _next(iter([0.0])),
        )  # fmt: skip


async def _next(values: object) -> float:
    return next(values)  # type: ignore[call-overload]


async def test_demonstrations_come_from_training_tasks_alone(shown: list[Demonstration]) -> None:
    async with open_envs("toolgym/lookup-v0") as envs:
        held_out = {t.content_hash for split in ("validation", "test") for t in envs.tasks(split)}
    assert {d.task.split for d in shown} == {"train"}
    assert not held_out & {d.task.content_hash for d in shown}


def test_saved_policy_loads_with_the_same_tokens_and_weights(policy: Policy, tmp_path: Path) -> None:
    policy.save(tmp_path / "saved")
    again = load(tmp_path / "saved")
    text = "what is 26 * 53 - 35? Where does Zaka live?"
    assert again.tokenizer.encode(text) == policy.tokenizer.encode(text)
    assert again.tokenizer.encode("26 * 53") != again.tokenizer.encode("2 6 * 5 3")
    asked = [Message(role="user", content=text)]
    assert again.chat.initial(asked) == policy.chat.initial(asked)
    pairs = zip(again.model.parameters(), policy.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_make_tiny_is_the_same_for_the_same_seed(shown: list[Demonstration]) -> None:
    texts = [text_of(d) for d in shown]
    random.seed(1)
    first = make_tiny(TinyPolicyConfig(vocab_size=420), texts=texts, seed=3)
    torch.manual_seed(7)
    second = make_tiny(TinyPolicyConfig(vocab_size=420), texts=texts, seed=3)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()
    pairs = zip(first.model.parameters(), second.model.parameters(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)
