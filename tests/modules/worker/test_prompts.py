"""The words of a request, from its text to the conditions of each picture."""

import json
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules.async_worker import run_task
from modules.gallery.recipe import read_full_recipe
from modules.settings.presets import ModelFolder
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.worker.job import Job
from modules.worker.stages import prompts, resolve
from tests.support.lora_files import kohya_file, layers_of
from tests.support.recording_task import RecordingTask
from tests.support.tiny_gpt2 import WORDS, write_tiny_gpt2


def request(**values):
    return TaskSpec(**({"prompt": "a house", "steps": 2, "seed": 7, "image_count": 1} | values))


@pytest.fixture
def own(settings):
    """Styles and word lists of the user."""
    (settings.root / "styles").mkdir()
    (settings.root / "wildcards").mkdir()
    styles = [
        {"name": "ink", "prompt": "ink drawing of {prompt}", "negative_prompt": "photo"},
        {"name": "glow", "prompt": "glowing {prompt}", "negative_prompt": ""},
        {"name": "clay", "prompt": "clay figure of {prompt}", "negative_prompt": "ink"},
    ]
    (settings.root / "styles" / "mine.json").write_text(json.dumps(styles))
    (settings.root / "wildcards" / "pet.txt").write_text("cat\ndog\nowl\n")
    return settings


def paint(studio, **values):
    task = RecordingTask(request(**values))
    run_task(task, studio)
    return task


def recipe(studio, task, index=0):
    return read_full_recipe(studio.settings.output_path / task.commits[index]["path"])


def pixels(studio, task, index=0):
    with Image.open(studio.settings.output_path / task.commits[index]["path"]) as image:
        return np.asarray(image.convert("RGB"))


def test_each_picture_has_its_own_words_in_its_recipe(own, studio):
    task = paint(
        studio, prompt="a __pet__ [[by day, by night]]\nsecond", styles=("ink",), image_count=3,
        wildcards_in_order=True, negative_prompt="rain",
    )  # fmt: skip
    assert task.state is TaskState.DONE, task.message
    words = [recipe(studio, task, index).prompt for index in range(3)]
    assert [w.positive for w in words] == [
        ("ink drawing of a cat by day", "second"),
        ("ink drawing of a dog by night", "second"),
        ("ink drawing of a owl by day", "second"),
    ]
    assert {w.negative for w in words} == {("photo", "rain")}
    assert recipe(studio, task).spec == task.spec


def test_styles_and_emphasis_change_the_picture(own, studio):
    found = [
        pixels(studio, paint(studio, **values))
        for values in (
            {},
            {"styles": ("ink",)},
            {"styles": ("glow",)},
            {"styles": ("clay",)},
            {"styles": ("ink", "glow")},
            {"prompt": "a (house:1.4)"},
            {"prompt": "a\nhouse"},
        )
    ]
    for index, one in enumerate(found):
        assert all(not np.array_equal(one, other) for other in found[index + 1 :])


def test_a_picture_of_a_batch_is_the_picture_alone(own, studio):
    words = {"prompt": "a __pet__ {red|blue}", "styles": ("ink",)}
    batch = paint(studio, seed=20, image_count=2, **words)
    alone = paint(studio, seed=21, **words)
    assert np.array_equal(pixels(studio, batch, 1), pixels(studio, alone))


@pytest.mark.parametrize(
    ("values", "code", "words"),
    [
        ({"styles": ("no such",)}, "E_INPUT", "'no such' is not known"),
        ({"prompt": "x <lora:gone:1>"}, "E_MODEL_MISSING", "'gone' is not in the loras folder"),
        ({"prompt": "x <lora:gone:heavy>"}, "E_INPUT", "cannot be read"),
        ({"prompt": "__loop__"}, "E_LIMIT", "names itself"),
        ({"prompt": "[[1,2,3,4,5,6,7,8,9,0]]" * 5}, "E_LIMIT", "combinations"),
    ],
)
def test_what_cannot_be_done_ends_before_anything_is_painted(own, studio, values, code, words):
    (own.root / "wildcards" / "loop.txt").write_text("__loop__\n")
    task = paint(studio, image_count=4, **values)
    assert (task.state, task.code) == (TaskState.FAILED, code)
    assert words in task.message
    assert not task.commits


def test_an_edited_list_counts_for_the_next_task(own, studio):
    first = paint(studio, prompt="__pet__")
    (own.root / "wildcards" / "pet.txt").write_text("a completely other animal\n")
    second = paint(studio, prompt="__pet__")
    assert recipe(studio, first).prompt.positive[0] in ("cat", "dog", "owl")
    assert recipe(studio, second).prompt.positive == ("a completely other animal",)


@pytest.fixture
def encoded(own, studio, monkeypatch):
    """Texts that were really encoded."""
    texts = []
    real = type(studio.pipeline)._encode_text

    def encode_text(self, model, text, clip_skip):
        texts.append(text)
        return real(self, model, text, clip_skip)

    monkeypatch.setattr(type(studio.pipeline), "_encode_text", encode_text)
    return texts


def test_only_what_changed_is_encoded_again(studio, encoded):
    paint(studio, styles=("ink",))
    assert encoded == ["ink drawing of a house", "photo"]
    paint(studio, styles=("ink",), seed=8, image_count=3)
    assert len(encoded) == 2
    paint(studio, styles=("ink", "glow"))
    assert encoded[2:] == ["glowing a house"]


def test_without_guidance_the_negative_is_not_encoded(studio, encoded):
    paint(studio, cfg_scale=1.0, negative_prompt="rain")
    assert encoded == ["a house"]


