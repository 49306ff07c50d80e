"""Presets name functions that exist, run through the algorithm's configuration, and impossible parts are refused."""

import json

import pytest
import torch
from pydantic import ValidationError

from toolgym.algorithms import get
from toolgym.errors import ConfigError
from toolgym.trainer.algorithm import AlgorithmConfig, advantages, token_losses
from toolgym.trainer.config import RunConfig
from toolgym.trainer.presets import AWAITING, PRESETS, RUNNABLE, check_combination, describe


@pytest.mark.parametrize("name", sorted(RUNNABLE))
def test_preset_gives_a_gradient_through_the_trainers_own_composition(name):
    algorithm = AlgorithmConfig.model_validate(name)
    generator = torch.Generator().manual_seed(0)
    logprobs = (-torch.rand(8, 5, generator=generator)).requires_grad_(True)
    mask = torch.rand(8, 5, generator=generator) < 0.8
    rewards = torch.tensor([1.0, 0, 0, 1, 0, 0, 0, 1])
    a = advantages(algorithm, rewards=rewards, group=torch.arange(8) // 4, mask=mask)
    sampler = logprobs.detach() + 1e-3 * torch.randn(8, 5, generator=generator)
    loss, kept, metrics = token_losses(
        algorithm,
        logprobs=logprobs,
        old_logprobs=sampler if algorithm.old_logprobs == "sampler" else logprobs.detach(),
        sampler_logprobs=sampler,
        advantages=a,
        mask=mask,
        ref_logprobs=sampler,
    )
    (gradient,) = torch.autograd.grad(torch.where(kept, loss, 0.0).sum(), logprobs)
    assert gradient.isfinite().all()
    # near the policy every method pushes the tokens of good rows up and of bad ones down
    row = torch.where(mask, -gradient, 0.0).sum(1)
    assert (row[rewards == 1] > 0).all()
    assert (row[rewards == 0] < 0).all()
    assert all(value.dim() == 0 for value in metrics.values())


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_names_known_functions_and_a_source(name):
    preset = PRESETS[name]
    assert preset.source
    assert bool(preset.awaiting) == (name in AWAITING)
    for card in preset.cards:
        assert get(card).name == card


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_preset_describes_its_parts(name):
    told = describe(name)
    assert (told["recipe"] is None) == bool(told["awaits"]) == (name in AWAITING)
    assert {get(card).name for card in told["made_of"]} == set(told["made_of"]) != set()
    assert json.loads(json.dumps(told)) == told


def test_describe_names_every_function_of_a_preset():
    assert describe("ctpo")["made_of"] == ["group_advantage", "ctpo", "truncated_is", "row_weights"]
    assert describe("grpo_original")["made_of"] == ["group_advantage", "ppo_clip", "kl", "row_weights"]
    with pytest.raises(ConfigError, match="did you mean 'dr_grpo'"):
        describe("drgrpo")


@pytest.mark.parametrize("name", sorted(AWAITING))
def test_preset_that_awaits_the_trainer_says_what(name):
    with pytest.raises(ValidationError, match="it awaits"):
        AlgorithmConfig.model_validate(name)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"kl": {"coef": 0.1, "kind": "k1"}}, "zero expected gradient"),
        ({"aggregation": {"mode": "seq-mean-token-sum-norm"}}, "l_max = None"),
        ({"preset": "f_tis", "old_logprobs": "recomputed"}, "corrects for the sampler itself"),
        ({"preset": "ctpo", "loss": {"power": -0.5}}, "power >= 0 with average"),
        ({"preset": "icepop", "correction": {"low": 3.0}}, "low = 3.0 is above high = 2.0"),
        ({"preset": "cispo", "loss": {"min_ratio": 9.0}}, "min_ratio = 9.0 is above"),
        ({"preset": "tis", "correction": {"cap": 0.0}}, "rejects everything"),
        ({"preset": "mirror_pop", "correction": {"threshold": 0.0}}, "rejects everything"),
        ({"preset": "dapo", "overlong": {"l_cache": 500}}, "l_cache = 500 and l_max = 384"),
        ({"loss": {"clip_low": 2.0}}, "algorithm.loss = ppo_clip: got clip_low=2.0"),
        ({"loss": {"dual_clip": 0.5}}, "dual_clip=0.5"),
        ({"preset": "opsm", "advantage": {"type": "reinforce_plus_plus"}}, "expected one a row"),
        ({"preset": "tis", "old_logprobs": "sampler"}, "correction compares old with sampler"),
    ],
)
def test_impossible_combination_is_refused_before_a_run(keys, message):
    with pytest.raises(ValidationError, match=message):
        AlgorithmConfig.model_validate(keys)


def test_overlong_penalty_is_added_to_the_rewards_before_the_advantages():
    """Two right answers and two wrong ones, one of each twice as long as allowed."""
    mask = torch.ones(4, 8, dtype=torch.bool)
    mask[:2, 2:] = False  # lengths 2, 2, 8, 8; nothing up to 2, -1 from 4 on
    algorithm = AlgorithmConfig.model_validate({"preset": "dapo", "overlong": {"l_max": 4, "l_cache": 2}})
    found = advantages(
        algorithm, rewards=torch.tensor([1.0, 0.0, 1.0, 0.0]), group=torch.zeros(4, dtype=torch.int64), mask=mask
    )
    shaped = torch.tensor([1.0, 0.0, 0.0, -1.0])
    torch.testing.assert_close(found, shaped / (shaped.var(unbiased=False).sqrt() + 1e-6))


def test_check_combination_knows_the_rollouts():
    grpo = AlgorithmConfig.model_validate("grpo").model_dump()
    check_combination(grpo, group_size=2, max_staleness=3)
    with pytest.raises(ConfigError, match="every advantage is 0"):
        check_combination(grpo, group_size=1)
    check_combination(AlgorithmConfig.model_validate("reinforce_plus_plus").model_dump(), group_size=1)
    plain = AlgorithmConfig.model_validate({"loss": {"type": "reinforce"}}).model_dump()
    check_combination(plain, max_staleness=0)
    with pytest.raises(ConfigError, match="it has no ratio"):
        check_combination(plain, max_staleness=1)


def test_check_combination_passes_what_works():
    check_combination(AlgorithmConfig.model_validate("grpo").model_dump())
    with pytest.raises(ConfigError, match="zero expected gradient"):
        check_combination(AlgorithmConfig.model_validate("grpo").model_dump() | {"kl": {"coef": 1.0, "kind": "k1"}})


def test_run_config_refuses_a_group_of_one_before_a_run():
    with pytest.raises(ValidationError, match="an episode alone has no baseline"):
        RunConfig.model_validate({"rollout": {"group_size": 1}})
    assert RunConfig.model_validate({"curriculum": {"type": "pcl"}, "algorithm": "ctpo"}).curriculum.tau == 0.5
