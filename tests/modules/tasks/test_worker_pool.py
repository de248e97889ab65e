"""The pool with real worker processes and a real database file."""

import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from multiprocessing import Pipe
from pathlib import Path
from types import SimpleNamespace

import pytest

from modules.api.server import END_SECONDS
from modules.settings.config import Settings, load_settings
from modules.spec.errors import InstanceRunning, NotFound
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks import worker_pool
from modules.tasks.database import BUSY_SECONDS
from modules.tasks.events import TaskView
from modules.tasks.store import TaskStore
from modules.tasks.worker_pool import LocalWorkerPool, PoolTimings

STUB = "tests.support.stub_worker:worker_main"
QUICK = PoolTimings(backoff_first=0.05, backoff_max=0.2, tick=0.05)
ROOT = Path(__file__).parents[3]

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the stub kills itself by signal")


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings(
        ["--data-path", str(tmp_path / "data"), "--output-path", str(tmp_path / "out")], {}
    )


@pytest.fixture
def make_pool(settings: Settings) -> Iterator[Callable[..., LocalWorkerPool]]:
    made: list[tuple[LocalWorkerPool, TaskStore]] = []

    def make(
        timings: PoolTimings = QUICK,
        target: str = STUB,
        count: int = 1,
        busy_seconds: float = BUSY_SECONDS,
    ) -> LocalWorkerPool:
        store = TaskStore(settings.database_path, busy_seconds=busy_seconds)
        pool = LocalWorkerPool(settings, store, target, count, timings=timings)
        made.append((pool, store))
        pool.start()
        return pool

    yield make
    for pool, store in made:
        pool.close()
        store.close()


def spec(prompt: str = "", images: int = 1, steps: int = 3) -> TaskSpec:
    return TaskSpec(prompt=prompt, image_count=images, steps=steps, seed=5)


def until(
    pool: LocalWorkerPool, task_id: str, test: Callable[[TaskView], bool], seconds: float = 20.0
) -> TaskView:
    """Follow a task's views until one passes `test`; each must be newer than the one before."""
    deadline, seq = time.monotonic() + seconds, 0
    while time.monotonic() < deadline:
        view = pool.wait(task_id, seq, 0.5)
        if view is None:
            continue
        assert view.seq > seq
        if test(view):
            return view
        assert not view.state.is_final, f"ended early: {view}"
        seq = view.seq
    raise AssertionError(f"not reached in {seconds} s: {pool.view(task_id)}")


def ended(pool: LocalWorkerPool, task_id: str) -> TaskView:
    return until(pool, task_id, lambda view: view.state.is_final)


def has_preview(pool: LocalWorkerPool, after: int = 0) -> Callable[[TaskView], bool]:
    """A test of views: there is a preview with a number above `after`."""
    return lambda view: (found := pool.preview(view.id)) is not None and found[0] > after


def in_second(view: TaskView) -> bool:
    """The task is at its second picture, where a task with "wait-second" stays."""
    return view.progress is not None and view.progress.image == 2


def worker_pid(pool: LocalWorkerPool, number: int = 0) -> int:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        worker = pool.status().workers[number]
        if worker.state in ("idle", "busy"):
            assert worker.pid
            return worker.pid
        time.sleep(0.02)
    raise AssertionError("no worker came up")


def test_a_task_runs_and_its_pictures_are_rows_and_files(make_pool, settings):
    pool = make_pool()
    task_id = pool.submit(spec(images=3))
    view = ended(pool, task_id)
    assert view.state is TaskState.DONE
    assert view.position is None and view.error is None
    assert [image.url for image in view.images] == [f"/api/images/{task_id}/{i}" for i in range(3)]
    assert [image.seed for image in view.images] == [5, 6, 7]
    assert len(list(settings.output_path.iterdir())) == 3


def test_views_show_progress_and_the_newest_preview(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("slow wait-second", images=2, steps=20))
    view = until(pool, task_id, has_preview(pool))
    assert view.state is TaskState.RUNNING and view.position == 0
    number, preview = pool.preview(task_id)
    assert preview.jpeg.startswith(b"preview")
    until(pool, task_id, has_preview(pool, after=number))
    pool.stop_task(task_id)
    ended(pool, task_id)
    assert pool.preview(task_id) is None


