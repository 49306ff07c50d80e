"""`RunStore`: what goes in comes out exactly, groups change state once, readers see whole transactions."""

import dataclasses
import math
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.store.groups import make_group
from toolgym.store import RunStore, StoreError


@pytest.fixture
def store(tmp_path: Path) -> Iterator[RunStore]:
    with RunStore.create(tmp_path / "run.db") as store:
        yield store


def assert_same(a: Any, b: Any) -> None:
    """Equal in every field, arrays in dtype, shape and bytes."""
    assert type(a) is type(b)
    if isinstance(a, np.ndarray):
        assert (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    elif dataclasses.is_dataclass(a):
        for field in dataclasses.fields(a):
            assert_same(getattr(a, field.name), getattr(b, field.name))
    elif isinstance(a, tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    else:
        assert a == b


def test_groups_come_back_exactly(store: RunStore):
    group = make_group()
    store.add_group(group, number=0)
    (back,) = store.groups()
    assert_same(back, group)


def test_groups_come_in_order_of_number_and_of_the_asked_state_and_split(store: RunStore):
    for number, name in [(2, "c"), (0, "a"), (1, "b")]:
        store.add_group(make_group(name), number=number)
    store.add_group(make_group("t"), split="test", number=0)
    store.commit_checkpoint("ckpt/1", step=1, trained=["b"])
    assert [g.id for g in store.groups()] == ["a", "c"]
    assert [g.id for g in store.groups("trained")] == ["b"]
    assert [g.id for g in store.groups(split="test")] == ["t"]
    assert [g.id for g in store.groups(None, split=None)] == ["a", "t", "b", "c"]
    assert store.group_states() == {"a": "finished", "b": "trained", "c": "finished"}


def test_add_group_refuses_a_duplicate_and_keeps_nothing_of_it(store: RunStore):
    store.add_group(make_group("a"), number=0)
    with pytest.raises(StoreError, match="'a' or one of its episodes is recorded already"):
        store.add_group(make_group("a"), number=1)
    other = make_group("b")
    clash = tuple(dataclasses.replace(t, id=f"a.{t.index}") for t in other.trajectories)
    with pytest.raises(StoreError, match="recorded already"):
        store.add_group(dataclasses.replace(other, trajectories=clash), number=1)
    assert store.group_states() == {"a": "finished"}
    assert len(store.episodes()) == 3


def test_commit_checkpoint_marks_each_group_once(store: RunStore):
    for number, name in enumerate("abcd"):
        store.add_group(make_group(name), number=number)
    made = store.commit_checkpoint(
        store.path.parent / "ckpt" / "1", step=4, trained=["a"], skipped=["b"], stale=["c"], state={"next": 7}
    )
    assert store.group_states() == {"a": "trained", "b": "skipped", "c": "stale", "d": "finished"}
    assert store.latest_checkpoint() == made
    assert (made.step, made.state, made.path) == (4, {"next": 7}, store.path.parent / "ckpt" / "1")


@pytest.mark.parametrize(("group", "why"), [("a", "is 'trained' already"), ("x", "is not recorded")])
def test_commit_checkpoint_that_would_train_twice_records_nothing(store: RunStore, group: str, why: str):
    store.add_group(make_group("a"), number=0)
    store.add_group(make_group("b"), number=1)
    store.commit_checkpoint("1", step=1, trained=["a"])
    with pytest.raises(StoreError, match=why):
        store.commit_checkpoint("2", step=2, trained=["b", group])
    assert [c.step for c in store.checkpoints()] == [1]
    assert store.group_states()["b"] == "finished"


def test_checkpoints_move_with_the_run_folder(tmp_path: Path):
    (tmp_path / "old").mkdir()
    with RunStore.create(tmp_path / "old" / "run.db") as store:
        store.commit_checkpoint(tmp_path / "old" / "ckpt" / "1", step=1)
        store.commit_checkpoint(tmp_path / "elsewhere", step=2)
    (tmp_path / "old").rename(tmp_path / "new")
    with RunStore.open(tmp_path / "new" / "run.db", read_only=True) as store:
        assert [c.path for c in store.checkpoints()] == [tmp_path / "new" / "ckpt" / "1", tmp_path / "elsewhere"]


def test_latest_checkpoint_of_a_new_run_is_none(store: RunStore):
    assert store.latest_checkpoint() is None


def test_metrics_keep_nan_and_the_last_value_of_a_repeated_step(store: RunStore):
    store.log_metrics(1, {"loss": 0.5, "odd": math.nan, "big": math.inf}, phase="train")
    store.log_metrics(1, {"loss": 0.25}, phase="train")
    store.log_metrics(0, {"loss": 3}, phase="sft")
    assert [(m.phase, m.step, m.value) for m in store.metrics("loss")] == [("sft", 0, 3.0), ("train", 1, 0.25)]
    assert math.isnan(store.metrics("odd")[0].value)
    assert store.metrics("big")[0].value == math.inf
    assert [m.name for m in store.metrics(phase="train")] == ["big", "loss", "odd"]


def test_meta_and_events_keep_json_and_order(store: RunStore):
    store.set_meta("seed", 3)
    store.set_meta("seed", {"a": [1, None]})
    assert store.meta("seed") == {"a": [1, None]}
    assert store.meta("none", "default") == "default"
    store.add_event("publish", {"version": 1})
    store.begin_lineage()
    store.begin_lineage()
    store.add_event("note")
    store.add_event("publish", {"version": 2})
    assert [e.data for e in store.events("publish")] == [{"version": 1}, {"version": 2}]
    assert [(e.kind, e.lineage) for e in store.events()] == [("publish", 0), ("note", 1), ("publish", 1)]


def test_begin_lineage_counts_the_starts_across_openings(tmp_path: Path):
    with RunStore.create(tmp_path / "run.db") as store:
        assert store.begin_lineage() == 0
    for expected in (1, 2):
        with RunStore.open(tmp_path / "run.db") as store:
            assert store.begin_lineage() == expected


def test_episodes_can_be_chosen(store: RunStore):
    store.add_group(make_group("a"), number=0)
    store.add_group(make_group("b"), number=1)
    store.add_group(make_group("t", size=2), number=0, split="test")
    assert [e.trajectory.id for e in store.episodes(split="train", limit=4)] == ["a.0", "a.1", "a.2", "b.0"]
    assert [e.trajectory.id for e in store.episodes(failed=True)] == ["a.1", "t.1", "b.1"]
    assert [e.trajectory.id for e in store.episodes(split="train", failed=False, newest_first=True, limit=1)] == ["b.0"]
    (first, _, _) = store.episodes(group_id="b")
    assert (first.split, first.number, first.state, first.task.id) == ("train", 1, "finished", "train-3")


def test_reader_sees_whole_transactions_while_the_writer_writes(store: RunStore):
    with RunStore.open(store.path, read_only=True) as reader:
        assert reader.groups() == []
        store.add_group(make_group("a"), number=0)
        assert len(reader.episodes()) == 3
        with pytest.raises(StoreError, match="readonly"):
            reader.set_meta("x", 1)


def test_methods_may_be_called_from_other_threads(store: RunStore):
    def work(k: int) -> None:
        for i in range(5):
            store.add_group(make_group(f"{k}-{i}", size=1), number=10 * k + i)
            store.log_metrics(i, {"x": float(i)}, phase=f"p{k}")

    threads = [threading.Thread(target=work, args=(k,)) for k in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    assert len(store.groups()) == 20
    assert len(store.metrics()) == 20
