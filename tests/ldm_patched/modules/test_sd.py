"""Checkpoints: the real layout loads in full, small ones paint, wrong ones are named."""

import hashlib
import json
import logging
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_patched.modules import sd, weight_file
from ldm_patched.modules.errors import CorruptModelFile, UnsupportedModel
from ldm_patched.modules.model_detection import model_config_from_unet
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from tests.support.tiny_checkpoint import (
    CLIP_G_PREFIX,
    CLIP_L_PREFIX,
    SDXL,
    TINY,
    UNET_PREFIX,
    VAE_PREFIX,
    checkpoint_shapes,
    tiny_sdxl_state_dict,
    write_tiny_sdxl,
    write_zeros,
)
from tests.support.wrong_files import WRONG_FILES

CPU = Hardware(kind="cpu")
# 180 million weights: large beside what Python and one tensor's buffer take.
MEDIUM = replace(TINY, model_channels=128, depths=(0, 1, 4), clip_l_width=256, clip_g_width=512)
# SHA-256 of the sorted [name, shape] pairs of the published SDXL base 1.0 checkpoint, as JSON.
SDXL_LAYOUT_SHA256 = "6228a8ebb8515408ffe4b0a98543411031a7caf6a02cbf9ac00410cd5267a0c2"


def policy(**flags):
    return DevicePolicy(DeviceFlags(always_cpu=True, **flags), CPU)


def load(path, **flags):
    return sd.load_checkpoint_guess_config(str(path), policy=policy(**flags))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return write_tiny_sdxl(tmp_path_factory.mktemp("models") / "tiny.safetensors", seed=1)


@pytest.fixture(scope="module")
def loaded(tiny):
    return load(tiny)


def changed(path, tiny, change):
    """A copy of the tiny checkpoint at `path` whose state dict `change` has edited."""
    weights = load_file(str(tiny))
    change(weights)
    save_file(weights, str(path))
    return path


# --- Sound checkpoints ------------------------------------------------------------------------


def test_the_rules_give_the_layout_of_the_published_file():
    pairs = sorted((name, list(shape)) for name, shape in checkpoint_shapes(SDXL).items())
    assert len(pairs) == 2515
    assert hashlib.sha256(json.dumps(pairs).encode()).hexdigest() == SDXL_LAYOUT_SHA256


