"""The tables of the task store, one script a version. A script that was released never changes."""

MIGRATIONS = (
    """
    CREATE TABLE task (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        id TEXT NOT NULL UNIQUE,
        owner TEXT NOT NULL,
        idempotency_key TEXT,
        schema_version INTEGER NOT NULL,
        spec TEXT NOT NULL,
        resolved TEXT,
        state TEXT NOT NULL CHECK (state IN ('queued', 'running', 'done', 'stopped', 'failed')),
        attempt INTEGER NOT NULL DEFAULT 0,
        deaths INTEGER NOT NULL DEFAULT 0,
        worker_id TEXT,
        stop_requested INTEGER NOT NULL DEFAULT 0,
        code TEXT NOT NULL DEFAULT '',
        message TEXT NOT NULL DEFAULT '',
        created REAL NOT NULL,
        started REAL,
        ended REAL,
        CHECK ((state = 'running') = (worker_id IS NOT NULL)),
        UNIQUE (owner, idempotency_key)
    ) STRICT;
    CREATE INDEX task_by_state ON task (state, number);
    CREATE TABLE image (
        number INTEGER PRIMARY KEY AUTOINCREMENT,
        task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,
        idx INTEGER NOT NULL CHECK (idx >= 0),
        path TEXT NOT NULL,
        sha256 TEXT NOT NULL,
        width INTEGER NOT NULL,
        height INTEGER NOT NULL,
        seed INTEGER NOT NULL,
        created REAL NOT NULL,
        UNIQUE (task_id, idx)
    ) STRICT;
    CREATE TABLE skipped (
        task_id TEXT NOT NULL REFERENCES task (id) ON DELETE CASCADE,
        idx INTEGER NOT NULL,
        PRIMARY KEY (task_id, idx)
    ) STRICT;
    CREATE TABLE start (number INTEGER PRIMARY KEY AUTOINCREMENT, at REAL NOT NULL) STRICT
    """,
    "ALTER TABLE image ADD COLUMN peak INTEGER",
    "ALTER TABLE task ADD COLUMN request TEXT",
)
