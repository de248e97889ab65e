"""Styles: a list to search, what is chosen in its order, chance, and a way back to none."""

from html import escape

from modules.ui.components import markup
from modules.ui.form import Form


def build(form: Form) -> None:
    """#styles with #style-search, #style-chosen, #random-style, #clear-styles and
    #style-faults; #expand-prompt, #wildcards-in-order and #style-list.

    styles.js fills the lists; the choice itself is the hidden #styles-value.
    """
    texts = form.texts
    search = escape(texts("styles.search"))
    markup(
        f"""
<div id="styles" role="group" aria-label="{escape(texts("tab.styles"))}">
  <input type="search" id="style-search" placeholder="{search}" aria-label="{search}"
    autocomplete="off" spellcheck="false">
  <div class="row">
    <button type="button" id="random-style" class="small-button" aria-pressed="false"
      title="{escape(texts("styles.random.help"))}">{escape(texts("styles.random"))}</button>
    <button type="button" id="clear-styles" class="text-button"
      disabled>{escape(texts("styles.clear"))}</button>
  </div>
  <div id="style-chosen" role="list" aria-label="{escape(texts("styles.chosen"))}"></div>
  <p id="style-note" role="status">{escape(texts("styles.none"))}</p>
  <p id="style-faults" role="status"></p>
</div>
""",
        "styles-block",
    )
    form.listed("styles", elem_id="styles-value")
    form.switch("expand_prompt", elem_id="expand-prompt")
    form.switch("wildcards_in_order", elem_id="wildcards-in-order")
    markup('<div id="style-list"></div>', "style-list-block")
