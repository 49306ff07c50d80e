"""Failed episodes are counted by kind; when most of the recent ones failed, the run stops with a clear error."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

from pydantic import Field

from toolgym.config import Config
from toolgym.errors import TrainingError
from toolgym.types import Failed, Trajectory


class FailureConfig(Config):
    """When too many episodes fail."""

    max_rate: float = Field(default=0.5, gt=0, le=1)
    """share of the newest ``window`` episodes"""
    window: int = Field(default=128, ge=1)
    min_episodes: int = Field(default=32, ge=1)
    """no verdict before so many episodes have ended"""


class FailureGuard:
    """Counts outcomes. ``check`` is called with every finished trajectory."""

    def __init__(self, config: FailureConfig) -> None:
        self.config = config
        self.by_kind: Counter[str] = Counter()
        self.episodes = 0
        self._recent: deque[bool] = deque(maxlen=config.window)

    def check(self, trajectories: Iterable[Trajectory]) -> None:
        """Count them. Raises TrainingError: more than ``max_rate`` of the newest ``window`` episodes failed."""
        last: Failed | None = None
        for t in trajectories:
            failed = isinstance(t.outcome, Failed)
            self.episodes += 1
            self._recent.append(failed)
            if isinstance(t.outcome, Failed):
                self.by_kind[t.outcome.kind] += 1
                last = t.outcome
        failures = sum(self._recent)
        if len(self._recent) >= self.config.min_episodes and failures > self.config.max_rate * len(self._recent):
            kinds = ", ".join(f"{n} {kind}" for kind, n in self.by_kind.most_common())
            detail = f"; the last one: {last.kind}: {last.detail}" if last else ""
            raise TrainingError(
                f"{failures} of the last {len(self._recent)} episodes failed ({kinds} in all), more than "
                f"failures.max_rate = {self.config.max_rate:g} allows{detail}. Mend the cause, then go on with --resume"
            )

    def metrics(self) -> dict[str, float]:
        """``failed_<kind>`` counts so far, and ``failed_share`` of the newest episodes."""
        share = sum(self._recent) / max(1, len(self._recent))
        return {f"failed_{kind}": float(n) for kind, n in sorted(self.by_kind.items())} | {"failed_share": share}
