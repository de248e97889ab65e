"""Control: adapters go onto a clone of the UNet and vanish with it. Sets job.unet."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from modules.worker.guidance import guidance_of
from modules.worker.job import Job

if TYPE_CHECKING:
    from ldm_patched.modules.model_patcher import ModelPatcher
    from modules.worker.studio import Studio


def apply_control_nets(unet: "ModelPatcher", control_tasks: Iterable[Any] = ()) -> "ModelPatcher":
    """`unet` with every control task attached, in order: a clone, or itself if there are none.

    A control task has `attach(unet)`, which is given the clone. The base weights stay as they are.
    """
    tasks = tuple(control_tasks)
    if not tasks:
        return unet
    clone = unet.clone()
    for task in tasks:
        task.attach(clone)
    return clone


def run(job: Job, studio: "Studio") -> None:  # noqa: ARG001 - the signature of every stage
    """A clone of the model's UNet that knows this task's adapters and its Stop."""
    if job.model is None:
        raise RuntimeError("the prompts stage has not run yet")
    unet = job.model.unet.clone()
    options = unet.model_options.setdefault("transformer_options", {})
    options["interrupt"] = job.check
    guidance_of(job.settled).attach(unet)
    job.unet = apply_control_nets(unet, job.control_tasks)
