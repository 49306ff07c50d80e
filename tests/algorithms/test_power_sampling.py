"""Power sampling: the worked two-token model, its exact transition matrix, and the chain."""

import itertools
import math
import random

import numpy as np
import pytest

from toolgym.algorithms.power_sampling import Continuation, mh_log_ratio, power_sample

A, B = 0, 1
SEQUENCES = [(A, A), (A, B), (B, A), (B, B)]


def next_probability(prefix):
    """p(a) = .6, p(a|a) = .5, p(a|b) = .9."""
    p = {(): 0.6, (A,): 0.5, (B,): 0.9}[prefix]
    return np.array([p, 1 - p])


def tempered(prefix, tau):
    p = next_probability(prefix) ** (1 / tau)
    return p / p.sum()


def probability(sequence, tau=1.0, start=0):
    return math.prod(tempered(sequence[:t], tau)[sequence[t]] for t in range(start, len(sequence)))


def target(alpha):
    p = np.array([probability(s) ** alpha for s in SEQUENCES])
    return p / p.sum()


def log_ratio(new, current, cut, tau, alpha=4.0):
    logs = [math.log(probability(s, t, cut)) for t in (1.0, tau) for s in (new, current)]
    return mh_log_ratio(*logs, alpha=alpha)


def test_power_target_and_low_temperature_disagree_on_the_mode():
    assert target(4.0) == pytest.approx([0.245464, 0.245464, 0.508994, 0.000078], abs=5e-7)
    low = [probability(s, 0.25) for s in SEQUENCES]
    assert low == pytest.approx([0.41753, 0.41753, 0.16492, 0.00003], abs=5e-6)


def test_mh_log_ratio_worked_value():
    assert math.exp(log_ratio((A, A), (B, A), 0, 1.0)) == pytest.approx(0.578704, abs=5e-7)


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_mh_log_ratio_is_antisymmetric_and_zero_for_equal_proposals(tau):
    for new, current in itertools.product(SEQUENCES, repeat=2):
        forth, back = log_ratio(new, current, 0, tau), log_ratio(current, new, 0, tau)
        assert forth == pytest.approx(-back, abs=1e-12)
        if new == current:
            assert forth == 0.0


def test_mh_log_ratio_with_alpha_one_and_the_model_as_proposal_is_zero():
    for new, current in itertools.product(SEQUENCES, repeat=2):
        assert log_ratio(new, current, 0, 1.0, alpha=1.0) == pytest.approx(0.0, abs=1e-12)


def test_mh_log_ratio_rejects_where_the_reverse_move_is_impossible():
    assert mh_log_ratio(-1.0, -1.0, -1.0, -math.inf, alpha=4.0) == -math.inf
    assert mh_log_ratio(-math.inf, -1.0, -math.inf, -1.0, alpha=4.0) == -math.inf


def test_mh_log_ratio_length_term():
    assert mh_log_ratio(-1.0, -1.0, -1.0, -1.0, alpha=2.0, lengths=(4, 2)) == pytest.approx(math.log(0.5), abs=1e-12)


@pytest.mark.parametrize("options", [{"alpha": 0.0}, {"alpha": 2.0, "lengths": (0, 1)}])
def test_mh_log_ratio_refuses_bad_arguments(options):
    with pytest.raises(ValueError, match="mh_log_ratio got"):
        mh_log_ratio(-1.0, -1.0, -1.0, -1.0, **options)


def transitions(tau):
    """The chain's exact 4x4 transition matrix at alpha 4: m uniform over the two positions."""
    kernel = np.zeros((4, 4))
    for (i, current), cut in itertools.product(enumerate(SEQUENCES), (0, 1)):
        for j, new in enumerate(SEQUENCES):
            if new[:cut] == current[:cut]:
                accept = math.exp(min(0.0, log_ratio(new, current, cut, tau)))
                kernel[i, j] += 0.5 * probability(new, tau, cut) * accept
                kernel[i, i] += 0.5 * probability(new, tau, cut) * (1 - accept)
    return kernel


@pytest.mark.parametrize("tau", [0.25, 1.0])
def test_power_target_is_stationary_under_the_exact_transition_matrix(tau):
    kernel = transitions(tau)
    assert kernel.sum(axis=1) == pytest.approx(np.ones(4), abs=1e-12)
    assert target(4.0) @ kernel == pytest.approx(target(4.0), abs=1e-12)
    assert (np.eye(4)[3] @ np.linalg.matrix_power(kernel, 400)) == pytest.approx(target(4.0), abs=1e-6)


