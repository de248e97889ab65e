"""The real worker behind the real queue: fresh processes, a small real model, pictures on disk."""

import hashlib
import os
import signal
import time

import pytest

from modules.gallery.recipe import read_full_recipe
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.store import TaskStore
from modules.tasks.worker_pool import LocalWorkerPool

SECONDS = 120


@pytest.fixture
def store(settings):
    settings.data_path.mkdir(parents=True, exist_ok=True)
    store = TaskStore(settings.database_path)
    yield store
    store.close()


@pytest.fixture
def pool(settings, store):
    pool = LocalWorkerPool(settings, store)
    pool.start()
    yield pool
    pool.close()


def watch(pool, task_id, until):
    """The first view for which `until` is true."""
    deadline, seq = time.monotonic() + SECONDS, -1
    while time.monotonic() < deadline:
        view = pool.wait(task_id, seq, 1.0)
        if view is None:
            continue
        if until(view):
            return view
        assert not view.state.is_final, view
        seq = view.seq
    raise AssertionError(f"nothing happened in {SECONDS} s: {pool.view(task_id)}")


def is_final(view):
    return view.state.is_final


def request(**values):
    return TaskSpec(**({"prompt": "a red house", "steps": 3, "seed": 5} | values))


def committed_files(settings, store, task_id):
    """Every picture of the store is on disk with its hash, and no other file is."""
    rows = store.images(task_id)
    for row in rows:
        data = (settings.output_path / row.path).read_bytes()
        assert hashlib.sha256(data).hexdigest() == row.sha256
    return [settings.output_path / row.path for row in rows]


def test_a_task_is_painted_stored_and_seen(settings, store, pool):
    task_id = pool.submit(request(image_count=2))
    view = watch(pool, task_id, is_final)
    assert view.state is TaskState.DONE, view.error
    assert [(image.index, image.seed) for image in view.images] == [(0, 5), (1, 6)]
    paths = committed_files(settings, store, task_id)
    assert [read_full_recipe(path).image.index for path in paths] == [0, 1]
    assert store.get(task_id).resolved.width == 64

    stopped = pool.submit(request(steps=200, image_count=8))
    watch(pool, stopped, lambda view: view.progress is not None and view.progress.step > 1)
    pressed = time.monotonic()
    pool.stop_task(stopped)
    assert watch(pool, stopped, is_final).state is TaskState.STOPPED
    assert time.monotonic() - pressed < 5

    bad = pool.submit(request(checkpoint="nowhere.safetensors"))
    assert watch(pool, bad, is_final).error.code == "E_MODEL_MISSING"
    assert f"task {bad} failed" in (settings.log_path / "worker.log").read_text(encoding="utf-8")
    assert watch(pool, pool.submit(request(seed=9)), is_final).state is TaskState.DONE


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGKILL")
def test_a_killed_worker_loses_no_finished_picture(settings, store, pool):
    task_id = pool.submit(request(image_count=2, steps=60))
    watch(pool, task_id, lambda view: len(view.images) == 1)
    first = store.images(task_id)[0]
    (worker,) = [w for w in pool.status().workers if w.pid]
    os.kill(worker.pid, signal.SIGKILL)
    view = watch(pool, task_id, is_final)
    assert view.state is TaskState.DONE, view.error
    assert len(committed_files(settings, store, task_id)) == 2
    assert store.images(task_id)[0] == first
    assert store.get(task_id).attempt == 2
