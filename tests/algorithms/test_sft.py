"""Supervised losses: cross-entropy, f-divergences, PEAR. Worked values in float64."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.aggregation import aggregate, row_weights
from toolgym.algorithms.sft import assistant_mask, f_divergence_sft_loss, pear_loss, pear_weights, sft_loss

DOUBLE = torch.float64
KINDS = ["tv", "kl", "reverse_kl", "pearson", "hellinger", "js"]


def t(*values):
    return torch.tensor(values, dtype=DOUBLE)


def ones(*shape):
    return torch.ones(*shape, dtype=torch.bool)


def test_sft_loss_of_uniform_logits_is_log_v():
    loss, metrics = sft_loss(torch.zeros(2, 3, 7, dtype=DOUBLE).log_softmax(-1)[..., 0], ones(2, 3))
    assert loss.flatten().tolist() == pytest.approx([math.log(7)] * 6, abs=1e-12)
    assert metrics["nll"].item() == pytest.approx(math.log(7), abs=1e-12)


def test_sft_loss_has_no_gradient_at_masked_positions_and_bears_nan_there():
    logits = torch.randn(1, 3, 4, dtype=DOUBLE).requires_grad_()
    mask = torch.tensor([[True, False, True]])
    logprobs = logits.log_softmax(-1)[..., 1]
    poisoned = torch.where(mask, logprobs, math.nan)
    loss, _ = sft_loss(poisoned, mask)
    (grad,) = torch.autograd.grad(loss.sum(), logits)
    assert grad[0, 1].abs().max() == 0
    assert grad[0, 0].abs().max() > 0
    assert loss.isfinite().all()


def test_sft_loss_over_two_micro_batches_of_unequal_tokens_is_that_of_one_batch():
    logprobs = -torch.rand(2, 5, dtype=DOUBLE)
    mask = torch.tensor([[True] * 5, [True] + [False] * 4])
    weights = row_weights(mask, "token-mean")
    whole = aggregate(sft_loss(logprobs, mask)[0], mask, weights)
    parts = [
        aggregate(sft_loss(logprobs[i : i + 1], mask[i : i + 1])[0], mask[i : i + 1], weights[i : i + 1])
        for i in (0, 1)
    ]
    torch.testing.assert_close(sum(parts), whole)
    torch.testing.assert_close(whole, -logprobs[mask].mean())  # not the mean of the rows' means


def test_assistant_mask_marks_assistant_segments():
    chat = [("system", 1), ("user", 2), ("assistant", 2), ("tool", 1), ("assistant", 1)]
    assert assistant_mask(chat).tolist() == [False] * 3 + [True] * 2 + [False, True]
    assert assistant_mask(chat, last_turn_only=True).tolist() == [False] * 6 + [True]
    assert assistant_mask([("user", 2)], last_turn_only=True).tolist() == [False, False]
    assert assistant_mask([]).tolist() == []
    assert assistant_mask([]).dtype == assistant_mask(chat).dtype == torch.bool


F_VALUES = {
    0.5: [-0.5, -0.393469, -0.405465, -0.4375, -0.333333, -0.331797],
    1.0: [-1.0, -0.632121, -0.693147, -0.75, -0.5, -0.489880],
    -0.5: [0.5, 0.648721, 0.693147, 0.5625, 1.0, 1.046175],
}


def f_loss(r, kind, beta=1.0):
    logprobs = t([r / beta]).requires_grad_()
    loss, metrics = f_divergence_sft_loss(logprobs, t([0.0]), ones(1, 1), kind=kind, beta=beta)
    return loss.item(), torch.autograd.grad(loss.sum(), logprobs)[0].item(), metrics


@pytest.mark.parametrize("r", F_VALUES)
@pytest.mark.parametrize("i", range(6), ids=KINDS)
def test_f_divergence_sft_loss_worked_values(r, i):
    assert f_loss(r, KINDS[i])[0] == pytest.approx(F_VALUES[r][i], abs=5e-7)
    assert f_loss(r, KINDS[i], beta=0.1)[0] == pytest.approx(F_VALUES[r][i], abs=5e-7)


@pytest.mark.parametrize(
    ("kind", "weight"),
    [
        ("tv", lambda r: 1.0),
        ("kl", lambda r: math.exp(-r)),
        ("reverse_kl", lambda r: 1 / (1 + r)),
        ("pearson", lambda r: 1 - r / 2),
        ("hellinger", lambda r: 1 / (1 + r) ** 2),
        ("js", lambda r: math.exp(-r) / (2 - math.exp(-r))),
    ],
)
def test_f_divergence_sft_loss_gradient_weights(kind, weight):
    for r in (-0.5, 0.0, 0.7):
        assert f_loss(r, kind)[1] == pytest.approx(-weight(r), abs=1e-12)
    assert f_loss(0.0, kind, beta=0.1)[1] == pytest.approx(-0.1, abs=1e-12)  # at the reference: beta times SFT
    assert f_loss(0.0, kind)[0] == 0.0


@pytest.mark.parametrize("kind", KINDS)
def test_f_divergence_sft_loss_is_decreasing_and_convex_across_its_whole_range(kind):
    grid = [f_loss(-5 + 0.125 * i, kind)[:2] for i in range(80)]
    values, slopes = zip(*grid, strict=True)
    assert all(a >= b for a, b in itertools.pairwise(values))
    assert all(a <= b + 1e-9 for a, b in itertools.pairwise(slopes))
    assert all(map(math.isfinite, values))


def test_f_divergence_sft_loss_of_pearson_stops_pulling():
    assert f_loss(3.0, "pearson")[:2] == (-1.0, 0.0)


@pytest.mark.parametrize(("kind", "edge"), [("reverse_kl", -1.0), ("hellinger", -1.0), ("js", -math.log(2))])
def test_f_divergence_sft_loss_goes_on_as_a_tangent_below_its_domain(kind, edge):
    at, slope, _ = f_loss(edge + 1e-3, kind)
    below, below_slope, _ = f_loss(edge - 4.0, kind)
    assert below_slope == pytest.approx(slope, rel=1e-9)
    assert below == pytest.approx(at - slope * 4.001, rel=1e-9)


def test_f_divergence_sft_loss_tv_is_sft_up_to_a_constant():
    logprobs = t([-1.0, -2.0]).requires_grad_()
    ref = t([-1.5, -1.0])
    tv, metrics = f_divergence_sft_loss(logprobs, ref, ones(1, 2), kind="tv", beta=0.1)
    torch.testing.assert_close(tv, 0.1 * (sft_loss(logprobs, ones(1, 2))[0] + ref))
    assert metrics["implicit_reward"].item() == pytest.approx(0.1 * -0.25, abs=1e-12)


def test_f_divergence_sft_loss_refuses_bad_parameters():
    with pytest.raises(ValueError, match="did you mean 'pearson'"):
        f_divergence_sft_loss(t([0.0]), t([0.0]), ones(1, 1), kind="pearsn")
    with pytest.raises(ValueError, match="beta"):
        f_divergence_sft_loss(t([0.0]), t([0.0]), ones(1, 1), beta=0.0)


def weights(delta, mask=None, **options):
    """PEAR weights of a policy that differs from the demonstrator by delta."""
    delta = t(delta)
    return pear_weights(
        delta - 1, torch.full_like(delta, -1.0), ones(1, len(delta[0])) if mask is None else mask, **options
    )[0]


@pytest.mark.parametrize(
    ("delta", "options", "expected"),
    [
        ([0.1, -0.05, 0.2], {"gamma": 1.0}, [1.161834, 1.221403, 1]),
        ([0.1, -0.05, 0.2], {"gamma": 0.999}, [1.159512, 1.220181, 1]),
        ([0.1, -0.05, 0.2], {"gamma": 1.0, "level": "sequence"}, [1.284025] * 3),
        ([0.1, -0.05, 0.2, 0.05], {"gamma": 1.0, "level": "block", "block": 2}, [1.284025, 1.284025, 1, 1]),
        ([0.1, -0.05, 0.2, 0.05], {"gamma": 0.999, "level": "block", "block": 2}, [1.281459, 1.281459, 1, 1]),
    ],
)
def test_pear_weights_worked_values(delta, options, expected):
    assert weights(delta, **options).tolist() == pytest.approx(expected, abs=5e-7)


def test_pear_weights_of_blocks_at_their_ends():
    delta = [0.1, -0.05, 0.2, 0.05, 0.07]
    torch.testing.assert_close(weights(delta, level="block", block=1), weights(delta, level="token"))
    torch.testing.assert_close(weights(delta, level="block", block=5), torch.ones(5, dtype=DOUBLE))
    torch.testing.assert_close(weights(delta, level="block", block=9), torch.ones(5, dtype=DOUBLE))
    # a last block of one token: the first two blocks see what comes after
    expected = [math.exp(0.32), math.exp(0.32), math.exp(0.07), math.exp(0.07), 1.0]
    assert weights(delta, level="block", block=2, gamma=1.0).tolist() == pytest.approx(expected, abs=1e-12)


def test_pear_weights_clip_each_delta_before_the_sum():
    got = weights([0.0, 5.0, -5.0, 0.0], gamma=1.0)
    assert got.tolist() == pytest.approx([math.exp(0.3 - 0.08), math.exp(-0.08), 1.0, 1.0], abs=1e-12)


def test_pear_weights_are_bounded():
    assert weights([0.3] * 40, gamma=1.0)[0].item() == pytest.approx(math.exp(5), abs=1e-9)
    assert weights([0.3] * 40, gamma=1.0, log_range=(-1.0, 1.0))[0].item() == pytest.approx(math.e, abs=1e-12)
    assert weights([-0.08] * 200, gamma=1.0)[0].item() == pytest.approx(math.exp(-10), abs=1e-12)


@pytest.mark.parametrize("level", ["token", "block", "sequence"])
def test_pear_weights_count_valid_tokens_only(level):
    """Holes and padding, whatever stands there, discount nothing."""
    plain = weights([0.1, -0.05, 0.2], level=level, block=2)
    mask = torch.tensor([[False, True, False, True, True, False, False]])
    gappy = weights([math.nan, 0.1, 3.0, -0.05, 0.2, math.nan, 1.0], mask, level=level, block=2)
    assert gappy[mask[0]].tolist() == pytest.approx(plain.tolist(), abs=1e-12)
    assert gappy[~mask[0]].abs().max() == 0


@given(st.lists(st.floats(-0.08, 0.3), min_size=1, max_size=9), st.integers(1, 9), st.floats(0.9, 1.0))
def test_pear_weights_equal_the_plain_double_loop(delta, block, gamma):
    n = len(delta)
    for level, size in (("token", 1), ("block", block)):
        expected = []
        for i in range(n):
            end = min((i // size + 1) * size, n)
            expected.append(gamma ** (n - end) * math.exp(sum(delta[end:])))
        assert weights(delta, level=level, block=size, gamma=gamma).tolist() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("level", ["token", "block", "sequence"])
def test_pear_loss_of_the_demonstrator_itself_is_sft(level):
    logprobs = t([-1.0, -2.0, -0.5])
    loss, metrics = pear_loss(logprobs, logprobs, ones(1, 3), level=level, gamma=1.0)
    torch.testing.assert_close(loss, -logprobs)
    assert metrics["weight_mean"].item() == pytest.approx(1.0)


def test_pear_loss_weights_are_detached():
    logprobs = t([-1.0, -2.0, -0.5]).requires_grad_()
    demo = t([-1.1, -1.95, -0.7])
    loss, _ = pear_loss(logprobs, demo, ones(1, 3), gamma=1.0)
    (grad,) = torch.autograd.grad(loss.sum(), logprobs)
    assert grad[0].tolist() == pytest.approx([-1.161834, -1.221403, -1.0], abs=5e-7)


def test_pear_weights_refuse_bad_parameters():
    with pytest.raises(ValueError, match="block=0"):
        weights([0.0], block=0)
    with pytest.raises(ValueError, match="gamma=0"):
        weights([0.0], gamma=0.0)
    with pytest.raises(ValueError, match="did you mean 'token'"):
        weights([0.0], level="tokens")


def test_sft_loss_and_pear_loss_check_shapes_and_report():
    with pytest.raises(ValueError, match="logprobs: got shape"):
        sft_loss(t([-1.0]), ones(1, 2))
    logprobs = t([-1.0, -3.0])
    _, metrics = pear_loss(logprobs, logprobs, ones(1, 2), gamma=1.0)
    assert {name: m.item() for name, m in metrics.items()} == {"nll": 2.0, "weight_mean": 1.0}
