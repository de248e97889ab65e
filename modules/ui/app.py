"""The page as a Gradio app: it holds the form and hands requests in; easel.js does the looking.

Pressing Generate makes a TaskSpec and submits it; the answer is a *ticket* (the task's id, or a
sentence on what is wrong), which the page's script takes from there. No listener waits for a
picture, so a closed or reloaded tab ends nothing, and none goes through Gradio's queue.
"""

import json
import logging
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.api.context import ServerContext
from modules.library.catalog import ModelFile
from modules.library.model_sizes import model_sizes
from modules.library.preset_fit import CHOSEN, fit_preset
from modules.settings.preset_files import reload_presets
from modules.settings.presets import preset_named
from modules.spec.errors import LimitError, SpecError, StudioError
from modules.spec.task_spec import TaskSpec
from modules.ui import assets, early_script
from modules.ui.components import markup
from modules.ui.form import Form
from modules.ui.panels import (
    advanced,
    input_image,
    models,
    performance,
    quality,
    settings,
    stage,
    styles,
)
from modules.ui.panels import prompt as prompt_panel
from modules.ui.panels.presets import PresetPanel
from modules.ui.texts import Texts

logger = logging.getLogger(__name__)

_START = "preset of this start"  # a topic of the notice board
# They depend on files of the user's.
_LISTED = ("checkpoint", "aspect_ratio", "vae", "refiner", "performance")
PANELS = ("settings", "styles", "models", "advanced")
IDLE_QUEUE_SECONDS = 0.5
DIRECT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_app(context: ServerContext) -> gr.Blocks:
    """The page over `context`. Looks at models and presets now, and again when they are asked."""
    early_script.put_in()
    texts = Texts()
    form = Form(texts, initial_spec(context))
    with gr.Blocks(title=texts("title"), fill_width=True, analytics_enabled=False) as app:
        with gr.Row(elem_id="shell"):
            with gr.Column(elem_id="main", min_width=0):
                stage.build(context, texts)
                generate = prompt_panel.build(form)
                input_image.build(form)
            with gr.Column(elem_id="side", min_width=0):
                markup(_sheet_head(texts), "sheet-head")
                markup(_tab_list(texts), "tabs")
                with _panel("settings"):
                    file = models.chosen(context.catalog.checkpoints(), form.initial.checkpoint)
                    presets = settings.build(context, form, model_sizes(file))
                with _panel("styles"):
                    styles.build(form)
                with _panel("models"):
                    parts = _ModelParts(context, form, presets, *models.build(context, form))
                with _panel("advanced"):
                    advanced.build(context, form)
                markup('<div id="make" role="status"></div>', "make-block")
        ticket = gr.JSON(visible=False)
        kept = gr.Textbox(visible=False)
        _wire_generate(context, form, generate, ticket)
        _wire_choices(form, parts, presets)
        app.load(
            parts.restore,
            kept,
            [*form.components.values(), parts.hint, presets.last, presets.left],
            js="() => window.easel.formOfThisTab()",
            **DIRECT,
        ).success(None, None, None, js="() => window.easel.restored()")
        _wire_form(app, form, presets)
    # Gradio looks into its queue, which nothing here uses, 1,100 times a second: 5 % of a core.
    app._queue.sleep_when_free = IDLE_QUEUE_SECONDS
    app._queue.progress_update_sleep_when_free = IDLE_QUEUE_SECONDS
    return app


def launch_options() -> dict[str, Any]:
    """Look and script of the page, as `gr.mount_gradio_app` and `launch` take them."""
    theme = gr.themes.Base(
        font=["system-ui", "-apple-system", "Segoe UI", "sans-serif"],
        font_mono=["ui-monospace", "SFMono-Regular", "Consolas", "monospace"],
    )
    shared = json.dumps(assets.icons()).replace("</", "<\\/")
    words = Texts().to_json().replace("</", "<\\/")
    # The style goes into the head: Gradio rewrites the selectors of its own `css` option.
    head = (
        '<meta name="color-scheme" content="dark light">'
        f"<style>{assets.style()}</style>"
        f"<script>window.easelTexts = {words}; window.easelIcons = {shared};</script>"
        f"<script>{assets.script()}</script>"
    )
    return {"theme": theme, "css": "", "js": None, "head": head}


