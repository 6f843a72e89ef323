-- Version 1 of an Apsis database. Later versions are steps in apsislib/store/files.py (MIGRATIONS).
--
-- Instants are seconds since the epoch, UTC. A run's number is the number of its ID (r123: 123).
-- JSON columns hold JSON text; those that a query never looks into are not taken apart.

CREATE TABLE meta (
    name   TEXT PRIMARY KEY,
    value  ANY NOT NULL
) STRICT, WITHOUT ROWID;
-- next_run      the first run number that no block has been reserved from
-- clock         everything due before this instant has been claimed (absent until the first tick)
-- batch         counts the writer's transactions, so that a commit with a doubtful end is not repeated
-- imported      when what is in it was imported (absent in a database of our own from the start)
-- installation  UUID of this database, new after an import or a restore

CREATE TABLE runs (
    number      INTEGER PRIMARY KEY,
    job_id      TEXT NOT NULL,
    args        TEXT NOT NULL,  -- canonical: equal args are equal text
    state       TEXT NOT NULL,
    timestamp   REAL NOT NULL,  -- of the latest transition
    rev         INTEGER NOT NULL,
    times       TEXT NOT NULL,
    meta        TEXT NOT NULL,
    program     TEXT,           -- null: binding failed
    conds       TEXT,           -- null: none
    actions     TEXT,           -- null: none
    run_state   TEXT,
    rerun_of    TEXT,
    schedule    REAL,           -- times["schedule"] again, for the index below
    occurrence  TEXT,
    cause       TEXT
) STRICT;

-- A job's runs, newest first, page by page.
CREATE INDEX runs_job ON runs (job_id);
-- The runs of one instance (job and args); with the state, "how did it end?" never touches the table.
CREATE INDEX runs_instance ON runs (job_id, args, state);
-- What is active at start-up, and the failures of all jobs, newest first.
CREATE INDEX runs_state ON runs (state);
-- "since", "until" and retention.
CREATE INDEX runs_timestamp ON runs (timestamp);
-- Which occurrences are taken already, after a restart or reload. Only runs made by schedules are in it.
CREATE INDEX runs_schedule ON runs (schedule) WHERE occurrence IS NOT NULL;
-- An occurrence, and an action, make one run only, whatever else goes wrong.
CREATE UNIQUE INDEX runs_occurrence ON runs (occurrence) WHERE occurrence IS NOT NULL;
CREATE UNIQUE INDEX runs_cause ON runs (cause) WHERE cause IS NOT NULL;

-- The run log. Clustered by run: reading a log is reading neighbours, and no second index is needed.
CREATE TABLE log (
    number   INTEGER NOT NULL,
    seq      INTEGER NOT NULL,  -- 0, 1, ... within the run: the order of decision, also when clocks are set back
    time     REAL NOT NULL,
    message  TEXT NOT NULL,
    PRIMARY KEY (number, seq)
) STRICT, WITHOUT ROWID;

CREATE TABLE outputs (
    id            INTEGER PRIMARY KEY,
    number        INTEGER NOT NULL,
    output_id     TEXT NOT NULL,
    name          TEXT NOT NULL,
    content_type  TEXT NOT NULL,
    length        INTEGER NOT NULL,  -- bytes, all chunks together
    UNIQUE (number, output_id)
) STRICT;

-- Bytes start .. start + size of an output: no gaps, no overlaps.
CREATE TABLE chunks (
    output  INTEGER NOT NULL,   -- outputs.id
    start   INTEGER NOT NULL,
    size    INTEGER NOT NULL,   -- bytes before compression
    codec   INTEGER NOT NULL,   -- 0: as it is; 1: zlib
    data    BLOB NOT NULL,
    UNIQUE (output, start)
) STRICT;

-- Actions that transitions owe, until they are done.
CREATE TABLE owed (
    seq     INTEGER PRIMARY KEY,  -- the order in which they came to be owed
    cause   TEXT NOT NULL UNIQUE,
    run     TEXT NOT NULL,        -- the run as it was at the transition
    action  TEXT NOT NULL
) STRICT;

-- Jobs that came without a file.
CREATE TABLE jobs (
    job_id  TEXT PRIMARY KEY,
    job     TEXT NOT NULL
) STRICT, WITHOUT ROWID;
