"""The sampler: random numbers by position, the inverse of the CDF, filters, exact log-probabilities."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from toolgym.engines.base import Sampling
from toolgym.engines.sampling import SamplingTable, draw, invert, keep_top, uniforms


def draw_one(logits, u, **options):
    table = SamplingTable(1)
    table.set(0, Sampling(max_new_tokens=1, **options))
    tokens, logprobs = draw(
        torch.tensor([logits], dtype=torch.float32), np.array([u], dtype=np.float32), table, np.array([0])
    )
    return int(tokens[0]), float(logprobs[0])


def test_uniforms_depend_on_seed_and_position_only():
    whole = uniforms(7, 0, 100)
    assert np.array_equal(whole[40:60], uniforms(7, 40, 20))
    assert not np.array_equal(whole, uniforms(8, 0, 100))
    assert np.array_equal(uniforms(-1, 0, 3), uniforms(2**64 - 1, 0, 3))


def test_uniforms_are_uniform_and_uncorrelated():
    u = np.stack([uniforms(seed, 0, 1000) for seed in range(100)])
    assert 0 <= u.min() < u.max() < 1
    counts, _ = np.histogram(u, bins=20, range=(0, 1))
    chi2 = ((counts - 5000) ** 2 / 5000).sum()
    assert chi2 < 43.8  # 99.9 % quantile at 19 degrees of freedom
    for shifted in (u[:, 1:] * u[:, :-1], u[1:] * u[:-1]):  # neighbouring positions, neighbouring seeds
        assert abs(shifted.mean() - 0.25) < 0.004


def test_invert_literal():
    cdf = torch.tensor([[0.0, 0.25, 0.25, 0.75, 1.0]]).repeat(5, 1)
    u = torch.tensor([0.0, 0.2499, 0.25, 0.75, 0.9999])
    assert invert(cdf, u).tolist() == [1, 1, 3, 4, 4]


@settings(max_examples=60)
@given(
    st.lists(st.floats(0, 1, width=32), min_size=2, max_size=40).filter(lambda p: sum(p) > 1e-3),
    st.floats(0, 1, width=32, exclude_max=True),
)
def test_invert_never_gives_an_impossible_token(weights, u):
    probs = torch.tensor([weights])
    token = int(invert(torch.cumsum(probs, dim=-1), torch.tensor([u])))
    assert 0 <= token < len(weights)
    assert weights[token] > 0


def test_draw_logprob_is_of_the_tempered_distribution():
    # p = softmax([0, ln 3] / 0.5) = [1/10, 9/10]
    assert draw_one([0.0, math.log(3)], 0.05, temperature=0.5) == (0, pytest.approx(math.log(0.1), abs=1e-6))
    assert draw_one([0.0, math.log(3)], 0.15, temperature=0.5) == (1, pytest.approx(math.log(0.9), abs=1e-6))


def test_draw_greedy_ignores_temperature_and_filters():
    token, logprob = draw_one([0.0, math.log(3), -1.0], 0.01, temperature=0.0, top_k=1, top_p=0.1)
    assert token == 1
    assert logprob == pytest.approx(math.log(3 / (4 + math.exp(-1))), abs=1e-6)


def test_draw_filters_renormalise():
    logits = [math.log(p) for p in (0.1, 0.4, 0.3, 0.2)]
    assert draw_one(logits, 0.99, top_k=2) == (2, pytest.approx(math.log(3 / 7), abs=1e-6))
    assert draw_one(logits, 0.99, top_p=0.75) == (3, pytest.approx(math.log(2 / 9), abs=1e-6))
    assert draw_one(logits, 0.99, top_k=3, top_p=0.7) == (2, pytest.approx(math.log(3 / 7), abs=1e-6))
    assert draw_one(logits, 0.99, top_p=1e-6) == (1, 0.0)


def test_draw_keeps_parameters_of_rows_apart():
    table = SamplingTable(3)
    table.set(0, Sampling(max_new_tokens=1))
    table.set(1, Sampling(max_new_tokens=1, temperature=0.0))
    table.set(2, Sampling(max_new_tokens=1, top_k=1))
    logits = torch.tensor([[0.0, 1.0]]).repeat(3, 1)
    tokens, logprobs = draw(logits, np.zeros(3, dtype=np.float32), table, np.array([2, 0, 1]))
    assert tokens.tolist() == [1, 0, 1]
    log_p = torch.log_softmax(torch.tensor([0.0, 1.0]), -1)
    assert logprobs == pytest.approx([0.0, float(log_p[0]), float(log_p[1])], abs=1e-6)


def test_draw_frequencies_follow_the_distribution():
    torch.manual_seed(0)
    logits = torch.randn(1, 50)
    n = 20_000
    table = SamplingTable(1)
    table.set(0, Sampling(max_new_tokens=1))
    u = uniforms(3, 0, n)
    tokens, _ = draw(logits.repeat(n, 1), u, table, np.zeros(n, dtype=np.int64))
    expected = torch.softmax(logits[0], -1).numpy() * n
    chi2 = ((np.bincount(tokens, minlength=50) - expected) ** 2 / expected).sum()
    assert chi2 < 85.4  # 99.9 % quantile at 49 degrees of freedom


def test_keep_top_ties_go_to_the_lower_token():
    kept = keep_top(torch.tensor([[1.0, 1.0, 1.0]]), torch.tensor([2]), torch.tensor([1.0]))
    assert kept.isinf().tolist() == [[False, False, True]]


def test_table_grows_for_more_stop_tokens_and_swaps():
    table = SamplingTable(2)
    table.set(0, Sampling(max_new_tokens=1, stop_tokens=(5, 6, 7), temperature=0.5))
    table.set(1, Sampling(max_new_tokens=1, stop_tokens=(8,)))
    table.swap(0, 1)
    assert table.stops.tolist() == [[8, -1, -1], [5, 6, 7]]
    assert table.inverse_temperature.tolist() == [1.0, 2.0]
