"""LLMRefine: annealed acceptance of refinements, and the severity score that drives it.

Python numbers only, no torch: refinement runs at test time. The loop itself asks for text, so it is written as a
generator without input or output (`refine_steps`): the caller answers each request, from sync or async code alike.
"""

import math
import random
import re
from collections.abc import Callable, Generator, Iterable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from toolgym.algorithms.registry import card

Strategy: TypeAlias = Literal["annealing", "always", "greedy_uphill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorSpan:
    """One annotated error. ``ErrorSpan(severity="major", type="mistranslation", location="the cat")``."""

    severity: Literal["major", "minor"]
    type: str = ""
    location: str = ""
    explanation: str = ""


@card(family="test_time", certainty="certain")
def severity_score(
    errors: Iterable[ErrorSpan], *, major: float = -5.0, minor: float = -1.0, max_errors: int | None = 5
) -> float:
    """Add up error severities.

        s = major * #major + minor * #minor          # over the worst max_errors errors

    Args:    errors: annotated errors; the worst ones count first. max_errors: None counts all.
    Returns: float <= 0 with the default weights; 0 for no errors, at least -25 with the default cap.
    Edge:    an unparsable annotation is None (see `parse_severity`), not an empty list: 0 would say "perfect".
    Source:  InstructScore (arXiv:2305.14282), official repository.
    """
    weights = sorted(major if error.severity == "major" else minor for error in errors)
    return float(sum(weights[:max_errors]))


_FIELD = re.compile(
    r"^\s*(?:error\s+)?(type|location|severity|major/minor|explanation)\s*(\d*)\s*[:：]\s*(.*?)\s*$", re.I
)
_NO_ERROR = re.compile(r"\bno[- ]errors?\b", re.I)


def _severity(value: str) -> Literal["major", "minor"] | None:
    words = re.findall(r"major|minor", value.lower())
    return ("major" if words[0] == "major" else "minor") if len(set(words)) == 1 else None


def parse_severity(text: str) -> list[ErrorSpan] | None:
    """Read error spans from ``Error type 1: ... / Error location 1: ... / Major/minor: ... / explanation: ...`` lines.

    Args:    text: one field a line, case-insensitive, numbers and the word "Error" optional; "severity" may stand for
             "Major/minor".
    Returns: the errors in order; [] only if the text says "no error(s)" and names none; None if it cannot be read
             (no field at all, or an error without a readable severity). Absent fields are "".
    Source:  InstructScore (arXiv:2305.14282), official repository.
    Differs: what cannot be read is None (invalid) instead of an empty list, which would score as perfect.
    """
    errors: list[dict[str, str]] = []
    for line in text.splitlines():
        found = _FIELD.match(line)
        if found is None:
            continue
        name = found.group(1).lower().replace("major/minor", "severity")
        if not errors or name in errors[-1]:  # a repeated field opens the next error
            errors.append({})
        errors[-1][name] = found.group(3)
    if not errors:
        return [] if _NO_ERROR.search(text) else None
    spans: list[ErrorSpan] = []
    for fields in errors:
        severity = _severity(fields.pop("severity", ""))
        if severity is None:
            return None
        spans.append(ErrorSpan(severity=severity, **fields))
    return spans


@card(family="test_time", certainty="certain")
def acceptance_probability(new: float, old: float, *, temperature: float, n: int = 6) -> float:
    """Metropolis acceptance of a candidate with score ``new`` over a state with score ``old``.

        p = min(1, exp((new - old) / (n * T)))

    Args:    new, old: finite scores, higher is better. temperature: T >= 0. n: number of iterations, >= 1
             (it is in the formula: for n = 6 the effective temperature is 6 T).
    Returns: float in [0, 1]; exactly 1 where new >= old; 0 for a worse candidate at n T = 0.
    Raises:  ValueError: T < 0, n < 1 or a score that is not finite.
    Source:  LLMRefine (arXiv:2311.09336).
    Differs: T = 0 is the limit (accept iff not worse) instead of a division by zero.
    """
    if not (math.isfinite(new) and math.isfinite(old)) or temperature < 0 or n < 1:
        raise ValueError(f"acceptance_probability got new={new}, old={old}, temperature={temperature}, n={n}")
    if new >= old:
        return 1.0
    scale = n * temperature
    return math.exp((new - old) / scale) if scale > 0 else 0.0


@card(family="test_time", certainty="certain")
def next_temperature(temperature: float, *, cooling: float = 0.1) -> float:
    """Cool by a constant factor.

        T_{i+1} = max(T_i - c T_i, 0), hence T_i = T_0 (1-c)^i for c in [0, 1]

    Args:    temperature: T >= 0. cooling: c >= 0; c >= 1 gives 0 at once.
    Raises:  ValueError: a negative argument.
    Source:  LLMRefine (arXiv:2311.09336).
    Differs: the default c = 0.1 is ours: the paper's value was not found.
    """
    if temperature < 0 or cooling < 0:
        raise ValueError(f"next_temperature got temperature={temperature}, cooling={cooling}; expected both >= 0")
    return max(temperature - cooling * temperature, 0.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """A text with its feedback (of any kind) and that feedback's score, higher is better.

    ``Draft(text="two apples", feedback=(ErrorSpan(severity="minor"),), score=-1.0)``.
    """

    text: str
    feedback: object
    score: float


@dataclass(frozen=True, slots=True, kw_only=True)
class RefineTrace:
    """What a refinement did. ``RefineTrace(final=..., best=..., scores=(-6.0, -1.0), accepted=(True,))``.

    ``scores`` is the state's score at the start and after each iteration; ``best`` the best-scored state seen.
    """

    final: Draft
    best: Draft
    scores: tuple[float, ...]
    accepted: tuple[bool, ...]


@card(family="test_time", certainty="secondary", parts=("acceptance_probability", "next_temperature"))
def refine_steps(
    draft: Draft,
    *,
    strategy: Strategy = "annealing",
    n: int = 6,
    temperature: float = 1.0,
    cooling: float = 0.1,
    perfect: float | None = 0.0,
    rng: random.Random | None = None,
) -> Generator[Draft, Draft | None, RefineTrace]:
    """Refine a draft up to n times: a generator that yields the draft to improve and is sent a candidate.

        y_i = c_i with probability p_acc(c_i, y_{i-1}; T_i), else y_{i-1};   T_{i+1} = max(T_i - c T_i, 0)

    Args:
      draft: the first draft with its feedback.
      strategy: ``annealing`` is `acceptance_probability`, ``always`` p = 1, ``greedy_uphill`` p = 1[s(c) > s(y)].
      n: iterations, >= 1.
      temperature: T_1.
      cooling: c of `next_temperature`.
      perfect: stop as soon as the state's score reaches it (no errors left); None never stops early.
      rng: of the acceptance draws; None is ``random.Random(0)``.
    Returns: by ``StopIteration.value`` (or ``yield from``) a `RefineTrace`.
    Raises:  ValueError: n < 1 or a negative temperature or cooling.
    Edge:    sent None (feedback on the candidate could not be read): the candidate is rejected. A rejected candidate
             leaves the state and its feedback as they are: the same text is never criticised twice.
    Example: ``trace = refine(draft, improve)`` drives it with a plain function.
    Source:  LLMRefine (arXiv:2311.09336), slides.
    Differs: T_1 = 1 and c = 0.1 are ours (the paper's values were not found); so are the early stop and ``best``.
    """
    rng = rng or random.Random(0)
    state = best = draft
    scores, accepted = [draft.score], list[bool]()
    for _ in range(n):
        if perfect is not None and state.score >= perfect:
            break
        candidate = yield state
        take = candidate is not None and rng.random() < _chance(strategy, candidate.score, state.score, temperature, n)
        if take:
            assert candidate is not None
            state = candidate
            best = max(best, state, key=lambda d: d.score)  # the earlier one on ties
        accepted.append(take)
        scores.append(state.score)
        temperature = next_temperature(temperature, cooling=cooling)
    return RefineTrace(final=state, best=best, scores=tuple(scores), accepted=tuple(accepted))


def _chance(strategy: Strategy, new: float, old: float, temperature: float, n: int) -> float:
    if strategy == "always":
        return 1.0
    if strategy == "greedy_uphill":
        return float(new > old)
    return acceptance_probability(new, old, temperature=temperature, n=n)


def refine(draft: Draft, improve: Callable[[Draft], Draft | None], **options: Any) -> RefineTrace:
    """Drive `refine_steps` (which takes the options) with a plain function that improves a draft."""
    steps = refine_steps(draft, **options)
    try:
        request = next(steps)
        while True:
            request = steps.send(improve(request))
    except StopIteration as stop:
        return stop.value
