"""Choosing, undoing, saving and comparing presets, as the page's listeners do it."""

import json
import shutil
from pathlib import Path

import gradio as gr
import pytest

from modules.api.context import ServerContext
from modules.library.catalog import Catalog
from modules.prompt.plan import make_plan
from modules.settings.config import load_settings
from modules.settings.preset_files import save_preset
from modules.settings.presets import Preset, load_presets
from modules.spec.task_spec import TaskSpec
from modules.ui.app import build_app, initial_spec, submit
from modules.ui.form import Form
from modules.ui.texts import Texts

SHIPPED = Path(__file__).parents[3] / "presets"
PRESET = """{"title": "Big", "settings": {"checkpoint": "big.safetensors", "cfg_scale": 9.0,
"expand_prompt": true, "clip_skip": 3, "freeu": [1.3, 1.4, 0.9, 0.2],
"loras": [{"name": "gone"}]}}"""


@pytest.fixture
def context(tmp_path: Path) -> ServerContext:
    folder = tmp_path / "presets"
    folder.mkdir()
    (folder / "default.json").write_text('{"title": "Default", "settings": {"cfg_scale": 4.0}}')
    (folder / "big.json").write_text(PRESET)
    (tmp_path / "models" / "checkpoints").mkdir(parents=True)
    (tmp_path / "models" / "checkpoints" / "a.safetensors").write_bytes(b"")
    settings = load_settings([], {}, root=tmp_path)
    presets = load_presets(tmp_path)
    return ServerContext(settings, None, None, Catalog(settings, presets), presets)


def page_parts(*inputs):
    """What listeners take beside the form: controls without an id."""
    return {block for blocks in inputs for block in blocks if block.elem_id is None}


class Page:
    """The page's listeners with what its controls hold."""

    def __init__(self, context):
        self.app = build_app(context)
        self.fns = {fn.name: fn for fn in self.app.fns.values()}
        controls = {block.elem_id: block for block in self.fns["choose"].inputs}
        hidden = page_parts(self.fns["choose"].inputs, self.fns["arrive"].inputs)
        self.held = {block: block.value for block in (*controls.values(), *hidden)}
        self.by_id = controls

    def part_of(self, event, kind, other):
        """The hidden control of `kind` that `event` takes and `other` does not."""
        known = self.fns[other].inputs
        return next(b for b in self.fns[event].inputs if isinstance(b, kind) and b not in known)

    def set(self, **values):
        for name, value in values.items():
            self.held[self.by_id[name.replace("_", "-")]] = value

    def take(self, updates):
        for block, update in updates.items():
            if block in self.held:
                is_update = isinstance(update, dict) and update.get("__type__") == "update"
                value = update.get("value", self.held[block]) if is_update else update
                self.held[block] = value
        return "".join(str(v) for v in updates.values() if isinstance(v, str))

    def value(self, name):
        return self.held[self.by_id[name]]


def test_pictures_that_a_preset_names_are_told_by_type_and_count(context):
    kinds = ("canny", "face", "canny")
    entries = [{"image": "a" * 64, "type": kind} for kind in kinds] + [{"image": "b" * 64}]
    file = context.settings.root / "presets" / "steered.json"
    file.write_text(json.dumps({"title": "S", "settings": {"image_prompts": entries}}))
    context.presets |= load_presets(context.settings.root)
    page = Page(context)
    page.set(preset="steered")
    said = page.take(page.fns["choose"].fn(page.held))
    assert "– → 2 × PyraCanny, 1 × FaceSwap, 1 × Image Prompt" in said
    assert len(json.loads(page.value("image-prompts-value"))) == 4


