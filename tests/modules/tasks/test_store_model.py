"""The store against a plain model of it, over random sequences of everything that may happen."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.records import Claim, ClaimLost
from modules.tasks.store import TaskStore

WORKERS = st.sampled_from(["w0", "w1", "w2"])


@dataclass
class Model:
    """What a task should look like."""

    images: int
    state: TaskState = TaskState.QUEUED
    worker: str | None = None
    attempt: int = 0
    deaths: int = 0
    stop: bool = False
    done: set[int] = field(default_factory=set)

    def leave(self, *, died: bool) -> None:
        """Its worker is gone."""
        self.worker = None
        if self.stop:
            self.state = TaskState.STOPPED
        elif len(self.done) == self.images:
            self.state = TaskState.DONE
        elif died and self.deaths == 1:
            self.state, self.deaths = TaskState.FAILED, 2
        else:
            self.state = TaskState.QUEUED
            self.deaths += died


class StoreMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "easel.db"
        self.store = TaskStore(self.path)
        self.model: dict[str, Model] = {}
        self.claims: list[Claim] = []

    def teardown(self) -> None:
        self.store.close()
        self.folder.cleanup()

    def holds(self, claim: Claim) -> bool:
        task = self.model[claim.id]
        return (task.worker, task.attempt) == (claim.worker_id, claim.attempt)

    @rule(images=st.integers(1, 3))
    def submit(self, images: int) -> None:
        task_id = self.store.submit(TaskSpec(image_count=images))
        assert task_id not in self.model
        self.model[task_id] = Model(images)

    @rule(worker=WORKERS)
    def claim(self, worker: str) -> None:
        waiting = [i for i, task in self.model.items() if task.state is TaskState.QUEUED]
        claim = self.store.claim(worker)
        if not waiting:
            assert claim is None
            return
        assert claim is not None and claim.id == waiting[0]
        task = self.model[claim.id]
        task.state, task.worker = TaskState.RUNNING, worker
        task.attempt += 1
        assert (claim.attempt, claim.done_indices) == (task.attempt, task.done)
        self.claims.append(claim)

    @precondition(lambda self: self.claims)
    @rule(data=st.data(), skip=st.booleans())
    def picture(self, data: st.DataObject, skip: bool) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        task = self.model[claim.id]
        left = sorted(set(range(task.images)) - task.done) or [0]
        index = data.draw(st.sampled_from(left))

        def write() -> None:
            if skip:
                self.store.add_skipped(claim, index)
            else:
                self.store.add_image(claim, index, path="p", sha256="", width=8, height=8, seed=0)

        if not self.holds(claim):
            with pytest.raises(ClaimLost):
                write()
        elif index not in task.done:
            write()
            task.done.add(index)

    @precondition(lambda self: self.claims)
    @rule(
        data=st.data(),
        state=st.sampled_from([TaskState.DONE, TaskState.STOPPED, TaskState.FAILED]),
    )
    def finish(self, data: st.DataObject, state: TaskState) -> None:
        claim = data.draw(st.sampled_from(self.claims))
        if not self.holds(claim):
            with pytest.raises(ClaimLost):
                self.store.finish(claim, state)
            return
        self.store.finish(claim, state)
        self.model[claim.id].state, self.model[claim.id].worker = state, None

    @precondition(lambda self: self.model)
    @rule(data=st.data())
    def stop(self, data: st.DataObject) -> None:
        task_id = data.draw(st.sampled_from(sorted(self.model)))
        self.store.request_stop(task_id)
        task = self.model[task_id]
        if task.state is TaskState.QUEUED:
            task.state = TaskState.STOPPED
        elif task.state is TaskState.RUNNING:
            task.stop = True

    @rule(worker=WORKERS)
    def die(self, worker: str) -> None:
        self.store.requeue_after_crash(worker, "died")
        for task in self.model.values():
            if task.worker == worker:
                task.leave(died=True)

    @rule()
    def restart(self) -> None:
        self.store.close()
        self.store = TaskStore(self.path)
        self.store.recover()
        for task in self.model.values():
            if task.state is TaskState.RUNNING:
                task.leave(died=False)

    @invariant()
    def agrees(self) -> None:
        waiting = [i for i, task in self.model.items() if task.state is TaskState.QUEUED]
        assert self.store.waiting() == waiting
        for task_id, task in self.model.items():
            record = self.store.get(task_id)
            assert (record.state, record.worker_id, record.deaths) == (
                task.state,
                task.worker,
                task.deaths,
            )
            position = {TaskState.RUNNING: 0}.get(task.state)
            if task_id in waiting:
                position = waiting.index(task_id) + 1
            assert self.store.position(record) == position


TestStoreMachine = StoreMachine.TestCase
TestStoreMachine.settings = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
