"""The left side's upper part: name, picture, progress, strip. easel.js fills it in.

The markup is complete from the start and its sizes are reserved by the style sheet, so nothing
moves when a task begins or ends.
"""

from html import escape

from modules.api.context import ServerContext
from modules.settings.presets import ModelFolder
from modules.ui.assets import icon
from modules.ui.components import markup
from modules.ui.panels.downloads import download_list
from modules.ui.panels.models import checkpoint_folder
from modules.ui.texts import Texts

KNOWN_SHOWN = 3  # of the checkpoints that can be had; the models' tab has them all


def build(context: ServerContext, texts: Texts) -> None:
    """Top bar, #stage with #error in it, #progress, and #gallery with the pictures of #strip."""
    markup(_top_bar(context, texts), "top-block")
    markup(_stage(context, texts), "stage-block")
    markup(_progress(texts), "progress-block")
    markup(_strip(texts), "strip-block")


def button(
    element_id: str, icon_name: str, label: str, *, kind: str = "icon-button", form: bool = False
) -> str:
    """A button that shows an icon and says `label` to readers and on hover; may send its form."""
    said, what = escape(label), "submit" if form else "button"
    return (
        f'<button type="{what}" id="{element_id}" class="{kind}" title="{said}" '
        f'aria-label="{said}">{icon(icon_name)}</button>'
    )


def _top_bar(context: ServerContext, texts: Texts) -> str:
    return f"""
<header id="top" data-theme="{escape(context.settings.theme or "")}">
  <a class="skip-link" id="skip-link" href="#prompt">{escape(texts("skip.to.prompt"))}</a>
  <span class="brand">{icon("easel")}<span>{escape(texts("title"))}</span></span>
  <span id="notices" role="note"></span>
  <span id="server" role="status"></span>
  <span id="downloading"></span>
  <span id="queue-count"></span>
  <span id="clock"></span>
  {button("theme-toggle", "moon", texts("theme.light"))}
  <form id="leave" method="post" action="/logout" hidden>
    {button("log-out", "leave", texts("log.out"), form=True)}
  </form>
</header>
<div id="announcer" class="quiet" role="status" aria-live="polite"></div>
"""


def _stage(context: ServerContext, texts: Texts) -> str:
    folder = escape(checkpoint_folder(context))
    missing = escape(texts("nomodel.text", folder="\0")).replace("\0", f"<code>{folder}</code>")
    files = context.catalog.known_downloads()
    known = [file for file in files if file.folder is ModelFolder.CHECKPOINTS][:KNOWN_SHOWN]
    return f"""
<section id="stage" data-state="idle" aria-label="{escape(texts("stage"))}">
  <div class="frame" id="frame"></div>
  <div class="message" id="idle">
    {icon("easel")}
    <h2>{escape(texts("idle.title"))}</h2>
    <p>{escape(texts("idle.text"))}</p>
    <button type="button" id="try-example">{escape(texts("idle.example"))}</button>
  </div>
  <div class="message" id="no-model" hidden>
    {icon("folder")}
    <h2>{escape(texts("nomodel.title"))}</h2>
    <p>{missing}</p>
    {download_list(known, texts, "no-model-downloads")}
    <button type="button" id="look-again">{icon("refresh")}{escape(texts("refresh"))}</button>
    <p id="look-result" role="status"></p>
  </div>
  <div class="message" id="waiting" hidden>
    {icon("easel")}
    <h2 id="waiting-title"></h2>
    <p id="waiting-text"></p>
  </div>
  <div id="veil" hidden></div>
  <div id="picture-bar" hidden>
    <span id="picture-facts"></span>
    {button("use-seed", "seed", texts("action.seed"), kind="bar-button")}
    {button("use-image", "image", texts("action.image"), kind="bar-button")}
    {button("copy-settings", "copy", texts("action.copy"), kind="bar-button")}
    {button("download", "download", texts("action.download"), kind="bar-button")}
  </div>
  <div id="said" role="status" hidden></div>
  <div id="error" role="alert" hidden>
    {icon("alert")}<span id="error-text"></span>
    {button("error-close", "close", texts("error.close"))}
  </div>
</section>
"""


def _progress(texts: Texts) -> str:
    return f"""
<div id="progress" role="progressbar" aria-label="{escape(texts("progress"))}" aria-valuemin="0"
  aria-valuemax="100" aria-valuenow="0">
  <div class="track"><div class="bar" id="bar"></div></div>
  <div class="words" id="progress-words"></div>
</div>
"""


def _strip(texts: Texts) -> str:
    label, empty = escape(texts("strip")), escape(texts("strip.empty"))
    row = f'<div id="strip" role="group" aria-label="{label}" data-empty="{empty}"></div>'
    return f'<div id="gallery">{row}</div>'
