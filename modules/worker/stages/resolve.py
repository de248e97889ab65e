"""Resolve: what the request comes to, now that the model is known. The only place that decides.

Sets job.file, job.sizes, job.mode_lora and job.resolved; a spec is never changed.
"""

from pathlib import PurePosixPath
from typing import TYPE_CHECKING

from modules.library.catalog import Catalog, ModelFile
from modules.settings.performance import find_mode
from modules.settings.presets import ModelFolder
from modules.spec.errors import ModelMissing
from modules.spec.performance import PerformanceMode
from modules.spec.quality import BEFORE_QUALITY, QualityFields
from modules.spec.sizes import SDXL, Size
from modules.spec.task_spec import LoraSpec, ResolvedSpec, TaskSpec
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio

_QUALITY = set(ResolvedSpec.model_fields) & set(QualityFields.model_fields)
_PLAIN_SIZES = ("adm_positive", "adm_negative", "adm_end")


def run(job: Job, studio: "Studio") -> None:
    """Raises ModelMissing, which says what to put where, SpecError for a performance mode that
    nobody has, or an error of the file's header."""
    asked = job.spec
    mode = find_mode(studio.modes(), asked.performance)
    spec = asked if mode is None else mode.applied(asked)
    job.file = studio.catalog.find_checkpoint(spec.checkpoint)
    job.sizes = studio.sizes_of(job.file)
    size = _size(spec, job.sizes.choose(spec.aspect_ratio))
    quality = spec.model_dump(
        include=set(ResolvedSpec.model_fields) & set(QualityFields.model_fields)
    )
    if job.sizes.area < SDXL.area / 2:  # such a model has learned its own sizes alone
        quality |= {name: BEFORE_QUALITY[name] for name in _PLAIN_SIZES}
    if mode is not None and mode.lora is not None:
        job.mode_lora = find_mode_lora(mode, studio.catalog)
    job.resolved = ResolvedSpec(
        checkpoint=job.file.name,
        width=size.width,
        height=size.height,
        seeds=tuple(spec.seed_of(index) for index in range(spec.image_count)),
        steps=(asked.overwrite_step or asked.steps) if mode is None else spec.steps,
        cfg_scale=spec.cfg_scale,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
        performance_lora=_lora_spec(mode, job.mode_lora),
        **quality,
    )
    job.task.set_resolved(job.resolved)


def find_mode_lora(mode: PerformanceMode, catalog: Catalog) -> ModelFile:
    """The file of the mode's LoRA in any folder of the LoRAs.

    Raises ModelMissing, which says what to fetch from where: nothing is fetched unasked.
    """
    if mode.lora is None:
        raise RuntimeError("the mode has no LoRA")
    names = [name.casefold() for name in (mode.lora.file, *mode.lora.also)]
    for file in catalog.files(ModelFolder.LORAS):
        if PurePosixPath(file.name).name.casefold() in names:
            return file
    source = f", fetched from {mode.lora.url}" if mode.lora.url else ""
    raise ModelMissing(
        f"The performance mode {mode.title} needs the LoRA {mode.lora.file} in the loras folder "
        f"of the models{source}; put it there, or choose another mode."
    )


def _lora_spec(mode: PerformanceMode | None, file: ModelFile | None) -> LoraSpec | None:
    if mode is None or mode.lora is None or file is None:
        return None
    return LoraSpec(name=file.name, weight=mode.lora.weight)


def _size(spec: TaskSpec, by_ratio: Size) -> Size:
    """An explicit width and height win over the ratio."""
    if spec.width is None or spec.height is None:
        return by_ratio
    return Size(spec.width, spec.height)
