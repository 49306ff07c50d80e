"""The KL estimators by enumeration on a categorical: expectation and gradient of each, on and off policy."""

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.kl import KINDS, kl, kl_in_reward, unbiased_kl
from toolgym.errors import ConfigError

F64 = torch.float64
LOGITS = torch.tensor([0.3, -0.7, 1.1, 0.0, -0.2], dtype=F64)
REF = torch.tensor([-0.5, 0.4, 0.2, 0.9, -1.0], dtype=F64).log_softmax(0)
MU = torch.tensor([0.1, 0.5, -0.3, -0.6, 0.8], dtype=F64).log_softmax(0)


def expectation_and_gradient(weights, function):
    """Sum over the five arms of a fixed weight times the estimator; its gradient in the logits."""
    logits = LOGITS.clone().requires_grad_(True)
    estimate = function(logits.log_softmax(0).unsqueeze(0))[0]
    total = (weights * estimate).sum()
    return total.detach(), torch.autograd.grad(total, logits)[0]


def exact(forward: bool):
    logits = LOGITS.clone().requires_grad_(True)
    p = logits.log_softmax(0)
    value = (REF.exp() * (REF - p)).sum() if forward else (p.exp() * (p - REF)).sum()
    return value.detach(), torch.autograd.grad(value, logits)[0]


def test_kl_worked_values():
    lp, ref = torch.tensor([[-1.0]], dtype=F64), torch.tensor([[-1.5]], dtype=F64)
    for kind, value in {"k1": 0.5, "k2": 0.125, "k3": 0.10653066, "k1+": 0.5, "k3+": 0.10653066}.items():
        assert_close(kl(lp, ref, kind=kind), torch.tensor([[value]], dtype=F64), atol=1e-8, rtol=0)


def test_kl_expectations_and_gradients_as_a_loss_on_policy():
    p = LOGITS.softmax(0)
    value, reverse = exact(forward=False)
    _, forward = exact(forward=True)
    zero = torch.zeros(5, dtype=F64)
    gradients = {"k1": zero, "k2": reverse, "k3": forward, "k1+": reverse, "k3+": reverse}
    for kind in KINDS:
        mean, gradient = expectation_and_gradient(p, lambda lp, k=kind: kl(lp, REF.unsqueeze(0), kind=k))
        assert_close(gradient, gradients[kind], atol=1e-12, rtol=0)
        if kind == "k2":
            assert (mean - value).abs() > 0.005
        else:
            assert_close(mean, value, atol=1e-12, rtol=0)


@pytest.mark.parametrize("kind", ["k1", "k3"])
def test_unbiased_kl_has_the_reverse_kl_and_its_gradient_under_any_sampler(kind):
    value, reverse = exact(forward=False)
    for mu in (MU, LOGITS.log_softmax(0)):
        mean, gradient = expectation_and_gradient(
            mu.exp(), lambda lp, m=mu: unbiased_kl(lp, REF.unsqueeze(0), m.unsqueeze(0), kind=kind)
        )
        assert_close(mean, value, atol=1e-12, rtol=0)
        assert_close(gradient, reverse, atol=1e-12, rtol=0)


def test_kl_far_apart_is_finite_and_k3_is_never_negative():
    lp = torch.tensor([[-500.0, 0.0, -3.0]])
    ref = torch.tensor([[0.0, -500.0, float("-inf")]])
    for kind in KINDS:
        assert kl(lp, ref, kind=kind).isfinite().all()
    assert_close(kl(lp, ref, kind="k1"), torch.tensor([[-20.0, 20.0, 20.0]]))
    assert kl(lp, ref, kind="k3").ge(0).all()


def test_kl_in_reward_puts_the_reward_on_the_last_token_and_the_penalty_on_all():
    lp = torch.tensor([[-1.0, -2.0, -1.0, float("nan")]], dtype=F64, requires_grad=True)
    ref = torch.tensor([[-1.5, -2.0, -0.5, 0.0]], dtype=F64)
    mask = torch.tensor([[True, True, True, False]])
    got = kl_in_reward(torch.tensor([2.0], dtype=F64), lp, ref, mask, beta=0.1)
    assert_close(got, torch.tensor([[-0.05, 0.0, 2.05, 0.0]], dtype=F64))
    assert not got.requires_grad


def test_kl_in_reward_gives_the_policy_gradient_of_the_kl():
    p, lp = LOGITS.softmax(0), LOGITS.log_softmax(0)
    logits = LOGITS.clone().requires_grad_(True)
    one = torch.ones(5, 1, dtype=torch.bool)
    reward = kl_in_reward(torch.zeros(5, dtype=F64), lp.unsqueeze(1), REF.unsqueeze(1), one, beta=1.0)
    surrogate = -(p * reward[:, 0] * logits.log_softmax(0)).sum()
    assert_close(torch.autograd.grad(surrogate, logits)[0], exact(forward=False)[1], atol=1e-12, rtol=0)


def test_kl_refuses_an_unknown_kind():
    with pytest.raises(ConfigError, match="unknown KL estimator 'k4'"):
        kl(torch.zeros(1, 1), torch.zeros(1, 1), kind="k4")
