"""The space of texts: what an environment's actions and observations are in the Gymnasium view."""

from typing import Any

import gymnasium
import numpy as np

SAMPLE_WORDS = ("yes", "no", "0", "1", "2", "42", "unknown", "hello", "the", "answer", "is", "not", "sure", "?")


class TextSpace(gymnasium.Space[str]):
    """All Unicode texts of at most ``max_length`` characters.

    Not a subclass of `gymnasium.spaces.Text`: that one has a character set, and vector environments would put it into
    shared memory, where text outside the set changes without a word. ``sample`` draws a few harmless words.
    """

    def __init__(self, max_length: int = 1_000_000, *, seed: int | np.random.Generator | None = None) -> None:
        if max_length < 1:
            raise ValueError(f"max_length must be at least 1, got {max_length}")
        super().__init__(shape=None, dtype=None, seed=seed)
        self.max_length = max_length

    @property
    def is_np_flattenable(self) -> bool:
        """False: a text has no fixed size."""
        return False

    def sample(self, mask: Any | None = None, probability: Any | None = None) -> str:
        """A few words, at random. ``mask`` and ``probability`` mean nothing here and must be None."""
        if mask is not None or probability is not None:
            raise ValueError("TextSpace.sample takes neither mask nor probability")
        count = int(self.np_random.integers(1, 5))
        words = [SAMPLE_WORDS[int(i)] for i in self.np_random.integers(0, len(SAMPLE_WORDS), count)]
        return " ".join(words)[: self.max_length]

    def contains(self, x: Any) -> bool:
        """Whether ``x`` is a ``str`` that is short enough."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"TextSpace({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, TextSpace) and other.max_length == self.max_length
