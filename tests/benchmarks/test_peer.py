"""The whole way from a prompt to pixels gives the picture that diffusers gives.

The benchmarks' own check, run as a test: text encoders, conditioning, network, sampler, guidance
and VAE, from one file through two loaders.
"""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks import peer
from benchmarks.measure import relative_error
from benchmarks.rows_image import Engine, both_sides
from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.modules import model_sampling
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from tests.support.tiny_checkpoint import TINY, write_tiny_sdxl


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny.safetensors")


@pytest.fixture(autouse=True)
def _patches_of_a_worker_end_with_the_test(monkeypatch):
    """The engine is used as a worker uses it, patched; other tests find it as it was."""
    schedule = model_sampling.ModelSamplingDiscrete
    monkeypatch.setattr(openaimodel, "timestep_embedding", openaimodel.timestep_embedding)
    monkeypatch.setattr(schedule, "_register_schedule", schedule._register_schedule)


@pytest.mark.parametrize("cfg", [1.0, 5.0])
@torch.inference_mode()
def test_a_picture_equals_diffusers_picture(checkpoint, cfg):
    policy = DevicePolicy(DeviceFlags(all_in_fp32=True), Hardware())
    pipe = peer.pipeline(TINY, load_file(str(checkpoint)), torch.float32)
    ours, theirs = both_sides(Engine(checkpoint, policy), pipe, side=16, steps=3, cfg=cfg)
    picture = ours()
    assert picture.shape == (1, 128, 128, 3)
    assert float(picture.std()) > 0.01
    assert relative_error(picture, theirs()) <= 1e-4