def test_choosing_says_what_changed_and_undo_puts_it_back(context):
    page = Page(context)
    pictures = json.dumps([{"image": "a" * 64}])
    page.set(prompt="my words", guidance=6.5, sharpness=5.0, preset="big")
    page.set(image_prompts_value=pictures)
    updates = page.fns["choose"].fn(page.held)
    before = next(v for v in updates.values() if isinstance(v, dict) and "cfg_scale" in v)
    said = page.take(updates)
    assert page.value("prompt") == "my words"
    assert page.value("image-prompts-value") == pictures
    assert (page.value("guidance"), page.value("sharpness")) == (9.0, 2.0)
    assert "Guidance 6.5 → 9.0" in said and "Sharpness 5.0 → 2.0" in said
    assert "big.safetensors is not there yet, so a.safetensors paints" in said
    assert "The LoRA gone is not there yet" in said
    assert "Prompt expansion off → on" in said
    assert (page.value("clip-skip"), page.value("freeu-on"), page.value("freeu-s2")) == (
        "3",
        True,
        0.2,
    )
    page.set(prompt="words typed since")
    undone = page.fns["back"].fn(before)
    page.take(undone)
    assert page.value("prompt") == "words typed since"
    assert undone[page.by_id["size"]]["choices"]  # those of the checkpoint that is back
    assert (page.value("guidance"), page.value("sharpness")) == (6.5, 5.0)
    assert (page.value("clip-skip"), page.value("freeu-on"), page.value("freeu-s2")) == (
        "",
        False,
        0.95,
    )
    assert page.value("preset") == "default"
    assert "nothing to undo" in page.take(page.fns["back"].fn(None))


def test_a_file_that_arrives_takes_its_place_and_the_note_changes(context):
    page = Page(context)
    download = {"file": "big.safetensors", "folder": "checkpoints", "url": "https://e.org/<b>"}
    wanting = context.presets["big"].model_dump() | {"downloads": [download]}
    context.presets["big"] = Preset.model_validate(wanting)
    page.set(preset="big")
    said = page.take(page.fns["choose"].fn(page.held))
    assert 'data-file="checkpoints/big.safetensors"' in said and "<b>" not in said
    assert page.value("checkpoint") == "a.safetensors"
    names = page.part_of("arrive", gr.JSON, "back")
    key = "checkpoints/big.safetensors"
    (context.settings.models_path / key).write_bytes(b"")
    strange = page.fns["arrive"].fn(page.held | {names: ["loras/other.safetensors"]})
    page.take(strange)
    assert page.value("checkpoint") == "a.safetensors"  # listed, but nobody's wish
    undo = page.fns["back"].inputs[0]
    updates = page.fns["arrive"].fn(page.held | {names: [key, "loras/other.safetensors"]})
    said = page.take(updates)
    assert "other.safetensors" not in said.partition("hint")[0]  # nothing of this preset
    assert page.value("checkpoint") == "big.safetensors"
    assert "big.safetensors has arrived." in said and "data-file" not in said.partition("hint")[0]
    assert "Checkpoint a.safetensors → big.safetensors" in said
    assert "The LoRA gone is not there yet" in said
    page.take(page.fns["back"].fn(updates[undo]))
    assert (page.value("checkpoint"), page.value("preset")) == ("a.safetensors", "default")
    page.set(preset="big")
    assert page.fns["arrive"].fn(page.held | {names: "loras/x"})


def test_one_undo_takes_back_the_choice_and_what_came_since(context):
    download = {"file": "big.safetensors", "folder": "checkpoints", "url": "https://e.org/x"}
    wanting = context.presets["big"].model_dump() | {"downloads": [download]}
    wanting["settings"] = wanting["settings"] | {"negative_prompt": "theirs"}
    context.presets["big"] = Preset.model_validate(wanting)
    page = Page(context)
    names, undo = page.part_of("arrive", gr.JSON, "back"), page.fns["back"].inputs[0]
    page.set(preset="big", negative_prompt="mine")
    page.take(page.fns["choose"].fn(page.held))
    assert page.value("negative-prompt") == "theirs"
    key = "checkpoints/big.safetensors"
    (context.settings.models_path / key).write_bytes(b"")
    updates = page.fns["arrive"].fn(page.held | {names: [key]})
    page.take(updates)
    assert page.value("checkpoint") == "big.safetensors"
    page.take(page.fns["back"].fn(updates[undo]))
    shown = [page.value(name) for name in ("negative-prompt", "checkpoint", "preset")]
    assert shown == ["mine", "a.safetensors", "default"]


