"""Picture quality: sharpness, what guidance does from step to step, FreeU, and the refiner."""

from html import escape

import gradio as gr

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
# Name, usual value and greatest value; the usual ones suit SDXL.
FREEU = (("b1", 1.01, 2.0), ("b2", 1.02, 2.0), ("s1", 0.99, 4.0), ("s2", 0.95, 4.0))


def build(context: ServerContext, form: Form) -> None:
    """A control for each field, with the field's name as id; folded, #freeu with its numbers."""
    title = escape(form.texts("quality.title"))
    markup(f'<h3 class="group">{title}</h3>', "quality-title")
    for name, step in STEPS.items():
        form.slider(name, elem_id=name.replace("_", "-"), step=step)
    form.digits("clip_skip", elem_id="clip-skip", placeholder=form.texts("clip_skip.placeholder"))
    with gr.Accordion(form.texts.label("freeu"), open=False, elem_id="freeu"):
        form.group("freeu", FREEU)
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
