"""A refiner of the checkpoint's family and of another one, from the request to the picture."""

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import sd
from modules.spec.flags import TaskState
from modules.worker import refining
from tests.modules.worker.test_prompts import paint, pixels, recipe
from tests.support.tiny_checkpoint import TINY_REFINER, TINY_SD1, write_tiny_sdxl
from tests.support.tiny_interposer import interposer_weights

VALUES = {"checkpoint": "tiny.safetensors", "steps": 5, "cfg_scale": 3.0, "refiner_switch": 0.6}


def put_refiner(studio, name, sizes):
    folder = studio.settings.models_path / "checkpoints"
    write_tiny_sdxl(folder / name, seed=3, dtype=torch.float32, sizes=sizes)
    return {**VALUES, "refiner": name}


@pytest.fixture
def sd1(studio):
    """Values of a request with a refiner of Stable Diffusion 1."""
    return put_refiner(studio, "z-sd1.safetensors", TINY_SD1)


@pytest.fixture
def codings(monkeypatch):
    """(method, shape) of every call of a VAE."""
    calls = []
    for name in ("decode", "encode"):
        real = getattr(sd.VAE, name)

        def called(self, tensor, *rest, name=name, real=real):
            calls.append((name, tuple(tensor.shape)))
            return real(self, tensor, *rest)

        monkeypatch.setattr(sd.VAE, name, called)
    return calls


def done(studio, **values):
    task = paint(studio, **values)
    assert task.state is TaskState.DONE, task.message
    return pixels(studio, task)


def test_sdxls_own_refiner_paints_the_last_steps_in_each_way(studio):
    values = put_refiner(studio, "z-refiner.safetensors", TINY_REFINER)
    alone = done(studio, **VALUES)
    seen = [alone]
    for method in ("joint", "separate", "vae"):
        task = paint(studio, refiner_method=method, **values)
        assert task.state is TaskState.DONE, task.message
        assert [p.step for p in task.progress] == [0, 1, 2, 3, 4, 5]
        resolved = recipe(studio, task).resolved
        assert (resolved.refiner, resolved.refiner_step) == ("z-refiner.safetensors", 3)
        picture = pixels(studio, task)
        assert picture.shape == alone.shape and picture.std() > 1
        assert not any(np.array_equal(picture, other) for other in seen), method
        seen.append(picture)
    assert np.array_equal(alone, done(studio, **VALUES))


def test_a_refiner_with_other_latents_goes_by_the_picture(studio, sd1, codings):
    picture = done(studio, refiner_method="vae", **sd1)
    assert codings == [
        ("decode", (1, 4, 8, 8)),  # of the checkpoint, half-way
        ("encode", (1, 64, 64, 3)),  # of the refiner
        ("decode", (1, 4, 8, 8)),  # of the refiner, at the end
    ]
    assert picture.shape == (64, 64, 3) and picture.std() > 1
    assert not np.array_equal(picture, done(studio, **VALUES))
    assert np.array_equal(picture, done(studio, refiner_method="vae", **sd1))


@pytest.mark.parametrize("method", ["joint", "separate"])
def test_it_cannot_go_on_with_latents_that_are_not_its_own(studio, sd1, method):
    task = paint(studio, refiner_method=method, **sd1)
    assert task.code == "E_MODEL_UNSUPPORTED"
    assert "choose the method vae or a refiner of the same family" in task.message


def test_an_interposer_takes_the_place_of_the_picture(studio, sd1, codings, monkeypatch):
    by_picture = done(studio, refiner_method="vae", **sd1)
    folder = studio.settings.models_path / "vae_approx"
    folder.mkdir()
    path = folder / "xl-to-v1_interposer-v4.0.safetensors"
    save_file(interposer_weights(8, 2), path)
    assert np.array_equal(by_picture, done(studio, refiner_method="vae", **sd1))
    monkeypatch.setattr(refining, "RELEASED_CHANNELS", {32})  # as if the tiny ones were released
    codings.clear()
    found = done(studio, refiner_method="vae", **sd1)
    assert codings == [("decode", (1, 4, 8, 8))]
    assert not np.array_equal(found, by_picture)
    path.with_name("xl-to-v1_interposer-v1.1.safetensors").write_bytes(b"of an older kind")
    assert np.array_equal(found, done(studio, refiner_method="vae", **sd1))
    path.write_bytes(path.read_bytes()[:2_000])
    task = paint(studio, refiner_method="vae", **sd1)
    assert task.code == "E_MODEL_CORRUPT"
    assert path.name in task.message
    assert [each.step for each in task.progress] == [0]  # known before anything was painted
