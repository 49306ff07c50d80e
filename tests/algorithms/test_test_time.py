"""Best-of-n, votes, pass@k and OSCA: worked values, identities and properties."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolgym.algorithms.test_time import (
    _fill,
    _moves,
    best_of_n,
    majority_vote,
    osca_allocate,
    osca_estimate,
    osca_value,
    pass_at_k,
)

SEED_P = np.array([[0.1, 0.01], [0.01, 0.1]])


def test_best_of_n_takes_the_first_of_equal_scores():
    assert best_of_n([1.0, 3.0, 3.0, 2.0]) == 1
    assert best_of_n([0.5] * 4) == 0
    assert best_of_n([7.0]) == 0


def test_best_of_n_ranks_nan_below_minus_infinity():
    assert best_of_n([math.nan, -math.inf, math.nan]) == 1
    assert best_of_n([math.nan, math.nan]) == 0


def test_best_of_n_refuses_no_scores():
    with pytest.raises(ValueError, match="no scores"):
        best_of_n([])


def test_best_of_n_has_the_distribution_of_a_maximum():
    """All 3^4 draws of four independent scores: P(max <= x) = F(x)^4."""
    probability = {0.0: 0.5, 1.0: 0.3, 2.0: 0.2}
    reached = dict.fromkeys(probability, 0.0)
    for draw in itertools.product(probability, repeat=4):
        reached[draw[best_of_n(draw)]] += math.prod(probability[x] for x in draw)
    assert reached[0.0] == pytest.approx(0.5**4, abs=1e-12)
    assert reached[0.0] + reached[1.0] == pytest.approx(0.8**4, abs=1e-12)


def test_majority_vote_ignores_abstentions_and_breaks_ties_by_first_occurrence():
    assert majority_vote(["b", None, "a", "a", "b"]) == "b"
    assert majority_vote([None, None]) is None
    assert majority_vote([]) is None
    assert majority_vote([" 7", "7 ", "8"]) == " 7"


def test_majority_vote_merges_only_what_the_normaliser_merges():
    answers = ["1/2", "0.5", "3", "3"]
    assert majority_vote(answers) == "3"
    value = {"1/2": "0.5"}
    assert majority_vote([*answers, "0.5"], normalise=lambda a: value.get(a, a)) == "1/2"


def test_majority_vote_with_weights_sums_them():
    assert majority_vote(["a", "b", "b"], weights=[5.0, 2.0, 2.0]) == "a"
    assert majority_vote(["a", "b", "b"], weights=[3.0, 2.0, 2.0]) == "b"


@pytest.mark.parametrize(("weights", "message"), [([1.0], "1 weights for 2"), ([1.0, math.inf], "index 1")])
def test_majority_vote_refuses_bad_weights(weights, message):
    with pytest.raises(ValueError, match=message):
        majority_vote(["a", "b"], weights=weights)


@given(st.permutations(["a"] * 3 + ["b"] * 2 + [None]))
def test_majority_vote_without_a_tie_is_blind_to_order(answers):
    assert majority_vote(answers) == "a"


def test_pass_at_k_worked_values():
    # 1 - C(7,5)/C(10,5) = 1 - 21/252
    assert pass_at_k(10, 3, 5) == pytest.approx(1 - 21 / 252, abs=1e-12)
    assert pass_at_k(10, 3, 1) == pytest.approx(0.3, abs=1e-12)
    assert pass_at_k(10, 6, 5) == 1.0
    assert pass_at_k(10, 0, 5) == 0.0
    assert pass_at_k(4, 2, 0) == 0.0


@pytest.mark.parametrize("arguments", [(4, 5, 1), (4, -1, 1), (4, 1, 5), (4, 1, -1)])
def test_pass_at_k_refuses_impossible_counts(arguments):
    with pytest.raises(ValueError, match="pass_at_k got"):
        pass_at_k(*arguments)


@given(st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(0, n))))
def test_pass_at_k_equals_the_binomials_and_grows(ncK):
    n, c, k = ncK
    exact = 1 - math.comb(n - c, k) / math.comb(n, k)
    assert pass_at_k(n, c, k) == pytest.approx(exact, abs=1e-12)
    if k < n:
        assert pass_at_k(n, c, k + 1) >= pass_at_k(n, c, k) - 1e-12


def test_osca_value_of_the_two_problem_example():
    values = [osca_value(SEED_P, np.array([i, 10 - i])) for i in range(11)]
    expected = [0.37347, 0.39714, 0.41534, 0.42822, 0.43590, 0.43845]
    assert values[:6] == pytest.approx(expected, abs=5e-6)
    assert values == pytest.approx(values[::-1], abs=1e-12)
    assert values[0] == pytest.approx(1 - (0.9**10 + 0.99**10) / 2, abs=1e-12)


def test_osca_value_of_certain_success_and_of_nothing():
    assert osca_value(np.array([[1.0], [0.0]]), np.array([0, 3])) == 0.0
    assert osca_value(np.array([[1.0], [0.0]]), np.array([1, 3])) == 1.0
    assert osca_value(SEED_P, np.array([0, 0])) == 0.0
    assert osca_value(SEED_P.tolist(), [5, 5]) == osca_value(SEED_P, np.array([5, 5]))


@pytest.mark.parametrize("p", [[[1.5]], [[-0.1]], [[math.nan]]])
def test_osca_value_refuses_what_is_no_probability(p):
    with pytest.raises(ValueError, match="success probabilities"):
        osca_value(np.array(p), np.array([1]))


@pytest.mark.parametrize("allocation", [[1], [1, -1]])
def test_osca_value_refuses_a_bad_allocation(allocation):
    with pytest.raises(ValueError, match="allocation"):
        osca_value(SEED_P, np.array(allocation))


def test_osca_moves_stay_within_the_budget():
    costs = np.array([1.0, 2.0])
    assert _moves(np.array([1, 0]), costs, 3.0) == [(-1, 0), (-1, 1), (0, 1)]
    assert _moves(np.array([1, 1]), costs, 3.0) == [(1, 0)]
    assert _fill(np.zeros(2, np.int64), costs, 5.0, min).tolist() == [5, 0]
    assert _fill(np.zeros(2, np.int64), costs, 5.0, max).tolist() == [1, 2]


def test_osca_allocate_finds_the_mixed_optimum():
    found = osca_allocate(SEED_P, 10)
    assert found.counts.tolist() == [5, 5]
    assert found.value == pytest.approx(0.438450, abs=5e-7)
    assert found.value == found.trace[-1]
    assert list(found.trace) == sorted(found.trace)


def _brute_force(p, budget):
    size = p.shape[0]
    every = (np.array(a) for a in itertools.product(range(budget + 1), repeat=size) if sum(a) == budget)
    return max(osca_value(p, a) for a in every)


@pytest.mark.parametrize("seed", range(8))
def test_osca_allocate_matches_brute_force_on_small_cases(seed):
    p = np.random.default_rng(seed).beta(0.4, 1.5, size=(3, 4))
    found = osca_allocate(p, 5, seed=seed)
    assert found.counts.sum() == 5
    assert found.value == pytest.approx(_brute_force(p, 5), abs=1e-12)
    assert found.value == pytest.approx(osca_value(p, found.counts), abs=1e-12)


def test_osca_allocate_is_monotone_beats_pure_strategies_and_ignores_dominated_ones():
    p = np.random.default_rng(1).uniform(0.05, 0.4, size=(3, 5))
    p[2] = 0.5 * np.minimum(p[0], p[1])  # dominated
    values = []
    for budget in range(6):
        found = osca_allocate(p, budget)
        pure = [osca_value(p, np.eye(3, dtype=int)[i] * budget) for i in range(3)]
        assert found.value >= max(pure)
        assert found.counts[2] == 0
        values.append(found.value)
    assert values[0] == 0.0
    assert values == sorted(values)


def test_osca_allocate_climbs_by_swaps_where_greed_is_not_enough():
    p = np.array([[0.3, 0.9, 0.0], [0.9, 0.1, 0.2], [0.7, 0.2, 0.3]])
    found = osca_allocate(p, 3, restarts=0)
    assert found.counts.tolist() == [1, 0, 2]
    assert found.trace == pytest.approx((0.782333, 0.794333), abs=5e-7)  # greedy, then one move
    assert found.value == pytest.approx(_brute_force(p, 3), abs=1e-12)


def test_osca_allocate_gives_a_single_configuration_everything():
    assert osca_allocate(np.array([[0.3, 0.2]]), 7).counts.tolist() == [7]


def test_osca_allocate_is_deterministic_under_its_seed():
    p = np.random.default_rng(2).uniform(size=(4, 6)) * 0.2
    assert osca_allocate(p, 8, seed=3).counts.tolist() == osca_allocate(p, 8, seed=3).counts.tolist()


def test_osca_allocate_respects_costs():
    # Equal success, but the first costs three times as much: 6 units buy two of it or six of the other.
    found = osca_allocate(np.array([[0.3], [0.3]]), 6, costs=[3.0, 1.0])
    assert found.counts.tolist() == [0, 6]
    # A better one that pays for itself: 1 - 0.1^2 = 0.99 beats 1 - 0.7^6 = 0.88.
    assert osca_allocate(np.array([[0.9], [0.3]]), 6, costs=[3.0, 1.0]).counts.tolist() == [2, 0]


@pytest.mark.parametrize("options", [{"budget": -1}, {"budget": math.inf}, {"budget": 2, "costs": [0.0, 1.0]}])
def test_osca_allocate_refuses_bad_budgets(options):
    with pytest.raises(ValueError, match="osca_allocate got"):
        osca_allocate(SEED_P, **options)


def test_osca_estimate_averages_problems():
    n, c = np.full((1, 2), 4), np.array([[4, 1]])
    assert osca_estimate(n, c, np.array([1])) == pytest.approx((1 + 0.25) / 2, abs=1e-12)


def test_osca_estimate_is_unbiased():
    """All outcomes of 4 runs of two configurations on one problem: the mean estimate is the true value."""
    p = np.array([[0.3], [0.6]])
    allocation = np.array([2, 1])
    expected = 0.0
    for c0, c1 in itertools.product(range(5), repeat=2):
        weight = math.prod(math.comb(4, c) * q**c * (1 - q) ** (4 - c) for c, q in ((c0, p[0, 0]), (c1, p[1, 0])))
        expected += weight * osca_estimate(np.full((2, 1), 4), np.array([[c0], [c1]]), allocation)
    assert expected == pytest.approx(osca_value(p, allocation), abs=1e-12)
