"""Which estimators are unbiased, exactly; and docs/algorithms/bias-variance.md shows these very numbers."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from toolgym.algorithms.corrections import truncated_is

from . import exact

DOC = Path(__file__).resolve().parents[2] / "docs" / "algorithms" / "bias-variance.md"
ROWS = exact.table()


def row(group, name):
    (found,) = [r for r in ROWS if r.group == group and r.name == name]
    return found


def stale(name):
    return row("one trajectory, stale sampler", name)


def test_page_shows_the_recomputed_table():
    shown = DOC.read_text(encoding="utf-8").partition("<!-- table -->\n")[2]
    assert shown.strip() == exact.markdown().strip(), "run: python -m tests.algorithms.exact"


def test_on_policy_every_policy_gradient_estimator_is_unbiased():
    for r in ROWS:
        if r.group == "one trajectory, on policy":
            assert r.bias < 1e-10, r.name


def test_group_baselines_on_policy():
    assert row("group of 3, on policy", "no baseline").bias < 1e-10
    assert row("group of 3, on policy", "rloo").bias < 1e-10
    mean = row("group of 3, on policy", "group mean (group_advantage, none)")
    assert mean.bias == pytest.approx(1 / 3)  # the right direction, (G - 1) / G of its size
    assert mean.cosine == pytest.approx(1.0)
    assert row("group of 3, on policy", "group mean and std (group_advantage, group)").cosine < 1 - 1e-3
    assert row("group of 3, on policy", "rloo").variance < row("group of 3, on policy", "no baseline").variance


def test_ctpo_is_unbiased_with_step_advantages_and_biased_with_one_outcome_advantage():
    assert stale("prefix ratio (ctpo, unclipped), per-step advantage").bias < 1e-10
    assert stale("token ratio (ppo_clip, unclipped), per-step advantage").bias > 0.05
    assert stale("prefix ratio (ctpo, unclipped), outcome advantage").bias > 0.05
    assert stale("sequence ratio, exact").bias < 1e-10
    prefix = stale("prefix ratio (ctpo, unclipped), per-step advantage")
    assert prefix.variance < stale("sequence ratio, exact, per-step advantage").variance


def test_ctpo_outcome_bias_is_all_in_the_first_step():
    estimators = exact.policy_gradient_estimators()
    truth = exact.true_gradient()
    prefix, _ = exact.moments(estimators["prefix ratio (ctpo, unclipped), outcome advantage"], exact.STALE)
    token, _ = exact.moments(estimators["token ratio (ppo_clip, unclipped), outcome advantage"], exact.STALE)
    root = slice(0, exact.A)
    assert_close(prefix[exact.A :], truth[exact.A :], atol=1e-12, rtol=0)
    assert_close(prefix[root], token[root], atol=1e-12, rtol=0)
    assert (prefix[root] - truth[root]).norm() > 0.001


def test_truncation_bias_shrinks_as_the_cap_grows_and_variance_rises():
    truth = exact.true_gradient()
    caps = (0.8, 1.0, 1.2, 1.5, 2.0, 3.0, 1e9)
    rows = [
        exact.compare(
            "", str(c), exact.moments(exact.weighted(truncated_is, level="sequence", cap=c), exact.STALE), truth
        )
        for c in caps
    ]
    biases, variances = [r.bias for r in rows], [r.variance for r in rows]
    assert biases == sorted(biases, reverse=True)
    assert biases[-1] < 1e-10
    assert variances == sorted(variances)


def test_decoupled_ppo_at_the_proximal_policy_is_token_truncation():
    assert stale("decoupled PPO, truncated at 1.2").bias == pytest.approx(stale("token TIS, cap 1.2").bias)


def test_k1_as_a_loss_has_no_gradient_and_k3_the_wrong_one():
    on = "distillation, on policy"
    theta = exact.THETA
    mean, variance = exact.moments(exact.distillation_estimators()["k1 as a loss"], theta)
    assert_close(mean, torch.zeros_like(mean), atol=1e-12, rtol=0)
    assert variance > 0.1
    for name in ("k2 as a loss", "k3+ as a loss", "unbiased_kl, k3", "opd_loss, recomputed signal"):
        assert row(on, name).bias < 1e-10, name
    assert row(on, "k3 as a loss").bias > 0.1


def test_stale_distillation_needs_the_recomputed_signal():
    group = "distillation, stale second step"
    assert row(group, "opd_loss, recomputed signal").bias < 1e-10
    assert row(group, "unbiased_kl, k3").bias < 1e-10
    assert row(group, "opd_loss, stored signal").bias > 0.05
    assert row("distillation, on policy", "opd_loss, stored signal").bias < 1e-10
