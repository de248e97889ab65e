"""Gradio's controls without Gradio's own checks: TaskSpec alone says what is allowed.

Gradio compares a value with the choices and limits that a control was built with, and answers a
mismatch with a sentence of its own. Choices change while the program runs (a new checkpoint, the
sizes of another model), and a wrong number deserves the same sentence here as through the API.
"""

from abc import ABCMeta
from typing import Any

import gradio as gr


def markup(value: str, elem_id: str) -> gr.HTML:
    """Our own markup, without Gradio's text styles. Foreign text in it must be escaped."""
    return gr.HTML(value, elem_id=elem_id, apply_default_css=False, padding=False)


def _as_it_is(_control: Any, payload: Any) -> Any:
    """In place of a control's `preprocess`: the value goes on to TaskSpec."""
    return payload


def _unchecked(base: type) -> Any:
    """`base` without its checks; the browser shows it as `base`.

    Made by ABCMeta itself, because Gradio's metaclass would write a .pyi file beside this module
    when it is imported.
    """
    attributes = {"is_template": True, "preprocess": _as_it_is, "__module__": __name__}
    return ABCMeta.__new__(type(base), base.__name__, (base,), attributes)


Choice = _unchecked(gr.Dropdown)
Radio = _unchecked(gr.Radio)
Slider = _unchecked(gr.Slider)