def test_the_published_layout_loads_without_a_name_too_many_or_too_few(tmp_path, caplog):
    # In float16 throughout, weights stay in the file's memory: nothing of the 7 GB is read.
    path = write_zeros(tmp_path / "sdxl.safetensors", checkpoint_shapes(SDXL))
    fp16 = policy(all_in_fp16=True)
    fp16.memory_format = torch.contiguous_format
    with caplog.at_level(logging.WARNING):
        model, clip, vae, _ = sd.load_checkpoint_guess_config(path, policy=fp16)
    path.unlink()
    assert not caplog.records
    for part in (model.model, clip, vae):
        assert part.load_report.missing == part.load_report.unexpected == ()
    modules = (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    parameters = [p for module in modules for p in module.parameters()]
    assert {p.device.type for p in parameters} == {"cpu"}
    counted = sum(p.numel() for p in parameters)
    assert counted == 2_567_463_684 + 123_060_480 + 694_659_840 + 83_653_863
    assert model.model.adm_channels == 2816


def test_all_weights_arrive(tiny, loaded):
    model, clip, vae, vision = loaded
    assert vision is None
    file = load_file(str(tiny))
    unet = model.model.diffusion_model.state_dict()
    for name, tensor in unet.items():
        torch.testing.assert_close(tensor, file[UNET_PREFIX + name].float(), rtol=0, atol=0)
    for name, tensor in vae.first_stage_model.state_dict().items():
        torch.testing.assert_close(tensor, file[VAE_PREFIX + name].float(), rtol=0, atol=0)
    text = clip.cond_stage_model.state_dict()
    key = "encoder.layers.1.self_attn.k_proj.weight"
    torch.testing.assert_close(
        text["clip_l.text_model." + key], file[CLIP_L_PREFIX + key].float(), rtol=0, atol=0
    )
    joint = file[CLIP_G_PREFIX + "transformer.resblocks.2.attn.in_proj_weight"].float()
    split = text["clip_g.text_model.encoder.layers.2.self_attn.v_proj.weight"]
    torch.testing.assert_close(split, joint[2 * TINY.clip_g_width :], rtol=0, atol=0)


def test_the_parts_fit_together(loaded):
    model, clip, vae, _ = loaded
    cond, pooled = clip.encode_from_tokens(clip.tokenize("a lighthouse"), return_pooled=True)
    assert cond.shape == (1, 77, TINY.context)
    assert pooled.shape == (1, TINY.clip_g_width)
    noise = torch.randn(1, 4, 8, 16, generator=torch.Generator().manual_seed(1)) * 14
    y = model.model.encode_adm(pooled_output=pooled, width=128, height=64)
    latents = model.model.apply_model(noise, torch.tensor([14.0]), c_crossattn=cond, y=y)
    pixels = vae.decode(model.model.process_latent_out(latents))
    assert pixels.shape == (1, 64, 128, 3)
    assert pixels.isfinite().all()
    assert pixels.std() > 0.05


def test_another_prompt_gives_another_condition(loaded):
    _, clip, _, _ = loaded
    assert not torch.allclose(clip.encode("a red house"), clip.encode("a blue boat"))
    assert clip.encode("word " * 100).shape == (1, 154, TINY.context)
    cond = clip.encode_from_tokens(clip.tokenize(""), return_pooled=False)
    assert cond.shape == (1, 77, TINY.context)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_of_the_file_loads(tmp_path, dtype):
    path = write_tiny_sdxl(tmp_path / "x.safetensors", dtype=dtype)
    model, clip, vae, _ = load(path)
    parts = (model.model.diffusion_model, clip.cond_stage_model, vae.first_stage_model)
    assert {p.dtype for part in parts for p in part.parameters()} == {torch.float32}


def test_a_file_whose_header_has_an_odd_length_is_read_once(tmp_path, tiny, monkeypatch):
    """Its tensors cannot be mapped where they lie, and each look at one would read all of it."""
    content = tiny.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = content[8:end].rstrip()
    header += b" " * (9 - len(header) % 8)
    odd = tmp_path / "odd.safetensors"
    odd.write_bytes(len(header).to_bytes(8, "little") + header + content[end:])
    sizes = []
    read = weight_file.SafetensorsFile._read

    def counted(self, entry, target):
        sizes.append(entry.end - entry.start)
        return read(self, entry, target)

    monkeypatch.setattr(weight_file.SafetensorsFile, "_read", counted)
    assert None not in load(odd)[:3]
    assert sum(sizes) <= len(content) - end


def test_a_pickled_checkpoint_loads_the_same(tmp_path, loaded):
    path = tmp_path / "tiny.ckpt"
    torch.save({"state_dict": tiny_sdxl_state_dict(seed=1), "global_step": 7}, path)
    model, clip, _, _ = load(path)
    expected = loaded[0].model.diffusion_model.state_dict()
    for name, tensor in model.model.diffusion_model.state_dict().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    torch.testing.assert_close(clip.encode("x"), loaded[1].encode("x"))


def test_a_base_model_with_the_widths_of_a_refiner_is_a_base_model():
    # Its text encoders tell: 512 + 6 * 256 sizes is as wide as 768 + 5 * 256.
    layout = {k: torch.empty(s, device="meta") for k, s in checkpoint_shapes(MEDIUM).items()}
    assert model_config_from_unet(layout).name == "SDXL"


def test_parts_that_are_not_wanted_are_none(tiny):
    assert sd.load_checkpoint_guess_config(
        tiny, output_vae=False, output_clip=False, output_model=False, policy=policy()
    ) == (None, None, None, None)


def test_a_file_without_text_encoders_gives_none_for_them(tmp_path, tiny):
    def without_text(weights):
        for name in [name for name in weights if name.startswith("conditioner.")]:
            del weights[name]

    model, clip, vae, _ = load(changed(tmp_path / "bare.safetensors", tiny, without_text))
    assert clip is None
    assert model is not None
    assert vae is not None


KNOWN_EXTRAS = (
    "model_ema.diffusion_modelinput_blocks00weight",
    "model_ema.decay",
    "betas",
    "alphas_cumprod_prev",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_mean_coef1",
    "denoiser.sigmas",
    "first_stage_model.loss.logvar",
    CLIP_L_PREFIX.removesuffix("text_model.") + "text_projection.weight",
    CLIP_G_PREFIX + "attn_mask",
    CLIP_G_PREFIX + "visual.conv1.weight",
)
UNKNOWN_EXTRAS = ("something_else.weight", UNET_PREFIX + "new_block.weight")


def test_extras_of_real_files_are_ignored_and_unknown_ones_reported(tmp_path, tiny, caplog):
    def with_extras(weights):
        weights |= {name: torch.zeros(3) for name in KNOWN_EXTRAS + UNKNOWN_EXTRAS}

    path = changed(tmp_path / "extras.safetensors", tiny, with_extras)
    with caplog.at_level(logging.WARNING):
        model, clip, vae, _ = load(path)
    assert set(model.model.load_report.unexpected) == set(UNKNOWN_EXTRAS)
    assert clip.load_report.unexpected == vae.load_report.unexpected == ()
    assert "something_else.weight" in caplog.text
    assert "model_ema" not in caplog.text


def test_attention_of_the_vae_may_be_stored_as_matrices(tmp_path, tiny, loaded):
    def flatten(weights):
        for name in [n for n in weights if ".attn_1." in n and n.endswith("weight")]:
            weights[name] = weights[name].reshape(weights[name].shape[0], -1).squeeze(-1)

    _, _, vae, _ = load(changed(tmp_path / "flat.safetensors", tiny, flatten))
    latents = torch.ones(1, 4, 4, 4)
    torch.testing.assert_close(vae.decode(latents), loaded[2].decode(latents))


def test_clones_of_the_text_encoders_share_weights_but_not_patches(loaded):
    _, clip, _, _ = loaded
    before = clip.encode("a cat")
    other = clip.clone()
    name = "clip_g.text_model.final_layer_norm.weight"
    assert other.add_patches({name: ("diff", (torch.ones(TINY.clip_g_width),))}) == [name]
    assert other.cond_stage_model is clip.cond_stage_model
    _, patched = other.encode_from_tokens(other.tokenize("a cat"))
    _, plain = clip.encode_from_tokens(clip.tokenize("a cat"))
    assert not torch.allclose(patched, plain)
    torch.testing.assert_close(clip.encode("a cat"), before, rtol=0, atol=0)


# --- Wrong files ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "part"),
    [
        (UNET_PREFIX + "out.0.bias", "diffusion network"),
        (UNET_PREFIX + "middle_block.0.in_layers.0.weight", "diffusion network"),
        (CLIP_L_PREFIX + "encoder.layers.0.mlp.fc1.bias", "text encoders"),
        (CLIP_G_PREFIX + "transformer.resblocks.1.attn.in_proj_bias", "text encoders"),
        (VAE_PREFIX + "encoder.norm_out.weight", "VAE"),
    ],
)
@pytest.mark.parametrize("how", ["missing", "wrong shape"])
def test_a_checkpoint_that_lacks_a_weight_is_corrupt(tmp_path, tiny, name, part, how):
    def break_it(weights):
        tensor = weights.pop(name)
        if how == "wrong shape":
            weights[name] = torch.zeros(tensor.shape[0] + 3)

    path = changed(tmp_path / "broken.safetensors", tiny, break_it)
    with pytest.raises(CorruptModelFile, match=rf"broken\.safetensors.*{part}"):
        load(path)


