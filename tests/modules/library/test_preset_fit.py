"""What a preset comes to where files are missing."""

import pytest

from modules.library.catalog import Catalog
from modules.library.preset_fit import fit_preset, with_preset
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
    assert (fitted.settings, fitted.sentences) == (PRESET.settings, ())


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
    assert "https://example.org/big (6.9 GB) into models/checkpoints" in checkpoint
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
    assert "so it is left out; save https://example.org/big" in fitted.sentences[0]


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
