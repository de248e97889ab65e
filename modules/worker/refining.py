"""The refiner of a task, as the engine takes it."""

from typing import TYPE_CHECKING

from modules.spec.flags import RefinerMethod
from modules.worker.guidance import guidance_of, guided_conditions
from modules.worker.job import Job

if TYPE_CHECKING:
    from torch import Tensor

    from ldm_patched.modules.refiner import RefinerSwitch
    from ldm_patched.modules.sd import VAE


def refiner_switch(job: Job) -> "RefinerSwitch | None":
    """Who takes over for the last steps of picture job.index; None without a refiner."""
    resolved, refiner = job.settled, job.refiner
    if refiner is None or resolved.refiner_step is None:
        return None
    from ldm_patched.modules.refiner import RefinerSwitch

    unet = refiner.unet.clone()
    unet.model_options.setdefault("transformer_options", {})["interrupt"] = job.check
    guidance_of(resolved).attach(unet)
    positive, negative = guided_conditions(resolved, job.refiner_positive, job.refiner_negative)
    through = resolved.refiner_method is RefinerMethod.VAE and not _shares_latents(job)
    return RefinerSwitch(
        unet,
        resolved.refiner_step,
        positive,
        negative,
        resolved.refiner_method.value,
        (lambda latents: _converted(job, latents)) if through else None,
    )


def last_vae(job: Job) -> "VAE":
    """The VAE of the model that ended the run; the checkpoint's where both speak the same."""
    if job.model is None:
        raise RuntimeError("the prompts stage has not run yet")
    if job.refiner is None or _shares_latents(job):
        return job.model.vae
    return job.refiner.vae


def _shares_latents(job: Job) -> bool:
    """Whether the refiner can go on with the checkpoint's latents as they are."""
    if job.model is None or job.refiner is None:
        return True
    formats = [type(model.unet.model.latent_format) for model in (job.model, job.refiner)]
    return formats[0] is formats[1]


def _converted(job: Job, latents: "Tensor") -> "Tensor":
    """Latents of the checkpoint → latents of the refiner, by way of the pixels."""
    if job.model is None or job.refiner is None:
        raise RuntimeError("the prompts stage has not run yet")
    pixels = job.model.vae.decode(latents, job.check)
    return job.refiner.vae.encode(pixels)
