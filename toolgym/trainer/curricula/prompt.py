"""Prompt curriculum learning (PCL): predict each task's success from its prompt, train on those near one half."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from toolgym.algorithms.curricula import select_intermediate
from toolgym.errors import ConfigError
from toolgym.trainer.curricula.base import Curriculum, TaskResult
from toolgym.trainer.curricula.shuffled import Shuffled
from toolgym.types import Task

Features = Callable[[Task], npt.NDArray[np.float64]]
DECAY = 0.9  # of the squared gradients: the policy moves, so old ones must be forgotten
HIDDEN_KEYS = frozenset(
    {"answer", "answers", "expected", "gold", "solution", "tests"}
)  # the prompt does not show these


def hashed_words(task: Task, *, size: int = 256) -> npt.NDArray[np.float64]:
    """Which words, numbers and digit counts a task's data has, hashed into ``size`` places; float64 [size], length 1.

    Keys that hold answers are left out: success is to be predicted from the prompt.
    """
    out = np.zeros(size)
    for word in _words({key: value for key, value in task.data.items() if key not in HIDDEN_KEYS}):
        out[zlib.crc32(word.encode()) % size] += 1.0
    return out / max(float(np.linalg.norm(out)), 1e-12)


def _words(value: Any) -> list[str]:
    if isinstance(value, Mapping):
        return [f"{key}:{word}" for key, item in value.items() for word in _words(item)]
    if isinstance(value, list | tuple):
        return [word for item in value for word in _words(item)]
    text = str(value).lower()
    digits = [f"#{len(d)}" for d in re.findall(r"\d+", text)]  # "37" and "58" are alike, "37" and "3758" are not
    return re.findall(r"\w+", text) + digits


class ValueModel:
    """Success predicted as a logistic function of a task's features; squared error, RMSProp.

        V(x) = sigmoid(w . f(x) + b);   loss = sum_i (V(x_i) - mean_j r_ij)^2

    In the paper V is a copy of the policy with a scalar head.
    """

    def __init__(self, size: int, *, lr: float = 0.1) -> None:
        self._weights = np.zeros(size + 1)
        self._squares = np.full(size + 1, 1e-3)
        self._lr = lr

    def predict(self, features: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Success in (0, 1): float64 [N] from [N, size]."""
        return 1.0 / (1.0 + np.exp(-(features @ self._weights[:-1] + self._weights[-1])))

    def fit(self, features: npt.NDArray[np.float64], observed: npt.NDArray[np.float64], *, epochs: int = 8) -> None:
        """Some gradient steps on these results: [N, size], [N]."""
        x = np.concatenate([features, np.ones((len(features), 1))], 1)
        for _ in range(epochs):
            v = self.predict(features)
            gradient = (2 * (v - observed) * v * (1 - v)) @ x
            self._squares = DECAY * self._squares + (1 - DECAY) * gradient**2
            self._weights -= self._lr * gradient / np.sqrt(self._squares)

    def state_dict(self) -> dict[str, list[float]]:
        """Weights and accumulated squares."""
        return {"weights": [float(x) for x in self._weights], "squares": [float(x) for x in self._squares]}

    def load_state_dict(self, state: Mapping[str, Sequence[float]]) -> None:
        """Go on from `state_dict`."""
        self._weights = np.array(state["weights"], dtype=np.float64)
        self._squares = np.array(state["squares"], dtype=np.float64)


class PromptCurriculum(Curriculum):
    """Of every ``oversample`` x ``batch`` candidates the ``batch`` with predicted success nearest to ``tau``.

    Nothing is rolled out for those that are left. The prediction lags by one batch: it was fitted to the results of
    earlier policies, those of the last ``memory`` batches.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        *,
        seed: int = 0,
        tau: float = 0.5,
        oversample: int = 4,
        batch: int = 16,
        memory: int = 4,
        features: Features = hashed_words,
    ) -> None:
        if oversample < 1 or batch < 1:
            raise ConfigError(f"got oversample={oversample}, batch={batch}, expected both >= 1")
        self._tasks = {task.id: task for task in tasks}
        self._order = Shuffled(tasks, seed=seed)
        self._tau = tau
        self._candidates = oversample * batch
        self._batch = batch
        self._features = features
        self._model = ValueModel(len(features(tasks[0])))
        self._queue: list[str] = []
        self._recent: list[tuple[str, float]] = []  # the results of the last ``memory`` batches
        self._memory = memory * batch

    def predict(self, tasks: Sequence[Task]) -> list[float]:
        """Predicted success of each task."""
        return [float(v) for v in self._model.predict(np.stack([self._features(t) for t in tasks]))]

    def next_tasks(self, n: int) -> list[Task]:
        """The next ``n`` selected tasks; candidates are drawn and judged whenever the selection is used up."""
        chosen: list[Task] = []
        while len(chosen) < n:
            if not self._queue:
                candidates = self._order.next_tasks(self._candidates)
                values = torch.tensor(self.predict(candidates), dtype=torch.float64)
                picked = select_intermediate(values, self._batch, tau=self._tau)
                self._queue = [candidates[int(i)].id for i in picked]
            chosen.append(self._tasks[self._queue.pop(0)])
        return chosen

    def update(self, results: Sequence[TaskResult]) -> None:
        """Fit the prediction to the observed mean rewards (success in [0, 1])."""
        known = [
            (r.task_id, sum(r.rewards) / len(r.rewards)) for r in results if r.task_id in self._tasks and r.rewards
        ]
        self._recent = [*self._recent, *known][-self._memory :]
        if self._recent:
            features = np.stack([self._features(self._tasks[i]) for i, _ in self._recent])
            self._model.fit(features, np.array([mean for _, mean in self._recent]))

    def state_dict(self) -> dict[str, Any]:
        """Order, selection and the value model."""
        return {
            "order": self._order.state_dict(),
            "queue": list(self._queue),
            "recent": [[i, mean] for i, mean in self._recent],
            "model": self._model.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        self._order.load_state_dict(state["order"])
        self._queue = list(state["queue"])
        self._recent = [(str(i), float(mean)) for i, mean in state["recent"]]
        self._model.load_state_dict(state["model"])
