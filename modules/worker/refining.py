"""The refiner of a task, as the engine takes it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from modules.spec.flags import RefinerMethod
from modules.worker.guidance import guidance_of, guided_conditions
from modules.worker.job import Job
from modules.worker.previews import SUFFIXES

if TYPE_CHECKING:
    from torch import Tensor

    from ldm_patched.modules.model_base import BaseModel
    from ldm_patched.modules.refiner import RefinerSwitch
    from ldm_patched.modules.sd import VAE


RELEASED_CHANNELS = frozenset({320, 384})
"""Of the networks whose latents the released interposers know; small models have their own."""


def refiner_switch(job: Job, small_nets: Path | None = None) -> "RefinerSwitch | None":
    """Who takes over for the last steps of picture job.index; None without a refiner.

    small_nets: the folder (vae_approx) in which there may be a latent interposer.
    """
    resolved, refiner = job.settled, job.refiner
    if refiner is None or resolved.refiner_step is None:
        return None
    from ldm_patched.modules.refiner import RefinerSwitch

    unet = refiner.unet.clone()
    unet.model_options.setdefault("transformer_options", {})["interrupt"] = job.check
    guidance_of(resolved).attach(unet)
    positive, negative = guided_conditions(resolved, job.refiner_positive, job.refiner_negative)
    through = resolved.refiner_method is RefinerMethod.VAE and not _shares_latents(job)
    convert = _converter(job, small_nets) if through else None
    return RefinerSwitch(
        unet,
        resolved.refiner_step,
        positive,
        negative,
        resolved.refiner_method.value,
        convert,
    )


def interposer_file(folder: Path | None, first: "BaseModel", second: "BaseModel") -> Path | None:
    """The file that turns latents of `first` into those of `second`, such as
    xl-to-v1_interposer-v4.0.safetensors; None if there is none."""
    names = [model.latent_format.interposer_name for model in (first, second)]
    sizes = {model.diffusion_model.config.model_channels for model in (first, second)}
    if folder is None or None in names or not sizes <= RELEASED_CHANNELS:
        return None
    found = folder.glob(f"{names[0]}-to-{names[1]}_interposer-v4*")
    return next((path for path in sorted(found) if path.suffix in SUFFIXES), None)


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


def _converter(job: Job, small_nets: Path | None) -> Callable[["Tensor"], "Tensor"]:
    """Latents of the checkpoint → latents of the refiner: by an interposer, else by the pixels.

    A file that is no interposer is told here, before anything is painted.
    """
    if job.model is None or job.refiner is None:
        raise RuntimeError("the prompts stage has not run yet")
    model, refiner = job.model, job.refiner
    file = interposer_file(small_nets, model.unet.model, refiner.unet.model)
    if file is None:
        return lambda latents: refiner.vae.encode(model.vae.decode(latents, job.check))
    from ldm_patched.modules.interposer import load_interposer

    interposer = load_interposer(file)
    return lambda latents: interposer.to(latents.device)(latents)
