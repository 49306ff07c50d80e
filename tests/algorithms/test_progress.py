"""Progress advantage: exact on a soft MDP, and its reductions by hand."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.progress import auroc, erring_step, progress_advantage, progress_score, progress_steps
from toolgym.errors import ConfigError

F64 = torch.float64
BETA = 0.7


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def soft_mdp():
    """Two steps of three actions: reference, optimal policy, Q* and V*, all [3] or [3, 3] (second step by first)."""
    gen = torch.Generator().manual_seed(1)
    reward = torch.randn(3, 3, generator=gen, dtype=F64)
    ref1, ref2 = (torch.randn(*s, generator=gen, dtype=F64).log_softmax(-1) for s in ((3,), (3, 3)))
    v2 = BETA * (ref2 + reward / BETA).logsumexp(-1)
    v1 = BETA * (ref1 + v2 / BETA).logsumexp(-1)
    opt2, opt1 = (ref2 + reward / BETA).log_softmax(-1), (ref1 + v2 / BETA).log_softmax(-1)
    return reward, ref1, ref2, opt1, opt2, v1, v2


def test_progress_advantage_is_q_minus_v_on_a_soft_mdp_and_telescopes():
    reward, ref1, ref2, opt1, opt2, v1, v2 = soft_mdp()
    a, b = (x.flatten() for x in torch.meshgrid(torch.arange(3), torch.arange(3), indexing="ij"))
    optimal, reference = (torch.stack([p1[a], p2[a, b]], 1) for p1, p2 in ((opt1, opt2), (ref1, ref2)))
    got = progress_advantage(optimal, reference, torch.ones(9, 2, dtype=torch.bool), beta=BETA)
    close(got, torch.stack([v2[a] - v1, reward[a, b] - v2[a]], 1))
    close(got.sum(1), reward[a, b] - v1)


def test_progress_advantage_of_identical_models_is_zero():
    lp = torch.tensor([[-1.0, -2.0]], dtype=F64)
    assert progress_advantage(lp, lp, torch.ones(1, 2, dtype=torch.bool)).eq(0).all()


LP = torch.tensor([[-1.0, -2.0, -9.0, -0.5, -1.5]], dtype=F64)
REF = torch.tensor([[-1.5, -1.0, 7.0, -2.0, -1.0]], dtype=F64)
MASK = torch.tensor([[True, True, False, True, True]])
STEP = torch.tensor([[0, 0, 5, 2, 2]])


@pytest.mark.parametrize(
    ("reduce", "first", "third"),
    [
        ("sum", 0.5 - 1.0, 1.5 - 0.5),
        ("mean", -0.25, 0.5),
        ("last", -1.0, -0.5),
        ("min", -2.0 + 1.5, -1.5 + 2.0),
        ("max", -1.0 + 1.0, -0.5 + 1.0),
    ],
)
def test_progress_steps_reduce_each_model_first(reduce, first, third):
    steps, present = progress_steps(LP, REF, MASK, STEP, 4, beta=2.0, reduce=reduce)
    close(steps, [[2 * first, 0, 2 * third, 0]])
    assert present.tolist() == [[True, False, True, False]]


def test_progress_steps_summed_twice_are_the_log_ratio_of_the_row():
    steps, present = progress_steps(LP, REF, MASK, STEP, 3)
    total = torch.where(MASK, LP - REF, 0).sum(1)
    close(progress_score(steps, present, reduce="sum"), total)


STEPS = torch.tensor([[3.0, -1.0, 2.0, 9.0], [-4.0, -4.0, 9.0, 9.0], [9.0, 9.0, 9.0, 9.0]], dtype=F64)
PRESENT = torch.tensor([[1, 1, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        ("mean", [4 / 3, -4, 0]),
        ("sum", [4, -8, 0]),
        ("last", [2, -4, 0]),
        ("min", [-1, -4, 0]),
        ("max", [3, -4, 0]),
        ("bottom10", [-1, -4, 0]),
    ],
)
def test_progress_score_by_hand(reduce, expected):
    close(progress_score(STEPS, PRESENT, reduce=reduce), expected)


def test_progress_score_bottom10_is_the_mean_of_the_lowest_tenth():
    steps = torch.arange(20, dtype=F64).flip(0).unsqueeze(0)
    close(progress_score(steps, torch.ones(1, 20, dtype=torch.bool), reduce="bottom10"), [0.5])


def test_progress_score_refuses_an_unknown_reduction():
    with pytest.raises(ConfigError, match="did you mean 'mean'"):
        progress_score(STEPS, PRESENT, reduce="meen")


def test_erring_step_finds_a_planted_error_and_takes_the_earliest_on_a_tie():
    steps = torch.tensor([[0.5, 0.2, -3.0, 0.4], [1.0, -2.0, 1.5, -1.9]], dtype=F64)
    full = torch.ones(2, 4, dtype=torch.bool)
    assert erring_step(steps, full).tolist() == [2, 3]
    assert erring_step(steps, full, rule="sharpest_drop").tolist() == [2, 1]
    assert erring_step(STEPS[1:2], PRESENT[1:2], rule="sharpest_drop").tolist() == [0]
    with pytest.raises(ConfigError, match="unknown rule"):
        erring_step(steps, full, rule="latest")


def test_erring_step_in_the_soft_mdp_is_the_step_of_the_worst_action():
    reward, ref1, ref2, opt1, opt2, _, v2 = soft_mdp()
    best = int(v2.argmax())
    worst = int(reward[best].argmin())  # right at first, wrong at the second step
    optimal, reference = (
        torch.stack([p1[best], p2[best, worst]]).unsqueeze(0) for p1, p2 in ((opt1, opt2), (ref1, ref2))
    )
    steps, present = progress_steps(optimal, reference, torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0, 1]]), 2)
    assert erring_step(steps, present).tolist() == [1]


def test_auroc_counts_ties_half():
    labels = torch.tensor([True, True, False, False])
    close(auroc(torch.tensor([3.0, 1.0, 2.0, 0.0], dtype=F64), labels), 0.75)
    close(auroc(torch.ones(4, dtype=F64), labels), 0.5)
    close(auroc(torch.tensor([4.0, 3.0, 2.0, 1.0], dtype=F64), labels), 1.0)
    close(auroc(torch.ones(2, dtype=F64), torch.tensor([True, True])), 0.5)
