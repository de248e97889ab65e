"""The worker's side of the pool, without a process: a session over a pipe of this one."""

import threading
from collections.abc import Callable, Iterator
from multiprocessing import Pipe
from pathlib import Path

import pytest

from modules.spec.task_spec import TaskSpec
from modules.tasks import worker_session
from modules.tasks.store import TaskStore
from modules.tasks.worker_session import WorkerSession


@pytest.fixture
def make_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[], tuple[WorkerSession, Callable[..., None]]]]:
    """Gives a session and a function that sends it a command, as the pool does."""
    parked = threading.Semaphore(0)

    def park() -> None:  # where a worker would end its process
        parked.release()
        threading.Event().wait()

    monkeypatch.setattr(worker_session, "_die_as_orphan", park)
    ours, theirs = Pipe()
    sessions: list[WorkerSession] = []

    def make() -> tuple[WorkerSession, Callable[..., None]]:
        sessions.append(WorkerSession(theirs, tmp_path / "easel.db", "worker", beat_seconds=0.01))
        return sessions[-1], lambda *message: ours.send(message)

    yield make
    ours.close()
    for _ in range(2 * len(sessions)):  # each has a thread that speaks and one that listens
        assert parked.acquire(timeout=5)
    theirs.close()


def test_a_stop_that_comes_between_the_claim_and_the_start_is_obeyed(make_session, tmp_path):
    store = TaskStore(tmp_path / "easel.db")
    task_id = store.submit(TaskSpec(prompt="hills"))
    other_id = store.submit(TaskSpec(prompt="more hills"))
    session, command = make_session()
    claim = session.store.claim

    def claim_while_stop_is_pressed(worker_id):
        claimed = claim(worker_id)
        command("stop", task_id)
        assert session._wake.wait(5)  # the command has been taken in
        return claimed

    session.store.claim = claim_while_stop_is_pressed
    tasks = session.tasks()
    first = next(tasks)
    assert (first.id, first.cancel.is_stopped) == (task_id, True)
    second = next(tasks)
    assert (second.id, second.cancel.is_stopped) == (other_id, False)
    command("exit")
    assert list(tasks) == []
    store.close()
