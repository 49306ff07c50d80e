"""Two presets train the tiny policy from one warm start, and it gets better."""

import pytest

from toolgym.cli.bench import load_benchmark


@pytest.mark.learning
@pytest.mark.timeout(900)
def test_presets_grpo_and_ctpo_learn():
    result = load_benchmark("presets").run(steps=8, tasks=100, only="grpo,ctpo")
    assert result["ours"] > 0.1, result["details"]
