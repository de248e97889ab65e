"""Performance: the mode, what it decides and what it needs, and the steps of a custom one."""

import gradio as gr

from modules.api.context import ServerContext
from modules.settings.performance import load_modes
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.texts import Texts

_BROKEN = "performance modes"  # a topic of the notice board


def build(context: ServerContext, form: Form) -> gr.Radio:
    """#performance, #performance-note and #steps; performance.js greys what a mode decides."""
    choices = mode_choices(context, form.texts)
    performance = form.radio("performance", choices, elem_id="performance")
    markup('<p id="performance-note" role="status"></p>', "performance-note-block")
    form.slider("steps", elem_id="steps")
    return performance


def mode_choices(context: ServerContext, texts: Texts) -> list[tuple[str, str]]:
    """(title, name) of each mode of this moment, then none; broken files go on the board."""
    modes = load_modes(context.settings.root)
    context.notices.put(_BROKEN, " ".join(modes.notices))
    choices = [(mode.title, name) for name, mode in modes.items()]
    return [*choices, (texts("performance.custom"), "")]
