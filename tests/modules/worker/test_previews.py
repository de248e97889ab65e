"""A tiny decoder makes the previews where there is one that fits; a broken one fails nothing."""

import logging
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import save_file

from ldm_patched.modules import latent_formats
from ldm_patched.modules.latent_preview import LatentPreviewer
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.taesd.taesd import TaesdPreviewer, make_decoder
from modules.worker.previews import make_previewer

POLICY = DevicePolicy(DeviceFlags(always_cpu=True), Hardware())


def model(latent_format, channels=320):
    config = SimpleNamespace(model_channels=channels)
    network = SimpleNamespace(config=config)
    return SimpleNamespace(
        model=SimpleNamespace(latent_format=latent_format, diffusion_model=network)
    )


@pytest.fixture
def folder(tmp_path):
    decoder = make_decoder()
    for weight in decoder.parameters():
        torch.nn.init.normal_(weight, std=0.05, generator=torch.Generator().manual_seed(1))
    save_file(dict(decoder.state_dict()), str(tmp_path / "taesdxl_decoder.safetensors"))
    torch.save(dict(decoder.state_dict()), tmp_path / "taesd_decoder.pth")
    return tmp_path


@pytest.mark.parametrize("latent_format", [latent_formats.SDXL(), latent_formats.SD15()])
def test_the_family_s_decoder_is_used(folder, latent_format):
    previewer = make_previewer(model(latent_format), folder, POLICY)
    assert isinstance(previewer, TaesdPreviewer)
    assert previewer.to_jpeg_ready(torch.zeros(1, 4, 128, 64)).shape == (256, 128, 3)


def test_otherwise_previews_are_linear(folder, tmp_path):
    sdxl = latent_formats.SDXL()
    assert isinstance(make_previewer(model(sdxl), None, POLICY), LatentPreviewer)
    assert isinstance(make_previewer(model(sdxl), tmp_path / "none", POLICY), LatentPreviewer)
    # a small model's latents are not those of the released decoders
    assert isinstance(make_previewer(model(sdxl, 64), folder, POLICY), LatentPreviewer)


@pytest.mark.parametrize("content", [b"", b"garbage", b"<html>"])
def test_a_broken_decoder_is_logged_and_passed_over(folder, caplog, content):
    (folder / "taesdxl_decoder.safetensors").write_bytes(content)
    with caplog.at_level(logging.WARNING):
        previewer = make_previewer(model(latent_formats.SDXL()), folder, POLICY)
    assert isinstance(previewer, LatentPreviewer)
    assert "taesdxl_decoder.safetensors" in caplog.text
