"""A worker that is short of memory: what it keeps, what it reads again, how it goes on."""

import numpy as np
import pytest
import torch
from PIL import Image

from ldm_patched.modules import sd
from ldm_patched.modules.memory_budget import MemoryBudget
from ldm_patched.modules.vae_strips import StripCoder
from modules.async_worker import LESS_MEMORY, run_task
from modules.spec.flags import TaskState
from modules.spec.task_spec import TaskSpec
from modules.tasks.events import Loading
from modules.worker.pipeline import RAM_RESERVE, Pipeline
from modules.worker.stages.sample import IN_PARTS
from modules.worker.studio import Studio
from tests.modules.conftest import put_checkpoint
from tests.support.counting_transfer import CountingTransfer
from tests.support.recording_task import RecordingTask
from tests.support.tiny_checkpoint import write_tiny_sdxl


def paint(studio, **values):
    """(the task, its picture), or (the task, None) if it failed."""
    request = {"prompt": "a red house", "steps": 2, "seed": 7, "image_count": 1} | values
    task = RecordingTask(TaskSpec(**request))
    run_task(task, studio)
    if task.state is not TaskState.DONE:
        return task, None
    with Image.open(studio.settings.output_path / task.commits[0]["path"]) as image:
        return task, np.asarray(image.convert("RGB")).astype(int)


# --- Several checkpoints ----------------------------------------------------------------------


@pytest.fixture
def loads(settings, tiny_checkpoint, monkeypatch):
    """Names of the files that the engine's loader was called for, in order."""
    put_checkpoint(settings, tiny_checkpoint, "other.safetensors")
    real, names = sd.load_checkpoint_guess_config, []

    def counting(path, **keywords):
        names.append(path.rsplit("/")[-1])
        return real(path, **keywords)

    monkeypatch.setattr(sd, "load_checkpoint_guess_config", counting)
    return names


def test_switching_between_two_that_fit_reads_nothing_again(fresh_studio, loads):
    fresh_studio.pipeline._free_ram = lambda: 2**40
    for name in ("tiny", "other", "tiny", "other"):
        _, picture = paint(fresh_studio, checkpoint=f"{name}.safetensors")
        assert picture is not None
    assert loads == ["tiny.safetensors", "other.safetensors"]


def test_the_one_used_longest_ago_goes_when_another_does_not_fit_beside_it(fresh_studio, loads):
    size = (fresh_studio.settings.models_path / "checkpoints" / "tiny.safetensors").stat().st_size
    pipeline = fresh_studio.pipeline
    pipeline._free_ram = lambda: 2 * size + RAM_RESERVE - sum(size for _ in pipeline._models)
    (fresh_studio.settings.models_path / "checkpoints" / "third.safetensors").hardlink_to(
        fresh_studio.settings.models_path / "checkpoints" / "tiny.safetensors"
    )
    for name in ("tiny", "other", "tiny", "third", "tiny", "other"):
        paint(fresh_studio, checkpoint=f"{name}.safetensors", steps=1)
    names = [name.removesuffix(".safetensors") for name in loads]
    assert names == ["tiny", "other", "third", "other"]
    assert len(pipeline._models) == 2


@pytest.mark.parametrize(("dtype", "kept"), [(torch.float16, 1), (torch.float32, 2)], ids=str)
def test_a_file_counts_by_what_it_becomes_in_memory(fresh_studio, loads, tmp_path, dtype, kept):
    """In float32 here: a file of half precision takes twice its size."""
    pipeline = fresh_studio.pipeline
    pipeline._free_ram = lambda: 2**40
    paint(fresh_studio, checkpoint="tiny.safetensors", steps=1)
    source = write_tiny_sdxl(tmp_path / "third.safetensors", dtype=dtype)
    put_checkpoint(fresh_studio.settings, source, "third.safetensors")
    pipeline._free_ram = lambda: int(1.5 * source.stat().st_size) + RAM_RESERVE
    paint(fresh_studio, checkpoint="third.safetensors", steps=1)
    assert loads == ["tiny.safetensors", "third.safetensors"]
    assert len(pipeline._models) == kept


def test_what_comes_beside_the_models_leaves_those_that_are_in_use(fresh_studio, loads):
    pipeline = fresh_studio.pipeline
    pipeline._free_ram = lambda: 2**40
    for name in ("tiny", "other"):
        paint(fresh_studio, checkpoint=f"{name}.safetensors", steps=1)
    pipeline.make_place_beside(10)
    assert len(pipeline._models) == 2
    pipeline._free_ram = lambda: 0
    pipeline.make_place_beside(10, used=2)
    first, last = pipeline._models
    pipeline.make_place_beside(10)
    assert list(pipeline._models) == [last] != [first]


