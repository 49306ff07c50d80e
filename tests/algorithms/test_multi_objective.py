"""Combining reward components, and CRPO's reward."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.advantages import group_advantage
from toolgym.algorithms.multi_objective import (
    combine_rewards,
    comprehensiveness_score,
    crpo_reward,
    faithfulness_score,
)
from toolgym.errors import ConfigError

DOUBLE = torch.float64


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


X = t([1.0, 0.2], [0.0, 0.9], [1.0, 0.4], [0.0, 0.9])
GROUP = torch.zeros(4, dtype=torch.int64)


def test_combine_rewards_by_sum_and_gate():
    assert combine_rewards(X).tolist() == pytest.approx([1.2, 0.9, 1.4, 0.9])
    assert combine_rewards(X, weights=[2, -1]).tolist() == pytest.approx([1.8, -0.9, 1.6, -0.9])
    gate = torch.tensor([True, False, True, True])
    assert combine_rewards(X, gate=gate).tolist() == pytest.approx([1.2, 0.0, 1.4, 0.9])


def test_combine_rewards_lexicographically():
    got = combine_rewards(X, mode="lexicographic", group=GROUP)
    assert got.tolist() == pytest.approx([2 / 3, 0.0, 1.0, 0.0])  # [1, .4] > [1, .2] > [0, .9] = [0, .9]
    two = combine_rewards(X, mode="lexicographic", group=torch.tensor([0, 0, 1, 2]))
    assert two.tolist() == [1.0, 0.0, 0.0, 0.0]


def test_combine_rewards_normalised_is_blind_to_a_components_scale():
    scaled = X * t(1.0, 100.0)
    plain = combine_rewards(X, mode="group-normalised", group=GROUP)
    torch.testing.assert_close(combine_rewards(scaled, mode="group-normalised", group=GROUP), plain, atol=1e-5, rtol=0)
    expected = sum(group_advantage(X[:, c], GROUP) for c in (0, 1))
    torch.testing.assert_close(plain, expected)
    constant = torch.cat([X, torch.full((4, 1), 7.0, dtype=DOUBLE)], 1)
    torch.testing.assert_close(combine_rewards(constant, mode="group-normalised", group=GROUP), plain)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "summ"}, "did you mean 'sum'"),
        ({"mode": "lexicographic"}, "needs the group"),
        ({"weights": [1.0]}, "1 weights for 2"),
        ({"mode": "lexicographic", "group": GROUP, "weights": [1.0, 1.0]}, "weights"),
    ],
)
def test_combine_rewards_refuses(options, message):
    with pytest.raises(ConfigError, match=message):
        combine_rewards(X, **options)


def test_crpo_reward_worked_values():
    # perfect; right but unfaithful; wrong but well formed
    assert crpo_reward(t(1.0, 1.0, 0.0), t(1.0, 0.0, 1.0), t(1.0, 0.0, 1.0)).tolist() == [12.0, 10.0, 2.0]


@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.floats(2.01, 50))
def test_crpo_reward_never_lets_a_wrong_answer_beat_a_right_one(x, k):
    right, wrong = crpo_reward(t(1.0, 0.0), t(x[0], x[1]), t(x[2], x[3]), k=k).tolist()
    assert right > wrong


def test_crpo_reward_refuses_a_small_k():
    with pytest.raises(ConfigError, match="k=2"):
        crpo_reward(t(1.0), t(1.0), t(1.0), k=2.0)


def test_crpo_reward_normalised_in_its_group_does_not_depend_on_k():
    accuracy, other = t(1.0, 0.0, 0.0, 1.0), t(0.5, 0.5, 0.5, 0.5)
    got = [group_advantage(crpo_reward(accuracy, other, other, k=k), GROUP, eps=0.0) for k in (3.0, 10.0)]
    torch.testing.assert_close(got[0], got[1])


WELL = "<think>Because ...</think>\n<dx>a, b</dx><conclusion>The answer is B.</conclusion>"


def test_faithfulness_score_shares():
    assert faithfulness_score(WELL, "B") == 1.0
    assert faithfulness_score(WELL, "b") == 1.0
    assert faithfulness_score(WELL, "C") == 0.75
    assert faithfulness_score(WELL, "Be") == 0.75
    assert faithfulness_score(WELL, "") == 0.75


def test_faithfulness_score_of_bad_format_is_zero_unless_lenient():
    missing = WELL.replace("<dx>a, b</dx>", "")
    assert faithfulness_score(missing, "B") == 0.0
    assert faithfulness_score(missing, "B", strict=False) == 0.75
    disorder = "<dx>a</dx><think>t</think><conclusion>B</conclusion>"
    assert faithfulness_score(disorder, "B") == 0.0
    assert faithfulness_score("<think>t</think><dx>d</dx><conclusion>B", "B") == 0.0
    assert faithfulness_score("", "B", strict=False) == 0.0


REASONING = (
    "Gout is unlikely given the labs. Sepsis was mentioned by the nurse.\nThe fever suggests malaria! Gout: excluded."
)


def test_comprehensiveness_score_is_linear_in_judged_options():
    options = ["Gout", "sepsis", "malaria", "flu"]
    assert comprehensiveness_score(REASONING, options) == 0.5
    assert comprehensiveness_score(REASONING, options[:1]) == 1.0  # mentioned twice, counted once
    assert comprehensiveness_score(REASONING, options, verdicts=()) == 0.75
    assert comprehensiveness_score("goutish is unlikely", ["gout"]) == 0.0
    assert comprehensiveness_score(REASONING, []) == 0.0


def test_comprehensiveness_score_ends_a_sentence_with_its_line():
    assert comprehensiveness_score("Gout\nis one thing, flu is unlikely", ["gout", "flu"]) == 0.5
