"""Matching answers: values worked by hand, then properties over any text."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolgym.rewards import exact_match, f1_match, numeric_match, parse_number

NUMBERS = {
    "136": 136,
    " 136 \n": 136,
    "136.": 136,
    "+5": 5,
    "-5": -5,
    "\u22125": -5,  # the Unicode minus
    "-0": 0,
    "-0.0": 0,
    "007": 7,
    "1,000": 1000,
    "1_000,000": 1_000_000,
    "1 000": 1000,
    "1.50": Fraction(3, 2),
    ".5": Fraction(1, 2),
    "5.": 5,
    "1e3": 1000,
    "2.5E-1": Fraction(1, 4),
    "3/4": Fraction(3, 4),
    "-3 / 4": Fraction(-3, 4),
    "1 1/2": Fraction(3, 2),
    "50%": Fraction(1, 2),
    "12.5 %": Fraction(1, 8),
    "$1,234.50": Fraction(2469, 2),
    "-$5": -5,
    "$-5": -5,
    "١٢": None,  # Arabic digits are no ASCII digits after compatibility normalisation
    "１２": 12,  # full-width ones are
    "": None,
    " ": None,
    ".": None,
    "-": None,
    "nan": None,
    "inf": None,
    "-Infinity": None,
    "1/0": None,
    "1,00": None,
    "10,0000": None,
    "0x10": None,
    "5 km": None,
    "1e": None,
    "1e401": None,
    "1e99999999999999": None,
    "9" * 201: None,
    "1 2": None,
    "--5": None,
    "-$-5": None,
    "the answer is 5": None,
}


@pytest.mark.parametrize(("text", "value"), NUMBERS.items())
def test_parse_number_reads_numbers_and_nothing_else(text: str, value: object):
    assert parse_number(text) == value


@given(st.text(max_size=60))
def test_parse_number_is_total(text: str):
    value = parse_number(text)
    assert value is None or isinstance(value, Fraction)


@given(st.text(alphabet="0123456789+-.,_ eE/%$", max_size=30))
def test_parse_number_is_total_on_text_like_numbers(text: str):
    value = parse_number(text)
    assert value is None or abs(value) < 10**450


@given(st.integers(-(10**12), 10**12))
def test_parse_number_inverts_every_way_of_writing_an_integer(number: int):
    assert parse_number(str(number)) == parse_number(f"{number:,}") == parse_number(f"{number:_}") == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_parse_number_inverts_repr_of_floats(number: float):
    value = parse_number(repr(number))
    assert value is not None
    assert float(value) == number


@pytest.mark.parametrize(
    ("expected", "answer", "score"),
    [
        ("136", "136", 1.0),
        ("136", "136.0", 1.0),
        (136, "1.36e2", 1.0),
        ("0.3", "0.30000000000000004", 1.0),
        ("1/3", "0.3333333333", 1.0),
        ("1/3", "0.33", 0.0),
        ("10000000001", "10000000000", 0.0),  # the absolute tolerance keeps large integers apart
        ("0", "-0", 1.0),
        ("136", "137", 0.0),
        ("136", "", 0.0),
        ("136", "136 or 137", 0.0),
        ("136", "nan", 0.0),
    ],
)
def test_numeric_match_literal(expected: str | float, answer: str, score: float):
    assert numeric_match(expected, answer) == score


def test_numeric_match_relative_tolerance_is_of_the_expected_value():
    assert numeric_match("200", "202", rel_tol=0.01) == 1.0
    assert numeric_match("200", "202.1", rel_tol=0.01) == 0.0
    assert numeric_match("-200", "-202", rel_tol=0.01) == 1.0


@pytest.mark.parametrize("expected", ["nan", "inf", "", "x", float("nan"), float("inf")])
def test_numeric_match_refuses_an_expected_value_that_is_no_number(expected: str | float):
    with pytest.raises(ValueError, match="not a finite number"):
        numeric_match(expected, "1")


@pytest.mark.parametrize(
    ("expected", "answer", "score"),
    [
        ("Tesh", "tesh.", 1.0),
        ("The Blue  Whale", " the blue whale!", 1.0),
        ("Tesh", "Tesh Moru", 0.0),
        ("Tesh", "", 0.0),
        ("", "", 0.0),
        ("Straße", "STRASSE", 1.0),
        (["Tesh", "Teshland"], "teshland", 1.0),
        ([], "x", 0.0),
    ],
)
def test_exact_match_literal(expected: str | list[str], answer: str, score: float):
    assert exact_match(expected, answer) == score


@pytest.mark.parametrize(
    ("expected", "answer", "score"),
    [
        ("red green", "green red", 1.0),
        ("red green", "green", 2 / 3),  # precision 1, recall 1/2
        ("red red", "red", 2 / 3),  # words are counted
        ("the red", "a red!", 1.0),
        ("red", "blue", 0.0),
        ("red", "", 0.0),
        ("", "", 1.0),
        (["red", "blue sky"], "blue", 2 / 3),
    ],
)
def test_f1_match_literal(expected: str | list[str], answer: str, score: float):
    assert f1_match(expected, answer) == pytest.approx(score)


@given(st.text(max_size=40), st.text(max_size=40))
def test_f1_match_is_symmetric_and_bounded(a: str, b: str):
    assert f1_match(a, b) == f1_match(b, a)
    assert 0.0 <= f1_match(a, b) <= 1.0
