"""GAE by hand, its identities, and the clipped value loss on each side of its bound."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.advantages import discounted_returns
from toolgym.algorithms.critic import gae, turn_gae, value_loss
from toolgym.algorithms.entropy import entropy, entropy_loss

F64 = torch.float64
R = torch.tensor([[0.0, 0.0, 1.0]], dtype=F64)
V = torch.tensor([[0.2, 0.5, 0.4]], dtype=F64)
FULL = torch.ones(1, 3, dtype=torch.bool)


def close(got, expected, tol=1e-12):
    assert_close(got, torch.as_tensor(expected, dtype=F64), atol=tol, rtol=0)


def test_gae_worked_values():
    # A3 = 1 - .4 = .6; A2 = .4 - .5 + .95 .6 = .47; A1 = .5 - .2 + .95 .47 = .7465
    a, returns = gae(R, V, FULL, lam=0.95)
    close(a, [[0.7465, 0.47, 0.6]])
    close(returns, [[0.9465, 0.97, 1.0]])


def test_gae_lambda_one_is_returns_minus_values_and_zero_the_td_error():
    close(gae(R, V, FULL, gamma=0.9)[0], discounted_returns(R, FULL, gamma=0.9) - V)
    close(gae(R, V, FULL, gamma=0.9, lam=0.0)[0], [[0.9 * 0.5 - 0.2, 0.9 * 0.4 - 0.5, 1 - 0.4]])


def test_gae_bootstraps_where_asked():
    close(gae(R, V, FULL, lam=0.0, bootstrap=torch.tensor([0.7], dtype=F64))[0], [[0.3, -0.1, 1.3]])


def test_gae_passes_over_tool_tokens():
    mask = torch.tensor([[0, 1, 0, 0, 1, 1, 0]], dtype=torch.bool)
    r, v = (torch.full((1, 7), float("nan"), dtype=F64) for _ in range(2))
    r[mask], v[mask] = R[0], V[0]
    close(gae(r, v, mask, gamma=0.9, lam=0.95)[0][mask], gae(R, V, FULL, gamma=0.9, lam=0.95)[0][0])


def test_turn_gae_one_token_turns_is_token_gae_and_a_single_turn_is_the_reward_above_value():
    turn = torch.tensor([[0, -1, 1, 2]])
    a, targets = turn_gae(R, V, FULL, turn, gamma=0.9, lam=0.95)
    expected, returns = gae(R, V, FULL, gamma=0.9, lam=0.95)
    close(a, [[expected[0, 0], 0, expected[0, 1], expected[0, 2]]])
    close(targets, returns)
    one = torch.ones(1, 1, dtype=torch.bool)
    close(turn_gae(R[:, 2:], V[:, :1], one, torch.tensor([[0, 0, -1]]))[0], [[0.8, 0.8, 0]])


def test_value_loss_takes_the_larger_error_and_loses_its_gradient_there():
    # old 0, clip .2, return 1: v = .1 is inside; v = .5 is clipped to .2 (error .64 > .25); v = -.5 stays the larger
    v = torch.tensor([[0.1, 0.5, -0.5]], dtype=F64, requires_grad=True)
    zero, one = torch.zeros(1, 3, dtype=F64), torch.ones(1, 3, dtype=F64)
    loss, metrics = value_loss(v, zero, one, FULL)
    close(loss, [[0.405, 0.32, 1.125]])
    close(torch.autograd.grad(loss.sum(), v)[0], [[-0.9, 0.0, -1.5]])
    close(metrics["value_clip_fraction"], 1 / 3)
    mirrored, _ = value_loss(-v, zero, -one, FULL)
    close(mirrored, loss.detach())
    close(torch.autograd.grad(mirrored.sum(), v)[0], [[-0.9, 0.0, -1.5]])
    loss, metrics = value_loss(v, zero, one, FULL, clip=None)
    close(loss, [[0.405, 0.125, 1.125]])
    assert "value_clip_fraction" not in metrics


def test_value_loss_reports_explained_variance():
    returns = torch.tensor([[1.0, 2.0, 3.0]], dtype=F64)
    close(value_loss(returns, returns, returns, FULL)[1]["explained_variance"], 1.0)
    close(value_loss(returns + 5, returns, returns, FULL)[1]["explained_variance"], 1.0)
    close(value_loss(torch.zeros_like(returns), returns, returns, FULL)[1]["explained_variance"], 0.0)


def test_entropy_of_a_uniform_and_of_a_filtered_distribution():
    logits = torch.zeros(1, 3, 4, dtype=F64)
    logits[0, 1, 2:] = -torch.inf
    logits[0, 2] = torch.nan
    mask = torch.tensor([[True, True, False]])
    close(entropy(logits, mask), [[1.3862943611198906, 0.6931471805599453, 0.0]])
    p = torch.tensor([0.5, 0.25, 0.25], dtype=F64)
    close(entropy(p.log().reshape(1, 1, 3), mask[:, :1]), [[1.5 * 0.6931471805599453]])
    doubled = entropy(2 * p.log().reshape(1, 1, 3), mask[:, :1], temperature=2.0)
    close(doubled, [[1.5 * 0.6931471805599453]])


def test_entropy_with_forbidden_tokens_has_a_finite_gradient():
    logits = torch.tensor([[[0.3, -torch.inf, 1.0]]], dtype=F64, requires_grad=True)
    h = entropy(logits, torch.ones(1, 1, dtype=torch.bool))
    assert torch.autograd.grad(h.sum(), logits)[0].isfinite().all()


def test_entropy_loss_descent_raises_entropy():
    logits = torch.tensor([[[2.0, 0.0, -1.0]]], dtype=F64, requires_grad=True)
    mask = torch.ones(1, 1, dtype=torch.bool)
    loss, metrics = entropy_loss(logits, mask, coefficient=0.1)
    close(loss, -0.1 * metrics["entropy"].reshape(1, 1))
    close(entropy_loss(logits, mask, coefficient=0.1, temperature=2.0)[0], -0.1 * entropy(logits / 2, mask))
    after = logits.detach() - torch.autograd.grad(loss.sum(), logits)[0]
    assert entropy(after, mask) > metrics["entropy"]


def test_entropy_refuses_a_wrong_shape():
    with pytest.raises(ValueError, match=r"expected \[B, T, V\]"):
        entropy(torch.zeros(2, 3), torch.ones(2, 3, dtype=torch.bool))
