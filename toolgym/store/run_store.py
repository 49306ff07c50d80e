"""The record of one run: metrics, groups with their tokens, checkpoints, events; what resuming trusts."""

from __future__ import annotations

import json
import math
import sqlite3
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TypeAlias

from toolgym.store import codec
from toolgym.store.database import Database, StoreError
from toolgym.types import JSON, EpisodeEnd, Failed, Group, Task, Trajectory

GroupState: TypeAlias = Literal["finished", "trained", "skipped", "stale"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number. Example: ``Metric(phase="train", step=3, name="success", value=0.62, time_s=1.7e9)``."""

    phase: str
    step: int
    name: str
    value: float
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened. Example: ``Event(number=1, kind="publish", lineage=0, data={"n": 4}, time_s=1.7e9)``."""

    number: int
    kind: str
    lineage: int
    data: JSON
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A recorded checkpoint: the folder, the learner's step, the trainer's own state (JSON), its place in the run."""

    number: int
    path: Path
    step: int
    lineage: int
    state: JSON
    time_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode:
    """A recorded episode with what is known of its group."""

    split: str
    number: int
    state: GroupState
    task: Task
    trajectory: Trajectory


class RunStore:
    """The database of one run, by the folder's convention ``<run>/run.db``.

    One process writes; others may read at any time. Every method is one transaction: after a kill it has
    happened or not. Methods are thread-safe and quick (a group of 8 episodes of 100 tokens takes about a millisecond).

    A group is ``finished`` when it is added and later, by the checkpoint that holds its gradient or the decision to do
    without it, ``trained``, ``skipped`` (nothing to learn from it) or ``stale`` (too old). It changes state once.
    """

    def __init__(self, database: Database) -> None:
        self._db = database
        self._lineage = max(0, len(self._db.query("SELECT n FROM lineages")) - 1)

    @classmethod
    def create(cls, path: str | Path) -> RunStore:
        """Make a new database; its folder must exist.

        Raises:
            ConfigError: the file exists, or its folder does not.
            StoreError: it cannot be written.
        """
        return cls(Database(Path(path), create=True))

    @classmethod
    def open(cls, path: str | Path, *, read_only: bool = False) -> RunStore:
        """Open a database, as its only writer or as one of any number of readers.

        Raises:
            ConfigError: no such file, not ours, or of a newer schema.
            StoreError: damaged, or another process is writing it.
        """
        return cls(Database(Path(path), read_only=read_only))

    def close(self) -> None:
        """Close the file; harmless when called twice."""
        self._db.close()

    def __enter__(self) -> RunStore:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def path(self) -> Path:
        """The database file."""
        return self._db.path

    # -- facts and numbers

    def set_meta(self, key: str, value: JSON) -> None:
        """Record a fact about the run (JSON); a later one under the same key replaces it."""
        with self._db.transaction() as tx:
            tx.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, json.dumps(value)))

    def meta(self, key: str, default: JSON = None) -> JSON:
        """A fact about the run, or the default."""
        rows = self._db.query("SELECT value FROM meta WHERE key = ?", (key,))
        return json.loads(rows[0][0]) if rows else default

    def log_metrics(self, step: int, values: Mapping[str, float], *, phase: str) -> None:
        """Record numbers of a step; the same (phase, step, name) written again replaces the old value."""
        now = time.time()
        rows = [(phase, step, name, _no_nan(float(value)), now) for name, value in values.items()]
        with self._db.transaction() as tx:
            tx.executemany("INSERT OR REPLACE INTO metrics VALUES (?, ?, ?, ?, ?)", rows)

    def metrics(self, name: str | None = None, *, phase: str | None = None) -> list[Metric]:
        """The recorded numbers by phase, step and name; all, or those of one name or phase."""
        where, values = _where(name=name, phase=phase)
        sql = f"SELECT phase, step, name, value, time_s FROM metrics{where} ORDER BY phase, step, name"
        return [
            Metric(phase=p, step=s, name=n, value=math.nan if v is None else v, time_s=t)
            for p, s, n, v, t in self._db.query(sql, values)
        ]

    def add_event(self, kind: str, data: JSON = None) -> None:
        """Record that something happened (JSON)."""
        with self._db.transaction() as tx:
            tx.execute(
                "INSERT INTO events (kind, lineage, data, time_s) VALUES (?, ?, ?, ?)",
                (kind, self._lineage, json.dumps(data), time.time()),
            )

    def events(self, kind: str | None = None) -> list[Event]:
        """What happened, in order; all, or of one kind."""
        where, values = _where(kind=kind)
        rows = self._db.query(f"SELECT number, kind, lineage, data, time_s FROM events{where} ORDER BY number", values)
        return [
            Event(number=n, kind=k, lineage=lineage, data=json.loads(data), time_s=t) for n, k, lineage, data, t in rows
        ]

    def begin_lineage(self) -> int:
        """Count a start or resume of the run: 0 for the first, 1 for the first resume, and so on."""
        with self._db.transaction() as tx:
            (count,) = tx.execute("SELECT count(*) FROM lineages").fetchone()
            tx.execute("INSERT INTO lineages VALUES (?, ?)", (count, time.time()))
        self._lineage = count
        return count

    # -- groups

    def add_group(self, group: Group, *, split: str = "train", number: int) -> None:
        """Record a finished group with all its episodes, tokens and per-token arrays.

        Args:
            group: what the rollouts made.
            split: the split it was played on; only ``train`` groups are ever trained.
            number: its place in the order in which tasks were given out.

        Raises:
            StoreError: the group, or one of its episodes, is recorded already; disk full.
        """
        head = (group.id, number, split, group.lineage, group.min_version, json.dumps(codec.task_to_json(group.task)))
        episodes = [_episode_row(group, t) for t in group.trajectories]
        segments = [
            (t.id, place, json.dumps(record), arrays)
            for t in group.trajectories
            for place, (record, arrays) in enumerate(codec.segment_to_row(s) for s in t.segments)
        ]
        try:
            with self._db.transaction() as tx:
                tx.execute(
                    "INSERT INTO groups (id, number, split, state, lineage, min_version, task, time_s) "
                    "VALUES (?, ?, ?, 'finished', ?, ?, ?, ?)",
                    (*head, time.time()),
                )
                tx.executemany(f"INSERT INTO episodes VALUES ({', '.join('?' * 12)})", episodes)
                tx.executemany("INSERT INTO segments VALUES (?, ?, ?, ?)", segments)
        except sqlite3.IntegrityError as error:
            raise StoreError(f"group {group.id!r} or one of its episodes is recorded already ({error})") from None

    def groups(self, state: GroupState | None = "finished", *, split: str | None = "train") -> list[Group]:
        """The groups of a state and split (None: any), by number, with everything in them."""
        where, values = _where(state=state, split=split)
        rows = self._db.query(f"SELECT id, lineage, task FROM groups{where} ORDER BY number, id", values)
        return [
            Group(
                id=group_id,
                lineage=lineage,
                task=codec.task_from_json(json.loads(task)),
                trajectories=tuple(self._trajectories("group_id = ?", (group_id,))),
            )
            for group_id, lineage, task in rows
        ]

    def group_states(self, *, split: str | None = "train") -> dict[str, GroupState]:
        """The state of every group by id, in order of number, without reading the groups themselves."""
        where, values = _where(split=split)
        return dict(self._db.query(f"SELECT id, state FROM groups{where} ORDER BY number, id", values))  # type: ignore[arg-type]

    def episodes(
        self,
        *,
        split: str | None = None,
        group_id: str | None = None,
        failed: bool | None = None,
        newest_first: bool = False,
        limit: int | None = None,
    ) -> list[Episode]:
        """Recorded episodes by group number and place; for transcripts and analyses."""
        where, values = _where(**{"g.split": split, "g.id": group_id})
        if failed is not None:
            where += f"{' AND' if where else ' WHERE'} e.failure IS {'NOT ' if failed else ''}NULL"
        order = "DESC" if newest_first else "ASC"
        rows = self._db.query(
            "SELECT e.id, g.split, g.number, g.state, g.task FROM episodes e JOIN groups g ON g.id = e.group_id"
            f"{where} ORDER BY g.number {order}, g.id, e.place LIMIT ?",
            (*values, -1 if limit is None else limit),
        )
        return [
            Episode(
                split=split_,
                number=number,
                state=state,
                task=codec.task_from_json(json.loads(task)),
                trajectory=self._trajectories("id = ?", (episode_id,))[0],
            )
            for episode_id, split_, number, state, task in rows
        ]

    def _trajectories(self, condition: str, values: Sequence[Any]) -> list[Trajectory]:
        rows = self._db.query(
            "SELECT id, group_id, place, env_id, task_id, attempt, ended, duration_s, messages, record "
            f"FROM episodes WHERE {condition} ORDER BY place",
            values,
        )
        result: list[Trajectory] = []
        for id_, group_id, place, env_id, task_id, attempt, ended, duration_s, messages, record_text in rows:
            record = json.loads(record_text)
            segments = self._db.query("SELECT record, arrays FROM segments WHERE episode_id = ? ORDER BY place", (id_,))
            result.append(
                Trajectory(
                    id=id_,
                    task_id=task_id,
                    env_id=env_id,
                    group_id=group_id,
                    index=place,
                    attempt=attempt,
                    segments=tuple(codec.segment_from_row(json.loads(r), a) for r, a in segments),
                    turns=tuple(codec.turn_from_json(t) for t in record["turns"]),
                    messages=tuple(codec.message_from_json(m) for m in json.loads(messages)),
                    outcome=codec.outcome_from_json(record["outcome"]),
                    end=EpisodeEnd(ended),
                    duration_s=duration_s,
                )
            )
        return result

    # -- checkpoints

    def commit_checkpoint(
        self,
        path: str | Path,
        *,
        step: int,
        trained: Sequence[str] = (),
        skipped: Sequence[str] = (),
        stale: Sequence[str] = (),
        state: JSON = None,
    ) -> Checkpoint:
        """Record a checkpoint that lies complete at ``path`` and, in the same transaction, what became of the groups.

        Args:
            path: the folder, already renamed into place.
            step: the learner's step that it holds.
            trained: ids of the finished groups whose gradient it holds and the last checkpoint did not.
            skipped: ids of finished groups that gave no gradient.
            stale: ids of finished groups that were too old to train on.
            state: whatever else the trainer needs to go on (JSON).

        Raises:
            StoreError: a group is unknown or not ``finished`` (it would be trained twice); nothing is recorded then.
        """
        with self._db.transaction() as tx:
            cursor = tx.execute(
                "INSERT INTO checkpoints (path, step, lineage, state, time_s) VALUES (?, ?, ?, ?, ?)",
                (self._stored_path(Path(path)), step, self._lineage, json.dumps(state), time.time()),
            )
            number = cursor.lastrowid
            for new, ids in (("trained", trained), ("skipped", skipped), ("stale", stale)):
                _mark(tx, new, ids, checkpoint=number)
        latest = self.latest_checkpoint()
        assert latest is not None
        return latest

    def checkpoints(self) -> list[Checkpoint]:
        """All recorded checkpoints, oldest first. (Their folders may have been pruned since.)"""
        return self._checkpoints("ORDER BY number")

    def latest_checkpoint(self) -> Checkpoint | None:
        """The checkpoint to resume from; None before the first."""
        return next(iter(self._checkpoints("ORDER BY number DESC LIMIT 1")), None)

    def _checkpoints(self, tail: str) -> list[Checkpoint]:
        rows = self._db.query(f"SELECT number, path, step, lineage, state, time_s FROM checkpoints {tail}")
        return [
            Checkpoint(number=n, path=self.path.parent / p, step=s, lineage=lineage, state=json.loads(state), time_s=t)
            for n, p, s, lineage, state, t in rows
        ]

    def _stored_path(self, path: Path) -> str:
        """Relative to the run's folder where possible, so that the folder can be moved."""
        folder, path = self.path.parent.resolve(), path.resolve()
        return str(path.relative_to(folder) if path.is_relative_to(folder) else path)


def _mark(tx: sqlite3.Connection, state: str, ids: Iterable[str], *, checkpoint: int | None) -> None:
    for group_id in ids:
        done = tx.execute(
            "UPDATE groups SET state = ?, checkpoint = ? WHERE id = ? AND state = 'finished'",
            (state, checkpoint, group_id),
        )
        if done.rowcount != 1:
            row = tx.execute("SELECT state FROM groups WHERE id = ?", (group_id,)).fetchone()
            found = f"is {row[0]!r} already" if row else "is not recorded"
            raise StoreError(f"group {group_id!r} cannot become {state!r}: it {found}")


def _episode_row(group: Group, t: Trajectory) -> tuple[Any, ...]:
    assert t.group_id == group.id, f"trajectory {t.id} says group {t.group_id}, it is in {group.id}"
    failed = isinstance(t.outcome, Failed)
    return (
        t.id,
        group.id,
        t.index,
        t.env_id,
        t.task_id,
        t.attempt,
        None if failed else t.score,
        t.outcome.kind if isinstance(t.outcome, Failed) else None,
        t.end,
        t.duration_s,
        json.dumps([codec.message_to_json(m) for m in t.messages]),
        json.dumps({"outcome": codec.outcome_to_json(t.outcome), "turns": [codec.turn_to_json(u) for u in t.turns]}),
    )


def _no_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def _where(**conditions: str | None) -> tuple[str, tuple[str, ...]]:
    given = {k: v for k, v in conditions.items() if v is not None}
    return (" WHERE " + " AND ".join(f"{k} = ?" for k in given) if given else ""), tuple(given.values())
