"""A two-token bandit that every policy loss and every advantage must solve, from data one version old."""

import pytest
import torch

from toolgym.algorithms import cards, get
from toolgym.algorithms.advantages import (
    group_advantage,
    reinforce_plus_plus,
    reinforce_plus_plus_baseline,
    rloo,
)
from toolgym.algorithms.aggregation import MODES, aggregate, row_weights
from toolgym.algorithms.critic import gae
from toolgym.algorithms.riskpo import QuantileTracker, bundle_advantage, bundle_scores, make_bundles, mixed_var_weight
from toolgym.algorithms.vcpo import sequence_log_weights, vcpo_advantage

ARMS, GOAL, GROUP, GROUPS, STEPS = 4, (2, 1), 8, 8, 60
N = GROUP * GROUPS
IDS = torch.arange(N) // GROUP
MASK = torch.ones(N, 2, dtype=torch.bool)
EXTRA = {"decoupled_ppo": lambda old: {"sampler_logprobs": old}}  # what a loss needs beyond the common signature


def solve(loss="ppo_clip", advantage=None, mode="token-mean", lr=0.3, **parameters):
    """Probability of the best pair of arms after training."""
    advantage = advantage or (lambda rewards, **_: group_advantage(rewards, IDS))
    generator = torch.Generator().manual_seed(0)
    theta = torch.zeros(2, ARMS, requires_grad=True)
    optimizer = torch.optim.Adam([theta], lr=lr)
    sampler = theta.detach().clone()
    for _ in range(STEPS):
        mu = sampler.log_softmax(1)
        sampler = theta.detach().clone()  # the next batch is sampled before this one is trained on
        actions = torch.stack([torch.multinomial(mu[t].exp(), N, True, generator=generator) for t in (0, 1)], 1)
        old = torch.stack([mu[t][actions[:, t]] for t in (0, 1)], 1)
        rewards = sum((actions[:, t] == GOAL[t]).float() for t in (0, 1)) / 2
        logprobs = torch.stack([theta.log_softmax(1)[t][actions[:, t]] for t in (0, 1)], 1)
        a = advantage(rewards, logprobs=logprobs.detach(), old=old)
        extra = EXTRA.get(loss, lambda old: {})(old)
        per_token, _ = get(loss).function(logprobs, old, a, MASK, **extra, **parameters)
        total = aggregate(per_token, MASK, row_weights(MASK, mode, group=IDS, l_max=2))
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
    p = theta.detach().softmax(1)
    return float(p[0, GOAL[0]] * p[1, GOAL[1]])


def risk(tracker, generator):
    def advantage(rewards, **_):
        correct = rewards.reshape(GROUPS, GROUP)
        bundles = make_bundles(GROUPS, 2, generator=generator)
        scores = bundle_scores(correct, bundles)
        tracker.update(scores.flatten())
        weights = mixed_var_weight(scores, tracker[0.2], tracker[0.8])
        return bundle_advantage(correct, bundles, weights - weights.mean()).flatten()

    return advantage


ADVANTAGES = {
    "group": lambda r, **_: group_advantage(r, IDS),
    "batch": lambda r, **_: group_advantage(r, IDS, scale="batch"),
    "none": lambda r, **_: group_advantage(r, IDS, scale="none"),
    "rloo": lambda r, **_: rloo(r, IDS),
    "reinforce_plus_plus": lambda r, **_: reinforce_plus_plus(r, MASK),
    "reinforce_plus_plus_baseline": lambda r, **_: reinforce_plus_plus_baseline(r, IDS, MASK),
    "gae": lambda r, **_: gae(torch.stack([0 * r, r], 1), r.mean().expand(N, 2), MASK, lam=0.95)[0],
    "vcpo": lambda r, logprobs, old: vcpo_advantage(
        r, sequence_log_weights(logprobs, old, MASK), torch.ones(N), IDS, normalise=True
    ),
    "riskpo": risk(QuantileTracker(), torch.Generator().manual_seed(0)),
}


@pytest.mark.parametrize("loss", [c.name for c in cards("policy_loss")])
def test_bandit_is_solved_by_every_policy_loss(loss):
    parameters = {"clip_low": 0.2, "clip_high": 0.2} if loss == "gspo" else {}  # its own bounds are for long rows
    assert solve(loss, **parameters) > 0.9


@pytest.mark.parametrize("name", ADVANTAGES)
def test_bandit_is_solved_with_every_advantage(name):
    loss = "reinforce" if name == "vcpo" else "ppo_clip"
    assert solve(loss, ADVANTAGES[name]) > 0.9


@pytest.mark.parametrize("mode", MODES)
def test_bandit_is_solved_under_every_aggregation(mode):
    assert solve(mode=mode) > 0.9


def test_bandit_is_not_solved_without_a_signal():
    assert solve(advantage=lambda r, **_: torch.zeros(N)) < 0.1
    assert solve(advantage=lambda r, **_: -group_advantage(r, IDS)) < 0.05
