"""Scores and their intervals, the report's files."""

import math
from pathlib import Path

import pytest

from tests.trainer.builders import group
from toolgym.store import RunStore
from toolgym.trainer import report
from toolgym.trainer.evaluate import score_of


def scores(values: list[float | None]) -> object:
    return score_of(group(values).trajectories)


def test_score_of_binary_outcomes_has_wilsons_interval() -> None:
    # 8 of 10: centre (0.8 + 0.19207) / 1.38415 = 0.71674, half 1.96 / 1.38415 sqrt(0.016 + 0.009604) = 0.22657
    score = score_of(group([1.0] * 8 + [0.0] * 2).trajectories)
    assert score.mean == 0.8
    assert score.ci95 == pytest.approx((0.4902, 0.9433), abs=1e-4)


def test_score_of_all_right_keeps_an_interval() -> None:
    low, high = score_of(group([1.0] * 20).trajectories).ci95
    assert high == 1.0
    assert 0.8 < low < 0.9


def test_score_of_graded_outcomes_has_the_normal_interval() -> None:
    # 0, 0.5, 1: mean 0.5, sample std 0.5, half 1.96 · 0.5 / sqrt(3) = 0.5658, cut to [0, 1]
    assert score_of(group([0.0, 0.5, 1.0]).trajectories).ci95 == (0.0, 1.0)
    score = score_of(group([0.0, 0.25, 0.5, 0.75, 1.0] * 4).trajectories)
    half = 1.959964 * math.sqrt(0.125 * 20 / 19) / math.sqrt(20)
    assert score.ci95 == pytest.approx((0.5 - half, 0.5 + half))


def test_score_of_leaves_failures_out_and_counts_them() -> None:
    score = score_of(group([1.0, None, 0.0, None]).trajectories)
    assert (score.mean, score.n, score.failed) == (0.5, 2, 2)
    assert math.isnan(score_of(group([None]).trajectories).mean)


def test_learning_curve_is_drawn_and_json_written_whole(tmp_path: Path) -> None:
    held_out = {w: {"sampled": score_of(group([1.0, 0.0]).trajectories).to_dict()} for w in ("before", "after")}
    with RunStore.create(tmp_path / "run.db") as store:
        for step in range(3):
            store.log_metrics(step, {"success": step / 3}, phase="train")
        report.plot_learning_curve(store, tmp_path / "curve.png", title="small", held_out=held_out)
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    report.write_json(tmp_path / "a.json", {"x": 1})
    assert sorted(p.suffix for p in tmp_path.glob("*.json*")) == [".json"]
