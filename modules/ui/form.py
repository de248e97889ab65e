"""The form: which control holds which TaskSpec field, by name.

A panel makes its controls with the `Form`, which gives each the label, help, range and default of
its field. Gradio hands the values over as a mapping keyed by control, so order means nothing.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import gradio as gr
from gradio.components import Component
from pydantic_core import PydanticUndefined, to_jsonable_python

from modules.spec.errors import SpecError
from modules.spec.task_spec import TaskSpec
from modules.ui.components import Choice, Radio, Slider
from modules.ui.texts import Texts

C = TypeVar("C", bound=Component)

RANDOM_SEED = "random_seed"  # the one control that is no field: it empties `seed`


class Form:
    """Names of TaskSpec fields and the controls that hold them."""

    def __init__(self, texts: Texts, initial: TaskSpec) -> None:
        self.texts = texts
        self.initial = initial
        self.components: dict[str, Component] = {}
        self._digits: set[str] = set()
        self._lists: set[str] = set()
        self._groups: dict[str, _Group] = {}

    def add(self, name: str, component: C) -> C:
        """Let `component` hold field `name`. ValueError if the field has one already."""
        if name in self.components:
            raise ValueError(f"two controls for {name}")
        parts = [part for group in self._groups.values() for part in group.parts]
        if name not in TaskSpec.model_fields and name not in (RANDOM_SEED, *parts):
            raise ValueError(f"{name} is not a field of TaskSpec")
        self.components[name] = component
        return component

    def inputs(self) -> set[Component]:
        """What an event listener takes to get the whole form, keyed by control."""
        return set(self.components.values())

    def without(self, *names: str) -> list[Component]:
        """The controls of all fields but `names`."""
        return [control for name, control in self.components.items() if name not in names]

    def read(self, values: Mapping[Component, Any]) -> TaskSpec:
        """The request that the form asks for. Raises SpecError or LimitError."""
        named = {name: values[control] for name, control in self.components.items()}
        if named.pop(RANDOM_SEED, False):
            named["seed"] = None
        for name, group in self._groups.items():
            is_on, *numbers = (named.pop(part) for part in group.parts)
            named[name] = tuple(numbers) if is_on else ()
        for name, value in named.items():
            if name in self._digits:
                named[name] = self._whole_number(name, value)
            elif name in self._lists:
                named[name] = self._list(name, value)
            elif value is None and isinstance(getattr(self.initial, name), str):
                named[name] = ""  # Gradio's word for an empty box or an empty choice
        return TaskSpec.from_mapping(named)

    def updates(self, settings: Mapping[str, Any]) -> dict[Component, Any]:
        """Gradio updates that set the controls to `settings` (field name → value).

        A seed in `settings` fixes it; `seed: None` goes back to random.
        """
        every = dict(settings)
        for name in self._groups.keys() & settings.keys():
            every |= self._groups[name].spread(every.pop(name))
        changes = {
            self.components[name]: gr.update(value=self.shown(name, value))
            for name, value in every.items()
            if name in self.components
        }
        if "seed" in settings and RANDOM_SEED in self.components:
            changes[self.components[RANDOM_SEED]] = gr.update(value=settings["seed"] is None)
        return changes

    def value(self, name: str) -> Any:
        """What the control of `name` starts with."""
        return self.shown(name, getattr(self.initial, name))

    def text(self, name: str, **options: Any) -> gr.Textbox:
        """A box for words."""
        return self.add(name, gr.Textbox(value=self.value(name), **self._common(name, options)))

    def slider(self, name: str, *, step: float = 1, **options: Any) -> gr.Slider:
        """A slider over the field's own range, or `minimum` to `maximum` within it."""
        low, high = field_range(name)
        options = {"minimum": low, "maximum": high, "step": step, "buttons": [], **options}
        return self.add(name, Slider(value=self.value(name), **self._common(name, options)))

    def digits(self, name: str, **options: Any) -> gr.Textbox:
        """A box for a whole number of any length; empty means None.

        A browser's numbers are exact to 2^53 only, seeds go to 2^63: they travel as text.
        """
        self._digits.add(name)
        return self.text(name, max_lines=1, **options)

    def switch(self, name: str, **options: Any) -> gr.Checkbox:
        """On or off."""
        return self.add(name, gr.Checkbox(value=self.value(name), **self._common(name, options)))

    def group(self, name: str, numbers: Sequence[tuple[str, float, float]]) -> None:
        """A switch, and a slider for each number of a field that is empty where it is off.

        numbers: (name, usual value, greatest value) of each; the least is 0. The controls bear
        their names after the field's, as in freeu_on and freeu_b1.
        """
        parts = (f"{name}_on", *(f"{name}_{number}" for number, _, _ in numbers))
        self._groups[name] = _Group(parts, tuple(usual for _, usual, _ in numbers))
        held = self._groups[name].spread(getattr(self.initial, name))
        for part in parts:
            words = self._common(part, {"elem_id": part.replace("_", "-"), "value": held[part]})
            if part == parts[0]:
                self.add(part, gr.Checkbox(**words))
                continue
            most = numbers[parts.index(part) - 1][2]
            self.add(part, Slider(minimum=0, maximum=most, step=0.01, buttons=[], **words))

    def listed(self, name: str, **options: Any) -> gr.Textbox:
        """A list as JSON in a box that nobody sees; the page's script shows and changes it."""
        self._lists.add(name)
        return self.text(name, info=None, elem_classes="unseen", **options)

    def radio(self, name: str, choices: Sequence[tuple[str, str]], **options: Any) -> gr.Radio:
        """A few (label, value) choices, all in sight."""
        options = {"value": self.value(name), **options}
        return self.add(name, Radio(choices=choices, **self._common(name, options)))

    def choice(self, name: str, choices: Sequence[tuple[str, str]], **options: Any) -> gr.Dropdown:
        """A drop-down list of (label, value) choices; none is chosen if the value is not there."""
        value = self.value(name)
        known = any(value == choice for _, choice in choices)
        options = {"value": value if known else None, **options}
        return self.add(name, Choice(choices=choices, **self._common(name, options)))

    def _common(self, name: str, options: dict[str, Any]) -> dict[str, Any]:
        """What every control has: words of its field, and that it can be changed."""
        words = {"label": self.texts.label(name), "info": self.texts.help(name)}
        return {"interactive": True, **words, **options}

    def shown(self, name: str, value: Any) -> Any:
        """`value` of field `name` as its control holds it."""
        if name in self._digits:
            return "" if value is None else str(value)
        if name in self._lists:
            return json.dumps(to_jsonable_python(value), ensure_ascii=False)
        return str(value) if isinstance(value, str) else value  # an enum's member as plain text

    def plain(self, name: str, held: Any) -> Any:
        """What a control holds as one would tell it: a list as a list, all else as it is."""
        try:
            return self._list(name, held) if name in self._lists else held
        except SpecError:
            return []

    def _list(self, name: str, text: str | None) -> list[Any]:
        """What a box of `listed` holds."""
        try:
            entries = json.loads(text or "[]")
        except (ValueError, RecursionError):
            entries = None
        if not isinstance(entries, list):
            raise SpecError(f"{self.texts.label(name)} cannot be read; choose them again.", name)
        return entries

    def _whole_number(self, name: str, text: str | None) -> int | None:
        """A box of digits: empty is None; anything but digits is the user's slip."""
        text = (text or "").strip()
        if not text:
            return None
        if not (text.isascii() and text.removeprefix("-").isdigit() and len(text) <= 40):
            label = self.texts.label(name)
            raise SpecError(f"{label} must be a whole number, or left empty.", name)
        return int(text)


@dataclass(frozen=True)
class _Group:
    """Controls that hold one field together: a switch, then numbers with their usual values."""

    parts: tuple[str, ...]
    usual: tuple[float, ...]

    def spread(self, numbers: Sequence[float]) -> dict[str, Any]:
        """What each control shows of the field's value."""
        return dict(zip(self.parts, (bool(numbers), *(numbers or self.usual)), strict=True))


def field_range(name: str) -> tuple[float, float]:
    """The least and the greatest value of a numeric field."""
    metadata = TaskSpec.model_fields[name].metadata
    low = next(bound.ge for bound in metadata if hasattr(bound, "ge"))
    high = next(bound.le for bound in metadata if hasattr(bound, "le"))
    return low, high


def field_defaults() -> dict[str, Any]:
    """Every field's default value."""
    fields = TaskSpec.model_fields.items()
    return {name: info.default for name, info in fields if info.default is not PydanticUndefined}
