"""Views: newest wins, nothing goes backwards, waiting ends at once when there is news."""

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Ended, Loading, Preview, Progress
from modules.tasks.store import TaskStore
from modules.tasks.view_board import ViewBoard


@pytest.fixture
def store(tmp_path: Path) -> Iterator[TaskStore]:
    opened = TaskStore(tmp_path / "easel.db")
    yield opened
    opened.close()


def progress(step: int, image: int = 1) -> Progress:
    return Progress(image=image, image_count=2, step=step, steps=10)


def run(store: TaskStore, board: ViewBoard, worker: str = "w"):
    claim = store.claim(worker)
    board.started(claim.id, claim.attempt)
    return claim


def test_every_change_grows_seq_and_reading_does_not(store):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec())
    seqs = [board.view(task_id).seq, board.view(task_id).seq]
    assert seqs[0] == seqs[1]
    claim = run(store, board)
    for event in (
        Loading(message="loading"),
        progress(1),
        Preview(jpeg=b"1", width=1, height=1),
        progress(2),
    ):
        board.fold(task_id, claim.attempt, event)
        seqs.append(board.view(task_id).seq)
    assert seqs[1:] == sorted(set(seqs))
    store.finish(claim, TaskState.DONE)
    board.fold(task_id, claim.attempt, Ended(state=TaskState.DONE))
    assert board.view(task_id).seq > seqs[-1]


def test_seq_grows_over_restarts_and_stays_exact_in_javascript(store):
    task_id = store.submit(TaskSpec())
    old = ViewBoard(store, 1)
    for _ in range(100):
        old.wish(task_id, "x")
    last = old.view(task_id).seq
    new = ViewBoard(store, 2)
    assert last < new.view(task_id).seq < 2**53
    assert ViewBoard(store, 9_000_000).view(task_id).seq < 2**53


def test_only_the_newest_progress_and_preview_count(store):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec())
    claim = run(store, board)
    board.fold(task_id, claim.attempt, Loading(message="loading mini (74 MB)"))
    assert board.view(task_id).message == "loading mini (74 MB)"
    numbers = []
    for step in range(1, 4):
        board.fold(task_id, claim.attempt, Preview(jpeg=b"%d" % step, width=1, height=1))
        board.fold(task_id, claim.attempt, progress(step))
        numbers.append(board.preview(task_id)[0])
    view = board.view(task_id)
    assert (view.progress.step, view.loading, view.message) == (3, None, "")
    assert board.preview(task_id)[1].jpeg == b"3" and numbers == sorted(set(numbers))


def test_events_of_a_lost_attempt_are_dropped(store):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec())
    first = run(store, board, "w1")
    board.fold(task_id, first.attempt, progress(9))
    store.requeue_after_crash("w1", "died")
    board.refresh(task_id, "The worker died.")
    view = board.view(task_id)
    assert (view.state, view.progress, view.message) == (
        TaskState.QUEUED,
        None,
        "The worker died.",
    )
    board.fold(task_id, first.attempt, progress(9))
    assert board.view(task_id).progress is None
    second = run(store, board, "w2")
    board.fold(task_id, first.attempt, progress(9))
    assert board.view(task_id).progress is None
    assert board.view(task_id).message == ""
    board.fold(task_id, second.attempt, progress(1))
    assert board.view(task_id).progress.step == 1


def test_a_wish_is_shown_over_what_the_worker_says_until_it_is_fulfilled(store):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec(image_count=2))
    claim = run(store, board)
    board.fold(task_id, claim.attempt, progress(1))
    board.wish(task_id, "Skipping this picture…")
    board.fold(task_id, claim.attempt, progress(2))
    assert board.view(task_id).message == "Skipping this picture…"
    board.fold(task_id, claim.attempt, progress(1, image=2))
    assert board.view(task_id).message == ""


@pytest.mark.parametrize("image", [1, 2])
def test_a_wish_from_before_the_first_step_is_fulfilled_by_it(store, image):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec(image_count=2))
    claim = run(store, board)
    board.fold(task_id, claim.attempt, Loading(message="loading"))
    board.wish(task_id, "Skipping this picture…")
    assert board.view(task_id).message == "Skipping this picture…"
    board.fold(task_id, claim.attempt, progress(1, image=image))
    assert board.view(task_id).message == ""


def test_a_notice_reaches_waiting_tasks_only(store):
    board = ViewBoard(store, 1)
    running, waiting = store.submit(TaskSpec()), store.submit(TaskSpec())
    run(store, board)
    before = board.view(waiting).seq
    board.set_notice("The worker is being restarted.")
    assert board.view(waiting).message == "The worker is being restarted."
    assert board.view(waiting).seq > before
    assert board.view(running).message == ""
    board.set_notice("")
    assert board.view(waiting).message == ""


def test_wait_returns_as_soon_as_there_is_news(store):
    board = ViewBoard(store, 1)
    task_id = store.submit(TaskSpec())
    seq = board.view(task_id).seq
    assert board.wait(task_id, seq - 1, 0).seq == seq
    assert board.wait(task_id, seq, 0.01) is None
    timer = threading.Timer(0.1, board.wish, [task_id, "news"])
    began = time.monotonic()
    timer.start()
    assert board.wait(task_id, seq, 10).message == "news"
    assert 0.09 < time.monotonic() - began < 5
    timer.join()


def test_wait_does_not_wake_for_other_tasks_and_ends_with_the_task(store):
    board = ViewBoard(store, 1)
    first, second = store.submit(TaskSpec()), store.submit(TaskSpec())
    claim = run(store, board)
    seq = board.view(first).seq
    board.wish(second, "something else")
    assert board.wait(first, seq, 0.05) is None

    def end() -> None:
        store.finish(claim, TaskState.FAILED, "E_OOM", "Out of memory.")
        board.fold(first, claim.attempt, Ended(state=TaskState.FAILED))

    timer = threading.Timer(0.1, end)
    timer.start()
    view = board.wait(first, seq, 10)
    timer.join()
    assert view.state is TaskState.FAILED and view.error.code == "E_OOM"
    # Whoever comes late gets the end at once, with whatever number.
    assert board.wait(first, view.seq + 100, 10) == view
