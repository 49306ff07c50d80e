"""Failed episodes: counted by kind, and the end of a run when they are most."""

import pytest

from tests.trainer.builders import group
from toolgym.errors import TrainingError
from toolgym.trainer.failures import FailureConfig, FailureGuard
from toolgym.trainer.metrics import rollout_metrics
from toolgym.trainer.staleness import Staleness


def test_guard_counts_by_kind_and_stays_calm_below_the_rate() -> None:
    guard = FailureGuard(FailureConfig(max_rate=0.5, window=8, min_episodes=4))
    guard.check(group([1.0, None, 0.0, None]).trajectories)
    assert guard.metrics() == {"failed_sandbox": 2.0, "failed_share": 0.5}


def test_guard_stops_the_run_when_most_episodes_fail() -> None:
    guard = FailureGuard(FailureConfig(max_rate=0.5, window=8, min_episodes=4))
    with pytest.raises(TrainingError, match=r"3 of the last 4 episodes failed \(3 sandbox.*sandbox: gone.*--resume"):
        guard.check(group([1.0, None, None, None]).trajectories)


def test_guard_gives_no_verdict_on_few_episodes() -> None:
    guard = FailureGuard(FailureConfig(min_episodes=10))
    guard.check(group([None] * 9).trajectories)


def test_guard_forgets_what_left_its_window() -> None:
    guard = FailureGuard(FailureConfig(max_rate=0.5, window=4, min_episodes=4))
    guard.check(group([None, None]).trajectories)
    guard.check(group([1.0] * 4).trajectories)
    guard.check(group([None, None]).trajectories)
    assert guard.metrics()["failed_share"] == 0.5


def test_metrics_never_average_failures_in() -> None:
    metrics = rollout_metrics(
        [group([1.0, 0.0, None, None]), group([1.0, 1.0], name="g000001")], Staleness(limit=0, per_step=2)
    )
    assert metrics["success"] == 0.75
    assert metrics["episodes"] == 4.0
    assert metrics["failed_episodes"] == 2.0
    assert metrics["informative_groups"] == 0.5
