"""Rows of the task store as frozen objects."""

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import Self

from pydantic import ValidationError

from modules.spec.errors import Cancelled, Conflict, StudioError
from modules.spec.flags import TaskState
from modules.spec.quality import with_quality
from modules.spec.task_spec import ResolvedSpec, TaskSpec


class ClaimLost(Cancelled):
    """The task belongs to somebody else by now: drop the work, write nothing.

    A worker that was believed dead gets this from every write. It unwinds like a Stop.
    """


@dataclass(frozen=True, slots=True)
class TaskRecord:
    """One task. Times are seconds since 1970, for people only; nothing is decided by them.

    number: place in the queue's order, growing with every submit. attempt: how often it was
    claimed, and so the fence of the current claim. deaths: workers that died while they had it.
    """

    number: int
    id: str
    owner: str
    spec: TaskSpec
    resolved: ResolvedSpec | None
    state: TaskState
    attempt: int
    deaths: int
    worker_id: str | None
    stop_requested: bool
    code: str
    message: str
    created: float
    started: float | None
    ended: float | None

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """A row of the task table. A spec that is no longer valid is shown as an empty one, what
        it came to as None."""
        try:
            spec = parse_spec(row["spec"])
        except StudioError:
            spec = TaskSpec()
        return cls(
            number=row["number"],
            id=row["id"],
            owner=row["owner"],
            spec=spec,
            resolved=parse_resolved(row["resolved"]),
            state=TaskState(row["state"]),
            attempt=row["attempt"],
            deaths=row["deaths"],
            worker_id=row["worker_id"],
            stop_requested=bool(row["stop_requested"]),
            code=row["code"],
            message=row["message"],
            created=row["created"],
            started=row["started"],
            ended=row["ended"],
        )


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """One stored picture. path: relative to the output folder, with forward slashes.

    number: grows with every picture; the cursor of the history.
    """

    number: int
    task_id: str
    index: int
    path: str
    sha256: str
    width: int
    height: int
    seed: int
    created: float

    @classmethod
    def from_row(cls, row: sqlite3.Row) -> Self:
        """A row of the image table."""
        return cls(
            number=row["number"],
            task_id=row["task_id"],
            index=row["idx"],
            path=row["path"],
            sha256=row["sha256"],
            width=row["width"],
            height=row["height"],
            seed=row["seed"],
            created=row["created"],
        )


@dataclass(frozen=True, slots=True)
class Claim:
    """A task in a worker's hands. Writes name it, and fail with ClaimLost once it is not true.

    done_indices: pictures (from 0) that need not be made: stored or skipped in an attempt before.
    """

    id: str
    spec: TaskSpec
    worker_id: str
    attempt: int
    done_indices: frozenset[int]


def parse_spec(text: str) -> TaskSpec:
    """A stored spec. SpecError or LimitError if it is not valid for this version."""
    return TaskSpec.from_mapping(with_quality(json.loads(text)))


def parse_resolved(text: str | None) -> ResolvedSpec | None:
    """What a stored task came to; None where that is not known or not valid for this version."""
    try:
        return ResolvedSpec.model_validate_json(text) if text else None
    except ValidationError:
        return None


def with_seed_of(spec: TaskSpec, owner: str, key: str | None) -> TaskSpec:
    """`spec` with a seed: its own, or one that `owner` gets for an Idempotency-Key each time."""
    if spec.seed is not None or key is None:
        return spec.with_fixed_seed()
    digest = hashlib.sha256(f"{owner}\0{key}".encode("utf-8", "replace")).digest()
    return spec.model_copy(update={"seed": int.from_bytes(digest[:4], "big")})


def digest_of(request: TaskSpec) -> str:
    """What tells a request as it came from every other: SHA-256 of what it names, no default."""
    return hashlib.sha256(request.model_dump_json(exclude_unset=True).encode()).hexdigest()


def insist_on_same(spec: TaskSpec, stored: str) -> None:
    """Conflict unless `stored` is what `spec` was stored as; the seed may have been drawn."""
    first = TaskSpec.from_mapping(json.loads(stored))
    if spec not in (first, first.model_copy(update={"seed": None})):
        raise Conflict(
            "This Idempotency-Key came with another request before; send this one with a new key."
        )
