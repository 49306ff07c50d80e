"""The file below `RunStore`: kill -9, one writer, full disk, damaged and foreign files, migrations."""

import pickle
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.store.groups import make_group
from toolgym.errors import ConfigError
from toolgym.store import RunStore, StoreError
from toolgym.store import database as database_module
from toolgym.store.database import Database

ROOT = Path(__file__).resolve().parents[2]


@contextmanager
def writer(code: str, path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that runs ``code`` with an open store ``s``; killed at the end."""
    prelude = (
        "import sys; from toolgym.store import RunStore; from tests.store.groups import make_group\n"
        "s = RunStore.create(sys.argv[1])\n"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", prelude + code, str(path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    try:
        yield process
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait(timeout=20)
        assert process.stdout is not None
        process.stdout.close()


def test_kill_in_the_middle_of_a_transaction_leaves_only_whole_groups(tmp_path: Path):
    code = """
s.add_group(make_group("whole"), number=0)
with s._db.transaction() as tx:
    columns = "number + 1, split, state, lineage, min_version, task, NULL, time_s"
    tx.execute(f"INSERT INTO groups SELECT 'half', {columns} FROM groups")
    print("inside", flush=True)
    sys.stdin.read()
    import signal; signal.pause()
"""
    path = tmp_path / "run.db"
    with writer(code, path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "inside\n"
        with RunStore.open(path, read_only=True) as reader:
            assert list(reader.group_states()) == ["whole"]
        with pytest.raises(StoreError, match=f"is being written by process {process.pid}"):
            RunStore.open(path)
    with RunStore.open(path) as store:  # the lock died with its owner
        assert list(store.group_states()) == ["whole"]
        assert len(store.groups()[0].trajectories) == 3
        store.add_group(make_group("half"), number=1)


def test_kill_at_any_moment_loses_no_recorded_group(tmp_path: Path):
    code = """
for n in range(100_000):
    s.add_group(make_group(f"g{n}"), number=n)
    print(n, flush=True)
"""
    path = tmp_path / "run.db"
    with writer(code, path) as process:
        assert process.stdout is not None
        for _ in range(40):
            last = int(process.stdout.readline())
        process.send_signal(signal.SIGKILL)
        last = max([last, *(int(line) for line in process.stdout if line.endswith("\n"))])
    with RunStore.open(path) as store:
        groups = store.groups()
        assert [g.id for g in groups] == [f"g{n}" for n in range(len(groups))]
        assert len(groups) in (last + 1, last + 2)  # the last one may be recorded and not yet announced
        assert all(len(g.trajectories) == 3 for g in groups)
    with sqlite3.connect(path) as raw:
        assert raw.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    raw.close()


def test_full_disk_is_one_clear_error_and_nothing_recorded_is_lost(tmp_path: Path):
    with RunStore.create(tmp_path / "run.db") as store:
        store.add_group(make_group("a"), number=0)
        store._db._connection.execute("PRAGMA max_page_count = 1")  # SQLite's own full disk
        with pytest.raises(StoreError, match="the disk is full: free some space, then resume") as caught:
            store.add_group(make_group("b", length=200_000), number=1)
        assert "\n" not in str(caught.value)
        store._db._connection.execute("PRAGMA max_page_count = 1000000")
        store.add_group(make_group("b"), number=1)
        assert list(store.group_states()) == ["a", "b"]


def test_an_exception_inside_a_transaction_rolls_it_back(tmp_path: Path):
    with Database(tmp_path / "run.db", create=True) as database:

        def interrupted() -> None:
            with database.transaction() as tx:
                tx.execute("INSERT INTO meta VALUES ('a', '1')")
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            interrupted()
        assert database.query("SELECT * FROM meta") == []


def test_open_and_create_refuse_wrong_places(tmp_path: Path):
    with pytest.raises(ConfigError, match="no run database at"):
        RunStore.open(tmp_path / "run.db", read_only=True)
    with pytest.raises(ConfigError, match="no run database at"):
        RunStore.open(tmp_path / "run.db")
    with pytest.raises(ConfigError, match="no folder"):
        RunStore.create(tmp_path / "none" / "run.db")
    RunStore.create(tmp_path / "run.db").close()
    with pytest.raises(ConfigError, match="exists already"):
        RunStore.create(tmp_path / "run.db")


@pytest.mark.parametrize("read_only", [False, True])
def test_open_refuses_other_files(tmp_path: Path, read_only: bool):
    (tmp_path / "text.db").write_bytes(b"x" * 5000)
    with pytest.raises(StoreError, match="not a readable run database"):
        RunStore.open(tmp_path / "text.db", read_only=read_only)
    with sqlite3.connect(tmp_path / "other.db") as other:
        other.execute("CREATE TABLE t (x)")
    other.close()
    with pytest.raises(ConfigError, match="no run database of toolgym"):
        RunStore.open(tmp_path / "other.db", read_only=read_only)


def test_open_upgrades_older_schemas_and_refuses_newer_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    path = tmp_path / "run.db"
    RunStore.create(path).close()
    monkeypatch.setattr(database_module, "SCHEMA_VERSION", 2)
    monkeypatch.setattr(database_module, "MIGRATIONS", {1: "ALTER TABLE meta ADD COLUMN note TEXT"})
    with pytest.raises(ConfigError, match="older schema 1: resume the run once to bring it up to 2"):
        RunStore.open(path, read_only=True)
    RunStore.open(path).close()
    with Database(path, read_only=True) as database:
        assert "note" in [row[1] for row in database.query("PRAGMA table_info(meta)")]
    monkeypatch.setattr(database_module, "SCHEMA_VERSION", 1)
    with pytest.raises(ConfigError, match="has schema 2, this toolgym reads up to 1"):
        RunStore.open(path)


def test_store_error_is_picklable_and_a_fault():
    error = pickle.loads(pickle.dumps(StoreError("full")))
    assert (str(error), error.exit_code) == ("full", 1)
