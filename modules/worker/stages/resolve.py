"""Resolve: what the request comes to, now that the model is known. The only place that decides.

Sets job.file, job.vae_file, job.sizes, job.mode_lora and job.resolved; a spec is never changed.
"""

from typing import TYPE_CHECKING

from modules.library.catalog import Catalog, ModelFile
from modules.settings.performance import find_mode
from modules.settings.presets import ModelFolder, public_link
from modules.spec.errors import ModelMissing
from modules.spec.performance import PerformanceMode
from modules.spec.resolving import resolve_spec
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio


def run(job: Job, studio: "Studio") -> None:
    """Raises ModelMissing, which says what to put where, SpecError for a performance mode that
    nobody has, or an error of the file's header."""
    mode = find_mode(studio.modes(), job.spec.performance)
    job.file = studio.catalog.find_checkpoint(job.spec.checkpoint)
    if job.spec.vae:
        job.vae_file = studio.catalog.find(ModelFolder.VAE, job.spec.vae)
    job.sizes = studio.sizes_of(job.file)
    if mode is not None and mode.lora is not None:
        job.mode_lora = find_mode_lora(mode, studio.catalog, builtin=job.file.is_builtin)
    job.resolved = resolve_spec(
        job.spec,
        mode,
        checkpoint=job.file.name,
        sizes=job.sizes,
        lora=job.mode_lora.name if job.mode_lora else "",
    )
    if job.resolved.refiner:
        job.refiner_file = studio.catalog.find_checkpoint(job.resolved.refiner)
    job.task.set_resolved(job.resolved)


def find_mode_lora(mode: PerformanceMode, catalog: Catalog, *, builtin: bool) -> ModelFile:
    """The file of the mode's LoRA in any folder of the LoRAs. builtin: whether it is for the
    built-in model.

    Raises ModelMissing, which says what to fetch from where: nothing is fetched unasked.
    """
    if mode.lora is None:
        raise RuntimeError("the mode has no LoRA")
    if (file := catalog.find_lora(mode.lora.names_for(builtin))) is not None:
        return file
    if builtin and mode.lora.builtin is not None:
        raise ModelMissing(
            f"The performance mode {mode.title} has no LoRA for the built-in model; choose another "
            "mode, or another checkpoint."
        )
    link = public_link(mode.lora.url)
    source = f", fetched from {link}" if link else ""
    raise ModelMissing(
        f"The performance mode {mode.title} needs the LoRA {mode.lora.file} in the loras folder "
        f"of the models{source}; put it there, or choose another mode."
    )
