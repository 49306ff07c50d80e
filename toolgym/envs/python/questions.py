"""Arithmetic and list questions, and the Python program that answers each.

A program is its question with few words changed, so that a small policy can learn to write it by copying; the answer
is what it prints. Which split a question belongs to is decided by the hash of its content: its kind and its numbers,
in an order that does not matter where it does not matter to the answer, so "what is 37 * 4 - 12?" and "what is 4 * 37 -
12?" are one question.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

from toolgym.types import JSON, content_hash

COUNTS = {"train": 4096, "validation": 512, "test": 512}


@dataclass(frozen=True, slots=True)
class Question:
    """One question, the program that answers it, and the answer. ``key`` is its content."""

    text: str
    code: str
    answer: str
    key: JSON


# For each kind: question, program, value. The first two numbers may change places. Within a question no two numbers
# stand between the same signs: a small policy copies by finding what followed the sign that it has just written.
KINDS: dict[str, tuple[str, str, Callable[[int, int, int], int]]] = {
    "mul_add": ("what is {} * {} + {}?", "print({} * {} + {})", lambda a, b, c: a * b + c),
    "mul_sub": ("what is {} * {} - {}?", "print({} * {} - {})", lambda a, b, c: a * b - c),
    "sum_mul": ("what is sum of [{}, {}] * {}?", "print(sum([{}, {}]) * {})", lambda a, b, c: (a + b) * c),
    "sum_add": ("what is sum of [{}, {}] + {}?", "print(sum([{}, {}]) + {})", lambda a, b, c: a + b + c),
}


def split_of(key: JSON) -> str:
    """The only split that may hold this content: 8 in 10 go to training, 1 to validation, 1 to the test."""
    bucket = int(content_hash(key), 16) % 10
    return {8: "validation", 9: "test"}.get(bucket, "train")


@lru_cache(maxsize=4)
def questions(split: str) -> tuple[Question, ...]:
    """The questions of a split, all of different content, always the same (0.1 s the first time for training)."""
    kinds = list(KINDS)
    rng = random.Random(f"python-v0 {split}")
    seen: set[str] = set()
    found: list[Question] = []
    while len(found) < COUNTS[split]:
        kind = rng.choice(kinds)
        a, b, c = rng.sample(range(2, 100), 3)  # all different: else copying what follows a number is ambiguous
        key = [kind, *sorted((a, b)), c]
        if split_of(key) != split or str(key) in seen:
            continue
        seen.add(str(key))
        text, code, value = KINDS[kind]
        found.append(Question(text.format(a, b, c), code.format(a, b, c), str(value(a, b, c)), key))
    return tuple(found)
