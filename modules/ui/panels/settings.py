"""Settings: what most people change. Preset, steps, size, pictures, format, negative, seed."""

from html import escape
from typing import Any

import gradio as gr

from modules.api.context import ServerContext
from modules.spec.flags import OutputFormat
from modules.spec.sizes import Size, SizeTable, parse_ratio
from modules.ui.components import markup
from modules.ui.form import RANDOM_SEED, Form
from modules.ui.panels import performance
from modules.ui.panels.presets import PresetPanel
from modules.ui.texts import Texts

USUAL_RATIOS = ("1:1", "9:7", "7:9", "3:2", "2:3", "16:9", "9:16", "5:2", "1:2")


def build(context: ServerContext, form: Form, table: SizeTable) -> PresetPanel:
    """The tab's controls; gives the presets, whose choice sets the others."""
    texts = form.texts
    preset = PresetPanel.build(context, form)
    performance.build(context, form)
    form.radio(
        "aspect_ratio",
        size_choices(table),
        value=table.choose(form.value("aspect_ratio")).ratio,
        elem_id="size",
    )
    markup(_more_sizes(texts, table), "more-sizes-block")
    form.slider("image_count", elem_id="image-number")
    form.radio(
        "output_format",
        [(texts(f"format.{item.value}"), item.value) for item in OutputFormat],
        elem_id="output-format",
    )
    form.text(
        "negative_prompt",
        elem_id="negative-prompt",
        lines=2,
        max_lines=6,
        placeholder=texts("negative.placeholder"),
    )
    with gr.Row(elem_id="seed-row"):
        form.digits("seed", elem_id="seed", scale=2, min_width=0)
        form.add(
            RANDOM_SEED,
            gr.Checkbox(
                form.initial.seed is None,
                label=texts.label(RANDOM_SEED),
                elem_id="seed-random",
                scale=1,
                min_width=0,
            ),
        )
    return preset


def size_choices(table: SizeTable) -> list[tuple[str, str]]:
    """(words, ratio) for every size of `table`: the usual ones first, then tall to wide.

    The style sheet shows the first nine until all are asked for.
    """
    usual = [_nearest(table, ratio) for ratio in USUAL_RATIOS]
    order = dict.fromkeys([*usual, *sorted(table.sizes, key=lambda s: s.width / s.height)])
    return [(f"{size.width}×{size.height}", size.ratio) for size in order]


def size_update(table: SizeTable, ratio: str | None) -> dict[str, Any]:
    """Offer `table` in the size control and keep `ratio` as nearly as the table allows."""
    size = table.choose(ratio or "")
    known = size if size in table.sizes else _nearest(table, size.ratio)
    return gr.update(choices=size_choices(table), value=known.ratio)


def _nearest(table: SizeTable, ratio: str) -> Size:
    wanted = parse_ratio(ratio)

    def off(size: Size) -> float:
        found = size.width / size.height
        return max(found / wanted, wanted / found)

    return min(table.sizes, key=off)


def _more_sizes(texts: Texts, table: SizeTable) -> str:
    more = escape(texts("size.more", count=len(table.sizes)))
    return (
        '<button type="button" id="more-sizes" class="text-button" aria-expanded="false" '
        f'aria-controls="size">{more}</button>'
    )
