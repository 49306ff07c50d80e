"""Does an answer match the expected one? Pure functions of text: no model text makes them raise or hang."""

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Sequence
from fractions import Fraction

MAX_NUMBER_CHARS = 200  # of text read as a number: beyond that it is no answer
MAX_EXPONENT = 400  # "1e999999999" must not become a number of a billion digits

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
_DIGITS = r"(?:[0-9]{1,3}(?:[,_ ][0-9]{3})+|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{{1,4}})?"
_PLAIN = re.compile(rf"(?P<sign>[+-]?)(?P<currency>[$€£]?)(?P<sign2>[+-]?)(?P<number>{_DECIMAL})(?P<percent>\s?%?)")
_FRACTION = re.compile(rf"(?P<sign>[+-]?)(?:(?P<whole>{_DIGITS})\s)?(?P<top>{_DIGITS})\s?/\s?(?P<bottom>{_DIGITS})")


def normalize(text: str) -> str:
    """Compatibility-normalised, case-folded, single-spaced, without closing punctuation.

    Example: ``normalize("  The  Blue Whale. ")`` is ``"the blue whale"``.
    """
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".!?,;: ")


def exact_match(expected: str | Sequence[str], answer: str) -> float:
    """1.0 when the answer is the expected text, or one of several, after `normalize`; else 0.0.

    Edge: an empty answer never matches, so an expected text that normalises to nothing cannot be met.
    """
    wanted = [expected] if isinstance(expected, str) else expected
    got = normalize(answer)
    return float(bool(got) and any(normalize(text) == got for text in wanted))


def parse_number(text: str) -> Fraction | None:
    """The exact value of a text that is one number and nothing else, or None.

    Reads ``-12``, ``1,000`` and ``1_000`` and ``1 000``, ``.5``, ``1e3``, ``3/4``, ``1 1/2``, ``50%`` (one half),
    ``$5``, the Unicode minus and compatibility digits, and one closing full stop. Not read: ``inf``, ``nan``,
    ``1/0``, hexadecimal, units.
    """
    text = unicodedata.normalize("NFKC", text).replace("\u2212", "-").strip()
    if len(text) > MAX_NUMBER_CHARS:
        return None
    text = text[:-1] if text.endswith(".") else text
    if match := _PLAIN.fullmatch(text):
        return _plain(match)
    if match := _FRACTION.fullmatch(text):
        top, bottom = (int(_undivided(match[name])) for name in ("top", "bottom"))
        if bottom == 0:
            return None
        value = Fraction(top, bottom) + int(_undivided(match["whole"] or "0"))
        return -value if match["sign"] == "-" else value
    return None


def _plain(match: re.Match[str]) -> Fraction | None:
    if match["sign"] and match["sign2"]:
        return None
    number = _undivided(match["number"])
    _, _, exponent = number.lower().partition("e")
    if exponent and abs(int(exponent)) > MAX_EXPONENT:
        return None
    value = Fraction(number)
    value = value / 100 if "%" in match["percent"] else value
    return -value if "-" in (match["sign"], match["sign2"]) else value


def _undivided(digits: str) -> str:
    return digits.replace(",", "").replace("_", "").replace(" ", "")


def numeric_match(expected: str | float, answer: str, *, abs_tol: float = 1e-9, rel_tol: float = 0.0) -> float:
    """1.0 when the answer is one number (`parse_number`) near the expected one, else 0.0.

        |answer - expected| <= max(abs_tol, rel_tol * |expected|)       # in exact arithmetic

    Raises: ValueError: ``expected`` is no finite number (the task is broken, not the answer).
    """
    want = parse_number(expected if isinstance(expected, str) else repr(expected))
    if want is None:
        raise ValueError(f"the expected answer {expected!r} is not a finite number")
    got = parse_number(answer)
    if got is None:
        return 0.0
    return float(abs(got - want) <= max(Fraction(abs_tol), Fraction(rel_tol) * abs(want)))


def f1_match(expected: str | Sequence[str], answer: str) -> float:
    """Harmonic mean of the precision and recall of the answer's words, best over several expected texts, in [0, 1].

        F1 = 2 * |common words| / (|expected words| + |answer words|)   # multisets

    Words after lower-casing, without punctuation and English articles, as in SQuAD's evaluation (arXiv:1606.05250).
    Edge: both without words -> 1.0; one without -> 0.0.
    """
    wanted = [expected] if isinstance(expected, str) else expected
    return max((_f1(_words(text), _words(answer)) for text in wanted), default=0.0)


def _words(text: str) -> list[str]:
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def _f1(expected: list[str], answer: list[str]) -> float:
    if not expected and not answer:
        return 1.0
    common = sum((Counter(expected) & Counter(answer)).values())
    return 2 * common / (len(expected) + len(answer))
