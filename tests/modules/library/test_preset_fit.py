"""What a preset comes to where files are missing."""

import pytest

from modules.library.catalog import Catalog
from modules.library.preset_fit import CHOSEN, fit_preset, refit_preset, with_preset
from modules.prompt.styles import Style, StyleBook
from modules.settings.config import load_settings
from modules.settings.presets import Preset
from modules.spec.errors import SpecError
from modules.spec.task_spec import TaskSpec

PRESET = Preset(
    name="p",
    title="P",
    settings={
        "checkpoint": "big.safetensors",
        "vae": "v.safetensors",
        "loras": [{"name": "ink", "weight": 0.5}, {"name": "oil.safetensors", "weight": 1.0}],
        "styles": ["film", "gone", "random"],
        "cfg_scale": 3.0,
    },
    downloads=(
        {
            "file": "big.safetensors",
            "folder": "checkpoints",
            "url": "https://example.org/big",
            "size": 6_900_000_000,
        },
    ),
    instead=("other.safetensors", "older.safetensors"),
)

STYLES = StyleBook([Style("film", "Film", "{prompt}")])


def catalog(tmp_path, *files):
    settings = load_settings([], {}, root=tmp_path)
    for file in files:
        path = settings.models_path / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return Catalog(settings, {})


def test_with_everything_there_nothing_is_said(tmp_path):
    have = catalog(
        tmp_path,
        "checkpoints/big.safetensors",
        "vae/v.safetensors",
        "loras/ink.safetensors",
        "loras/oil.safetensors",
    )
    every = StyleBook([Style("Film", "F", "{prompt}"), Style("x", "GONE", "{prompt}")])
    fitted = fit_preset(PRESET, have, every)
    assert (fitted.settings, fitted.sentences, fitted.missing) == (PRESET.settings, (), ())


def test_what_is_missing_is_left_out_and_said(tmp_path):
    have = catalog(tmp_path, "checkpoints/older.safetensors", "loras/ink.safetensors")
    fitted = fit_preset(PRESET, have, STYLES)
    assert fitted.settings == {
        "checkpoint": "older.safetensors",
        "loras": [{"name": "ink", "weight": 0.5}],
        "styles": ["film", "random"],
        "cfg_scale": 3.0,
    }
    checkpoint, lora, vae, style = fitted.sentences
    assert "big.safetensors is not there yet, so older.safetensors paints" in checkpoint
    assert [each.file for each in fitted.missing] == ["big.safetensors"]
    assert lora.startswith("The LoRA oil.safetensors is not there yet")
    assert vae.startswith("The VAE v.safetensors")
    assert style == "There is no style gone, so it is left out."
    more = PRESET.model_copy(update={"settings": {"styles": ["gone", "FILM", "lost", "Off"]}})
    several = fit_preset(more, have, STYLES)
    assert several.settings == {"styles": ["FILM"]}
    assert several.sentences == ("There are no styles gone, lost and Off, so they are left out.",)


def test_the_first_model_there_is_takes_over(tmp_path):
    fitted = fit_preset(PRESET, catalog(tmp_path, "checkpoints/any.safetensors"), STYLES)
    assert fitted.settings["checkpoint"] == ""
    assert "any.safetensors paints" in fitted.sentences[0]


def test_without_any_model_it_says_what_to_get(tmp_path):
    fitted = fit_preset(PRESET, catalog(tmp_path), STYLES)
    assert fitted.sentences[0] == (
        "The checkpoint big.safetensors is not there yet, so it is left out."
    )
    assert fitted.missing == PRESET.downloads


ARRIVED = ["checkpoints/big.safetensors", "loras/oil.safetensors"]


@pytest.fixture
def arrived(tmp_path):
    """The files of `ARRIVED` have come beside one that was there; and what was held before."""
    before = catalog(tmp_path, "checkpoints/older.safetensors", "loras/ink.safetensors")
    held = fit_preset(PRESET, before, STYLES).settings | {"vae": "", "refiner": ""}
    return catalog(tmp_path, *ARRIVED), held