def test_the_user_s_own_checkpoint_stays_when_a_file_arrives(context):
    download = {"file": "big.safetensors", "folder": "checkpoints", "url": "https://e.org/x"}
    wanting = context.presets["big"].model_dump() | {"downloads": [download]}
    context.presets["big"] = Preset.model_validate(wanting)
    folder = context.settings.models_path / "checkpoints"
    (folder / "z.safetensors").write_bytes(b"")
    page = Page(context)
    names = page.part_of("arrive", gr.JSON, "back")
    key = "checkpoints/big.safetensors"

    def after_arrival():
        held = page.held | {names: [key]}
        (folder / "big.safetensors").write_bytes(b"")
        shown = page.fns["arrive"].fn(held)
        (folder / "big.safetensors").unlink()
        return shown[page.by_id["checkpoint"]]["value"]

    page.set(preset="big", checkpoint="z.safetensors")
    said = page.take(page.fns["choose"].fn(page.held))
    assert "so z.safetensors paints" in said
    assert after_arrival() == "big.safetensors"  # it painted for want of another
    page.take(page.fns["other_model"].fn("z.safetensors", None))
    assert after_arrival() == "z.safetensors"


def test_with_the_small_model_s_preset_a_new_checkpoint_is_offered(context):
    (context.settings.presets_path / "builtin.json").write_text('{"title": "Small"}')
    context.presets |= load_presets(context.settings.root)
    page = Page(context)
    names = page.part_of("arrive", gr.JSON, "back")
    page.set(preset="builtin", guidance=6.5)
    updates = page.fns["arrive"].fn(page.held | {names: ["checkpoints/new.safetensors"]})
    said = page.take(updates)
    assert "new.safetensors has arrived." in said and "choose Default to paint" in said
    assert (page.value("preset"), page.value("guidance")) == ("builtin", 6.5)
    page.set(preset="big")
    other = page.fns["arrive"].fn(page.held | {names: ["checkpoints/new.safetensors"]})
    assert "has arrived" not in page.take(other)


def test_a_new_tab_starts_as_the_server_would_today(context):
    text = '{"title": "Small", "settings": {"steps": 7}}'
    (context.settings.presets_path / "builtin.json").write_text(text)
    context.presets |= load_presets(context.settings.root)
    (context.settings.models_path / "checkpoints" / "a.safetensors").unlink()
    context.settings.builtin_models_path.mkdir(parents=True)
    (context.settings.builtin_models_path / "small.safetensors").write_bytes(b"")
    page = Page(context)
    assert (page.value("preset"), page.value("steps")) == ("builtin", 7)
    (context.settings.models_path / "checkpoints" / "new.safetensors").write_bytes(b"")
    page.take(page.fns["restore"].fn(json.dumps({"preset": "builtin"})))
    assert (page.value("preset"), page.value("steps")) == ("builtin", 7)
    page.take(page.fns["restore"].fn(""))
    shown = [page.value(name) for name in ("preset", "checkpoint", "guidance")]
    assert shown == ["default", "new.safetensors", 4.0]
    assert page.value("steps") == TaskSpec().steps


def test_refresh_offers_new_modes_and_tells_of_broken_files_as_long_as_they_are(context):
    root = context.settings.root
    (root / "performance").mkdir()
    mode, preset = root / "performance" / "draft.json", root / "presets" / "mine.json"
    mode.write_text("{")
    page = Page(context)
    (said,) = context.notices.sentences()
    assert said.startswith("Performance mode 'draft'")
    mode.write_text('{"title": "My draft", "steps": 7}')
    preset.write_text("{")
    asked = ("default", "a.safetensors", None, "", "")
    page.take(shown := page.fns["look_again"].fn(*asked, "draft"))
    assert ("My draft", "draft") in shown[page.by_id["performance"]]["choices"]
    assert page.value("performance") == "draft"
    assert context.notices.sentences() == []
    assert context.presets.notices[0].startswith("Preset 'mine'")
    mode.unlink()
    preset.unlink()
    page.take(shown := page.fns["look_again"].fn(*asked, "draft"))
    assert ("My draft", "draft") not in shown[page.by_id["performance"]]["choices"]
    assert page.value("performance") == ""
    assert context.presets.notices == ()
    mode.write_text('{"title": "My draft", "steps": 7}')
    page.take(page.fns["restore"].fn(json.dumps({"performance": "draft"})))
    assert page.value("performance") == "draft"


