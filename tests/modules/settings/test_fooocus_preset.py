"""Presets of Fooocus, as its own files are written."""

import json

import pytest

from modules.settings.presets import read_preset
from modules.spec.errors import ConfigError

FILE = {
    "default_model": "juggernautXL_v8Rundiffusion.safetensors",
    "default_refiner": "None",
    "default_refiner_switch": 0.5,
    "default_vae": "Default (model)",
    "default_loras": [
        [True, "sd_xl_offset_example-lora_1.0.safetensors", 0.1],
        [True, "None", 1.0],
        ["old.safetensors", 0.5],
    ],
    "default_cfg_scale": 4.0,
    "default_sample_sharpness": 2.0,
    "default_sampler": "dpmpp_2m_sde_gpu",
    "default_scheduler": "karras",
    "default_performance": "Hyper-SD",
    "default_overwrite_step": -1,
    "default_prompt": "",
    "default_prompt_negative": "",
    "default_styles": ["Fooocus V2", "Fooocus Enhance", "Random Style"],
    "default_aspect_ratio": "1152*896",
    "checkpoint_downloads": {"a.safetensors": "https://example.org/a.safetensors"},
    "embeddings_downloads": {},
    "lora_downloads": {"b.safetensors": "https://example.org/b.safetensors"},
    "previous_default_models": ["c.safetensors"],
}


def read(tmp_path, content):
    path = tmp_path / "theirs.json"
    path.write_text(json.dumps(content))
    return read_preset(path)


def test_every_key_finds_its_place(tmp_path):
    preset = read(tmp_path, FILE)
    assert preset.title == "theirs"
    assert preset.settings == {
        "checkpoint": "juggernautXL_v8Rundiffusion.safetensors",
        "loras": [
            {
                "enabled": True,
                "name": "sd_xl_offset_example-lora_1.0.safetensors",
                "weight": 0.1,
                "clip_weight": None,
            },
            {"enabled": True, "name": "old.safetensors", "weight": 0.5, "clip_weight": None},
        ],
        "cfg_scale": 4.0,
        "refiner_switch": 0.5,
        "sharpness": 2.0,
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "performance": "hyper_sd",
        "expand_prompt": True,
        "styles": ["Fooocus Enhance", "random"],
        "aspect_ratio": "1152:896",
    }
    assert [(d.folder, d.file) for d in preset.downloads] == [
        ("checkpoints", "a.safetensors"),
        ("loras", "b.safetensors"),
    ]
    assert preset.instead == ("c.safetensors",)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"default_colour": "red"}, "'default_colour' is not known"),
        ({"default_performance": "Warp"}, "'Warp' is not known"),
        ({"default_performance": ["Speed"]}, "'Speed'.* is not known"),
        ({"default_loras": [5]}, "each of 'default_loras'"),
        ({"default_loras": [[True, "a", 1.0, 2]]}, "each of 'default_loras'"),
        ({"default_cfg_scale": 99}, "Guidance must be at most 30"),
        ({"default_model": "../../secret"}, "Checkpoint must be a name from the list"),
        ({"checkpoint_downloads": {"a": "http://x"}}, "url"),
    ],
    ids=str,
)
def test_what_is_wrong_is_named(tmp_path, change, words):
    with pytest.raises(ConfigError, match=words):
        read(tmp_path, FILE | change)


def test_numbers_that_overwrite(tmp_path):
    found = read(tmp_path, {"default_overwrite_step": 12, "default_cfg_tsnr": 5.0}).settings
    assert found == {"overwrite_step": 12, "adaptive_cfg": 5.0}