def initial_spec(context: ServerContext) -> TaskSpec:
    """What the form starts with: the preset of this start, else the first preset, else defaults.

    Where there is no model but the built-in one, its own preset takes the place of the default.
    """
    tell_of_start(context)
    name = context.settings.preset or "default"
    files = context.catalog.checkpoints()
    if name == "default" and files and all(file.is_builtin for file in files):
        name = "builtin"
    presets = context.presets
    preset = presets.get(name) or presets.get("default") or next(iter(presets.values()), None)
    if preset is None:
        return TaskSpec()
    settings = fit_preset(preset, context.catalog, context.shelf.styles()).settings
    return TaskSpec.from_mapping({**settings, "preset": preset.name})


def tell_of_start(context: ServerContext) -> None:
    """Keep on the notice board what the preset that this start names cannot have now.

    Who names none need not read of files on every page: there the Models tab offers them.
    """
    name = context.settings.preset
    if name in ("", "default"):
        return
    try:
        preset = preset_named(context.presets, name)
        # Every tab may paint with another checkpoint, so none is named.
        said = fit_preset(preset, context.catalog, context.shelf.styles(), None).sentences
    except SpecError as error:
        said = (str(error),)
    context.notices.put(_START, " ".join(said))


def submit(
    context: ServerContext, form: Form, values: Mapping[Component, Any], owner: str = "local"
) -> dict[str, Any]:
    """The ticket for one press of Generate: {"id", "settings"} or {"error"}; never raises.

    `nonce` tells a new ticket from one that the page has seen. `settings` is JSON text, because
    a browser would round a seed beyond 2^53.
    """
    ticket: dict[str, Any] = {"nonce": uuid.uuid4().hex}
    try:
        spec = context.complete(form.read(values))
        task_id = context.submit(spec, owner)
    except StudioError as error:
        field = error.field if isinstance(error, SpecError | LimitError) else ""
        return ticket | {"error": {"code": error.code, "message": str(error), "field": field}}
    except Exception:  # noqa: BLE001 - the page must get an answer; the log gets the story
        logger.exception("a request could not be taken in")
        message = form.texts("error.unknown")
        return ticket | {"error": {"code": "E_INTERNAL", "message": message, "field": ""}}
    return ticket | {"id": task_id, "settings": spec.to_json()}


def _wire_generate(
    context: ServerContext, form: Form, generate: gr.Button, ticket: gr.JSON
) -> None:
    def press(values: dict[Component, Any], request: gr.Request) -> dict[str, Any]:
        return submit(context, form, values, owner=request.username or "local")

    pressed = generate.click(press, form.inputs(), ticket, **DIRECT)
    pressed.success(None, ticket, None, js="(ticket) => window.easel.ticket(ticket)")
    pressed.failure(None, None, None, js="() => window.easel.ticket(null)")


def _wire_choices(form: Form, parts: "_ModelParts", presets: PresetPanel) -> None:
    """Preset → other controls; Refresh → the files there are now; checkpoint → its sizes."""

    def after_preset(wanted: dict[str, Any], checkpoint: str | None) -> dict[Component, Any]:
        file = parts.find(wanted.pop("checkpoint") or checkpoint)
        ratio = wanted.pop("aspect_ratio")
        changes = form.updates(wanted | {"checkpoint": models.name_of(file)})
        return changes | parts.size(file, ratio)

    def look_again(*held: str | None) -> dict[Component, Any]:
        context = parts.context
        reload_presets(context.settings.root, context.presets)
        preset, *rest = held
        return presets.restored(preset) | refreshed(dict(zip(_LISTED, rest, strict=True)))

    def other_model(name: str | None, ratio: str | None) -> dict[Component, Any]:
        return parts.size(parts.find(name), ratio) | {presets.left: CHOSEN}

    def refreshed(held: Mapping[str, Any]) -> dict[Component, Any]:
        tell_of_start(parts.context)
        return parts.updates(*(held[name] for name in _LISTED))

    # `input`: only the user's own choice; a restored form must not be overwritten.
    size, checkpoint = form.components["aspect_ratio"], parts.checkpoint
    presets.wire(after_preset, refreshed, parts.hint)
    checkpoint.input(other_model, [checkpoint, size], [size, presets.left], **DIRECT)
    asked = [presets.choice, *(form.components[name] for name in _LISTED)]
    shown = [*asked, presets.last, parts.hint]
    parts.refresh.click(look_again, asked, shown, **DIRECT).success(
        None, None, None, js="() => window.easel.refreshed()"
    )


