"""Resolve: what the request comes to, now that the model is known. The only place that decides.

Sets job.file, job.sizes and job.resolved; a spec is never changed.
"""

from typing import TYPE_CHECKING

from modules.spec.sizes import Size
from modules.spec.task_spec import ResolvedSpec, TaskSpec
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio


def run(job: Job, studio: "Studio") -> None:
    """Raises ModelMissing, which says what to put where, or an error of the file's header."""
    spec = job.spec
    job.file = studio.catalog.find_checkpoint(spec.checkpoint)
    job.sizes = studio.sizes_of(job.file)
    size = _size(spec, job.sizes.choose(spec.aspect_ratio))
    job.resolved = ResolvedSpec(
        checkpoint=job.file.name,
        width=size.width,
        height=size.height,
        seeds=tuple(spec.seed_of(index) for index in range(spec.image_count)),
        steps=spec.steps,
        cfg_scale=spec.cfg_scale,
        sampler=spec.sampler,
        scheduler=spec.scheduler,
    )
    job.task.set_resolved(job.resolved)


def _size(spec: TaskSpec, by_ratio: Size) -> Size:
    """An explicit width and height win over the ratio."""
    if spec.width is None or spec.height is None:
        return by_ratio
    return Size(spec.width, spec.height)