def proposer(rng, tau, length=2):
    def propose(prefix, n):
        tokens, logp, logq = list(prefix), [], []
        for _ in range(n):
            q = tempered(tuple(tokens), tau)
            token = int(rng.random() >= q[0])
            logp.append(math.log(next_probability(tuple(tokens))[token]))
            logq.append(math.log(q[token]))
            tokens.append(token)
        new = tuple(tokens[len(prefix) :])
        return Continuation(tokens=new, logp=tuple(logp), logq=tuple(logq), ended=len(tokens) == length)

    return propose


@pytest.mark.slow
def test_power_sample_walks_the_exact_chain():
    """Start at low temperature, twelve steps: the distribution is start @ K^12, well on its way to the target."""
    rng = random.Random(1)
    propose = proposer(rng, 0.25)
    n = 3000
    counts = dict.fromkeys(SEQUENCES, 0)
    for _ in range(n):
        counts[power_sample(propose, alpha=4.0, mcmc_steps=12, block=2, max_new=2, rng=rng).sample.tokens] += 1
    start = np.array([probability(s, 0.25) for s in SEQUENCES])
    exact = start @ np.linalg.matrix_power(transitions(0.25), 12)
    assert np.array(list(counts.values())) / n == pytest.approx(exact, abs=0.025)
    assert abs(exact[2] - target(4.0)[2]) < 0.05 < abs(start[2] - target(4.0)[2])


def variable_length(rng):
    """Token 1 ends the sequence: lengths 1 (p .5), 2 ending (.25), 2 cut off (.25); sampled from p itself."""

    def propose(prefix, n):
        tokens = []
        while len(tokens) < n and 1 not in tokens:
            tokens.append(rng.randrange(2))
        logs = (math.log(0.5),) * len(tokens)
        return Continuation(tokens=tuple(tokens), logp=logs, logq=logs, ended=1 in tokens)

    return propose


@pytest.mark.slow
@pytest.mark.parametrize("correct", [True, False])
def test_power_sample_needs_the_length_correction_for_variable_lengths(correct):
    """With alpha 1 it must return p itself: P(length 1) = 1/2. Without the correction it does not."""
    rng = random.Random(2)
    propose = variable_length(rng)
    n = 6000
    short = sum(
        len(
            power_sample(
                propose, alpha=1.0, mcmc_steps=4, block=2, max_new=2, length_correction=correct, rng=rng
            ).sample.tokens
        )
        == 1
        for _ in range(n)
    )
    assert (abs(short / n - 0.5) < 0.02) is correct


def test_power_sample_grows_block_by_block_and_counts():
    seen = []
    inner = proposer(random.Random(3), 1.0, length=99)

    def propose(prefix, n):
        seen.append((len(prefix), n))
        return Continuation(tokens=(0,) * n, logp=(-1.0,) * n, logq=(-1.0,) * n)

    assert inner is not propose
    result = power_sample(propose, mcmc_steps=2, block=3, max_new=7, rng=random.Random(0))
    assert len(result.sample.tokens) == 7
    assert [n for start, n in seen if (start, n) in {(0, 3), (3, 3), (6, 1)}][:1] == [3]
    assert result.proposals == 6
    assert result.accepted == 6  # equal sequences are always accepted
    assert result.calls == 9 == len(seen)


def test_power_sample_stops_at_an_end():
    propose = lambda prefix, n: Continuation(tokens=(7,), logp=(-1.0,), logq=(-1.0,), ended=True)  # noqa: E731
    result = power_sample(propose, mcmc_steps=1, block=3, max_new=9)
    assert result.sample.tokens == (7,)
    assert result.sample.ended


def test_power_sample_max_swap_only_climbs():
    scores = iter([-3.0, -4.0, -1.0, -1.0])

    def propose(prefix, n):
        return Continuation(tokens=(0,), logp=(next(scores),), logq=(-1.0,))

    result = power_sample(propose, mcmc_steps=3, block=1, max_new=1, max_swap=True)
    assert (result.accepted, result.sample.logp) == (1, (-1.0,))


@pytest.mark.parametrize(
    "answer",
    [
        Continuation(),
        Continuation(tokens=(0,), logp=(0.0,), logq=(0.0,)),
        Continuation(tokens=(0, 0, 0), logp=(0.0,) * 3, logq=(0.0,) * 3),
        Continuation(tokens=(0, 0), logp=(0.0,), logq=(0.0,) * 2),
    ],
)
def test_power_sample_refuses_an_answer_of_another_length(answer):
    with pytest.raises(ValueError, match="asked for 2 tokens"):
        power_sample(lambda prefix, n: answer, block=2, max_new=2)


def test_power_sample_refuses_bad_sizes():
    with pytest.raises(ValueError, match="block=0"):
        power_sample(lambda prefix, n: Continuation(), block=0)
