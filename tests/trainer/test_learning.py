"""The recipes learn: held-out scores before and after, through the command line, as a user would run them.

Pinned: sampled success at least 0.85 after training and at most 0.5 before; greedy high after and low before; tools
are really called (a parser that reads nothing would show here); log-probabilities of sampler and learner agree; nothing
that was trained on is in the test split.
"""

import json
import subprocess
import sys
from pathlib import Path

import anyio
import pytest

from toolgym.envs import open_envs
from toolgym.store import RunStore

pytestmark = [pytest.mark.learning, pytest.mark.timeout(1200)]


@pytest.mark.parametrize("recipe", ["quickstart", "lookup"])
def test_recipe_learns_to_use_its_tools(recipe: str, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "toolgym", "train", recipe, "--runs-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1100, check=False)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "latest" / "summary.json").read_text())
    before, after = (next(iter(summary[f"heldout_{when}"].values())) for when in ("before", "after"))
    assert before["sampled"]["mean"] <= 0.5
    assert before["greedy"]["mean"] <= 0.6
    assert after["sampled"]["mean"] >= 0.85
    assert after["greedy"]["mean"] >= 0.92
    assert min(score["n"] for scores in (before, after) for score in scores.values()) >= 400
    assert summary["tool_calls_per_episode"] >= 0.8
    assert summary["logprob_max_abs_diff"] < 1e-3
    assert 0 <= summary["max_staleness_seen"] <= 1
    assert summary["publishes_verified"] >= 50
    anyio.run(assert_test_split_is_untouched, tmp_path / "latest" / "run.db")


async def assert_test_split_is_untouched(database: Path) -> None:
    with RunStore.open(database, read_only=True) as store:
        env_id = store.meta("env")
        trained_on = {group.task.content_hash for state in ("trained", "skipped") for group in store.groups(state)}
    async with open_envs(env_id, demonstrations=True) as envs:
        test = {task.content_hash for task in envs.tasks("test")}
        train = {task.content_hash for task in envs.tasks("train")}
    assert trained_on
    assert trained_on <= train  # the demonstrations' tasks, too, are drawn from this split (tests/envs)
    assert not train & test
