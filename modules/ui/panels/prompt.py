"""The prompt with Generate, Skip and Stop, and the row under it with the toggle and #queue."""

from html import escape

import gradio as gr

from modules.ui.assets import icon
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.texts import Texts


def build(form: Form) -> gr.Button:
    """#prompt, #generate, #skip, #stop, #advanced-toggle and #queue; gives the Generate button.

    Skip and Stop are plain buttons of the page's script: they must answer at once, whatever
    Gradio is doing.
    """
    texts = form.texts
    with gr.Row(elem_id="composer"):
        form.text(
            "prompt",
            elem_id="prompt",
            lines=3,
            max_lines=3,
            show_label=False,
            info=None,
            container=False,
            autofocus=True,
            placeholder=texts("prompt.placeholder"),
        )
        with gr.Column(elem_id="actions", min_width=0):
            generate = gr.Button(texts("generate"), elem_id="generate", variant="primary")
            markup(_running_buttons(texts), "running-block")
    markup(_toggles(texts), "toggles-block")
    return generate


def _running_buttons(texts: Texts) -> str:
    def one(name: str) -> str:
        return (
            f'<button type="button" id="{name}" title="{escape(texts(f"{name}.help"))}" disabled>'
            f"{icon(name)}<span>{escape(texts(name))}</span></button>"
        )

    return f'<div id="running">{one("skip")}{one("stop")}</div>'


def _toggles(texts: Texts) -> str:
    return f"""
<div id="toggles">
  <label id="advanced-label"><input type="checkbox" id="advanced-toggle" checked
    aria-controls="side"><span class="wide">{escape(texts("toggle.advanced"))}</span><span
    class="narrow">{icon("sliders")}{escape(texts("toggle.sheet"))}</span></label>
  <div id="queue" role="list" aria-label="{escape(texts("queue"))}"></div>
</div>
"""
