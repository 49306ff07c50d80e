"""The tables of a run database and how older ones are brought up to date."""

APPLICATION_ID = 0x7467796D  # "tgym": tells our files from other SQLite databases
SCHEMA_VERSION = 1  # kept in PRAGMA user_version

# MIGRATIONS[n] brings a database from version n to n + 1, in one transaction with the change of user_version.
MIGRATIONS: dict[int, str] = {}

SCHEMA = """
CREATE TABLE meta (
    key TEXT PRIMARY KEY,
    value TEXT NOT NULL                     -- JSON
) WITHOUT ROWID;

CREATE TABLE lineages (                     -- one per (re)start of the run
    n INTEGER PRIMARY KEY,
    started_s REAL NOT NULL                 -- seconds since the epoch
);

CREATE TABLE metrics (
    phase TEXT NOT NULL,
    step INTEGER NOT NULL,
    name TEXT NOT NULL,
    value REAL,                             -- NULL stands for nan, which SQLite does not hold
    time_s REAL NOT NULL,
    PRIMARY KEY (phase, step, name)         -- a resumed run writes its repeated steps over the lost ones
) WITHOUT ROWID;

CREATE TABLE groups (
    id TEXT PRIMARY KEY,
    number INTEGER NOT NULL,                -- place in the order in which tasks were given out
    split TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('finished', 'trained', 'skipped', 'stale')),
    lineage INTEGER NOT NULL,
    min_version INTEGER NOT NULL,
    task TEXT NOT NULL,                     -- JSON
    checkpoint INTEGER REFERENCES checkpoints (number),
    time_s REAL NOT NULL
);
CREATE INDEX groups_by_state ON groups (split, state, number);

CREATE TABLE episodes (
    id TEXT PRIMARY KEY,
    group_id TEXT NOT NULL REFERENCES groups (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    env_id TEXT NOT NULL,
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    score REAL,                             -- NULL: it failed
    failure TEXT,                           -- the kind of failure; NULL: it has a score
    ended TEXT NOT NULL,
    duration_s REAL NOT NULL,
    messages TEXT NOT NULL,                 -- JSON
    record TEXT NOT NULL,                   -- JSON: outcome and turns
    UNIQUE (group_id, place)
);

CREATE TABLE segments (
    episode_id TEXT NOT NULL REFERENCES episodes (id) ON DELETE CASCADE,
    place INTEGER NOT NULL,
    record TEXT NOT NULL,                   -- JSON: policy, lineage, agent, parent
    arrays BLOB NOT NULL,                   -- msgpack: name -> [dtype, shape, raw little-endian bytes]
    PRIMARY KEY (episode_id, place)
) WITHOUT ROWID;

CREATE TABLE checkpoints (
    number INTEGER PRIMARY KEY,
    path TEXT NOT NULL,                     -- relative to the database's folder where it lies below it
    step INTEGER NOT NULL,
    lineage INTEGER NOT NULL,
    state TEXT NOT NULL,                    -- JSON
    time_s REAL NOT NULL
);

CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    lineage INTEGER NOT NULL,
    data TEXT NOT NULL,                     -- JSON
    time_s REAL NOT NULL
);
CREATE INDEX events_by_kind ON events (kind, number);
"""
