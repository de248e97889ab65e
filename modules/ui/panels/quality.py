"""Picture quality: sharpness and what guidance does from step to step."""

from html import escape

from modules.ui.components import markup
from modules.ui.form import Form

STEPS = {
    "sharpness": 0.1,
    "adaptive_cfg": 0.1,
    "adm_positive": 0.05,
    "adm_negative": 0.05,
    "adm_end": 0.01,
    "guidance_start": 0.01,
    "guidance_end": 0.01,
    "rescale_cfg": 0.05,
}


def build(form: Form) -> None:
    """A slider for each field, with the field's name as id, and #overwrite-step."""
    title = escape(form.texts("quality.title"))
    markup(f'<h3 class="group">{title}</h3>', "quality-title")
    for name, step in STEPS.items():
        form.slider(name, elem_id=name.replace("_", "-"), step=step)
    words = form.texts("overwrite.placeholder")
    form.digits("overwrite_step", elem_id="overwrite-step", placeholder=words)
