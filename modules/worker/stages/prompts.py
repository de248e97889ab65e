"""Prompts: the model is loaded, and both texts become conditions. Sets job.model and those."""

from typing import TYPE_CHECKING

from modules.tasks.events import Loading
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio


def run(job: Job, studio: "Studio") -> None:
    """Load the model unless it is there, and encode unless this model encoded the text before."""
    if job.file is None:
        raise RuntimeError("the resolve stage has not run yet")
    pipeline = studio.pipeline
    job.model = pipeline.refresh(
        job.file, lambda words: job.task.emit(Loading(message=words)), job.check_stop
    )
    studio.hashes.compute_soon(job.file)
    job.positive = pipeline.encode(job.model, job.spec.prompt)
    job.negative = pipeline.encode(job.model, job.spec.negative_prompt)
