"""Performance: the mode, what it decides and what it needs, and the steps of a custom one."""

import gradio as gr

from modules.api.context import ServerContext
from modules.settings.performance import load_modes
from modules.ui.components import markup
from modules.ui.form import Form


def build(context: ServerContext, form: Form) -> gr.Radio:
    """#performance, #performance-note and #steps; performance.js greys what a mode decides."""
    modes = load_modes(context.settings.root)
    for notice in modes.notices:
        context.notices.put(notice, notice)
    choices = [(mode.title, name) for name, mode in modes.items()]
    custom = (form.texts("performance.custom"), "")
    performance = form.radio("performance", [*choices, custom], elem_id="performance")
    markup('<p id="performance-note" role="status"></p>', "performance-note-block")
    form.slider("steps", elem_id="steps")
    return performance
