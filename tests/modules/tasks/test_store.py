"""The durable queue: order, fencing, retries, races, and what a broken disk looks like."""

import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.spec import limits
from modules.spec.errors import (
    ConfigError,
    Conflict,
    DiskFull,
    InstanceRunning,
    LimitError,
    NotFound,
)
from modules.spec.flags import TaskState
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.tasks import ids
from modules.tasks.migrations import MIGRATIONS
from modules.tasks.records import Claim, ClaimLost
from modules.tasks.store import TaskStore

ROOT = Path(__file__).parents[3]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "easel.db"


@pytest.fixture
def store(path: Path) -> Iterator[TaskStore]:
    opened = TaskStore(path)
    yield opened
    opened.close()


def spec(images: int = 1, **values: object) -> TaskSpec:
    return TaskSpec(image_count=images, **values)


def claimed(store: TaskStore, worker: str = "w1") -> Claim:
    claim = store.claim(worker)
    assert claim is not None
    return claim


def add(store: TaskStore, claim: Claim, index: int) -> None:
    store.add_image(claim, index, path=f"{index}.png", sha256="", width=8, height=8, seed=index)


def test_submit_keeps_the_spec_and_fixes_the_seed(store):
    task_id = store.submit(spec(2, prompt="a fox\u202e 🦊"))
    record = store.get(task_id)
    assert record.state is TaskState.QUEUED
    assert record.spec.prompt == "a fox\u202e 🦊"
    assert record.spec.seed is not None
    assert store.get(store.submit(spec(seed=limits.SEED_MAX))).spec.seed == limits.SEED_MAX


def test_ids_are_unique_sortable_and_safe(store, monkeypatch):
    made = [store.submit(spec()) for _ in range(50)]
    assert made == sorted(set(made)) and all(
        re.fullmatch("[0-9a-hjkmnp-tv-z]{26}", task_id) for task_id in made
    )
    maker = ids.IdMaker()
    first = maker.make()
    monkeypatch.setattr(time, "time_ns", lambda: 0)  # the clock jumps back to 1970
    assert maker.make() > first


def test_order_is_first_come_first_served_whatever_the_clock_says(store, monkeypatch):
    times = iter([5e9, 1.0, 3e9, 2.0])
    monkeypatch.setattr(time, "time", lambda: next(times, 0.0))
    made = [store.submit(spec()) for _ in range(4)]
    assert store.waiting() == made
    assert [claimed(store, f"w{i}").id for i in range(4)] == made
    assert store.claim("w9") is None


def test_positions(store):
    made = [store.submit(spec()) for _ in range(3)]
    claim = claimed(store)
    assert [store.position(store.get(i)) for i in made] == [0, 1, 2]
    store.finish(claim, TaskState.DONE)
    store.request_stop(made[1])
    assert [store.position(store.get(i)) for i in made] == [None, None, 1]


def test_an_idempotency_key_gives_one_task_per_owner(store):
    first = store.submit(spec(), idempotency_key="k")
    assert store.submit(spec(), idempotency_key="k") == first
    with pytest.raises(Conflict, match="new key"):
        store.submit(spec(prompt="other"), idempotency_key="k")
    with pytest.raises(Conflict):
        store.submit(spec(seed=store.get(first).spec.seed + 1), idempotency_key="k")
    assert store.submit(spec(), owner="b", idempotency_key="k") != first
    assert store.queue_length() == 2


def test_the_queue_has_a_limit(store, monkeypatch):
    monkeypatch.setattr(limits, "QUEUE_LENGTH", 2)
    store.submit(spec(), idempotency_key="k")
    store.submit(spec())
    with pytest.raises(LimitError, match="2 tasks"):
        store.submit(spec())
    store.submit(spec(), idempotency_key="k")  # known already, so not one more
    claimed(store)
    store.submit(spec())


def test_a_late_worker_can_write_nothing(store):
    task_id = store.submit(spec(2))
    late = claimed(store, "w1")
    add(store, late, 0)
    store.requeue_after_crash("w1", "died")
    now = claimed(store, "w2")
    assert now.attempt == 2 and now.done_indices == {0}
    resolved = ResolvedSpec(
        checkpoint="a",
        width=8,
        height=8,
        seeds=(1,),
        steps=1,
        cfg_scale=1.0,
        sampler="euler",
        scheduler="karras",
    )
    for write in (
        lambda: add(store, late, 1),
        lambda: store.add_skipped(late, 1),
        lambda: store.set_resolved(late, resolved),
        lambda: store.finish(late, TaskState.DONE),
        lambda: store.release(late),
    ):
        with pytest.raises(ClaimLost):
            write()
    assert [image.index for image in store.images(task_id)] == [0]
    store.set_resolved(now, resolved)
    add(store, now, 1)
    store.finish(now, TaskState.DONE)
    assert store.get(task_id).resolved == resolved
    with pytest.raises(ClaimLost):
        store.finish(now, TaskState.FAILED)
    assert store.get(task_id).state is TaskState.DONE


