"""Performance modes and picture quality, from the request to the picture and its recipe."""

import json
import shutil

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from extras.training.painter import FEWSTEP_FILE
from modules.gallery.recipe import read_full_recipe, recipe_of_json
from modules.spec.errors import ModelMissing, SpecError
from modules.spec.flags import Sampler, Scheduler
from modules.spec.performance import MODES, ModeLora
from modules.spec.quality import BEFORE_QUALITY
from modules.spec.task_spec import TaskSpec
from modules.worker.job import Job
from modules.worker.stages import resolve
from tests.modules.worker.test_adapters import pixels, put_lora, run
from tests.support.recording_task import RecordingTask

PLAIN = {"sharpness": 0.0, "adm_end": 0.0}


def resolved(studio, **values):
    job = Job(RecordingTask(TaskSpec.from_mapping({"seed": 1, **values})))
    resolve.run(job, studio)
    return job.settled


@pytest.fixture
def large_sizes(studio, tiny_checkpoint):
    """A checkpoint that says no sizes of its own, so it counts as one of SDXL's."""
    with safe_open(tiny_checkpoint, "pt") as file:
        metadata = {k: v for k, v in file.metadata().items() if not k.startswith("easel.")}
    path = studio.settings.models_path / "checkpoints" / "big.safetensors"
    save_file(load_file(tiny_checkpoint), path, metadata)
    return {"checkpoint": "big.safetensors", "width": 64, "height": 64}


def test_the_file_for_few_steps_is_the_one_that_is_trained():
    (file,) = {mode.lora.builtin for mode in MODES if mode.lora is not None} - {""}
    assert file == FEWSTEP_FILE


def test_without_a_mode_the_settings_are_as_asked_for(studio):
    found = resolved(studio, steps=17, cfg_scale=5.0, sharpness=3.0, rescale_cfg=0.5)
    assert (found.performance, found.steps, found.cfg_scale) == ("", 17, 5.0)
    assert (found.sharpness, found.rescale_cfg, found.adaptive_cfg) == (3.0, 0.5, 7.0)
    assert resolved(studio, steps=17, overwrite_step=3).steps == 3


def test_a_mode_decides(studio):
    put_lora(studio, "sub/sdxl_lightning_4step_lora.safetensors")
    found = resolved(studio, performance="lightning", steps=17, cfg_scale=9.0, sharpness=9.0)
    assert (found.steps, found.cfg_scale, found.sharpness) == (4, 1.0, 0.0)
    assert (found.sampler, found.scheduler) == (Sampler.EULER, Scheduler.SGM_UNIFORM)
    assert found.performance_lora.name == "sub/sdxl_lightning_4step_lora.safetensors"
    assert resolved(studio, performance="lightning", overwrite_step=8).steps == 8


@pytest.mark.parametrize("mode", ["extreme_speed", "lightning", "hyper_sd"])
def test_a_missing_lora_is_named_with_its_source(studio, mode):
    with pytest.raises(ModelMissing, match=r"needs the LoRA sdxl_\w+\.safetensors.*https://"):
        resolved(studio, performance=mode)


def test_an_address_with_a_secret_is_not_named(studio):
    lora = ModeLora(file="mine.safetensors", url="https://example.org/mine?token=SECRET")
    mode = MODES[0].model_copy(update={"lora": lora})
    with pytest.raises(ModelMissing, match=r"mine\.safetensors") as caught:
        resolve.find_mode_lora(mode, studio.catalog, builtin=False)
    assert "SECRET" not in str(caught.value)


def test_the_built_in_model_takes_its_own_lora_or_none(studio, tiny_checkpoint):
    put_lora(studio, "sdxl_lcm_lora.safetensors")
    folder = studio.settings.builtin_models_path
    folder.mkdir(parents=True)
    shutil.copy(tiny_checkpoint, folder / "easel-mini.safetensors")
    asked = {"performance": "extreme_speed", "checkpoint": "builtin/easel-mini.safetensors"}
    with pytest.raises(ModelMissing, match="no LoRA for the built-in model; choose another mode"):
        resolved(studio, **asked)
    lora = studio.settings.models_path / "loras" / "sdxl_lcm_lora.safetensors"
    shutil.copy(lora, folder / "easel-mini-lcm.safetensors")
    found = resolved(studio, **asked).performance_lora
    assert found.name == "builtin/easel-mini-lcm.safetensors"
    other = resolved(studio, performance="extreme_speed", checkpoint="tiny.safetensors")
    assert other.performance_lora.name == "sdxl_lcm_lora.safetensors"


def test_nothing_is_fetched_for_a_mode(studio, monkeypatch):
    import socket

    monkeypatch.setattr(socket, "socket", lambda *_, **__: pytest.fail("the network was asked"))
    task = run(studio, performance="hyper_sd")
    assert task.code == ModelMissing.code
    assert "put it there, or choose another mode" in task.message


def test_an_unknown_mode_is_a_sentence(studio):
    with pytest.raises(SpecError, match="no performance mode 'warp'"):
        resolved(studio, performance="warp")


def test_sizes_are_told_as_they_are_to_a_model_that_says_its_own(studio, large_sizes):
    own = resolved(studio, checkpoint="tiny.safetensors")
    assert (own.adm_positive, own.adm_negative, own.adm_end) == (1.0, 1.0, 0.0)
    other = resolved(studio, **large_sizes)
    assert (other.adm_positive, other.adm_negative, other.adm_end) == (1.5, 0.8, 0.3)


