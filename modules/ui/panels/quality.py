"""Picture quality: sharpness and what guidance does from step to step."""

from html import escape

from modules.api.context import ServerContext
from modules.spec.flags import RefinerMethod
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.texts import Texts

STEPS = {
    "sharpness": 0.1,
    "adaptive_cfg": 0.1,
    "adm_positive": 0.05,
    "adm_negative": 0.05,
    "adm_end": 0.01,
    "guidance_start": 0.01,
    "guidance_end": 0.01,
    "rescale_cfg": 0.05,
    "control_softness": 0.05,
}


def build(context: ServerContext, form: Form) -> None:
    """A control for each field, with the field's name as id."""
    title = escape(form.texts("quality.title"))
    markup(f'<h3 class="group">{title}</h3>', "quality-title")
    for name, step in STEPS.items():
        form.slider(name, elem_id=name.replace("_", "-"), step=step)
    words = form.texts("overwrite.placeholder")
    form.digits("overwrite_step", elem_id="overwrite-step", placeholder=words)
    form.choice("refiner", refiner_choices(context, form.texts), elem_id="refiner")
    form.slider("refiner_switch", elem_id="refiner-switch", step=0.01)
    methods = [(method.value, method.value) for method in RefinerMethod]
    form.radio("refiner_method", methods, elem_id="refiner-method")
    form.digits(
        "overwrite_switch", elem_id="overwrite-switch", placeholder=form.texts("refiner.from")
    )


def refiner_choices(context: ServerContext, texts: Texts) -> list[tuple[str, str]]:
    """(words, name) of each checkpoint that may paint the last steps, after none."""
    files = context.catalog.checkpoints()
    return [(texts("refiner.none"), ""), *((file.name, file.name) for file in files)]
