"""Prompts: the words become a plan, the model is loaded, and texts become conditions.

`run` sets job.plan and job.base once; `encode` sets the model and the conditions of each picture,
whose words and LoRAs may differ from those of the picture before.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from modules.library.embedding_info import require_embeddings
from modules.prompt.plan import PromptBooks, make_plan
from modules.settings.presets import ModelFolder
from modules.tasks.events import Loading
from modules.worker.job import Job

if TYPE_CHECKING:
    from extras.expansion import GptExpander
    from modules.worker.pipeline import Conditions, LoadedModel
    from modules.worker.studio import Studio

logger = logging.getLogger(__name__)


def run(job: Job, studio: "Studio") -> None:
    """Plan every picture, so that nothing is painted of a request that cannot be finished.

    Then load the model and see that every LoRA fits it, unless that is done. Raises SpecError,
    LimitError, ModelMissing, or what is wrong with a file.
    """
    if job.file is None:
        raise RuntimeError("the resolve stage has not run yet")
    loras = studio.catalog.files(ModelFolder.LORAS)
    job.lora_files = {file.name: file for file in loras}
    job.plan = make_plan(job.spec, _books(job, studio))
    job.plan.raise_if_missing()
    require_embeddings(job.plan.embeddings, studio.catalog)
    job.base = job.model = studio.pipeline.refresh(
        job.file,
        lambda words: job.task.emit(Loading(message=words)),
        job.check_stop,
        vae=job.vae_file,
        spare_vaes=studio.catalog.files(ModelFolder.VAE),
        text_encoders=studio.catalog.files(ModelFolder.TEXT_ENCODERS),
    )
    if job.refiner_file is not None:
        job.plain_refiner = job.refiner = studio.pipeline.refresh(
            job.refiner_file,
            lambda words: job.task.emit(Loading(message=words)),
            job.check_stop,
            spare_vaes=studio.catalog.files(ModelFolder.VAE),
            text_encoders=studio.catalog.files(ModelFolder.TEXT_ENCODERS),
            beside=1,
        )
    used = dict.fromkeys(use.file for picture in job.plan.pictures for use in picture.loras)
    loras = [job.lora_files[name] for name in used]
    if job.mode_lora is not None:
        job.lora_files[job.mode_lora.name] = job.mode_lora
        loras.append(job.mode_lora)
    for file in loras:
        job.check_stop()
        found = studio.pipeline.lora(job.base, file)
        if found.coverage < 1:
            job.lora_notes[file.name] = (
                f"{file.name} is used in part: {found.used} of its {found.modules} layers fit"
            )
    studio.hashes.compute_soon(job.file, *loras)


def _books(job: Job, studio: "Studio") -> PromptBooks:
    """Where the plan looks things up, with the user's language model if it is to add words."""
    books = studio.shelf.books(tuple(job.lora_files))
    found = books.language_model
    if found is None or not found.is_usable or not job.spec.expand_prompt:
        return books
    job.task.emit(Loading(message=f"loading {found.name}"))
    try:
        expander = studio.expander(found)
    except ImportError as error:
        logger.warning("the language model is left out: %s", error)
        return replace(books, language_model=replace(found, is_usable=False))
    return replace(books, expander=_Stoppable(expander, job.check_stop))


@dataclass(frozen=True)
class _Stoppable:
    """A language model that looks between two words whether the task goes on."""

    model: "GptExpander"
    check: Callable[[], None]

    def expand(self, prompt: str, seed: int, *, beside: str = "") -> tuple[str, ...]:  # noqa: ARG002
        """As the model does, which reads no styles."""
        return self.model.expand(prompt, seed, check=self.check)


def encode(job: Job, studio: "Studio") -> None:
    """The LoRAs and conditions of picture job.index.

    A text that this model encoded before is not done again. Where the LoRAs are not those of the
    picture before, job.model changes and job.unet is None until the control stage has run.
    """
    if job.base is None:
        raise RuntimeError("the run part of this stage has not run yet")
    pipeline = studio.pipeline
    loras = [(job.lora_files[use.file], use.weight, use.clip_weight) for use in job.lora_uses]
    model = pipeline.with_loras(job.base, loras)
    if model is not job.model:
        job.model, job.unet = model, None
    job.positive, job.negative = _conditions(job, studio, model)
    if job.plain_refiner is not None:
        # Most LoRAs are made for the checkpoint; a refiner of its family takes them, too.
        job.refiner = pipeline.with_loras(job.plain_refiner, loras, fitting_only=True)
        job.refiner_positive, job.refiner_negative = _conditions(job, studio, job.refiner)


def _conditions(
    job: Job, studio: "Studio", model: "LoadedModel"
) -> tuple["Conditions", "Conditions"]:
    """(positive, negative) of the current picture as `model` reads them."""
    prompt, encode = job.prompt, studio.pipeline.encode
    skip = job.spec.clip_skip
    positive = encode(model, prompt.positive, prompt.pooled_count, skip)
    if job.settled.cfg_scale == 1.0:  # the sampler never asks for the other one
        return positive, positive
    return positive, encode(model, prompt.negative, len(prompt.negative), skip)
