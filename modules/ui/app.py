"""The page as a Gradio app: it holds the form and hands requests in; easel.js does the looking.

Pressing Generate makes a TaskSpec and submits it; the answer is a *ticket* (the task's id, or a
sentence on what is wrong), which the page's script takes from there. No listener waits for a
picture, so a closed or reloaded tab ends nothing, and none goes through Gradio's queue.
"""

import json
import logging
import uuid
from collections.abc import Callable, Mapping
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.api.context import ServerContext
from modules.spec import sizes
from modules.spec.errors import SpecError, StudioError
from modules.spec.task_spec import TaskSpec
from modules.ui import assets
from modules.ui.components import markup
from modules.ui.form import Form, field_defaults
from modules.ui.panels import advanced, models, settings, stage
from modules.ui.panels import prompt as prompt_panel
from modules.ui.texts import Texts

logger = logging.getLogger(__name__)

# What a preset leaves alone: the user's words and choice of how many, unless it names them.
KEPT_BY_PRESETS = frozenset({"prompt", "negative_prompt", "seed", "image_count", "preset"})
SUMMARY_FIELDS = ("image_count", "aspect_ratio", "width", "height", "steps", "checkpoint")
DIRECT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}


def build_app(context: ServerContext) -> gr.Blocks:
    """The page over `context`. Looks at models and presets now, and again when they are asked."""
    texts = Texts()
    form = Form(texts, initial_spec(context))
    with gr.Blocks(title=texts("title"), fill_width=True, analytics_enabled=False) as app:
        with gr.Row(elem_id="shell"):
            with gr.Column(elem_id="main", min_width=0):
                stage.build(context, texts)
                generate = prompt_panel.build(form)
            with gr.Column(elem_id="side", min_width=0):
                markup(_sheet_head(texts), "sheet-head")
                with gr.Tabs(elem_id="tabs"):
                    with gr.Tab(texts("tab.settings"), render_children=True):
                        preset = settings.build(context, form, sizes.SDXL)
                    with gr.Tab(texts("tab.models"), render_children=True):
                        checkpoint, refresh, hint = models.build(context, form)
                    with gr.Tab(texts("tab.advanced"), render_children=True):
                        advanced.build(form)
                markup('<div id="make" role="status"></div>', "make-block")
        ticket = gr.JSON(visible=False)
        kept = gr.Textbox(visible=False)
        _wire_generate(context, form, generate, ticket)
        _wire_choices(context, form, preset, checkpoint, refresh, hint)
        app.load(
            _restorer(context, form, checkpoint, hint),
            kept,
            [*form.components.values(), hint],
            js="() => window.easel.settingsOfThisTab()",
            **DIRECT,
        ).then(None, None, None, js="() => window.easel.restored()")
        _wire_summary(app, form)
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
    """What the form starts with: the preset of this start, else the first preset, else defaults."""
    named = context.presets.get(context.settings.preset or "default")
    preset = named or next(iter(context.presets.values()), None)
    return preset.apply() if preset else TaskSpec()


def submit(context: ServerContext, form: Form, values: Mapping[Component, Any]) -> dict[str, Any]:
    """The ticket for one press of Generate: {"id", "settings"} or {"error"}; never raises.

    `nonce` tells a new ticket from one that the page has seen. `settings` is JSON text, because
    a browser would round a seed beyond 2^53.
    """
    ticket: dict[str, Any] = {"nonce": uuid.uuid4().hex}
    try:
        spec = form.read(values)
        task_id = context.pool.submit(spec, "local")
    except StudioError as error:
        field = error.field if isinstance(error, SpecError) else ""
        return ticket | {"error": {"code": error.code, "message": str(error), "field": field}}
    except Exception:  # noqa: BLE001 - the page must get an answer; the log gets the story
        logger.exception("a request could not be taken in")
        message = form.texts("error.unknown")
        return ticket | {"error": {"code": "E_INTERNAL", "message": message, "field": ""}}
    return ticket | {"id": task_id, "settings": spec.to_json()}


def _wire_generate(
    context: ServerContext, form: Form, generate: gr.Button, ticket: gr.JSON
) -> None:
    def press(values: dict[Component, Any]) -> dict[str, Any]:
        return submit(context, form, values)

    # Then, not success: the script must also hear that there was no answer.
    generate.click(press, form.inputs(), ticket, **DIRECT).then(
        None, ticket, None, js="(ticket) => window.easel.ticket(ticket)"
    )


def _wire_choices(
    context: ServerContext,
    form: Form,
    preset: gr.Dropdown,
    checkpoint: gr.Dropdown,
    refresh: gr.Button,
    hint: gr.HTML,
) -> None:
    """Preset → other controls; Refresh → the models there are now."""
    changed = [c for name, c in form.components.items() if name not in KEPT_BY_PRESETS]
    outputs = [*changed, *(form.components[name] for name in ("negative_prompt", "image_count"))]

    def apply_preset(name: str | None) -> dict[Component, Any]:
        found = context.presets.get(name or "")
        if found is None:
            return {}
        wanted = {k: v for k, v in field_defaults().items() if k not in KEPT_BY_PRESETS}
        wanted.pop("checkpoint")
        if not wanted["aspect_ratio"]:
            wanted["aspect_ratio"] = sizes.SDXL.default.ratio
        return form.updates({**wanted, **found.settings})

    def look_again(current: str | None) -> dict[Component, Any]:
        files = context.catalog.checkpoints()
        return {
            checkpoint: gr.update(
                choices=models.checkpoint_choices(files),
                value=models.chosen(files, current or ""),
            ),
            hint: models.models_hint(context, form.texts),
        }

    # `input`: only the user's own choice; a restored form must not be overwritten.
    preset.input(apply_preset, preset, outputs, **DIRECT)
    refresh.click(look_again, checkpoint, [checkpoint, hint], **DIRECT)


def _restorer(
    context: ServerContext, form: Form, checkpoint: gr.Dropdown, hint: gr.HTML
) -> Callable[[str | None], dict[Component, Any]]:
    def restore(text: str | None) -> dict[Component, Any]:
        """On load: today's models, and the settings this tab sent last (JSON text, or '')."""
        files = context.catalog.checkpoints()
        wanted: dict[str, Any] = {}
        if text:
            try:
                given = json.loads(text)
                wanted = TaskSpec.from_mapping(given).model_dump(mode="json", include=set(given))
            except (StudioError, ValueError, TypeError):
                wanted = {}  # an older page's settings: start afresh
        if not wanted.get("aspect_ratio"):
            wanted.pop("aspect_ratio", None)
        name = models.chosen(files, wanted.pop("checkpoint", form.value("checkpoint")))
        updates = form.updates(wanted)
        updates[checkpoint] = gr.update(choices=models.checkpoint_choices(files), value=name)
        updates[hint] = models.models_hint(context, form.texts)
        return updates

    return restore


def _wire_summary(app: gr.Blocks, form: Form) -> None:
    """Tell the script whenever a control changes that "What this will make" depends on."""
    controls = [form.components[name] for name in SUMMARY_FIELDS]
    names = json.dumps(SUMMARY_FIELDS)
    gr.on(
        [app.load, *(control.change for control in controls)],
        None,
        controls,
        None,
        js=f"(...values) => window.easel.summary({names}, values)",
    )


def _sheet_head(texts: Texts) -> str:
    close = stage.button("sheet-close", "close", texts("sheet.close"))
    return f'<div class="grip"></div><h2>{texts("toggle.sheet")}</h2>{close}'
