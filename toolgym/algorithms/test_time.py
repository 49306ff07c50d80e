"""Test-time compute: picking one of several samples, votes, pass@k and OSCA's allocation of a sample budget.

Python numbers and numpy, no torch: evaluation uses these where no training extra is installed.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from toolgym.algorithms.registry import card

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@card(family="test_time", certainty="certain")
def best_of_n(scores: Sequence[float]) -> int:
    """Return the index of the highest score.

        i* = argmax_i s_i

    Args:    scores: n numbers; nan ranks below everything (a verifier that gave no verdict), ``-inf`` included.
    Returns: the first index on ties; 0 if every score is nan.
    Raises:  ValueError: no scores.
    Source:  common practice.
    """
    if not scores:
        raise ValueError("best_of_n got no scores; expected at least one")
    return max(
        range(len(scores)), key=lambda i: (not math.isnan(scores[i]), 0.0 if math.isnan(scores[i]) else scores[i])
    )


@card(family="test_time", certainty="certain")
def majority_vote(
    answers: Sequence[str | None],
    *,
    normalise: Callable[[str], str] = str.strip,
    weights: Sequence[float] | None = None,
) -> str | None:
    """Return the answer with most votes, as its first voter wrote it.

        a* = argmax_a sum_i w_i 1[norm(a_i) = a]

    Args:
      answers: n answers; None is an abstention and is not counted.
      normalise: answers with equal images are one candidate ("1/2" and "0.5" merge only if it says so).
      weights: n finite weights; None is 1 each. Self-consistency is sampling with reasoning, then this vote.
    Returns: None if everybody abstained; on ties the answer that occurred first.
    Raises:  ValueError: ``weights`` of another length, or one that is not finite (the message names the index).
    Source:  self-consistency (arXiv:2203.11171).
    Differs: a tie goes to the answer that occurred first, so the result does not depend on hashing.
    """
    if weights is not None and len(weights) != len(answers):
        raise ValueError(f"majority_vote got {len(weights)} weights for {len(answers)} answers")
    totals: dict[str, float] = {}
    first: dict[str, str] = {}
    for i, answer in enumerate(answers):
        if answer is None:
            continue
        weight = 1.0 if weights is None else weights[i]
        if not math.isfinite(weight):
            raise ValueError(f"majority_vote got weight {weight} at index {i}; expected a finite number")
        key = normalise(answer)
        totals[key] = totals.get(key, 0.0) + weight
        first.setdefault(key, answer)
    return first[max(totals, key=lambda key: totals[key])] if totals else None  # max keeps the first of equals


@card(family="test_time", certainty="certain")
def pass_at_k(n: int, c: int, k: int) -> float:
    """Estimate without bias the chance that k draws hold at least one correct answer.

        pass@k = 1 - C(n-c, k) / C(n, k) = 1 - prod_{i=n-c+1..n} (1 - k/i)

    Args:    n: samples taken, k <= n. c: how many were correct, 0..n. k: draws, >= 0.
    Returns: float in [0, 1]; exactly 1 if n - c < k; 0 for k = 0.
    Raises:  ValueError: c outside [0, n] or k outside [0, n].
    Source:  HumanEval (arXiv:2107.03374).
    """
    if not 0 <= c <= n or not 0 <= k <= n:
        raise ValueError(f"pass_at_k got n={n}, c={c}, k={k}; expected 0 <= c <= n and 0 <= k <= n")
    if n - c < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(n - c + 1, n + 1))


def _log_failures(p: Floats) -> Floats:
    """log(1 - p), -inf where p = 1; refuses what is not a probability."""
    if p.ndim != 2 or not bool(np.all((p >= 0) & (p <= 1))):
        raise ValueError(f"expected success probabilities [configurations, problems] in [0, 1], got shape {p.shape}")
    with np.errstate(divide="ignore"):
        return np.asarray(np.log1p(-p), np.float64)


def _value(log_failures: Floats, allocation: Ints) -> float:
    # 0 * -inf counts as 0: a configuration without samples fails whatever its success rate.
    used = allocation > 0
    failures: Floats = np.exp((allocation[used, None] * log_failures[used]).sum(axis=0))
    return 1.0 - float(failures.mean())


@card(family="test_time", certainty="certain")
def osca_value(p: Floats, allocation: Ints) -> float:
    """Expected share of problems for which at least one sample is correct.

        f(pi) = (1/D) sum_j ( 1 - prod_i (1 - p_ij)^pi_i )

    Args:    p: float [H, D], success probability of configuration i on problem j. allocation: int [H], samples >= 0.
    Returns: float in [0, 1].
    Raises:  ValueError: a value of p outside [0, 1], or another number of configurations.
    Edge:    p = 1 with no samples contributes nothing; computed as a sum of log1p.
    Source:  OSCA (arXiv:2410.22480), official repository.
    """
    log_failures = _log_failures(np.asarray(p, np.float64))
    counts = np.asarray(allocation, np.int64)
    if counts.shape != log_failures.shape[:1] or bool(np.any(counts < 0)):
        raise ValueError(f"osca_value got allocation {counts.tolist()} for {log_failures.shape[0]} configurations")
    return _value(log_failures, counts)


@card(family="test_time", certainty="certain")
def osca_estimate(n: Ints, c: Ints, allocation: Ints) -> float:
    """Estimate an allocation's value from counted runs, without bias.

        mean_j 1 - prod_i (1 - pass@pi_i(n_ij, c_ij))

    Args:    n, c: int [H, D], runs and correct runs of configuration i on problem j. allocation: int [H], pi_i <= n_ij.
    Returns: float in [0, 1]; unbiased because the configurations' runs are independent.
    Raises:  ValueError: from `pass_at_k`, where counts do not allow it.
    Source:  OSCA (arXiv:2410.22480), official repository.
    """
    runs, correct = np.asarray(n, np.int64), np.asarray(c, np.int64)
    problems = range(runs.shape[1])
    fails = [
        math.prod(1.0 - pass_at_k(int(runs[i, j]), int(correct[i, j]), int(k)) for i, k in enumerate(allocation))
        for j in problems
    ]
    return 1.0 - sum(fails) / len(fails)


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """A sample allocation. ``Allocation(counts=array([5, 5]), value=0.43845, trace=(0.37, 0.40, ...))``.

    ``trace`` holds the value after each move of the climb that won.
    """

    counts: Ints
    value: float
    trace: tuple[float, ...] = field(default=())


def _moves(counts: Ints, costs: Floats, budget: float) -> list[tuple[int, int]]:
    """Moves (from, to) of one slot that stay within the budget; from = -1 adds a slot."""
    left = budget - float(counts @ costs)
    n = len(counts)
    adds = [(-1, j) for j in range(n) if costs[j] <= left + 1e-12]
    swaps = [
        (i, j) for i in range(n) if counts[i] > 0 for j in range(n) if i != j and costs[j] - costs[i] <= left + 1e-12
    ]
    return adds + swaps


def _moved(counts: Ints, move: tuple[int, int]) -> Ints:
    result = counts.copy()
    if move[0] >= 0:
        result[move[0]] -= 1
    result[move[1]] += 1
    return result


def _climb(log_failures: Floats, start: Ints, costs: Floats, budget: float) -> Allocation:
    """Take the best single-slot move for as long as it strictly improves."""
    counts, value = start, _value(log_failures, start)
    trace = [value]
    while True:
        candidates = [_moved(counts, move) for move in _moves(counts, costs, budget)]
        values = [_value(log_failures, candidate) for candidate in candidates]
        if not values or max(values) <= value + 1e-15:  # below rounding: equal moves would cycle
            return Allocation(counts=counts, value=value, trace=tuple(trace))
        best = int(np.argmax(values))
        counts, value = candidates[best], values[best]
        trace.append(value)


def _fill(counts: Ints, costs: Floats, budget: float, choose: Callable[[list[int]], int]) -> Ints:
    """Spend the budget slot by slot on the configuration that ``choose`` picks among the affordable ones."""
    counts = counts.copy()
    while affordable := [j for i, j in _moves(counts, costs, budget) if i < 0]:
        counts[choose(affordable)] += 1
    return counts


@card(family="test_time", certainty="certain")
def osca_allocate(
    p: Floats, budget: float, *, costs: Sequence[float] | None = None, restarts: int = 16, seed: int = 0
) -> Allocation:
    """Search the allocation with the highest value by hill climbing over single-slot moves.

        max_pi f(pi)  subject to  sum_i cost_i pi_i <= C

    Args:
      p: float [H, D], success probability of configuration i on problem j (correct / runs).
      budget: C, samples (or cost units) per problem, finite and >= 0.
      costs: H positive costs per sample; None is 1 each.
      restarts: random starts beside the greedy one and every pure strategy.
      seed: of those starts; equal seeds, equal result.
    Returns: the best local optimum found, at least as good as every pure strategy; ties go to the earlier start.
    Raises:  ValueError: p outside [0, 1], a budget < 0 or not finite, a cost <= 0.
    Source:  OSCA (arXiv:2410.22480), official repository.
    Differs: a greedy start and 16 random restarts beside the paper's one random climb, because a single-move optimum
             over integers need not be global; optional costs are derived.
    """
    log_failures = _log_failures(np.asarray(p, np.float64))
    size = log_failures.shape[0]
    prices = np.ones(size) if costs is None else np.asarray(costs, np.float64)
    if prices.shape != (size,) or not bool(np.all(prices > 0)) or not (math.isfinite(budget) and budget >= 0):
        raise ValueError(f"osca_allocate got budget {budget} and costs {prices.tolist()} for {size} configurations")
    rng, empty = random.Random(seed), np.zeros(size, np.int64)

    def greedy(counts: Ints) -> Ints:
        while affordable := [j for i, j in _moves(counts, prices, budget) if i < 0]:
            gains = [
                (_value(log_failures, _moved(counts, (-1, j))) - _value(log_failures, counts)) / prices[j]
                for j in affordable
            ]
            counts = _moved(counts, (-1, affordable[int(np.argmax(gains))]))
        return counts

    starts = [greedy(empty)]
    starts += [_fill(empty, prices, budget, lambda js, i=i: i if i in js else js[0]) for i in range(size)]
    starts += [_fill(empty, prices, budget, rng.choice) for _ in range(restarts)]
    return max((_climb(log_failures, start, prices, budget) for start in starts), key=lambda found: found.value)
