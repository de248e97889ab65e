"""Control: what steers the painting beside the words. Sets job.unet and job.control.

Adapters go onto a clone of the UNet and vanish with it; ControlNets go with the conditions.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from modules.gallery.inputs import InputStore
from modules.tasks.events import Loading
from modules.worker.guidance import guidance_of
from modules.worker.job import Job

if TYPE_CHECKING:
    from ldm_patched.modules.control_base import ControlBase
    from ldm_patched.modules.model_patcher import ModelPatcher
    from modules.library.catalog import ModelFile
    from modules.worker.image_prompts import Picture
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


def run(job: Job, studio: "Studio") -> None:
    """A clone of the model's UNet that knows this task's adapters and its Stop.

    The pictures of image prompts are prepared once a task. Raises SpecError, ModelMissing, or what
    is wrong with a file.
    """
    if job.model is None:
        raise RuntimeError("the prompts stage has not run yet")
    if not job.controls_ready:
        _prepare(job, studio)
        job.controls_ready = True
    unet = job.model.unet.clone()
    options = unet.model_options.setdefault("transformer_options", {})
    options["interrupt"] = job.check
    guidance_of(job.settled).attach(unet)
    if job.spec.freeu:
        from extras.guidance.freeu import FreeU

        FreeU(*job.spec.freeu).attach(unet)
    job.unet = apply_control_nets(unet, job.control_tasks)


def _prepare(job: Job, studio: "Studio") -> None:
    """Read the pictures, load what they need, make maps and keys and values of them."""
    prompts = [prompt for prompt in job.spec.image_prompts if prompt.counts]
    if not prompts or job.base is None:
        return
    from modules.library.control_files import find_file, needed_for
    from modules.worker.image_prompts import loading_words, read_picture
    from modules.worker.model_files import stamp_of

    store, unet = InputStore(studio.settings.inputs_path), job.base.unet
    context_dim = unet.model.diffusion_model.config.context_dim

    def on_loading(file: "ModelFile") -> None:
        job.check_stop()
        studio.pipeline.make_place_beside(file.size, 1 if job.refiner is None else 2)
        job.task.emit(Loading(message=loading_words(file)))

    # First of all, whether everything is there: nothing is loaded for a task that cannot be done.
    files = [
        find_file(studio.catalog, needed_for(p.type, context_dim), p.type, context_dim)
        for p in prompts
    ]
    pictures = []
    for prompt in prompts:
        job.check_stop()
        pictures.append(read_picture(prompt, store))
    shelf = studio.pipeline.image_prompts
    # Into the job at the end, and at once: a second try, once memory ran out, begins anew.
    tasks: tuple[Any, ...] = ()
    control: ControlBase | None = None
    contents = [picture for picture in pictures if not picture.prompt.type.is_structure]
    if contents:
        given = studio.catalog, context_dim, on_loading, job.check_stop
        tasks = (shelf.picture_task(contents, *given),)
    wanted = {stamp_of(f) for f, p in zip(files, prompts, strict=True) if p.type.is_structure}
    for file, picture in zip(files, pictures, strict=True):
        if picture.prompt.type.is_structure:
            job.check_stop()
            base = shelf.control(file, unet, on_loading, wanted)
            control = _chained(job, base, picture, control)
    job.control_tasks, job.control = tasks, control


def _chained(
    job: Job, base: "ControlBase", picture: "Picture", previous: "ControlBase | None"
) -> "ControlBase":
    """A copy of `base` for a picture, after `previous`."""
    from modules.worker.image_prompts import hint_of

    return (
        base.copy()
        .set_cond_hint(
            hint_of(picture, job.settled.width, job.settled.height),
            picture.prompt.weighs,
            (picture.prompt.start, picture.prompt.stops_at),
            softness=job.spec.control_softness,
            positive_only=True,
        )
        .set_previous_controlnet(previous)
    )