def test_whole_numbers_are_no_weights(tmp_path, tiny):
    def quantise(weights):
        name = UNET_PREFIX + "middle_block.1.transformer_blocks.0.attn1.to_q.weight"
        weights[name] = weights[name].to(torch.int8)

    path = changed(tmp_path / "int8.safetensors", tiny, quantise)
    with pytest.raises(UnsupportedModel, match=r"int8\.safetensors is quantised.*int8.*fp16"):
        load(path)


@pytest.mark.parametrize("looks_like", WRONG_FILES)
def test_a_file_that_is_no_checkpoint_is_named(tmp_path, looks_like):
    path = tmp_path / "wrong.safetensors"
    save_file(WRONG_FILES[looks_like], str(path))
    with pytest.raises(UnsupportedModel, match=looks_like.split(" of the")[0]) as caught:
        load(path)
    assert str(caught.value).startswith("wrong.safetensors")
    assert str(tmp_path) not in str(caught.value)


def test_no_image_encoder_is_promised(tiny):
    with pytest.raises(UnsupportedModel, match="image encoder"):
        sd.load_checkpoint_guess_config(tiny, output_clipvision=True, policy=policy())


# --- Metadata ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("metadata", "area", "ratios"),
    [
        ({"easel.area": 65536, "easel.ratios": ["1:1", "3:2"]}, 65536, ("1:1", "3:2")),
        (None, None, ()),
        ({"easel.area": -1, "easel.ratios": ["0:1", 3, "1:1", "1:1:1"]}, None, ("1:1",)),
        ({"easel.area": "not json", "easel.ratios": "{"}, None, ()),
        ({"easel.area": "true", "easel.ratios": "[" * 100_000}, None, ()),
    ],
)
def test_the_sizes_that_a_file_names_are_read(tmp_path, metadata, area, ratios):
    path = tmp_path / "x.safetensors"
    strings = {k: v if isinstance(v, str) else json.dumps(v) for k, v in (metadata or {}).items()}
    save_file({"a": torch.zeros(1)}, str(path), metadata=strings or None)
    assert sd.read_model_metadata(path) == sd.ModelMetadata(area, ratios)


