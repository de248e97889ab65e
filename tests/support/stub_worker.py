"""A worker without an engine: it sleeps for steps and saves small flat pictures.

The prompt steers it, as words in any order:
    slow          50 ms a step instead of 2
    crash         kill this process with SIGKILL at the second step of the first picture
    crash-once    the same, but only in the first attempt
    crash-second  the same at the second picture, only in the first attempt
    hang          stop this process as a whole (SIGSTOP)
    deaf          never look at the cancel token
    stuck         show no progress for ever, but obey Stop
    wait-second   the same after the first step of the second picture, only in the first attempt;
                  obey Skip, too
    fail          raise a ModelMissing
    recycle       finish, then exit with the code that asks for a new process
    mute          finish, and kill this process before anybody is told
"""

import hashlib
import os
import signal
import sys
import time
from multiprocessing.connection import Connection
from pathlib import Path

from PIL import Image

from modules.settings.config import Settings
from modules.spec.errors import Cancelled, ModelMissing, Skipped, StudioError
from modules.spec.flags import TaskState
from modules.tasks.events import Loading, Preview, Progress
from modules.tasks.records import ClaimLost
from modules.tasks.worker_session import ClaimedTask, WorkerSession

SIDE = 8


def worker_main(connection: Connection, settings: Settings, worker_id: str) -> None:
    """The stub's front door, as a pool calls it."""
    session = WorkerSession(
        connection, settings.database_path, worker_id, beat_seconds=0.05, busy_seconds=0.3
    )
    for task in session.tasks():
        words = set(task.spec.prompt.split())
        try:
            paint(task, words, settings.output_path)
            if "mute" in words:
                session.store.finish(task._claim, TaskState.DONE)
                os.kill(os.getpid(), signal.SIGKILL)
            task.finish(TaskState.DONE)
        except Cancelled:
            task.finish(TaskState.STOPPED)
        except StudioError as error:
            task.finish(TaskState.FAILED, error.code, str(error))
        if "recycle" in words:
            sys.exit(86)


def cannot_start(connection: Connection, settings: Settings, worker_id: str) -> None:
    """A front door behind which nothing works."""
    raise ModelMissing("The vocabulary is not installed; run setup again.")


def paint(task: ClaimedTask, words: set[str], output_path: Path) -> None:
    """Paint every picture that is not done yet."""
    task.emit(Loading(message="loading the stub"))
    if "fail" in words:
        raise ModelMissing("The model is gone. Choose another one.")
    for index in range(task.spec.image_count):
        if index in task.done_indices:
            continue
        try:
            paint_one(task, words, index)
        except Skipped:
            task.commit_skip(index)
        else:
            save(task, index, output_path)
        task.cancel.next_image()


def paint_one(task: ClaimedTask, words: set[str], index: int) -> None:
    """The steps of one picture."""
    for step in range(task.spec.steps):
        if "deaf" not in words:
            task.cancel.check()
        if step == 1:
            misbehave(task, words, index)
        time.sleep(0.05 if "slow" in words else 0.002)
        if "stuck" in words:
            while True:
                task.cancel.check()
                time.sleep(0.01)
        task.emit(
            Progress(
                image=index + 1,
                image_count=task.spec.image_count,
                step=step + 1,
                steps=task.spec.steps,
            )
        )
        task.emit(Preview(jpeg=b"preview %d" % step, width=1, height=1))
        while "wait-second" in words and index == 1 and task.attempt == 1:
            task.cancel.check()
            time.sleep(0.01)


def misbehave(task: ClaimedTask, words: set[str], index: int) -> None:
    """Die or freeze if the prompt says so."""
    first = task.attempt == 1
    if (
        ("crash" in words and index == 0)
        or ("crash-once" in words and first)
        or ("crash-second" in words and first and index == 1)
    ):
        os.kill(os.getpid(), signal.SIGKILL)
    if "hang" in words:
        os.kill(os.getpid(), signal.SIGSTOP)


def save(task: ClaimedTask, index: int, output_path: Path) -> None:
    """One PNG, whose colour is the seed's; its file goes away again if the task was lost."""
    seed = task.spec.seed_of(index)
    name = f"{task.id}_{index}_{task.attempt}.png"
    output_path.mkdir(parents=True, exist_ok=True)
    path = output_path / name
    Image.new("RGB", (SIDE, SIDE), (seed % 256, 0, 0)).save(path)
    sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
    try:
        task.commit_image(index, name, sha256, SIDE, SIDE, seed)
    except ClaimLost:
        path.unlink()
        raise