def test_a_language_model_adds_the_words_and_the_recipe_keeps_them(own, studio):
    folder = own.models_path / "prompt_expansion" / "tiny-gpt"
    write_tiny_gpt2(folder)
    values = {"prompt": "a house", "expand_prompt": True, "image_count": 2}
    task = paint(studio, **values)
    assert task.state is TaskState.DONE, task.message
    prompts = [recipe(studio, task, index).prompt for index in range(2)]
    for prompt in prompts:
        words = prompt.expansion.replace(",", "").split()
        assert words and set(words) <= set(WORDS[:6])
        assert prompt.positive == ("a house", f"a house, {prompt.expansion}")
        assert prompt.pooled_count == 1
    assert prompts[0].expansion != prompts[1].expansion
    again = paint(studio, **values)
    assert recipe(studio, again).prompt == prompts[0]
    assert np.array_equal(pixels(studio, task), pixels(studio, again))
    (folder / "positive.txt").write_text("calm\n")
    assert recipe(studio, paint(studio, **values)).prompt.expansion == "calm"
    (folder / "model.safetensors").unlink()
    broken = paint(studio, **values)
    assert broken.code == "E_MODEL_CORRUPT"
    assert "tiny-gpt for prompt expansion cannot be used" in broken.message
    assert paint(studio, prompt="a house").state is TaskState.DONE


def test_a_language_model_whose_package_does_not_load_is_left_out(own, studio, monkeypatch):
    write_tiny_gpt2(own.models_path / "prompt_expansion" / "tiny-gpt")
    monkeypatch.setitem(sys.modules, "transformers", None)
    job = Job(RecordingTask(request(prompt="a house", expand_prompt=True)))
    resolve.run(job, studio)
    prompts.run(job, studio)
    assert any("or does not fit it" in notice for notice in job.plan.notices)


def test_texts_stand_one_after_another_and_pool_as_a_sum(own, studio):
    job = Job(RecordingTask(request(prompt="a house\na boat", expand_prompt=False)))
    resolve.run(job, studio)
    prompts.run(job, studio)
    prompts.encode(job, studio)
    house, boat = (studio.pipeline.encode(job.model, [text])[0] for text in ("a house", "a boat"))
    [[cond, options]] = job.positive
    torch.testing.assert_close(cond, torch.cat([house[0], boat[0]], dim=1))
    torch.testing.assert_close(
        options["pooled_output"], house[1]["pooled_output"] + boat[1]["pooled_output"]
    )
    one = studio.pipeline.encode(job.model, ["a house", "a boat"], 1)[0][1]["pooled_output"]
    torch.testing.assert_close(one, house[1]["pooled_output"])
    again = studio.pipeline.encode(job.model, ["a house", "a boat"], 2)
    assert again[0][0] is cond  # what a network computed from it can be kept


@pytest.fixture
def loras(own, studio):
    """`wild`, on the UNet and a text encoder; `broken`, which is no LoRA."""
    folder = own.models_path / "loras" / "sub"
    folder.mkdir(parents=True)
    model = studio.pipeline.refresh(studio.catalog.find_checkpoint())
    unet = kohya_file(layers_of(model.unet.model.diffusion_model), "lora_unet_", 3.0)
    text = kohya_file(
        layers_of(model.clip.cond_stage_model.clip_l.text_model), "lora_te1_text_model_", 3.0
    )
    save_file(unet | text, folder / "wild.safetensors")
    (folder / "broken.safetensors").write_bytes(b"x" * 100)
    return folder


def test_lora_files_are_found_below_their_folder(loras, studio):
    names = ["sub/broken.safetensors", "sub/wild.safetensors"]
    files = studio.catalog.files(ModelFolder.LORAS)
    assert [file.name for file in files] == names
    assert files[1].path == loras / "wild.safetensors"


def test_a_lora_belongs_to_the_pictures_that_name_it(loras, studio):
    def shown(task, index=0):
        assert task.state is TaskState.DONE, task.message
        return pixels(studio, task, index)

    model = studio.pipeline.refresh(studio.catalog.find_checkpoint())
    before = {name: t.clone() for name, t in model.unet.model.state_dict().items()}
    plain = [shown(paint(studio, seed=seed)) for seed in (7, 8, 9)]
    batch = paint(studio, prompt="a house[[ , <lora:wild:0.8>, ]]", image_count=3)
    assert np.array_equal(shown(batch, 0), plain[0])
    assert not np.array_equal(shown(batch, 1), plain[1])
    assert np.array_equal(shown(batch, 2), plain[2])
    alone = paint(studio, prompt="a house <lora:sub/wild:0.8>", seed=8)
    assert np.array_equal(shown(alone), shown(batch, 1))
    unet_only = paint(studio, prompt="a house <lora:wild:0.8:0>", seed=8)
    assert not np.array_equal(shown(unet_only), shown(alone))
    nothing = paint(studio, prompt="a house <lora:wild:0>", seed=8)
    assert np.array_equal(shown(nothing), plain[1])
    uses = [recipe(studio, batch, index).prompt.loras for index in range(3)]
    assert [[use.file for use in found] for found in uses] == [[], ["sub/wild.safetensors"], []]
    after = model.unet.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_a_broken_lora_is_one_sentence_and_costs_nothing_after_it(loras, studio):
    task = paint(studio, prompt="a house <lora:broken:1>")
    assert task.state is TaskState.FAILED
    assert "broken.safetensors" in task.message
    assert paint(studio).state is TaskState.DONE