@dataclass(frozen=True)
class _ModelParts:
    """The controls that show what files there are, and how to bring them up to date."""

    context: ServerContext
    form: Form
    presets: PresetPanel
    checkpoint: gr.Dropdown
    refresh: gr.Button
    hint: gr.HTML

    def find(self, name: str | None) -> ModelFile | None:
        """The checkpoint `name`, or the first there is."""
        return models.chosen(self.context.catalog.checkpoints(), name)

    def size(self, file: ModelFile | None, ratio: str | None) -> dict[Component, Any]:
        """The size control for `file`."""
        table = model_sizes(file)
        return {self.form.components["aspect_ratio"]: settings.size_update(table, ratio)}

    def updates(
        self,
        name: str | None,
        ratio: str | None,
        vae: str | None,
        refiner: str | None,
        mode: str | None,
    ) -> dict[Component, Any]:
        """Every control for the files of this moment, with those named chosen if there."""
        files = self.context.catalog.checkpoints()
        file = models.chosen(files, name)
        choices = models.checkpoint_choices(files)
        vaes = models.vae_choices(self.context, self.form.texts)
        vae = vae if vae in [value for _, value in vaes] else ""
        refiners = quality.refiner_choices(self.context, self.form.texts)
        refiner = refiner if refiner in [value for _, value in refiners] else ""
        modes = performance.mode_choices(self.context, self.form.texts)
        mode = mode if mode in [value for _, value in modes] else ""
        return {
            self.form.components["performance"]: gr.update(choices=modes, value=mode),
            self.form.components["vae"]: gr.update(choices=vaes, value=vae),
            self.form.components["refiner"]: gr.update(choices=refiners, value=refiner),
            self.checkpoint: gr.update(choices=choices, value=models.name_of(file)),
            self.hint: models.models_hint(self.context, self.form.texts),
            **self.size(file, ratio),
        }

    def restore(self, text: str | None) -> dict[Component, Any]:
        """On load: today's files and presets, and what this tab held last (JSON text, or '').

        A tab that held nothing starts as the first one would today. Nothing is checked: half a
        number was the user's own, and is checked when it is sent.
        """
        try:
            held = dict(json.loads(text or "{}"))
        except (ValueError, TypeError, RecursionError):
            held = {}
        start, now = self.form.initial, initial_spec(self.context)
        initial, controls = start if held else now, self.form.components
        new = {name: getattr(initial, name) for name in TaskSpec.model_fields}
        new = {name: value for name, value in new.items() if value != getattr(start, name)}
        left = held.pop("preset_left", "")
        name = held.pop("checkpoint", initial.checkpoint)
        ratio = held.pop("aspect_ratio", initial.aspect_ratio)
        vae = held.pop("vae", initial.vae)
        refiner = held.pop("refiner", initial.refiner)
        mode = held.pop("performance", initial.performance)
        presets = self.presets.restored(held.pop("preset", initial.preset))
        known = {controls[name]: gr.update(value=held[name]) for name in held if name in controls}
        shown = self.form.updates(new) | known | presets | {self.presets.left: left}
        return shown | self.updates(name, ratio, vae, refiner, mode)


def _wire_form(app: gr.Blocks, form: Form, presets: PresetPanel) -> None:
    """Tell the script what the controls hold, now and whenever one changes."""
    controls = [*form.components.values(), presets.left]
    names = json.dumps([*form.components, "preset_left"])
    gr.on(
        [app.load, *(control.change for control in controls)],
        None,
        controls,
        None,
        js=f"(...values) => window.easel.form({names}, values)",
    )


def _tab_list(texts: Texts) -> str:
    """Tabs of our own: Gradio's take the controls of the others out of the page."""
    tabs = "".join(
        f'<button type="button" role="tab" id="tab-{name}" aria-controls="panel-{name}" '
        f'aria-selected="{str(name == PANELS[0]).lower()}">{texts(f"tab.{name}")}</button>'
        for name in PANELS
    )
    return f'<div role="tablist">{tabs}</div>'


def _panel(name: str) -> gr.Column:
    return gr.Column(elem_id=f"panel-{name}", min_width=0)


def _sheet_head(texts: Texts) -> str:
    close = stage.button("sheet-close", "close", texts("sheet.close"))
    return f'<div class="grip"></div><h2>{texts("toggle.sheet")}</h2>{close}'
