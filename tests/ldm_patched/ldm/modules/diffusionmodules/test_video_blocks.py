"""Blocks over time, held against diffusers' Stable Video Diffusion through the loader."""

import json
import os

import pytest
import torch
from diffusers import AutoencoderKLTemporalDecoder, UNetSpatioTemporalConditionModel
from einops import rearrange
from safetensors.torch import save_file

from ldm_patched.ldm.modules.diffusionmodules import openaimodel
from ldm_patched.ldm.modules.diffusionmodules.video_blocks import (
    SpatialVideoTransformer,
    VideoFrames,
    VideoResBlock,
)
from ldm_patched.modules import sd, vae
from ldm_patched.modules.model_base import ModelType
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.vae_strips import StripCoder
from tests.support.engine_report import record
from tests.support.tiny_checkpoint import random_weights
from tests.support.unet_oracle import randomise

POLICY = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
TOLERANCE = 1e-4
FRAMES = 3


@pytest.fixture(scope="module")
def library():
    """(UNet, VAE) of diffusers with random weights."""
    unet = UNetSpatioTemporalConditionModel(
        block_out_channels=(64, 128),
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        layers_per_block=2,
        cross_attention_dim=48,
        num_attention_heads=(1, 2),
        num_frames=FRAMES,
    )
    vae = AutoencoderKLTemporalDecoder(
        block_out_channels=(32, 64),
        down_block_types=("DownEncoderBlock2D",) * 2,
        layers_per_block=2,
    )
    for seed, part in enumerate((unet, vae)):
        randomise(part, seed)
        part.requires_grad_(False).eval()
    return unet, vae


@pytest.fixture(scope="module")
def loaded(library, tmp_path_factory):
    folder = tmp_path_factory.mktemp("svd")
    for name, part in zip(("unet", "vae"), library, strict=True):
        part.save_pretrained(folder / name)
    (folder / "model_index.json").write_text(
        json.dumps({"_class_name": "StableVideoDiffusionPipeline"})
    )
    return sd.load_checkpoint_guess_config(folder, policy=POLICY)


def held_against(found, wanted, name):
    difference = float((found - wanted).abs().max() / wanted.abs().max())
    where = os.environ["PYTEST_CURRENT_TEST"]
    record("family", f"Stable Video Diffusion, {name}", where, "diffusers", difference, TOLERANCE)
    assert wanted.std() > 0.05
    assert difference <= TOLERANCE


def test_the_network_predicts_what_diffusers_predicts(loaded, library):
    model = loaded[0].model
    assert model.load_report.missing == model.load_report.unexpected == ()
    assert model.model_type is ModelType.V_PREDICTION_EDM
    assert model.model_sampling.sigma_max.item() == pytest.approx(700.0, rel=1e-4)
    g = torch.Generator().manual_seed(3)
    x = torch.randn(2, FRAMES, 8, 16, 16, generator=g)
    context = torch.randn(2, 1, 48, generator=g)
    t = torch.tensor([1.3, 1.3])
    y = model.encode_adm(fps=7, motion_bucket_id=100, augmentation_level=0.02)
    with torch.no_grad():
        wanted = library[0](
            x, t[0], context, torch.tensor([[6.0, 100.0, 0.02]] * 2), return_dict=False
        )[0]
        found = model.diffusion_model(
            rearrange(x, "b t c h w -> (b t) c h w"),
            t.repeat_interleave(FRAMES),
            context.repeat_interleave(FRAMES, dim=0),
            y.expand(2 * FRAMES, -1),
            num_video_frames=FRAMES,
        )
    held_against(found, rearrange(wanted, "b t c h w -> (b t) c h w"), "UNet")


def test_the_precision_patch_reaches_the_places_of_frames(loaded, monkeypatch):
    model, asked = loaded[0].model.diffusion_model, []
    plain = openaimodel.timestep_embedding
    monkeypatch.setattr(
        openaimodel,
        "timestep_embedding",
        lambda t, dim: asked.append((t.tolist(), dim)) or plain(t, dim),
    )
    with torch.no_grad():
        y = loaded[0].model.encode_adm(fps=7, motion_bucket_id=100, augmentation_level=0.02)
        model(
            torch.zeros(2, 8, 16, 16),
            torch.full((2,), 1.3),
            torch.zeros(2, 1, 48),
            y.expand(2, -1),
            num_video_frames=2,
        )
    assert ([0, 1], 64) in asked


def test_the_decoder_gives_what_diffusers_gives(loaded, library):
    vae = loaded[2].first_stage_model
    assert loaded[2].load_report.missing == loaded[2].load_report.unexpected == ()
    z = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    pictures = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(5)) * 2 - 1
    with torch.no_grad():
        held_against(vae.decode(z), library[1].decode(z, FRAMES, return_dict=False)[0], "decoder")
        wanted = library[1].encode(pictures).latent_dist.mean
        held_against(vae.encode(pictures), wanted, "encoder")


