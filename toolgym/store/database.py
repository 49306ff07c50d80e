"""One SQLite file: opened as writer or reader, transactions, and errors that say what to do."""

from __future__ import annotations

import errno
import fcntl
import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolgym.errors import ConfigError, TrainingError
from toolgym.store.schema import APPLICATION_ID, MIGRATIONS, SCHEMA, SCHEMA_VERSION

BUSY_TIMEOUT_MS = 10_000  # a reader that checkpoints the log can hold the writer up for a moment


class StoreError(TrainingError):
    """The run database cannot be written or read: disk full, damaged, or in use by another writer."""


class Database:
    """A connection that any thread may use, one transaction at a time.

    The writer holds a lock on ``<name>.lock`` beside the file, which the kernel drops when the process dies: there is
    never a second writer. Committed transactions survive the death of the process at any moment.
    """

    def __init__(self, path: Path, *, create: bool = False, read_only: bool = False) -> None:
        self.path = path
        self._mutex = threading.RLock()
        self._lock_fd = -1 if read_only else _lock(path)
        try:
            with errors(path):
                self._connection = _connect(path, create=create, read_only=read_only)
                self._prepare(create=create, read_only=read_only)
        except BaseException:
            self.close()
            raise

    def _prepare(self, *, create: bool, read_only: bool) -> None:
        run = self._connection.execute
        run(f"PRAGMA busy_timeout = {BUSY_TIMEOUT_MS}")
        run("PRAGMA foreign_keys = ON")
        if create:
            run("PRAGMA journal_mode = WAL")
            self._script(f"{SCHEMA}; PRAGMA application_id = {APPLICATION_ID}", version=SCHEMA_VERSION)
        (application,) = run("PRAGMA application_id").fetchone()
        if application != APPLICATION_ID:
            raise ConfigError(f"{self.path} is no run database of toolgym")
        if not read_only:
            # In WAL mode NORMAL loses nothing when the process dies; only a power cut can take the last transactions.
            run("PRAGMA synchronous = NORMAL")
        self._upgrade(read_only=read_only)

    def _upgrade(self, *, read_only: bool) -> None:
        (version,) = self._connection.execute("PRAGMA user_version").fetchone()
        if version > SCHEMA_VERSION:
            raise ConfigError(
                f"{self.path} has schema {version}, this toolgym reads up to {SCHEMA_VERSION}: use the newer one"
            )
        if version < SCHEMA_VERSION and read_only:
            raise ConfigError(
                f"{self.path} has the older schema {version}: resume the run once to bring it up to {SCHEMA_VERSION}"
            )
        while version < SCHEMA_VERSION:
            self._script(MIGRATIONS[version], version=version + 1)
            version += 1

    def _script(self, sql: str, *, version: int) -> None:
        self._connection.executescript(f"BEGIN IMMEDIATE; {sql}; PRAGMA user_version = {version}; COMMIT")

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """All or nothing, also when the process is killed inside.

        Raises:
            StoreError: the disk is full, or the file is damaged, gone or not writable.
        """
        with self._mutex, errors(self.path):
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
                self._connection.execute("COMMIT")
            except BaseException:
                if self._connection.in_transaction:  # some errors, such as a full disk, have rolled back already
                    self._connection.execute("ROLLBACK")
                raise

    def query(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        """All rows of a SELECT, from one consistent snapshot."""
        with self._mutex, errors(self.path):
            return self._connection.execute(sql, values).fetchall()

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and give the writer's lock back; harmless when called twice."""
        with self._mutex:
            connection = getattr(self, "_connection", None)
            if connection is not None:
                connection.close()
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1


def _connect(path: Path, *, create: bool, read_only: bool) -> sqlite3.Connection:
    if create and path.exists():
        raise ConfigError(f"{path} exists already")
    if not create and not path.is_file():
        raise ConfigError(f"no run database at {path}")
    mode = "ro" if read_only else "rwc" if create else "rw"
    connection = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None, check_same_thread=False
    )
    if not read_only:
        return connection
    try:
        connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except sqlite3.DatabaseError as error:
        connection.close()
        # A reader of a write-ahead log makes a shared-memory file beside it; a read-only medium has no writer either.
        if not isinstance(error, sqlite3.OperationalError) or os.access(path.parent, os.W_OK):
            raise
        uri = f"{path.absolute().as_uri()}?immutable=1"
        return sqlite3.connect(uri, uri=True, isolation_level=None, check_same_thread=False)
    return connection


def _lock(path: Path) -> int:
    """Take the writer's lock, or say who has it; in a file of its own: closing a handle would drop SQLite's locks."""
    if not path.parent.is_dir():
        raise ConfigError(f"no folder {path.parent}")
    name = path.with_suffix(".lock")
    try:
        fd = os.open(name, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise StoreError(f"cannot write {name}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        owner = os.read(fd, 32).decode(errors="replace").strip() or "unknown"
        os.close(fd)
        if error.errno not in (errno.EWOULDBLOCK, errno.EACCES):
            raise StoreError(f"cannot lock {name}: {error.strerror}") from None
        raise StoreError(f"{path} is being written by process {owner}: wait for it or stop it") from None
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()}\n".encode(), 0)
    return fd


@contextmanager
def errors(path: Path) -> Iterator[None]:
    """Turn SQLite's errors into one clear line.

    Raises:
        StoreError: disk full, input or output error, damaged, locked.
    """
    try:
        yield
    except sqlite3.IntegrityError:
        raise
    except sqlite3.Error as error:
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # the low byte is the primary code
        if code == sqlite3.SQLITE_FULL:
            text = "the disk is full: free some space, then resume the run (nothing recorded is lost)"
        elif code in (sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CORRUPT):
            text = f"not a readable run database ({error})"
        elif code == sqlite3.SQLITE_BUSY:
            text = f"locked by another process for over {BUSY_TIMEOUT_MS // 1000} s"
        else:
            text = str(error)
        raise StoreError(f"{path}: {text}") from error
