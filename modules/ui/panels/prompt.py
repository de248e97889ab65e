"""The prompt with Generate, Skip and Stop, the row under it, and the inspector over it.

The row holds #advanced-toggle, #input-image-toggle, #inspect-toggle and #queue. inspector.js fills
the inspector in.
"""

from html import escape

import gradio as gr

from modules.ui.assets import icon
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.texts import Texts


def build(form: Form) -> gr.Button:
    """#prompt, #generate, #skip, #stop and the row below; #inspector; gives the Generate button.

    Skip and Stop are plain buttons of the page's script: they must answer at once, whatever
    Gradio is doing.
    """
    texts = form.texts
    markup(_inspector(texts), "inspector-block")
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
  <button type="button" id="input-image-toggle" class="text-button" aria-expanded="false"
    aria-controls="input-image" title="{escape(texts("ip.help"))}">{icon("image")}<span
    class="wide">{escape(texts("ip.toggle"))}</span><span id="input-image-count"
    class="count"></span></button>
  <button type="button" id="inspect-toggle" class="text-button" aria-expanded="false"
    aria-controls="inspector" title="{escape(texts("inspect.help"))}">{icon("search")}<span
    class="wide">{escape(texts("inspect"))}</span><span id="inspect-count"
    class="count"></span></button>
  <div id="queue" role="list" aria-label="{escape(texts("queue"))}"></div>
</div>
"""


def _inspector(texts: Texts) -> str:
    title, close = escape(texts("inspect.title")), escape(texts("inspect.close"))
    return f"""
<section id="inspector" role="region" aria-label="{title}" hidden>
  <header><h2>{title}</h2><span id="inspect-summary" role="status"></span>
    <button type="button" id="inspect-close" class="icon-button" title="{close}"
      aria-label="{close}">{icon("close")}</button></header>
  <div id="inspect-body">
    <ul id="inspect-notes"></ul>
    <div id="inspect-picture"></div>
    <div id="inspect-prompts" role="group" aria-label="{escape(texts("inspect.prompts"))}"></div>
  </div>
</section>
"""