def test_a_pickle_has_no_metadata(tmp_path):
    torch.save({"a": torch.zeros(1)}, tmp_path / "x.ckpt")
    assert sd.read_model_metadata(tmp_path / "x.ckpt") == sd.ModelMetadata()


# --- Memory -----------------------------------------------------------------------------------

MEMORY_SCRIPT = """
import sys, threading
import torch
from ldm_patched.modules import sd
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware

def resident(name):
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(name)) * 1024

policy = DevicePolicy(DeviceFlags(always_cpu=True, **{f: True for f in sys.argv[2:]}), Hardware())
torch.ones(8, 8) @ torch.ones(8, 8)
with open("/proc/self/clear_refs", "w") as file:
    file.write("5")  # the peak counts from here
before = resident("VmRSS:")
parts = sd.load_checkpoint_guess_config(sys.argv[1], policy=policy)
model, clip, vae, _ = parts
modules = (model.model, clip.cond_stage_model, vae.first_stage_model)
weights = [p for module in modules for p in module.parameters()]
for weight in weights:
    weight.sum()  # mapped pages count only once they are used
print((resident("VmHWM:") - before) / sum(w.nbytes for w in weights))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("flags", [["all_in_fp16"], []])
def test_loading_takes_little_more_memory_than_the_weights(tmp_path, flags):
    path = write_zeros(tmp_path / "medium.safetensors", checkpoint_shapes(MEDIUM))
    out = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, str(path), *flags],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert float(out) <= 1.15
