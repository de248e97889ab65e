"""LoRAs from the list and the prompt to the picture, and away again."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm_patched.modules.errors import UnsupportedModel
from modules.async_worker import run_task
from modules.gallery.recipe import read_full_recipe
from modules.prompt.plan import LoraUse
from modules.settings.presets import ModelFolder
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from tests.support.lora_files import kohya_file
from tests.support.recording_task import RecordingTask

UNET = "lora_unet_"
WORDS = "lora_te1_"
UNET_LAYERS = {
    f"middle_block.1.transformer_blocks.{block}.{layer}": torch.empty(shape)
    for block in (0, 1)
    for layer, shape in (("attn1.to_v", (128, 128)), ("attn2.to_v", (128, 192)))
}
WORD_LAYERS = {"text_model.encoder.layers.0.self_attn.v_proj": torch.empty(64, 64)}


def put_lora(studio, name, *parts, spread=8.0):
    path = studio.settings.models_path / "loras" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    file = {}
    for prefix, layers in parts or ((UNET, UNET_LAYERS),):
        file |= kohya_file(layers, prefix, alpha=3.0)
    save_file({key: t * spread if t.ndim else t for key, t in file.items()}, str(path))
    return path


@pytest.fixture
def loras(studio):
    put_lora(studio, "ink.safetensors")
    put_lora(studio, "sub/oil.safetensors", (UNET, UNET_LAYERS), (WORDS, WORD_LAYERS), spread=5.0)


def run(studio, **values):
    values = {"prompt": "a red house", "steps": 2, "seed": 7, "image_count": 1} | values
    task = RecordingTask(TaskSpec.from_mapping(values))
    run_task(task, studio)
    return task


def pixels(studio, index=0, **values):
    task = run(studio, **values)
    assert task.state is TaskState.DONE, task.message
    with Image.open(studio.settings.output_path / task.commits[index]["path"]) as image:
        return np.asarray(image.convert("RGB"))


def same(one, other):
    return np.array_equal(one, other)


def test_a_lora_changes_the_picture_and_leaves_no_trace(studio, loras):
    plain = pixels(studio)
    inked = pixels(studio, loras=[{"name": "ink.safetensors", "weight": 0.8}])
    assert not same(plain, inked)
    assert same(plain, pixels(studio))
    assert same(inked, pixels(studio, loras=[{"name": "ink", "weight": 0.8}]))
    assert not same(inked, pixels(studio, loras=[{"name": "ink", "weight": -0.8}]))


def test_one_that_is_off_or_weighs_nothing_changes_nothing(studio, loras):
    plain = pixels(studio)
    assert same(plain, pixels(studio, loras=[{"name": "ink", "enabled": False}]))
    assert same(plain, pixels(studio, loras=[{"name": "sub/oil", "weight": 0.0}]))


def test_a_tag_in_the_prompt_does_what_the_list_does(studio, loras):
    listed = pixels(studio, loras=[{"name": "sub/oil.safetensors", "weight": 0.5}])
    assert same(listed, pixels(studio, prompt="a red house <lora:oil:0.5>"))
    words = [{"name": "sub/oil", "weight": 0.5, "clip_weight": 0.0}]
    assert not same(listed, pixels(studio, loras=words))
    assert same(pixels(studio, loras=words), pixels(studio, prompt="a red house <lora:oil:0.5:0>"))


def test_two_loras_are_more_than_each_of_them(studio, loras):
    ink, oil = {"name": "ink"}, {"name": "oil"}
    pictures = [pixels(studio, loras=entry) for entry in ([ink], [oil], [ink, oil])]
    assert not same(pictures[2], pictures[0])
    assert not same(pictures[2], pictures[1])
    # the list has the first word about a file that the prompt names again
    again = pixels(studio, prompt="a red house <lora:oil:0.1>", loras=[ink, oil])
    assert same(again, pictures[2])


def test_each_picture_has_the_loras_of_its_own_words(studio, loras):
    prompt = "a red house [[<lora:ink:1>, <lora:oil:1>]]"
    task = run(studio, prompt=prompt, image_count=2)
    assert task.state is TaskState.DONE, task.message
    used = [
        read_full_recipe(studio.settings.output_path / task.commits[i]["path"]).prompt.loras
        for i in (0, 1)
    ]
    assert used[0] == (LoraUse(file="ink.safetensors", weight=1.0, clip_weight=1.0),)
    assert used[1] == (LoraUse(file="sub/oil.safetensors", weight=1.0, clip_weight=1.0),)


def test_the_picture_says_which_loras_made_it(studio, loras):
    entries = [{"name": "ink", "weight": 0.75}, {"name": "sub/oil", "enabled": False}]
    run(studio, loras=entries)
    studio.hashes.wait()
    for file in studio.catalog.files(ModelFolder.LORAS):
        studio.hashes.compute_soon(file)
        studio.hashes.wait()
    task = run(studio, loras=entries)
    path = studio.settings.output_path / task.commits[0]["path"]
    recipe = read_full_recipe(path)
    assert recipe.spec == task.spec
    assert [entry.name for entry in recipe.spec.loras] == ["ink", "sub/oil"]
    (lora,) = recipe.loras
    assert lora.name == "ink.safetensors"
    assert len(lora.sha256) == 10
    with Image.open(path) as image:
        text = image.text["parameters"]
    assert "<lora:ink:0.75>" in text
    assert f'Lora hashes: "ink: {lora.sha256}"' in text


@pytest.mark.parametrize(
    ("values", "sentence"),
    [
        ({"loras": [{"name": "gone"}]}, "The LoRA 'gone' is not in the loras folder"),
        ({"prompt": "x <lora:gone:1>"}, "take <lora:gone…> out of the prompt"),
    ],
)
def test_a_lora_that_is_not_there_is_named(studio, values, sentence):
    task = run(studio, **values)
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_MISSING")
    assert sentence in task.message
    assert not task.commits


def test_a_lora_for_another_model_fails_before_the_first_picture(studio, loras):
    key = "lora_unet_double_blocks_0_img_attn_proj"
    bad = {f"{key}.lora_up.weight": torch.ones(8, 4), f"{key}.lora_down.weight": torch.ones(4, 8)}
    save_file(bad, str(studio.settings.models_path / "loras" / "flux.safetensors"))
    prompt = "a red house [[<lora:ink:1>, <lora:flux:1>]]"
    task = run(studio, prompt=prompt, image_count=2)
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_UNSUPPORTED")
    assert task.message.startswith("flux.safetensors looks like a LoRA for Flux")
    assert not task.commits
    assert run(studio).state is TaskState.DONE


def test_a_lora_that_fits_in_part_is_said_beside_the_steps(studio, loras):
    odd = {"no.such.layer": torch.empty(8, 8), "nor.this": torch.empty(8, 8)}
    put_lora(studio, "odd.safetensors", (UNET, UNET_LAYERS | odd))
    task = run(studio, prompt="a red house [[<lora:odd:0.1>, <lora:ink:0.1>]]", image_count=2)
    assert task.state is TaskState.DONE, task.message
    notes = {progress.image: progress.note for progress in task.progress}
    assert notes == {1: "odd.safetensors is used in part: 4 of its 6 layers fit", 2: ""}


def test_a_damaged_lora_is_named_and_the_model_lives_on(studio, loras):
    plain = pixels(studio)
    path = studio.settings.models_path / "loras" / "ink.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    task = run(studio, loras=[{"name": "ink"}])
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_CORRUPT")
    assert task.message.startswith("ink.safetensors")
    assert same(plain, pixels(studio))


def test_a_set_is_kept_until_another_one_comes(studio, loras):
    run(studio)
    pipeline, catalog = studio.pipeline, studio.catalog
    base = pipeline.refresh(catalog.find_checkpoint())
    ink, oil = ((file, 1.0, 1.0) for file in catalog.files(ModelFolder.LORAS))
    one = pipeline.with_loras(base, [ink])
    assert pipeline.with_loras(base, [ink]) is one
    assert one.unet is not base.unet
    assert base.unet.patches == {}
    both = pipeline.with_loras(base, [ink, oil])
    assert pipeline.with_loras(base, [ink]) is not one
    assert pipeline.with_loras(base, []) is base
    # only the one with text encoders in it reads the words anew
    plain = pipeline.encode(base, ["a boat"])
    assert pipeline.encode(one, ["a boat"]) is plain
    assert not torch.equal(pipeline.encode(both, ["a boat"])[0][0], plain[0][0])


def test_the_refiner_takes_the_loras_that_fit_it(studio, loras):
    folder = studio.settings.models_path / "checkpoints"
    (name,) = (path.name for path in folder.iterdir())
    shutil.copy(folder / name, folder / "z-copy.safetensors")
    both = {"loras": [{"name": "sub/oil"}], "checkpoint": name, "steps": 4, "clip_skip": 1}
    refined = {"refiner": "z-copy.safetensors", "refiner_switch": 0.5}
    alone = pixels(studio, **both)
    assert same(pixels(studio, **both, **refined), alone)  # the same weights with the same LoRA
    assert not same(pixels(studio, **{**both, "loras": []}, **refined), alone)
    pipeline, catalog = studio.pipeline, studio.catalog
    base = pipeline.refresh(catalog.find_checkpoint(name))
    put_lora(studio, "wide.safetensors", (UNET, {key: torch.empty(9, 9) for key in UNET_LAYERS}))
    with_misfit = [(file, 1.0, 1.0) for file in catalog.files(ModelFolder.LORAS)]
    found = pipeline.with_loras(base, with_misfit, fitting_only=True)
    with pytest.raises(UnsupportedModel, match="wide"):
        pipeline.with_loras(base, with_misfit)
    assert set(found.unet.patches) == set(pipeline.with_loras(base, with_misfit[:2]).unet.patches)


def test_a_file_that_changed_is_read_again(studio, loras):
    run(studio)
    base = studio.pipeline.refresh(studio.catalog.find_checkpoint())
    file = studio.catalog.files(ModelFolder.LORAS)[0]
    first = studio.pipeline.lora(base, file)
    assert studio.pipeline.lora(base, file) is first
    put_lora(studio, "ink.safetensors", (UNET, UNET_LAYERS), (WORDS, WORD_LAYERS))
    again = studio.pipeline.lora(base, file)
    assert again.clip
    assert not first.clip
