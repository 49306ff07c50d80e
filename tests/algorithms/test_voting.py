"""Majority-vote rewards: who votes, who wins, and what the metrics can and cannot tell."""

import torch
from torch.testing import assert_close

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.voting import vote_metrics, vote_rewards

ONE = torch.zeros(5, dtype=torch.int64)


def rewards(answers, **more):
    return vote_rewards(torch.tensor(answers), torch.zeros(len(answers), dtype=torch.int64), **more).tolist()


def test_vote_rewards_the_majority():
    assert rewards([7, 3, 7, 2, 7]) == [1, 0, 1, 0, 1]
    assert rewards([4, 4, 4]) == [1, 1, 1]
    assert rewards([5, 4, 3]) == [1, 0, 0]  # all distinct: the first seen
    assert rewards([3, 9, 9, 3]) == [1, 0, 0, 1]


def test_vote_rewards_no_answer_neither_votes_nor_wins():
    assert rewards([-1, -1, -1, 6, 2]) == [0, 0, 0, 1, 0]
    assert rewards([-1, -1]) == [0, 0]


def test_vote_rewards_groups_and_answer_ids_do_not_mix():
    answers = torch.tensor([1, 2, 2, 1, 2, 1])
    group = torch.tensor([0, 9, 0, 9, 0, 9])
    assert vote_rewards(answers, group).tolist() == [0, 0, 1, 1, 1, 1]


def test_vote_rewards_only_voters_vote_but_all_are_rewarded():
    assert rewards([1, 1, 2, 2, 2], voters=torch.tensor([1, 1, 1, 0, 0]).bool()) == [1, 1, 0, 0, 0]
    assert rewards([1, 2], voters=torch.tensor([0, 0]).bool()) == [0, 0]


def test_vote_rewards_unanimity_gives_no_advantage():
    r = vote_rewards(torch.tensor([3] * 5), ONE)
    assert group_advantage(r, ONE).eq(0).all()


def test_vote_metrics_a_lucky_hit_has_right_rewards_under_a_wrong_label():
    # gold 1; the majority says 2; three scattered wrong answers get the right reward 0
    got = vote_metrics(torch.tensor([2, 2, 3, 4, 5]), torch.ones(5, dtype=torch.int64), ONE)
    assert got["label_accuracy"] == 0
    assert_close(got["majority_ratio"], torch.tensor(0.4))
    assert_close(got["reward_accuracy"], torch.tensor(0.6))


def test_vote_metrics_average_over_groups():
    answers = torch.tensor([1, 1, 2, 3])
    gold = torch.tensor([1, 1, 7, 7])
    got = vote_metrics(answers, gold, torch.tensor([70, 70, -1, -1]))
    assert got["label_accuracy"] == 0.5
    assert got["majority_ratio"] == 0.75
    assert got["reward_accuracy"] == 0.75


def test_vote_metrics_show_collapse():
    gold = ONE + 1
    spread = vote_metrics(torch.tensor([1, 1, 2, 3, 4]), gold, ONE)
    collapsed = vote_metrics(torch.tensor([2, 2, 2, 2, 2]), gold, ONE)
    assert collapsed["majority_ratio"] == 1
    assert collapsed["label_accuracy"] < spread["label_accuracy"]
