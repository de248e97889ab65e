"""Learned words from the prompt to the picture."""

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from modules.async_worker import run_task
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from tests.support.recording_task import RecordingTask


@pytest.fixture
def studio(fresh_studio):
    """Its text encoders look for learned words where they were told to when they were loaded."""
    return fresh_studio


def put(studio, name="glow.safetensors", seed=1, widths=(64, 128)):
    path = studio.settings.models_path / "embeddings" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = torch.Generator().manual_seed(seed)
    pair = {
        key: torch.randn(2, width, generator=generator)
        for key, width in zip(("clip_l", "clip_g"), widths, strict=True)
    }
    save_file(pair, str(path))


def run(studio, prompt, **values):
    spec = TaskSpec(**{"prompt": prompt, "steps": 2, "seed": 7, "image_count": 1} | values)
    task = RecordingTask(spec)
    run_task(task, studio)
    return task


def pixels(studio, prompt, **values):
    task = run(studio, prompt, **values)
    assert task.state is TaskState.DONE, task.message
    with Image.open(studio.settings.output_path / task.commits[0]["path"]) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_a_learned_word_changes_the_picture_and_its_file_s_changes_do(studio):
    put(studio)
    plain, glowing = pixels(studio, "a house"), pixels(studio, "a house embedding:glow")
    assert np.abs(plain - glowing).max() > 2
    assert np.array_equal(glowing, pixels(studio, "a house embedding:GLOW.safetensors"))
    assert not np.array_equal(glowing, pixels(studio, "a house (embedding:glow:1.4)"))
    assert not np.array_equal(plain, pixels(studio, "a house", negative_prompt="embedding:glow"))
    put(studio, seed=2)
    assert not np.array_equal(glowing, pixels(studio, "a house embedding:glow"))


def test_an_unknown_word_fails_before_anything_is_loaded(studio):
    task = run(studio, "a house embedding:nothing")
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_MISSING")
    assert "'nothing' is not in models/embeddings" in task.message
    assert not studio.pipeline._models


def test_another_family_s_word_is_said(studio):
    put(studio, widths=(768, 1280))
    task = run(studio, "a house embedding:glow")
    assert (task.state, task.code) == (TaskState.FAILED, "E_MODEL_UNSUPPORTED")
    assert "made for SDXL, but" in task.message
