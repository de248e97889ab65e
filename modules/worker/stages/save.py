"""Save: the file with its recipe, then its row, in a helper thread while the next one is painted.

One thread does all of it, so pictures are committed in the order in which they were painted. A
file that a killed worker left without its row is adopted instead of painted again.
"""

import contextlib
import logging
from typing import TYPE_CHECKING

from modules.gallery.recipe import Recipe
from modules.gallery.save import find_saved, require_writable, save_image
from modules.tasks.records import ClaimLost
from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio

logger = logging.getLogger(__name__)


def prepare(studio: "Studio") -> None:
    """Find out before minutes of painting whether there is a place for pictures.

    Raises DiskFull or OutputFolder.
    """
    require_writable(studio.settings.output_path)


def adopt(job: Job, studio: "Studio") -> bool:
    """Commit the file of picture job.index that an earlier attempt left; False if there is none."""
    if job.task.attempt <= 1:
        return False
    saved = find_saved(studio.settings.output_path, job.task.id, job.index)
    if saved is None:
        return False
    logger.info("picture %d of task %s was finished before", job.index, job.task.id)
    job.task.commit_image(
        job.index, saved.relative_path, saved.sha256, saved.width, saved.height, job.seed
    )
    return True


def run(job: Job, studio: "Studio") -> None:
    """Hand job.pixels over; `studio.saver.wait()` raises what goes wrong with them."""
    if job.pixels is None:
        raise RuntimeError("the decode stage has not run yet")
    pixels, index, resolved, task = job.pixels, job.index, job.settled, job.task
    seed, peak = job.seed, studio.memory_peak.bytes()
    recipe = None
    if not studio.settings.disable_metadata and job.file is not None:
        sha256 = studio.hashes.known(job.file)
        uses = job.lora_uses
        loras = {use.file: studio.hashes.known(job.lora_files[use.file]) for use in uses}
        recipe = Recipe.of(
            task.spec,
            resolved,
            index,
            prompt=job.prompt,
            model_sha256=sha256,
            lora_sha256=loras,
        )

    def write() -> None:
        saved = save_image(
            pixels,
            studio.settings.output_path,
            task_id=task.id,
            index=index,
            output_format=task.spec.output_format,
            recipe=recipe,
            by_day=studio.by_day,
        )
        try:
            task.commit_image(
                index, saved.relative_path, saved.sha256, saved.width, saved.height, seed, peak
            )
        except ClaimLost:
            # Another worker has the task by now and paints this picture itself.
            with contextlib.suppress(OSError):
                (studio.settings.output_path / saved.relative_path).unlink()
            raise

    studio.saver.submit(write)
