"""Prompts: the words become a plan, the model is loaded, and texts become conditions.

`run` sets job.plan and job.model once; `encode` sets the conditions of each picture, whose words
may differ from those of the picture before.
"""

from typing import TYPE_CHECKING

from modules.prompt.plan import make_plan
from modules.spec.errors import ModelUnsupported
from modules.tasks.events import Loading
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio


def run(job: Job, studio: "Studio") -> None:
    """Plan every picture, so that nothing is painted of a request that cannot be finished.

    Then load the model unless it is there. Raises SpecError, LimitError or ModelMissing.
    """
    if job.file is None:
        raise RuntimeError("the resolve stage has not run yet")
    job.plan = make_plan(job.spec, studio.prompt_books())
    job.plan.raise_if_missing()
    if any(picture.loras for picture in job.plan.pictures):
        raise ModelUnsupported("LoRAs cannot be applied yet; take <lora:…> out of the prompt.")
    job.model = studio.pipeline.refresh(
        job.file, lambda words: job.task.emit(Loading(message=words)), job.check_stop
    )
    studio.hashes.compute_soon(job.file)


def encode(job: Job, studio: "Studio") -> None:
    """Conditions of picture job.index; a text that this model encoded before is not done again."""
    if job.model is None:
        raise RuntimeError("the run part of this stage has not run yet")
    prompt, pipeline = job.prompt, studio.pipeline
    job.positive = pipeline.encode(job.model, prompt.positive, prompt.pooled_count)
    if job.settled.cfg_scale == 1.0:  # the sampler never asks for the other one
        job.negative = job.positive
    else:
        job.negative = pipeline.encode(job.model, prompt.negative, len(prompt.negative))