def test_refresh_reads_presets_again_and_what_the_start_lacks(context):
    context.settings = load_settings(["--preset", "big"], {}, root=context.settings.root)
    page = Page(context)
    assert "big.safetensors is not there yet." in context.notices.sentences()[0]
    (context.settings.models_path / "checkpoints" / "big.safetensors").write_bytes(b"")
    path = context.settings.presets_path / "late.json"
    path.write_text('{"title": "Late"}')
    page.take(shown := page.fns["look_again"].fn("big", "a.safetensors", None, "", "", ""))
    assert shown[page.by_id["preset"]]["choices"][-1] == ("Late", "late")
    assert page.value("preset") == "big"
    assert context.notices.sentences() == ["The LoRA gone is not there yet, so it is left out."]
    path.unlink()
    page.take(page.fns["look_again"].fn("late", "a.safetensors", None, "", "", ""))
    assert "late" not in context.presets and page.value("preset") is None


def test_words_that_a_preset_replaces_are_told_first_and_go_with_it(context):
    for name in ("realistic", "anime"):
        shutil.copy(SHIPPED / f"{name}.json", context.settings.presets_path)
    context.presets |= load_presets(context.settings.root)
    theirs = context.presets["realistic"].settings["negative_prompt"]
    page = Page(context)
    page.set(prompt="my words", negative_prompt="fog, rain", preset="realistic")
    said = page.take(page.fns["choose"].fn(page.held))
    assert f"Changed: Negative prompt fog, rain → {theirs}" in said
    mine = dict(page.held)
    page.set(preset="anime")
    said = page.take(page.fns["choose"].fn(page.held))
    assert (page.value("prompt"), page.value("negative-prompt")) == ("my words", "")
    assert f"Changed: Negative prompt {theirs} → –" in said
    page.held = mine  # the user changes them: they stay
    page.set(negative_prompt=f"{theirs}, fog", preset="anime")
    said = page.take(page.fns["choose"].fn(page.held))
    assert page.value("negative-prompt") == f"{theirs}, fog"
    assert "Negative prompt" not in said


def test_every_field_of_a_request_has_a_control(context):
    page = Page(context)
    submitted = next(fn for fn in page.app.fns.values() if fn.name == "press")
    cells = [cell.cell_contents for cell in submitted.fn.__closure__]
    form = next(held for held in cells if isinstance(held, Form))
    named = form.read(page.held).model_fields_set
    assert named == TaskSpec.model_fields.keys() - {"first_index"}  # of a picture there is already


def test_what_has_no_control_goes_with_the_preset(context):
    page = Page(context)
    page.set(preset="big", prompt="a cat")
    sent = []
    context.pool = type("Pool", (), {"submit": lambda self, spec, *_: sent.append(spec) or "t1"})()
    form = Form(Texts(), initial_spec(context))
    form.components = {
        name: page.by_id[elem]
        for name, elem in {"prompt": "prompt", "preset": "preset", "cfg_scale": "guidance"}.items()
    }
    assert submit(context, form, page.held)["id"] == "t1"
    assert (sent[0].expand_prompt, sent[0].loras) == (True, ())


def test_a_preset_of_fooocus_leaves_out_the_styles_that_are_not_here(context):
    own = context.settings.root / "presets" / "own"
    own.mkdir()
    names = ["Fooocus V2", "Fooocus Enhance", "watercolor", "Fooocus Sharp"]
    (own / "theirs.json").write_text(json.dumps({"default_styles": names}))
    (context.settings.presets_path / "styles").mkdir()
    style = {"name": "aquarelle", "title": "Watercolor", "prompt": "watercolor of {prompt}"}
    (context.settings.presets_path / "styles" / "few.json").write_text(json.dumps([style]))
    context.presets |= load_presets(context.settings.root)
    page = Page(context)
    page.set(preset="theirs", prompt="a cat")
    said = page.take(page.fns["choose"].fn(page.held))
    assert "There are no styles Fooocus Enhance and Fooocus Sharp, so they are left out." in said
    assert json.loads(page.value("styles-value")) == ["watercolor"]
    spec = context.complete(TaskSpec(preset="theirs", prompt="a cat", seed=1))
    plan = make_plan(spec, context.shelf.books())
    assert plan.pictures[0].positive[0] == "watercolor of a cat"
    context.settings = load_settings(["--preset", "theirs"], {}, root=context.settings.root)
    assert initial_spec(context).styles == ("watercolor",)


