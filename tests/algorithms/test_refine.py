"""LLMRefine: severity scores, acceptance, cooling and the loop."""

import math
import random

import pytest

from toolgym.algorithms.refine import (
    Draft,
    ErrorSpan,
    acceptance_probability,
    next_temperature,
    parse_severity,
    refine,
    severity_score,
)

MAJOR, MINOR = ErrorSpan(severity="major"), ErrorSpan(severity="minor")


def draft(score):
    return Draft(text=f"text of {score}", feedback=(), score=score)


def test_severity_score_worked_values():
    assert severity_score([MINOR, MAJOR, MINOR]) == -7.0
    assert repr(severity_score([])) == "0.0"
    assert severity_score([MAJOR] * 9) == -25.0
    assert severity_score([MINOR] * 5 + [MAJOR]) == -9.0  # the worst five
    assert severity_score([MAJOR] * 9, max_errors=None) == -45.0


def test_parse_severity_reads_absent_fields_and_both_names():
    text = """Error type 1: Mistranslation
    Error location 1: the cat
    Major/minor: Major
    error TYPE 2: omission
    severity: this is a minor error"""
    assert parse_severity(text) == [
        ErrorSpan(severity="major", type="Mistranslation", location="the cat"),
        ErrorSpan(severity="minor", type="omission"),
    ]


def test_parse_severity_says_none_where_it_cannot_read():
    assert parse_severity("The translation is fine I guess") is None
    assert parse_severity("Error type 1: omission") is None
    assert parse_severity("Error type 1: omission\nMajor/minor: Major/minor") is None
    assert parse_severity("") is None
    assert parse_severity("There are no errors.") == []


def test_acceptance_probability_worked_values():
    assert acceptance_probability(-5, -1, temperature=1.0, n=6) == pytest.approx(0.513417, abs=5e-7)
    assert acceptance_probability(-5, -1, temperature=0.9, n=6) == pytest.approx(0.476761, abs=5e-7)
    assert acceptance_probability(-1, -5, temperature=1.0, n=6) == 1.0
    assert acceptance_probability(-3, -3, temperature=1.0, n=6) == 1.0


def test_acceptance_probability_at_zero_temperature_is_not_worse():
    assert acceptance_probability(-2, -1, temperature=0.0) == 0.0
    assert acceptance_probability(-1, -1, temperature=0.0) == 1.0
    assert acceptance_probability(-1, -2, temperature=0.0) == 1.0
    assert acceptance_probability(-2, -1, temperature=5e-324) == 0.0  # n T underflows nowhere near a division by zero


@pytest.mark.parametrize(
    "options",
    [
        {"new": math.nan, "old": 0, "temperature": 1},
        {"new": 0, "old": math.inf, "temperature": 1},
        {"new": 0, "old": 0, "temperature": -1},
        {"new": 0, "old": 0, "temperature": 1, "n": 0},
    ],
)
def test_acceptance_probability_refuses_bad_arguments(options):
    with pytest.raises(ValueError, match="acceptance_probability got"):
        acceptance_probability(**options)


def test_next_temperature_cools_geometrically():
    temperatures = [1.0]
    for _ in range(3):
        temperatures.append(next_temperature(temperatures[-1], cooling=0.1))
    assert temperatures == pytest.approx([1, 0.9, 0.81, 0.729], abs=1e-12)
    assert next_temperature(1.0, cooling=1.0) == 0.0
    assert next_temperature(1.0, cooling=7.0) == 0.0
    assert next_temperature(0.0) == 0.0
    with pytest.raises(ValueError, match="next_temperature"):
        next_temperature(-1.0)


def scripted(scores):
    remaining = iter(scores)
    return lambda state: draft(next(remaining))


def test_refine_uphill_never_descends_and_always_takes_all():
    scores = [-3.0, -9.0, -3.0, -1.0]
    uphill = refine(draft(-5.0), scripted(scores), strategy="greedy_uphill", n=4)
    assert uphill.scores == (-5.0, -3.0, -3.0, -3.0, -1.0)
    assert uphill.accepted == (True, False, False, True)  # an equal score is not uphill
    every = refine(draft(-5.0), scripted(scores), strategy="always", n=4)
    assert every.scores == (-5.0, *scores)
    assert every.final.score == -1.0


def test_refine_returns_the_last_state_and_the_best_seen():
    trace = refine(draft(-5.0), scripted([-1.0, -7.0]), strategy="always", n=2)
    assert (trace.final.score, trace.best.score) == (-7.0, -1.0)


def test_refine_at_the_temperature_limits_is_always_or_not_worse():
    scores = [-9.0, -20.0, -3.0, -3.0]
    hot = refine(draft(-5.0), scripted(scores), n=4, temperature=1e18, cooling=0.0)
    assert hot.scores == (-5.0, *scores)
    cold = refine(draft(-5.0), scripted(scores), n=4, temperature=0.0)
    assert cold.accepted == (False, False, True, True)


def test_refine_cools_down_from_step_to_step():
    # each candidate is worse by 1: p = exp(-1 / (3 T)) is 0.72, 0.51 and 0.26 at T = 1, 1/2 and 1/4
    rng = random.Random()
    rng.random = lambda: 0.3
    trace = refine(draft(0.0), scripted([-1.0, -2.0, -3.0]), n=3, temperature=1.0, cooling=0.5, perfect=None, rng=rng)
    assert trace.accepted == (True, True, False)


def test_refine_stops_when_nothing_is_left_to_refine():
    trace = refine(draft(-5.0), scripted([0.0]), n=6)
    assert trace.accepted == (True,)
    assert refine(draft(0.0), scripted([]), n=6).accepted == ()
    assert refine(draft(0.0), scripted([-1.0]), n=1, strategy="always", perfect=None).accepted == (True,)


def test_refine_keeps_a_rejected_state_and_its_feedback():
    first = Draft(text="a", feedback=(MAJOR,), score=-5.0)
    seen = []

    def improve(state):
        seen.append(state)
        return None if len(seen) == 1 else draft(-100.0)

    trace = refine(first, improve, n=3, temperature=0.0)
    assert seen == [first] * 3
    assert trace.final is first
    assert trace.accepted == (False, False, False)


def test_refine_accepts_with_the_stated_frequency():
    n, p = 20_000, math.exp(-4)
    rng = random.Random(7)
    taken = sum(refine(draft(-1.0), lambda state: draft(-5.0), n=1, rng=rng).accepted[0] for _ in range(n))
    assert abs(taken / n - p) < 3 * math.sqrt(p * (1 - p) / n)
