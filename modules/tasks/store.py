"""The durable queue. The only file with SQL of tasks and pictures.

In one sentence: an acknowledged task survives any crash, each picture of it is stored once, and
work may be computed twice. There are no leases and no clocks in it: whoever supervises the workers
says when one has died (`requeue_after_crash`), and a late writer is kept out by the attempt number
of its claim. One store per process; its methods may be called from any thread.
"""

import sqlite3
import time
from pathlib import Path

from modules.spec import limits
from modules.spec.errors import NotFound, QueueFull, StudioError, WorkerCrashed
from modules.spec.flags import TaskState
from modules.spec.task_spec import SCHEMA_VERSION, ResolvedSpec, TaskSpec
from modules.tasks.database import BUSY_SECONDS, Database
from modules.tasks.forecast import PICTURES_READ, Timing, timings_of
from modules.tasks.ids import IdMaker
from modules.tasks.migrations import MIGRATIONS
from modules.tasks.records import (
    Claim,
    ClaimLost,
    ImageRecord,
    TaskRecord,
    insist_on_same,
    parse_spec,
    with_seed_of,
)


class TaskStore:
    """Tasks and their pictures in one SQLite file (WAL, synchronous FULL).

    Every method may raise DiskFull, InstanceRunning (locked by somebody else) or ConfigError
    (damaged or not writable).
    """

    def __init__(self, path: Path, *, busy_seconds: float = BUSY_SECONDS) -> None:
        self.path = path
        self._database = Database(path, MIGRATIONS, busy_seconds=busy_seconds)
        self._ids = IdMaker()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        self._database.close()

    def hurry(self, seconds: float) -> None:
        """The process ends: wait no longer than `seconds` for another program's lock."""
        self._database.hurry(seconds)

    def verify(self) -> None:
        """ConfigError if the file is damaged."""
        self._database.verify()

    # What a user does

    def submitted(self, owner: str, idempotency_key: str, request: str) -> str | None:
        """The task that `owner`'s request of this digest and key made, if there is one."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT id FROM task WHERE owner = ? AND idempotency_key = ? AND request = ?",
                (owner, idempotency_key, request),
            ).fetchone()
        return row["id"] if row else None

    def submit(
        self,
        spec: TaskSpec,
        *,
        owner: str = "local",
        idempotency_key: str | None = None,
        request: str | None = None,
    ) -> str:
        """Append a task and return its id, once it is safely on disk. The seed is fixed here.

        request: digest of the request as it came, where `spec` is more than that.
        A key that `owner` used before returns that task's id and adds nothing; Conflict if both
        its request and its task are others. QueueFull when QUEUE_LENGTH tasks wait already.
        """
        task_id = self._ids.make()
        fixed = with_seed_of(spec, owner, idempotency_key)
        values = (task_id, owner, idempotency_key, request, SCHEMA_VERSION, fixed.to_json())
        with self._database.write() as connection:
            if idempotency_key is not None:
                known = connection.execute(
                    "SELECT id, spec, request FROM task WHERE owner = ? AND idempotency_key = ?",
                    (owner, idempotency_key),
                ).fetchone()
                if known:
                    if request is None or request != known["request"]:
                        insist_on_same(spec, known["spec"])
                    return known["id"]
            if self._count_queued(connection) >= limits.QUEUE_LENGTH:
                raise QueueFull(
                    f"The queue holds {limits.QUEUE_LENGTH:,} tasks, which is its limit; wait "
                    "until some are finished, or stop some of them."
                )
            connection.execute(
                "INSERT INTO task (id, owner, idempotency_key, request, schema_version, spec,"
                " state, created) VALUES (?, ?, ?, ?, ?, ?, 'queued', ?)",
                (*values, time.time()),
            )
        return task_id

    def request_stop(self, task_id: str) -> TaskRecord:
        """Ask for an end. A waiting task stops at once; a running one by its worker."""
        with self._database.write() as connection:
            connection.execute(
                "UPDATE task SET state = 'stopped', stop_requested = 1, ended = ?"
                " WHERE id = ? AND state = 'queued'",
                (time.time(), task_id),
            )
            connection.execute(
                "UPDATE task SET stop_requested = 1 WHERE id = ? AND state = 'running'", (task_id,)
            )
            return self._get(connection, task_id)

    # What a worker does

    def claim(self, worker_id: str) -> Claim | None:
        """The next waiting task, now running for `worker_id`; None if none waits."""
        with self._database.read() as connection:
            if not self._count_queued(connection, at_most=1):
                return None
        with self._database.write() as connection:
            while row := connection.execute(
                "UPDATE task SET state = 'running', worker_id = ?, attempt = attempt + 1,"
                " started = ? WHERE number ="
                " (SELECT number FROM task WHERE state = 'queued' ORDER BY number LIMIT 1)"
                " RETURNING id, spec, attempt",
                (worker_id, time.time()),
            ).fetchone():
                try:
                    spec = parse_spec(row["spec"])
                except StudioError as error:
                    # Saved by a version with other limits; it must not block the queue.
                    self._end(connection, row["id"], TaskState.FAILED, error.code, str(error))
                    continue
                done = self._done_indices(connection, row["id"])
                return Claim(row["id"], spec, worker_id, row["attempt"], done)
            return None

    def stop_is_requested(self, claim: Claim) -> bool:
        """True if the task of `claim` should end."""
        with self._database.read() as connection:
            return self._get(connection, claim.id).stop_requested

    def set_resolved(self, claim: Claim, resolved: ResolvedSpec) -> None:
        """Keep what the spec came to beside it. ClaimLost if the claim is no longer true."""
        with self._database.write() as connection:
            self._check(connection, claim)
            connection.execute(
                "UPDATE task SET resolved = ? WHERE id = ?", (resolved.model_dump_json(), claim.id)
            )

    def add_image(
        self,
        claim: Claim,
        index: int,
        *,
        path: str,
        sha256: str,
        width: int,
        height: int,
        seed: int,
        peak: int | None = None,
    ) -> None:
        """Record picture `index` (from 0), whose file is already on disk.

        peak: the most memory in bytes that it took, None where that is not known.
        ClaimLost if the claim is no longer true, or if the picture is stored already: then the
        caller's file is superfluous.
        """
        with self._database.write() as connection:
            self._check(connection, claim)
            added = connection.execute(
                "INSERT INTO image (task_id, idx, path, sha256, width, height, seed, created, peak)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (task_id, idx) DO NOTHING",
                (claim.id, index, path, sha256, width, height, seed, time.time(), peak),
            )
            if added.rowcount != 1:
                raise ClaimLost(f"picture {index} of {claim.id} is stored already")

    def add_skipped(self, claim: Claim, index: int) -> None:
        """Record that the user does not want picture `index`, so that a retry leaves it out."""
        with self._database.write() as connection:
            self._check(connection, claim)
            connection.execute("INSERT OR IGNORE INTO skipped VALUES (?, ?)", (claim.id, index))

    def finish(self, claim: Claim, state: TaskState, code: str = "", message: str = "") -> None:
        """End the task. ClaimLost if the claim is no longer true."""
        if not state.is_final:
            raise ValueError(f"{state} is not a final state")
        with self._database.write() as connection:
            self._check(connection, claim)
            self._end(connection, claim.id, state, code, message)

    def release(self, claim: Claim) -> None:
        """Put the task back to its place in the queue: the worker is asked to leave."""
        with self._database.write() as connection:
            self._check(connection, claim)
            self._requeue(connection, claim.id, 0)

    # What a supervisor does

    def requeue_after_crash(self, worker_id: str, cause: str) -> list[TaskRecord]:
        """Take the tasks of a dead worker from it, and return them in their new state.

        cause: words that follow "the worker". The first time a task waits again, at its old
        place; the WORKER_DEATHS_PER_TASK-th time it fails. One that the user stopped is stopped,
        and one whose pictures are all stored is done.
        """
        with self._database.write() as connection:
            rows = connection.execute(
                "SELECT * FROM task WHERE state = 'running' AND worker_id = ?", (worker_id,)
            ).fetchall()
            for row in rows:
                task_id, deaths = row["id"], row["deaths"] + 1
                if self._settle(connection, row):
                    continue
                if deaths < limits.WORKER_DEATHS_PER_TASK:
                    self._requeue(connection, task_id, deaths)
                    continue
                self._end(
                    connection,
                    task_id,
                    TaskState.FAILED,
                    WorkerCrashed.code,
                    f"Painting failed {deaths} times: the worker {cause}. Try a smaller size or "
                    "fewer pictures, or another model.",
                )
                connection.execute("UPDATE task SET deaths = ? WHERE id = ?", (deaths, task_id))
            return [self._get(connection, row["id"]) for row in rows]

    def recover(self) -> list[str]:
        """Ids of tasks that a former run left as running; they wait again, at their old places.

        For the start and the end of the server, when no worker is alive. It counts as no death.
        """
        with self._database.write() as connection:
            rows = connection.execute("SELECT * FROM task WHERE state = 'running'").fetchall()
            for row in rows:
                if not self._settle(connection, row):
                    self._requeue(connection, row["id"], row["deaths"])
        return [row["id"] for row in rows]

    def fail(self, task_id: str, code: str, message: str) -> None:
        """Fail a task whoever has it: its worker's next write gets ClaimLost."""
        with self._database.write() as connection:
            if not self._get(connection, task_id).state.is_final:
                self._end(connection, task_id, TaskState.FAILED, code, message)

    def count_start(self) -> int:
        """How often a server has started on this file, this time included."""
        with self._database.write() as connection:
            inserted = connection.execute("INSERT INTO start (at) VALUES (?)", (time.time(),))
            return inserted.lastrowid or 0

    # What a viewer sees

    def get(self, task_id: str) -> TaskRecord:
        """One task. NotFound if there is none of this id."""
        with self._database.read() as connection:
            return self._get(connection, task_id)

    def images(self, task_id: str) -> list[ImageRecord]:
        """The pictures of a task so far, by index."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM image WHERE task_id = ? ORDER BY idx", (task_id,)
            ).fetchall()
        return [ImageRecord.from_row(row) for row in rows]

    def image(self, task_id: str, index: int) -> ImageRecord:
        """One picture. NotFound if it is not stored."""
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT * FROM image WHERE task_id = ? AND idx = ?", (task_id, index)
            ).fetchone()
        if row is None:
            raise NotFound("There is no such picture; it may have been removed.")
        return ImageRecord.from_row(row)

    def history(self, limit: int = 100, before: int | None = None) -> list[ImageRecord]:
        """Stored pictures, newest first; `before`: only those of a smaller `number`."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM image WHERE ?1 IS NULL OR number < ?1 ORDER BY number DESC LIMIT ?2",
                (before, limit),
            ).fetchall()
        return [ImageRecord.from_row(row) for row in rows]

    def timings(self, limit: int = PICTURES_READ) -> list[Timing]:
        """How long the newest `limit` pictures took, and how much memory, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT image.task_id, image.idx, image.created, image.peak, task.started, "
                "task.resolved, json_extract(task.spec, '$.image_prompts') AS image_prompts, "
                "(SELECT max(at) FROM start WHERE at <= task.started) AS server_start "
                "FROM image JOIN task ON task.id = image.task_id WHERE task.attempt = 1 "
                "AND task.resolved IS NOT NULL ORDER BY image.number DESC LIMIT ?",
                (limit,),
            ).fetchall()
        return timings_of(rows)

    def recent(self, limit: int = 50) -> list[TaskRecord]:
        """Tasks of any state, newest first."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT * FROM task ORDER BY number DESC LIMIT ?", (limit,)
            ).fetchall()
        return [TaskRecord.from_row(row) for row in rows]

    def waiting(self, limit: int = limits.QUEUE_LENGTH) -> list[str]:
        """Ids of the waiting tasks in the order in which they will run."""
        with self._database.read() as connection:
            rows = connection.execute(
                "SELECT id FROM task WHERE state = 'queued' ORDER BY number LIMIT ?", (limit,)
            ).fetchall()
        return [row["id"] for row in rows]

    def queue_length(self) -> int:
        """How many tasks wait."""
        with self._database.read() as connection:
            return self._count_queued(connection)

    def position(self, record: TaskRecord) -> int | None:
        """0 for a running task, 1 for the next in line, None for one that has ended."""
        if record.state is not TaskState.QUEUED:
            return 0 if record.state is TaskState.RUNNING else None
        with self._database.read() as connection:
            row = connection.execute(
                "SELECT count(*) FROM task WHERE state = 'queued' AND number <= ?",
                (record.number,),
            ).fetchone()
        return row[0]

    # Parts of the transactions above

    @staticmethod
    def _count_queued(connection: sqlite3.Connection, at_most: int = -1) -> int:
        return connection.execute(
            "SELECT count(*) FROM (SELECT 1 FROM task WHERE state = 'queued' LIMIT ?)", (at_most,)
        ).fetchone()[0]

    @staticmethod
    def _get(connection: sqlite3.Connection, task_id: str) -> TaskRecord:
        row = connection.execute("SELECT * FROM task WHERE id = ?", (task_id,)).fetchone()
        if row is None:
            raise NotFound("There is no such task; it may have been removed.")
        return TaskRecord.from_row(row)

    @staticmethod
    def _done_indices(connection: sqlite3.Connection, task_id: str) -> frozenset[int]:
        rows = connection.execute(
            "SELECT idx FROM image WHERE task_id = ?1"
            " UNION SELECT idx FROM skipped WHERE task_id = ?1",
            (task_id,),
        )
        return frozenset(row["idx"] for row in rows)

    @staticmethod
    def _check(connection: sqlite3.Connection, claim: Claim) -> None:
        row = connection.execute(
            "SELECT 1 FROM task WHERE id = ? AND state = 'running' AND worker_id = ?"
            " AND attempt = ?",
            (claim.id, claim.worker_id, claim.attempt),
        ).fetchone()
        if row is None:
            raise ClaimLost(f"attempt {claim.attempt} of {claim.id} is over")

    @staticmethod
    def _end(
        connection: sqlite3.Connection, task_id: str, state: TaskState, code: str, message: str
    ) -> None:
        connection.execute(
            "UPDATE task SET state = ?, code = ?, message = ?, ended = ?, worker_id = NULL"
            " WHERE id = ?",
            (state.value, code, message, time.time(), task_id),
        )

    @staticmethod
    def _requeue(connection: sqlite3.Connection, task_id: str, deaths: int) -> None:
        connection.execute(
            "UPDATE task SET state = 'queued', worker_id = NULL, deaths = ? WHERE id = ?",
            (deaths, task_id),
        )

    def _settle(self, connection: sqlite3.Connection, row: sqlite3.Row) -> bool:
        """End a task that needs no further attempt; True if it did."""
        state = None
        if row["stop_requested"]:
            state = TaskState.STOPPED
        else:
            wanted = TaskRecord.from_row(row).spec.image_count
            if len(self._done_indices(connection, row["id"])) >= wanted:
                state = TaskState.DONE
        if state:
            self._end(connection, row["id"], state, "", "")
        return state is not None
