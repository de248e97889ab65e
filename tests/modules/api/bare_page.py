"""A page of one text box, where a test does not want the real one."""

from typing import Any

from modules.api.context import ServerContext


def build_app(context: ServerContext) -> Any:
    import gradio as gr

    with gr.Blocks(title="Easel", analytics_enabled=False) as blocks:
        box = gr.Textbox(label="Prompt", elem_id="prompt")
        out = gr.Textbox(label="Result", elem_id="result")
        button = gr.Button("Generate", elem_id="generate")
        button.click(lambda text: text.upper(), box, out, api_name="shout")
    return blocks


def launch_options() -> dict[str, Any]:
    return {}