def test_a_worker_id_that_comes_back_is_fenced_by_the_attempt(store):
    store.submit(spec())
    late = claimed(store, "w1")
    store.requeue_after_crash("w1", "died")
    claimed(store, "w1")
    with pytest.raises(ClaimLost):
        add(store, late, 0)


def test_a_picture_is_stored_once(store):
    store.submit(spec())
    claim = claimed(store)
    add(store, claim, 0)
    with pytest.raises(ClaimLost):
        add(store, claim, 0)


def test_two_deaths_fail_a_task_which_kept_its_place_between(store):
    poison, after = store.submit(spec()), store.submit(spec())
    claimed(store, "w1")
    (record,) = store.requeue_after_crash("w1", "died")
    assert record.state is TaskState.QUEUED and record.deaths == 1
    assert store.waiting() == [poison, after]
    claimed(store, "w2")
    (record,) = store.requeue_after_crash("w2", "ran out of memory")
    assert record.state is TaskState.FAILED and record.code == "E_WORKER_CRASHED"
    assert "ran out of memory" in record.message
    assert store.waiting() == [after]
    assert store.requeue_after_crash("w2", "died") == []


def test_a_crash_after_the_last_picture_loses_nothing(store):
    task_id = store.submit(spec(3))
    claim = claimed(store, "w1")
    add(store, claim, 0)
    store.add_skipped(claim, 1)
    add(store, claim, 2)
    store.requeue_after_crash("w1", "died")
    assert store.get(task_id).state is TaskState.DONE


def test_skipped_pictures_are_not_made_by_a_retry(store):
    store.submit(spec(3))
    store.add_skipped(claimed(store, "w1"), 1)
    store.requeue_after_crash("w1", "died")
    assert claimed(store, "w2").done_indices == {1}


def test_stop_of_a_running_task_is_kept_through_a_crash(store):
    task_id = store.submit(spec(2))
    claim = claimed(store, "w1")
    assert not store.stop_is_requested(claim)
    assert store.request_stop(task_id).state is TaskState.RUNNING
    assert store.stop_is_requested(claim)
    store.requeue_after_crash("w1", "died")
    assert store.get(task_id).state is TaskState.STOPPED
    assert store.request_stop(task_id).state is TaskState.STOPPED


def test_a_restart_takes_running_tasks_back_without_counting_a_death(path):
    first = TaskStore(path)
    running, waiting, stopped = (first.submit(spec(2)) for _ in range(3))
    claim = claimed(first, "w1")
    add(first, claim, 0)
    claimed(first, "w2")
    claimed(first, "w3")
    first.request_stop(stopped)
    first.close()
    second = TaskStore(path)
    assert second.recover() == [running, waiting, stopped]
    assert second.waiting() == [running, waiting]
    assert second.get(running).deaths == 0
    before = second.get(running).started
    assert second.get(stopped).state is TaskState.STOPPED
    assert claimed(second, "w1").done_indices == {0}
    assert second.get(running).started > before  # the night between is no painting time
    with pytest.raises(ClaimLost):
        add(second, claim, 1)
    assert second.count_start() + 1 == second.count_start()
    second.close()


def test_fail_takes_a_task_from_its_worker(store):
    task_id = store.submit(spec())
    claim = claimed(store)
    store.fail(task_id, "E_TIMEOUT", "Too long.")
    assert store.get(task_id).code == "E_TIMEOUT"
    with pytest.raises(ClaimLost):
        store.finish(claim, TaskState.DONE)
    store.fail(task_id, "E_OTHER", "")
    assert store.get(task_id).code == "E_TIMEOUT"


def test_history_is_newest_first_and_goes_on_from_a_cursor(store):
    task_id = store.submit(spec(5))
    claim = claimed(store)
    for index in range(5):
        add(store, claim, index)
    page = store.history(limit=2)
    assert [image.index for image in page] == [4, 3]
    assert [image.index for image in store.history(2, before=page[-1].number)] == [2, 1]
    assert store.image(task_id, 3).path == "3.png"
    for wrong in ((task_id, 9), ("0" * 26, 0)):
        with pytest.raises(NotFound):
            store.image(*wrong)
    with pytest.raises(NotFound):
        store.get("nobody")


