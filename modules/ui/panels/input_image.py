"""Input images: a drawer under the prompt with the image prompts, a picture in each slot."""

import json
from html import escape

from modules.spec import limits
from modules.spec.image_prompt import ImagePromptType
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.panels.stage import button


def build(form: Form) -> None:
    """#input-image with #ip-slots (#ip-slot-1, #ip-type-1, #ip-stop-1, #ip-weight-1 …), #ip-add.

    images.js fills it in; the image prompts themselves are the hidden #image-prompts-value.
    """
    texts = form.texts
    title, hint, add = (escape(texts(key)) for key in ("ip.title", "ip.hint", "ip.add"))
    facts = {
        "types": [
            {"type": kind.value, "stop": kind.stop, "weight": kind.weight}
            for kind in ImagePromptType
        ],
        "most": limits.IMAGE_PROMPTS_PER_TASK,
        "weight": limits.IMAGE_PROMPT_WEIGHT_MAX,
        "faces": limits.FACES_MAX,
        "bytes": limits.REQUEST_BYTES,
    }
    markup(
        f"""
<section id="input-image" role="region" aria-label="{title}"
  data-facts="{escape(json.dumps(facts))}" hidden>
  <header><h2>{title}</h2><span id="ip-hint" role="status" data-hint="{hint}">{hint}</span>
    <button type="button" id="ip-add" class="text-button">{add}</button>
    {button("input-image-close", "close", texts("ip.close"))}</header>
  <div id="ip-slots"></div>
  <input type="file" id="ip-file" accept="image/*" multiple hidden>
</section>
""",
        "input-image-block",
    )
    form.listed("image_prompts", elem_id="image-prompts-value")
