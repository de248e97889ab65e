"""Models: which checkpoint paints, what to do when there is none, what may be fetched."""

from collections.abc import Sequence
from html import escape

import gradio as gr

from modules.api.context import ServerContext
from modules.library.catalog import ModelFile
from modules.settings.presets import ModelFolder
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.panels import loras
from modules.ui.panels.downloads import download_list, in_bytes
from modules.ui.texts import Texts


def build(context: ServerContext, form: Form) -> tuple[gr.Dropdown, gr.Button, gr.HTML]:
    """#checkpoint, #vae, #loras, #refresh, #downloads under way and the hint below them."""
    files = context.catalog.checkpoints()
    checkpoint = form.choice(
        "checkpoint",
        checkpoint_choices(files),
        value=name_of(chosen(files, form.value("checkpoint"))),
        elem_id="checkpoint",
    )
    form.choice("vae", vae_choices(context, form.texts), elem_id="vae")
    loras.build(form)
    refresh = gr.Button(form.texts("refresh"), elem_id="refresh", size="sm")
    markup('<ul id="downloads" class="downloads"></ul>', "downloads-block")
    hint = markup(models_hint(context, form.texts), "models-hint")
    return checkpoint, refresh, hint


def checkpoint_choices(files: Sequence[ModelFile]) -> list[tuple[str, str]]:
    """(name and size, name) of each checkpoint."""
    return [(f"{file.name} · {in_bytes(file.size)}", file.name) for file in files]


def vae_choices(context: ServerContext, texts: Texts) -> list[tuple[str, str]]:
    """(name and size, name) of each VAE file, after the checkpoint's own."""
    files = context.catalog.files(ModelFolder.VAE)
    return [(texts("vae.own"), ""), *checkpoint_choices(files)]


def chosen(files: Sequence[ModelFile], name: str | None) -> ModelFile | None:
    """The file `name` if it is there, else the first one, else None."""
    named = (file for file in files if file.name == name)
    return next(named, next(iter(files), None))


def name_of(file: ModelFile | None) -> str | None:
    """What the checkpoint control holds for `file`."""
    return file.name if file else None


def checkpoint_folder(context: ServerContext) -> str:
    """The folder for checkpoints as the user knows it: relative, never a path of the server."""
    return f"{context.settings.models_path.name}/{ModelFolder.CHECKPOINTS}"


def models_hint(context: ServerContext, texts: Texts) -> str:
    """Where checkpoints go, and those that are known but not there."""
    folder = escape(checkpoint_folder(context))
    where = escape(texts("models.where", folder="\0")).replace("\0", f"<code>{folder}</code>")
    known = context.catalog.known_downloads()
    heading = f"<h3>{escape(texts('models.known'))}</h3>" if known else ""
    none = "" if context.catalog.checkpoints() else f"<h3>{escape(texts('models.none'))}</h3>"
    listed = download_list(known, texts, "models-downloads")
    return f'<div class="hint">{none}<p>{where}</p>{heading}{listed}</div>'