def test_tasks_run_in_order_and_positions_shrink(make_pool):
    pool = make_pool()
    worker_pid(pool)
    ids = [pool.submit(spec("wait-second", images=2)) for _ in range(3)]
    for place, running in enumerate(ids):
        until(pool, running, in_second)
        positions = [pool.view(i).position for i in ids[place:]]
        assert positions == list(range(len(positions)))
        pool.stop_task(running)
    views = [ended(pool, i) for i in ids]
    assert views[0].ended <= views[1].started and views[1].ended <= views[2].started
    assert [view.id for view in pool.recent()] == ids[::-1]


def test_a_killed_worker_is_replaced_and_the_task_resumed(make_pool, settings):
    pool = make_pool()
    task_id = pool.submit(spec("crash-second", images=3))
    after = pool.submit(spec())
    told = until(pool, task_id, lambda v: "memory" in v.message)
    assert told.state is TaskState.QUEUED and told.position == 1
    assert "tried once more" in told.message and len(told.images) == 1
    view = ended(pool, task_id)
    assert view.state is TaskState.DONE and view.message == ""
    files = sorted(path.name for path in settings.output_path.glob(f"{task_id}*"))
    # The first picture is the first attempt's: it was not made again.
    assert files == [f"{task_id}_{i}_{1 if i == 0 else 2}.png" for i in range(3)]
    assert ended(pool, after).state is TaskState.DONE


def test_kill_from_outside_in_mid_task_is_survived(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("wait-second", images=2))
    until(pool, task_id, in_second)
    os.kill(worker_pid(pool), signal.SIGKILL)
    assert ended(pool, task_id).state is TaskState.DONE
    assert pool.status().workers[0].restarts == 1


def test_a_task_that_ended_unheard_is_shown_as_ended(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("mute", steps=2))
    assert until(pool, task_id, lambda view: view.state.is_final).state is TaskState.DONE


def test_a_poison_task_fails_with_a_reason_and_the_next_one_runs(make_pool):
    pool = make_pool()
    poison, after = pool.submit(spec("crash")), pool.submit(spec())
    view = ended(pool, poison)
    assert view.state is TaskState.FAILED
    assert view.error.code == "E_WORKER_CRASHED"
    assert "2 times" in view.error.message and "memory" in view.error.message
    assert ended(pool, after).state is TaskState.DONE


def test_a_frozen_worker_is_noticed_and_ended(make_pool):
    pool = make_pool(replace(QUICK, hung=1.5))
    frozen, after = pool.submit(spec("hang")), pool.submit(spec())
    view = ended(pool, frozen)
    assert view.error.code == "E_WORKER_CRASHED" and "did not answer" in view.error.message
    assert ended(pool, after).state is TaskState.DONE


def test_a_task_without_progress_times_out(make_pool):
    pool = make_pool(replace(QUICK, stalled=1.0))
    stuck, after = pool.submit(spec("stuck")), pool.submit(spec())
    view = ended(pool, stuck)
    assert view.state is TaskState.FAILED and view.error.code == "E_TIMEOUT"
    assert ended(pool, after).state is TaskState.DONE
    assert pool.status().workers[0].restarts == 0  # it obeyed the Stop


def test_a_failure_is_told_in_its_own_words(make_pool):
    pool = make_pool()
    view = ended(pool, pool.submit(spec("fail")))
    assert (view.error.code, view.error.message) == (
        "E_MODEL_MISSING",
        "The model is gone. Choose another one.",
    )


def test_stop_of_a_running_task_keeps_what_is_finished(make_pool):
    pool = make_pool()
    task_id, after = pool.submit(spec("wait-second", images=4)), pool.submit(spec())
    until(pool, task_id, in_second)
    began = time.monotonic()
    pool.stop_task(task_id)
    assert pool.view(task_id).message == "Stopping…"
    view = ended(pool, task_id)
    assert time.monotonic() - began < QUICK.cancel / 2  # the worker itself obeyed
    assert view.state is TaskState.STOPPED and len(view.images) == 1
    assert pool.status().workers[0].restarts == 0
    assert ended(pool, after).state is TaskState.DONE
    pool.stop_task(after)  # too late, and harmless
    assert pool.view(after).state is TaskState.DONE


