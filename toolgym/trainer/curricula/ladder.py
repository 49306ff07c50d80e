"""Cog-DRIFT's ladder: problems too hard to learn from are first played in easier forms of themselves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from toolgym.algorithms.curricula import upgraded
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task


class VariantLadder(Curriculum):
    """Each problem at its current rung; up to the next one when its mean reward passes ``threshold``, never down.

    ``ladders`` maps a problem to its variants, easiest first (four choices, ten choices, fill in, open); a missing form
    is simply not in the list. ``window`` groups must have been seen on a rung: with one, a k-choice question is
    passed by luck at a rate that grows with 1/k.
    """

    def __init__(
        self, ladders: Mapping[str, Sequence[Task]], *, seed: int = 0, threshold: float = 0.5, window: int = 1
    ) -> None:
        if not ladders or any(not variants for variants in ladders.values()) or window < 1:
            raise ConfigError(f"got {len(ladders)} problems and window={window}; every problem needs a variant")
        self._ladders = {name: list(variants) for name, variants in ladders.items()}
        self._problem_of = {task.id: name for name, variants in self._ladders.items() for task in variants}
        self._order = Shuffled([variants[0] for variants in self._ladders.values()], seed=seed)
        self._threshold = threshold
        self._window = window
        self.rungs: dict[str, int] = dict.fromkeys(self._ladders, 0)
        self._history: dict[str, list[float]] = {}

    def current(self, problem: str) -> Task:
        """The variant that a problem is played in now."""
        return self._ladders[problem][self.rungs[problem]]

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` problems of the epoch, each in its current variant."""
        return [self.current(self._problem_of[task.id]) for task in self._order.next_tasks(n)]

    def update(self, results: Sequence[TaskResult]) -> None:
        """Climb. Results of a rung that was already left (stale groups) are ignored."""
        for result in results:
            problem = self._problem_of.get(result.task_id)
            if problem is None or not result.rewards or result.task_id != self.current(problem).id:
                continue
            mean = sum(result.rewards) / len(result.rewards)
            history = [*self._history.get(problem, []), mean][-self._window :]
            self._history[problem] = history
            if len(history) == self._window:
                self._climb(problem, sum(history) / len(history))

    def _climb(self, problem: str, mean: float) -> None:
        rung, last = self.rungs[problem], len(self._ladders[problem]) - 1
        values = torch.tensor([mean], dtype=torch.float64)
        after = int(upgraded(torch.tensor([rung]), values, torch.tensor([last]), threshold=self._threshold)[0])
        if after != rung:
            self.rungs[problem] = after
            self._history[problem] = []

    def state_dict(self) -> dict[str, Any]:
        """Rungs, histories and order."""
        history = {name: list(values) for name, values in self._history.items()}
        return {"order": self._order.state_dict(), "rungs": dict(self.rungs), "history": history}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._order.load_state_dict(state["order"])
        self.rungs = {name: int(state["rungs"][name]) for name in self._ladders}
        self._history = {name: [float(x) for x in values] for name, values in state["history"].items()}


def check_choices(options: Sequence[str], *, label: int, gold: str, n: int) -> None:
    """Refuse a choice variant that is not sound: ``n`` different options, the labelled one and no other being the gold.

    Raises:  ValueError: what is wrong with it.
    """
    if len(options) != n or len(set(options)) != n:
        raise ValueError(f"got {len(set(options))} different options of {len(options)}, expected {n}")
    if not 0 <= label < n or options[label] != gold:
        raise ValueError(f"option {label} is not the gold answer {gold!r}")


def check_cloze(cloze: str, *, gold: str) -> None:
    """Refuse a fill-in variant that hides nothing, shows everything, or contradicts the gold answer.

    ``_`` stands for a hidden character: ``check_cloze("4_", gold="42")``.

    Raises:  ValueError: what is wrong with it.
    """
    if len(cloze) != len(gold) or any(c not in ("_", g) for c, g in zip(cloze, gold, strict=False)):
        raise ValueError(f"cloze {cloze!r} does not agree with the gold answer {gold!r}")
    if cloze == gold:
        raise ValueError(f"cloze {cloze!r} hides nothing")