def test_what_the_preset_of_a_start_lacks_is_told_until_it_is_there(context):
    own = context.settings.root / "presets" / "own"
    own.mkdir()
    (own / "theirs.json").write_text(json.dumps({"default_styles": ["Fooocus Sharp"]}))
    context.presets |= load_presets(context.settings.root)
    context.settings = load_settings(["--preset", "theirs"], {}, root=context.settings.root)
    page = Page(context)
    assert context.notices.sentences() == ["There is no style Fooocus Sharp, so it is left out."]
    (context.settings.root / "styles").mkdir()
    style = {"name": "sharp", "title": "Fooocus Sharp", "prompt": "sharp {prompt}"}
    (context.settings.root / "styles" / "mine.json").write_text(json.dumps([style]))
    page.fns["restore"].fn("")
    assert context.notices.sentences() == []
    context.settings = load_settings(["--preset", "gone"], {}, root=context.settings.root)
    assert initial_spec(context).preset == "default"
    (said,) = context.notices.sentences()
    assert said.startswith("Preset 'gone' is not there; choose one of default, ")


def test_a_start_that_names_no_preset_tells_nobody_of_missing_files(context):
    context.presets["default"] = context.presets["big"]
    initial_spec(context)
    assert context.notices.sentences() == []
    context.settings = load_settings(["--preset", "big"], {}, root=context.settings.root)
    initial_spec(context)
    assert "big.safetensors is not there yet." in context.notices.sentences()[0]


def test_a_start_with_nothing_but_the_small_model_is_quiet_and_takes_it(context):
    name = "builtin/easel-mini.safetensors"
    context.presets["builtin"] = load_presets(SHIPPED.parent)["builtin"]
    shutil.rmtree(context.settings.models_path)
    shipped = context.settings.root / "models" / name
    shipped.parent.mkdir(parents=True)
    shipped.write_bytes(b"")
    for words in ([], ["--preset", "builtin"]):
        context.settings = load_settings(words, {}, root=context.settings.root)
        assert initial_spec(context).checkpoint == name
        assert context.notices.sentences() == []


def test_deleting_asks_once(context):
    page = Page(context)
    save_preset(context.settings.root, context.presets, "Mine", TaskSpec(steps=9))
    save_preset(context.settings.root, context.presets, "Yours", TaskSpec(steps=8))
    by_id = {block.elem_id: block for block in page.app.blocks.values()}
    asked = next(block for block in page.fns["ask"].outputs if block.elem_id is None)

    def shown(updates):
        return updates[by_id["preset-sure"]]["visible"]

    page.set(preset="default")
    refused = page.fns["ask"].fn(page.held | {asked: None})
    assert "Only presets of your own" in page.take(refused) and not shown(refused)
    page.set(preset="Mine")
    question = page.fns["ask"].fn(page.held | {asked: None})
    assert "Delete Mine for good?" in page.take(question) and shown(question)
    pressed = {
        target: fn
        for fn in page.app.fns.values()
        for target, event in fn.targets
        if event == "click"
    }
    kept = pressed[by_id["preset-keep"]._id].fn(page.held | {asked: question[asked]})
    assert "The preset stays" in page.take(kept) and not shown(kept)
    assert "Mine" in context.presets
    page.set(preset="Yours")  # what was asked about counts, not what is chosen by now
    gone = pressed[by_id["preset-gone"]._id].fn(page.held | {asked: question[asked]})
    assert "deleted" in page.take(gone) and not shown(gone)
    assert "Mine" not in context.presets and "Yours" in context.presets


def test_the_form_starts_with_a_model_that_is_there(context):
    context.settings = load_settings(["--preset", "big"], {}, root=context.settings.root)
    spec = initial_spec(context)
    assert (spec.preset, spec.checkpoint, spec.cfg_scale, spec.loras) == ("big", "", 9.0, ())


def test_a_page_that_is_loaded_again_offers_what_there_is_now(context):
    page = Page(context)
    save_preset(context.settings.root, context.presets, "Mine", TaskSpec(steps=9))
    (context.settings.models_path / "checkpoints" / "refiner.safetensors").write_bytes(b"")
    held = json.dumps({"preset": "Mine", "refiner": "refiner.safetensors"})
    shown = page.fns["restore"].fn(held)
    preset, refiner = (shown[page.by_id[name]] for name in ("preset", "refiner"))
    assert (preset["value"], preset["choices"][-1]) == ("Mine", ("Mine", "Mine"))
    assert refiner["value"] == "refiner.safetensors"
    assert refiner["value"] in dict(refiner["choices"])
    last = next(
        block for block in shown if block in page.fns["choose"].inputs and not block.visible
    )
    assert shown[last] == "Mine"  # what Undo goes back to
