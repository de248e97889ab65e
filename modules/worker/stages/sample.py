"""Sample: from noise to the latents of one picture. Sets job.latents."""

from typing import TYPE_CHECKING

from modules.tasks.events import Progress
from modules.worker.job import Job
from modules.worker.progress import LivePreview

if TYPE_CHECKING:
    from torch import Tensor

    from modules.worker.studio import Studio


IN_PARTS = "in small parts, for memory ran out"


def run(job: Job, studio: "Studio") -> None:
    """Paint picture job.index, telling progress and a preview after each step.

    Raises Cancelled, Skipped or NotFinite.
    """
    if job.model is None:
        raise RuntimeError("the prompts stage has not run yet")
    preview = LivePreview(studio.threads, job.task.emit, job.preview_pace)
    previewer = job.model.previewer
    images = job.settled.seeds
    notes = [IN_PARTS] if job.is_sparing else []
    notes += [job.lora_notes[use.file] for use in job.lora_uses if use.file in job.lora_notes]

    def tell(step: int, steps: int) -> None:
        later = sum(index not in job.task.done_indices for index in range(len(images))[job.index :])
        job.task.emit(
            Progress(
                image=job.index + 1,
                image_count=len(images),
                step=step,
                steps=steps,
                seconds_left=job.clock.seconds_left(steps - step, later - 1, steps),
                note="; ".join(notes),
            )
        )

    def on_step(step: int, denoised: "Tensor", _x: "Tensor", steps: int) -> None:
        job.clock.step()
        tell(step + 1, steps)
        preview.offer(previewer, denoised)
        studio.saver.raise_if_failed()
        job.check()

    job.clock.start_image()
    tell(0, job.settled.steps)
    try:
        job.latents = studio.pipeline.sample(job, on_step)
    finally:
        preview.finish()
