"""Decode: from latents to pixels. Sets job.pixels."""

from typing import TYPE_CHECKING

from modules.worker.job import Job

if TYPE_CHECKING:
    from modules.worker.studio import Studio


def run(job: Job, studio: "Studio") -> None:
    """(H, W, 3) uint8. Raises NotFinite when even the float32 VAE gives no valid numbers."""
    job.pixels = studio.pipeline.decode(job)
    job.clock.end_image()
