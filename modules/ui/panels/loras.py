"""LoRAs: five slots and more, each with a file, a weight and a switch."""

from html import escape

from modules.ui.components import markup
from modules.ui.form import Form


def build(form: Form) -> None:
    """#loras with #lora-1, #lora-2 … and #lora-add, which loras.js fills in.

    The list itself is the hidden #loras-value.
    """
    texts = form.texts
    markup(
        f"""
<div id="loras" role="group" aria-labelledby="loras-title">
  <h3 id="loras-title" title="{escape(texts("loras.help"))}">{escape(texts("loras"))}</h3>
  <div id="lora-rows"></div>
  <button type="button" id="lora-add" class="text-button">{escape(texts("loras.add"))}</button>
</div>
""",
        "loras-block",
    )
    form.listed("loras", elem_id="loras-value")
