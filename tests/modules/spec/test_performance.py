"""The table of performance modes, number by number, and what a mode of one's own may say."""

import pytest
from pydantic import ValidationError

from modules.spec.errors import SpecError
from modules.spec.flags import Sampler, Scheduler
from modules.spec.performance import MODES, make_mode
from modules.spec.quality import QualityFields
from modules.spec.task_spec import TaskSpec

BY_NAME = {mode.name: mode for mode in MODES}
NO_GUIDANCE = {
    "sharpness": 0.0,
    "cfg_scale": 1.0,
    "adaptive_cfg": 1.0,
    "adm_positive": 1.0,
    "adm_negative": 1.0,
    "adm_end": 0.0,
    "refiner": "",
    "refiner_switch": 1.0,
}


@pytest.mark.parametrize(
    ("name", "title", "steps", "upscale", "lora", "sampling"),
    [
        ("quality", "Quality", 60, 36, None, None),
        ("speed", "Speed", 30, 18, None, None),
        ("extreme_speed", "Extreme Speed", 8, 8, ("sdxl_lcm_lora", 1.0), ("lcm", "lcm")),
        ("lightning", "Lightning", 4, 4, ("sdxl_lightning_4step_lora", 1.0),
         ("euler", "sgm_uniform")),
        ("hyper_sd", "Hyper-SD", 4, 4, ("sdxl_hyper_sd_4step_lora", 0.8),
         ("dpmpp_sde_gpu", "karras")),
        ("turbo", "Turbo", 4, 4, None, ("euler_ancestral", "turbo")),
    ],
    ids=lambda value: value if isinstance(value, str) and value.islower() else "",
)  # fmt: skip
def test_the_table_of_modes(name, title, steps, upscale, lora, sampling):
    mode = BY_NAME[name]
    assert (mode.title, mode.steps, mode.steps_upscale) == (title, steps, upscale)
    assert mode.applied(TaskSpec(steps=99)).steps == steps
    assert mode.applied(TaskSpec(overwrite_step=11)).steps == 11
    named = mode.lora and (mode.lora.file.removesuffix(".safetensors"), mode.lora.weight)
    assert named == lora
    assert lora is None or mode.lora.url.startswith("https://huggingface.co/")
    forced = {}
    if sampling is not None:
        sampler, scheduler = sampling
        forced = {**NO_GUIDANCE, "sampler": Sampler(sampler), "scheduler": Scheduler(scheduler)}
    assert mode.forced == forced


def test_no_lora_of_sdxl_is_meant_for_the_built_in_model():
    names = {mode.name: mode.lora.names_for(True) for mode in MODES if mode.lora}
    assert names == {
        "extreme_speed": ("easel-mini-lcm.safetensors",), "lightning": (), "hyper_sd": (),
    }  # fmt: skip
    assert BY_NAME["extreme_speed"].lora.names_for(False)[0] == "sdxl_lcm_lora.safetensors"
    own = make_mode({"name": "x", "title": "X", "steps": 4, "steps_upscale": 4,
                     "lora": {"file": "mine.safetensors"}})  # fmt: skip
    assert own.lora.names_for(True) == own.lora.names_for(False) == ("mine.safetensors",)


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)
def test_what_is_applied_is_a_valid_request(mode):
    spec = TaskSpec(prompt="a house", seed=5, cfg_scale=9.0)
    applied = mode.applied(spec)
    assert TaskSpec.from_mapping(applied.model_dump()) == applied
    assert (applied.prompt, applied.seed) == ("a house", 5)
    assert spec.cfg_scale == 9.0


def test_defaults_of_the_quality_fields():
    defaults = {name: info.default for name, info in QualityFields.model_fields.items()}
    assert defaults["performance"] == ""  # the steps as they are asked for
    assert (defaults["sharpness"], defaults["adaptive_cfg"]) == (2.0, 7.0)
    assert [defaults[f"adm_{part}"] for part in ("positive", "negative", "end")] == [1.5, 0.8, 0.3]
    assert (defaults["guidance_start"], defaults["guidance_end"]) == (0.0, 1.0)
    assert defaults["rescale_cfg"] == 0.0


def test_every_field_says_what_it_does():
    for name, info in QualityFields.model_fields.items():
        assert info.title, name
        assert info.description.endswith("."), name


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sharpness": 31}, "Sharpness must be at most 30"),
        ({"adaptive_cfg": 0.5}, "must be at least 1"),
        ({"adm_positive": 4}, "must be at most 3"),
        ({"adm_end": -0.1}, "must be at least 0"),
        ({"rescale_cfg": float("nan")}, "Rescaled guidance must be"),
        ({"overwrite_step": 0}, "must be at least 1"),
        ({"guidance_start": 0.5, "guidance_end": 0.5}, "must begin before it ends"),
        ({"performance": "../x"}, "must be a name from the list"),
    ],
)
def test_bad_values_get_a_sentence(values, words):
    with pytest.raises(SpecError, match=words):
        TaskSpec.from_mapping(values)


def test_a_mode_from_outside_is_typed():
    mode = make_mode(
        {
            "name": "draft",
            "title": "Draft",
            "steps": 12,
            "steps_upscale": 12,
            "forced": {"cfg_scale": 3, "sampler": "euler"},
        }
    )
    assert mode.forced == {"cfg_scale": 3.0, "sampler": Sampler.EULER}


@pytest.mark.parametrize(
    ("values", "error"),
    [
        ({"steps": 0}, ValidationError),
        ({"forced": {"prompt": "a cat"}}, ValueError),
        ({"forced": {"cfg_scale": 99}}, SpecError),
        ({"forced": [1]}, ValueError),
        ({"lora": {"file": "a", "url": "http://example.org/a"}}, ValidationError),
        ({"colour": "red"}, ValidationError),
    ],
    ids=str,
)
def test_a_mode_that_makes_no_sense_is_refused(values, error):
    with pytest.raises(error):
        make_mode({"name": "x", "title": "X", "steps": 4, "steps_upscale": 4, **values})