def test_a_spec_of_another_version_fails_alone(store, path):
    old, after = store.submit(spec()), store.submit(spec())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE task SET spec = '{\"steps\": 0}' WHERE id = ?", (old,))
    connection.close()
    assert claimed(store).id == after
    assert store.get(old).code == "E_INPUT"
    assert len(store.recent()) == 2


def test_what_another_version_made_of_a_task_is_not_known(store, path):
    task = store.submit(spec())
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE task SET resolved = ?", ('{"sampler": "of-tomorrow"}',))
    connection.close()
    assert [(record.id, record.resolved) for record in store.recent()] == [(task, None)]


def test_a_task_of_an_older_program_is_painted_as_it_was_meant(store, path):
    old = store.submit(spec(), idempotency_key="k")
    with sqlite3.connect(path) as connection:
        fields = "'$.sharpness', '$.adm_end', '$.performance', '$.refiner'"
        connection.execute(f"UPDATE task SET spec = json_remove(spec, {fields})")
    connection.close()
    assert store.submit(spec(), idempotency_key="k") == old
    assert (store.get(old).spec.sharpness, store.get(old).spec.adm_end) == (0.0, 0.0)
    assert claimed(store).spec.sharpness == 0.0


RACER = """
import sys, time
from pathlib import Path
from modules.tasks.store import TaskStore
store = TaskStore(Path(sys.argv[1]))
print("ready", flush=True)
sys.stdin.readline()
while claim := store.claim(sys.argv[2]):
    index = len(claim.done_indices)
    store.add_image(claim, index, path=sys.argv[2], sha256="", width=8, height=8, seed=0)
    print(f"{claim.id}/{index}.", flush=True)
    time.sleep(0.002)  # SQLite's lock is not fair: let the other one in
"""


def racer(path: Path, name: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", RACER, str(path), name],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_racing_processes_claim_each_task_exactly_once(store, path):
    made = [store.submit(spec(2)) for _ in range(60)]
    racers = [racer(path, f"w{i}") for i in range(2)]
    for process in racers:
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=60)[0].split() for process in racers]
    assert sorted(outputs[0] + outputs[1]) == [f"{task_id}/0." for task_id in made]
    assert all(outputs), "one of them never got its turn"


