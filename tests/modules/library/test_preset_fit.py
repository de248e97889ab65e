"""What a preset comes to where files are missing."""

from pathlib import Path

import pytest

from modules.library.catalog import Catalog
from modules.library.preset_fit import CHOSEN, fit_preset, refit_preset, with_preset
from modules.prompt.styles import Style, StyleBook
from modules.settings.config import load_settings
from modules.settings.presets import Preset, load_presets
from modules.spec.errors import SpecError
from modules.spec.performance import MODES
from modules.spec.resolving import resolve_spec
from modules.spec.sizes import SDXL
from modules.spec.task_spec import TaskSpec

ROOT = Path(__file__).parents[3]
BUILTIN = "builtin/easel-mini.safetensors"
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

MODES_BY_NAME = {mode.name: mode for mode in MODES}
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


def test_the_small_models_preset_paints_with_it_beside_another_one(tmp_path):
    small = load_presets(ROOT)["builtin"]
    own = catalog(tmp_path, "checkpoints/any.safetensors")
    (said,) = fit_preset(small, own, STYLES).sentences
    assert said == f"{BUILTIN} is not there yet, so any.safetensors paints."
    shipped = tmp_path / "models" / BUILTIN
    shipped.parent.mkdir()
    shipped.write_bytes(b"")
    fitted = fit_preset(small, own, STYLES)
    assert (fitted.settings["checkpoint"], fitted.sentences) == (BUILTIN, ())
    asked = with_preset(TaskSpec(preset="builtin"), {"builtin": small}, own, STYLES, {})
    assert asked.checkpoint == BUILTIN


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


def completed(have, request, **settings):
    """`request` with what a preset of `settings` sets besides."""
    presets = {"p": Preset(name="p", title="P", settings=settings)}
    return with_preset(TaskSpec(preset="p", **request), presets, have, STYLES, MODES_BY_NAME)


def test_a_request_takes_from_its_preset_what_it_does_not_name(tmp_path):
    have = catalog(tmp_path, "checkpoints/any.safetensors")
    settings = {"steps": 9, "cfg_scale": 5.0, "width": 512, "height": 512, "vae": "gone"}
    presets = {"p": Preset(name="p", title="P", settings=settings)}
    whole = completed(have, {"steps": TaskSpec().steps, "prompt": "a cat"}, **settings)
    assert (whole.prompt, whole.steps, whole.cfg_scale) == ("a cat", TaskSpec().steps, 5.0)
    assert (whole.width, whole.height, whole.vae) == (512, 512, "")
    assert with_preset(whole, presets, have, STYLES, {}) == whole
    other = completed(have, {"width": 640, "height": 448}, **settings)
    assert (other.width, other.height, other.steps) == (640, 448, 9)
    assert with_preset(TaskSpec(), presets, have, STYLES, {}) == TaskSpec()
    with pytest.raises(SpecError, match="'q' is not there; choose one of p"):
        with_preset(TaskSpec(preset="q"), presets, have, STYLES, {})


@pytest.mark.parametrize(
    ("request_", "preset", "wanted"),
    [
        ({"steps": 50}, {"performance": "speed"}, {"steps": 50}),
        ({"steps": 50}, {"performance": "speed", "overwrite_step": 12}, {"steps": 50}),
        ({"steps": 20}, {"performance": "extreme_speed"}, {"steps": 20, "sampler": "lcm"}),
        ({"cfg_scale": 1.0}, {"performance": "lightning"}, {"steps": 4, "cfg_scale": 1.0}),
        ({"steps": 50, "overwrite_step": 9}, {"performance": "speed"}, {"steps": 9}),
        ({"steps": 40}, {"overwrite_step": 12}, {"steps": 40}),
        ({"cfg_scale": 6.0}, {"overwrite_step": 12}, {"steps": 12, "cfg_scale": 6.0}),
        (
            {"aspect_ratio": "1:1"},
            {"width": 1024, "height": 768},
            {"width": 1024, "height": 1024},
        ),
        (
            {"width": 640, "height": 448},
            {"aspect_ratio": "1:1"},
            {"width": 640, "height": 448},
        ),
        (
            {"refiner_switch": 0.5},
            {"refiner": "b.safetensors", "overwrite_switch": 9},
            {"refiner_step": 15},
        ),
    ],
    ids=str,
)
def test_what_a_request_names_is_painted_whatever_its_preset_says(
    tmp_path, request_, preset, wanted
):
    spec = completed(catalog(tmp_path, "checkpoints/b.safetensors"), request_, **preset)
    mode = MODES_BY_NAME.get(spec.performance)
    found = resolve_spec(spec, mode, checkpoint="a", sizes=SDXL)
    assert {name: getattr(found, name) for name in wanted} == wanted
    assert completed(catalog(tmp_path), spec.model_dump(exclude={"preset"}), **preset) == spec


def test_what_a_preset_s_mode_would_decide_is_refused(tmp_path):
    have, wanted = catalog(tmp_path), {"cfg_scale": 7.0, "sampler": "euler", "steps": 20}
    with pytest.raises(SpecError, match=r"mode Extreme Speed, which decides cfg_scale, sampler:"):
        completed(have, wanted, performance="extreme_speed")
    free = completed(have, wanted | {"performance": ""}, performance="extreme_speed")
    assert (free.performance, free.steps, free.overwrite_step) == ("", 20, None)
