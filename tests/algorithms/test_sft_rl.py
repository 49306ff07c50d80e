"""Prefix-RFT and DYPO: schedules, advantages, states and the alignment loss."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.preferences import dpo_loss
from toolgym.algorithms.sft_rl import (
    dypo_loss,
    dypo_states,
    group_alignment_loss,
    prefix_entropy_mask,
    prefix_length,
    prefix_ratio_range,
    prefix_rft_advantages,
)

DOUBLE = torch.float64


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def test_prefix_ratio_range_worked_values():
    lows = [prefix_ratio_range(step, 100)[0] for step in (0, 25, 50, 100, 300)]
    assert lows == pytest.approx([0.95, 0.818198, 0.5, 0.05, 0.05], abs=5e-7)
    assert prefix_ratio_range(0, 100, init=0.99)[0] == 0.95
    assert prefix_ratio_range(1, 1)[0] == pytest.approx(0.05)
    assert prefix_ratio_range(7, 100)[1] == 0.95
    with pytest.raises(ValueError, match="step=-1"):
        prefix_ratio_range(-1, 100)
    with pytest.raises(ValueError, match="total=0"):
        prefix_ratio_range(0, 0)


@given(st.integers(0, 300), st.floats(0, 1), st.floats(0, 1), st.integers(0, 99))
def test_prefix_length_leaves_a_token_to_generate(n, a, b, seed):
    length = prefix_length(n, (min(a, b), max(a, b)), rng=random.Random(seed))
    assert 0 <= length <= max(n - 1, 0)
    if n > 0:
        assert math.floor(min(a, b) * n) - 1 <= length <= max(a, b) * n


def test_prefix_length_is_the_floor_of_its_share():
    assert prefix_length(10, (0.58, 0.58), rng=random.Random(0)) == 5
    assert prefix_length(10, (1.0, 1.0), rng=random.Random(0)) == 9
    assert prefix_length(0, (0.9, 0.9), rng=random.Random(0)) == 0


def test_prefix_entropy_mask_keeps_the_least_certain():
    prefix = torch.tensor([[True, True, True, False, True], [True, False, False, False, False], [False] * 5])
    entropy = t([0.1, 0.9, 0.5, 7.0, 0.9], [0.0, math.nan, 1.0, 1.0, 1.0], [1.0] * 5)
    kept = prefix_entropy_mask(entropy, prefix, keep=0.5)
    assert kept.tolist() == [[False, True, False, False, True], [True] + [False] * 4, [False] * 5]
    assert prefix_entropy_mask(entropy, prefix, keep=0.2).tolist()[0] == [
        False,
        True,
        False,
        False,
        False,
    ]  # the earlier
    assert torch.equal(prefix_entropy_mask(entropy, prefix, keep=1.0), prefix)
    assert not prefix_entropy_mask(entropy, prefix, keep=0.0).any()
    with pytest.raises(ValueError, match="keep"):
        prefix_entropy_mask(entropy, prefix, keep=1.1)
    with pytest.raises(ValueError, match="entropy: got shape"):
        prefix_entropy_mask(entropy[:1], prefix)


@given(st.integers(0, 999), st.floats(0, 1))
def test_prefix_entropy_mask_keeps_the_stated_number(seed, keep):
    gen = torch.Generator().manual_seed(seed)
    prefix = torch.rand(3, 6, generator=gen) < 0.6
    kept = prefix_entropy_mask(torch.rand(3, 6, generator=gen, dtype=DOUBLE), prefix, keep=keep)
    assert kept.sum(1).tolist() == [math.ceil(torch.tensor(n * keep).item()) for n in prefix.sum(1).tolist()]
    assert not (kept & ~prefix).any()


REWARDS = t(1.0, 0.0, 1.0, 0.0)
GROUP = torch.zeros(4, dtype=torch.int64)
MASK = torch.tensor([[True, True, True]] * 3 + [[True, True, False]])


def prefixes(*hybrids):
    prefix = torch.zeros(4, 3, dtype=torch.bool)
    for row in hybrids:
        prefix[row, :2] = True
    return prefix


@pytest.mark.parametrize("repo_style", [False, True])
def test_prefix_rft_advantages_of_a_pure_group_are_grpo(repo_style):
    got = prefix_rft_advantages(REWARDS, GROUP, prefixes(), MASK, repo_style=repo_style)
    expected = torch.where(MASK, group_advantage(REWARDS, GROUP).unsqueeze(1), 0.0)
    torch.testing.assert_close(got, expected)


def test_prefix_rft_advantages_treat_a_hybrid_as_a_member():
    got = prefix_rft_advantages(REWARDS, GROUP, prefixes(0), MASK, eps=0.0)
    torch.testing.assert_close(got[0], t(1.0, 1.0, 1.0))


def test_prefix_rft_advantages_in_the_official_style():
    # pure rewards [0, 1, 0]: mean 1/3, std sqrt(2)/3; the hybrid: prefix 1 - 1/3, continuation 1
    got = prefix_rft_advantages(REWARDS, GROUP, prefixes(0), MASK, repo_style=True, eps=0.0)
    low, high = -1 / math.sqrt(2), math.sqrt(2)
    torch.testing.assert_close(got, t([2 / 3, 2 / 3, 1.0], [low] * 3, [high] * 3, [low, low, 0.0]))
    # two hybrids with rewards [1, 0] of one prefix: prefix (r - 1/2) / 2, continuation normalised between the two
    got = prefix_rft_advantages(REWARDS, GROUP, prefixes(0, 1), MASK, repo_style=True, eps=0.0)
    torch.testing.assert_close(got[:2], t([0.25, 0.25, 1.0], [-0.25, -0.25, -1.0]))


@pytest.mark.parametrize("repo_style", [False, True])
def test_prefix_rft_advantages_drop_confident_prefix_tokens(repo_style):
    kept = torch.zeros(4, 3, dtype=torch.bool)
    kept[0, 1] = True
    full = prefix_rft_advantages(REWARDS, GROUP, prefixes(0), MASK, repo_style=repo_style)
    got = prefix_rft_advantages(REWARDS, GROUP, prefixes(0), MASK, kept_prefix=kept, repo_style=repo_style)
    assert got[0, 0] == 0
    assert torch.equal(got[0, 1:], full[0, 1:])
    assert torch.equal(got[1:], full[1:])


def test_dypo_states_of_three_groups():
    rewards = t(1.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    group = torch.tensor([5, 5, 1, 1, 9, 9])
    hard, mixed = dypo_states(rewards, group)
    assert hard.tolist() == [False, False, True, True, False, False]
    assert mixed.tolist() == [False] * 4 + [True] * 2
    hard, mixed = dypo_states(rewards, group, switch_gate=0.5)
    assert hard.tolist() == [False, False, True, True, True, True]


def alignment(h, rewards, **options):
    """Rows of one token whose log-ratio is h, in one group."""
    h = t(*h).unsqueeze(1).requires_grad_()
    mask = torch.ones(len(h), 1, dtype=torch.bool)
    group = torch.zeros(len(h), dtype=torch.int64)
    loss, metrics = group_alignment_loss(h, torch.zeros_like(h), mask, rewards=t(*rewards), group=group, **options)
    return loss, metrics, torch.autograd.grad(loss.sum(), h)[0].squeeze(1)


def test_group_alignment_loss_worked_values():
    loss, metrics, grad = alignment([0.7, 0.0], [1, 0])
    assert loss.sum().item() == pytest.approx(0.403186, abs=5e-7)
    assert grad.tolist() == pytest.approx([-0.331812, 0.331812], abs=5e-7)
    assert metrics["pairs"].item() == 1
    assert metrics["margin"].item() == pytest.approx(0.7, abs=1e-12)


def test_group_alignment_loss_of_one_pair_is_dpo():
    loss, _, _ = alignment([0.4, -0.9], [1, 0], beta=0.3)
    dpo, _ = dpo_loss(t(0.4), t(-0.9), t(0.0), t(0.0), beta=0.3)
    torch.testing.assert_close(loss.sum(), dpo.sum())


def test_group_alignment_loss_averages_all_pairs():
    h, rewards = [0.4, -0.9, 0.2, 0.1], [1, 0, 1, 0]
    loss, metrics, _ = alignment(h, rewards)
    pairs = [(w, x) for w in (0.4, 0.2) for x in (-0.9, 0.1)]
    assert loss.sum().item() == pytest.approx(sum(math.log1p(math.exp(x - w)) for w, x in pairs) / 4, abs=1e-12)
    assert metrics["pairs"].item() == 4


@pytest.mark.parametrize("rewards", [[1, 1], [0, 0]])
def test_group_alignment_loss_without_a_pair_is_zero(rewards):
    loss, _, grad = alignment([0.4, -0.9], rewards)
    assert loss.tolist() == [0.0, 0.0]
    assert grad.tolist() == [0.0, 0.0]


def test_group_alignment_loss_pairs_within_groups_and_averages_tokens():
    logprobs = t([0.2, 0.6], [0.4, math.nan], [0.9, 0.9])
    mask = torch.tensor([[True, True], [True, False], [True, True]])
    loss, _ = group_alignment_loss(
        logprobs, torch.zeros_like(logprobs), mask, rewards=t(1.0, 0.0, 0.0), group=torch.tensor([1, 1, 2])
    )
    half = 0.5 * math.log(2)  # means .4 and .4
    assert loss.tolist() == pytest.approx([half, half, 0.0], abs=1e-12)


def test_dypo_loss_weighs_halves_in_float32():
    rewards, group = t(1.0, 0.0), torch.tensor([0, 0])
    half = [torch.full((2,), x).bfloat16() for x in (1.0078125, 0.9921875, 0.0)]
    loss, _ = dypo_loss(*half, rewards=rewards, group=group, alpha=0.3)
    assert loss.tolist() == pytest.approx([0.3 * 1.0078125 + 0.7 * 0.9921875] * 2, rel=1e-6)


def test_dypo_loss_routes_each_group():
    rewards = t(1.0, 1.0, 0.0, 0.0, 0.0, 1.0)
    group = torch.tensor([0, 0, 1, 1, 2, 2])
    parts = [t(*range(a, a + 6)).requires_grad_() for a in (1, 11, 21)]
    loss, metrics = dypo_loss(*parts, rewards=rewards, group=group, sft_weight=2.0)
    # easy: 0; hard: 2 sft; mixed: half each
    assert loss.tolist() == [0.0, 0.0, 46.0, 48.0, 10.0, 11.0]
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(
        dict.fromkeys(["easy", "hard", "mixed"], 1 / 3)
    )
    _, uneven = dypo_loss(*parts, rewards=t(1.0, 1.0, 1.0, 0.0, 0.0, 1.0), group=torch.tensor([0, 0, 0, 1, 2, 2]))
    assert {name: value.item() for name, value in uneven.items()} == pytest.approx(
        {"easy": 3 / 6, "hard": 1 / 6, "mixed": 2 / 6}
    )
    grads = torch.autograd.grad(loss.sum(), parts)
    assert [g[:2].abs().max().item() for g in grads] == [0.0, 0.0, 0.0]
    for alpha, part in ((1.0, parts[0]), (0.0, parts[1])):
        got, _ = dypo_loss(*parts, rewards=rewards, group=group, alpha=alpha)
        torch.testing.assert_close(got[4:], part[4:])