def test_there_is_a_most_of_models(fresh_studio, loads):
    fresh_studio.pipeline._free_ram = lambda: 2**40
    fresh_studio.pipeline._models_kept = 1
    for name in ("tiny", "other", "tiny"):
        paint(fresh_studio, checkpoint=f"{name}.safetensors", steps=1)
    assert len(loads) == 3


# --- A device that is too small ---------------------------------------------------------------


@pytest.fixture
def small_device(settings, monkeypatch):
    """A studio whose networks go to a counted device of so many bytes."""
    monkeypatch.setattr("ldm_patched.modules.weight_stream.SMALL_UNIT", 2**12)
    studios = []

    def make(capacity, mode="normal"):
        studio = Studio(settings)
        transfer = CountingTransfer(capacity)
        studio.policy.budget = MemoryBudget(mode, transfer.free, transfer=transfer, reserve=0)
        studios.append(studio)
        return studio, transfer

    yield make
    for studio in studios:
        studio.close()


def unet_of(studio):
    (model,) = studio.pipeline._models.values()
    return model.unet


@pytest.mark.parametrize("mode", ["always", "high", "normal", "low", "no"])
def test_every_mode_paints_the_same_picture(studio, small_device, mode):
    _, wanted = paint(studio)
    other, transfer = small_device(2**30, mode)
    _, found = paint(other)
    assert np.abs(found - wanted).max() <= 1
    assert transfer.sent_bytes > 0
    assert bool(transfer.copies) == (mode == "no")  # blocks streamed


def test_a_unet_larger_than_the_device_paints_the_same_picture(studio, small_device):
    _, wanted = paint(studio)
    unet = unet_of(studio)
    capacity = 3 * unet.model_size() // 4  # more than the VAE, which does not stream
    other, transfer = small_device(2**30)
    paint(other)  # the tiny model's vocabulary is larger than its UNet: let it be read once
    other.pipeline.make_room()
    transfer.capacity, transfer.peak = capacity, 0
    _, found = paint(other)
    assert np.abs(found - wanted).max() <= 1
    assert transfer.copies
    assert transfer.peak <= capacity < unet.model_size()


def test_running_out_while_sampling_is_told_and_retried_in_parts(studio, small_device, monkeypatch):
    _, wanted = paint(studio)
    other, transfer = small_device(2**30)
    paint(other)
    apply_model = type(unet_of(other).model).apply_model
    batches, strips = [], []

    def fails(model, x, t, **keywords):
        batches.append(x.shape[0])
        if not unet_of(other).residence.is_streaming:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return apply_model(model, x, t, **keywords)

    decode = StripCoder.decode
    monkeypatch.setattr(StripCoder, "decode", lambda c, z: strips.append(1) or decode(c, z))
    monkeypatch.setattr(type(unet_of(other).model), "apply_model", fails)
    task, found = paint(other)
    assert np.abs(found - wanted).max() <= 1
    # Both conditions at once, then one, then everything in parts.
    assert batches == [2, 1] + [1, 1] * 2
    assert strips == [1]
    told = [event.message for event in task.events if isinstance(event, Loading)]
    assert told == [LESS_MEMORY]
    assert [p.note for p in task.progress] == [""] + [IN_PARTS] * 3  # and stays on the page
    # The next task starts afresh: it is not slow for ever.
    monkeypatch.setattr(type(unet_of(other).model), "apply_model", apply_model)
    streamed = len(transfer.copies)
    paint(other, seed=8)
    assert len(transfer.copies) == streamed


def test_running_out_in_parts_too_fails_with_a_sentence_and_the_next_task_runs(
    small_device, monkeypatch
):
    studio, transfer = small_device(2**30)
    _, wanted = paint(studio)

    def fails(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with monkeypatch.context() as patch:
        patch.setattr(type(unet_of(studio).model), "apply_model", fails)
        task, _ = paint(studio)
    assert (task.state, task.code) == (TaskState.FAILED, "E_OOM")
    assert task.message.startswith("There was not enough memory to paint this; choose a smaller")
    assert transfer.used == 0
    task, found = paint(studio)
    assert np.array_equal(found, wanted)


def test_a_pipeline_asks_the_computer_by_default(studio):
    assert Pipeline(studio.policy)._free_ram() > 2**20