def test_racing_threads_claim_each_task_exactly_once(store):
    made = [store.submit(spec()) for _ in range(40)]
    got: list[str] = []

    def work(name: str) -> None:
        while claim := store.claim(name):
            got.append(claim.id)

    threads = [threading.Thread(target=work, args=(f"w{i}",)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == made


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL")
def test_kill_9_in_the_middle_of_writes_keeps_all_that_was_acknowledged(store, path):
    for _ in range(200):
        store.submit(spec(2))
    acknowledged: list[str] = []
    for round_number in range(4):
        process = racer(path, f"w{round_number}")
        assert process.stdout.readline() == "ready\n"
        process.stdin.write("go\n")
        process.stdin.flush()
        acknowledged += [process.stdout.readline().strip() for _ in range(5 + 7 * round_number)]
        process.send_signal(signal.SIGKILL)
        acknowledged += process.communicate()[0].split()
        store.requeue_after_crash(f"w{round_number}", "died")
    store.verify()
    assert len(set(acknowledged)) >= 60
    for line in acknowledged:
        if line.endswith("."):  # else it was cut off by the kill
            task_id, index = line.rstrip(".").split("/")
            assert store.image(task_id, int(index)).task_id == task_id
    assert len(store.recent(1000)) == 200


def test_a_locked_database_is_said_in_words(path):
    store = TaskStore(path, busy_seconds=0.1)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(InstanceRunning, match="locked"):
        store.submit(spec())
    other.execute("ROLLBACK")
    other.close()
    store.submit(spec())
    store.close()


def test_while_a_write_waits_for_another_program_others_may_read(path):
    store = TaskStore(path, busy_seconds=10)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    writer = threading.Thread(target=store.submit, args=[spec()])
    writer.start()
    time.sleep(0.2)
    began = time.monotonic()
    assert [store.queue_length() for _ in range(3)] == [0, 0, 0]
    assert time.monotonic() - began < 2
    assert writer.is_alive()
    other.execute("ROLLBACK")
    other.close()
    writer.join(5)
    assert store.queue_length() == 1
    store.close()


def test_a_full_disk_is_said_in_words_and_nothing_is_half_written(store, path):
    kept = store.submit(spec())
    with store._database.write() as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
        connection.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(DiskFull, match="free some space"):
        for _ in range(100):
            store.submit(spec(prompt="x" * 4000))
    length = store.queue_length()
    assert store.waiting()[0] == kept
    with store._database.write() as connection:
        connection.execute("PRAGMA max_page_count = 1000000")
    store.submit(spec())
    assert store.queue_length() == length + 1


@pytest.mark.parametrize("content", [b"not a database at all" * 200, b"\x00" * 5000 + b"x"])
def test_a_file_that_is_no_database_is_refused_and_left_alone(path, content):
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ConfigError, match="damaged"):
        TaskStore(path)
    assert path.read_bytes() == content


def test_damage_in_the_middle_is_found(path):
    store = TaskStore(path)
    for _ in range(50):
        store.submit(spec(prompt="x" * 2000))
    store.close()
    with path.open("r+b") as file:
        file.seek(4096 * 8)
        file.write(b"\xff" * 4096)
    store = TaskStore(path)
    with pytest.raises(ConfigError, match="damaged"):
        store.verify()
    store.close()


def test_a_newer_database_is_refused(path):
    TaskStore(path).close()
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA user_version = 99")
    connection.close()
    with pytest.raises(ConfigError, match="newer Easel"):
        TaskStore(path)


def test_a_data_folder_that_cannot_be_is_said_in_words(tmp_path):
    (tmp_path / "data").write_text("a file", encoding="utf-8")
    with pytest.raises(ConfigError, match="data folder"):
        TaskStore(tmp_path / "data" / "easel.db")


def test_a_list_of_the_first_version_is_read_on(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    connection = sqlite3.connect(path)
    connection.executescript(MIGRATIONS[0] + ";PRAGMA user_version = 1;")
    connection.execute(
        "INSERT INTO task (id, owner, schema_version, spec, state, created)"
        " VALUES ('a', 'local', 1, '{}', 'done', 1.0)"
    )
    connection.execute(
        "INSERT INTO image (task_id, idx, path, sha256, width, height, seed, created)"
        " VALUES ('a', 0, 'a.png', '', 8, 8, 1, 2.0)"
    )
    connection.commit()
    connection.close()
    store = TaskStore(path)
    assert store.image("a", 0).path == "a.png"
    store.submit(spec())
    claim = claimed(store)
    store.add_image(claim, 0, path="b", sha256="", width=8, height=8, seed=2, peak=5)
    assert len(store.history()) == 2
    store.close()


def test_kill_9_before_the_first_table_is_repaired_by_the_next_start(path):
    TaskStore(path).close()
    copy = path.with_name("half.db")
    shutil.copy(path, copy)
    connection = sqlite3.connect(copy)
    connection.executescript("DROP TABLE start; DROP TABLE skipped; DROP TABLE image;")
    connection.executescript("DROP TABLE task; PRAGMA user_version = 0;")
    connection.close()
    store = TaskStore(copy)
    assert store.submit(spec()) in store.waiting()
    store.close()


def test_the_file_promises_what_the_docstring_says(store):
    with store._database.read() as connection:
        values = {
            name: connection.execute(f"PRAGMA {name}").fetchone()[0]
            for name in ("journal_mode", "synchronous", "foreign_keys")
        }
    assert values == {"journal_mode": "wal", "synchronous": 2, "foreign_keys": 1}
    assert os.path.exists(f"{store.path}-wal")


def test_timings_come_from_the_pictures(store, monkeypatch):
    clock = iter([100.0, 101.0, 108.0, 114.0, 130.0])
    own, usual = threading.get_ident(), time.time  # other threads may look at the clock, too
    monkeypatch.setattr(
        time, "time", lambda: next(clock) if threading.get_ident() == own else usual()
    )
    store.submit(spec(2))
    claim = claimed(store)
    resolved = ResolvedSpec(
        checkpoint="a",
        width=8,
        height=8,
        seeds=(1, 2),
        steps=4,
        cfg_scale=1.0,
        sampler="euler",
        scheduler="karras",
    )
    store.set_resolved(claim, resolved)
    add(store, claim, 0)
    store.add_image(claim, 1, path="b", sha256="", width=8, height=8, seed=2, peak=2**40)
    found = store.timings()
    assert [timing.peak for timing in found] == [2**40, None]
    assert [timing.seconds for timing in found] == [6.0, 7.0]
    assert found[0].resolved == resolved
