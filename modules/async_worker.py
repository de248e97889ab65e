"""The worker's front door: a task comes in, pictures and events go out.

`handler` walks one task through the stages and raises whatever goes wrong; `run_task` is the
last line of defence around it, so that no task can end the worker; `worker_main` is what the
pool starts in a fresh process. Nothing here loads torch by being imported.
"""

import logging
import sys
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from multiprocessing.connection import Connection

from ldm_patched.modules.errors import EngineError
from modules.gallery.save import sweep_temporary_files
from modules.settings.config import Settings
from modules.settings.logs import start_logging
from modules.spec.errors import Cancelled, OutOfMemory, Skipped, StudioError
from modules.spec.flags import TaskState
from modules.tasks.events import Loading
from modules.tasks.worker_process import EXIT_RECYCLE
from modules.tasks.worker_session import WorkerSession
from modules.worker.failures import failure_of, is_device_lost, is_out_of_memory
from modules.worker.job import Job, TaskPort
from modules.worker.stages import control, decode, prompts, resolve, sample, save
from modules.worker.stages.control import apply_control_nets
from modules.worker.studio import Studio

__all__ = ["AsyncTask", "apply_control_nets", "handler", "run_task", "worker_main"]

logger = logging.getLogger(__name__)

LESS_MEMORY = "memory ran out; trying again in small parts, which takes longer"


@dataclass(frozen=True, slots=True)
class AsyncTask:
    """A request, whom to tell about it, and the studio that paints it."""

    port: TaskPort
    studio: Studio


def handler(task: AsyncTask) -> None:
    """Paint every picture of the task that is not done yet, one at a time.

    Finished pictures are committed whatever happens to the later ones. Raises Cancelled after a
    Stop, and StudioError, EngineError or anything unforeseen as it came.
    """
    job, studio = Job(task.port), task.studio
    try:
        resolve.run(job, studio)
        save.prepare(studio)
        _with_room(_prepare, job, studio)
        for index in range(len(job.settled.seeds)):
            if index in task.port.done_indices:
                continue
            job.next_image(index)
            if not save.adopt(job, studio):
                _paint(job, studio)
                # Not before: a Skip while models load is for the first that is painted.
                task.port.cancel.next_image()
    finally:
        studio.saver.wait()


def _prepare(job: Job, studio: Studio) -> None:
    prompts.run(job, studio)
    control.run(job, studio)


def _paint(job: Job, studio: Studio) -> None:
    """One picture; a Skip ends it and is recorded."""
    try:
        job.check()
        studio.memory_peak.start()
        _with_room(_sample_and_decode, job, studio)
    except Skipped:
        job.task.commit_skip(job.index)
        return
    save.run(job, studio)


def _sample_and_decode(job: Job, studio: Studio) -> None:
    if job.latents is None:  # a second try need not sample again when only decoding failed
        prompts.encode(job, studio)
        if job.unet is None:  # its LoRAs are not those of the picture before
            control.run(job, studio)
        sample.run(job, studio)
    decode.run(job, studio)


def _with_room(step: Callable[[Job, Studio], None], job: Job, studio: Studio) -> None:
    """Run a step; if memory runs out, free all there is and try once more in small parts.

    The rest of the task goes on in small parts, too: its pictures are all of one size.
    """
    try:
        return _run(step, job, studio)
    except Exception as error:
        if not is_out_of_memory(error) or job.is_sparing:
            raise
        logger.warning("memory ran out (%s); trying again with less", type(error).__name__)
    # Outside of the handler: the exception would hold on to the frames and their tensors.
    job.is_sparing = True
    studio.pipeline.make_room()
    job.task.emit(Loading(message=LESS_MEMORY))
    return _run(step, job, studio)


def _run(step: Callable[[Job, Studio], None], job: Job, studio: Studio) -> None:
    with studio.policy.budget.sparing() if job.is_sparing else nullcontext():
        step(job, studio)


def run_task(port: TaskPort, studio: Studio) -> None:
    """Run a task to one of its ends and say so. Only a lost device ends the process."""
    try:
        handler(AsyncTask(port, studio))
    except Cancelled:
        port.finish(TaskState.STOPPED)
    except Exception as error:  # noqa: BLE001 - last line of defence; logged in full
        failure = failure_of(error)
        if isinstance(error, StudioError | EngineError):
            logger.warning("task %s failed (%s): %s", port.id, failure.code, error)
        else:
            logger.exception("task %s failed (%s)", port.id, failure.code)
        port.finish(TaskState.FAILED, failure.code, failure.message)
        if failure.code == OutOfMemory.code:
            _forget_frames(error)
            studio.pipeline.make_room()
        if is_device_lost(error):
            logger.error("the device is lost; this process ends and a fresh one takes over")
            sys.exit(EXIT_RECYCLE)
    else:
        port.finish(TaskState.DONE)


def _forget_frames(error: BaseException | None) -> None:
    """Let go of the tensors that the frames of an error and its causes hold."""
    while error is not None:
        error.__traceback__ = None
        error = error.__cause__ or error.__context__


def worker_main(connection: Connection, settings: Settings, worker_id: str) -> None:
    """Serve the queue until the pool says exit. Runs on the main thread of its own process."""
    start_logging(settings.log_path, "worker")
    session = WorkerSession(connection, settings.database_path, worker_id)
    sweep_temporary_files(settings.output_path)
    studio = Studio(settings)
    logger.info("worker %s is ready: %s", worker_id, studio.pipeline.policy.describe())
    for port in session.tasks():
        run_task(port, studio)
    studio.close()