def test_stop_of_a_waiting_task_takes_it_out_of_the_line(make_pool):
    pool = make_pool()
    first, second, third = (pool.submit(spec(words)) for words in ("stuck", "", ""))
    until(pool, first, lambda v: v.state is TaskState.RUNNING)
    pool.stop_task(second)
    assert pool.view(second).state is TaskState.STOPPED
    assert pool.view(second).started is None
    assert pool.view(third).position == 1
    pool.stop_task(first)
    assert ended(pool, third).state is TaskState.DONE
    assert pool.view(second).state is TaskState.STOPPED


def test_a_worker_that_ignores_stop_is_ended_and_the_task_is_stopped(make_pool):
    pool = make_pool(replace(QUICK, cancel=0.3))
    deaf, after = pool.submit(spec("deaf slow", steps=200)), pool.submit(spec())
    until(pool, deaf, lambda v: v.progress is not None)
    pool.stop_task(deaf)
    view = ended(pool, deaf)
    assert view.state is TaskState.STOPPED and view.error is None
    assert ended(pool, after).state is TaskState.DONE


def test_skip_ends_one_picture_only(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("wait-second", images=3))
    until(pool, task_id, in_second)
    pool.skip_image(task_id)
    view = ended(pool, task_id)
    assert view.state is TaskState.DONE
    assert [image.index for image in view.images] == [0, 2]


def test_a_recycling_worker_is_replaced_without_a_word(make_pool):
    pool = make_pool(replace(QUICK, backoff_first=60, backoff_max=60))
    ended(pool, pool.submit(spec("recycle")))
    assert ended(pool, pool.submit(spec())).state is TaskState.DONE
    assert pool.status().message == ""


def test_a_worker_that_cannot_start_says_why_to_waiting_tasks(make_pool):
    pool = make_pool(target="tests.support.stub_worker:cannot_start")
    task_id = pool.submit(spec())
    view = until(pool, task_id, lambda v: "vocabulary" in v.message)
    assert view.state is TaskState.QUEUED
    assert "could not start" in pool.status().message


def test_the_pause_before_a_restart_doubles_up_to_a_most(make_pool, monkeypatch):
    starts = []

    class DeadAtOnce:
        id, task_id, is_ready = "w0", None, False

        def __init__(self, *_):
            starts.append(time.monotonic())
            sentinel, writer = Pipe(duplex=False)
            writer.close()
            self.process = SimpleNamespace(is_alive=lambda: False, exitcode=1, sentinel=sentinel)

        def bury(self):
            self.process.sentinel.close()
            return "ended too early"

    monkeypatch.setattr(worker_pool, "WorkerProcess", DeadAtOnce)
    make_pool(PoolTimings(backoff_first=0.1, backoff_max=0.4, tick=0.02))
    deadline = time.monotonic() + 20
    while len(starts) < 5 and time.monotonic() < deadline:
        time.sleep(0.02)
    gaps = [after - before for before, after in pairwise(starts)]
    assert all(gap >= pause for gap, pause in zip(gaps, (0.1, 0.2, 0.4, 0.4), strict=True)), gaps
    assert gaps[0] < 0.3 and gaps[3] < 0.8, gaps  # 0.8: the next one without the limit


def test_two_workers_share_the_queue(make_pool):
    pool = make_pool(count=2)
    assert worker_pid(pool, 0) != worker_pid(pool, 1)
    ids = [pool.submit(spec("wait-second", images=2)) for _ in range(2)]
    for task_id in ids:  # each waits until it is skipped: they run side by side
        until(pool, task_id, in_second)
    for task_id in ids:
        pool.skip_image(task_id)
    after = [pool.submit(spec()) for _ in range(4)]
    assert all(ended(pool, i).state is TaskState.DONE for i in (*ids, *after))


def test_close_is_quick_and_the_running_task_waits_for_the_next_start(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("wait-second", images=2))
    until(pool, task_id, in_second)
    before = pool.view(task_id).seq
    pid = worker_pid(pool)
    began = time.monotonic()
    pool.close()
    assert time.monotonic() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    again = make_pool()
    view = again.view(task_id)
    assert view.seq > before and len(view.images) == 1
    assert ended(again, task_id).state is TaskState.DONE