def test_what_has_arrived_is_taken_where_the_preset_wanted_it(arrived):
    have, held = arrived
    fitted = refit_preset(PRESET, ARRIVED, held, have, STYLES)
    assert fitted.settings == {
        "checkpoint": "big.safetensors",
        "loras": PRESET.settings["loras"],
    }
    assert fitted.sentences[0].startswith("The VAE v.safetensors is not there yet")
    one = refit_preset(PRESET, ARRIVED[1:], held | {"checkpoint": "big.safetensors"}, have, STYLES)
    assert one.settings.keys() == {"loras"}


def test_what_the_user_chose_meanwhile_stays(arrived):
    have, held = arrived
    held |= {"checkpoint": "mine.safetensors", "loras": []}
    assert refit_preset(PRESET, ARRIVED, held, have, STYLES).settings == {}
    assert refit_preset(PRESET, [], held, have, STYLES).settings == {}


def test_the_first_checkpoint_is_taken_in_place_of_whichever_painted(tmp_path):
    have = catalog(tmp_path, "checkpoints/big.safetensors", "checkpoints/any.safetensors")
    fitted = refit_preset(PRESET, ARRIVED, {"checkpoint": "any.safetensors"}, have, STYLES)
    assert fitted.settings["checkpoint"] == "big.safetensors"


def test_a_checkpoint_that_the_user_chose_is_never_replaced(tmp_path):
    have = catalog(tmp_path, *(f"checkpoints/{name}.safetensors" for name in ("big", "a", "b")))

    def taken(held, left=""):
        held = {"checkpoint": f"{held}.safetensors"}
        fitted = refit_preset(PRESET, ARRIVED, held, have, STYLES, left)
        return "checkpoint" in fitted.settings

    assert taken("a") and not taken("b")  # without a word of it only the first is by chance
    assert taken("b", "b.safetensors") and not taken("a", "b.safetensors")
    assert not taken("a", CHOSEN)


def test_the_checkpoint_at_hand_is_said_to_paint(tmp_path):
    have = catalog(tmp_path, "checkpoints/any.safetensors", "checkpoints/mine.safetensors")
    told = {
        held: fit_preset(PRESET, have, STYLES, held).sentences[0]
        for held in ("", "mine.safetensors", "gone.safetensors", None)
    }
    assert told["mine.safetensors"].endswith("not there yet, so mine.safetensors paints.")
    assert told[""] == told["gone.safetensors"]
    assert told[""].endswith("not there yet, so any.safetensors paints.")
    assert told[None] == "big.safetensors is not there yet."


def test_a_request_takes_from_its_preset_what_it_does_not_name(tmp_path):
    have = catalog(tmp_path, "checkpoints/any.safetensors")
    settings = {"steps": 9, "cfg_scale": 5.0, "width": 512, "height": 512, "vae": "gone"}
    presets = {"p": Preset(name="p", title="P", settings=settings)}
    spec = TaskSpec(preset="p", steps=TaskSpec().steps, prompt="a cat")
    whole = with_preset(spec, presets, have, STYLES)
    assert (whole.prompt, whole.steps, whole.cfg_scale) == ("a cat", TaskSpec().steps, 5.0)
    assert (whole.width, whole.height, whole.vae) == (512, 512, "")
    assert with_preset(whole, presets, have, STYLES) == whole
    other = with_preset(TaskSpec(preset="p", width=640, height=448), presets, have, STYLES)
    assert (other.width, other.height, other.steps) == (640, 448, 9)
    assert with_preset(TaskSpec(), presets, have, STYLES) == TaskSpec()
    with pytest.raises(SpecError, match="'q' is not there; choose one of p"):
        with_preset(TaskSpec(preset="q"), presets, have, STYLES)