@pytest.mark.parametrize("tiled", [False, True, None])
def test_a_whole_video_is_decoded_together(loaded, library, tiled, monkeypatch):
    monkeypatch.setattr(vae, "free_memory", lambda device: 1024)  # None would be in strips
    z = torch.randn(FRAMES, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        wanted = library[1].decode(z, FRAMES, return_dict=False)[0]
    wanted = (wanted.permute(0, 2, 3, 1) / 2 + 0.5).clamp(0, 1)
    held_against(loaded[2].decode(z, tiled=tiled), wanted, "pictures of its decoder")
    pictures = torch.rand(2, 32, 32, 3, generator=torch.Generator().manual_seed(5))
    torch.testing.assert_close(  # the encoder knows no time
        loaded[2].encode(pictures, tiled=tiled)[1:], loaded[2].encode(pictures[1:])
    )


def test_a_video_that_is_too_long_is_not_decoded_without_its_time(loaded, monkeypatch):
    def fails(z, interrupt=None):
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(loaded[2].first_stage_model, "decode", fails)
    with pytest.raises(torch.OutOfMemoryError):
        loaded[2].decode(torch.zeros(2, 4, 8, 8))
    coder = StripCoder(
        loaded[2].first_stage_model, device=torch.device("cpu"), store=torch.device("cpu")
    )
    with pytest.raises(ValueError, match="not decoded in strips"):
        coder.decode(torch.zeros(2, 4, 8, 8))


def test_the_memory_of_a_video_goes_by_its_frames(loaded, monkeypatch):
    asked = []
    monkeypatch.setattr(loaded[2].residence, "enter", asked.append)
    for count in (1, 3):
        loaded[2].decode(torch.zeros(count, 4, 8, 8))
    assert asked[1] == 3 * asked[0] > 0


def test_a_single_file_is_the_same_with_its_image_encoder(loaded, tmp_path):
    model, _, vae, _ = loaded
    parts = {
        "model.diffusion_model.": model.model.diffusion_model.state_dict(),
        "first_stage_model.": vae.first_stage_model.state_dict(),
        "conditioner.embedders.0.open_clip.model.": random_weights(VISION),
    }
    weights = {root + k: v.contiguous() for root, part in parts.items() for k, v in part.items()}
    save_file(weights, str(tmp_path / "svd.safetensors"))
    again, clip, decoder, vision = sd.load_checkpoint_guess_config(
        tmp_path / "svd.safetensors", output_clipvision=True, policy=POLICY
    )
    assert clip is None
    assert again.model.load_report.missing == again.model.load_report.unexpected == ()
    for found, wanted in ((again.model, model.model), (decoder, vae)):
        module = "diffusion_model" if found is again.model else "first_stage_model"
        wanted = getattr(wanted, module).state_dict()
        for name, weight in getattr(found, module).state_dict().items():
            assert torch.equal(weight, wanted[name])
    assert vision.encode(torch.zeros(1, 3, 28, 28)).image_embeds.shape == (1, 16)


VISION = {
    "visual.class_embedding": (64,),
    "visual.conv1.weight": (64, 3, 14, 14),
    "visual.positional_embedding": (5, 64),
    "visual.proj": (64, 16),
    **{f"visual.{n}.{k}": (64,) for n in ("ln_pre", "ln_post") for k in ("weight", "bias")},
    **{
        f"visual.transformer.resblocks.0.{name}": shape
        for name, shape in {
            "attn.in_proj_weight": (192, 64),
            "attn.in_proj_bias": (192,),
            "attn.out_proj.weight": (64, 64),
            "attn.out_proj.bias": (64,),
            "ln_1.weight": (64,),
            "ln_1.bias": (64,),
            "ln_2.weight": (64,),
            "ln_2.bias": (64,),
            "mlp.c_fc.weight": (128, 64),
            "mlp.c_fc.bias": (128,),
            "mlp.c_proj.weight": (64, 128),
            "mlp.c_proj.bias": (64,),
        }.items()
    },
}


def test_a_video_model_holds_no_text_encoders(loaded):
    assert loaded[1] is None


@pytest.mark.parametrize("kind", ["res", "transformer"])
@pytest.mark.parametrize("strategy", ["fixed", "learned", "learned_with_images"])
def test_frames_that_are_pictures_see_no_time(kind, strategy):
    options = {"merge_factor": 0.4, "merge_strategy": strategy}
    if kind == "res":
        block = VideoResBlock(64, 32, **options)
        arguments = [torch.randn(4, 32)]
    else:
        block = SpatialVideoTransformer(64, 1, 64, 1, 16, **options)
        arguments = [torch.randn(4, 5, 16).repeat(1, 1, 1), None, None]
    randomise(block, seed=1)
    if strategy == "fixed":
        block.time_mixer.mix_factor.fill_(0.4)
    x = torch.randn(4, 64, 4, 4, generator=torch.Generator().manual_seed(2))
    changed = x.clone()
    changed[3] += 1.0

    def run(value, image_only):
        video = VideoFrames.of(4, 2, torch.tensor(image_only).repeat(2, 1))
        with torch.no_grad():
            return block(value.clone(), *arguments, video)

    for image_only in ([False, False], [True, True]):
        before, after = run(x, image_only), run(changed, image_only)
        torch.testing.assert_close(before[:2], after[:2])  # the other video
        sees_time = strategy != "learned_with_images" or not image_only[0]
        assert torch.allclose(before[2], after[2]) != sees_time


def test_frames_make_whole_videos():
    with pytest.raises(ValueError, match="5 frames are no whole number of videos of 2"):
        VideoFrames.of(5, 2, None)
