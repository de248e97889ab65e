"""Presets: choosing one, saving, renaming and deleting one's own, and a way back.

A preset sets every control but the words, unless it names some, so choosing one says what it
changed, words first, and Undo puts it all back. Words of a preset that nobody touched go with it.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import gradio as gr
from gradio.components import Component

from modules.api.context import ServerContext
from modules.library.preset_fit import fit_preset, refit_preset
from modules.settings.preset_files import (
    delete_preset,
    differences,
    rename_preset,
    require_own,
    save_preset,
)
from modules.settings.presets import Download, ModelFolder
from modules.spec.errors import StudioError
from modules.spec.image_prompt import ImagePromptType
from modules.ui.components import markup
from modules.ui.form import Form, field_defaults
from modules.ui.panels.downloads import download_list
from modules.ui.texts import Texts

# What a preset leaves alone: the user's words and pictures, and how many, unless it names them.
KEPT = frozenset({"prompt", "negative_prompt", "image_prompts", "seed", "image_count", "preset"})
_DIRECT = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
_WORDS = ("prompt", "negative_prompt")
_TOLD = 6  # changes that are told one by one
_TOLD_CHARACTERS = 160  # of a text

Updates = dict[Component, Any]
Work = Callable[[Mapping[Component, Any]], tuple[str, str]]  # (the preset chosen, a sentence)


def preset_choices(context: ServerContext) -> list[tuple[str, str]]:
    """(title, name) of every preset."""
    return [(preset.title, name) for name, preset in list(context.presets.items())]


@dataclass(frozen=True)
class PresetPanel:
    """The controls of this part of the settings."""

    context: ServerContext
    form: Form
    choice: gr.Dropdown
    last: gr.Textbox  # what `choice` held before
    left: gr.Textbox  # the checkpoint when it was chosen, or CHOSEN
    title: gr.Textbox
    note: gr.HTML
    save: gr.Button
    rename: gr.Button
    delete: gr.Button
    compare: gr.Button
    undo: gr.Button
    arrived: gr.Button  # pressed by the script when files have come
    asked: gr.Textbox  # the preset that `sure` is about
    sure: gr.Row
    keep: gr.Button
    gone: gr.Button

    @classmethod
    def build(cls, context: ServerContext, form: Form) -> "PresetPanel":
        """#preset, #preset-note with #preset-undo and #preset-sure; folded, #preset-manage."""
        texts = form.texts
        choice = form.choice("preset", preset_choices(context), elem_id="preset", filterable=False)
        last = gr.Textbox(choice.value, visible=False)
        left = gr.Textbox(visible=False)
        note = markup("", "preset-note")
        undo = gr.Button(texts("preset.undo"), elem_id="preset-undo", size="sm", visible=False)
        arrived = gr.Button(texts("refresh"), elem_id="arrived", elem_classes="unseen")
        asked = gr.Textbox(visible=False)
        with gr.Row(elem_id="preset-sure", visible=False) as sure:
            keep = gr.Button(texts("preset.keep"), elem_id="preset-keep", size="sm")
            gone = gr.Button(texts("preset.gone"), elem_id="preset-gone", size="sm")
        with gr.Accordion(texts("preset.manage"), open=False, elem_id="preset-manage"):
            title = gr.Textbox(
                label=texts("preset.name"),
                show_label=False,
                container=False,
                max_lines=1,
                placeholder=texts("preset.name"),
                elem_id="preset-name",
            )
            with gr.Row(elem_id="preset-buttons"):
                save, rename, delete, compare = (
                    gr.Button(texts(f"preset.{name}"), elem_id=f"preset-{name}", size="sm")
                    for name in ("save", "rename", "delete", "compare")
                )
        buttons = (save, rename, delete, compare, undo, arrived)
        return cls(
            context, form, choice, last, left, title, note, *buttons, asked, sure, keep, gone
        )

    def wire(
        self,
        after: Callable[[dict[str, Any], str | None], Updates],
        refreshed: Callable[[Mapping[str, Any]], Updates],
        hint: gr.HTML,
    ) -> None:
        """after: (wanted settings, checkpoint now) → updates of the checkpoint and its sizes.

        refreshed: settings → updates of every control that lists model files, `hint` among them.
        """
        before = gr.JSON(visible=False)  # no gr.State: it would keep a connection open
        last, left = self.last, self.left
        every = set(self.form.components.values())

        def choose(values: Mapping[Component, Any]) -> Updates:
            held = {name: values[control] for name, control in self.form.components.items()}
            updates = self._chosen(held, values[last], after)
            # What the preset leaves alone is the user's, and stays so when it is undone.
            touched = {name: held[name] for name, c in self.form.components.items() if c in updates}
            kept = {before: touched | {"preset": values[last]}, last: held["preset"]}
            painter = updates.get(self.form.components["checkpoint"])
            kept |= {left: painter["value"]} if painter else {}
            undo = {self.undo: gr.update(visible=bool(updates))}
            return updates | kept | undo | {self.sure: gr.update(visible=False)}

        def back(held: dict[str, Any] | None) -> Updates:
            if not held:
                return {self.note: self._said(self.form.texts("preset.nothing"))}
            controls = self.form.components
            shown = {controls[name]: gr.update(value=value) for name, value in held.items()}
            model = {name: held.get(name) for name in ("checkpoint", "aspect_ratio")}
            shown |= after(model, None)  # with the sizes of its own
            said = self._said(self.form.texts("preset.undone"))
            rest = {self.note: said, before: None, last: held["preset"], left: ""}
            hidden = dict.fromkeys((self.undo, self.sure), gr.update(visible=False))
            return {**shown, **rest, **hidden}

        outputs = [*every, self.note, before, last, left, self.undo, self.sure]
        # `input`: only the user's own choice; a restored form must not be overwritten.
        self.choice.input(choose, {*every, last}, outputs, **_DIRECT)
        self.undo.click(back, before, outputs, **_DIRECT)
        self._wire_own(every)
        names = gr.JSON(visible=False)

        def arrive(values: Mapping[Component, Any]) -> Updates:
            held = {name: values[control] for name, control in self.form.components.items()}
            wanted, told = self._arrived(held, values[names], values[left])
            updates = self.form.updates(wanted) | refreshed(held | wanted) | told
            if wanted:
                touched = {n: held[n] for n, c in self.form.components.items() if c in updates}
                # One Undo takes back what was chosen and what has come since.
                touched |= {"preset": values[last]} | (values[before] or {})
                updates |= {before: touched}
                updates |= {self.undo: gr.update(visible=True)}
            return updates

        self.arrived.click(None, None, names, js="() => [window.easel.arrived()]", **_DIRECT).then(
            arrive,
            {*every, last, left, before, names},
            [*every, hint, self.note, before, self.undo],
            **_DIRECT,
        )

    def _arrived(
        self, held: Mapping[str, Any], names: Any, left: str | None
    ) -> tuple[dict[str, Any], Updates]:
        """What the preset at hand changes now that files have come, and what to say of it.

        names: of the files that this tab fetched. left: see `refit_preset`.
        """
        names = names if isinstance(names, list) else []
        preset = self.context.presets.get(held["preset"] or "")
        own = {each.key for each in preset.downloads} if preset else set()
        others = [name for name in names if name not in own]
        names = [name for name in names if name in own]
        if preset is None or not names:
            return {}, self._offered(held["preset"], others)
        plain = {name: self.form.plain(name, value) for name, value in held.items()}
        fitted = refit_preset(
            preset, names, plain, self.context.catalog, self.context.shelf.styles(), left or ""
        )
        changed = {
            name: (_set(plain[name]), _set(new))
            for name, new in fitted.settings.items()
            if name in plain
        }
        files = ", ".join(name.partition("/")[2] for name in names)
        here = self.form.texts("preset.arrived", files=files)
        sentences = filter(None, (here, self._changes(changed), *fitted.sentences))
        return fitted.settings, {self.note: self._said(*sentences, files=fitted.missing)}

    def _offered(self, chosen: str | None, arrived: Sequence[str]) -> Updates:
        """The settings of the small model suit no other: say with which preset a new one paints."""
        default = self.context.presets.get("default")
        folder = f"{ModelFolder.CHECKPOINTS}/"
        files = [name.removeprefix(folder) for name in arrived if name.startswith(folder)]
        if chosen != "builtin" or default is None or not files:
            return {}
        words = {"files": ", ".join(files), "title": default.title}
        return {self.note: self._said(self.form.texts("preset.offer", **words))}

    def restored(self, name: str | None) -> Updates:
        """On load: the presets of this moment, with `name` chosen if it is there."""
        known = name if name in self.context.presets else None
        choices = preset_choices(self.context)
        return {self.choice: gr.update(choices=choices, value=known), self.last: known}

    def _wire_own(self, every: set[Component]) -> None:
        root, presets, texts = self.context.settings.root, self.context.presets, self.form.texts

        def act(work: Work) -> Callable[..., Updates]:
            def pressed(values: Mapping[Component, Any]) -> Updates:
                hidden = {self.sure: gr.update(visible=False)}
                try:
                    name, said = work(values)
                except StudioError as error:
                    return hidden | {self.note: self._said(str(error))}
                choice = gr.update(choices=preset_choices(self.context), value=name or None)
                return hidden | {self.choice: choice, self.note: self._said(said), self.last: name}

            return pressed

        def save(values: Mapping[Component, Any]) -> tuple[str, str]:
            spec = self.context.complete(self.form.read(values))
            name = save_preset(root, presets, values[self.title] or "", spec)
            return name, texts("preset.saved", title=presets[name].title)

        def rename(values: Mapping[Component, Any]) -> tuple[str, str]:
            title = values[self.title] or ""
            name = rename_preset(root, presets, values[self.choice] or "", title)
            return name, texts("preset.saved", title=presets[name].title)

        def ask(values: Mapping[Component, Any]) -> Updates:
            name = values[self.choice] or ""
            try:
                title = require_own(presets, name).title
            except StudioError as error:
                return {self.note: self._said(str(error)), self.sure: gr.update(visible=False)}
            said = self._said(texts("preset.sure", title=title))
            return {self.note: said, self.asked: name, self.sure: gr.update(visible=True)}

        def keep(values: Mapping[Component, Any]) -> tuple[str, str]:
            return values[self.choice] or "", texts("preset.kept")

        def delete(values: Mapping[Component, Any]) -> tuple[str, str]:
            delete_preset(root, presets, values[self.asked] or "")
            return next(iter(presets), ""), texts("preset.deleted")

        def compare(values: Mapping[Component, Any]) -> tuple[str, str]:
            name = values[self.choice] or ""
            preset = presets.get(name)
            spec = self.context.complete(self.form.read(values))
            found = differences(preset.settings if preset else {}, spec)
            return name, self._changes(found) or texts("preset.same")

        needed, shown = {*every, self.title, self.asked}, [self.note, self.sure]
        for button, work in (
            (self.save, save),
            (self.rename, rename),
            (self.compare, compare),
            (self.keep, keep),
            (self.gone, delete),
        ):
            button.click(act(work), needed, [self.choice, self.last, *shown], **_DIRECT)
        self.delete.click(ask, needed, [self.asked, *shown], **_DIRECT)

    def _chosen(
        self,
        held: Mapping[str, Any],
        previous: str | None,
        after: Callable[[dict[str, Any], str | None], Updates],
    ) -> Updates:
        """What choosing the preset in `held` after `previous` does to the controls, and what to
        say of it."""
        preset = self.context.presets.get(held["preset"] or "")
        if preset is None:
            return {}
        painter = held.get("checkpoint") or ""
        fitted = fit_preset(preset, self.context.catalog, self.context.shelf.styles(), painter)
        before = self.context.presets.get(previous or "")
        theirs = before.settings if before is not None else {}
        unset = {k for k in _WORDS if held.get(k) and held[k] == theirs.get(k)}
        defaults = {k: v for k, v in field_defaults().items() if k not in KEPT or k in unset}
        wanted = defaults | fitted.settings
        updates = after(wanted, held.get("checkpoint"))
        plain = self.form.plain
        both = {
            name: (_set(plain(name, held[name])), _set(plain(name, updates[control]["value"])))
            for name, control in self.form.components.items()
            if control in updates
        }
        both = {name: both[name] for name in _WORDS if name in both} | both  # those come first
        changed = {name: (old, new) for name, (old, new) in both.items() if old != new}
        sentences = [*fitted.sentences, self._changes(changed)]
        said = self._said(*filter(None, sentences), files=fitted.missing)
        return updates | {self.note: said}

    def _changes(self, changed: Mapping[str, tuple[Any, Any]]) -> str:
        """Guidance 7 → 4, Sharpness 0 → 2 and 3 more."""
        texts = self.form.texts
        label = texts.label
        told = [
            f"{label(name)} {_word(old, texts)} → {_word(new, texts)}"
            for name, (old, new) in changed.items()
        ]
        if not told:
            return ""
        more = len(told) - _TOLD
        listed = ", ".join(told[:_TOLD])
        words = texts("preset.more", changes=listed, count=more) if more > 0 else listed
        return texts("preset.changes", changes=words)

    def _said(self, *sentences: str, files: Sequence[Download] = ()) -> str:
        """Sentences, then files that can be fetched."""
        words = "".join(f"<p>{escape(sentence)}</p>" for sentence in sentences)
        return words + download_list(files, self.form.texts)


def _set(value: Any) -> Any:
    """`value`, or None for what says nothing."""
    return None if value in ("", (), []) else value


def _word(value: Any, texts: Texts) -> str:
    """A setting's value for a person."""
    if value is None or value in ("", (), []):
        return "–"
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, list | tuple):
        if all(isinstance(item, Mapping) and "image" in item for item in value):
            return _pictures(value, texts)
        return ", ".join(_word(item, texts) for item in value)
    if isinstance(value, Mapping):
        return f"{value.get('name', '')} at {value.get('weight', 1):g}"
    text = str(value)
    return text if len(text) <= _TOLD_CHARACTERS else f"{text[:_TOLD_CHARACTERS]}…"


def _pictures(entries: Sequence[Mapping[str, Any]], texts: Texts) -> str:
    """Image prompts for a person: how many of each type."""
    usual = ImagePromptType.IMAGE_PROMPT.value
    counts = Counter(str(entry.get("type") or usual) for entry in entries)
    return ", ".join(f"{count} × {texts(f'ip.type.{kind}')}" for kind, count in counts.items())
