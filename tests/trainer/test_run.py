"""Whole small runs in this process: a pretrained policy, rewards and tools that fail, and how the run ends.

Pinned: what the policy cannot cause is a failure of its kind, counted, and never a score; when most episodes fail, the
run stops with one clear error; what the policy can cause costs it the episode and nothing more.
"""

from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest

from toolgym.config import load
from toolgym.envs import ToolEnv, register, tool
from toolgym.errors import TrainingError
from toolgym.store import RunStore
from toolgym.trainer import RunConfig, train
from toolgym.trainer.policy import TinyPolicyConfig, make_tiny
from toolgym.types import Message, Task

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

QUESTIONS = [f"say {word}" for word in ("ja", "ne", "vo", "ti", "ku", "lo", "mi", "pa")]


@register("tests/moody-v0")
class Moody(ToolEnv):
    """Its reward is 1 for any answer that is not empty, unless ``mood`` says how it goes wrong."""

    def __init__(self, *, mood: str = "good", **kwargs: object) -> None:
        super().__init__(**kwargs)  # type: ignore[arg-type]
        self.mood = mood
        self.reward = self.judge  # type: ignore[assignment]

    def tasks(self, split: str) -> Sequence[Task]:
        return [self.make_task(self.check_split(split), i, question=f"{split} {q}") for i, q in enumerate(QUESTIONS)]

    async def judge(self, task: Task, messages: Sequence[Message], answer: str) -> float:
        if self.mood == "raises":
            raise KeyError("no such key")
        if self.mood == "no_number":
            return float("nan")
        if self.mood == "hangs":
            await anyio.sleep_forever()
        return float(len(answer) % 2)

    @tool
    async def look(self, name: str) -> str:
        """Look.

        Args:
            name: at what
        """
        return name


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("policy")
    make_tiny(TinyPolicyConfig(vocab_size=280), texts=QUESTIONS * 5, seed=0).save(folder)
    return folder


def recipe(model: Path, *overrides: str) -> RunConfig:
    data = {
        "name": "moody",
        "env": {"id": "tests/moody-v0"},
        "policy": {"type": "pretrained", "path": str(model)},
        "engine": {"type": "transformers", "slots": 8, "max_context": 128},
        "rollout": {
            "groups_per_step": 2,
            "group_size": 4,
            "max_new_tokens": 6,
            "max_turns": 2,
            "max_tokens": 100,
            "max_time_s": 20.0,
        },
        "train": {"steps": 2},
        "evaluate": {"tasks": 2, "transcripts": 1},
        "failures": {"min_episodes": 4, "max_rate": 0.2},
    }
    return load(RunConfig, data, overrides=overrides, source="the test")


async def test_run_of_a_pretrained_policy_leaves_everything_that_people_need(model: Path, tmp_path: Path) -> None:
    summary = await train(recipe(model), runs_dir=tmp_path)
    folder = tmp_path / "latest"
    for name in ("summary.json", "recipe.toml", "learning_curve.png", "transcripts.txt", "run.db", "model/config.json"):
        assert (folder / name).is_file(), name
    assert summary["heldout_after"]["tests/moody-v0"]["greedy"]["n"] == 2
    assert summary["publishes_verified"] == 3
    assert summary["logprob_max_abs_diff"] < 1e-3
    with RunStore.open(folder / "run.db", read_only=True) as store:
        assert len(store.group_states()) >= 4
        assert [m.step for m in store.metrics("success", phase="train")] == [1, 2]


@pytest.mark.parametrize(
    ("mood", "kind"), [("raises", "reward: .*KeyError"), ("no_number", "reward: .*nan")], ids=["raises", "nan"]
)
async def test_run_stops_when_the_reward_fails(model: Path, tmp_path: Path, mood: str, kind: str) -> None:
    with pytest.raises(TrainingError, match=rf"episodes failed .*{kind}.*--resume"):
        await train(recipe(model, f"env.options.mood={mood}"), runs_dir=tmp_path)
    with RunStore.open(tmp_path / "latest" / "run.db", read_only=True) as store:
        kinds = {e.trajectory.outcome.kind for e in store.episodes(split="train", failed=True)}  # type: ignore[union-attr]
        scores = {e.trajectory.score for e in store.episodes(split="train", failed=False)}
    assert kinds == {"reward"}
    assert scores <= {0.0}  # episodes that used up their tokens never came to the reward


async def test_run_stops_when_the_reward_hangs(model: Path, tmp_path: Path) -> None:
    config = recipe(model, "env.options.mood=hangs", "rollout.max_time_s=1.0")
    with anyio.fail_after(120), pytest.raises(TrainingError, match="episodes failed"):
        await train(config, runs_dir=tmp_path)