def test_close_ends_a_deaf_worker_in_time(make_pool):
    pool = make_pool()
    task_id = pool.submit(spec("deaf slow", steps=200))
    until(pool, task_id, lambda v: v.progress is not None)
    pid = worker_pid(pool)
    began = time.monotonic()
    pool.begin_close()
    time.sleep(END_SECONDS)  # the page takes so long at most
    pool.close()
    assert time.monotonic() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_close_waits_for_no_other_program(make_pool, settings):
    pool = make_pool()
    task_id = pool.submit(spec("slow", steps=200))
    until(pool, task_id, lambda v: v.progress is not None)
    pid = worker_pid(pool)
    other = sqlite3.connect(settings.database_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    pool.close()
    pool._store.close()
    assert time.monotonic() - began < 3.0
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    other.execute("ROLLBACK")
    other.close()
    again = make_pool()
    assert not again.view(task_id).state.is_final
    again.stop_task(task_id)
    assert ended(again, task_id).state is TaskState.STOPPED


def test_a_list_locked_by_another_program_holds_up_and_loses_nothing(make_pool, settings):
    pool = make_pool(busy_seconds=0.3)
    task_id = pool.submit(spec("slow", images=2, steps=40))
    until(pool, task_id, lambda v: v.progress is not None)
    other = sqlite3.connect(settings.database_path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    view = until(pool, task_id, lambda v: "locked" in v.message)
    assert view.message.startswith("Another program holds the task list")
    assert view.message.endswith("nothing is lost.")
    with pytest.raises(InstanceRunning, match="locked; end it"):
        pool.submit(spec())
    with pytest.raises(InstanceRunning, match="locked; end it"):
        pool.stop_task(task_id)
    assert pool.view(task_id).state is TaskState.RUNNING
    other.execute("ROLLBACK")
    other.close()
    view = until(pool, task_id, lambda v: len(v.images) == 1)
    assert view.message == ""
    next_id = pool.submit(spec())
    assert len(ended(pool, task_id).images) == 2
    assert ended(pool, next_id).state is TaskState.DONE
    assert pool.status().workers[0].restarts == 0


def test_a_listener_hears_of_changes_until_it_is_removed(make_pool):
    pool = make_pool()
    heard: list[str] = []
    remove = pool.add_listener(heard.append)
    task_id = pool.submit(spec())
    ended(pool, task_id)
    assert set(heard) == {task_id}
    remove()
    heard.clear()
    ended(pool, pool.submit(spec()))
    assert not heard


def test_unknown_ids_and_quiet_tasks(make_pool):
    pool = make_pool()
    with pytest.raises(NotFound):
        pool.view("0" * 26)
    with pytest.raises(NotFound):
        pool.stop_task("0" * 26)
    task_id = pool.submit(spec("stuck"))
    view = until(pool, task_id, lambda v: v.loading is not None)
    assert pool.wait(task_id, view.seq + 5, 0.1) is None


SERVER = """
import sys, time
from modules.settings.config import load_settings
from modules.spec.task_spec import TaskSpec
from modules.tasks.store import TaskStore
from modules.tasks.worker_pool import LocalWorkerPool
if __name__ == "__main__":
    settings = load_settings(sys.argv[1:], {})
    pool = LocalWorkerPool(settings, TaskStore(settings.database_path), %r)
    pool.start()
    running = pool.submit(TaskSpec(prompt="wait-second", image_count=3, steps=3, seed=1))
    waiting = pool.submit(TaskSpec(prompt="", image_count=1, steps=2))
    while len(pool.view(running).images) < 1:
        pool.wait(running, 0, 1); time.sleep(0.01)
    print(running, waiting, pool.status().workers[0].pid, flush=True)
    time.sleep(60)
"""


def test_kill_9_of_the_server_loses_nothing_and_leaves_no_orphan(make_pool, settings, tmp_path):
    script = tmp_path / "server.py"
    script.write_text(SERVER % STUB, encoding="utf-8")
    server = subprocess.Popen(
        [
            sys.executable,
            str(script),
            *("--data-path", str(settings.data_path), "--output-path", str(settings.output_path)),
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout
    running, waiting, pid = server.stdout.readline().split()
    server.kill()
    server.wait()
    server.stdout.close()
    deadline = time.monotonic() + 3
    while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists() or sys.platform != "linux"

    pool = make_pool()
    view = ended(pool, running)
    assert view.state is TaskState.DONE and [image.index for image in view.images] == [0, 1, 2]
    assert [image.seed for image in view.images] == [1, 2, 3]
    first_attempts = list(settings.output_path.glob(f"{running}_0_*.png"))
    assert [path.name for path in first_attempts] == [f"{running}_0_1.png"]
    assert ended(pool, waiting).state is TaskState.DONE
