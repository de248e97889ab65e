"""Scaled fp8: weights come out multiplied by their scales, or the file is refused in words."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from ldm_patched.modules import sd
from ldm_patched.modules.errors import UnsupportedModel
from ldm_patched.modules.model_management import DeviceFlags, DevicePolicy, Hardware
from ldm_patched.modules.weight_file import open_weights
from tests.support.tiny_checkpoint import CLIP_L_PREFIX, UNET_PREFIX, write_tiny_sdxl

E4M3 = torch.float8_e4m3fn
LAYERS = tuple(
    UNET_PREFIX + name
    for name in (
        "middle_block.1.proj_in",
        "middle_block.0.in_layers.2",
        "input_blocks.1.0.emb_layers.1",
    )
) + (CLIP_L_PREFIX + "encoder.layers.0.mlp.fc1",)
PLAIN = {"format": "float8_e4m3fn"}


def words(said) -> torch.Tensor:
    return torch.tensor(list(json.dumps(said).encode()), dtype=torch.uint8)


def stored(weight, scale):
    """(weight in 8 bits, its scale); scale: "one", or "row" for one of each row."""
    rows = weight.float().abs().flatten(1).amax(dim=1) / 400
    found = rows.max() if scale == "one" else rows.view(-1, *(1,) * (weight.ndim - 1))
    return (weight.float() / found).to(E4M3), found


def scaled_checkpoint(path, form):
    """The tiny checkpoint with some layers in 8 bits, and what their weights are then."""
    weights = load_file(str(write_tiny_sdxl(path, seed=4)))
    wanted = {}
    for layer in LAYERS:
        eight, scale = stored(weights[f"{layer}.weight"], "row" if form == "row" else "one")
        wanted[f"{layer}.weight"] = eight.float() * scale
        weights[f"{layer}.weight"] = eight
        if form == "older":
            weights |= {f"{layer}.scale_weight": scale, f"{layer}.scale_input": torch.ones(())}
            weights[f"{UNET_PREFIX}scaled_fp8"] = torch.zeros(2).to(E4M3)
        else:
            weights |= {f"{layer}.weight_scale": scale, f"{layer}.comfy_quant": words(PLAIN)}
    save_file(weights, str(path))
    return wanted


@pytest.mark.parametrize("form", ["older", "newer", "row"])
def test_scaled_weights_are_multiplied(tmp_path, form):
    path = tmp_path / "scaled.safetensors"
    wanted = scaled_checkpoint(path, form)
    policy = DevicePolicy(DeviceFlags(always_cpu=True, all_in_fp32=True), Hardware(kind="cpu"))
    model, clip, _, _ = sd.load_checkpoint_guess_config(str(path), policy=policy)
    assert model.model.load_report.unexpected == clip.load_report.unexpected == ()
    parts = {
        UNET_PREFIX: model.model.diffusion_model,
        CLIP_L_PREFIX: clip.cond_stage_model.clip_l.text_model,
    }
    for name, weight in wanted.items():
        prefix = next(prefix for prefix in parts if name.startswith(prefix))
        found = parts[prefix].get_parameter(name.removeprefix(prefix))
        assert torch.equal(found, weight)


def test_layout_precision_and_outline_of_a_scaled_weight(tmp_path):
    path = tmp_path / "x.safetensors"
    eight = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).to(E4M3)
    save_file(
        {"a.weight": eight, "a.weight_scale": torch.tensor([0.5]), "b": eight.clone()}, str(path)
    )
    file = open_weights(path)
    assert list(file) == ["a.weight", "b"]
    assert (len(file), "a.weight_scale" in file) == (2, False)
    loaded = file.load("a.weight", torch.bfloat16, torch.channels_last)
    assert loaded.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(loaded, (eight.float() / 2).bfloat16())
    assert torch.equal(file["a.weight"], eight.float() / 2)
    assert (file.outline("a.weight").shape, file.outline("a.weight").dtype) == (
        eight.shape,
        torch.float32,
    )
    assert file["b"].dtype == E4M3


def test_a_number_of_that_name_without_its_weight_is_a_tensor_as_any(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"a.weight_scale": torch.ones(2), "b": torch.ones(1)}, str(path))
    assert set(open_weights(path)) == {"a.weight_scale", "b"}


ODD = {
    "blocks": {"a.weight_scale": torch.ones(8, 2)},
    "columns": {"a.weight_scale": torch.ones(1, 8)},
    "packed": {"a.weight": torch.ones(8, 4, dtype=torch.uint8), "a.weight_scale": torch.ones(1)},
    "whole numbers": {"a.weight_scale": torch.ones(1, dtype=torch.uint8)},
    "another form": {
        "a.weight_scale": torch.ones(1),
        "a.comfy_quant": words({"format": "nvfp4"}),
    },
    "no form": {"a.weight_scale": torch.ones(1), "a.comfy_quant": torch.ones(3).byte()},
}


@pytest.mark.parametrize("parts", ODD.values(), ids=ODD.keys())
def test_other_kinds_of_scales_are_refused(tmp_path, parts):
    path = tmp_path / "odd.safetensors"
    save_file({"a.weight": torch.ones(8, 8).to(E4M3), **parts}, str(path))
    with pytest.raises(UnsupportedModel, match=r"odd\.safetensors is quantised .* Choose an fp16"):
        open_weights(path)