def test_every_knob_reaches_the_picture(studio, large_sizes):
    many = {**large_sizes, "steps": 4, "cfg_scale": 9.0}
    base = pixels(studio, **many, **PLAIN)
    for change in (
        {"sharpness": 30.0},
        {"adaptive_cfg": 2.0},
        {"adm_end": 1.0},
        {"guidance_end": 0.6},
        {"guidance_start": 0.4},
        {"rescale_cfg": 0.7},
    ):
        assert not np.array_equal(base, pixels(studio, **many, **(PLAIN | change))), change
    assert np.array_equal(base, pixels(studio, **many, **PLAIN))  # and none of it stays


@pytest.mark.parametrize("mode", ["extreme_speed", "lightning", "hyper_sd", "turbo"])
def test_modes_of_few_steps_paint_and_can_be_painted_again(studio, mode, monkeypatch):
    for name in ("sdxl_lcm_lora", "sdxl_lightning_4step_lora", "sdxl_hyper_sd_4step_lora"):
        put_lora(studio, f"{name}.safetensors", spread=2.0)
    task = run(studio, performance=mode)
    assert task.message == ""
    recipe = read_full_recipe(studio.settings.output_path / task.commits[0]["path"])
    assert recipe.spec == task.spec
    assert recipe.resolved == task.resolved
    lora = recipe.resolved.performance_lora
    assert [part.name for part in recipe.loras] == ([lora.name] if lora else [])
    assert len(task.progress) == recipe.resolved.steps + 1


def test_a_mode_of_ones_own_paints_what_its_settings_paint(studio):
    put_lora(studio, "mine.safetensors", spread=2.0)
    forced = {"cfg_scale": 3.0, "sampler": "euler", "scheduler": "normal"}
    mode = {"steps": 3, "forced": forced, "lora": {"file": "mine.safetensors", "weight": 0.5}}
    folder = studio.settings.root / "performance"
    folder.mkdir()
    (folder / "draft.json").write_text(json.dumps(mode))
    by_mode = pixels(studio, performance="draft", cfg_scale=9.0, steps=9)
    loras = [{"name": "mine.safetensors", "weight": 0.5}]
    assert np.array_equal(by_mode, pixels(studio, loras=loras, **{"steps": 3, **forced}))
    assert not np.array_equal(by_mode, pixels(studio, **{"steps": 3, **forced}))


def test_the_modes_lora_counts_once(studio):
    put_lora(studio, "sdxl_lightning_4step_lora.safetensors")
    plain = pixels(studio, performance="lightning")
    named = "a red house<lora:sdxl_lightning_4step_lora:0.7>"
    assert np.array_equal(plain, pixels(studio, performance="lightning", prompt=named))
    listed = [{"name": "sdxl_lightning_4step_lora", "weight": 0.5}]
    assert np.array_equal(plain, pixels(studio, performance="lightning", loras=listed))
    assert not np.array_equal(plain, pixels(studio, performance="turbo"))


def test_a_mode_leaves_no_trace(studio):
    put_lora(studio, "sdxl_lcm_lora.safetensors")
    before = pixels(studio, steps=3)
    fast = pixels(studio, performance="extreme_speed")
    assert np.array_equal(fast, pixels(studio, performance="extreme_speed"))
    assert np.array_equal(before, pixels(studio, steps=3))


def test_a_recipe_from_before_means_that_none_of_it_was_there(studio):
    task = run(studio)
    path = studio.settings.output_path / task.commits[0]["path"]
    values = json.loads(read_full_recipe(path).to_json())
    for name in ("sharpness", "adaptive_cfg", "adm_positive", "adm_negative", "adm_end"):
        del values["spec"][name]
        del values["resolved"][name]
    old = recipe_of_json(json.dumps(values))
    assert {name: getattr(old.spec, name) for name in BEFORE_QUALITY} == BEFORE_QUALITY
    assert {name: getattr(old.resolved, name) for name in BEFORE_QUALITY} == BEFORE_QUALITY


@pytest.fixture
def refiner(studio, tiny_checkpoint):
    """Another checkpoint of the same shape: its network's weights are not the first one's."""
    state = load_file(tiny_checkpoint)
    for name in state:
        if name.startswith("model.diffusion_model.output_blocks"):
            state[name] = state[name] * 1.5
    with safe_open(tiny_checkpoint, "pt") as file:
        metadata = file.metadata()
    save_file(
        state, studio.settings.models_path / "checkpoints" / "z-refiner.safetensors", metadata
    )
    return {"refiner": "z-refiner.safetensors", "checkpoint": "tiny.safetensors"}


def test_when_the_refiner_takes_over(studio, refiner):
    found = resolved(studio, steps=30, **refiner)
    assert (found.refiner, found.refiner_step) == ("z-refiner.safetensors", 24)
    assert resolved(studio, steps=20, refiner_switch=0.5, **refiner).refiner_step == 10
    assert resolved(studio, steps=20, overwrite_switch=7, **refiner).refiner_step == 7
    never = resolved(studio, steps=20, refiner_switch=1.0, **refiner)
    assert (never.refiner, never.refiner_step) == ("", None)
    assert resolved(studio, performance="turbo", **refiner).refiner == ""
    with pytest.raises(ModelMissing, match="'gone'"):
        resolved(studio, refiner="gone")


def test_a_refiner_paints_the_last_steps_in_each_way(studio, refiner):
    values = {"steps": 5, "cfg_scale": 3.0, "refiner_switch": 0.6}
    alone = pixels(studio, checkpoint="tiny.safetensors", **values)
    seen = [alone]
    for method in ("joint", "separate", "vae"):
        task = run(studio, refiner_method=method, **refiner, **values)
        assert task.message == ""
        assert [p.step for p in task.progress] == [0, 1, 2, 3, 4, 5]
        picture = pixels(studio, refiner_method=method, **refiner, **values)
        assert not any(np.array_equal(picture, other) for other in seen), method
        seen.append(picture)
    assert np.array_equal(alone, pixels(studio, checkpoint="tiny.safetensors", **values))
