"""Gradio as the server imports it: its own way takes seconds longer, in every test process."""

from modules.api.server import import_gradio

import_gradio()
