"""The autoencoder against diffusers' on the same random weights."""

import re

import pytest
import torch
from diffusers import AutoencoderKL as LibraryVAE

from ldm_patched.ldm.models.autoencoder import AutoencoderKL, detect_autoencoder_config
from tests.support.engine_report import agree
from tests.support.tiny_checkpoint import SDXL, TINY, jittered_weights, vae_shapes

RENAMES = (
    (r"nin_shortcut", "conv_shortcut"),
    (r"norm_out", "conv_norm_out"),
    (r"mid\.block_(\d)", lambda m: f"mid_block.resnets.{int(m[1]) - 1}"),
    (r"mid\.attn_1\.norm", "mid_block.attentions.0.group_norm"),
    (r"mid\.attn_1\.proj_out", "mid_block.attentions.0.to_out.0"),
    (r"mid\.attn_1\.([qkv])\.", r"mid_block.attentions.0.to_\1."),
    (r"down\.(\d)\.block", r"down_blocks.\1.resnets"),
    (r"down\.(\d)\.downsample", r"down_blocks.\1.downsamplers.0"),
    (r"up\.(\d)\.block", lambda m: f"up_blocks.{3 - int(m[1])}.resnets"),
    (r"up\.(\d)\.upsample", lambda m: f"up_blocks.{3 - int(m[1])}.upsamplers.0"),
)


def library_layout(weights):
    """Latent-diffusion names and shapes to those of diffusers."""
    renamed = {}
    for name, tensor in weights.items():
        for pattern, replacement in RENAMES:
            name = re.sub(pattern, replacement, name)
        is_attention = "attentions" in name and tensor.ndim == 4
        renamed[name] = tensor[:, :, 0, 0] if is_attention else tensor
    return renamed


@pytest.fixture(scope="module")
def weights():
    return jittered_weights(vae_shapes(TINY), seed=3)


@pytest.fixture(scope="module")
def ours(weights):
    config = detect_autoencoder_config({k: tuple(v.shape) for k, v in weights.items()})
    model = AutoencoderKL(config)
    model.load_state_dict(weights)
    return model.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def library(weights):
    model = LibraryVAE(
        block_out_channels=(32, 64, 128, 128),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=1,
        latent_channels=4,
    )
    model.load_state_dict(library_layout(weights))
    return model.eval().requires_grad_(False)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(64, 64), (65, 43), (8, 120)])
def test_encode_gives_the_librarys_posterior_mean(ours, library, size, channels_last):
    pixels = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(1))
    expected = library.encode(pixels).latent_dist.mean
    layout = torch.channels_last if channels_last else torch.contiguous_format
    actual = ours.to(memory_format=layout).encode(pixels.contiguous(memory_format=layout))
    assert actual.shape == (2, 4, size[0] // 8, size[1] // 8)
    top = expected.abs().max()
    agree("VAE", "encoder", "diffusers AutoencoderKL", actual / top, expected / top, 1e-4)


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("size", [(8, 8), (9, 5), (1, 13)])
def test_decode_gives_the_librarys_picture(ours, library, size, channels_last):
    latents = torch.randn(2, 4, *size, generator=torch.Generator().manual_seed(2))
    expected = library.decode(latents).sample
    layout = torch.channels_last if channels_last else torch.contiguous_format
    actual = ours.to(memory_format=layout).decode(latents.contiguous(memory_format=layout))
    assert actual.shape == (2, 3, size[0] * 8, size[1] * 8)
    top = expected.abs().max()
    agree("VAE", "decoder", "diffusers AutoencoderKL", actual / top, expected / top, 1e-4)


def test_channels_last_stays_so_from_end_to_end(ours):
    kinds = set()
    hooks = [
        module.register_forward_hook(
            lambda _m, _i, out: kinds.add(out.is_contiguous(memory_format=torch.channels_last))
        )
        for module in ours.decoder.modules()
        if not list(module.children())
    ]
    model = ours.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        model.decode(torch.randn(1, 4, 6, 6).contiguous(memory_format=torch.channels_last))
    for hook in hooks:
        hook.remove()
    assert kinds == {True}


def test_the_dimensions_of_the_real_model_are_read_from_its_shapes():
    config = detect_autoencoder_config(vae_shapes(SDXL))
    assert (config.ch, config.ch_mult, config.num_res_blocks) == (128, (1, 2, 4, 4), 2)
    assert (config.z_channels, config.embed_dim, config.downscale) == (4, 4, 8)


def test_no_dimensions_are_guessed_for_something_else():
    assert detect_autoencoder_config({"encoder.conv_in.weight": (32, 3, 3, 3)}) is None


def test_decoding_stops_at_the_next_block(ours):
    calls = []

    def stop_at_third():
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ours.decode(torch.zeros(1, 4, 4, 4), stop_at_third)
    assert len(calls) == 3
