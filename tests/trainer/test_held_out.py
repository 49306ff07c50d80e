"""Evaluating a model outside any run."""

from pathlib import Path

import pytest

from toolgym.config import load
from toolgym.errors import ConfigError
from toolgym.trainer.config import RunConfig
from toolgym.trainer.held_out import evaluate_model
from toolgym.trainer.policy import TinyPolicyConfig, make_tiny

TEXTS = [
    "Which country does Zaka live in?",
    '{"name": "search", "arguments": {"query": "Zaka"}}',
    "I am not sure.",
] * 50


@pytest.mark.slow
@pytest.mark.timeout(180)
async def test_evaluate_model_scores_an_untrained_model_sampled_and_greedy(tmp_path: Path):
    policy = make_tiny(TinyPolicyConfig(vocab_size=300), texts=TEXTS, seed=0)
    policy.save(tmp_path / "model")
    overrides = ["env.id=toolgym/lookup-v0", "evaluate.tasks=3", "rollout.max_new_tokens=8", "engine.slots=4"]
    config = load(RunConfig, {}, overrides=overrides)
    result = await evaluate_model(config, tmp_path / "model")
    assert (result["env"], result["split"]) == ("toolgym/lookup-v0", "test")
    scores = result["heldout"]["toolgym/lookup-v0"]
    assert {mode: (s["mean"], s["n"], s["failed"]) for mode, s in scores.items()} == {
        "sampled": (0.0, 3, 0),
        "greedy": (0.0, 3, 0),
    }


async def test_evaluate_model_refuses_a_folder_without_model(tmp_path: Path):
    with pytest.raises(ConfigError, match="is no model folder"):
        await evaluate_model(RunConfig(), tmp_path)
