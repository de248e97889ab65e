"""Advanced: guidance, sampler, scheduler, and a size of one's own."""

import gradio as gr

from modules.api.context import ServerContext
from modules.spec.flags import Sampler, Scheduler
from modules.ui.form import Form
from modules.ui.panels import quality


def build(context: ServerContext, form: Form) -> None:
    """#guidance, #sampler, #scheduler, #width and #height."""
    form.slider("cfg_scale", elem_id="guidance", step=0.1)
    form.choice("sampler", [(item.value, item.value) for item in Sampler], elem_id="sampler")
    form.choice("scheduler", [(item.value, item.value) for item in Scheduler], elem_id="scheduler")
    with gr.Row(elem_id="override-row"):
        for side in ("width", "height"):
            words = form.texts("override.placeholder")
            form.digits(side, elem_id=side, min_width=0, placeholder=words)
    quality.build(context, form)
