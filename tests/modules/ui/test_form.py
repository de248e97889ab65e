"""The form: controls from fields, requests from controls."""

import gradio as gr
import pytest

from modules.spec import limits
from modules.spec.errors import SpecError
from modules.spec.task_spec import LoraSpec, TaskSpec
from modules.ui.form import RANDOM_SEED, Form, field_range
from modules.ui.panels.quality import FREEU
from modules.ui.texts import TEXTS, Texts


@pytest.fixture(scope="module")
def form():
    """No test changes it: what it reads and what it sets are mappings."""
    with gr.Blocks(analytics_enabled=False):
        form = Form(Texts(), TaskSpec(steps=12, seed=2**62 + 1))
        form.text("prompt")
        form.slider("steps")
        form.digits("seed")
        form.digits("width")
        form.digits("height")
        form.choice("checkpoint", [("a", "a")])
        form.listed("styles")
        form.listed("loras")
        form.add(RANDOM_SEED, gr.Checkbox(False))
        form.digits("clip_skip")
        form.group("freeu", FREEU)
    return form


def values(form, **changes):
    """What Gradio would hand over: every control's first value, and `changes`."""
    named = {name: control.value for name, control in form.components.items()} | changes
    return {form.components[name]: value for name, value in named.items()}


def test_an_untouched_form_asks_for_what_it_started_with(form):
    spec = form.read(values(form, prompt="hills"))
    assert spec == TaskSpec(prompt="hills", steps=12, seed=2**62 + 1)


def test_a_random_seed_empties_the_seed(form):
    assert form.read(values(form, random_seed=True)).seed is None


def test_the_numbers_of_a_group_count_where_it_is_on(form):
    assert form.read(values(form, freeu_b1=1.4)).freeu == ()
    assert form.read(values(form, freeu_on=True)).freeu == (1.01, 1.02, 0.99, 0.95)
    spec = form.read(values(form, freeu_on=True, freeu_b1=1.4, freeu_s2=0.2, clip_skip="2"))
    assert (spec.freeu, spec.clip_skip) == ((1.4, 1.02, 0.99, 0.2), 2)
    changes = form.updates({"freeu": spec.freeu, "clip_skip": spec.clip_skip})
    shown = {name: changes[c]["value"] for name, c in form.components.items() if c in changes}
    assert form.read(values(form, **shown)) == spec
    off = form.updates({"freeu": ()})
    assert off[form.components["freeu_on"]]["value"] is False
    with pytest.raises(SpecError, match="takes b1 and b2 from 0 to 2") as caught:
        form.read(values(form, freeu_on=True, freeu_b1=9.0))
    assert caught.value.field == "freeu"


def test_empty_boxes_and_choices_mean_the_default(form):
    spec = form.read(values(form, seed="", width=" ", height=None, checkpoint=None, prompt=None))
    assert (spec.seed, spec.width, spec.height) == (None, None, None)
    assert (spec.checkpoint, spec.prompt) == ("", "")


def test_lists_travel_as_json(form):
    loras = '[{"name": "ink.safetensors", "weight": 0.5, "enabled": false}]'
    spec = form.read(values(form, styles='["b", "a"]', loras=loras))
    assert spec.styles == ("b", "a")
    assert spec.loras == (LoraSpec(name="ink.safetensors", weight=0.5, enabled=False),)
    changes = form.updates({"styles": spec.styles, "loras": spec.loras})
    again = {name: changes[form.components[name]]["value"] for name in ("styles", "loras")}
    assert form.read(values(form, **again)) == spec
    assert form.read(values(form, styles=None)).styles == ()


@pytest.mark.parametrize("text", ["{", "7", '"a"', "[" * 100_000])
def test_a_list_that_is_none_is_told(form, text):
    with pytest.raises(SpecError, match="^Styles cannot be read") as raised:
        form.read(values(form, styles=text))
    assert raised.value.field == "styles"


@pytest.mark.parametrize("seed", ["x", "1.5", "٣", "--1", "9" * 50])
def test_a_seed_of_anything_but_digits_is_named(form, seed):
    with pytest.raises(SpecError, match="^Seed must be a whole number") as raised:
        form.read(values(form, seed=seed))
    assert raised.value.field == "seed"


@pytest.mark.parametrize(("seed", "said"), [("-1", "at least 0"), (str(2**63), "at most")])
def test_the_seed_s_range_is_the_schema_s(form, seed, said):
    with pytest.raises(SpecError, match=said):
        form.read(values(form, seed=seed))


def test_a_slider_beyond_its_range_gets_the_schema_s_sentence(form):
    control = form.components["steps"]
    assert control.preprocess(999) == 999  # Gradio itself does not object
    with pytest.raises(SpecError, match="Steps must be at most 200"):
        form.read(values(form, steps=999))


def test_labels_ranges_and_helps_come_from_the_schema(form):
    steps = form.components["steps"]
    assert (steps.minimum, steps.maximum) == field_range("steps") == (1, limits.STEPS_MAX)
    assert steps.label == "Steps"
    assert "20 to 40" in steps.info


def test_updates_set_controls_and_fix_or_free_the_seed(form):
    changes = form.updates({"steps": 8, "seed": 2**63 - 1, "cfg_scale": 3.0})
    named = {name: changes[c]["value"] for name, c in form.components.items() if c in changes}
    assert named == {"steps": 8, "seed": str(2**63 - 1), RANDOM_SEED: False}
    freed = form.updates({"seed": None})
    assert freed[form.components["seed"]]["value"] == ""
    assert freed[form.components[RANDOM_SEED]]["value"] is True


def test_a_field_has_one_control_and_must_exist(form):
    with gr.Blocks(analytics_enabled=False):
        with pytest.raises(ValueError, match="two controls"):
            form.text("prompt")
        with pytest.raises(ValueError, match="not a field"):
            form.add("colour", gr.Textbox())


def test_an_unknown_language_is_english_and_no_text_is_missing():
    assert Texts("xx")("generate") == "Generate"
    for table in TEXTS.values():
        assert table.keys() <= TEXTS["en"].keys()
        assert all(table.values())
